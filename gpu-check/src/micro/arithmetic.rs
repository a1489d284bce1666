//! Arithmetic, comparison, logic.

use super::{
    Target, Test,
    forms::Form,
    inputs::Kind::{self, B16, B32, B64, Bf16, Bf16x2, Count, F16, F16x2, F32, Pred},
};

/// Every test of this kind.
pub fn tests() -> Vec<Test> {
    let mut forms = special();
    forms.extend(f32_arithmetic());
    forms.extend(halves());
    forms.extend(comparisons());
    forms.extend(integers());
    forms.extend(bits());
    let mut tests: Vec<_> = forms.iter().map(Form::test).collect();
    tests.extend(carries());
    tests
}

/// The approximations, with the manual's bounds in units of the last place where it has such.
fn special() -> Vec<Form> {
    let mut forms = Vec::new();
    for ftz in ["", ".ftz"] {
        let form = |name: &str, ulp| {
            Form::new(format!("{name}.approx{ftz}.f32"), &[F32], F32).approximate(ulp)
        };
        forms.extend([
            form("ex2", 2),
            form("rcp", 1),
            form("rsqrt", 2),
            form("sqrt", 2),
        ]);
        // The manual's bounds of these are absolute; that of tanh further down is relative, 2^-11.
        forms.extend([form("lg2", 0), form("sin", 0), form("cos", 0)]);
        forms.push(Form::new(format!("div.approx{ftz}.f32"), &[F32, F32], F32).approximate(2));
        forms.push(Form::new(format!("div.full{ftz}.f32"), &[F32, F32], F32).approximate(2));
        for round in ["rn", "rz", "rm", "rp"] {
            forms.push(Form::new(format!("rcp.{round}{ftz}.f32"), &[F32], F32));
            forms.push(Form::new(format!("sqrt.{round}{ftz}.f32"), &[F32], F32));
            forms.push(Form::new(format!("div.{round}{ftz}.f32"), &[F32, F32], F32));
        }
    }
    forms.push(Form::new("tanh.approx.f32", &[F32], F32).approximate(1 << 13));
    for (name, kind, target) in [
        ("f16", F16, Target::Sm80),
        ("f16x2", F16x2, Target::Sm80),
        ("bf16", Bf16, Target::Sm90),
        ("bf16x2", Bf16x2, Target::Sm90),
    ] {
        let ftz = if name.starts_with('b') { ".ftz" } else { "" };
        forms.push(
            Form::new(format!("ex2.approx{ftz}.{name}"), &[kind], kind)
                .target(target)
                .approximate(2),
        );
        forms.push(
            Form::new(format!("tanh.approx.{name}"), &[kind], kind)
                .target(target)
                .approximate(0),
        );
    }
    forms
}

fn f32_arithmetic() -> Vec<Form> {
    let mut forms = Vec::new();
    for ftz in ["", ".ftz"] {
        for round in ["rn", "rz", "rm", "rp"] {
            for name in ["add", "sub", "mul"] {
                forms.push(Form::new(
                    format!("{name}.{round}{ftz}.f32"),
                    &[F32, F32],
                    F32,
                ));
            }
            forms.push(Form::new(format!("fma.{round}{ftz}.f32"), &[F32; 3], F32));
        }
        for name in ["add", "mul"] {
            forms.push(Form::new(
                format!("{name}.rn{ftz}.sat.f32"),
                &[F32, F32],
                F32,
            ));
        }
        forms.push(Form::new(format!("fma.rn{ftz}.sat.f32"), &[F32; 3], F32));
        for name in ["min", "max"] {
            forms.push(Form::new(format!("{name}{ftz}.f32"), &[F32, F32], F32));
            forms.push(Form::new(format!("{name}{ftz}.NaN.f32"), &[F32, F32], F32));
            let form = Form::new(format!("{name}{ftz}.xorsign.abs.f32"), &[F32, F32], F32);
            forms.push(form.target(Target::Sm89));
        }
        for name in ["abs", "neg"] {
            forms.push(Form::new(format!("{name}{ftz}.f32"), &[F32], F32));
        }
    }
    forms.push(Form::new("copysign.f32", &[F32, F32], F32));
    for class in [
        "finite",
        "infinite",
        "number",
        "notanumber",
        "normal",
        "subnormal",
    ] {
        forms.push(Form::new(format!("testp.{class}.f32"), &[F32], Pred));
    }
    forms
}

fn halves() -> Vec<Form> {
    let mut forms = Vec::new();
    for (name, kind) in [
        ("f16", F16),
        ("f16x2", F16x2),
        ("bf16", Bf16),
        ("bf16x2", Bf16x2),
    ] {
        let since = if name.starts_with('b') {
            Target::Sm90
        } else {
            Target::Sm80
        };
        for operation in ["add", "sub", "mul"] {
            forms.push(
                Form::new(format!("{operation}.rn.{name}"), &[kind, kind], kind).target(since),
            );
        }
        for tail in ["", ".relu"] {
            forms.push(Form::new(format!("fma.rn{tail}.{name}"), &[kind; 3], kind));
        }
        if since == Target::Sm80 {
            forms.push(Form::new(
                format!("fma.rn.ftz.sat.{name}"),
                &[kind; 3],
                kind,
            ));
        }
        for operation in ["min", "max"] {
            forms.push(Form::new(
                format!("{operation}.{name}"),
                &[kind, kind],
                kind,
            ));
            forms.push(Form::new(
                format!("{operation}.NaN.{name}"),
                &[kind, kind],
                kind,
            ));
        }
        for operation in ["abs", "neg"] {
            forms.push(Form::new(format!("{operation}.{name}"), &[kind], kind));
        }
    }
    forms
}

fn comparisons() -> Vec<Form> {
    let mut forms = Vec::new();
    let ordered = ["eq", "ne", "lt", "le", "gt", "ge"];
    let unordered = ["equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];
    for comparison in ordered.iter().chain(&unordered) {
        for ftz in ["", ".ftz"] {
            forms.push(Form::new(
                format!("setp.{comparison}{ftz}.f32"),
                &[F32, F32],
                Pred,
            ));
        }
        forms.push(Form::new(
            format!("setp.{comparison}.f16"),
            &[F16, F16],
            Pred,
        ));
        forms.push(
            Form::new(format!("setp.{comparison}.bf16"), &[Bf16, Bf16], Pred).target(Target::Sm90),
        );
        forms.push(Form::new(
            format!("set.{comparison}.u32.f32"),
            &[F32, F32],
            B32,
        ));
        forms.push(Form::new(
            format!("set.{comparison}.f32.f32"),
            &[F32, F32],
            F32,
        ));
    }
    for comparison in ordered {
        for (dtype, kind) in [
            ("s32", B32),
            ("s64", B64),
            ("s16", B16),
            ("u16", B16),
            ("u64", B64),
            ("u32", B32),
        ] {
            forms.push(Form::new(
                format!("setp.{comparison}.{dtype}"),
                &[kind, kind],
                Pred,
            ));
        }
    }
    for (dtype, kind) in [("b16", B16), ("b32", B32), ("b64", B64)] {
        for comparison in ["eq", "ne"] {
            let name = format!("setp.{comparison}.{dtype}");
            forms.push(Form::new(name, &[kind, kind], Pred));
        }
    }
    for comparison in ["lo", "ls", "hi", "hs"] {
        forms.push(Form::new(
            format!("setp.{comparison}.u32"),
            &[B32, B32],
            Pred,
        ));
    }
    for boolean in ["and", "or", "xor"] {
        forms.push(Form::new(
            format!("setp.lt.{boolean}.f32"),
            &[F32, F32, Pred],
            Pred,
        ));
    }
    for (dtype, kind) in [("b32", B32), ("f32", F32), ("b16", B16), ("b64", B64)] {
        forms.push(Form::new(
            format!("selp.{dtype}"),
            &[kind, kind, Pred],
            kind,
        ));
    }
    forms.push(Form::new("slct.f32.s32", &[F32, F32, B32], F32));
    forms.push(Form::new("slct.u32.f32", &[B32, B32, F32], B32));
    forms
}

fn integers() -> Vec<Form> {
    let mut forms = Vec::new();
    for (dtype, kind, wide) in [
        ("u16", B16, Some(B32)),
        ("s16", B16, Some(B32)),
        ("u32", B32, Some(B64)),
        ("s32", B32, Some(B64)),
        ("u64", B64, None),
        ("s64", B64, None),
    ] {
        for name in ["add", "sub", "min", "max", "mul.lo", "mul.hi"] {
            forms.push(Form::new(format!("{name}.{dtype}"), &[kind, kind], kind));
        }
        forms.push(Form::new(format!("mad.lo.{dtype}"), &[kind; 3], kind));
        forms.push(Form::new(format!("mad.hi.{dtype}"), &[kind; 3], kind));
        forms.push(Form::new(format!("sad.{dtype}"), &[kind; 3], kind));
        if let Some(wide) = wide {
            forms.push(Form::new(format!("mul.wide.{dtype}"), &[kind, kind], wide));
            forms.push(Form::new(
                format!("mad.wide.{dtype}"),
                &[kind, kind, wide],
                wide,
            ));
        }
        // A divisor of 0 is among the inputs: PTX leaves its result open, and GPUs are known to agree.
        for name in ["div", "rem"] {
            forms.push(Form::new(format!("{name}.{dtype}"), &[kind, kind], kind));
        }
        if dtype.starts_with('s') {
            for name in ["abs", "neg"] {
                forms.push(Form::new(format!("{name}.{dtype}"), &[kind], kind));
            }
        }
        forms.push(Form::new(format!("shr.{dtype}"), &[kind, Count], kind));
    }
    for dtype in ["u32", "s32"] {
        for half in ["lo", "hi"] {
            forms.push(Form::new(format!("mul24.{half}.{dtype}"), &[B32, B32], B32));
            forms.push(Form::new(format!("mad24.{half}.{dtype}"), &[B32; 3], B32));
        }
        for other in ["u32", "s32"] {
            forms.push(Form::new(format!("dp4a.{dtype}.{other}"), &[B32; 3], B32));
            forms.push(Form::new(
                format!("dp2a.lo.{dtype}.{other}"),
                &[B32; 3],
                B32,
            ));
            forms.push(Form::new(
                format!("dp2a.hi.{dtype}.{other}"),
                &[B32; 3],
                B32,
            ));
        }
    }
    for name in ["add.sat", "sub.sat"] {
        forms.push(Form::new(format!("{name}.s32"), &[B32, B32], B32));
    }
    for name in ["min.relu", "max.relu"] {
        forms.push(Form::new(format!("{name}.s32"), &[B32, B32], B32).target(Target::Sm90));
    }
    forms.push(Form::new("mad.hi.sat.s32", &[B32; 3], B32));
    forms
}

fn bits() -> Vec<Form> {
    let mut forms = Vec::new();
    for (dtype, kind) in [("b16", B16), ("b32", B32), ("b64", B64)] {
        for name in ["and", "or", "xor"] {
            forms.push(Form::new(format!("{name}.{dtype}"), &[kind, kind], kind));
        }
        forms.push(Form::new(format!("not.{dtype}"), &[kind], kind));
        forms.push(Form::new(format!("cnot.{dtype}"), &[kind], kind));
        forms.push(Form::new(format!("shl.{dtype}"), &[kind, Count], kind));
    }
    for (dtype, kind) in [("b32", B32), ("b64", B64)] {
        forms.push(Form::new(format!("brev.{dtype}"), &[kind], kind));
        for name in ["clz", "popc"] {
            forms.push(Form::new(format!("{name}.{dtype}"), &[kind], B32));
        }
        // Place and length are immediates: the emulator has no other form, and no kernel needs one.
        for field in [
            "0, 8", "5, 11", "31, 1", "24, 16", "16, 0", "40, 9", "255, 255", "0, 64",
        ] {
            forms.push(Form::new(format!("bfi.{dtype}"), &[kind, kind], kind).tail(field));
        }
    }
    for (dtype, kind) in [("u32", B32), ("s32", B32), ("u64", B64), ("s64", B64)] {
        forms.push(Form::new(
            format!("bfe.{dtype}"),
            &[kind, Count, Count],
            kind,
        ));
        forms.push(Form::new(format!("bfind.{dtype}"), &[kind], B32));
        forms.push(Form::new(format!("bfind.shiftamt.{dtype}"), &[kind], B32));
    }
    for direction in ["l", "r"] {
        for mode in ["clamp", "wrap"] {
            forms.push(Form::new(
                format!("shf.{direction}.{mode}.b32"),
                &[B32, B32, Count],
                B32,
            ));
        }
    }
    for mode in ["clamp", "wrap"] {
        forms.push(Form::new(format!("bmsk.{mode}.b32"), &[Count, Count], B32));
        for dtype in ["u32", "s32"] {
            forms.push(Form::new(
                format!("szext.{mode}.{dtype}"),
                &[B32, Count],
                B32,
            ));
        }
    }
    let permute: [(&str, Kind); 7] = [
        ("", B32),
        (".f4e", B32),
        (".b4e", B32),
        (".rc8", B32),
        (".ecl", B32),
        (".ecr", B32),
        (".rc16", B32),
    ];
    for (mode, selector) in permute {
        forms.push(Form::new(
            format!("prmt.b32{mode}"),
            &[B32, B32, selector],
            B32,
        ));
    }
    for table in [0x00, 0x1b, 0x3c, 0x80, 0x96, 0xca, 0xe8, 0xfe] {
        forms.push(Form::new("lop3.b32", &[B32; 3], B32).tail(table));
    }
    forms
}

/// Sums of 64 bits from two of 32, carry included.
fn carries() -> Vec<Test> {
    use super::inputs::{Noise, operands};
    use crate::compare::Format;
    let test = |name: &str, body: &str| {
        let input = operands(&[B64, B64], 16 << 10, &mut Noise::of(name));
        Test::new(name, Target::Sm80, body, (4, vec![Format::Bits; 2]), input)
    };
    vec![
        test(
            "add.cc.u32, addc.u32",
            "add.cc.u32 %o0, %a0, %a2;\naddc.u32 %o1, %a1, %a3;",
        ),
        test(
            "sub.cc.u32, subc.u32",
            "sub.cc.u32 %o0, %a0, %a2;\nsubc.u32 %o1, %a1, %a3;",
        ),
        test(
            "mad.lo.cc.u32, madc.hi.u32",
            "mad.lo.cc.u32 %o0, %a0, %a1, %a2;\nmadc.hi.u32 %o1, %a0, %a1, %a3;",
        ),
    ]
}

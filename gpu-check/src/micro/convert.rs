//! Conversions.

use super::{
    Target, Test,
    forms::Form,
    inputs::Kind::{self, B16, B32, B64, Bf16, Bf16x2, F16, F16x2, F32},
};

/// Every test of this kind.
pub fn tests() -> Vec<Test> {
    let mut forms = to_half();
    forms.extend(to_tf32());
    forms.extend(from_half());
    forms.extend(fp8());
    forms.extend(integers());
    forms.iter().map(Form::test).collect()
}

fn to_half() -> Vec<Form> {
    let mut forms = Vec::new();
    for round in ["rn", "rz"] {
        for relu in ["", ".relu"] {
            for (name, single, pair) in [("f16", F16, F16x2), ("bf16", Bf16, Bf16x2)] {
                forms.push(Form::new(
                    format!("cvt.{round}{relu}.{name}.f32"),
                    &[F32],
                    single,
                ));
                forms.push(Form::new(
                    format!("cvt.{round}{relu}.{name}x2.f32"),
                    &[F32, F32],
                    pair,
                ));
            }
        }
    }
    // Subnormal results, and what is flushed before.
    forms.push(Form::new("cvt.rn.ftz.f16.f32", &[F32], F16));
    forms.push(Form::new("cvt.rm.f16.f32", &[F32], F16));
    forms.push(Form::new("cvt.rp.f16.f32", &[F32], F16));
    forms.push(Form::new("cvt.rn.sat.f16.f32", &[F32], F16));
    forms
}

fn to_tf32() -> Vec<Form> {
    let mut forms = vec![Form::new("cvt.rna.tf32.f32", &[F32], F32)];
    for form in ["rn", "rz", "rn.relu", "rz.relu"] {
        forms.push(Form::new(format!("cvt.{form}.tf32.f32"), &[F32], F32).target(Target::Sm90));
    }
    forms
}

fn from_half() -> Vec<Form> {
    let mut forms = vec![
        Form::new("cvt.f32.f16", &[F16], F32),
        Form::new("cvt.ftz.f32.f16", &[F16], F32),
        Form::new("cvt.sat.f32.f16", &[F16], F32),
        Form::new("cvt.f32.bf16", &[Bf16], F32).target(Target::Sm90),
    ];
    for round in ["rni", "rzi", "rmi", "rpi"] {
        forms.push(Form::new(format!("cvt.{round}.f16.f16"), &[F16], F16));
        for (name, kind) in [
            ("s16", B16),
            ("u16", B16),
            ("s32", B32),
            ("u32", B32),
            ("s64", B64),
            ("u64", B64),
        ] {
            forms.push(Form::new(format!("cvt.{round}.{name}.f16"), &[F16], kind));
        }
    }
    forms
}

fn fp8() -> Vec<Form> {
    let mut forms = Vec::new();
    for name in ["e4m3x2", "e5m2x2"] {
        for relu in ["", ".relu"] {
            forms.push(Form::new(
                format!("cvt.rn.satfinite{relu}.{name}.f32"),
                &[F32, F32],
                B16,
            ));
            forms.push(Form::new(
                format!("cvt.rn.satfinite{relu}.{name}.f16x2"),
                &[F16x2],
                B16,
            ));
            forms.push(Form::new(
                format!("cvt.rn{relu}.f16x2.{name}"),
                &[B16],
                F16x2,
            ));
        }
    }
    forms
        .into_iter()
        .map(|form| form.target(Target::Sm89))
        .collect()
}

fn integers() -> Vec<Form> {
    let mut forms = Vec::new();
    let wide: [(&str, Kind); 6] = [
        ("u16", B16),
        ("s16", B16),
        ("u32", B32),
        ("s32", B32),
        ("u64", B64),
        ("s64", B64),
    ];
    for (name, kind) in wide {
        for round in ["rni", "rzi", "rmi", "rpi"] {
            forms.push(Form::new(format!("cvt.{round}.{name}.f32"), &[F32], kind));
        }
        forms.push(Form::new(format!("cvt.rzi.ftz.{name}.f32"), &[F32], kind));
        for round in ["rn", "rz", "rm", "rp"] {
            forms.push(Form::new(format!("cvt.{round}.f32.{name}"), &[kind], F32));
        }
        forms.push(Form::new(format!("cvt.rn.f16.{name}"), &[kind], F16));
        forms.push(Form::new(format!("cvt.rn.bf16.{name}"), &[kind], Bf16).target(Target::Sm90));
    }
    for (round, tail) in [
        ("rni", ""),
        ("rzi", ""),
        ("rmi", ""),
        ("rpi", ""),
        ("rni.ftz", ""),
        ("rni", ".sat"),
    ] {
        forms.push(Form::new(format!("cvt.{round}{tail}.f32.f32"), &[F32], F32));
    }
    // Sign and zero extension, truncation, saturation.
    for (to, out) in wide {
        for (from, kind) in wide {
            if to != from {
                forms.push(Form::new(format!("cvt.{to}.{from}"), &[kind], out));
            }
        }
    }
    for (name, out) in [("u16", B16), ("s16", B16), ("u32", B32)] {
        forms.push(Form::new(format!("cvt.sat.{name}.s32"), &[B32], out));
    }
    for name in ["u8", "s8", "u16", "s16"] {
        forms.push(Form::new(
            format!("cvt.pack.sat.{name}.s32.b32"),
            &[B32, B32, B32],
            B32,
        ));
    }
    // The third operand belongs to 8 bits and less.
    forms.retain(|form| {
        !matches!(
            form.instruction.as_str(),
            "cvt.pack.sat.u16.s32.b32" | "cvt.pack.sat.s16.s32.b32"
        )
    });
    for name in ["u16", "s16"] {
        forms.push(Form::new(
            format!("cvt.pack.sat.{name}.s32"),
            &[B32, B32],
            B32,
        ));
    }
    forms
}

//! Barriers of a block, and atomics.

use super::{
    Target, Test,
    inputs::{Kind, Noise, operands},
};
use crate::compare::Format;

/// Every test of this kind.
pub fn tests() -> Vec<Test> {
    let mut tests = barriers();
    tests.extend(atomics());
    tests
}

fn barriers() -> Vec<Test> {
    // A predicate a thread: none of the block, one, all but one, all, any.
    let mut noise = Noise::of("barriers");
    let mut input = Vec::new();
    for block in 0..64 {
        let odd = noise.below(128);
        for thread in 0..128 {
            input.push(match block % 5 {
                0 => 0,
                1 => u32::from(thread == odd),
                2 => u32::from(thread != odd),
                3 => 1,
                _ => noise.below(2),
            });
        }
    }
    let test = |name: &str, body: &str, outs: usize| {
        Test::new(
            name,
            Target::Sm80,
            body,
            (1, vec![Format::Bits; outs]),
            input.clone(),
        )
    };
    let predicate = "setp.ne.u32 %p0, %a0, 0;\n";
    let mut tests = vec![
        test(
            "bar.red.popc.u32",
            &format!("{predicate}bar.red.popc.u32 %o0, 0, %p0;"),
            1,
        ),
        // Two warps of the four, at a barrier of their own.
        test(
            "bar.red.popc.u32, 64 threads",
            &format!(
                "{predicate}shr.u32 %r3, %r0, 6;\nadd.u32 %r3, %r3, 1;\nbar.red.popc.u32 %o0, %r3, 64, %p0;"
            ),
            1,
        ),
    ];
    for operation in ["and", "or"] {
        let name = format!("bar.red.{operation}.pred");
        let body = format!("{predicate}{name} %p1, 0, %p0;\nselp.b32 %o0, 1, 0, %p1;");
        tests.push(test(&name, &body, 1));
        let body = format!("{predicate}{name} %p1, 0, !%p0;\nselp.b32 %o0, 1, 0, %p1;");
        tests.push(test(&format!("{name} of the negated predicate"), &body, 1));
    }
    // What other warps wrote is there after the barrier.
    let body = "mov.u32 %r3, words;\nmad.lo.u32 %r4, %r0, 4, %r3;\nst.shared.u32 [%r4], %a0;\nbar.sync 0;\n\
                add.u32 %r5, %r0, 37;\nand.b32 %r5, %r5, 127;\nmad.lo.u32 %r5, %r5, 4, %r3;\nld.shared.u32 %o0, [%r5];";
    tests.push(test("bar.sync", body, 1).declare(".shared .align 4 .b8 words[512];"));
    tests
}

/// Every thread works on a place of its own, in global and in shared memory: the result, and what is returned.
fn atomics() -> Vec<Test> {
    let kinds: &[(&str, Kind, &[Format], &[&str])] = &[
        (
            "u32",
            Kind::B32,
            &[Format::Bits],
            &["add", "min", "max", "inc", "dec"],
        ),
        ("s32", Kind::B32, &[Format::Bits], &["add", "min", "max"]),
        (
            "b32",
            Kind::B32,
            &[Format::Bits],
            &["and", "or", "xor", "exch", "cas"],
        ),
        ("u64", Kind::B64, &[Format::Bits; 2], &["add", "min", "max"]),
        (
            "b64",
            Kind::B64,
            &[Format::Bits; 2],
            &["and", "or", "xor", "exch", "cas"],
        ),
        ("f32", Kind::F32, &[Format::F32], &["add"]),
        ("noftz.f16x2", Kind::F16x2, &[Format::F16x2], &["add"]),
        ("noftz.bf16x2", Kind::Bf16x2, &[Format::Bf16x2], &["add"]),
    ];
    let mut tests = Vec::new();
    for &(dtype, kind, formats, operations) in kinds {
        for operation in operations {
            for space in ["global", "shared"] {
                let target = match dtype {
                    "noftz.bf16x2" => Target::Sm90,
                    _ => Target::Sm80,
                };
                let opcode = format!("atom.{space}");
                tests.push(atomic(&opcode, operation, dtype, kind, formats, target));
            }
        }
    }
    // As kernels spell them.
    let wide = (Kind::B64, &[Format::Bits; 2][..]);
    for (opcode, operation, dtype, (kind, formats)) in [
        (
            "atom.acq_rel.gpu.global",
            "inc",
            "u32",
            (Kind::B32, &[Format::Bits][..]),
        ),
        ("atom.relaxed.gpu.global", "exch", "b64", wide),
        ("red.relaxed.gpu.global", "max", "u64", wide),
    ] {
        let target = Target::Sm80;
        tests.push(atomic(opcode, operation, dtype, kind, formats, target));
    }
    tests
}

/// `opcode` ends with the space. `red` returns nothing: the operand stands for it.
fn atomic(
    opcode: &str,
    operation: &str,
    dtype: &str,
    kind: Kind,
    formats: &[Format],
    target: Target,
) -> Test {
    let name = format!("{opcode}.{operation}.{dtype}");
    let space = opcode.rsplit('.').next().unwrap_or_default();
    let words = kind.words();
    // The place holds %a0, the operand is the next, and `cas` has one more.
    let operands_in = match operation {
        "cas" => vec![kind; 3],
        _ => vec![kind; 2],
    };
    let (bits, registers): (u32, [&str; 4]) = match words {
        2 => (64, ["%d10", "%d11", "%d12", "%d13"]),
        _ => (32, ["%a0", "%a1", "%a2", "%r9"]),
    };
    let mut body = String::new();
    if words == 2 {
        for i in 0..operands_in.len() {
            body += &format!("mov.b64 %d{}, {{%a{}, %a{}}};\n", 10 + i, 2 * i, 2 * i + 1);
        }
    }
    let place = match space {
        "shared" => {
            body += "mov.u32 %r3, places;\nmad.lo.u32 %r3, %r0, 8, %r3;\n";
            "%r3"
        }
        _ => "%d0",
    };
    let [held, operand, third, old] = registers;
    let sources = match operation {
        // Every other time what the place holds is what is compared with.
        "cas" => {
            body += &format!(
                "and.b32 %r5, %r0, 1;\nsetp.eq.u32 %p0, %r5, 0;\nselp.b{bits} {operand}, {held}, {operand}, %p0;\n"
            );
            format!("{operand}, {third}")
        }
        _ => operand.to_owned(),
    };
    let update = match opcode.starts_with("red") {
        true => format!("{name} [{place}], {sources};\nmov.b{bits} {old}, {operand};"),
        false => format!("{name} {old}, [{place}], {sources};"),
    };
    body += &format!(
        "st.{space}.b{bits} [{place}], {held};\n{update}\nld.{space}.b{bits} {held}, [{place}];\n"
    );
    body += match words {
        2 => "mov.b64 {%o0, %o1}, %d13;\nmov.b64 {%o2, %o3}, %d10;",
        _ => "mov.b32 %o0, %r9;\nmov.b32 %o1, %a0;",
    };
    let input = operands(&operands_in, 4096, &mut Noise::of(&name));
    let ins = words * operands_in.len();
    Test::new(name, target, body, (ins, formats.repeat(2)), input)
        .declare(".shared .align 8 .b8 places[1024];")
}

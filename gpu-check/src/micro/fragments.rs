//! Warps: exchange between lanes, matrix fragments, asynchronous copies.

use super::{Target, Test, inputs::Noise};
use crate::compare::Format;

/// Warps of a test.
const WARPS: usize = 256;

fn noise_words(name: &str, words: usize) -> Vec<u32> {
    let mut noise = Noise::of(name);
    (0..words * 32 * WARPS).map(|_| noise.next32()).collect()
}

fn test(
    name: impl Into<String>,
    target: Target,
    body: impl Into<String>,
    outs: usize,
    ins: usize,
    input: Vec<u32>,
) -> Test {
    Test::new(name, target, body, (ins, vec![Format::Bits; outs]), input)
}

/// Every test of this kind.
pub fn tests() -> Vec<Test> {
    let mut tests = shuffles();
    tests.extend(collectives());
    tests.extend(matrices());
    tests.extend(copies());
    tests
}

/// Every lane has a source, a lane operand and a clamp of its own; the first warps walk through the ordinary ones.
fn shuffles() -> Vec<Test> {
    let modes = ["up", "down", "bfly", "idx"];
    let shuffle = |mode: &&str| {
        let name = format!("shfl.sync.{mode}.b32");
        let mut noise = Noise::of(&name);
        let mut input = Vec::new();
        for warp in 0..WARPS as u32 {
            for lane in 0..32 {
                let (b, c) = match warp {
                    // One distance for all, segments of 32, 16, 8, 4, 2 and 1 lanes; `up` clamps at 0.
                    0..192 => {
                        let segment = !(31 >> (warp / 32)) & 31;
                        (
                            warp % 32,
                            segment << 8 | if *mode == "up" { 0 } else { 0x1f },
                        )
                    }
                    // Any clamp and any segment mask, the same for all lanes.
                    192..224 => (noise.below(64), warp.wrapping_mul(0x0101_6b35) & 0x1f1f),
                    // Anything, differently in every lane.
                    _ => (noise.next32(), noise.next32()),
                };
                input.extend([warp << 8 | lane, b, c]);
            }
        }
        let body = format!("{name} %o0|%p0, %a0, %a1, %a2, 0xffffffff;\nselp.b32 %o1, 1, 0, %p0;");
        test(name, Target::Sm80, body, 2, 3, input)
    };
    modes.iter().map(shuffle).collect()
}

fn collectives() -> Vec<Test> {
    // Sparse, dense and constant predicates; a few different values a warp.
    let mut noise = Noise::of("collectives");
    let mut input = Vec::new();
    for warp in 0..WARPS {
        let (bits, shared) = (noise.next32() & noise.next32(), noise.next32());
        for lane in 0..32 {
            let predicate = match warp % 4 {
                0 => bits >> lane & 1,
                1 => !bits >> lane & 1,
                2 => 0,
                _ => 1,
            };
            let value = match warp % 3 {
                0 => shared,
                1 => shared ^ noise.below(3),
                _ => noise.next32(),
            };
            input.extend([
                predicate,
                value,
                if warp % 5 == 0 {
                    shared
                } else {
                    noise.below(2)
                },
            ]);
        }
    }
    let mut tests = Vec::new();
    let mut push = |name: &str, target, body: String, outs| {
        tests.push(test(name, target, body, outs, 3, input.clone()));
    };
    for mode in ["all", "any", "uni"] {
        let name = format!("vote.sync.{mode}.pred");
        let body = format!(
            "setp.ne.u32 %p0, %a0, 0;\n{name} %p1, %p0, 0xffffffff;\nselp.b32 %o0, 1, 0, %p1;"
        );
        push(&name, Target::Sm80, body, 1);
    }
    let body = "setp.ne.u32 %p0, %a0, 0;\nvote.sync.ballot.b32 %o0, %p0, 0xffffffff;";
    push("vote.sync.ballot.b32", Target::Sm80, body.into(), 1);
    push(
        "match.any.sync.b32",
        Target::Sm80,
        "match.any.sync.b32 %o0, %a1, 0xffffffff;".into(),
        1,
    );
    let wide = "mov.b64 %d10, {%a1, %a2};\n";
    push(
        "match.any.sync.b64",
        Target::Sm80,
        format!("{wide}match.any.sync.b64 %o0, %d10, 0xffffffff;"),
        1,
    );
    let predicate = "selp.b32 %o1, 1, 0, %p1;";
    let body = format!("match.all.sync.b32 %o0|%p1, %a1, 0xffffffff;\n{predicate}");
    push("match.all.sync.b32", Target::Sm80, body, 2);
    let body = format!("{wide}match.all.sync.b64 %o0|%p1, %d10, 0xffffffff;\n{predicate}");
    push("match.all.sync.b64", Target::Sm80, body, 2);
    for operation in [
        "add.u32", "add.s32", "min.u32", "min.s32", "max.u32", "max.s32", "and.b32", "or.b32",
        "xor.b32",
    ] {
        let name = format!("redux.sync.{operation}");
        push(
            &name,
            Target::Sm80,
            format!("{name} %o0, %a1, 0xffffffff;"),
            1,
        );
    }
    // Half of the lanes, under a predicate that the whole warp knows.
    let body = "mov.u32 %o0, 0;\nand.b32 %r3, %r0, 1;\nsetp.eq.u32 %p0, %r3, 0;\n\
                @%p0 shfl.sync.bfly.b32 %o0, %a1, 2, 0x1f, 0x55555555;";
    push(
        "shfl.sync.bfly.b32, half of the lanes",
        Target::Sm80,
        body.into(),
        1,
    );
    push(
        "activemask.b32",
        Target::Sm80,
        "activemask.b32 %o0;".into(),
        1,
    );
    let body = "elect.sync %o0|%p1, 0xffffffff;\nselp.b32 %o1, 1, 0, %p1;";
    push("elect.sync", Target::Sm90, body.into(), 2);
    tests
}

/// 512 bytes of shared memory a warp: 32 rows of 16 bytes.
const ROWS: &str = ".shared .align 16 .b8 rows[2048];";
/// Every lane writes a row and has its address in `%r4`; the warp's first row is at `%r3`.
const WRITE_ROW: &str = "mov.u32 %r3, rows;\nshr.u32 %r5, %r0, 5;\nshl.b32 %r5, %r5, 9;\nadd.u32 %r3, %r3, %r5;\n\
    and.b32 %r5, %r0, 31;\nshl.b32 %r5, %r5, 4;\nadd.u32 %r4, %r3, %r5;\n\
    st.shared.v4.b32 [%r4], {%a0, %a1, %a2, %a3};\nbar.warp.sync 0xffffffff;\n";

/// Lanes take rows in any order, the same one twice among them.
fn matrices() -> Vec<Test> {
    let mut tests = Vec::new();
    for (count, outs) in [("x1", 1), ("x2", 2), ("x4", 4)] {
        for trans in ["", ".trans"] {
            let name = format!("ldmatrix.sync.aligned.m8n8.{count}{trans}.shared.b16");
            let registers: Vec<_> = (0..outs).map(|i| format!("%o{i}")).collect();
            let body = format!(
                "{WRITE_ROW}and.b32 %r6, %a4, 31;\nshl.b32 %r6, %r6, 4;\nadd.u32 %r6, %r6, %r3;\n{name} {{{}}}, [%r6];",
                registers.join(", ")
            );
            tests.push(
                test(&name, Target::Sm80, body, outs, 5, noise_words(&name, 5)).declare(ROWS),
            );
            let name = format!("stmatrix.sync.aligned.m8n8.{count}{trans}.shared.b16");
            let registers: Vec<_> = (0..outs).map(|i| format!("%a{i}")).collect();
            // Rows in an order that meets each once: lane times an odd number.
            let body = format!(
                "{WRITE_ROW}mad.lo.u32 %r6, %r0, 5, 3;\nand.b32 %r6, %r6, 31;\nshl.b32 %r6, %r6, 4;\nadd.u32 %r6, %r6, %r3;\n\
                 {name} [%r6], {{{}}};\nbar.warp.sync 0xffffffff;\nld.shared.v4.b32 {{%o0, %o1, %o2, %o3}}, [%r4];",
                registers.join(", ")
            );
            tests.push(test(&name, Target::Sm90, body, 4, 5, noise_words(&name, 5)).declare(ROWS));
        }
    }
    let name = "movmatrix.sync.aligned.m8n8.trans.b16";
    tests.push(test(
        name,
        Target::Sm80,
        format!("{name} %o0, %a0;"),
        1,
        1,
        noise_words(name, 1),
    ));
    tests
}

/// A copy over a row that holds something else before: what is not copied must become zero, to the byte.
fn copies() -> Vec<Test> {
    // The source is the thread's own input in global memory, at %d1: 4 words of input, then 4 that the row holds
    // before, then a source size and a predicate; padding to 12 words keeps sources 16-aligned.
    let words = 12;
    let mut noise = Noise::of("cp.async");
    let mut input = Vec::new();
    for thread in 0..32 * WARPS as u32 {
        for _ in 0..8 {
            input.push(noise.next32());
        }
        input.extend([thread % 17, noise.below(2), 0, 0]);
    }
    let row = "mov.u32 %r3, rows;\nshl.b32 %r5, %r0, 4;\nadd.u32 %r4, %r3, %r5;\n\
               st.shared.v4.b32 [%r4], {%a4, %a5, %a6, %a7};\nsetp.ne.u32 %p0, %a9, 0;\n";
    let after = "cp.async.commit_group;\ncp.async.wait_group 0;\nld.shared.v4.b32 {%o0, %o1, %o2, %o3}, [%r4];";
    let mut tests = Vec::new();
    for (cache, bytes) in [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16)] {
        let copy = format!("cp.async.{cache}.shared.global");
        let size = format!("min.u32 %r6, %a8, {bytes};\n");
        for (what, before, tail) in [
            ("", "", ""),
            (", source size in a register", size.as_str(), ", %r6"),
            (", ignore-src", "", ", %p0"),
        ] {
            let body = format!("{row}{before}{copy} [%r4], [%d1], {bytes}{tail};\n{after}");
            let name = format!("{copy}, {bytes}{what}");
            tests.push(test(name, Target::Sm80, body, 4, words, input.clone()).declare(ROWS));
        }
        for zeros in [0, bytes / 2, bytes - 1] {
            let body = format!("{row}{copy} [%r4], [%d1], {bytes}, {zeros};\n{after}");
            let name = format!("{copy}, {bytes}, source size {zeros}");
            tests.push(test(name, Target::Sm80, body, 4, words, input.clone()).declare(ROWS));
        }
    }
    tests
}

//! Wavefronts of shared memory, for patterns whose conflicts are known.

mod common;

use common::{Run, kernel};
use flashtile_emulator::{AsyncTiming, Options};

/// Wavefronts of a body that one warp runs, and the least. `%r1` is the address of 16 KiB of shared memory.
fn wavefronts(body: &str) -> [u64; 2] {
    let declarations = ".shared .align 128 .b8 buf[16384];";
    let text = kernel(declarations, &format!("mov.u32 %r1, buf;\n{body}"));
    let mut found = Vec::new();
    for timing in [AsyncTiming::Late, AsyncTiming::Early] {
        let run = Run::new(Options {
            async_copies: timing,
            count_bank_conflicts: true,
            ..Options::default()
        });
        let stats = run.launch(&text, 1, 32, 0).unwrap();
        found.push([stats.shared_wavefronts, stats.shared_wavefronts_least]);
    }
    assert_eq!(found[0], found[1]);
    found[0]
}

/// Wavefronts of an access of each lane at `stride` times its number.
fn strided(access: &str, stride: u32) -> [u64; 2] {
    wavefronts(&format!("mad.lo.u32 %r2, %r0, {stride}, %r1; {access}"))
}

const LD4: &str = "ld.shared.u32 %r3, [%r2];";
const LD8: &str = "ld.shared.v2.u32 {%r3, %r4}, [%r2];";
const LD16: &str = "ld.shared.v4.u32 {%r3, %r4, %r5, %r6}, [%r2];";
const ST16: &str = "st.shared.v4.u32 [%r2], {%r0, %r0, %r0, %r0};";

#[test]
fn nothing_is_counted_unless_asked_for() {
    let run = Run::new(Options::default());
    let body = "mov.u32 %r1, buf; ld.shared.u32 %r2, [%r1];";
    let text = kernel(".shared .align 128 .b8 buf[128];", body);
    let stats = run.launch(&text, 1, 32, 0).unwrap();
    assert_eq!(stats.shared_wavefronts, 0);
    assert_eq!(stats.shared_wavefronts_least, 0);
    assert_eq!(wavefronts("ld.global.u32 %r2, [%d0];"), [0, 0]);
}

#[test]
fn words() {
    for (stride, ways) in [(4, 1), (12, 1), (8, 2), (16, 4), (128, 32), (132, 1)] {
        assert_eq!(strided(LD4, stride), [ways, 1], "stride {stride}");
        let store = "st.shared.f32 [%r2], %f0;";
        assert_eq!(strided(store, stride), [ways, 1], "stride {stride}");
    }
    // One word for all; parts of words: two or four lanes have one word.
    assert_eq!(strided(LD4, 0), [1, 1]);
    assert_eq!(strided("ld.shared.u16 %h1, [%r2];", 2), [1, 1]);
    assert_eq!(strided("ld.shared.u8 %h1, [%r2];", 1), [1, 1]);
    assert_eq!(strided("ld.shared.u16 %h1, [%r2];", 64), [16, 1]);
}

#[test]
fn eight_bytes_by_half_warps() {
    for (stride, needed) in [(0, 2), (8, 2), (16, 4), (128, 32), (136, 2)] {
        assert_eq!(strided(LD8, stride), [needed, 2], "stride {stride}");
        assert_eq!(
            strided("ld.shared.u64 %d5, [%r2];", stride),
            [needed, 2],
            "stride {stride}"
        );
    }
}

#[test]
fn sixteen_bytes_by_quarter_warps() {
    for (stride, needed) in [(0, 4), (16, 4), (32, 8), (128, 32), (144, 4)] {
        assert_eq!(strided(LD16, stride), [needed, 4], "stride {stride}");
        assert_eq!(strided(ST16, stride), [needed, 4], "stride {stride}");
        let copy = "cp.async.cg.shared.global [%r2], [%d0], 16;";
        assert_eq!(strided(copy, stride), [needed, 4], "stride {stride}");
    }
}

#[test]
fn only_active_lanes_and_shared_memory_count() {
    let some = |lanes: u32| {
        format!("setp.lt.u32 %p1, %r0, {lanes}; shl.b32 %r2, %r0, 7; add.u32 %r2, %r2, %r1;")
    };
    assert_eq!(
        wavefronts(&format!("{} @%p1 {LD4}", some(5))),
        [5, 1],
        "5 of 32 lanes"
    );
    assert_eq!(wavefronts(&format!("{} @%p1 {ST16}", some(9))), [9, 2]);
    assert_eq!(wavefronts(&format!("{} @%p1 {LD4}", some(0))), [0, 0]);
    // Even lanes to shared memory, two words in each of eight banks; odd ones to global memory.
    let body = "mul.wide.u32 %d5, %r0, 8; cvta.shared.u64 %d6, buf; and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 0;
        selp.b64 %d6, %d6, %d0, %p1; add.s64 %d6, %d6, %d5; ld.u32 %r3, [%d6];";
    assert_eq!(wavefronts(body), [2, 1]);
}

#[test]
fn ldmatrix_by_matrices() {
    for (x, list) in [(1, "%r3"), (2, "%r3, %r4"), (4, "%r3, %r4, %r5, %r6")] {
        let load = format!("ldmatrix.sync.aligned.m8n8.x{x}.shared.b16 {{{list}}}, [%r2];");
        assert_eq!(strided(&load, 16), [x, x]);
        // Rows of 128 bytes: the same chunk of 8 rows is 8 times the same 4 banks.
        assert_eq!(strided(&load, 128), [8 * x, x]);
        // Chunk c of row r at c ^ (r & 7), here for c = 5.
        let swizzled = format!(
            "and.b32 %r7, %r0, 7; xor.b32 %r7, %r7, 5; shl.b32 %r7, %r7, 4;
            mad.lo.u32 %r2, %r0, 128, %r7; add.u32 %r2, %r2, %r1; {load}"
        );
        assert_eq!(wavefronts(&swizzled), [x, x]);
        let store = format!("stmatrix.sync.aligned.m8n8.x{x}.shared.b16 [%r2], {{{list}}};");
        assert_eq!(strided(&store, 128), [8 * x, x]);
    }
}

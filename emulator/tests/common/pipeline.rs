//! A whole kernel for Hopper, and its result.
#![allow(dead_code)]

use flashtile_emulator::{
    ElementType, Emulator, Launch, LaunchError, Module, Options, Swizzle, TensorMap,
};
use half::bf16;

/// Tiles that the kernel multiplies.
const TILES: usize = 5;

/// A warp-specialised kernel: warps 0 to 3 multiply what warp 4 loads, `out = sum over j of a[j] * b[j]^T`, tiles of 64x64
/// bf16 with 128-byte swizzles, in two stages. `out` leaves through shared memory, by TMA.
///
/// Shared memory from 1024: two stages of a (8 KiB) and b (8 KiB), and 8 KiB for the result. mbarriers: full 0, 1; empty 0, 1.
pub fn pipeline() -> String {
    let d: Vec<String> = (0..32).map(|i| format!("%f{i}")).collect();
    let d = d.join(", ");
    let mut products = String::new();
    for k in 0..4 {
        products += &format!(
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{d}}}, %d10, %d11, {}, 1, 1, 0, 0; //K{k}\n\
             add.s64 %d10, %d10, 2;\nadd.s64 %d11, %d11, 2;\n",
            if k == 0 { "%p3" } else { "1" }
        );
    }
    let mut epilogue = String::new();
    for i in 0..16 {
        // Row lane / 4 (+ 8), columns 8 j + 2 t: a word of the 128-byte row, its 16-byte piece xored with the row.
        let (j, low) = (i / 2, i % 2);
        epilogue += &format!(
            "cvt.rn.bf16x2.f32 %r30, %f{}, %f{};\nxor.b32 %r31, %r28, {};\nadd.u32 %r31, %r31, %r29;\n\
             st.shared.b32 [%r31+{}], %r30;\n",
            4 * j + 2 * low + 1,
            4 * j + 2 * low,
            16 * j,
            1024 * low,
        );
    }
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.shared .align 1024 .b8 s[40960];\n.shared .align 8 .b64 m[4];\n\
         .visible .entry k(.param .u64 out, .param .align 64 .b8 a[128], .param .align 64 .b8 b[128], .param .align 64 .b8 c[128])\n\
         .maxntid 160 .minnctapersm 1\n{{\n.reg .pred %p<20>;\n.reg .b32 %r<60>;\n.reg .b64 %d<30>;\n.reg .f32 %f<64>;\n\
         mov.u32 %r0, %tid.x;\nmov.u32 %r1, m;\nmov.u32 %r2, s;\n\
         setp.ne.u32 %p1, %r0, 0;\n@%p1 bra READY;\n\
         mbarrier.init.shared::cta.b64 [%r1], 1;\nmbarrier.init.shared::cta.b64 [%r1+8], 1;\n\
         mbarrier.init.shared::cta.b64 [%r1+16], 4;\nmbarrier.init.shared::cta.b64 [%r1+24], 4;\n\
         fence.mbarrier_init.release.cluster;\n\
         READY: bar.sync 0;\nmov.u32 %r10, 0;\nmov.u32 %r11, 0;\nmov.u32 %r12, 0;\n\
         setp.lt.u32 %p2, %r0, 128;\n@%p2 bra CONSUMER;\n\
         // The producer: one thread. %r10 counts tiles, %r11 is the stage, %r12 the parity of its round.\n\
         setp.ne.u32 %p4, %r0, 128;\n@%p4 bra DONE;\n\
         mov.b64 %d1, a;\ncvta.param.u64 %d1, %d1;\nmov.b64 %d2, b;\ncvta.param.u64 %d2, %d2;\n\
         LOAD: shl.b32 %r13, %r11, 3;\nadd.u32 %r13, %r13, %r1;\nxor.b32 %r14, %r12, 1;\n\
         EMPTY: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r13+16], %r14;\n@!%p5 bra EMPTY;\n\
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r13], 16384;\n\
         shl.b32 %r15, %r11, 14;\nadd.u32 %r15, %r15, %r2;\nshl.b32 %r16, %r10, 6;\nadd.u32 %r17, %r15, 8192;\n\
         cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r15], [%d1, {{0, %r16}}], [%r13];\n\
         cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r17], [%d2, {{0, %r16}}], [%r13];\n\
         add.u32 %r10, %r10, 1;\nadd.u32 %r11, %r11, 1;\nsetp.eq.u32 %p6, %r11, 2;\n@%p6 xor.b32 %r12, %r12, 1;\n\
         @%p6 mov.u32 %r11, 0;\nsetp.lt.u32 %p7, %r10, {TILES};\n@%p7 bra LOAD;\n//TAIL\nbra DONE;\n\
         // Consumers.\n\
         CONSUMER: setp.ne.u32 %p3, %r10, 0;\n\
         MULTIPLY: shl.b32 %r13, %r11, 3;\nadd.u32 %r13, %r13, %r1;\n\
         FULL: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r13], %r12;\n@!%p5 bra FULL;\n//LANDED\n\
         shl.b32 %r15, %r11, 14;\nadd.u32 %r15, %r15, %r2;\nshr.u32 %r16, %r15, 4;\ncvt.u64.u32 %d10, %r16;\n\
         or.b64 %d10, %d10, {};\nadd.s64 %d11, %d10, 512;\n//BEFORE\n\
         wgmma.fence.sync.aligned;\n{products}wgmma.commit_group.sync.aligned;\n//ISSUED\n\
         wgmma.wait_group.sync.aligned 0;\n//WAITED\n\
         and.b32 %r18, %r0, 31;\nsetp.eq.u32 %p8, %r18, 0;\n@%p8 mbarrier.arrive.shared::cta.b64 _, [%r13+16];\n\
         setp.eq.u32 %p3, %r0, %r0;\n\
         add.u32 %r10, %r10, 1;\nadd.u32 %r11, %r11, 1;\nsetp.eq.u32 %p6, %r11, 2;\n@%p6 xor.b32 %r12, %r12, 1;\n\
         @%p6 mov.u32 %r11, 0;\nsetp.lt.u32 %p7, %r10, {TILES};\n@%p7 bra MULTIPLY;\n\
         // The result: row (thread / 4) % 8 + 16 warp, and 8 more.\n\
         shr.u32 %r20, %r0, 5;\nand.b32 %r21, %r0, 31;\nshr.u32 %r22, %r21, 2;\nand.b32 %r23, %r0, 3;\n\
         mad.lo.u32 %r24, %r20, 16, %r22;\nmad.lo.u32 %r29, %r24, 128, %r2;\nadd.u32 %r29, %r29, 32768;\n\
         shl.b32 %r28, %r22, 4;\nmad.lo.u32 %r28, %r23, 4, %r28;\n{epilogue}\
         fence.proxy.async.shared::cta;\nbar.sync 1, 128;\n@%p1 bra DONE;\nadd.u32 %r32, %r2, 32768;\n\
         mov.b64 %d3, c;\ncvta.param.u64 %d3, %d3;\n\
         cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%d3, {{0, 0}}], [%r32];\n\
         cp.async.bulk.commit_group;\n//STORED\ncp.async.bulk.wait_group.read 0;\n//READ\nDONE: ret;\n}}",
        // SBO 1024, LBO unused, 128-byte swizzle.
        1u64 << 62 | 64 << 32 | 1 << 16,
    )
}

fn value(seed: usize, n: usize) -> f32 {
    ((n * 37 + seed * 11 + n / 64) % 7) as f32 - 3.0
}

/// The same in a cluster of two blocks: each loads half of every tile of b for both, and frees a stage in both. Both have
/// the same result; the second one's is below the first one's.
pub fn pipeline_of_two() -> String {
    let changes = [
        (".reg .pred %p<20>;", ".reg .pred %p<20>;\n.reg .b16 %h<2>;"),
        (
            "mov.u32 %r2, s;",
            "mov.u32 %r2, s;\nmov.u32 %r50, %cluster_ctarank;\nxor.b32 %r51, %r50, 1;\nmov.u16 %h1, 3;",
        ),
        ("[%r1+16], 4;", "[%r1+16], 8;"),
        ("[%r1+24], 4;", "[%r1+24], 8;"),
        (
            "READY: bar.sync 0;",
            "READY: barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;",
        ),
        (
            "add.u32 %r17, %r15, 8192;",
            "add.u32 %r17, %r15, 8192;\nmad.lo.u32 %r17, %r50, 4096, %r17;\nmad.lo.u32 %r52, %r50, 32, %r16;",
        ),
        (
            "complete_tx::bytes [%r17], [%d2, {0, %r16}], [%r13];",
            "complete_tx::bytes.multicast::cluster [%r17], [%d2, {0, %r52}], [%r13], %h1;",
        ),
        (
            "@%p8 mbarrier.arrive.shared::cta.b64 _, [%r13+16];",
            "@%p8 mbarrier.arrive.shared::cta.b64 _, [%r13+16];\nmapa.shared::cluster.u32 %r53, %r13, %r51;\n\
             @%p8 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r53+16];",
        ),
        ("[%d3, {0, 0}], [%r32]", "[%d3, {0, %r54}], [%r32]"),
        ("mov.b64 %d3, c;", "shl.b32 %r54, %r50, 6;\nmov.b64 %d3, c;"),
        (
            "DONE: ret;",
            "DONE: barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\nret;",
        ),
    ];
    changes.into_iter().fold(pipeline(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    })
}

/// Runs the kernel, and checks its result if it ends well.
pub fn run(text: &str, options: Options) -> Result<(), LaunchError> {
    run_blocks(text, options, 1)
}

/// The same in one cluster of so many blocks, which load so many parts of each tile of b.
pub fn run_blocks(text: &str, options: Options, blocks: u32) -> Result<(), LaunchError> {
    let device = Emulator::new(options);
    let count = TILES * 64 * 64;
    let bytes = |seed: usize| -> Vec<u8> {
        (0..count)
            .flat_map(|n| bf16::from_f32(value(seed, n)).to_le_bytes())
            .collect()
    };
    let [a, b] = [1, 2].map(|seed| {
        let address = device.allocate(2 * count as u64).unwrap();
        device.write(address, &bytes(seed)).unwrap();
        address
    });
    let out = device.allocate(2 * 64 * 64 * u64::from(blocks)).unwrap();
    let module = Module::parse(text).map_err(LaunchError::Decode)?;
    let mut params = vec![0; module.entry("k").unwrap().params_size];
    params[..8].copy_from_slice(&out.to_le_bytes());
    let all = TILES as u64 * 64;
    let maps = [
        (a, all, 64),
        (b, all, 64 / blocks),
        (out, 64 * u64::from(blocks), 64),
    ];
    for (n, (address, rows, box_rows)) in maps.into_iter().enumerate() {
        let mut map = TensorMap::new(
            ElementType::Bf16,
            address,
            &[64, rows],
            &[128],
            &[64, box_rows],
        );
        map.swizzle = Swizzle::B128;
        params[64 + 128 * n..][..128].copy_from_slice(&map.encode().unwrap());
    }
    let launch = Launch {
        grid: [blocks, 1, 1],
        block: [160, 1, 1],
        cluster: (blocks > 1).then_some([blocks, 1, 1]),
        dynamic_shared: 0,
        params: &params,
    };
    device.launch(&module, "k", &launch)?;
    let mut found = vec![0; 2 * 64 * 64 * blocks as usize];
    device.read(out, &mut found).unwrap();
    let mut expected = Vec::new();
    for row in 0..64 {
        for column in 0..64 {
            let tile = |j: usize| -> f32 {
                let at = |seed, row: usize, k| value(seed, (j * 64 + row) * 64 + k);
                (0..64).map(|k| at(1, row, k) * at(2, column, k)).sum()
            };
            let sum: f32 = (0..TILES).map(tile).sum();
            expected.extend(bf16::from_f32(sum).to_le_bytes());
        }
    }
    assert!(
        found == expected.repeat(blocks as usize),
        "the result is wrong"
    );
    Ok(())
}

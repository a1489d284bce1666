//! Measures how fast matrix products of warpgroups run: 64x128x16 of bf16, in the numerics of hardware or not.

use std::time::Instant;

use flashtile_emulator::{Emulator, Launch, Module, Numerics, Options, TensorCores};

/// Bytes of shared memory.
const BYTES: usize = 131_072;
/// Products of a kernel.
const LOOPS: usize = 100;
const OF_LOOP: usize = 16;

fn text() -> String {
    let d: Vec<String> = (0..64).map(|n| format!("%f{n}")).collect();
    let d = d.join(", ");
    let mut body = String::new();
    for n in 0..OF_LOOP {
        // Q K^T from shared memory: 128 columns of K, 16 at a time; P V with P in registers, 16 rows of V at a time.
        let k = n / 2;
        body += &if n % 2 == 0 {
            let to = 2 * (k % 4) + 1024 * (k / 4);
            format!(
                "add.s64 %d3, %d0, {to};\nadd.s64 %d4, %d1, {to};\n\
                 wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {{{d}}}, %d3, %d4, 1, 1, 1, 0, 0;\n"
            )
        } else {
            format!(
                "add.s64 %d4, %d2, {};\n\
                 wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {{{d}}}, {{%r1, %r2, %r3, %r4}}, %d4, 1, 1, 1, 1;\n",
                128 * k
            )
        };
    }
    let mut zero = String::new();
    for n in 0..64 {
        zero += &format!("mov.f32 %f{n}, 0f00000000;\n");
    }
    // Descriptors: 128-byte swizzle, SBO 1024; V with LBO 128 rows further.
    let k_major = |at: u64| at >> 4 | 1 << 16 | 64 << 32 | 1 << 62;
    let mn_major = |at: u64| at >> 4 | 1024 << 16 | 64 << 32 | 1 << 62;
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.shared .align 1024 .b8 s[{BYTES}];\n\
         .shared .align 8 .b64 m;\n\
         .visible .entry k(.param .u64 data) .maxntid 128\n{{\n.reg .f32 %f<64>;\n.reg .b32 %r<9>;\n.reg .b64 %d<5>;\n\
         .reg .pred %p;\nmov.u32 %r0, s;\nmov.u32 %r5, m;\nmov.u32 %r6, %tid.x;\nld.param.u64 %d0, [data];\n\
         setp.ne.u32 %p, %r6, 0;\n@%p bra READY;\nmbarrier.init.shared.b64 [%r5], 1;\n\
         fence.mbarrier_init.release.cluster;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], {BYTES};\n\
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%d0], {BYTES}, [%r5];\n\
         READY: bar.sync 0;\n\
         WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p, [%r5], 0;\n@!%p bra WAIT;\n\
         mov.b64 %d0, {};\nmov.b64 %d1, {};\nmov.b64 %d2, {};\n\
         mov.b32 %r1, 0x3c003c00;\nmov.b32 %r2, %r1;\nmov.b32 %r3, %r1;\nmov.b32 %r4, %r1;\n{zero}mov.u32 %r7, 0;\n\
         LOOP: wgmma.fence.sync.aligned;\n{body}wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n\
         add.u32 %r7, %r7, 1;\nsetp.lt.u32 %p, %r7, {LOOPS};\n@%p bra LOOP;\nret;\n}}",
        k_major(0x400),
        k_major(0x8400),
        mn_major(0x10400),
    )
}

fn main() {
    let module = match Module::parse(&text()) {
        Ok(module) => module,
        Err(error) => return println!("{error}"),
    };
    for (name, cores, sanitize) in [
        ("fast", TensorCores::Fast, false),
        ("hopper", TensorCores::Hopper, false),
        ("fast, sanitized", TensorCores::Fast, true),
    ] {
        let device = Emulator::new(Options {
            threads: Some(1),
            sanitize,
            numerics: Numerics {
                tensor_cores: cores,
                ..Numerics::default()
            },
            ..Options::default()
        });
        let Ok(data) = device.allocate(BYTES as u64) else {
            return;
        };
        let ones = [0x80, 0x3f].repeat(BYTES / 2);
        if device.write(data, &ones).is_err() {
            return;
        }
        let launch = Launch {
            grid: [4, 1, 1],
            block: [128, 1, 1],
            cluster: None,
            dynamic_shared: 0,
            params: &data.to_le_bytes(),
        };
        let start = Instant::now();
        if let Err(error) = device.launch(&module, "k", &launch) {
            println!("{name}: {error}");
            continue;
        }
        let seconds = start.elapsed().as_secs_f64();
        let flops = (4 * LOOPS * OF_LOOP * 2 * 64 * 128 * 16) as f64;
        println!("{name}: {:.1} GFLOP/s", flops / seconds / 1e9);
    }
}

//! What the sanitizer finds of phases, clusters, outputs and bytes that nobody wrote, in small kernels for Hopper.

mod common;

use flashtile_emulator::{ElementType, LaunchError, Options, Report, Rule, TensorMap};

/// What is found in a body that runs with so many threads, in clusters of so many blocks.
fn findings(body: &str, grid: u32, cluster: Option<[u32; 3]>, threads: u32) -> Report {
    let declarations = ".shared .align 128 .b8 s[2048];\n.shared .align 8 .b64 m[2];";
    let text = common::kernel(declarations, body);
    let run = common::Run::new(Options {
        sanitize: true,
        max_instructions: Some(1 << 20),
        ..Options::default()
    });
    let map = TensorMap::new(ElementType::F32, run.buffers[0], &[64], &[], &[32]);
    run.device
        .write(run.buffers[1], &map.encode().unwrap())
        .unwrap();
    match run.launch_clusters(&text, [grid, 1, 1], cluster, threads, 0) {
        Ok(_) => Report::default(),
        Err(LaunchError::Findings(report)) => *report,
        Err(other) => panic!("{other}"),
    }
}

#[track_caller]
fn finds(rules: &[Rule], found: &Report) {
    let of: Vec<Rule> = found.findings.iter().map(|f| f.rule).collect();
    assert_eq!(of, rules, "{found}");
}

#[test]
fn phases_that_a_thread_misses() {
    // Warp 1 arrives so many times before warp 0 waits for the second time.
    let body = |times: u32| {
        format!(
            "mov.u32 %r40, m;\nsetp.ne.u32 %p1, %r0, 0;\n@!%p1 mbarrier.init.shared.b64 [%r40], 32;\nbar.sync 0;\n\
             setp.ge.u32 %p2, %r0, 32;\n@%p2 bra OTHER;\n\
             A: mbarrier.test_wait.parity.shared.b64 %p3, [%r40], 0;\n@!%p3 bra A;\nbar.sync 1, 64;\nbar.sync 2, 64;\n\
             B: mbarrier.test_wait.parity.shared.b64 %p3, [%r40], 1;\n@!%p3 bra B;\nret;\n\
             OTHER: mbarrier.arrive.shared.b64 %d5, [%r40];\nbar.sync 1, 64;\n{}bar.sync 2, 64;",
            "mbarrier.arrive.shared.b64 %d5, [%r40];\n".repeat(times as usize)
        )
    };
    finds(&[], &findings(&body(1), 1, None, 64));
    // The third phase runs: the wait is for that, and never ends.
    let found = findings(&body(2), 1, None, 64);
    finds(&[Rule::MbarrierPhase, Rule::Deadlock], &found);
    let message = &found.findings[0].message;
    assert!(
        message.contains("phase 2 of the mbarrier at 0xc00 has ended, and 1 more"),
        "{message}"
    );
    let found = findings(&body(3), 1, None, 64);
    finds(&[Rule::MbarrierPhase], &found);
    assert!(
        found.findings[0].message.contains("passes for a later one"),
        "{found}"
    );
}

const SYNC: &str =
    "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n";

#[test]
fn shared_memory_of_other_blocks() {
    let body = |first: &str, last: &str| {
        format!(
            "mov.u32 %r20, %cluster_ctarank;\nxor.b32 %r21, %r20, 1;\nmov.u32 %r22, s;\nshl.b32 %r23, %r0, 2;\n\
             add.u32 %r22, %r22, %r23;\nst.shared.u32 [%r22], %r0;\n{first}mapa.shared::cluster.u32 %r24, %r22, %r21;\n\
             ld.shared::cluster.u32 %r9, [%r24];\n{last}"
        )
    };
    let run = |first: &str, last: &str| findings(&body(first, last), 2, Some([2, 1, 1]), 32);
    finds(&[], &run(SYNC, SYNC));
    finds(&[Rule::Race; 2], &run("bar.sync 0;\n", SYNC));
    // A relaxed arrival releases nothing, but with a fence.
    let relaxed = SYNC.replace(".release", ".relaxed");
    finds(&[Rule::Race], &run(&relaxed, SYNC));
    finds(
        &[],
        &run(&format!("fence.acq_rel.cluster;\n{relaxed}"), SYNC),
    );
    // Nothing keeps a block until the other has read.
    let found = run(SYNC, "");
    assert!(
        found.findings.iter().any(|f| f.rule == Rule::UseAfterFree),
        "{found}"
    );
    let found = run(SYNC, "bar.sync 0;\n");
    assert!(
        found.findings.iter().any(|f| f.rule == Rule::UseAfterFree),
        "{found}"
    );
    // Atomics of the block's scope race with another block's.
    let atomic = |scope: &str| {
        let body = format!(
            "mov.u32 %r22, s;\nst.shared.u32 [%r22], 0;\n{SYNC}mapa.shared::cluster.u32 %r24, %r22, 0;\n\
             red.relaxed.{scope}.shared::cluster.add.u32 [%r24], 1;\n{SYNC}"
        );
        findings(&body, 2, Some([2, 1, 1]), 1)
    };
    finds(&[], &atomic("cluster"));
    finds(&[Rule::Race], &atomic("cta"));
}

#[test]
fn outputs_of_several_blocks() {
    let body = |instruction: &str| {
        format!(
            "mov.u32 %r22, s;\nst.shared.v4.u32 [%r22], {{%r0, %r0, %r0, %r0}};\nfence.proxy.async;\n{instruction}\n\
             cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;"
        )
    };
    // Updates do not race, whoever makes them; stores do.
    let update = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%d0], [%r22], 16;";
    finds(&[], &findings(&body(update), 3, None, 1));
    let store = "cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r22], 16;";
    finds(&[Rule::Race], &findings(&body(store), 3, None, 1));
    // What nobody wrote is not updated.
    let unwritten = body(&update.replace("[%d0]", "[%d2]"))
        .replace("mov.u32 %r22", "add.s64 %d2, %d2, 4096;\nmov.u32 %r22");
    assert!(!findings(&unwritten, 1, None, 1).findings.is_empty());
}

#[test]
fn bytes_that_nobody_wrote_go_with_copies_and_products() {
    // A send of memory that was never written, stored on the other side.
    let body = format!(
        "mov.u32 %r20, %cluster_ctarank;\nmov.u32 %r22, m;\nmov.u32 %r23, s;\nxor.b32 %r21, %r20, 1;\n\
         mbarrier.init.shared.b64 [%r22], 1;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [%r22], 16;\n\
         fence.mbarrier_init.release.cluster;\n{SYNC}mapa.shared::cluster.u32 %r27, %r23, %r21;\n\
         mapa.shared::cluster.u32 %r28, %r22, %r21;\n\
         cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r27+128], [%r23], 16, [%r28];\n\
         W: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r22], 0;\n@!%p2 bra W;\nld.shared.u32 %r9, [%r23+128];\n\
         st.global.u32 [%d0], %r9;\n{SYNC}"
    );
    let found = findings(&body, 2, Some([2, 1, 1]), 1);
    assert!(
        found
            .findings
            .iter()
            .any(|f| f.rule == Rule::UninitializedStore),
        "{found}"
    );
    // A product of memory that was never written.
    let product = "mov.b64 %d10, 0x4000004000010040;\nwgmma.fence.sync.aligned;\n\
        wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %d10, %d10, 0, 1, 1, 0, 0;\n\
        wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\nst.global.f32 [%d0], %f0;";
    let large = product.replace("0x4000004000010040", "0x4000000800010040");
    let found = findings(&large, 1, None, 128);
    assert!(
        found
            .findings
            .iter()
            .any(|f| f.rule == Rule::UninitializedStore),
        "{found}"
    );
}

//! Clusters of blocks: geometry, addresses, shared memory of other blocks, barriers, multicast.

mod common;

use common::{Run, kernel};
use flashtile_emulator::{
    AsyncTiming, BlockOrder, ElementType, FaultKind, LaunchError, Options, Schedule, TensorMap,
};

const SHARED: &str = ".shared .align 128 .b8 s[2048];\n.shared .align 8 .b64 m[2];";

/// `%r10`: the block in the grid, times 32 plus the thread: the word of the first buffer that is the thread's.
const WORD: &str = "mov.u32 %r10, %ctaid.x;\nmov.u32 %r11, %ctaid.y;\nmov.u32 %r12, %nctaid.x;\n\
    mad.lo.u32 %r10, %r11, %r12, %r10;\nmad.lo.u32 %r10, %r10, 32, %r0;\nmul.wide.u32 %d9, %r10, 4;\n\
    add.s64 %d9, %d0, %d9;\n";

fn run_with(
    options: Options,
    body: &str,
    grid: [u32; 3],
    cluster: Option<[u32; 3]>,
) -> Result<Vec<u32>, LaunchError> {
    let run = Run::new(Options {
        max_instructions: Some(1 << 20),
        ..options
    });
    let text = kernel(SHARED, &format!("{WORD}{body}"));
    run.launch_clusters(&text, grid, cluster, 32, 0)?;
    Ok(run.get(0, 32 * grid.iter().product::<u32>() as usize))
}

fn run(body: &str, grid: [u32; 3], cluster: Option<[u32; 3]>) -> Vec<u32> {
    run_with(Options::default(), body, grid, cluster).unwrap()
}

fn fault(body: &str, blocks: u32) -> FaultKind {
    match run_with(
        Options::default(),
        body,
        [blocks, 1, 1],
        Some([blocks, 1, 1]),
    ) {
        Err(LaunchError::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn special_registers() {
    let value = |register: &str| {
        let body = format!("mov.u32 %r9, {register};\nst.global.u32 [%d9], %r9;");
        let each = |found: Vec<u32>| found.into_iter().step_by(32).collect::<Vec<_>>();
        let with = each(run(&body, [4, 2, 1], Some([2, 2, 1])));
        (with, each(run(&body, [4, 2, 1], None)))
    };
    let of = |register, with: [u32; 8], without: [u32; 8]| {
        assert_eq!(
            value(register),
            (with.to_vec(), without.to_vec()),
            "{register}"
        );
    };
    of(
        "%clusterid.x",
        [0, 0, 1, 1, 0, 0, 1, 1],
        [0, 1, 2, 3, 0, 1, 2, 3],
    );
    of("%clusterid.y", [0; 8], [0, 0, 0, 0, 1, 1, 1, 1]);
    of("%nclusterid.x", [2; 8], [4; 8]);
    of("%nclusterid.y", [1; 8], [2; 8]);
    of("%cluster_ctaid.x", [0, 1, 0, 1, 0, 1, 0, 1], [0; 8]);
    of("%cluster_ctaid.y", [0, 0, 0, 0, 1, 1, 1, 1], [0; 8]);
    of("%cluster_nctaid.x", [2; 8], [1; 8]);
    of("%cluster_nctaid.z", [1; 8], [1; 8]);
    of("%cluster_ctarank", [0, 1, 0, 1, 2, 3, 2, 3], [0; 8]);
    of("%cluster_nctarank", [4; 8], [1; 8]);
    of("%nctaid.x", [4; 8], [4; 8]);
    let explicit =
        "mov.pred %p1, %is_explicit_cluster;\nselp.u32 %r9, 1, 0, %p1;\nst.global.u32 [%d9], %r9;";
    assert_eq!(run(explicit, [2, 1, 1], Some([1, 1, 1]))[0], 1);
    assert_eq!(run(explicit, [2, 1, 1], None)[0], 0);
}

/// Every thread writes its block's rank times 100 plus its own number, and reads its neighbour's in the next block.
fn exchange(store: &str, load: &str, sync: &str) -> String {
    format!(
        "mov.u32 %r20, %cluster_ctarank;\nmov.u32 %r21, %cluster_nctarank;\nmad.lo.u32 %r22, %r20, 100, %r0;\n\
         mov.u32 %r23, s;\nshl.b32 %r24, %r0, 2;\nadd.u32 %r25, %r23, %r24;\nadd.u32 %r26, %r20, 1;\n\
         rem.u32 %r26, %r26, %r21;\n{store}\n{sync}\nmapa.shared::cluster.u32 %r27, %r25, %r26;\n{load}\n{sync}\n\
         st.global.u32 [%d9], %r9;"
    )
}

const STORE: &str = "st.shared.u32 [%r25], %r22;";
const LOAD: &str = "ld.shared::cluster.u32 %r9, [%r27];";
const SYNC: &str = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;";

/// What the exchange gives in a grid of clusters of so many blocks in x.
fn exchanged(grid: u32, cluster: u32) -> Vec<u32> {
    let word = |block: u32, thread: u32| (block % cluster + 1) % cluster * 100 + thread;
    (0..grid)
        .flat_map(|b| (0..32).map(move |t| word(b, t)))
        .collect()
}

#[test]
fn blocks_read_and_write_each_other() {
    let generic_load = "cvt.u64.u32 %d20, %r25;\ncvta.shared.u64 %d20, %d20;\nmapa.u64 %d21, %d20, %r26;\nld.u32 %r9, [%d21];";
    let generic_shared =
        "cvt.u64.u32 %d20, %r27;\ncvta.shared::cluster.u64 %d20, %d20;\nld.u32 %r9, [%d20];";
    // To the block before, from where the neighbour would be read.
    let remote_store = "sub.u32 %r28, %r21, 1;\nadd.u32 %r28, %r28, %r20;\nrem.u32 %r28, %r28, %r21;\n\
        mapa.shared::cluster.u32 %r29, %r25, %r28;\nst.shared::cluster.u32 [%r29], %r22;";
    let local_load = "ld.shared.u32 %r9, [%r25];";
    let atomic = "red.shared::cluster.add.u32 [%r29], %r22;";
    let remote_atomic = remote_store.replace("st.shared::cluster.u32 [%r29], %r22;", atomic);
    let zero = format!("st.shared.u32 [%r25], 0;\n{SYNC}\n{remote_atomic}");
    let bodies = [
        exchange(STORE, LOAD, SYNC),
        exchange(STORE, generic_load, SYNC),
        exchange(STORE, generic_shared, SYNC),
        exchange(remote_store, local_load, SYNC),
        exchange(&zero, local_load, SYNC),
        exchange(STORE, LOAD, &SYNC.replace(".aligned", "")),
    ];
    for body in &bodies {
        for schedule in [Schedule::InOrder, Schedule::Seeded { seed: 3, share: 2 }] {
            for order in [BlockOrder::Ascending, BlockOrder::Reversed] {
                let options = Options {
                    schedule,
                    block_order: order,
                    ..Options::default()
                };
                let found = run_with(options, body, [6, 1, 1], Some([3, 1, 1])).unwrap();
                assert_eq!(found, exchanged(6, 3), "{body}");
            }
        }
    }
    // One cluster alone: that of block 4.
    let options = Options {
        block_order: BlockOrder::Only(4),
        ..Options::default()
    };
    let found = run_with(options, &bodies[0], [6, 1, 1], Some([3, 1, 1])).unwrap();
    assert_eq!(found[..96], [0; 96]);
    assert_eq!(found[96..], exchanged(6, 3)[96..]);
}

#[test]
fn addresses_name_their_block() {
    let body = "mov.u32 %r20, s;\ngetctarank.shared::cluster.u32 %r21, %r20;\nmapa.shared::cluster.u32 %r22, s, 1;\n\
        getctarank.shared::cluster.u32 %r23, %r22;\nshl.b32 %r23, %r23, 4;\nor.b32 %r9, %r21, %r23;\n\
        cvt.u64.u32 %d20, %r22;\ncvta.shared::cluster.u64 %d20, %d20;\nisspacep.shared::cta %p1, %d20;\n\
        isspacep.shared::cluster %p2, %d20;\nselp.u32 %r24, 256, 0, %p1;\nor.b32 %r9, %r9, %r24;\n\
        selp.u32 %r24, 512, 0, %p2;\nor.b32 %r9, %r9, %r24;\ngetctarank.u64 %r25, %d20;\nshl.b32 %r25, %r25, 12;\n\
        or.b32 %r9, %r9, %r25;\nst.global.u32 [%d9], %r9;";
    let found = run(body, [2, 1, 1], Some([2, 1, 1]));
    assert_eq!([found[0], found[32]], [0x1210, 0x1311]);
}

#[test]
fn wrong_addresses() {
    let body = |rank: u32, access: &str| {
        format!("mov.u32 %r20, s;\nmapa.shared::cluster.u32 %r21, %r20, {rank};\n{access}\n{SYNC}")
    };
    // Another block's shared memory by an access to one's own; a block that is not there; beyond its memory.
    let kind = fault(&body(1, "ld.shared.u32 %r9, [%r21];"), 2);
    assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{kind}");
    let kind = fault(&body(2, "ld.shared::cluster.u32 %r9, [%r21];"), 2);
    assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{kind}");
    let kind = fault(&body(1, "ld.shared::cluster.u32 %r9, [%r21+2064];"), 2);
    assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{kind}");
    // A wait is for a barrier of the own block.
    let wait = "mbarrier.init.shared.b64 [m], 1;\nmapa.shared::cluster.u32 %r22, m, 1;\ncvt.u64.u32 %d20, %r22;\n\
        cvta.shared::cluster.u64 %d20, %d20;\nmbarrier.try_wait.parity.b64 %p3, [%d20], 0;";
    let kind = fault(&body(1, wait), 2);
    assert!(
        kind.to_string()
            .contains("a wait for an mbarrier of another block"),
        "{kind}"
    );
    // Block 1 ends before block 0 looks.
    let gone = "mov.u32 %r20, %cluster_ctarank;\nsetp.eq.u32 %p1, %r20, 1;\n@%p1 ret;\nnanosleep.u32 100;\n\
        mapa.shared::cluster.u32 %r21, s, 1;\nld.shared::cluster.u32 %r9, [%r21];";
    let kind = fault(gone, 2);
    assert!(
        matches!(kind, FaultKind::BlockExited { rank: 1, .. }),
        "{kind}"
    );
}

#[test]
fn the_clusters_barrier() {
    let (arrive, wait) = ("barrier.cluster.arrive;", "barrier.cluster.wait;");
    let kind = fault(&format!("{arrive}\n{arrive}"), 2);
    assert!(kind.to_string().contains("without having waited"), "{kind}");
    let kind = fault(wait, 2);
    assert!(
        kind.to_string().contains("without having arrived"),
        "{kind}"
    );
    // Threads that have exited are not waited for, whether they have arrived or not.
    let some = |body: &str| {
        format!(
            "mov.u32 %r20, %cluster_ctarank;\nsetp.eq.u32 %p1, %r20, 1;\n@%p1 bra OTHER;\n{arrive}\n{wait}\n{arrive}\n{wait}\nst.global.u32 [%d9], 7;\nret;\nOTHER:\n{body}"
        )
    };
    for body in ["", arrive, &format!("{arrive}\n{wait}\n{arrive}")] {
        assert_eq!(run(&some(body), [2, 1, 1], Some([2, 1, 1]))[..32], [7; 32]);
    }
    // A block that waits for something else is.
    let kind = fault(
        &some(
            "mbarrier.init.shared.b64 [m], 5;\nL: mbarrier.try_wait.parity.shared::cta.b64 %p2, [m], 0;\n@!%p2 bra L;",
        ),
        2,
    );
    let text = kind.to_string();
    assert!(
        text.contains("block (0,0,0) warp 0") && text.contains("32 threads have not arrived"),
        "{text}"
    );
    assert!(
        text.contains("block (1,0,0) warp 0") && text.contains("5 arrivals are missing"),
        "{text}"
    );
}

#[test]
fn remote_arrivals() {
    // Every block waits for one arrival of each thread of the other, and for bytes that the other counts.
    let body = "mov.u32 %r20, %cluster_ctarank;\nxor.b32 %r21, %r20, 1;\nmov.u32 %r22, m;\n\
        mapa.shared::cluster.u32 %r23, %r22, %r21;\nsetp.eq.u32 %p1, %r0, 0;\n\
        @%p1 mbarrier.init.shared.b64 [%r22], 33;\nfence.mbarrier_init.release.cluster;\nbarrier.cluster.arrive.aligned;\n\
        barrier.cluster.wait.aligned;\nmbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r23];\n\
        @%p1 mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%r23], 16;\n\
        @%p1 mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%r23], 16;\n\
        L: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r22], 0;\n@!%p2 bra L;\n\
        barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\nst.global.u32 [%d9], 5;";
    assert_eq!(run(body, [2, 1, 1], Some([2, 1, 1])), [5; 64]);
}

#[test]
fn multicast() {
    // Each of two blocks loads half of 256 bytes into both.
    let body = "mov.u32 %r20, %cluster_ctarank;\nmov.u32 %r22, m;\nmov.u32 %r23, s;\nsetp.ne.u32 %p1, %r0, 0;\n\
        @%p1 bra ALL;\nmbarrier.init.shared.b64 [%r22], 1;\nfence.mbarrier_init.release.cluster;\n\
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r22], 256;\n\
        ALL: barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n@%p1 bra WAIT;\nshl.b32 %r24, %r20, 5;\n\
        shl.b32 %r25, %r20, 7;\nadd.u32 %r26, %r23, %r25;\nmov.u16 %h1, 3;\n\
        cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r26], [%d1, {%r24}], [%r22], %h1;\n\
        WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r22], 0;\n@!%p2 bra WAIT;\n\
        shl.b32 %r27, %r0, 3;\nadd.u32 %r27, %r27, %r23;\nld.shared.v2.u32 {%r28, %r29}, [%r27];\n\
        add.u32 %r9, %r28, %r29;\nst.global.u32 [%d9], %r9;\nbarrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;";
    for timing in [
        AsyncTiming::Late,
        AsyncTiming::Early,
        AsyncTiming::Seeded(3),
    ] {
        let run = Run::new(Options {
            async_copies: timing,
            ..Options::default()
        });
        let values: Vec<u32> = (0..64).map(|n| n * n).collect();
        run.put(2, &values);
        let map = TensorMap::new(ElementType::U32, run.buffers[2], &[64], &[], &[32]);
        run.device
            .write(run.buffers[1], &map.encode().unwrap())
            .unwrap();
        let text = kernel(SHARED, &format!("{WORD}{body}"));
        run.launch_clusters(&text, [2, 1, 1], Some([2, 1, 1]), 32, 0)
            .unwrap();
        let sums: Vec<u32> = values.chunks(2).map(|v| v[0] + v[1]).collect();
        assert_eq!(run.get(0, 64), [sums.clone(), sums].concat());
        // A block that is not there.
        let wrong = text.replace("mov.u16 %h1, 3", "mov.u16 %h1, 5");
        let error = run
            .launch_clusters(&wrong, [2, 1, 1], Some([2, 1, 1]), 32, 0)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("the mask 0x5 of a cluster of 2 blocks"),
            "{error}"
        );
    }
}

#[test]
fn copies_between_blocks() {
    let body = "mov.u32 %r20, %cluster_ctarank;\nxor.b32 %r21, %r20, 1;\nmov.u32 %r22, m;\nmov.u32 %r23, s;\n\
        setp.ne.u32 %p1, %r0, 0;\n@%p1 bra ALL;\nmbarrier.init.shared.b64 [%r22], 1;\n\
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r22], 128;\nALL: shl.b32 %r24, %r0, 2;\nadd.u32 %r25, %r23, %r24;\n\
        mad.lo.u32 %r26, %r20, 50, %r0;\nst.shared.u32 [%r25], %r26;\nfence.proxy.async;\nfence.mbarrier_init.release.cluster;\n\
        barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n@%p1 bra WAIT;\n\
        mapa.shared::cluster.u32 %r27, %r23, %r21;\nmapa.shared::cluster.u32 %r28, %r22, %r21;\n\
        cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r27+128], [%r23], 128, [%r28];\n\
        WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r22], 0;\n@!%p2 bra WAIT;\n\
        ld.shared.u32 %r9, [%r25+128];\nst.global.u32 [%d9], %r9;\nbarrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;";
    for timing in [
        AsyncTiming::Late,
        AsyncTiming::Early,
        AsyncTiming::Seeded(3),
    ] {
        let options = Options {
            async_copies: timing,
            ..Options::default()
        };
        let found = run_with(options, body, [2, 1, 1], Some([2, 1, 1])).unwrap();
        let expected: Vec<u32> = (50..82).chain(0..32).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn geometry() {
    let launch = |directives: &str, grid: [u32; 3], cluster: Option<[u32; 3]>| {
        let text = kernel("", "").replace("c)\n{", &format!("c)\n{directives}\n{{"));
        let run = Run::new(Options::default());
        let stats = run.launch_clusters(&text, grid, cluster, 32, 0);
        stats.map(|s| s.blocks).map_err(|e| e.to_string())
    };
    assert_eq!(launch("", [8, 4, 3], Some([4, 2, 1])), Ok(96));
    assert_eq!(launch(".reqnctapercluster 2, 2", [4, 4, 1], None), Ok(16));
    assert_eq!(
        launch(".reqnctapercluster 2, 2", [4, 4, 1], Some([2, 2, 1])),
        Ok(16)
    );
    let refused = |directives: &str, grid, cluster, part: &str| {
        let error = launch(directives, grid, cluster).unwrap_err();
        assert!(error.contains(part), "{error}");
    };
    refused("", [6, 1, 1], Some([4, 1, 1]), "do not divide");
    refused(
        "",
        [32, 1, 1],
        Some([32, 1, 1]),
        "a cluster of 32 x 1 x 1 blocks",
    );
    refused("", [4, 1, 1], Some([0, 1, 1]), "a cluster of 0");
    refused(
        ".reqnctapercluster 2",
        [4, 1, 1],
        Some([4, 1, 1]),
        "requires 2 x 1 x 1",
    );
    refused(
        ".maxclusterrank 2",
        [4, 1, 1],
        Some([4, 1, 1]),
        "a cluster of 4",
    );
    refused(".explicitcluster", [4, 1, 1], None, "with a cluster size");
    assert_eq!(
        launch(".explicitcluster", [4, 1, 1], Some([2, 1, 1])),
        Ok(4)
    );
    // What each thread knows of every other takes memory.
    let run = Run::new(Options {
        sanitize: true,
        ..Options::default()
    });
    let text = kernel("", "");
    let error = run.launch_clusters(&text, [16, 1, 1], Some([16, 1, 1]), 512, 0);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("8192 threads is too large to be checked")
    );
}

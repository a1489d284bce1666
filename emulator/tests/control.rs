//! Divergence, barriers, and what lanes exchange.

mod common;

use common::{Run, STORE, fault, kernel, line_of, run};
use flashtile_emulator::{FaultKind, LaunchError, Options};

#[test]
fn vector_add() {
    let run = Run::new(Options::default());
    run.put(1, &(0..256).collect::<Vec<_>>());
    run.put(2, &(0..256).map(|i| 1000 * i).collect::<Vec<_>>());
    let body = "mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.s32 %r0, %r1, %r2, %r0;
        mul.wide.u32 %d3, %r0, 4; add.s64 %d4, %d1, %d3; add.s64 %d5, %d2, %d3;
        ld.global.nc.u32 %r3, [%d4]; ld.global.u32 %r4, [%d5]; add.u32 %r9, %r3, %r4;";
    let stats = run
        .launch(&kernel("", &format!("{body}{STORE}")), 4, 64, 0)
        .unwrap();
    assert_eq!(
        run.get(0, 256),
        (0..256).map(|i| 1001 * i).collect::<Vec<_>>()
    );
    assert_eq!(stats.blocks, 4);
    assert_eq!(stats.lane_instructions, 32 * stats.warp_instructions);
}

#[test]
fn loops_with_different_counts() {
    // r9 = sum of 0..tid, in a divergent loop inside a divergent if.
    let body = "mov.u32 %r9, 0; mov.u32 %r1, 0;
        and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 0; @%p1 bra DONE;
        LOOP: setp.ge.u32 %p2, %r1, %r0; @%p2 bra DONE;
        add.u32 %r9, %r9, %r1; add.u32 %r1, %r1, 1; bra.uni LOOP;
        DONE: activemask.b32 %r5; setp.ne.u32 %p3, %r5, 0xffffffff; @%p3 mov.u32 %r9, 12345;";
    let want: Vec<u32> = (0..64)
        .map(|t: u32| if t & 1 == 0 { 0 } else { t * (t - 1) / 2 })
        .collect();
    assert_eq!(run("", &format!("{body}{STORE}"), 64), want);
}

#[test]
fn nested_branches_and_early_exit() {
    let body = "mov.u32 %r9, 7; setp.gt.u32 %p1, %r0, 20; @%p1 ret;
        setp.lt.u32 %p2, %r0, 10; @%p2 bra A;
        setp.lt.u32 %p3, %r0, 15; @%p3 bra B; mov.u32 %r9, 3; bra.uni C;
        B: mov.u32 %r9, 2; bra.uni C;
        A: mov.u32 %r9, 1;
        C: add.u32 %r9, %r9, 100;";
    let want: Vec<u32> = (0..32)
        .map(|t| [101, 102, 103, 0][[9, 14, 20, 99].iter().position(|&m| t <= m).unwrap()])
        .collect();
    assert_eq!(run("", &format!("{body}{STORE}"), 32), want);
}

#[test]
fn branch_table() {
    let body = "and.b32 %r1, %r0, 3; T: .branchtargets A, B, C, A; brx.idx %r1, T;
        A: mov.u32 %r9, 10; bra.uni E; B: mov.u32 %r9, 20; bra.uni E; C: mov.u32 %r9, 30;
        E: add.u32 %r9, %r9, %r0;";
    let want: Vec<u32> = (0..32)
        .map(|t| [10, 20, 30, 10][t as usize % 4] + t)
        .collect();
    assert_eq!(run("", &format!("{body}{STORE}"), 32), want);
}

#[test]
fn barrier_orders_shared_memory() {
    // Reversal through shared memory over four warps.
    let body =
        "mov.u32 %r1, buf; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2; st.shared.u32 [%r3], %r0;
        bar.sync 0; sub.u32 %r4, %r1, %r2; ld.shared.u32 %r9, [%r4+508];";
    let want: Vec<u32> = (0..128).rev().collect();
    assert_eq!(
        run(
            ".shared .align 4 .b8 buf[512];",
            &format!("{body}{STORE}"),
            128
        ),
        want
    );
}

#[test]
fn named_barriers_producer_consumer() {
    // Warp 1 waits at barrier 3 for warp 0, which only arrives.
    let body = "setp.ge.u32 %p1, %r0, 32; @%p1 bra CONSUME;
        mov.u32 %r1, buf; st.shared.u32 [%r1], 42; bar.arrive 3, 64; bra.uni END;
        CONSUME: bar.sync 3, 64; mov.u32 %r1, buf; ld.shared.u32 %r9, [%r1];
        mul.wide.u32 %d9, %r0, 4; add.s64 %d9, %d0, %d9; st.global.u32 [%d9], %r9; END:";
    let got = run(".shared .align 4 .b8 buf[4];", body, 64);
    assert_eq!(got[32..], [42; 32]);
}

#[test]
fn barrier_reductions() {
    let body = "setp.lt.u32 %p1, %r0, 40; bar.red.popc.u32 %r9, 0, %p1;
        bar.red.and.pred %p2, 1, %p1; @%p2 mov.u32 %r9, 999; bar.red.or.pred %p3, 1, %p1; @!%p3 mov.u32 %r9, 998;";
    assert_eq!(run("", &format!("{body}{STORE}"), 64), [40; 64]);
}

#[test]
fn barrier_counts_only_threads_that_have_not_exited() {
    let body = "setp.ge.u32 %p1, %r0, 40; @%p1 ret; bar.sync 0; mov.u32 %r9, 5;";
    let got = run("", &format!("{body}{STORE}"), 96);
    assert_eq!(
        got,
        (0..96)
            .map(|t| if t < 40 { 5 } else { 0 })
            .collect::<Vec<u32>>()
    );
}

#[test]
fn divergent_barrier_faults() {
    let body =
        "setp.lt.u32 %p1, %r0, 16; @!%p1 bra JOIN;\nbar.sync 0; // here\nJOIN: mov.u32 %r9, 1;";
    let found = fault("", body, 32);
    assert!(
        matches!(found.kind, FaultKind::Divergent { active: 0xffff, .. }),
        "{found}"
    );
    assert_eq!(found.line, line_of(&kernel("", body), "// here"));
    assert_eq!(found.instruction, "bar.sync 0");
}

#[test]
fn deadlock_says_who_waits() {
    // Warp 0 waits at barrier 1, warp 1 at barrier 2.
    let body = "setp.ge.u32 %p1, %r0, 32; @%p1 bra B; bar.sync 1; bra.uni E; B: bar.sync 2; E:";
    let found = fault("", body, 64);
    let FaultKind::Deadlock { waiters } = &found.kind else {
        panic!("{found}")
    };
    assert_eq!(waiters.len(), 2);
    assert!(found.to_string().contains("barrier 2"), "{found}");
    // An explicit count is not lowered by exits.
    let found = fault(
        "",
        "setp.ge.u32 %p1, %r0, 32; @%p1 ret; bar.sync 1, 64;",
        64,
    );
    assert!(matches!(found.kind, FaultKind::Deadlock { .. }), "{found}");
}

#[test]
fn barrier_operands() {
    let found = fault("", "bar.sync 1, 40;", 64);
    assert!(
        matches!(found.kind, FaultKind::BadBarrier { .. }),
        "{found}"
    );
    let found = fault("", "bar.sync 16;", 64);
    assert!(
        matches!(found.kind, FaultKind::BadBarrier { .. }),
        "{found}"
    );
    let found = fault(
        "",
        "setp.ge.u32 %p1, %r0, 32; @%p1 bar.sync 1, 64; @!%p1 bar.sync 1, 96;",
        96,
    );
    assert!(
        matches!(found.kind, FaultKind::BadBarrier { .. }),
        "{found}"
    );
}

#[test]
fn shuffles() {
    let body = "shfl.sync.bfly.b32 %r9, %r0, 1, 0x1f, 0xffffffff;";
    assert_eq!(
        run("", &format!("{body}{STORE}"), 32),
        (0..32).map(|t| t ^ 1).collect::<Vec<u32>>()
    );
    let body = "shfl.sync.down.b32 %r9|%p1, %r0, 4, 0x1f, -1; @!%p1 mov.u32 %r9, 77;";
    let want: Vec<u32> = (0..32).map(|t| if t < 28 { t + 4 } else { 77 }).collect();
    assert_eq!(run("", &format!("{body}{STORE}"), 32), want);
    let body = "shfl.sync.idx.b32 %r9, %r0, 5, 0x181f, -1;";
    assert_eq!(
        run("", &format!("{body}{STORE}"), 32),
        (0..32).map(|t| t / 8 * 8 + 5).collect::<Vec<u32>>()
    );
}

#[test]
fn shuffle_waits_for_its_members() {
    // Both sides of a branch come to the same shuffle, by different ways.
    let body = "setp.lt.u32 %p1, %r0, 16; @%p1 bra A; add.u32 %r1, %r0, 100; bra.uni B;
        A: mov.u32 %r1, %r0; B: shfl.sync.idx.b32 %r9, %r1, 20, 0x1f, -1;";
    assert_eq!(run("", &format!("{body}{STORE}"), 32), [120; 32]);
    let found = fault(
        "",
        "setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.idx.b32 %r9, %r0, 0, 0x1f, -1;",
        32,
    );
    assert!(matches!(found.kind, FaultKind::Divergent { .. }), "{found}");
    let found = fault("", "shfl.sync.idx.b32 %r9, %r0, 0, 0x1f, 0xffff;", 32);
    assert!(
        matches!(found.kind, FaultKind::BadMemberMask { .. }),
        "{found}"
    );
    // Half a warp with its own mask is fine.
    let body = "mov.u32 %r9, 1; setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.idx.b32 %r9, %r0, 3, 0x1f, 0xffff;";
    let want: Vec<u32> = (0..32).map(|t| if t < 16 { 3 } else { 1 }).collect();
    assert_eq!(run("", &format!("{body}{STORE}"), 32), want);
}

#[test]
fn votes_matches_reductions() {
    let body = "setp.lt.u32 %p1, %r0, 5; vote.sync.ballot.b32 %r9, %p1, -1;";
    assert_eq!(run("", &format!("{body}{STORE}"), 32), [31; 32]);
    let body =
        "setp.lt.u32 %p1, %r0, 40; vote.sync.all.pred %p2, %p1, -1; selp.u32 %r9, 1, 0, %p2;";
    assert_eq!(
        run("", &format!("{body}{STORE}"), 64),
        [[1; 32], [0; 32]].concat()
    );
    let body = "and.b32 %r1, %r0, 1; match.any.sync.b32 %r9, %r1, -1;";
    assert_eq!(
        run("", &format!("{body}{STORE}"), 32)[..2],
        [0x5555_5555, 0xaaaa_aaaa]
    );
    let body = "redux.sync.add.u32 %r9, %r0, -1;";
    assert_eq!(run("", &format!("{body}{STORE}"), 32), [496; 32]);
    let body = "mov.u32 %r9, 0; elect.sync %r1|%p1, -1; @%p1 mov.u32 %r9, 1;";
    assert_eq!(
        run("", &format!("{body}{STORE}"), 32).iter().sum::<u32>(),
        1
    );
}

#[test]
fn lanes_that_spin_do_not_starve_the_others() {
    // Lane 0 waits in a loop for lane 1 of its own warp.
    let body = "mov.u32 %r1, flag; setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [%r1], 0; bar.warp.sync -1;
        setp.ne.u32 %p1, %r0, 1; @!%p1 bra SET;
        SPIN: ld.volatile.shared.u32 %r2, [%r1]; setp.eq.u32 %p2, %r2, 0; @%p2 bra SPIN; bra.uni OUT;
        SET: st.shared.u32 [%r1], 9; mov.u32 %r2, 9; OUT: mov.u32 %r9, %r2;";
    assert_eq!(
        run(".shared .b32 flag;", &format!("{body}{STORE}"), 32),
        [9; 32]
    );
}

#[test]
fn limits_traps_and_launch_errors() {
    let found = fault("", "L: bra.uni L;", 32);
    assert!(
        matches!(found.kind, FaultKind::InstructionLimit { .. }),
        "{found}"
    );
    let found = fault("", "setp.eq.u32 %p1, %r0, 7; @%p1 trap;", 32);
    assert!(matches!(found.kind, FaultKind::Trap), "{found}");
    let run = Run::new(Options::default());
    let text = kernel("", "");
    assert!(matches!(
        run.launch(&text, 1, 0, 0),
        Err(LaunchError::BadGeometry { .. })
    ));
    assert!(matches!(
        run.launch(&text, 1, 1025, 0),
        Err(LaunchError::BadGeometry { .. })
    ));
    assert!(matches!(
        run.launch(&text, 1, 32, 1 << 20),
        Err(LaunchError::BadGeometry { .. })
    ));
    let other = text.replace("entry k", "entry other");
    assert!(matches!(
        run.launch(&other, 1, 32, 0),
        Err(LaunchError::UnknownEntry { .. })
    ));
}

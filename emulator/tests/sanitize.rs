//! What the sanitizer finds, and what it must not find: each kernel breaks one rule in one line, and has a twin that
//! keeps it.

#[path = "common/broken.rs"]
mod broken;
mod common;

use broken::{SHARED, WORDS, breaks, clean, findings_of, options};
use common::{Run, STORE, kernel};
use flashtile_emulator::{BlockOrder, LaunchError, Options, Rule, Schedule};

#[test]
fn races_in_shared_memory() {
    let body = |between: &str, read: &str| {
        format!("{WORDS}st.shared.u32 [%r1], %r0;\n{between}\nld.shared.u32 %r9, [{read}];{STORE}")
    };
    let (write, read, near) = (
        "st.shared.u32 [%r1]",
        "ld.shared.u32 %r9, [%r2]",
        "ld.shared.u32 %r9, [%r3]",
    );
    // Whatever order the warps run in here, the accesses are found unordered.
    breaks(Rule::Race, &body("", "%r2"), 64, read, Some(write));
    clean(&body("bar.sync 0;", "%r2"), 64);
    clean(&body("bar.sync 1, 64;", "%r2"), 64);
    // Lanes of one warp are threads too, although they run together.
    breaks(Rule::Race, &body("", "%r3"), 32, near, Some(write));
    clean(&body("bar.warp.sync -1;", "%r3"), 32);
    clean(&body("barrier.sync 2, 32;", "%r3"), 32);
    // A barrier of each warp orders nothing between them; a shuffle orders no memory at all.
    breaks(
        Rule::Race,
        &body("bar.warp.sync -1;", "%r2"),
        64,
        read,
        Some(write),
    );
    breaks(
        Rule::Race,
        &body("shfl.sync.bfly.b32 %r7, %r0, 1, 31, -1;", "%r3"),
        32,
        near,
        Some(write),
    );
    // A thread's own accesses are in order.
    clean(&body("", "%r1"), 64);
}

#[test]
fn a_write_must_come_after_the_reads() {
    let body = |between: &str| {
        format!(
            "{WORDS}st.shared.u32 [%r1], %r0;\nbar.sync 0;\nld.shared.u32 %r9, [%r2];\n{between}\n\
             st.shared.u32 [%r1], 7;{STORE}"
        )
    };
    breaks(
        Rule::Race,
        &body(""),
        64,
        "st.shared.u32 [%r1], 7",
        Some("ld.shared.u32 %r9"),
    );
    clean(&body("bar.sync 0;"), 64);
    // Every one of many readers counts: the last warp writes where all have read.
    let many = |between: &str| {
        format!(
            "{WORDS}setp.lt.u32 %p1, %r0, 32;\n@%p1 st.shared.u32 [%r1], %r0;\nbar.sync 0;\nand.b32 %r6, %r4, 127;
             add.u32 %r6, %r6, %r5;\nld.shared.u32 %r9, [%r6];\n{between}\nsetp.ge.u32 %p2, %r0, 224;
             @%p2 st.shared.u32 [%r6], 7;{STORE}"
        )
    };
    breaks(
        Rule::Race,
        &many(""),
        256,
        "@%p2 st.shared",
        Some("ld.shared.u32 %r9"),
    );
    clean(&many("bar.sync 0;"), 256);
}

#[test]
fn accesses_are_told_apart_by_the_byte() {
    // Each thread writes one byte of a word that four threads share.
    let body = |to: &str| {
        format!(
            "mov.u32 %r1, s;\nadd.u32 %r1, %r1, %r0;\nmov.u32 %r2, 5;\nst.shared.u8 [%r1{to}], %r2;\n\
             ld.shared.u8 %r9, [%r1{to}];{STORE}"
        )
    };
    clean(&body("+3"), 64);
    let overlap =
        "mov.u32 %r1, s;\nadd.u32 %r1, %r1, %r0;\nand.b32 %r3, %r1, -2;\nst.shared.u8 [%r1], %r0;
        st.shared.u16 [%r3], %h1;";
    let body = format!("mov.u16 %h1, 5;\nmov.u32 %r9, 0;\n{overlap}{STORE}");
    let report = findings_of(SHARED, &body, 1, 64);
    assert!(
        report.findings.iter().any(|f| f.rule == Rule::Race),
        "{report}"
    );
}

#[test]
fn named_barriers_order_those_that_arrive() {
    // Warp 0 produces and only arrives, warp 1 consumes and waits; warp 2 has no part in it.
    let body = |third: &str| {
        format!(
            "{WORDS}mov.u32 %r9, 0;\nshr.u32 %r6, %r0, 5;\nsetp.eq.u32 %p1, %r6, 0;\nsetp.eq.u32 %p2, %r6, 1;
             setp.eq.u32 %p3, %r6, 2;\n@!%p1 bra B;\nst.shared.u32 [%r1], %r0;\nbar.arrive 3, 64;\nbra.uni END;
             B: @!%p2 bra C;\nbar.sync 3, 64;\nld.shared.u32 %r9, [%r2];\nbra.uni END;\nC: {third}\nEND:\n{STORE}"
        )
    };
    clean(&body(""), 96);
    // Warp 2 reads what warp 0 wrote (thread xor 64).
    let reads = "xor.b32 %r7, %r4, 256;\nadd.u32 %r7, %r7, %r5;\nld.shared.u32 %r9, [%r7];";
    breaks(
        Rule::Race,
        &body(reads),
        96,
        "ld.shared.u32 %r9, [%r7]",
        Some("st.shared.u32 [%r1]"),
    );
}

#[test]
fn mbarriers_order_arrival_and_wait() {
    let decls = ".shared .align 8 .b64 m;\n.shared .align 16 .b8 s[2048];";
    let body = |init: &str, wait: &str| {
        format!(
            "{WORDS}setp.eq.u32 %p1, %r0, 0;\nmov.u32 %r8, m;\n@%p1 mbarrier.init.shared.b64 [%r8], 64;\n{init}\n\
             st.shared.u32 [%r1], %r0;\nmbarrier.arrive.shared.b64 %d5, [%r8];\n{wait}\n\
             ld.shared.u32 %r9, [%r2];{STORE}"
        )
    };
    let wait = "W: mbarrier.test_wait.shared.b64 %p2, [%r8], %d5;\n@!%p2 bra W;";
    let found = |init, wait| findings_of(decls, &body(init, wait), 1, 64);
    let good = found("bar.sync 0;", wait);
    assert!(good.findings.is_empty(), "{good}");
    // Without the wait; and with a wait whose answer nobody looks at.
    for wait in ["", "mbarrier.test_wait.shared.b64 %p2, [%r8], %d5;"] {
        let bad = found("bar.sync 0;", wait);
        assert!(bad.findings.iter().any(|f| f.rule == Rule::Race), "{bad}");
    }
    // Nothing orders the object's making before the others' use of it.
    let bad = found("", wait);
    assert!(!bad.findings.is_empty());
}

#[test]
fn flags_with_release_and_acquire() {
    // Thread 0 writes data and sets a flag, thread 32 waits for the flag and reads.
    let body = |set: &str, get: &str| {
        format!(
            "{WORDS}mov.u32 %r9, 0;\nmov.u32 %r8, s;\nsetp.eq.u32 %p1, %r0, 0;\nsetp.eq.u32 %p2, %r0, 32;
             @%p1 st.shared.u32 [%r8+1024], 0;\nbar.sync 0;\n@!%p1 bra B;\nst.shared.u32 [%r8], 42;\n{set}
             bra.uni END;\nB: @!%p2 bra END;\nW: {get}\nsetp.ne.u32 %p3, %r7, 1;\n@%p3 bra W;
             FENCE\nld.shared.u32 %r9, [%r8];\nEND:\n{STORE}"
        )
    };
    let with = |set: &str, get: &str, fence: &str| body(set, get).replace("FENCE", fence);
    let (relaxed, volatile) = (
        "st.relaxed.cta.shared.u32 [%r8+1024], 1;",
        "st.volatile.shared.u32 [%r8+1024], 1;",
    );
    let (ld_relaxed, ld_volatile) = (
        "ld.relaxed.cta.shared.u32 %r7, [%r8+1024];",
        "ld.volatile.shared.u32 %r7, [%r8+1024];",
    );
    clean(
        &with(
            "st.release.cta.shared.u32 [%r8+1024], 1;",
            "ld.acquire.cta.shared.u32 %r7, [%r8+1024];",
            "",
        ),
        64,
    );
    clean(
        &with(
            &format!("membar.cta;\n{volatile}"),
            ld_volatile,
            "membar.cta;",
        ),
        64,
    );
    clean(
        &with(
            &format!("fence.acq_rel.cta;\n{relaxed}"),
            ld_relaxed,
            "fence.acq_rel.cta;",
        ),
        64,
    );
    clean(
        &with(
            "atom.release.cta.shared.add.u32 %r6, [%r8+1024], 1;",
            "ld.acquire.cta.shared.u32 %r7, [%r8+1024];",
            "",
        ),
        64,
    );
    for (set, get, fence) in [
        (relaxed.to_owned(), ld_relaxed, ""),
        (format!("membar.cta;\n{volatile}"), ld_volatile, ""),
        (relaxed.to_owned(), ld_relaxed, "fence.acq_rel.cta;"),
    ] {
        let read = "ld.shared.u32 %r9, [%r8]";
        breaks(
            Rule::Race,
            &with(&set, get, fence),
            64,
            read,
            Some("st.shared.u32 [%r8], 42"),
        );
    }
    // A flag that is an ordinary store races itself.
    let report = findings_of(
        SHARED,
        &with("st.shared.u32 [%r8+1024], 1;", ld_relaxed, ""),
        1,
        64,
    );
    assert!(
        report.findings.iter().any(|f| f.rule == Rule::Race),
        "{report}"
    );
}

#[test]
fn races_between_blocks() {
    // Two blocks add to a word, as an ordinary update and as an atomic one; and hand over data with a ticket.
    let plain = "ld.global.u32 %r1, [%d0];\nadd.u32 %r1, %r1, 1;\nst.global.u32 [%d0], %r1;";
    let report = findings_of("", plain, 2, 1);
    assert!(report.findings.iter().all(|f| f.rule == Rule::Race));
    let (_, other) = report.findings[0].other.as_ref().unwrap();
    assert_eq!(
        (report.findings[0].site.block, other.block),
        ([1, 0, 0], [0, 0, 0])
    );
    let atomic = findings_of("", "red.global.add.u32 [%d0], 1;", 2, 1);
    assert!(atomic.findings.is_empty(), "{atomic}");
    let narrow = findings_of("", "red.relaxed.cta.global.add.u32 [%d0], 1;", 2, 1);
    assert_eq!(narrow.findings[0].rule, Rule::Race);
    let ticket = |fence: &str| {
        format!(
            "mov.u32 %r1, %ctaid.x;\nmul.wide.u32 %d3, %r1, 4;\nadd.s64 %d3, %d1, %d3;\nst.global.u32 [%d3], %r1;
             {fence}\natom.global.add.u32 %r2, [%d0], 1;\n{fence}\nsetp.ne.u32 %p1, %r2, 1;\n@%p1 ret;
             ld.global.u32 %r3, [%d1];\nst.global.u32 [%d2], %r3;"
        )
    };
    let good = findings_of("", &ticket("fence.acq_rel.gpu;"), 2, 1);
    assert!(good.findings.is_empty(), "{good}");
    for fence in ["", "fence.acq_rel.cta;"] {
        assert_eq!(
            findings_of("", &ticket(fence), 2, 1).findings[0].rule,
            Rule::Race
        );
    }
}

/// Thread t copies 16 bytes from b[t] to s[t], then reads the first word of its neighbour's.
fn copy(wait: &str, after: &str) -> String {
    format!(
        "mov.u32 %r1, s;\nshl.b32 %r4, %r0, 4;\nadd.u32 %r1, %r1, %r4;\nmul.wide.u32 %d3, %r0, 16;
         add.s64 %d3, %d1, %d3;\nxor.b32 %r2, %r0, 32;\nshl.b32 %r2, %r2, 4;\nmov.u32 %r5, s;
         add.u32 %r2, %r2, %r5;\ncp.async.cg.shared.global [%r1], [%d3], 16;\n{wait}\n{after}"
    )
}

#[test]
fn copies_in_flight() {
    let all = "cp.async.commit_group;\ncp.async.wait_group 0;";
    let read = |from: &str| format!("ld.shared.u32 %r9, [{from}];{STORE}");
    let start = Some("cp.async.cg.shared.global");
    clean(&copy(all, &read("%r1")), 64);
    clean(&copy("cp.async.wait_all;\nbar.sync 0;", &read("%r2")), 64);
    // No wait; a wait for fewer groups than there are; a copy that no group has.
    let late = "bar.sync 0;\ncp.async.wait_all;";
    for wait in [
        "cp.async.commit_group;",
        "cp.async.commit_group;\ncp.async.wait_group 1;",
        "cp.async.wait_group 0;",
    ] {
        let body = copy(wait, &read("%r1")) + late;
        breaks(Rule::ReadInFlight, &body, 64, "ld.shared.u32 %r9", start);
    }
    // The copy's thread has waited, but no barrier tells the reader.
    breaks(
        Rule::Race,
        &copy(all, &read("%r2")),
        64,
        "ld.shared.u32 %r9",
        start,
    );
    // The barrier comes before the wait: it does not tell of the copies.
    let wrong = "bar.sync 0;\ncp.async.wait_all;";
    let report = findings_of(SHARED, &copy(wrong, &read("%r2")), 1, 64);
    assert!(!report.findings.is_empty());
    // Ends without a wait.
    let body = copy("cp.async.commit_group;", "");
    breaks(Rule::ExitInFlight, &body, 64, "ret;", start);
}

#[test]
fn copies_own_their_ends_until_the_wait() {
    let end = "\ncp.async.wait_all;";
    let start = Some("cp.async.cg.shared.global");
    let destination = "mov.u32 %r9, 1;\nst.shared.u32 [%r1], %r9;";
    breaks(
        Rule::OverwriteInFlight,
        &(copy("", destination) + end),
        64,
        "st.shared.u32",
        start,
    );
    let source = "mov.u32 %r9, 1;\nst.global.u32 [%d3], %r9;";
    breaks(
        Rule::OverwriteInFlight,
        &(copy("", source) + end),
        64,
        "st.global.u32 [%d3]",
        start,
    );
    clean(&copy("cp.async.wait_all;", source), 64);
    // Reading the source is harmless.
    clean(&(copy("", "ld.global.u32 %r9, [%d3];") + end), 64);
    // A copy to a tile that others still read.
    let body = |between: &str| {
        let load = copy(
            "cp.async.wait_all;\nbar.sync 0;",
            "ld.shared.u32 %r9, [%r2];",
        );
        format!(
            "{load}\n{between}\ncp.async.ca.shared.global [%r1], [%d3], 16;\ncp.async.wait_all;{STORE}"
        )
    };
    breaks(
        Rule::Race,
        &body(""),
        64,
        "cp.async.ca.shared",
        Some("ld.shared.u32 %r9"),
    );
    clean(&body("bar.sync 0;"), 64);
    // Two copies to one place.
    let twice = copy(
        "cp.async.ca.shared.global [%r1], [%d3], 16;\ncp.async.wait_all;",
        "",
    );
    breaks(
        Rule::OverwriteInFlight,
        &twice,
        64,
        "cp.async.ca.shared",
        start,
    );
}

#[test]
fn what_ends_a_launch_is_a_finding_too() {
    for (rule, body, at) in [
        (
            Rule::OutOfBounds,
            "ld.shared.u32 %r1, [s+2048];",
            "ld.shared.u32 %r1",
        ),
        (
            Rule::Misaligned,
            "ld.shared.u32 %r1, [s+2];",
            "ld.shared.u32 %r1",
        ),
        (
            Rule::NullPointer,
            "mov.u64 %d5, 0;\nld.global.u32 %r1, [%d5];",
            "ld.global.u32",
        ),
        (Rule::Barrier, "bar.sync 0, 33;", "bar.sync 0, 33"),
        (
            Rule::Deadlock,
            "setp.ge.u32 %p1, %r0, 32;\n@%p1 bra E;\nbar.sync 1, 64;\nE:",
            "bar.sync 1, 64",
        ),
        (Rule::Trap, "trap;", "trap"),
        (
            Rule::Divergence,
            "setp.eq.u32 %p1, %r0, 0;\n@%p1 bar.sync 0;",
            "@%p1 bar.sync",
        ),
        (Rule::InstructionLimit, "L: bra.uni L;", "L: bra.uni L"),
    ] {
        let block = if rule == Rule::Deadlock { 64 } else { 32 };
        breaks(rule, body, block, at, None);
    }
    let report = findings_of(
        "",
        "setp.eq.u32 %p1, %r0, 0;\n@%p1 bra.uni E;\nmov.u32 %r1, 1;\nE:",
        1,
        32,
    );
    assert_eq!(report.findings[0].rule, Rule::Divergence);
    let body = "mov.u32 %r9, 0;\nsetp.lt.u32 %p1, %r0, 16;\n@!%p1 bra E;\nshfl.sync.idx.b32 %r9, %r0, 20, 31, 0xffff;\nE:";
    let report = findings_of("", body, 1, 32);
    assert_eq!(report.findings[0].rule, Rule::InactiveLane);
}

#[test]
fn a_finding_shows_both_lines_and_their_source() {
    let body = ".loc 1 40 5\nst.shared.u32 [s], %r0;\n.loc 1 41 9, function_name $f, inlined_at 2 7 3\n\
        ld.shared.u32 %r9, [s];";
    let text = kernel(
        &format!(".file 1 \"src/tile.rs\"\n.file 2 \"src/kernel.rs\"\n{SHARED}"),
        &format!("{body}{STORE}"),
    );
    let run = Run::new(options());
    let Err(LaunchError::Findings(report)) = run.launch(&text, 1, 2, 0) else {
        panic!("two threads write one word");
    };
    let race = report
        .findings
        .iter()
        .find(|f| f.site.instruction.starts_with("ld.shared"))
        .unwrap();
    assert_eq!(
        race.site.source,
        ["src/tile.rs:41", "called from src/kernel.rs:7"]
    );
    let (what, other) = race.other.as_ref().unwrap();
    assert_eq!(
        (what.as_str(), &other.source[..]),
        ("written", &["src/tile.rs:40".to_owned()][..])
    );
    let text = report.to_string();
    for part in [
        "> ",
        "st.shared.u32 [s], %r0;",
        "src/tile.rs:41",
        "rule: ",
        "thread (1,0,0)",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(report.summary().lines().count() == 1);
}

#[test]
fn every_schedule_finds_the_same() {
    let bad = format!("{WORDS}st.shared.u32 [%r1], %r0;\nld.shared.u32 %r9, [%r2];{STORE}");
    let good = bad.replace("ld.shared", "bar.sync 0;\nld.shared");
    let mut first = None;
    for seed in 0..8 {
        for share in [1, 7, 1000] {
            let options = Options {
                schedule: Schedule::Seeded { seed, share },
                block_order: [BlockOrder::Seeded(seed), BlockOrder::Reversed][seed as usize % 2],
                ..options()
            };
            let run = Run::new(options.clone());
            let Err(LaunchError::Findings(found)) = run.launch(&kernel(SHARED, &bad), 3, 64, 0)
            else {
                panic!("a race");
            };
            assert!(found.findings.iter().any(|f| f.rule == Rule::Race));
            let run = Run::new(options);
            // Blocks write the same words: each must be alone for there to be no race between them.
            run.launch(&kernel(SHARED, &good), 1, 64, 0).unwrap();
            let result = run.get(0, 64);
            assert_eq!(*first.get_or_insert(result.clone()), result);
        }
    }
}

#[test]
fn blocks_in_any_order_and_alone() {
    let body = "mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %ntid.x;\nmad.lo.u32 %r0, %r1, %r2, %r0;\nmov.u32 %r9, %r1;";
    let text = kernel("", &format!("{body}{STORE}"));
    let launch = |order| {
        let run = Run::new(Options {
            block_order: order,
            ..options()
        });
        (run.launch(&text, 6, 4, 0), run.get(0, 24))
    };
    let want: Vec<u32> = (0..24).map(|n| n / 4).collect();
    for order in [
        BlockOrder::Ascending,
        BlockOrder::Reversed,
        BlockOrder::Seeded(5),
        BlockOrder::Seeded(u64::MAX),
    ] {
        let (stats, out) = launch(order);
        assert_eq!((stats.unwrap().blocks, out), (6, want.clone()));
    }
    let (stats, out) = launch(BlockOrder::Only(2));
    assert_eq!(stats.unwrap().blocks, 1);
    assert_eq!(out[8..12], [2; 4]);
    assert_eq!(out[12..], [0; 12]);
    assert!(launch(BlockOrder::Only(6)).0.is_err());
}

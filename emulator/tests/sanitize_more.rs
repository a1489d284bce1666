//! More of what the sanitizer finds, and of what it must not: the corners.

#[path = "common/broken.rs"]
mod broken;
mod common;

use std::time::{Duration, Instant};

use broken::{SHARED, WORDS, clean, findings_of, rules};
use common::STORE;
use flashtile_emulator::Rule;

#[test]
fn every_strong_write_counts() {
    // All threads of a warp count, the last one reads the sum at once: it is ordered after its own update only.
    let body = |read: &str| {
        format!(
            "{WORDS}setp.eq.u32 %p1, %r0, 0;\n@%p1 st.shared.u32 [%r5], 0;\nbar.sync 0;\nmov.u32 %r9, 0;
             red.shared.add.u32 [%r5], 1;\nsetp.eq.u32 %p2, %r0, 31;\n@%p2 {read} %r9, [%r5];{STORE}"
        )
    };
    assert_eq!(rules(&body("ld.shared.u32"), 32), [Rule::Race]);
    clean(&body("ld.relaxed.cta.shared.u32"), 32);
}

#[test]
fn the_byte_that_conflicts_is_named() {
    for (space, base) in [("shared", "%d8"), ("global", "%d0")] {
        let body = format!(
            "mov.u64 %d8, s;\nmov.u32 %r9, 0;\nsetp.eq.u32 %p1, %r0, 0;\nmov.u16 %h1, 1;
             @%p1 st.{space}.u16 [{base}+6], %h1;\nsetp.eq.u32 %p2, %r0, 1;\n@%p2 ld.{space}.u64 %d5, [{base}];"
        );
        let report = findings_of(SHARED, &body, 1, 32);
        let message = &report.findings[0].message;
        let address = message
            .split("byte 0x")
            .nth(1)
            .unwrap()
            .split(',')
            .next()
            .unwrap();
        assert_eq!(
            u64::from_str_radix(address, 16).unwrap() % 256,
            6,
            "{message}"
        );
    }
}

#[test]
fn many_readers_of_one_word() {
    // Two of each warp are remembered: whoever writes next is a stranger to one of them.
    let body = |between: &str, writer: u32| {
        format!(
            "{WORDS}setp.eq.u32 %p1, %r0, {writer};\n@%p1 st.shared.u32 [%r5], 0;\nbar.sync 0;
             ld.shared.u32 %r9, [%r5];\n{between}\n@%p1 st.shared.u32 [%r5], 1;{STORE}"
        )
    };
    for writer in [0, 1, 33, 511, 1023] {
        for between in ["", "bar.warp.sync -1;"] {
            assert_eq!(rules(&body(between, writer), 1024)[0], Rule::Race);
        }
        clean(&body("bar.sync 0;", writer), 1024);
    }
}

#[test]
fn an_mbarrier_has_one_name() {
    // Made by its shared address, used by its generic one.
    let body = |wait: &str| {
        format!(
            "{WORDS}mov.u32 %r8, m;\ncvta.shared.u64 %d8, m;\nsetp.eq.u32 %p1, %r0, 0;
             @%p1 mbarrier.init.shared.b64 [%r8], 64;\nbar.sync 0;\nst.shared.u32 [%r1], %r0;
             mbarrier.arrive.b64 %d5, [%d8];\n{wait}\nld.shared.u32 %r9, [%r2];{STORE}"
        )
    };
    clean(
        &body("W: mbarrier.test_wait.shared.b64 %p2, [%r8], %d5;\n@!%p2 bra W;"),
        64,
    );
    assert!(rules(&body(""), 64).contains(&Rule::Race));
}

#[test]
fn relaxed_mbarrier_operations_order_nothing() {
    let body = |arrive: &str, wait: &str, [before, after]: [&str; 2]| {
        format!(
            "{WORDS}mov.u32 %r8, m;\nsetp.eq.u32 %p1, %r0, 0;\n@%p1 mbarrier.init.shared.b64 [%r8], 64;\nbar.sync 0;
             st.shared.u32 [%r1], %r0;\n{before}\nmbarrier.arrive{arrive}.shared.b64 %d5, [%r8];
             W: mbarrier.test_wait{wait}.shared.b64 %p2, [%r8], %d5;\n@!%p2 bra W;\n{after}
             ld.shared.u32 %r9, [%r2];{STORE}"
        )
    };
    let fence = "fence.acq_rel.cta;";
    clean(&body("", "", ["", ""]), 64);
    clean(&body(".release.cta", ".acquire.cta", ["", ""]), 64);
    clean(&body(".relaxed.cta", "", [fence, ""]), 64);
    clean(&body("", ".relaxed.cta", ["", fence]), 64);
    clean(&body(".relaxed.cta", ".relaxed.cta", [fence, fence]), 64);
    for (arrive, wait, fences) in [
        (".relaxed.cta", "", ["", ""]),
        ("", ".relaxed.cta", ["", ""]),
        (".relaxed.cta", ".relaxed.cta", ["", fence]),
        (".relaxed.cta", ".relaxed.cta", [fence, ""]),
    ] {
        let found = rules(&body(arrive, wait, fences), 64);
        assert!(found.contains(&Rule::Race), "{arrive} {wait} {fences:?}");
    }
}

#[test]
fn a_phase_may_end_with_its_bytes() {
    // The last thing that the phase waits for is the transaction count, whichever warp comes last.
    let body = |last: u32| {
        format!(
            "{WORDS}mov.u32 %r8, m;\nsetp.eq.u32 %p1, %r0, 0;\n@%p1 mbarrier.init.shared.b64 [%r8], 64;
             @%p1 mbarrier.expect_tx.relaxed.cta.shared.b64 [%r8], 16;\nbar.sync 0;\nst.shared.u32 [%r1], %r0;
             mbarrier.arrive.shared.b64 %d5, [%r8];\nsetp.eq.u32 %p3, %r0, {last};
             @%p3 mbarrier.complete_tx.relaxed.cta.shared.b64 [%r8], 16;
             W: mbarrier.test_wait.shared.b64 %p2, [%r8], %d5;\n@!%p2 bra W;\nld.shared.u32 %r9, [%r2];{STORE}"
        )
    };
    clean(&body(0), 64);
    clean(&body(32), 64);
}

#[test]
fn mbarrier_operands_and_misuse() {
    let body = |rest: &str| {
        format!(
            "mov.u32 %r8, m;\nsetp.eq.u32 %p1, %r0, 0;\n@%p1 mbarrier.init.shared.b64 [%r8], 32;\nbar.sync 0;\n{rest}"
        )
    };
    assert_eq!(
        rules(
            &body("mbarrier.test_wait.parity.shared.b64 %p2, [%r8], %r50;"),
            32
        ),
        [Rule::UninitializedAddress]
    );
    assert_eq!(
        rules(
            &body("mbarrier.arrive.noComplete.shared.b64 %d5, [%r8], 1;"),
            32
        ),
        [Rule::Mbarrier]
    );
    clean(
        &body(
            "setp.ne.u32 %p3, %r0, 3;\n@%p3 mbarrier.arrive.noComplete.shared.b64 %d5, [%r8], 1;",
        ),
        32,
    );
    assert_eq!(
        rules(&body("@%p1 mbarrier.init.shared.b64 [%r8], 32;"), 32),
        [Rule::Mbarrier]
    );
    clean(
        &body("@%p1 mbarrier.inval.shared.b64 [%r8];\n@%p1 mbarrier.init.shared.b64 [%r8], 32;"),
        32,
    );
    // A state that is looked at is a value like any other.
    clean(
        &body(&format!(
            "mbarrier.arrive.shared.b64 %d5, [%r8];\n@%p1 mov.u32 %r9, 1;\nmbarrier.pending_count.b64 %r9, %d5;{STORE}"
        )),
        32,
    );
    assert_eq!(
        rules(&format!("mbarrier.pending_count.b64 %r9, %d30;{STORE}"), 32),
        [Rule::UninitializedStore]
    );
}

/// Thread t copies 16 bytes from b[t] to s[t].
const COPY: &str =
    "mov.u32 %r5, s;\nshl.b32 %r4, %r0, 4;\nadd.u32 %r1, %r5, %r4;\nmul.wide.u32 %d3, %r0, 16;
add.s64 %d3, %d1, %d3;\nxor.b32 %r2, %r0, 32;\nshl.b32 %r2, %r2, 4;\nadd.u32 %r2, %r2, %r5;
mov.u32 %r8, m;\nsetp.eq.u32 %p1, %r0, 0;\n@%p1 mbarrier.init.shared.b64 [%r8], 64;\nbar.sync 0;
cp.async.cg.shared.global [%r1], [%d3], 16;\n";

#[test]
fn copies_that_an_mbarrier_waits_for() {
    let wait =
        "mov.u32 %r7, 0;\nW: mbarrier.test_wait.parity.shared.b64 %p2, [%r8], %r7;\n@!%p2 bra W;";
    let read = |from: &str| format!("ld.shared.u32 %r9, [{from}];{STORE}");
    let arrive = "cp.async.mbarrier.arrive.noinc.shared.b64 [%r8];";
    for from in ["%r1", "%r2"] {
        clean(&format!("{COPY}{arrive}\n{wait}\n{}", read(from)), 64);
        clean(
            &format!(
                "{COPY}cp.async.mbarrier.arrive.shared.b64 [%r8];\nmbarrier.arrive.shared.b64 _, [%r8];\n{wait}\n{}",
                read(from)
            ),
            64,
        );
    }
    // The arrival is not a wait: not even the thread's own copies are there.
    let found = rules(&format!("{COPY}{arrive}\n{}", read("%r1")), 64);
    assert!(found.contains(&Rule::ReadInFlight), "{found:?}");
    let overwrite = "st.shared.u32 [%r1], %r0;";
    let found = rules(&format!("{COPY}{arrive}\n{overwrite}\n{wait}"), 64);
    assert!(found.contains(&Rule::OverwriteInFlight), "{found:?}");
    // An ordinary wait covers them too.
    clean(
        &format!("{COPY}{arrive}\ncp.async.wait_all;\n{}", read("%r1")),
        64,
    );
}

#[test]
fn poison_has_the_width_of_its_register() {
    // 16-bit registers: what is shifted out is gone, and the sign fills.
    let used =
        |body: &str| format!("ld.shared.u16 %h2, [s+64];\n{body}\ncvt.u32.u16 %r9, %h1;{STORE}");
    let low = "mov.u16 %h4, 1;\nst.shared.u8 [s+64], %h4;\n";
    let load = |body: &str| {
        format!(
            "setp.eq.u32 %p1, %r0, 0;\n@!%p1 bra E;\n{low}ld.shared.u16 %h2, [s+64];\n{body}\nE:\n"
        )
    };
    // Byte 1 of %h2 was never written.
    clean(
        &load("shl.b16 %h1, %h2, 8;\nsetp.eq.u16 %p2, %h1, 5;\n@%p2 bra E;"),
        32,
    );
    assert_eq!(
        rules(
            &load(
                "shr.s16 %h1, %h2, 8;\nand.b16 %h1, %h1, 0xff00;\nsetp.eq.u16 %p2, %h1, 5;\n@%p2 bra E;"
            ),
            32
        ),
        [Rule::UninitializedBranch]
    );
    assert_eq!(
        rules(&used("add.u16 %h1, %h2, 1;"), 1),
        [Rule::UninitializedStore]
    );
    clean(
        &used("add.u16 %h3, %h2, 1;\nshr.u16 %h3, %h3, 8;\nand.b16 %h1, %h3, 0xff00;"),
        1,
    );
}

#[test]
fn masks_of_every_kind() {
    // %r50, %p19: never written.
    for discard in [
        "lop3.b32 %r9, %r50, 0, %r0, 0xea;",
        "lop3.b32 %r9, %r50, %r0, -1, 0xea;",
        "bfi.b32 %r1, %r0, %r50, 0, 16;\nand.b32 %r9, %r1, 0xffff;",
        "bfi.b32 %r9, %r0, %r50, 0, 32;",
        "and.b32 %r1, %r50, 0xffff;\nbfe.u32 %r9, %r1, 16, 8;",
        "setp.lt.u32 %p1, %r0, 99;\nor.pred %p2, %p1, %p19;\nselp.u32 %r9, 1, 2, %p2;",
        "setp.gt.u32 %p1, %r0, 99;\nand.pred %p2, %p19, %p1;\nselp.u32 %r9, 1, 2, %p2;",
        "setp.gt.u32 %p1, %r0, 99;\nsetp.eq.and.u32 %p2, %r50, 7, %p1;\nselp.u32 %r9, 1, 2, %p2;",
        "setp.lt.u32 %p1, %r0, 99;\nsetp.eq.or.u32 %p2, %r50, 7, %p1;\nselp.u32 %r9, 1, 2, %p2;",
    ] {
        let report = findings_of(SHARED, &format!("{discard}{STORE}"), 1, 32);
        assert!(report.findings.is_empty(), "{discard}\n{report}");
    }
    for used in [
        "lop3.b32 %r9, %r50, 1, %r0, 0xea;",
        "bfi.b32 %r9, %r50, %r0, 0, 16;",
        "bfi.b32 %r9, %r0, %r50, 0, 16;",
        "and.b32 %r1, %r50, 0xffff;\nbfe.u32 %r9, %r1, 8, 8;",
        "and.b32 %r1, %r50, 0xff00;\nbfe.s32 %r9, %r1, 8, 8;\nand.b32 %r9, %r9, 0xff0000;",
        "setp.lt.u32 %p1, %r0, 99;\nand.pred %p2, %p1, %p19;\nselp.u32 %r9, 1, 2, %p2;",
        "setp.gt.u32 %p1, %r0, 99;\nsetp.eq.or.u32 %p2, %r50, 7, %p1;\nselp.u32 %r9, 1, 2, %p2;",
    ] {
        let report = findings_of(SHARED, &format!("{used}{STORE}"), 1, 32);
        assert!(!report.findings.is_empty(), "{used}");
    }
}

#[test]
fn operands_that_steer() {
    for body in [
        "vote.sync.ballot.b32 %r9, %p0, %r50;",
        "redux.sync.add.u32 %r9, %r0, %r50;",
        "bar.warp.sync %r50;",
    ] {
        let body = format!("setp.eq.u32 %p0, %r0, 0;\n{body}");
        assert!(
            rules(&body, 32).contains(&Rule::UninitializedAddress),
            "{body}"
        );
    }
    let copy = "cp.async.ca.shared.global [s], [%d1], 16, %p19;\ncp.async.wait_all;";
    assert_eq!(rules(copy, 1), [Rule::UninitializedAddress]);
    assert_eq!(
        rules("red.global.add.u32 [%d0], %r50;", 1),
        [Rule::UninitializedStore]
    );
    let table = "setp.eq.u32 %p1, %r0, 0;\nselp.u32 %r1, 0, 1, %p1;
        T: .branchtargets A, B;\nbrx.idx.uni %r1, T;\nA:\nB:";
    assert_eq!(rules(table, 32), [Rule::Divergence]);
}

#[test]
fn a_summary_names_the_other_block() {
    let report = findings_of(SHARED, "st.global.u32 [%d0], %r0;", 2, 1);
    let text = report.summary();
    assert!(
        text.contains("race: block (1,0,0) thread (0,0,0)"),
        "{text}"
    );
    assert!(
        text.contains("written by block (0,0,0) thread (0,0,0)"),
        "{text}"
    );
    let report = findings_of(SHARED, "st.shared.u32 [s], %r0;", 1, 2);
    let text = report.summary();
    assert!(
        text.contains("thread (1,0,0)") && text.contains("written by thread (0,0,0)"),
        "{text}"
    );
}

#[test]
fn registers_written_by_parts() {
    let odd = "and.b32 %r1, %r0, 1;\nsetp.eq.u32 %p1, %r1, 1;\n";
    for (body, block) in [
        // Two guards, one of which holds.
        (
            format!("{odd}@%p1 mov.u32 %r9, 1;\n@!%p1 mov.u32 %r9, 2;{STORE}"),
            48,
        ),
        (
            format!(
                "{odd}@%p1 bra A;\nmov.u64 %d5, 1;\nbra B;\nA: mov.u64 %d5, 2;\nB: cvt.u32.u64 %r9, %d5;{STORE}"
            ),
            33,
        ),
        // Halves of a word.
        (
            format!(
                "mov.u16 %h1, 1;\n{odd}@%p1 mov.u16 %h2, 2;\n@!%p1 mov.u16 %h2, 3;\nmov.b32 %r9, {{%h1, %h2}};{STORE}"
            ),
            32,
        ),
        // Written in the first round of a loop, read in later ones.
        (
            format!(
                "mov.u32 %r2, 0;\nL: setp.eq.u32 %p2, %r2, 0;\n@%p2 mov.u32 %r3, 5;\nadd.u32 %r9, %r3, 1;
                 add.u32 %r2, %r2, 1;\nsetp.lt.u32 %p3, %r2, 3;\n@%p3 bra L;{STORE}"
            ),
            32,
        ),
        // Carried through a barrier's result, a shuffle and a vote.
        (
            format!(
                "{odd}@%p1 mov.u32 %r2, 5;\n@!%p1 mov.u32 %r2, 6;\nshfl.sync.bfly.b32 %r3|%p4, %r2, 1, 31, -1;
                 bar.red.popc.u32 %r9, 0, %p1;\nadd.u32 %r9, %r9, %r3;{STORE}"
            ),
            64,
        ),
    ] {
        clean(&body, block);
    }
    let report = findings_of(SHARED, &format!("{odd}@%p1 mov.u32 %r9, 1;{STORE}"), 1, 48);
    assert_eq!(report.findings.len(), 1);
    assert_eq!(
        (report.findings[0].rule, report.findings[0].count),
        (Rule::UninitializedStore, 24)
    );
}

#[test]
fn partial_warps_and_full_blocks() {
    for block in [1, 33, 48, 100, 1023, 1024] {
        let body = |between: &str| {
            format!(
                "{WORDS}mov.u32 %r6, %ntid.x;\nsub.u32 %r6, %r6, %r0;\nsub.u32 %r6, %r6, 1;\nand.b32 %r7, %r0, 511;
                 setp.ge.u32 %p1, %r0, 512;\n@%p1 bra SKIP;\nst.shared.u32 [%r1], %r0;\nSKIP:\n{between}
                 setp.ge.u32 %p2, %r6, 512;\nmov.u32 %r9, 0;\n@%p2 bra END;\nshl.b32 %r6, %r6, 2;
                 add.u32 %r6, %r6, %r5;\nld.shared.u32 %r9, [%r6];\nEND:{STORE}"
            )
        };
        clean(&body("bar.sync 0;"), block);
        let found = findings_of(SHARED, &body(""), 1, block).findings;
        assert!(
            found.iter().any(|f| f.rule == Rule::Race) || block == 1,
            "{block}"
        );
    }
}

#[test]
fn many_blocks_and_many_words() {
    // 2000 blocks that take tickets with a fence: what each knows of the others must not take the square of them.
    let ticket =
        "fence.acq_rel.gpu;\nsetp.eq.u32 %p1, %r0, 0;\n@%p1 atom.global.add.u32 %r4, [%d1], 1;
        fence.acq_rel.gpu;\nbar.sync 0;";
    let start = Instant::now();
    let report = findings_of(SHARED, ticket, 2000, 64);
    assert!(report.findings.is_empty(), "{report}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

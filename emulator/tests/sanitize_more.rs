//! More of what the sanitizer finds, and of what it must not: the corners.

mod common;

use std::time::{Duration, Instant};

use common::{Run, STORE, kernel};
use flashtile_emulator::{AsyncTiming, BlockOrder, LaunchError, Options, Report, Rule, Schedule};

const SHARED: &str = ".shared .align 16 .b8 s[2048];\n.shared .align 8 .b64 m[4];";

/// `%r1`: shared address of the thread's word; `%r2`: of its neighbour's (thread xor 32); `%r5`: of the first word.
const WORDS: &str =
    "mov.u32 %r5, s;\nshl.b32 %r4, %r0, 2;\nadd.u32 %r1, %r5, %r4;\nxor.b32 %r2, %r0, 32;
shl.b32 %r2, %r2, 2;\nadd.u32 %r2, %r2, %r5;\n";

fn findings(body: &str, grid: u32, block: u32) -> Report {
    let run = Run::new(Options {
        sanitize: true,
        max_instructions: Some(100_000),
        ..Options::default()
    });
    match run.launch(&kernel(SHARED, body), grid, block, 0) {
        Ok(_) => Report::default(),
        Err(LaunchError::Findings(report)) => *report,
        Err(other) => panic!("{other}"),
    }
}

/// The rules that a block of that many threads breaks.
fn rules(body: &str, block: u32) -> Vec<Rule> {
    let report = findings(body, 1, block);
    report.findings.iter().map(|f| f.rule).collect()
}

#[track_caller]
fn clean(body: &str, block: u32) {
    let report = findings(body, 1, block);
    assert!(report.findings.is_empty(), "{report}");
}

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
        let report = findings(&body, 1, 32);
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
        let report = findings(&format!("{discard}{STORE}"), 1, 32);
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
        let report = findings(&format!("{used}{STORE}"), 1, 32);
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

/// Runs a correct kernel in several orders: nothing is found, and the result is always the same.
#[track_caller]
fn clean_in_any_order(body: &str, grid: u32, block: u32) -> Vec<u32> {
    let mut first = None;
    for seed in 0..12 {
        let schedule = match seed {
            0 => Schedule::InOrder,
            seed => Schedule::Seeded {
                seed,
                share: [1, 3, 50][seed as usize % 3],
            },
        };
        let timings = [
            AsyncTiming::Late,
            AsyncTiming::Early,
            AsyncTiming::Seeded(seed),
        ];
        let run = Run::new(Options {
            sanitize: true,
            max_instructions: Some(1_000_000),
            schedule,
            block_order: [
                BlockOrder::Ascending,
                BlockOrder::Reversed,
                BlockOrder::Seeded(seed),
            ][seed as usize % 3],
            async_copies: timings[seed as usize % 3],
            ..Options::default()
        });
        run.put(1, &(0..1024).map(|n| n * 3).collect::<Vec<_>>());
        if let Err(found) = run.launch(&kernel(SHARED, body), grid, block, 0) {
            panic!("seed {seed}: {found}");
        }
        let result = run.get(0, 256);
        assert_eq!(*first.get_or_insert(result.clone()), result, "seed {seed}");
    }
    first.unwrap_or_default()
}

/// Two warps: the first fills two tiles in turn, the second sums up what it finds.
fn pipeline(start: &str, [full, empty]: [&str; 2], [filled, emptied]: [&str; 2]) -> String {
    format!(
        "{WORDS}{start}\nand.b32 %r20, %r0, 31;\nshl.b32 %r21, %r20, 2;\nadd.u32 %r21, %r21, %r5;\nmov.u32 %r9, 0;
         mov.u32 %r10, 0;\nsetp.ge.u32 %p1, %r0, 32;\n@%p1 bra CONSUMER;
         PRODUCER:\nand.b32 %r11, %r10, 1;\nshr.u32 %r12, %r10, 1;\nand.b32 %r12, %r12, 1;
         xor.b32 %r13, %r12, 1;\nmad.lo.u32 %r14, %r11, 8, %r8;\nshl.b32 %r15, %r11, 7;\nadd.u32 %r15, %r15, %r21;
         setp.lt.u32 %p2, %r10, 2;\n{empty}\nadd.u32 %r16, %r10, %r20;\nst.shared.u32 [%r15], %r16;\n{filled}
         add.u32 %r10, %r10, 1;\nsetp.lt.u32 %p3, %r10, 9;\n@%p3 bra PRODUCER;\nbra.uni END;
         CONSUMER:\nand.b32 %r11, %r10, 1;\nshr.u32 %r12, %r10, 1;\nand.b32 %r12, %r12, 1;
         mad.lo.u32 %r14, %r11, 8, %r8;\nshl.b32 %r15, %r11, 7;\nadd.u32 %r15, %r15, %r21;
         xor.b32 %r17, %r15, 4;\n{full}\nld.shared.u32 %r18, [%r17];\nadd.u32 %r9, %r9, %r18;\n{emptied}
         add.u32 %r10, %r10, 1;\nsetp.lt.u32 %p3, %r10, 9;\n@%p3 bra CONSUMER;\nEND:{STORE}"
    )
}

#[test]
fn pipelines() {
    let want: Vec<u32> = (0..32)
        .map(|lane: u32| (0..9).map(|n| (lane ^ 1) + n).sum())
        .collect();
    // Named barriers 2 and 3: full; 4 and 5: empty, where the first two rounds need no wait.
    let ids = "mov.u32 %r8, 0;";
    let named = [
        [
            "add.u32 %r19, %r11, 2;\nbar.sync %r19, 64;",
            "add.u32 %r19, %r11, 4;\n@%p2 bra GO;\nbar.sync %r19, 64;\nGO:",
        ],
        [
            "add.u32 %r19, %r11, 2;\nbar.arrive %r19, 64;",
            "add.u32 %r19, %r11, 4;\nsetp.ge.u32 %p4, %r10, 7;\n@%p4 bra LAST;\nbar.arrive %r19, 64;\nLAST:",
        ],
    ];
    let result = clean_in_any_order(&pipeline(ids, named[0], named[1]), 1, 64);
    assert_eq!(result[32..64], want);
    // Without the wait for the tile to be empty: the producer's arrivals are taken for the consumer's.
    let hasty = pipeline(ids, [named[0][0], ""], [named[1][0], ""]);
    assert_eq!(rules(&hasty, 64), [Rule::Deadlock]);
    // mbarriers m[0], m[1]: full; m[2], m[3]: empty; the parity of the round.
    let make = "mov.u32 %r8, m;\nsetp.eq.u32 %p1, %r0, 0;\n@!%p1 bra MADE;\nmbarrier.init.shared.b64 [%r8], 32;
        mbarrier.init.shared.b64 [%r8+8], 32;\nmbarrier.init.shared.b64 [%r8+16], 32;
        mbarrier.init.shared.b64 [%r8+24], 32;\nMADE:\nbar.sync 0;";
    let full = "F: mbarrier.try_wait.parity.shared.b64 %p5, [%r14], %r12;\n@!%p5 bra F;";
    let empty = "E: mbarrier.try_wait.parity.shared.b64 %p5, [%r14+16], %r13;\n@!%p5 bra E;";
    let filled = "mbarrier.arrive.shared.b64 _, [%r14];";
    let emptied = "mbarrier.arrive.shared.b64 _, [%r14+16];";
    let result = clean_in_any_order(&pipeline(make, [full, empty], [filled, emptied]), 1, 64);
    assert_eq!(result[32..64], want);
    for (waits, parity) in [([full, ""], 0), (["", empty], 0), ([full, empty], 1)] {
        let mut body = pipeline(make, waits, [filled, emptied]);
        if parity == 1 {
            // The producer's parity is the consumer's: it waits for what is yet to come, or for nothing.
            body = body.replace("[%r14+16], %r13", "[%r14+16], %r12");
        }
        assert!(!rules(&body, 64).is_empty(), "{waits:?}");
    }
    // One lane of each warp arrives for all, after the warp has met.
    let make = make.replace("], 32;", "], 1;");
    let one =
        |meet: &str, arrive: &str| format!("{meet}\nsetp.eq.u32 %p6, %r20, 0;\n@%p6 {arrive}");
    let meet = "bar.warp.sync -1;";
    let good = [one(meet, filled), one(meet, emptied)];
    clean_in_any_order(&pipeline(&make, [full, empty], [&good[0], &good[1]]), 1, 64);
    for meets in [["", meet], [meet, ""]] {
        let bad = [one(meets[0], filled), one(meets[1], emptied)];
        let found = rules(&pipeline(&make, [full, empty], [&bad[0], &bad[1]]), 64);
        assert!(found.contains(&Rule::Race), "{meets:?} {found:?}");
    }
}

#[test]
fn blocks_hand_over_by_tickets() {
    // Each block writes its word; the last one to take a ticket adds them up, all of its threads.
    let body = |[release, acquire, meet]: [&str; 3]| {
        format!(
            ".shared .align 4 .u32 t;\nmov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %nctaid.x;\nmov.u32 %r9, 0;
             mad.lo.u32 %r3, %r1, 64, %r0;\nmul.wide.u32 %d3, %r3, 4;\nadd.s64 %d3, %d2, %d3;\nst.global.u32 [%d3], %r3;
             {meet}\nsetp.ne.u32 %p1, %r0, 0;\n@%p1 bra WAIT;\n{release}\natom.global.add.u32 %r4, [%d1], 1;\n{acquire}
             st.shared.u32 [t], %r4;\nWAIT:\nbar.sync 0;\nld.shared.u32 %r4, [t];\nsub.u32 %r5, %r2, 1;
             setp.ne.u32 %p2, %r4, %r5;\n@%p2 ret;\nmul.wide.u32 %d4, %r0, 4;\nadd.s64 %d4, %d2, %d4;
             LOOP: ld.global.u32 %r6, [%d4];\nadd.u32 %r9, %r9, %r6;\nadd.s64 %d4, %d4, 256;\nsub.u32 %r2, %r2, 1;
             setp.ne.u32 %p3, %r2, 0;\n@%p3 bra LOOP;{STORE}"
        )
        .replace("atom.global.add.u32 %r4, [%d1], 1", "atom.global.inc.u32 %r4, [%d1], 1000000000")
    };
    let body = |parts| body(parts).replace("[%d1]", "[%d1+4092]");
    let fence = "fence.acq_rel.gpu;";
    let found = |parts| {
        let report = findings(&body(parts), 5, 64);
        report.findings.iter().map(|f| f.rule).collect::<Vec<_>>()
    };
    let good = found([fence, fence, "bar.sync 0;"]);
    assert!(good.is_empty(), "{good:?}");
    for parts in [
        ["", fence, "bar.sync 0;"],
        [fence, "", "bar.sync 0;"],
        [fence, fence, ""],
    ] {
        assert!(found(parts).contains(&Rule::Race), "{parts:?}");
    }
}

#[test]
fn a_summary_names_the_other_block() {
    let report = findings("st.global.u32 [%d0], %r0;", 2, 1);
    let text = report.summary();
    assert!(
        text.contains("race: block (1,0,0) thread (0,0,0)"),
        "{text}"
    );
    assert!(
        text.contains("written by block (0,0,0) thread (0,0,0)"),
        "{text}"
    );
    let report = findings("st.shared.u32 [s], %r0;", 1, 2);
    let text = report.summary();
    assert!(
        text.contains("thread (1,0,0)") && text.contains("written by thread (0,0,0)"),
        "{text}"
    );
}

#[test]
fn locks() {
    // Every warp's first thread adds to a word under a lock.
    let body = |take: &str, leave: &str| {
        format!(
            "{WORDS}setp.eq.u32 %p1, %r0, 0;\n@%p1 st.shared.u32 [%r5], 0;\n@%p1 st.shared.u32 [%r5+64], 0;\nbar.sync 0;
             and.b32 %r6, %r0, 31;\nsetp.ne.u32 %p2, %r6, 0;\n@%p2 bra END;\nTAKE: {take}\nsetp.ne.u32 %p3, %r7, 0;
             @%p3 bra TAKE;\nld.shared.u32 %r8, [%r5];\nadd.u32 %r8, %r8, 1;\nst.shared.u32 [%r5], %r8;\n{leave}\nEND:
             bar.sync 0;\nld.shared.u32 %r9, [%r5];{STORE}"
        )
    };
    let result = clean_in_any_order(
        &body(
            "atom.acquire.cta.shared.cas.b32 %r7, [%r5+64], 0, 1;",
            "st.release.cta.shared.u32 [%r5+64], 0;",
        ),
        1,
        128,
    );
    assert_eq!(result[..128], [4; 128]);
    clean_in_any_order(
        &body(
            "atom.relaxed.cta.shared.exch.b32 %r7, [%r5+64], 1;\nmembar.cta;",
            "membar.cta;\natom.shared.exch.b32 %r10, [%r5+64], 0;",
        ),
        1,
        128,
    );
    for (take, leave) in [
        (
            "atom.relaxed.cta.shared.cas.b32 %r7, [%r5+64], 0, 1;",
            "st.release.cta.shared.u32 [%r5+64], 0;",
        ),
        (
            "atom.acquire.cta.shared.cas.b32 %r7, [%r5+64], 0, 1;",
            "st.relaxed.cta.shared.u32 [%r5+64], 0;",
        ),
        ("mov.u32 %r7, 0;", ""),
    ] {
        assert!(
            rules(&body(take, leave), 128).contains(&Rule::Race),
            "{take} {leave}"
        );
    }
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
    let report = findings(&format!("{odd}@%p1 mov.u32 %r9, 1;{STORE}"), 1, 48);
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
        let found = findings(&body(""), 1, block).findings;
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
    let report = findings(ticket, 2000, 64);
    assert!(report.findings.is_empty(), "{report}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

//! Kernels that hand over by mbarriers, tickets and locks: right in any order, and each broken in one line.

#[path = "common/broken.rs"]
mod broken;
mod common;

use broken::{SHARED, WORDS, findings_of, rules};
use common::{Run, STORE, kernel};
use flashtile_emulator::{AsyncTiming, BlockOrder, Options, Rule, Schedule};

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
        let report = findings_of(SHARED, &body(parts), 5, 64);
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

//! What the sanitizer finds in kernels for Hopper: one kernel that keeps all rules, and for every rule one that breaks it.

#[path = "common/changed.rs"]
mod changed;
mod common;
#[path = "common/pipeline.rs"]
mod pipeline;

use changed::{FIRST_LOAD, FIRST_PRODUCT, MODES, breaks, changed, report, sanitized};
use common::line_of;
use flashtile_emulator::{AsyncTiming, LaunchError, Options, Report, Rule, Schedule};
use pipeline::{pipeline, pipeline_of_two, run, run_blocks};

#[test]
fn a_pipeline_that_keeps_the_rules() {
    for (timing, schedule) in MODES {
        let report = report(&pipeline(), sanitized(timing, schedule));
        assert!(
            report.findings.is_empty(),
            "{timing:?} {schedule:?}\n{report}"
        );
        let plain = Options {
            sanitize: false,
            ..sanitized(timing, schedule)
        };
        run(&pipeline(), plain).unwrap();
    }
}

/// The consumers' wait, and the producer's.
const FULL: &str =
    "FULL: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r13], %r12;\n@!%p5 bra FULL;";
const EMPTY: &str =
    "EMPTY: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r13+16], %r14;\n@!%p5 bra EMPTY;";
#[test]
fn loads_and_their_waits() {
    // Reading what has not landed.
    breaks(
        &[Rule::ReadInFlight, Rule::Race],
        &[(FULL, "")],
        FIRST_PRODUCT,
        Some(FIRST_LOAD),
    );
    // A wait that is not repeated. (If it passes at once, all is well.)
    let once = changed(&[("@!%p5 bra FULL;", "")]);
    let found = report(&once, sanitized(AsyncTiming::Late, Schedule::InOrder));
    assert!(
        found.findings.iter().any(|f| f.rule == Rule::ReadInFlight),
        "{found}"
    );
    // One lane waits, the others don't.
    let one = [
        (
            "FULL: mbarrier",
            "and.b32 %r18, %r0, 31;\nsetp.ne.u32 %p9, %r18, 0;\n@%p9 bra OVER;\nFULL: mbarrier",
        ),
        ("//LANDED", "OVER:"),
    ];
    breaks(
        &[Rule::Race, Rule::ReadInFlight],
        &one,
        FIRST_PRODUCT,
        Some(FIRST_LOAD),
    );
    let synced = changed(&[one[0], ("//LANDED", "OVER: bar.warp.sync -1;")]);
    for (timing, schedule) in MODES {
        let report = report(&synced, sanitized(timing, schedule));
        assert!(report.findings.is_empty(), "{report}");
    }
    // Loading over what is still read: an arrival too many is seen first, or the bytes are.
    breaks(
        &[Rule::Mbarrier, Rule::OverwriteInFlight, Rule::Race],
        &[(EMPTY, "")],
        "mbarrier.arrive.expect_tx",
        None,
    );
    // The consumers free a stage before their products have read it.
    let early = [
        (
            "//ISSUED",
            "and.b32 %r18, %r0, 31;\nsetp.eq.u32 %p8, %r18, 0;\n@%p8 mbarrier.arrive.shared::cta.b64 _, [%r13+16];",
        ),
        (
            "//WAITED\nand.b32 %r18, %r0, 31;\nsetp.eq.u32 %p8, %r18, 0;\n@%p8 mbarrier.arrive.shared::cta.b64 _, [%r13+16];",
            "//WAITED",
        ),
    ];
    breaks(
        &[Rule::OverwriteInFlight, Rule::Race],
        &early,
        FIRST_LOAD,
        Some(FIRST_PRODUCT),
    );
    // Bytes that nobody waits for.
    let extra = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r13], 16;\n\
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2+36864], [%d5], 16, [%r13]; //EXTRA";
    let extra = extra.replace("[%d5]", "[%d6]");
    let tail = format!(
        "ld.param.u64 %d6, [out];\nadd.s64 %d6, %d6, 0;\nEMPTY2: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r13+16], %r12;\n@!%p5 bra EMPTY2;\n{extra}"
    );
    let text = changed(&[("//TAIL", &tail)]);
    for (timing, schedule) in MODES {
        let report = report(&text, sanitized(timing, schedule));
        let found = report
            .findings
            .iter()
            .find(|f| f.rule == Rule::ExitInFlight);
        let found = found.unwrap_or_else(|| panic!("{report}"));
        assert_eq!(
            found.other.as_ref().unwrap().1.line,
            line_of(&text, "//EXTRA")
        );
    }
}

#[test]
fn transaction_counts() {
    for (bytes, words) in [
        ("16400", "16 are missing"),
        ("16368", "16 bytes more than expected"),
    ] {
        let text = changed(&[("16384;", &format!("{bytes};"))]);
        for (timing, schedule) in MODES {
            let report = report(&text, sanitized(timing, schedule));
            let found = report
                .findings
                .iter()
                .any(|f| f.rule == Rule::Deadlock && f.message.contains(words));
            assert!(found, "{report}");
        }
    }
    // Nothing is expected: the phase ends before the bytes come.
    let none = (
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r13], 16384;",
        "mbarrier.arrive.shared::cta.b64 _, [%r13];",
    );
    breaks(
        &[Rule::ReadInFlight],
        &[none],
        FIRST_PRODUCT,
        Some(FIRST_LOAD),
    );
}

#[test]
fn mbarriers() {
    breaks(
        &[Rule::ProxyFence],
        &[("fence.mbarrier_init.release.cluster;", "")],
        FIRST_LOAD,
        Some("mbarrier.init.shared::cta.b64 [%r1], 1"),
    );
    // A fence of the async proxy will do.
    let other = changed(&[(
        "fence.mbarrier_init.release.cluster;",
        "fence.proxy.async.shared::cta;",
    )]);
    let report = report(&other, sanitized(AsyncTiming::Late, Schedule::InOrder));
    assert!(report.findings.is_empty(), "{report}");
}

/// Consumers access a word of the stage they are about to multiply, or have multiplied.
#[test]
fn proxies() {
    let word = "mad.lo.u32 %r50, %r0, 4, %r15;";
    // A store to an operand before the product.
    let store =
        format!("{word}\nld.shared.b32 %r51, [%r50];\nst.shared.b32 [%r50], %r51; //WORD\n");
    let fenced = |fence: &str| format!("{store}{fence}\nbar.sync 1, 128;");
    let clean = |insert: &str, with: &str| {
        for (timing, schedule) in MODES {
            let report = report(&changed(&[(insert, with)]), sanitized(timing, schedule));
            assert!(
                report.findings.is_empty(),
                "{timing:?} {schedule:?}\n{report}"
            );
        }
    };
    clean("//BEFORE", &fenced("fence.proxy.async.shared::cta;"));
    clean("//BEFORE", &fenced("fence.proxy.async;"));
    let (rule, product) = ([Rule::ProxyFence], FIRST_PRODUCT);
    breaks(&rule, &[("//BEFORE", &fenced(""))], product, Some("//WORD"));
    breaks(
        &rule,
        &[("//BEFORE", &fenced("fence.proxy.async.global;"))],
        product,
        Some("//WORD"),
    );
    // A fence before the store does nothing for it.
    let late = format!("fence.proxy.async.shared::cta;\n{}", fenced(""));
    breaks(&rule, &[("//BEFORE", &late)], product, Some("//WORD"));
    // Fenced, but not ordered.
    let unordered = format!("{store}fence.proxy.async.shared::cta;");
    breaks(
        &[Rule::Race],
        &[("//BEFORE", &unordered)],
        product,
        Some("//WORD"),
    );
    // A load after the product, and the next load over it.
    let read = format!("{word}\nld.shared.b32 %r51, [%r50]; //WORD\n");
    let synced = |fence: &str| format!("{read}{fence}\nbar.warp.sync -1;");
    clean("//WAITED", &synced("fence.proxy.async.shared::cta;"));
    breaks(
        &rule,
        &[("//WAITED", &synced(""))],
        FIRST_LOAD,
        Some("//WORD"),
    );
}

#[test]
fn stores() {
    let store = "bulk_group [%d3";
    let last_word = "st.shared.b32 [%r31+1024]";
    breaks(
        &[Rule::ProxyFence],
        &[(
            "fence.proxy.async.shared::cta;\nbar.sync 1, 128;",
            "bar.sync 1, 128;",
        )],
        store,
        Some("st.shared.b32 [%r31+0]"),
    );
    breaks(
        &[Rule::Race],
        &[("bar.sync 1, 128;", "")],
        store,
        Some("st.shared.b32 [%r31+0]"),
    );
    // The source is used again before it has been read, or goes away.
    let again = "st.shared.b32 [%r32], 0; //AGAIN";
    breaks(
        &[Rule::OverwriteInFlight],
        &[("//STORED", again)],
        "//AGAIN",
        Some(store),
    );
    let text = changed(&[("//READ", again)]);
    let found = report(&text, sanitized(AsyncTiming::Late, Schedule::InOrder));
    assert!(found.findings.is_empty(), "{found}");
    let none = ("cp.async.bulk.wait_group.read 0;", "");
    breaks(&[Rule::ExitInFlight], &[none], "DONE: ret", Some(store));
    let commit = ("cp.async.bulk.commit_group;", "");
    breaks(&[Rule::ExitInFlight], &[commit], "DONE: ret", Some(store));
    // The result is read back: that needs a wait for all.
    let read = "ld.param.u64 %d7, [out];\nld.global.b32 %r33, [%d7]; //BACK";
    breaks(
        &[Rule::ReadInFlight],
        &[("//READ", read)],
        "//BACK",
        Some(store),
    );
    let full = (
        "cp.async.bulk.wait_group.read 0;",
        "cp.async.bulk.wait_group 0;",
    );
    let text = changed(&[("//READ", read), full]);
    let found = report(&text, sanitized(AsyncTiming::Late, Schedule::InOrder));
    assert!(found.findings.is_empty(), "{found}");
    // Part of what is stored was never written.
    let text = changed(&[(last_word, "@%p9 st.shared.b32 [%r31+1024]")]).replace(
        "READY: bar.sync 0;",
        "READY: bar.sync 0;\nsetp.ne.u32 %p9, %r0, 77;",
    );
    let found = report(&text, sanitized(AsyncTiming::Late, Schedule::InOrder));
    assert!(
        found
            .findings
            .iter()
            .any(|f| f.rule == Rule::UninitializedStore),
        "{found}"
    );
}

#[test]
fn multicast_in_a_cluster() {
    let found =
        |text: &str, timing, schedule| match run_blocks(text, sanitized(timing, schedule), 2) {
            Ok(()) => Report::default(),
            Err(LaunchError::Findings(report)) => *report,
            Err(other) => panic!("{other}"),
        };
    let text = pipeline_of_two();
    let broken = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    };
    // The other block does not free what this one's loads overwrite.
    let alone = broken(
        "@%p8 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r53+16];",
        "",
    )
    .replace("], 8;", "], 4;");
    // Nothing waits until the other block has made its mbarriers, or until it has done with this one's.
    let unready = broken(
        "READY: barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;",
        "READY: bar.sync 0;",
    );
    let gone = broken(
        "DONE: barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;",
        "DONE:",
    );
    for (timing, schedule) in MODES {
        let report = found(&text, timing, schedule);
        assert!(
            report.findings.is_empty(),
            "{timing:?} {schedule:?}\n{report}"
        );
        for (text, rules) in [
            (&alone, [Rule::Race, Rule::OverwriteInFlight]),
            (&unready, [Rule::Race, Rule::Mbarrier]),
            (&gone, [Rule::UseAfterFree, Rule::ExitInFlight]),
        ] {
            let report = found(text, timing, schedule);
            let hit = report.findings.iter().any(|f| rules.contains(&f.rule));
            assert!(hit, "{timing:?} {schedule:?} {rules:?}\n{report}");
        }
    }
}

/// The opcode of a line, after its label and guard.
fn opcode(line: &str) -> &str {
    let code = line.split_once(": ").map_or(line, |(_, code)| code);
    let code = code.trim_start_matches(['@', '!']);
    let code = match code.strip_prefix("%p") {
        Some(rest) => rest.split_once(' ').map_or("", |(_, code)| code),
        None => code,
    };
    code.split([' ', ';']).next().unwrap_or_default()
}

#[test]
fn nothing_that_orders_can_be_left_out() {
    let kinds = ["mbarrier.", "fence.", "bar.", "wgmma.", "cp.async."];
    let text = pipeline();
    let mut count = 0;
    for (n, line) in text.lines().enumerate() {
        if !kinds.iter().any(|kind| opcode(line).starts_with(kind)) {
            continue;
        }
        count += 1;
        let label = line
            .split_once(": ")
            .map_or(String::new(), |(label, _)| format!("{label}:"));
        let without: Vec<&str> = text
            .lines()
            .enumerate()
            .map(|(m, l)| if m == n { label.as_str() } else { l })
            .collect();
        let without = without.join("\n");
        let found = MODES.iter().any(|&(timing, schedule)| {
            let outcome = std::panic::catch_unwind(|| run(&without, sanitized(timing, schedule)));
            !matches!(outcome, Ok(Ok(())))
        });
        assert!(found, "line {}: {line}", n + 1);
    }
    assert!(count > 20, "{count}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(150))]

    /// Whatever becomes of the text, there is a result or an error, and no panic.
    #[test]
    fn broken_kernels_do_not_break_the_emulator(
        changes in proptest::collection::vec((0usize..3, 0usize..200, 0usize..200), 1..4),
        mode in 0usize..6,
        sanitize in proptest::prelude::any::<bool>(),
    ) {
        let text = pipeline();
        let mut lines: Vec<&str> = text.lines().collect();
        for (kind, a, b) in changes {
            // The body only.
            let (a, b) = (8 + a % (lines.len() - 10), 8 + b % (lines.len() - 10));
            match kind {
                0 => lines[a] = "",
                1 => lines.swap(a, b),
                _ => {
                    let line = lines[b];
                    lines.insert(a, line);
                }
            }
        }
        let (timing, schedule) = MODES[mode];
        let options = Options {
            sanitize,
            max_instructions: Some(1 << 15),
            ..sanitized(timing, schedule)
        };
        let broken = lines.join("\n");
        if let Err(panic) = std::panic::catch_unwind(|| run(&broken, options)) {
            let words = panic.downcast_ref::<&str>().copied().unwrap_or_default();
            proptest::prop_assert!(words == "the result is wrong", "{broken}");
        }
    }
}

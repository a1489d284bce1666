//! What is found in the pipeline when some of its lines are others.
#![allow(dead_code)]

use super::common::line_of;
use super::pipeline::{pipeline, run};
use flashtile_emulator::{AsyncTiming, LaunchError, Options, Report, Rule, Schedule};

pub fn sanitized(timing: AsyncTiming, schedule: Schedule) -> Options {
    Options {
        sanitize: true,
        async_copies: timing,
        schedule,
        max_instructions: Some(1 << 20),
        ..Options::default()
    }
}

pub const MODES: [(AsyncTiming, Schedule); 6] = [
    (AsyncTiming::Late, Schedule::InOrder),
    (AsyncTiming::Early, Schedule::InOrder),
    (AsyncTiming::Seeded(1), Schedule::InOrder),
    (AsyncTiming::Late, Schedule::Seeded { seed: 1, share: 3 }),
    (AsyncTiming::Early, Schedule::Seeded { seed: 2, share: 50 }),
    (
        AsyncTiming::Seeded(2),
        Schedule::Seeded { seed: 3, share: 1 },
    ),
];

pub fn report(text: &str, options: Options) -> Report {
    match run(text, options) {
        Ok(()) => Report::default(),
        Err(LaunchError::Findings(report)) => *report,
        Err(other) => panic!("{other}"),
    }
}

/// The pipeline with changes: each replaces what must be there.
pub fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(pipeline(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    })
}

/// Whatever the timing and the schedule, the changed pipeline breaks one of these rules; in order and late, the first one,
/// at the line with `at` and, if there are two, with the other side at `other`.
#[track_caller]
pub fn breaks(rules: &[Rule], changes: &[(&str, &str)], at: &str, other: Option<&str>) {
    let text = changed(changes);
    for (timing, schedule) in MODES {
        let report = report(&text, sanitized(timing, schedule));
        assert!(
            report.findings.iter().any(|f| rules.contains(&f.rule)),
            "{timing:?} {schedule:?}: {rules:?}\n{report}"
        );
    }
    let (timing, schedule) = MODES[0];
    let report = report(&text, sanitized(timing, schedule));
    let lines: Vec<_> = report
        .findings
        .iter()
        .map(|f| (f.rule, f.site.line, f.other.as_ref().map(|(_, s)| s.line)))
        .collect();
    let want = (
        rules[0],
        line_of(&text, at),
        other.map(|other| line_of(&text, other)),
    );
    assert!(lines.contains(&want), "wanted {want:?}\n{report}");
    let words = report.to_string();
    assert!(words.contains(rules[0].name()) && words.contains(rules[0].manual()));
}

pub const FIRST_LOAD: &str = "[%r15], [%d1,";

pub const FIRST_PRODUCT: &str = "%d10, %d11, %p3";

pub const LAST_PRODUCT: &str = "//K3";

//! Kernels that break one rule in one line, and what is found in them.
#![allow(dead_code)]

use super::common::{Run, kernel, line_of};
use flashtile_emulator::{LaunchError, Options, Report, Rule};

pub fn options() -> Options {
    Options {
        sanitize: true,
        max_instructions: Some(100_000),
        ..Options::default()
    }
}

/// mbarriers `m`; and `s` at a multiple of 256, after which there is nothing.
pub const SHARED: &str = ".shared .align 8 .b64 m[4];\n.shared .align 256 .b8 s[2048];";

/// What is found when a body runs with that many blocks and threads.
pub fn findings_of(declarations: &str, body: &str, grid: u32, block: u32) -> Report {
    let run = Run::new(options());
    match run.launch(&kernel(declarations, body), grid, block, 0) {
        Ok(_) => Report::default(),
        Err(LaunchError::Findings(report)) => *report,
        Err(other) => panic!("{other}"),
    }
}

/// The body breaks this rule at the line with `at`, and, if the rule needs two, the other access is at `other`. Nothing
/// else is found.
#[track_caller]
pub fn breaks(rule: Rule, body: &str, block: u32, at: &str, other: Option<&str>) {
    let report = findings_of(SHARED, body, 1, block);
    let text = kernel(SHARED, body);
    let found: Vec<_> = report
        .findings
        .iter()
        .map(|f| (f.rule, f.site.line, f.other.as_ref().map(|(_, s)| s.line)))
        .collect();
    let (at, other) = (line_of(&text, at), other.map(|other| line_of(&text, other)));
    let mut want = vec![(rule, at, other)];
    // Of two accesses that nothing orders, either may come first.
    if let (Rule::Race, Some(other)) = (rule, other) {
        want.push((rule, other, Some(at)));
    }
    assert!(
        want.iter().any(|want| found.contains(want)),
        "wanted {want:?}, found {found:?}\n{report}"
    );
    // What is read too early was perhaps never written.
    let follows = |found| [rule, Rule::UninitializedStore].contains(found);
    assert!(found.iter().all(|f| follows(&f.0)), "{report}");
    let text = report.to_string();
    assert!(text.contains(rule.name()) && text.contains(rule.manual()));
}

/// The rules that a block of that many threads breaks.
pub fn rules(body: &str, block: u32) -> Vec<Rule> {
    let report = findings_of(SHARED, body, 1, block);
    report.findings.iter().map(|f| f.rule).collect()
}

#[track_caller]
pub fn clean(body: &str, block: u32) {
    let report = findings_of(SHARED, body, 1, block);
    assert!(report.findings.is_empty(), "{report}");
}

/// `%r1`: shared address of the thread's word; `%r2`: of its neighbour's (thread xor 32); `%r3`: of lane xor 1's; `%r5`: of
/// the first word.
pub const WORDS: &str =
    "mov.u32 %r1, s;\nshl.b32 %r4, %r0, 2;\nadd.u32 %r1, %r1, %r4;\nxor.b32 %r2, %r0, 32;
shl.b32 %r2, %r2, 2;\nmov.u32 %r5, s;\nadd.u32 %r2, %r2, %r5;\nxor.b32 %r3, %r0, 1;
shl.b32 %r3, %r3, 2;\nadd.u32 %r3, %r3, %r5;\n";

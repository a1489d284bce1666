//! More of what the sanitizer finds, and of what it must not: the corners.

mod common;

use common::{Run, STORE, kernel};
use flashtile_emulator::{LaunchError, Options, Report, Rule};

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

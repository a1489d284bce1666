//! Changed texts of kernels, to see what the suite notices.
//!
//! `cargo run --release -p flashtile-tests --bin mutate` makes every [mutant](mutants) of every kernel and
//! [judges](judge) it on [problems] that reach all of the kernel's code.

pub mod campaign;
pub mod explained;
mod flow;
pub mod judge;
mod listing;
pub mod mutants;
mod place;
pub mod problems;
pub mod report;
mod values;

/// Lines of PTX that hold this instruction.
pub fn lines_with(ptx: &str, instruction: &str) -> Vec<usize> {
    let lines = ptx.lines().enumerate();
    lines
        .filter(|(_, line)| line.trim_start().starts_with(instruction))
        .map(|(at, _)| at)
        .collect()
}

/// The text without one of its lines.
pub fn without_line(ptx: &str, removed: usize) -> String {
    let lines = ptx.lines().enumerate();
    let kept = lines.filter(|(at, _)| *at != removed);
    kept.flat_map(|(_, line)| [line, "\n"]).collect()
}

/// The text of a fused kernel, made to trap where a block votes to be computed a second time.
///
/// # Panics
/// If the text has not exactly one such vote.
pub fn trap_before_second_attempt(ptx: &str) -> String {
    let votes = lines_with(ptx, "bar.red.or.pred");
    assert_eq!(votes.len(), 1, "votes");
    let mut text = String::new();
    for (at, line) in ptx.lines().enumerate() {
        text.push_str(line);
        text.push('\n');
        if at == votes[0] {
            let spoilt = line
                .split(['\t', ' ', ','])
                .find(|word| word.starts_with("%p"));
            text.push_str(&format!("@{} trap;\n", spoilt.expect("a predicate")));
        }
    }
    text
}

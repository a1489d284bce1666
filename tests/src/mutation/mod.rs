//! Changed texts of kernels, to see what the suite notices.
//!
//! `cargo run --release -p flashtile-tests --bin mutate` makes every [mutant](mutants) of every kernel and
//! [judges](judge) it on [problems] that reach all of the kernel's code.

mod accesses;
pub mod campaign;
mod class;
mod dense;
pub mod explained;
mod flow;
mod generated;
mod hopper;
pub mod judge;
mod listing;
mod merge;
pub mod mutants;
mod place;
pub mod problems;
pub mod report;
mod serving;
pub mod serving_problems;
mod values;
mod work;

pub use generated::every_mutant_is_noticed;

use flashtile::Operation;

/// The kernels whose mutants are judged here. Those of caches and of checks have generated cases in `tests/cache_mutations.rs` and
/// `tests/check_mutations.rs`.
pub fn kernels() -> impl Iterator<Item = Operation> {
    flashtile_abi::operations().filter(|kernel| {
        matches!(
            kernel,
            Operation::Attention(_) | Operation::Serving(_) | Operation::Merge(_)
        )
    })
}

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

/// The text of a fused kernel, made to trap where something must be computed a second time: in the sm_80 tier where a block has voted
/// for it, in the sm_90a tier where a warp says so.
///
/// # Panics
/// If the text has not exactly one such place.
pub fn trap_before_second_attempt(ptx: &str) -> String {
    let votes = lines_with(ptx, "bar.red.or.pred");
    let says = lines_with(ptx, "red.relaxed.cluster.shared::cluster.or");
    assert_eq!(votes.len() + says.len(), 1, "places");
    let mut text = String::new();
    for (at, line) in ptx.lines().enumerate() {
        if says.contains(&at) {
            text.push_str("trap;\n");
        }
        text.push_str(line);
        text.push('\n');
        if votes.contains(&at) {
            let mut words = line.split(['\t', ' ', ',']);
            let spoilt = words.find(|word| word.starts_with("%p"));
            text.push_str(&format!("@{} trap;\n", spoilt.expect("a predicate")));
        }
    }
    text
}

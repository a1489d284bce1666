//! Mutants of kernels that are judged by generated cases.

use std::ops::ControlFlow;

use flashtile::Entry;

use super::mutants::{Mutation, mutants};
use crate::parallel::{cores, in_order};

/// Requires that each mutant of a kernel is noticed, or explained: by what its place contains, digits left out, and why it computes the
/// same. Each explanation is good for one mutant.
///
/// # Panics
/// If the kernel itself is noticed, or a mutant survives without a reason.
pub fn every_mutant_is_noticed(
    kernel: &'static Entry,
    explained: &[(&str, &str)],
    notices: impl Fn(&str) -> bool + Sync,
) {
    let name = kernel.name;
    let text = flashtile::ptx(kernel).unwrap();
    assert!(!notices(&text), "{name}");
    let all = mutants(&text).unwrap().mutations;
    assert!(!all.is_empty());
    println!("{name}: {} mutants", all.len());
    let mut survivors = Vec::<&Mutation>::new();
    in_order(
        &vec![(); cores()],
        &all,
        |(), mutation| notices(&mutation.apply(&text)),
        |at, noticed| {
            if !noticed {
                survivors.push(&all[at]);
            }
            ControlFlow::Continue(())
        },
    );
    let lines: Vec<_> = unexplained(&survivors, explained)
        .iter()
        .map(|it| format!("{it}\n    {}", it.place))
        .collect();
    assert!(
        lines.is_empty(),
        "{} of {} mutants of {name} survive without a reason:\n{}",
        lines.len(),
        all.len(),
        lines.join("\n")
    );
}

/// The survivors that nothing explains.
fn unexplained<'m>(survivors: &[&'m Mutation], explained: &[(&str, &str)]) -> Vec<&'m Mutation> {
    let mut left: Vec<_> = explained.iter().map(|(place, _)| *place).collect();
    let unexplained = survivors.iter().filter(|mutation| {
        let words: Vec<_> = mutation.place.split_whitespace().collect();
        let place = words.join(" ").replace(|c: char| c.is_ascii_digit(), "");
        match left.iter().position(|explained| place.contains(explained)) {
            Some(at) => {
                left.remove(at);
                false
            }
            None => true,
        }
    });
    unexplained.copied().collect()
}

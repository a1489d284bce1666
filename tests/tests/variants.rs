//! Every kernel there is, through every class of cases, by construction.

use std::ops::ControlFlow;

use flashtile_abi::{Operation, variants};
use flashtile_tests::{
    Case, check,
    generate::factor,
    parallel::{cores, in_order},
    shrink::shrink,
    sweep::{self, Coverage},
};

/// Failures that are reported; each is shrunk.
const REPORTED: usize = 5;

/// Runs cases on all cores, and returns what was covered and what is wrong.
fn run(cases: &[Case]) -> (Coverage, Vec<String>) {
    let (mut coverage, mut failures) = (Coverage::default(), Vec::new());
    let workers = vec![(); cores()];
    in_order(
        &workers,
        cases,
        |(), case| check(case),
        |at, outcome| {
            // What counts is what has run, not what was planned.
            coverage.add(&cases[at]);
            if let Err(reason) = outcome {
                let limit = std::time::Duration::from_secs(20);
                let (_, smallest) = shrink(cases[at], reason, limit, |case| check(case).err());
                failures.push(smallest);
            }
            match failures.len() {
                REPORTED => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        },
    );
    (coverage, failures)
}

/// A variant without a case of some class fails here, and so does a class without a case of some variant.
#[test]
fn every_variant_through_every_class() {
    // Where fewer cases are wanted, every variant through some classes.
    let quick = factor() < 1.0;
    let cases = if quick { sweep::quick() } else { sweep::full() };
    let (coverage, failures) = run(&cases);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    let missing = coverage.missing();
    assert!(quick || missing.is_empty(), "{}", missing.join("\n"));
}

/// The sweep's list of variants is the library's, and that is the one the kernels are made from.
#[test]
fn no_variant_is_forgotten() {
    let dense = flashtile::kernels().filter_map(|kernel| match kernel.operation {
        Operation::Attention(variant) => Some(variant),
        _ => None,
    });
    assert!(dense.eq(variants()));
}

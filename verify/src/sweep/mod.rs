//! Every kernel through every class of cases.
//!
//! Nothing is listed by name: variants come from the library's own list, classes from [`Class::all`],
//! and [`Coverage`] counts what the cases that ran were, so that a new variant, distribution or class
//! without a case of its own is missing from the table.

mod cases;
mod class;

use std::collections::{BTreeMap, HashSet};

use flashtile::{Variant, variants};

use crate::case::Case;

pub use cases::{case, dims};
pub use class::{Class, Dims, Edge, Lie, Queries, Score, Sides, Work};

/// One case of every class that applies to the variant.
pub fn of_variant(variant: &'static Variant) -> Vec<Case> {
    let classes = Class::all().into_iter();
    unique(classes.filter_map(|class| case(variant, class)))
}

/// Every variant through every class.
pub fn full() -> Vec<Case> {
    unique(variants().iter().flat_map(of_variant))
}

/// Every variant once at its own head dimensions, and every class with every tenth of the variants that it applies to: with one at
/// least.
pub fn quick() -> Vec<Case> {
    let classes = Class::all().into_iter().enumerate();
    unique(classes.flat_map(|(turn, class)| {
        let variants = variants().iter();
        let variants: Vec<_> = variants.filter(|variant| class.applies(variant)).collect();
        let step = variants.len().clamp(1, 10);
        let some = variants.into_iter().enumerate();
        let some = some
            .filter(move |(at, _)| (at + turn) % step == 0 || class == Class::Dims(Dims::Widest));
        some.filter_map(move |(_, variant)| case(variant, class))
    }))
}

fn unique(cases: impl Iterator<Item = Case>) -> Vec<Case> {
    let mut seen = HashSet::new();
    cases.filter(|case| seen.insert(case.to_string())).collect()
}

/// How many cases of each class each variant has been through.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    counts: BTreeMap<(&'static str, String), usize>,
}

impl Coverage {
    /// Counts a case that ran, in every class it is in.
    pub fn add(&mut self, case: &Case) {
        let Ok(variant) = case.planned() else { return };
        for class in Class::all() {
            if class.holds(case, variant) {
                *self
                    .counts
                    .entry((variant.name, class.to_string()))
                    .or_default() += 1;
            }
        }
    }

    /// How many cases of the class the variant has been through.
    pub fn count(&self, variant: &Variant, class: Class) -> usize {
        let key = (variant.name, class.to_string());
        self.counts.get(&key).copied().unwrap_or(0)
    }

    /// Every variant of the library with every class that applies to it and has had no case.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for variant in variants() {
            for class in Class::all() {
                if class.applies(variant) && self.count(variant, class) == 0 {
                    missing.push(format!("{}: no case of {class}", variant.name));
                }
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests;

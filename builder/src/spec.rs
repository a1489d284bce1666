//! What the PTX must contain: the table of variants, as the builder sees it.

use flashtile_abi::{Arch, Variant};

/// One entry point that the PTX must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntrySpec {
    /// Name of the entry point.
    pub name: String,
    /// Target it is compiled for, as the compilers spell it.
    pub arch: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that a multiprocessor must be able to hold.
    pub min_blocks: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Whether it may compute in f64. Elsewhere f64 is an accident.
    pub allow_f64: bool,
}

impl From<&Variant> for EntrySpec {
    fn from(variant: &Variant) -> Self {
        Self {
            name: variant.name.to_owned(),
            arch: variant.arch.as_str(),
            threads: variant.threads,
            min_blocks: variant.min_blocks,
            shared_bytes: variant.shared_bytes,
            allow_f64: false,
        }
    }
}

/// Every variant in flashtile-abi's table.
pub fn all() -> Vec<EntrySpec> {
    flashtile_abi::variants()
        .iter()
        .map(EntrySpec::from)
        .collect()
}

/// The targets in order.
pub fn arches() -> impl Iterator<Item = &'static str> {
    Arch::ALL.into_iter().map(Arch::as_str)
}

//! All kernels in one list.

use crate::{
    cache::{CacheVariant, cache_variants},
    check::{CHECK, CheckVariant},
    serving::{MergeVariant, ServingVariant, merge_variants, serving_variants},
    tile::DType,
    variant::{Entry, Variant, variants},
};

/// A kernel, by what it computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Attention over dense tensors.
    Attention(&'static Variant),
    /// Attention for inference engines.
    Serving(&'static ServingVariant),
    /// Partial results made one.
    Merge(&'static MergeVariant),
    /// Rows or blocks of caches moved.
    Cache(&'static CacheVariant),
    /// Numbers that say where sequences are, checked.
    Check(&'static CheckVariant),
}

impl Operation {
    /// The entry point.
    pub fn entry(&self) -> &'static Entry {
        match self {
            Self::Attention(variant) => &variant.entry,
            Self::Serving(variant) => &variant.entry,
            Self::Merge(variant) => &variant.entry,
            Self::Cache(variant) => &variant.entry,
            Self::Check(variant) => &variant.entry,
        }
    }

    /// What it computes, in a word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Attention(variant) => variant.algorithm.as_str(),
            Self::Serving(variant) => variant.sharing.as_str(),
            Self::Merge(_) => "merge",
            Self::Cache(variant) => variant.work.as_str(),
            Self::Check(_) => "check",
        }
    }

    /// Type of the elements; `None` where only their size matters.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Self::Attention(variant) => Some(variant.tile.dtype),
            Self::Serving(variant) => Some(variant.tile.dtype),
            Self::Merge(variant) => Some(variant.dtype),
            Self::Cache(variant) => variant.dtype,
            Self::Check(_) => None,
        }
    }

    /// Largest head_dim_qk and head_dim_v, where it has such.
    pub fn head_dims(&self) -> Option<(u32, u32)> {
        let tile = match self {
            Self::Attention(variant) => &variant.tile,
            Self::Serving(variant) => &variant.tile,
            Self::Merge(_) | Self::Cache(_) | Self::Check(_) => return None,
        };
        Some((tile.head_dim_qk, tile.head_dim_v))
    }
}

/// Every kernel there is.
pub fn operations() -> impl Iterator<Item = Operation> {
    let dense = variants().iter().map(Operation::Attention);
    let serving = serving_variants().iter().map(Operation::Serving);
    let merge = merge_variants().iter().map(Operation::Merge);
    let cache = cache_variants().iter().map(Operation::Cache);
    let check = core::iter::once(Operation::Check(&CHECK));
    dense.chain(serving).chain(merge).chain(cache).chain(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = operations().map(|it| it.entry().name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}

//! What the PTX must contain: the table of variants, as the builder sees it.

use flashtile_abi::{Arch, DType, Operation, TileShape};

use crate::limits;

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
    /// What one warp multiplies for a tile of keys, if that is known.
    pub work: Option<TileWork>,
    /// Instructions that a warp may issue for 64 queries and 128 keys in the unmasked loop, if there is a limit.
    pub loop_limit: Option<u32>,
}

/// The products of one warp for one tile of keys: scores and weighted sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileWork {
    /// Query rows that a warp owns.
    pub rows: u32,
    /// Keys of a tile.
    pub keys: u32,
    /// head_dim_qk, padded.
    pub head_dim_qk: u32,
    /// Columns of head_dim_v, padded, that a warp owns: all, or a part where warps share the columns.
    pub head_dim_v: u32,
    /// Tensor-core products for each product of the operation: three where f32 is made of tf32.
    pub products: u32,
}

impl TileWork {
    /// Multiplications for one tile.
    pub fn tile(&self) -> u64 {
        self.of(self.rows, self.keys)
    }

    /// Multiplications for 16 rows and 128 keys: a warp's quarter of 64 rows, the measure in which loops are compared.
    pub fn unit(&self) -> u64 {
        self.of(16, 128)
    }

    fn of(&self, rows: u32, keys: u32) -> u64 {
        let dims = u64::from(self.head_dim_qk) + u64::from(self.head_dim_v);
        u64::from(rows) * u64::from(keys) * dims * u64::from(self.products)
    }
}

impl From<&TileShape> for TileWork {
    fn from(tile: &TileShape) -> Self {
        Self {
            rows: tile.block_m * tile.v_splits * tile.key_splits / tile.warps.max(1),
            keys: tile.warp_keys(),
            head_dim_qk: tile.head_dim_qk,
            head_dim_v: tile.head_dim_v / tile.v_splits,
            products: if tile.dtype == DType::F32 { 3 } else { 1 },
        }
    }
}

impl From<Operation> for EntrySpec {
    fn from(operation: Operation) -> Self {
        let entry = operation.entry();
        let (work, loop_limit) = match operation {
            Operation::Attention(variant) => (
                Some(TileWork::from(&variant.tile)),
                limits::loop_limit(variant),
            ),
            Operation::Serving(variant) => (Some(TileWork::from(&variant.tile)), None),
            Operation::Merge(_) | Operation::Cache(_) | Operation::Check(_) => (None, None),
        };
        Self {
            name: entry.name.to_owned(),
            arch: entry.arch.as_str(),
            threads: entry.threads,
            min_blocks: entry.min_blocks,
            shared_bytes: entry.shared_bytes,
            allow_f64: false,
            work,
            loop_limit,
        }
    }
}

/// Every kernel in flashtile-abi's tables.
pub fn all() -> Vec<EntrySpec> {
    flashtile_abi::operations().map(EntrySpec::from).collect()
}

/// The targets in order.
pub fn arches() -> impl Iterator<Item = &'static str> {
    Arch::ALL.into_iter().map(Arch::as_str)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An entry of which nothing special is demanded.
    pub(crate) fn spec(name: &str) -> EntrySpec {
        EntrySpec {
            name: name.into(),
            arch: "sm_80",
            threads: 128,
            min_blocks: 2,
            shared_bytes: 0,
            allow_f64: false,
            work: None,
            loop_limit: None,
        }
    }

    #[test]
    fn the_work_of_a_tile_is_its_two_products() {
        let work = TileWork {
            rows: 32,
            keys: 48,
            head_dim_qk: 192,
            head_dim_v: 128,
            products: 1,
        };
        assert_eq!(work.tile(), 32 * 48 * 192 + 32 * 48 * 128);
        assert_eq!(work.unit() * 3, work.tile() * 4);
    }
}

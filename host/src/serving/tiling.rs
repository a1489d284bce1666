//! Which kernel computes a problem, and how its work is shared.

use flashtile_abi::{
    Algorithm, Arch, MergeVariant, ServingVariant, Sharing, TileShape, hopper::WARPGROUP_ROWS,
    serving,
};

use super::{
    problem::{ServingProblem, Splits},
    validate::Sizes,
};
use crate::{
    DType,
    device::DeviceInfo,
    error::{Error, Result},
    plan::MAX_GRID,
    problem::ArchChoice,
};

/// Rows of a tile of the kernels for few queries.
const FEW_ROWS: usize = 16;

/// Rows of a warpgroup of the sm_90a kernels, whose tiles have two: with fewer, half of a block would idle. (Of latent caches, both have
/// the same rows, and the sm_80 tier's tile is as tall.)
const HALF_TILE: usize = WARPGROUP_ROWS as usize;

/// Fewest tiles of keys that are worth a block of their own.
const MIN_TILES: u32 = 4;

/// Most parts that keys are split into, unless the problem asks for more.
const MAX_SPLITS: u32 = 128;

/// Blocks, and who has what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    /// Tiles of packed rows of a sequence and key/value head.
    pub m_blocks: u32,
    /// Parts of the keys.
    pub splits: u32,
    /// Keys of each.
    pub split_keys: i32,
    /// Blocks altogether.
    pub blocks: u32,
}

/// The smallest kernel that computes the problem: for few queries if there are few in each sequence.
pub(super) fn choose(
    problem: &ServingProblem,
    sizes: &Sizes,
    device: &DeviceInfo,
) -> Result<&'static ServingVariant> {
    let rows = packed_rows(problem, sizes)?;
    let of_arch = |arch| of_arch(problem, sizes, rows, device, arch);
    match problem.arch {
        ArchChoice::Sm80 => of_arch(Arch::Sm80),
        ArchChoice::Sm90a => of_arch(Arch::Sm90a),
        ArchChoice::Auto => {
            // With few rows memory is the limit, over latent caches too.
            if rows > FEW_ROWS
                && let Ok(variant) = of_arch(Arch::Sm90a)
                && (rows > HALF_TILE || variant.tile.latent)
            {
                return Ok(variant);
            }
            of_arch(Arch::Sm80)
        }
    }
}

/// The same, of a tier.
fn of_arch(
    problem: &ServingProblem,
    sizes: &Sizes,
    rows: usize,
    device: &DeviceInfo,
    arch: Arch,
) -> Result<&'static ServingVariant> {
    device.supports(arch)?;
    let missing = |missing: String| Error::NoVariant {
        algorithm: Algorithm::Fused,
        arch,
        dtype: problem.dtype,
        missing,
    };
    let all = serving::serving_variants().iter();
    let of_type: Vec<_> = all
        .filter(|it| it.arch == arch)
        .filter(|it| (it.tile.dtype, it.tile.kv_dtype) == (problem.dtype, problem.kv_dtype))
        // Kernels of latent caches read no values.
        .filter(|it| problem.latent || !it.tile.latent)
        .collect();
    let (qk, v) = (sizes.head_dim_qk, sizes.head_dim_v);
    let dims = |it: &ServingVariant| (it.tile.head_dim_qk, it.tile.head_dim_v);
    let Some((widest_qk, widest_v)) = of_type.iter().map(|it| dims(it)).max() else {
        return Err(missing(format!(
            "serving has none for {} queries and {} keys",
            problem.dtype.as_str(),
            problem.kv_dtype.as_str()
        )));
    };
    let of_kind = of_type.into_iter().filter(|it| match it.sharing {
        Sharing::Keys => rows <= FEW_ROWS,
        Sharing::Rows => rows > FEW_ROWS || arch != Arch::Sm80,
        Sharing::Columns => true,
    });
    let mut wide = of_kind
        .filter(|it| {
            let (wide_qk, wide_v) = dims(it);
            wide_qk as usize >= qk && wide_v as usize >= v
        })
        .peekable();
    if wide.peek().is_none() {
        let mut message = format!(
            "head_dim_qk {qk} with head_dim_v {v} is beyond the widest, {widest_qk} with {widest_v}"
        );
        if !problem.latent {
            message.push_str(" (wider ones are for values that are elements of keys)");
        }
        return Err(missing(message));
    }
    wide.filter(|it| it.shared_bytes <= device.shared_bytes_per_block)
        .min_by_key(|it| {
            // Of tiles as wide, the smallest that takes all rows of a sequence, or the tallest.
            let idle = match rows <= it.tile.block_m as usize {
                true => it.tile.block_m,
                false => u32::MAX - it.tile.block_m,
            };
            (it.tile.head_dim_qk + it.tile.head_dim_v, idle)
        })
        .ok_or_else(|| {
            missing(format!(
                "each needs more shared memory than the {} bytes a block has on {}",
                device.shared_bytes_per_block, device.name
            ))
        })
}

/// The kernel that merges parts.
pub(super) fn choose_merge(dtype: DType, device: &DeviceInfo) -> Result<&'static MergeVariant> {
    device.supports(Arch::Sm80)?;
    serving::merge_variants()
        .iter()
        .find(|it| it.dtype == dtype)
        .ok_or_else(|| Error::NoVariant {
            algorithm: Algorithm::Fused,
            arch: Arch::Sm80,
            dtype,
            missing: "there is none that merges parts of this element type".into(),
        })
}

/// Rows of the longest sequence for one key/value head: its queries times the query heads that share the head.
fn packed_rows(problem: &ServingProblem, sizes: &Sizes) -> Result<usize> {
    let rows = problem.q_lengths.longest.checked_mul(sizes.heads_q);
    // Kernels count rows of all heads in 31 bits, and go past the last by a tile at most.
    match rows.filter(|&rows| rows < 1 << 30) {
        Some(rows) => Ok(rows / sizes.heads_kv),
        None => Err(Error::bad(
            "q",
            "fewer than 2^30 queries of a sequence, in all heads",
            format!(
                "{} queries in {} heads",
                problem.q_lengths.longest, sizes.heads_q
            ),
        )),
    }
}

/// Shares the work of a kernel.
pub(super) fn share(
    problem: &ServingProblem,
    sizes: &Sizes,
    tile: &TileShape,
    device: &DeviceInfo,
) -> Result<Tiling> {
    let rows = packed_rows(problem, sizes)? as u64;
    let m_blocks = rows.div_ceil(u64::from(tile.block_m));
    let unsplit = m_blocks
        .checked_mul(sizes.heads_kv as u64)
        .and_then(|n| n.checked_mul(problem.batch as u64));
    let longest = problem.k_lengths.longest as u64;
    let block_n = u64::from(tile.block_n);
    let tiles = longest.div_ceil(block_n).max(1);
    let (splits, tiles_of_each) = match problem.splits {
        Splits::One => (1, tiles),
        Splits::Keys(0) => {
            return Err(Error::bad("splits", "parts of at least one key", "0"));
        }
        Splits::Keys(keys) => {
            let of_each = (keys as u64).div_ceil(block_n).min(tiles);
            (tiles.div_ceil(of_each).max(2), of_each)
        }
        Splits::Auto => {
            let tiles = tiles.min(tiles_in_sight(problem, sizes, tile));
            let slots = u64::from(device.multiprocessors) * u64::from(tile.min_blocks);
            let wanted = best_splits(unsplit.unwrap_or(u64::MAX), slots, tiles);
            let of_each = tiles.div_ceil(wanted);
            (tiles.div_ceil(of_each), of_each)
        }
    };
    let blocks = unsplit.and_then(|n| n.checked_mul(splits));
    match blocks {
        Some(blocks) if blocks <= MAX_GRID => Ok(Tiling {
            m_blocks: m_blocks as u32,
            splits: splits as u32,
            split_keys: (tiles_of_each * block_n) as i32,
            blocks: blocks as u32,
        }),
        _ => Err(Error::bad(
            "q",
            format!("at most {MAX_GRID} blocks over all parts of keys, heads and sequences"),
            format!(
                "{splits} parts of keys for {m_blocks} tiles in each of {} heads in each of {} sequences",
                sizes.heads_kv, problem.batch
            ),
        )),
    }
}

/// The most tiles of keys that the queries of one tile see, by causal mask and window.
fn tiles_in_sight(problem: &ServingProblem, sizes: &Sizes, tile: &TileShape) -> u64 {
    let right = match problem.causal {
        Some(_) => Some(0),
        None => problem.window.right,
    };
    match (problem.window.left, right, problem.ranges) {
        (Some(left), Some(right), None) => {
            let per_query = (sizes.heads_q / sizes.heads_kv) as u64;
            // One query more than fills a tile: it may begin and end within one.
            let queries = u64::from(tile.block_m).div_ceil(per_query) + 1;
            let keys = u64::from(left) + u64::from(right) + queries;
            // And so may the keys.
            keys.div_ceil(u64::from(tile.block_n)) + 1
        }
        _ => u64::MAX,
    }
}

/// Into how many parts keys are best split, so that `blocks` times that fill the device's `slots`: the fewest with which the slots are
/// busy nearly as much as with any number. (The idea of FlashAttention's `num_splits_heuristic`.)
fn best_splits(blocks: u64, slots: u64, tiles: u64) -> u64 {
    // Nearly full, or nothing to split.
    if blocks == 0 || blocks.saturating_mul(5) >= slots.saturating_mul(4) {
        return 1;
    }
    let most = (tiles / u64::from(MIN_TILES)).clamp(1, u64::from(MAX_SPLITS));
    // In thousandths. A wave takes as long as its largest parts.
    let busy = |splits: u64| {
        let waves = (blocks * splits).div_ceil(slots);
        let longest = tiles.div_ceil(splits);
        1000 * blocks * tiles / (waves * longest * slots)
    };
    let best = (1..=most).map(busy).max().unwrap_or(0);
    (1..=most)
        .find(|&splits| busy(splits) * 100 >= best * 85)
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_fill_the_device() {
        // A full device is not split for.
        assert_eq!(best_splits(264, 264, 1000), 1);
        assert_eq!(best_splits(250, 264, 1000), 1);
        // One block, as many parts as are worth it.
        assert_eq!(best_splits(1, 264, 8), 2);
        assert_eq!(best_splits(1, 264, 3), 1);
        assert!(best_splits(1, 264, 1 << 20) >= 100);
        for blocks in 1..300 {
            for tiles in [1, 4, 7, 64, 100, 1000] {
                let splits = best_splits(blocks, 264, tiles);
                assert!(splits >= 1 && splits <= u64::from(MAX_SPLITS));
                assert!(splits == 1 || tiles / splits >= u64::from(MIN_TILES));
            }
        }
        assert_eq!(best_splits(u64::MAX, 264, 1000), 1);
        assert_eq!(best_splits(0, 264, 1000), 1);
    }
}

//! Blocks from cache to cache.

use candle_core::{DType, Result, Tensor};
use flashtile::cache::{BlocksLayout, CopyProblem, IndexType, copy_blocks_cpu};

use crate::{
    error::{bad, from_flashtile},
    into::{Locked, Memory, Named, check_writes, elsewhere, write_up_to_three},
    operands::{bytes, bytes_mut, longs},
    problem::typed,
};

/// Copies blocks within each of some caches: `pairs` is [n, 2], i64, u32 or i32, which block is read and which one it is written to. No block
/// is written twice, or both read and written. Caches are of any type, and their blocks (first dimension) have no gaps.
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found; numbers only on the CPU.
pub fn copy_blocks(caches: &[&Tensor], pairs: &Tensor) -> Result<()> {
    caches.iter().try_for_each(|cache| copy(None, cache, pairs))
}

/// Copies blocks from one cache to another on the same device: as [`copy_blocks`], whose `pairs` are here of a block of `src` and one of `dst`.
///
/// # Errors
/// As [`copy_blocks`].
pub fn swap_blocks(src: &Tensor, dst: &Tensor, pairs: &Tensor) -> Result<()> {
    copy(Some(src), dst, pairs)
}

fn copy(src: Option<&Tensor>, dst: &Tensor, pairs: &Tensor) -> Result<()> {
    let argument = src.map_or("cache", |_| "dst");
    let (blocks, block_bytes) = blocks(argument, dst)?;
    let count = match pairs.dims() {
        &[count, 2] if pairs.is_contiguous() => count,
        found => {
            return Err(bad(
                "pairs",
                "shape [pairs, 2] without gaps",
                format!("shape {found:?}"),
            ));
        }
    };
    typed("pairs", pairs, &[DType::I64, DType::U32, DType::I32])?;
    let mut problem = CopyProblem {
        pairs: count,
        index: match pairs.dtype() {
            DType::I64 => IndexType::I64,
            _ => IndexType::I32,
        },
        block_bytes,
        src: blocks,
        dst: blocks,
    };
    if let Some(src) = src {
        typed("src", src, &[dst.dtype()])?;
        let (blocks, bytes) = self::blocks("src", src)?;
        if bytes != block_bytes {
            return Err(bad(
                "src",
                format!("blocks of {block_bytes} bytes, as dst"),
                format!("blocks of {bytes}"),
            ));
        }
        problem.src = blocks;
    }
    let mut reads: Vec<Named<'_>> = vec![("pairs", pairs)];
    reads.extend(src.map(|src| ("src", src)));
    check_writes(&[(argument, dst)], &reads)?;
    if count == 0 || block_bytes == 0 {
        return Ok(());
    }
    write_up_to_three([Some(dst), None, None], &mut |memory| match memory {
        [Some(Memory::Cpu(to)), ..] => {
            let numbers = longs("pairs", pairs)?;
            let (pairs, _) = numbers.as_chunks::<2>();
            let tensors: Vec<_> = src.into_iter().collect();
            let locked = Locked::new(&tensors);
            let from = match src {
                Some(src) => Some(bytes("src", locked.cpu("src", 0)?, src.layout())?),
                None => None,
            };
            let to = bytes_mut(argument, to, dst.layout())?;
            copy_blocks_cpu(&problem, pairs, from, to).map_err(from_flashtile)
        }
        #[cfg(feature = "cuda")]
        [Some(Memory::Cuda(to)), ..] => {
            crate::cuda::copy_blocks(&problem, &reads, vec![("dst", to, dst.layout())])
        }
        _ => Err(elsewhere(argument)),
    })
}

/// A tensor's blocks without gaps, and the bytes of one.
fn blocks(argument: &str, tensor: &Tensor) -> Result<(BlocksLayout, usize)> {
    let refused = || {
        bad(
            argument,
            "blocks (of the first dimension) without gaps",
            format!("shape {:?}, strides {:?}", tensor.dims(), tensor.stride()),
        )
    };
    let [blocks, rest @ ..] = tensor.dims() else {
        return Err(refused());
    };
    let elements: usize = rest.iter().product();
    // In any order: the strides of what has more than one index are, sorted, the products of the smaller ones.
    let mut dims: Vec<_> = rest
        .iter()
        .zip(&tensor.stride()[1..])
        .filter(|(n, _)| **n > 1)
        .collect();
    dims.sort_unstable_by_key(|(_, stride)| **stride);
    let mut product = 1;
    for (n, stride) in dims {
        if *stride != product {
            return Err(refused());
        }
        product *= n;
    }
    let size = tensor.dtype().size_in_bytes();
    let stride = tensor.stride()[0].saturating_mul(size);
    let layout = BlocksLayout {
        blocks: *blocks,
        stride: i64::try_from(stride).unwrap_or(i64::MAX),
    };
    Ok((layout, elements * size))
}

//! What is refused before anything is enqueued.

use flashtile_abi::{Band, DType};

use super::{exchange::Exchange, piece::ALIGNMENT, shards::Shards};
use crate::{
    Problem, TensorLayout,
    error::{Error, Result},
    plan::{band_of, check, check_pointer},
};

/// The mask of the whole sequences.
pub(super) fn whole_band(problem: &Problem, queries: usize, keys: usize) -> Band {
    // Shards have at most 2^30 tokens.
    band_of(problem.causal, problem.window, queries as i32, keys as i32)
}

/// The error of a mask that no kernel has.
pub(super) fn stripes() -> Error {
    Error::bad(
        "keys",
        "queries and keys that are both striped, or neither, under a causal mask or window: kernels take bands of a tensor's own rows",
        "striped tokens on one side",
    )
}

/// Refuses what no rank can do with a dense problem.
pub(super) fn check_dense(problem: &Problem) -> Result<()> {
    if problem.dtype == DType::E4m3 {
        return Err(Error::bad(
            "dtype",
            "f16, bf16 or f32: scales do not travel with the keys",
            "e4m3",
        ));
    }
    check(problem)?;
    for (argument, layout) in [("k", &problem.k), ("v", &problem.v)] {
        let plain = TensorLayout::contiguous(layout.shape);
        let differs =
            |dim: usize| layout.shape[dim] > 1 && layout.strides[dim] != plain.strides[dim];
        if !layout.is_empty() && (0..4).any(differs) {
            return Err(Error::bad(
                argument,
                "a contiguous tensor, which travels as it is",
                format!("strides {:?}", layout.strides),
            ));
        }
    }
    Ok(())
}

pub(super) fn check_rank(rank: usize, world: usize) -> Result<()> {
    match rank < world {
        true => Ok(()),
        false => Err(Error::bad(
            "rank",
            format!("a rank below {world}, of which there are shards"),
            rank.to_string(),
        )),
    }
}

/// Refuses a tensor that has other tokens than the rank.
pub(super) fn check_tokens(
    argument: &'static str,
    layout: &TensorLayout,
    shards: &Shards,
    rank: usize,
) -> Result<()> {
    let tokens = shards.tokens(rank);
    match layout.shape[1] == tokens {
        true => Ok(()),
        false => Err(Error::bad(
            argument,
            format!("{tokens} tokens, as rank {rank} has"),
            format!("shape {:?}", layout.shape),
        )),
    }
}

/// Refuses an exchange of other ranks than planned for, or one in which something has gone wrong.
pub(super) fn check_exchange(exchange: &dyn Exchange, rank: usize, world: usize) -> Result<()> {
    let found = (exchange.rank(), exchange.world());
    if found != (rank, world) {
        return Err(Error::bad(
            "exchange",
            format!("rank {rank} of {world}, as planned"),
            format!("rank {} of {}", found.0, found.1),
        ));
    }
    exchange.check()
}

/// Refuses an address that a workspace cannot have.
pub(super) fn check_workspace(address: u64, bytes: usize) -> Result<()> {
    let last = bytes.max(1) as i64 - 1;
    check_pointer("workspace", bytes == 0, address, 1, 0, last)?;
    if bytes > 0 && !address.is_multiple_of(ALIGNMENT as u64) {
        return Err(Error::bad(
            "workspace",
            format!("an address that is a multiple of {ALIGNMENT}"),
            format!("{address:#x}"),
        ));
    }
    Ok(())
}

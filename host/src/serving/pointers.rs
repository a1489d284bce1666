//! Addresses on the device.

use super::{merge::check_wanted, problem::ServingProblem};
use crate::{error::Result, extent::check_address};

/// Device addresses of one launch. Each is the address of element 0 in every dimension (which is not the lowest one if strides are
/// negative). What the problem does not have is 0, and what has no elements may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServingPointers {
    /// Queries.
    pub q: u64,
    /// Keys.
    pub k: u64,
    /// Values; 0 where they are elements of keys.
    pub v: u64,
    /// Output.
    pub out: u64,
    /// Log-sum-exp, contiguous f32 ([`ServingProblem::lse_shape`](super::ServingProblem::lse_shape)). Needed exactly if the problem
    /// wants it.
    pub lse: Option<u64>,
    /// Where sequences of queries start, i32 `[batch + 1]`.
    pub q_starts: u64,
    /// How many queries of each sequence count, i32 `[batch]`.
    pub q_used: u64,
    /// Where sequences of keys start, i32 `[batch + 1]`.
    pub k_starts: u64,
    /// How many keys of each sequence count, i32 `[batch]`.
    pub k_used: u64,
    /// The table of pages, i32 or u32.
    pub table: u64,
    /// Scales of k, contiguous f32.
    pub k_scale: u64,
    /// Scales of v, as those of k; 0 where values are elements of keys.
    pub v_scale: u64,
    /// Slopes of ALiBi, f32 `[heads_q]` or [batch, heads_q].
    pub alibi: u64,
    /// Sinks, f32 `[heads_q]`.
    pub sink: u64,
    /// What is added to the scores.
    pub bias: u64,
    /// Which keys may be seen.
    pub mask: u64,
    /// Ranges, i32 [batch, ranges, 2].
    pub ranges: u64,
    /// At least [`ServingPlan::workspace_bytes`](super::ServingPlan::workspace_bytes) bytes, aligned to 256; 0 if that is 0.
    pub workspace: u64,
}

impl ServingPointers {
    /// Refuses addresses from which tensors cannot start.
    pub(super) fn check(&self, problem: &ServingProblem) -> Result<()> {
        check_wanted("lse", problem.lse, self.lse.is_some())?;
        let has = problem.extents();
        for (argument, extent, ptr) in [
            ("q", Some(has.q), self.q),
            ("out", Some(has.out), self.out),
            ("k", Some(has.k), self.k),
            ("v", has.v, self.v),
            ("lse", has.lse, self.lse.unwrap_or(0)),
            ("q_starts", has.q_starts, self.q_starts),
            ("q_used", has.q_used, self.q_used),
            ("k_starts", has.k_starts, self.k_starts),
            ("k_used", has.k_used, self.k_used),
            ("k_scale", has.k_scale, self.k_scale),
            ("v_scale", has.v_scale, self.v_scale),
            ("alibi", has.alibi, self.alibi),
            ("sink", has.sink, self.sink),
            ("ranges", has.ranges, self.ranges),
            ("table", has.table, self.table),
            ("bias", has.bias, self.bias),
            ("mask", has.mask, self.mask),
        ] {
            check_address(argument, extent, ptr)?;
        }
        Ok(())
    }
}

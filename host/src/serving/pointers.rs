//! Addresses on the device.

/// Device addresses of one launch. Each is the address of element 0 in every dimension (which is not the lowest one if strides are
/// negative). What the problem does not have is 0, and what has no elements may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServingPointers {
    /// Queries.
    pub q: u64,
    /// Keys.
    pub k: u64,
    /// Values.
    pub v: u64,
    /// Output.
    pub out: u64,
    /// Log-sum-exp, contiguous f32 ([`ServingProblem::lse_shape`](super::ServingProblem::lse_shape)). Needed exactly if the problem
    /// wants it.
    pub lse: Option<u64>,
    /// Where sequences of queries start, i32 [batch + 1].
    pub q_starts: u64,
    /// How many queries of each sequence count, i32 [batch].
    pub q_used: u64,
    /// Where sequences of keys start, i32 [batch + 1].
    pub k_starts: u64,
    /// How many keys of each sequence count, i32 [batch].
    pub k_used: u64,
    /// The table of pages, i32 or u32.
    pub table: u64,
    /// Slopes of ALiBi, f32 [heads_q] or [batch, heads_q].
    pub alibi: u64,
    /// Sinks, f32 [heads_q].
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

//! Addresses on the device.

use super::{merge::check_wanted, problem::ServingProblem};
use crate::{error::Result, layout::TensorLayout, plan::check_pointer};

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
        let element = problem.dtype.bytes();
        let out = problem.out_element().bytes();
        let tensor = |argument, layout: &TensorLayout, ptr, bytes| {
            let (low, high) = layout.offsets().unwrap_or_default();
            check_pointer(argument, layout.is_empty(), ptr, bytes, low, high)
        };
        tensor("q", &problem.q, self.q, element)?;
        tensor("out", &problem.out, self.out, out)?;
        if problem.latent {
            check_wanted("v", false, self.v != 0)?;
        }
        let v = if problem.latent { self.k } else { self.v };
        for (argument, layout, ptr) in [("k", &problem.k, self.k), ("v", &problem.v, v)] {
            let (low, high) = layout.offsets().unwrap_or_default();
            let bytes = problem.kv_dtype.bytes();
            check_pointer(argument, layout.is_empty(), ptr, bytes, low, high)?;
        }
        check_wanted("lse", problem.lse, self.lse.is_some())?;
        let sequences = problem.batch;
        let heads = problem.q.shape[2];
        let lse: usize = problem.lse_shape().iter().product();
        let slopes = match problem.alibi {
            Some(true) => sequences * heads,
            _ => heads,
        };
        let scales = problem.kv_scales.count(sequences, problem.k.shape[2]);
        let ranges = 2 * sequences * problem.ranges.unwrap_or(0);
        let (q, k) = (&problem.q_lengths, &problem.k_lengths);
        // Contiguous tensors of four-byte numbers.
        for (argument, present, ptr, numbers) in [
            ("lse", problem.lse, self.lse.unwrap_or(0), lse),
            ("q_starts", q.starts, self.q_starts, sequences + 1),
            ("q_used", q.used, self.q_used, sequences),
            ("k_starts", k.starts, self.k_starts, sequences + 1),
            ("k_used", k.used, self.k_used, sequences),
            ("k_scale", scales > 0, self.k_scale, scales),
            (
                "v_scale",
                scales > 0 && !problem.latent,
                self.v_scale,
                scales,
            ),
            ("alibi", problem.alibi.is_some(), self.alibi, slopes),
            ("sink", problem.sink, self.sink, heads),
            ("ranges", ranges > 0, self.ranges, ranges),
        ] {
            let is_empty = !present || numbers == 0;
            check_wanted(argument, !is_empty, ptr != 0)?;
            let last = numbers.max(1) as i64 - 1;
            check_pointer(argument, is_empty, ptr, 4, 0, last)?;
        }
        let table = problem.pages.map(|pages| (pages.tensor(sequences), 4));
        let bias = problem.bias.map(|bias| {
            let bytes = problem.bias_element(bias.element).bytes();
            (bias.tensor(), bytes)
        });
        let mask = problem
            .mask
            .map(|mask| (mask.tensor(), mask.element_bytes()));
        for (argument, layout, ptr) in [
            ("table", table, self.table),
            ("bias", bias, self.bias),
            ("mask", mask, self.mask),
        ] {
            match layout {
                Some((layout, bytes)) => tensor(argument, &layout, ptr, bytes)?,
                None => check_wanted(argument, false, ptr != 0)?,
            }
        }
        Ok(())
    }
}

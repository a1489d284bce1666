//! How much memory each tensor of a problem has.

use super::problem::ServingProblem;
use crate::extent::Extent;

/// Extents of a problem's tensors; none of those that it does not have. The problem has passed its checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServingExtents {
    pub q: Extent,
    pub k: Extent,
    /// None where values are elements of keys.
    pub v: Option<Extent>,
    pub out: Extent,
    pub lse: Option<Extent>,
    pub q_starts: Option<Extent>,
    pub q_used: Option<Extent>,
    pub k_starts: Option<Extent>,
    pub k_used: Option<Extent>,
    pub table: Option<Extent>,
    pub k_scale: Option<Extent>,
    /// None where values are elements of keys.
    pub v_scale: Option<Extent>,
    pub alibi: Option<Extent>,
    pub sink: Option<Extent>,
    pub bias: Option<Extent>,
    pub mask: Option<Extent>,
    pub ranges: Option<Extent>,
}

impl ServingProblem {
    pub(crate) fn extents(&self) -> ServingExtents {
        // All others are numbers of four bytes.
        let numbers = |exists: bool, count| exists.then(|| Extent::numbers(count, 4));
        let (batch, heads) = (self.batch, self.q.shape[2]);
        let (q, k) = (&self.q_lengths, &self.k_lengths);
        let starts = batch.saturating_add(1);
        let slopes = match self.alibi {
            Some(true) => batch.saturating_mul(heads),
            _ => heads,
        };
        let scales = self.kv_scales.count(batch, self.k.shape[2]);
        let ranges = self.ranges.unwrap_or(0).saturating_mul(batch);
        ServingExtents {
            q: Extent::tensor(&self.q, self.dtype.bytes()),
            k: Extent::cache(&self.k, self.kv_dtype.bytes()),
            v: (!self.latent).then(|| Extent::cache(&self.v, self.kv_dtype.bytes())),
            out: Extent::tensor(&self.out, self.out_element().bytes()),
            lse: numbers(self.lse, self.lse_shape().iter().product()),
            q_starts: numbers(q.starts, starts),
            q_used: numbers(q.used, batch),
            k_starts: numbers(k.starts, starts),
            k_used: numbers(k.used, batch),
            table: self
                .pages
                .map(|pages| Extent::tensor(&pages.tensor(batch), 4)),
            k_scale: numbers(scales > 0, scales),
            v_scale: numbers(scales > 0 && !self.latent, scales),
            alibi: numbers(self.alibi.is_some(), slopes),
            sink: numbers(self.sink, heads),
            bias: self.bias.map(|bias| {
                let bytes = self.bias_element(bias.element).bytes();
                Extent::tensor(&bias.tensor(), bytes)
            }),
            mask: self
                .mask
                .map(|mask| Extent::tensor(&mask.tensor(), mask.element_bytes())),
            ranges: numbers(ranges > 0, ranges.saturating_mul(2)),
        }
    }
}

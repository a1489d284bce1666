//! Smaller cases of inference engines.

use flashtile::{Window, serving::Splits};

use super::case::{Cache, CacheOrder, Queries, ServingCase};
use crate::shrink::Simplify;

impl Simplify for ServingCase {
    fn has_kernel(&self) -> bool {
        self.kernel().is_ok()
    }

    /// Cases with one thing less, the largest steps first.
    fn simpler(&self) -> Vec<Self> {
        let mut cases = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut simpler = self.clone();
            change(&mut simpler);
            if simpler != *self {
                cases.push(simpler);
            }
        };
        with(&|c| {
            *c = Self {
                dims: c.dims,
                latent: c.latent,
                kv_scales: c.kv_scales,
                heads_kv: c.heads_kv,
                q_per_kv: c.q_per_kv,
                seed: c.seed,
                hostile: c.hostile,
                arch: c.arch,
                ..Self::new(c.dtype, &c.lengths, 1)
            };
        });
        for at in 0..self.lengths.len() {
            if self.lengths.len() > 1 {
                with(&|c| c.lengths = vec![c.lengths[at]]);
                with(&|c| {
                    c.lengths.remove(at);
                });
            }
        }
        with(&|c| (c.heads_kv, c.q_per_kv) = (1, 1));
        with(&|c| c.heads_kv = 1);
        with(&|c| c.q_per_kv = 1);
        with(&|c| c.room = 0);
        with(&|c| c.queries = Queries::Packed);
        with(&|c| c.cache = Cache::Packed);
        with(&|c| c.order = CacheOrder::RowsFirst);
        with(&|c| c.gap = 0);
        with(&|c| c.causal = None);
        with(&|c| c.window = Window::default());
        with(&|c| c.window.left = None);
        with(&|c| c.window.right = None);
        with(&|c| c.scale = None);
        with(&|c| c.softcap = None);
        with(&|c| c.alibi = None);
        with(&|c| c.sink = false);
        with(&|c| c.bias = None);
        with(&|c| c.mask = None);
        with(&|c| c.ranges = 0);
        with(&|c| c.wide_out = false);
        with(&|c| c.splits = Splits::One);
        with(&|c| c.spread = 1.0);
        with(&|c| c.hostile = false);
        for at in 0..self.lengths.len() {
            for which in 0..2 {
                for smaller in [|n| n / 4, |n| n / 2, |n: usize| n - n / 8, |n| n - 1] {
                    with(&|c| c.lengths[at][which] = smaller(c.lengths[at][which].max(1)));
                }
            }
        }
        for which in 0..2 {
            for smaller in [|n| n / 2, |n: usize| n - n / 8, |n| n - 1] {
                with(&|c| c.dims[which] = smaller(c.dims[which]).max(1));
            }
        }
        cases
    }
}

//! From a case that fails to a small one that does.

use std::time::{Duration, Instant};

use flashtile::{DType, OutDType, ScaleLayout, Scales, Shape, Window};

use crate::{
    case::{Case, Placement},
    data::Distribution,
};

/// What can become smaller.
pub trait Simplify: Sized {
    /// Cases with one thing less, the largest steps first. Each is smaller than this one in some order that has no infinite descent,
    /// so that shrinking ends.
    fn simpler(&self) -> Vec<Self>;
    /// Whether there is a kernel for it.
    fn has_kernel(&self) -> bool;
}

impl Simplify for Case {
    fn simpler(&self) -> Vec<Self> {
        simpler(self)
    }

    fn has_kernel(&self) -> bool {
        self.planned().is_ok()
    }
}

/// Tries simpler cases as long as one of them fails, and returns the last that did, with its reason.
///
/// `failure` says what is wrong with a case, if anything. Every case it is asked about has a kernel.
pub fn shrink<C: Simplify>(
    case: C,
    reason: String,
    limit: Duration,
    failure: impl Fn(&C) -> Option<String>,
) -> (C, String) {
    let begin = Instant::now();
    let (mut smallest, mut why) = (case, reason);
    'simpler: loop {
        for candidate in smallest.simpler() {
            if begin.elapsed() > limit {
                break 'simpler;
            }
            if candidate.has_kernel()
                && let Some(reason) = failure(&candidate)
            {
                (smallest, why) = (candidate, reason);
                continue 'simpler;
            }
        }
        break;
    }
    (smallest, why)
}

/// [`Simplify::simpler`].
fn simpler(case: &Case) -> Vec<Case> {
    let mut cases = options(case);
    let mut with = |change: &dyn Fn(&mut Shape)| {
        let mut smaller = *case;
        change(&mut smaller.shape);
        if smaller.shape != case.shape {
            cases.push(smaller);
        }
    };
    let ratio = case.shape.heads_q / case.shape.heads_kv.max(1);
    with(&|s| s.batch = s.batch.min(1));
    with(&|s| (s.heads_q, s.heads_kv) = (1, 1));
    with(&|s| (s.heads_q, s.heads_kv) = (ratio, 1));
    with(&|s| s.heads_q = s.heads_kv);
    if ratio > 2 {
        with(&|s| s.heads_q = s.heads_kv * (ratio - 1));
    }
    for smaller in [|n| n / 4, |n| n / 2, |n: usize| n - n / 8, |n| n - 1] {
        // Without queries there is no result.
        let shorter = |n: usize, least: usize| smaller(n.max(1)).max(least).min(n);
        with(&|s| {
            (s.seqlen_q, s.seqlen_k) = (shorter(s.seqlen_q, 1), shorter(s.seqlen_k, 0));
        });
        with(&|s| s.seqlen_q = shorter(s.seqlen_q, 1));
        with(&|s| s.seqlen_k = shorter(s.seqlen_k, 0));
        with(&|s| {
            s.head_dim_qk = shorter(s.head_dim_qk, 1);
            s.head_dim_v = shorter(s.head_dim_v, 1);
        });
        with(&|s| s.head_dim_qk = shorter(s.head_dim_qk, 1));
        with(&|s| s.head_dim_v = shorter(s.head_dim_v, 1));
    }
    for smaller in [|n: u32| n / 2, |n: u32| n.saturating_sub(1)] {
        let Window { left, right } = case.window;
        cases.push(case.window(left.map(smaller), right));
        cases.push(case.window(left, right.map(smaller)));
    }
    cases.retain(|smaller| smaller != case);
    cases
}

/// The case without one of its options, or without all of them.
fn options(case: &Case) -> Vec<Case> {
    let plain = Case {
        algorithm: case.algorithm,
        arch: case.arch,
        ..Case::new(case.dtype, case.shape)
    };
    let mut cases = vec![plain];
    let mut with = |change: &dyn Fn(&mut Case)| {
        let mut simpler = *case;
        change(&mut simpler);
        cases.push(simpler);
    };
    with(&|c| c.placements = plain.placements);
    for at in 0..case.placements.len() {
        with(&|c| c.placements[at] = Placement::default());
        with(&|c| c.placements[at].heads_first = false);
        with(&|c| c.placements[at].pad = 0);
        with(&|c| c.placements[at].offset = 0);
        with(&|c| c.placements[at].backwards = false);
        with(&|c| c.placements[at].broadcast = false);
    }
    with(&|c| c.causal = None);
    with(&|c| c.window = Window::default());
    with(&|c| c.window.left = None);
    with(&|c| c.window.right = None);
    with(&|c| c.scale = None);
    with(&|c| c.softcap = None);
    with(&|c| c.out_dtype = OutDType::Same);
    with(&|c| c.scales = Scales::default());
    with(&|c| c.scales.q = ScaleLayout::One);
    with(&|c| c.scales.k = ScaleLayout::One);
    with(&|c| c.scales.v = ScaleLayout::One);
    with(&|c| c.data = Distribution::Normal);
    with(&|c| c.poison = false);
    with(&|c| c.seed = 0);
    if case.dtype == DType::Bf16 {
        with(&|c| c.dtype = DType::F16);
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shrunk(line: &str, failure: impl Fn(&Case) -> bool) -> String {
        let failure = |case: &Case| failure(case).then(|| case.to_string());
        let case = line.parse().unwrap();
        let (smallest, why) = shrink(case, String::new(), Duration::from_secs(60), failure);
        assert_eq!(smallest.to_string(), why);
        why
    }

    const LINE: &str = "fused bf16 b2 q137 k270 h6/2 d128/64 causal=top-left window=70,3 scale=-3e-1 softcap=3e1 \
                        out-dtype=f32 k=heads-first+3@1 data=peaked seed=9";

    #[test]
    fn what_does_not_matter_goes() {
        let found = shrunk(LINE, |case| {
            case.shape.seqlen_k > 64 && case.scale.is_some()
        });
        assert_eq!(found, "fused f16 b1 q1 k65 h1/1 d1/1 scale=-3e-1 seed=0");
        let found = shrunk(LINE, |case| {
            case.shape.heads_q / case.shape.heads_kv > 2 && case.placements[1].offset > 0
        });
        assert_eq!(
            found,
            "fused f16 b1 q1 k0 h3/1 d1/1 k=seqlen-first+0@1 seed=0"
        );
    }

    #[test]
    fn what_always_fails_shrinks_to_next_to_nothing() {
        assert_eq!(
            shrunk(LINE, |_| true),
            "fused f16 b1 q1 k0 h1/1 d1/1 seed=0"
        );
    }

    #[test]
    fn a_failure_that_is_gone_leaves_the_case() {
        let case: Case = LINE.parse().unwrap();
        let limit = Duration::from_secs(60);
        let (same, why) = shrink(case, "once".into(), limit, |_| None);
        assert_eq!((same, why.as_str()), (case, "once"));
    }
}

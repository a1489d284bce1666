//! What results are judged by: an oracle in f64, the textbook computation in the input's
//! precision, and the bound that follows from the two.
//!
//! Nothing here shares the kernels' arithmetic: visibility is decided pair by pair from the
//! definitions of the masks, never from bands or blocks.

mod accumulator;
mod bound;
mod low_precision;
mod oracle;
mod rows;
mod sensitivity;

pub use bound::{Comparison, ErrorBound, compare, error_bound};
pub use low_precision::{LowPrecision, attention_low_precision};
pub use oracle::{Reference, attention_f64};

pub(crate) use bound::{Errors, Part, bound_of, difference, in_range};
pub(crate) use low_precision::low_precision;
pub(crate) use oracle::oracle;
pub(crate) use rows::{Heads, per_row};

use flashtile_abi::DType;

use crate::problem::{CausalAlignment, Problem};

/// How scores, and outputs, are made of products.
#[derive(Clone, Copy)]
pub(crate) struct Scoring<'a> {
    /// Type of q, k and v.
    pub dtype: DType,
    /// Type of out.
    pub out: DType,
    /// Factor of the scores.
    pub scale: f32,
    /// Their cap.
    pub softcap: Option<f32>,
    /// What is added to them, and which there are.
    pub pairs: &'a dyn Pairs,
}

/// A function of pairs of a query and a key.
pub(crate) trait Pairs: Sync {
    /// What is added to the score of query `i` of query head `h` and key `j`, or `None` if the query does not see the key.
    fn term(&self, h: usize, i: usize, j: usize) -> Option<Term>;

    /// Whether anything but 0 is ever added.
    fn adds(&self) -> bool {
        false
    }

    /// Logit of a key that each query of the head sees, whose value is 0; -inf if there is none.
    fn sink(&self, _h: usize) -> f64 {
        f64::NEG_INFINITY
    }
}

/// What is added to a score.
#[derive(Clone, Copy, Default)]
pub(crate) struct Term {
    /// All of it.
    pub sum: f64,
    /// Sum of the absolute values of what it is made of.
    pub magnitude: f64,
}

impl Pairs for Problem {
    fn term(&self, _h: usize, i: usize, j: usize) -> Option<Term> {
        visible(self, i, j).then_some(Term::default())
    }
}

impl<'a> Scoring<'a> {
    /// Of a dense problem.
    fn of(problem: &'a Problem) -> Self {
        Self {
            dtype: problem.dtype,
            out: problem.out_element(),
            scale: problem.softmax_scale(),
            softcap: problem.softcap,
            pairs: problem,
        }
    }
}

/// Whether query `i` attends key `j` (both below their sequence's length), by the definitions of
/// [`Problem::causal`] and [`Problem::window`].
pub fn visible(problem: &Problem, i: usize, j: usize) -> bool {
    let (seqlen_q, seqlen_k) = (problem.q.shape[1] as i128, problem.k.shape[1] as i128);
    // The key at which the query stands.
    let diagonal = match problem.causal {
        Some(CausalAlignment::TopLeft) => i as i128,
        Some(CausalAlignment::BottomRight) | None => i as i128 + seqlen_k - seqlen_q,
    };
    let distance = j as i128 - diagonal;
    let not_future = problem.causal.is_none() || distance <= 0;
    let not_left_of_window = problem
        .window
        .left
        .is_none_or(|left| distance >= -i128::from(left));
    let not_right_of_window = problem
        .window
        .right
        .is_none_or(|right| distance <= i128::from(right));
    not_future && not_left_of_window && not_right_of_window
}

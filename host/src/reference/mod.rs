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

pub(crate) use rows::{Heads, per_row};

use crate::problem::{CausalAlignment, Problem};

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

//! From masks to the band of the score matrix.

use flashtile_abi::Band;

use crate::problem::{CausalAlignment, Problem, Window};

/// The band that a problem's masks amount to. Sequence lengths must be at most [`Band::MAX_SEQLEN`].
pub(crate) fn band(problem: &Problem) -> Band {
    let shape = problem.shape();
    band_of(
        problem.causal,
        problem.window,
        shape.seqlen_q as i32,
        shape.seqlen_k as i32,
    )
}

/// The band of a causal mask and a window over a sequence of such lengths.
pub(crate) fn band_of(
    causal: Option<CausalAlignment>,
    window: Window,
    seqlen_q: i32,
    seqlen_k: i32,
) -> Band {
    // Query i stands at key i + offset.
    let offset = match causal.unwrap_or_default() {
        CausalAlignment::BottomRight => i64::from(seqlen_k) - i64::from(seqlen_q),
        CausalAlignment::TopLeft => 0,
    };
    let right = match (causal, window.right) {
        (Some(_), _) => Some(0),
        (None, right) => right,
    };
    let lower = window.left.map(|left| offset - i64::from(left));
    let upper = right.map(|right| offset + i64::from(right));
    let limit = |bound: i64| {
        bound.clamp(
            i64::from(Band::UNBOUNDED_LOWER),
            i64::from(Band::UNBOUNDED_UPPER),
        ) as i32
    };
    Band {
        lower: lower.map_or(Band::UNBOUNDED_LOWER, limit),
        upper: upper.map_or(Band::UNBOUNDED_UPPER, limit),
        seqlen_k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, problem::Shape, reference};

    /// Every pair of query and key, against the definition the reference uses.
    #[test]
    fn bands_show_what_the_definitions_show() {
        let bounds = [None, Some(0), Some(1), Some(2), Some(5), Some(u32::MAX)];
        let causal = [
            None,
            Some(CausalAlignment::BottomRight),
            Some(CausalAlignment::TopLeft),
        ];
        for seqlen_q in [1, 2, 5, 9] {
            for seqlen_k in [0, 1, 3, 5, 8] {
                for causal in causal {
                    for left in bounds {
                        for right in bounds {
                            let shape = Shape {
                                batch: 1,
                                seqlen_q,
                                seqlen_k,
                                heads_q: 1,
                                heads_kv: 1,
                                head_dim_qk: 8,
                                head_dim_v: 8,
                            };
                            let mut problem =
                                Problem::contiguous(DType::F16, shape).window(left, right);
                            problem.causal = causal;
                            let band = band(&problem);
                            for i in 0..seqlen_q {
                                let keys = band.row(i as i32);
                                for j in 0..seqlen_k {
                                    let inside = keys.begin <= j as i32 && (j as i32) < keys.end;
                                    let visible = reference::visible(&problem, i, j);
                                    assert_eq!(inside, visible, "{problem:?} ({i}, {j})");
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

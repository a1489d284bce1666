//! Algebraic laws: what holds between the results of different problems.

use flashtile::{ArchChoice, CausalAlignment, DType, ScaleLayout, Window};
use flashtile_tests::{
    Case, Results, Tensors, assert_near, assert_same_bits, bound,
    data::{Random, rebuild, row},
    devices_for,
    generate::{Axes, for_each_variant},
    judge, oracle, run,
};

type Outcome = Result<(), String>;

/// Cases of each variant that a law is tried on.
const CASES: u32 = 2;

/// Contiguous problems of any head dimensions. Where tensors are taken apart, scales would have to be, too.
const ANY: Axes = Axes {
    placements: false,
    scales: false,
    ..Axes::ALL
};

/// The same without masks.
const UNMASKED: Axes = Axes {
    masks: false,
    ..ANY
};

/// Tries a law on every device and every variant, on generated cases.
fn law(axes: Axes, law: impl Fn(&dyn flashtile::Device, &Case) -> Outcome) {
    for_each_variant(CASES, axes, |case| {
        devices_for(case).try_for_each(|(_, device)| law(device, case))
    });
}

fn same(what: &str, a: &Results, b: &Results) -> Outcome {
    assert_same_bits(&format!("{what}: out"), &a.out, &b.out)?;
    assert_same_bits(&format!("{what}: lse"), &a.lse, &b.lse)
}

/// Two results of the same mathematical value, each within `case`'s bound of it.
fn near(what: &str, case: &Case, tensors: &Tensors, a: &Results, b: &Results) -> Outcome {
    let bound = bound(case, tensors);
    let out = format!("{case}\n  {what}: out");
    assert_near(&out, &a.out, &b.out, 2.0 * bound.max_abs)?;
    let lse = format!("{case}\n  {what}: lse");
    assert_near(&lse, &a.lse, &b.lse, 2.0 * bound.lse_max_abs)
}

#[test]
fn the_order_of_keys_does_not_matter() {
    law(UNMASKED, |device, case| {
        let [_, k, v, _] = case.shapes();
        let tensors = Tensors::of(case);
        let order = Random::new(case.seed).permutation(case.shape.seqlen_k);
        let pick = |b: usize, s: usize, h: usize| [b, order[s], h];
        let shuffled = Tensors {
            k: rebuild(&tensors.k, k, k, pick),
            v: rebuild(&tensors.v, v, v, pick),
            ..tensors.clone()
        };
        let (a, b) = (run(device, case, &tensors)?, run(device, case, &shuffled)?);
        near("shuffled keys", case, &tensors, &a, &b)
    });
}

/// A constant added to all scores of a row moves its log-sum-exp by as much and its output not at
/// all. The constant comes from one more component: 1 in every key, the row's shift in the query.
#[test]
fn a_shift_of_a_rows_scores_moves_its_lse_alone() {
    // One component more must still be one that kernels have.
    let axes = Axes { spare: 1, ..ANY };
    law(axes, |device, case| {
        let case = Case {
            softcap: None,
            scale: Some(0.25),
            ..*case
        };
        let tensors = Tensors::of(&case);
        let wide = widened(&case, 1);
        let s = wide.shape;
        // Multiples of 4, exact in every element type, as are the scores' shifts.
        let shift = |i: usize| 4.0 * (i % 5) as f32 - 8.0;
        let append = |rows: &[f32], dim: usize, last: &dyn Fn(usize) -> f32| -> Vec<f32> {
            let rows = rows.chunks(dim).enumerate();
            rows.flat_map(|(at, row)| row.iter().copied().chain([last(at)]))
                .collect()
        };
        let dim = case.shape.head_dim_qk;
        let shifted = Tensors {
            q: append(&tensors.q, dim, &|at| shift(at / s.heads_q % s.seqlen_q)),
            k: append(&tensors.k, dim, &|_| 1.0),
            ..tensors.clone()
        };
        let (a, mut b) = (run(device, &case, &tensors)?, run(device, &wide, &shifted)?);
        judge(&wide, &shifted, &b)?;
        for (at, lse) in b.lse.iter_mut().enumerate() {
            *lse -= 0.25 * shift(at % s.seqlen_q);
        }
        // The wider problem's bound knows of the larger scores.
        near("shifted scores", &wide, &shifted, &a, &b)
    });
}

/// The same case with longer queries and keys.
fn widened(case: &Case, more: usize) -> Case {
    let mut wide = *case;
    wide.shape.head_dim_qk += more;
    // The default scale would change with head_dim.
    wide.scale = Some(case.problem().softmax_scale());
    plain(wide)
}

/// The same case over tensors that lie as simply as the tier allows.
fn plain(case: Case) -> Case {
    let contiguous = Case {
        placements: Default::default(),
        ..case
    };
    match case.arch {
        ArchChoice::Sm90a => contiguous.addressable(),
        ArchChoice::Auto | ArchChoice::Sm80 => contiguous,
    }
}

#[test]
fn zero_columns_change_nothing() {
    let axes = Axes { spare: 9, ..ANY };
    law(axes, |device, case| {
        let tensors = Tensors::of(case);
        let dim = case.shape.head_dim_qk;
        let append = |rows: &[f32]| -> Vec<f32> {
            let rows = rows.chunks(dim);
            rows.flat_map(|row| row.iter().copied().chain([0.0; 9]))
                .collect()
        };
        let wider = Tensors {
            q: append(&tensors.q),
            k: append(&tensors.k),
            ..tensors.clone()
        };
        let wide = widened(case, 9);
        let (a, b) = (run(device, case, &tensors)?, run(device, &wide, &wider)?);
        near("zero columns", case, &tensors, &a, &b)
    });
}

/// Attention over the keys' halves, merged by their log-sum-exps, is attention over all keys.
#[test]
fn halves_merged_by_lse_are_the_whole() {
    law(UNMASKED, |device, case| {
        let case = case.out_f32();
        let tensors = Tensors::of(&case);
        let [_, k, v, _] = case.shapes();
        let cut = case.shape.seqlen_k / 3;
        let part = |begin: usize, end: usize| {
            let mut case = case;
            case.shape.seqlen_k = end - begin;
            let [_, part_k, part_v, _] = case.shapes();
            let pick = |b: usize, s: usize, h: usize| [b, begin + s, h];
            let tensors = Tensors {
                q: tensors.q.clone(),
                k: rebuild(&tensors.k, k, part_k, pick),
                v: rebuild(&tensors.v, v, part_v, pick),
                ..tensors.clone()
            };
            (case, tensors)
        };
        let whole = run(device, &case, &tensors)?;
        let (first, first_data) = part(0, cut);
        let (second, second_data) = part(cut, case.shape.seqlen_k);
        let a = run(device, &first, &first_data)?;
        let b = run(device, &second, &second_data)?;
        let merged = merge(&case, &a, &b);
        // A merged output is a mean of two, each within its own bound.
        let limits = [
            bound(&case, &tensors),
            bound(&first, &first_data),
            bound(&second, &second_data),
        ];
        let lse_limit: f64 = limits.iter().map(|b| b.lse_max_abs).sum();
        let largest = tensors.v.iter().fold(0.0, |max: f32, v| max.max(v.abs()));
        // An error e of the lse moves a weight by at most e / 4 of itself, twice.
        let out_limit: f64 = limits.iter().map(|b| b.max_abs).sum::<f64>()
            + lse_limit * f64::from(largest)
            + 1e-6 * f64::from(largest);
        let name = format!("{case}\n  merged");
        assert_near(&name, &merged.out, &whole.out, out_limit)?;
        assert_near(&name, &merged.lse, &whole.lse, lse_limit + 1e-6)
    });
}

/// Both states as one.
fn merge(case: &Case, a: &Results, b: &Results) -> Results {
    let (s, shape) = (case.shape, case.shapes()[3]);
    let mut merged = a.clone();
    for batch in 0..s.batch {
        for i in 0..s.seqlen_q {
            for h in 0..s.heads_q {
                let at = (batch * s.heads_q + h) * s.seqlen_q + i;
                let (x, y) = (f64::from(a.lse[at]), f64::from(b.lse[at]));
                let max = x.max(y);
                if max == f64::NEG_INFINITY {
                    continue;
                }
                let sum = (x - max).exp() + (y - max).exp();
                merged.lse[at] = (max + sum.ln()) as f32;
                for c in row(shape, batch, i, h) {
                    let (u, v) = (f64::from(a.out[c]), f64::from(b.out[c]));
                    merged.out[c] = ((u * (x - max).exp() + v * (y - max).exp()) / sum) as f32;
                }
            }
        }
    }
    merged
}

#[test]
fn grouped_queries_are_repeated_keys_and_values() {
    law(ANY, |device, case| {
        let ratio = case.shape.heads_q / case.shape.heads_kv;
        let tensors = Tensors::of(case);
        let mut repeated = *case;
        repeated.shape.heads_kv = case.shape.heads_q;
        let ([_, k, v, _], [_, all_k, all_v, _]) = (case.shapes(), repeated.shapes());
        let pick = |b: usize, s: usize, h: usize| [b, s, h / ratio];
        let all = Tensors {
            q: tensors.q.clone(),
            k: rebuild(&tensors.k, k, all_k, pick),
            v: rebuild(&tensors.v, v, all_v, pick),
            ..tensors.clone()
        };
        let (a, b) = (run(device, case, &tensors)?, run(device, &repeated, &all)?);
        let what = format!("{case}\n  repeated heads");
        let masked = case.causal.is_some() || case.window != Window::default();
        if masked && shares_tiles(case) {
            // The rows of a tile are others then, and with them the tiles of keys that take the way of those with masks.
            return near(&what, case, &tensors, &a, &b);
        }
        same(&what, &a, &b)
    });
}

/// Whether several heads share the rows of a tile.
fn shares_tiles(case: &Case) -> bool {
    let plan = case.plan().ok();
    plan.is_some_and(|plan| plan.schedule().is_some_and(|schedule| schedule.pack > 0))
}

/// Row i under a causal mask is full attention over the keys up to i.
#[test]
fn causal_rows_are_full_attention_over_their_prefix() {
    law(UNMASKED, |device, case| {
        for alignment in [CausalAlignment::BottomRight, CausalAlignment::TopLeft] {
            let causal = case.causal(alignment);
            let tensors = Tensors::of(&causal);
            let results = run(device, &causal, &tensors)?;
            let s = case.shape;
            let limit = bound(&causal, &tensors);
            let mut random = Random::new(case.seed);
            for i in [0, random.below(s.seqlen_q), s.seqlen_q - 1] {
                let diagonal = match alignment {
                    CausalAlignment::TopLeft => i as i64,
                    CausalAlignment::BottomRight => {
                        i as i64 + s.seqlen_k as i64 - s.seqlen_q as i64
                    }
                };
                let keys = (diagonal + 1).clamp(0, s.seqlen_k as i64) as usize;
                let mut prefix = *case;
                (prefix.shape.seqlen_q, prefix.shape.seqlen_k) = (1, keys);
                let (old, new) = (case.shapes(), prefix.shapes());
                let first = |b: usize, s: usize, h: usize| [b, s, h];
                let cut = Tensors {
                    q: rebuild(&tensors.q, old[0], new[0], |b, _, h| [b, i, h]),
                    k: rebuild(&tensors.k, old[1], new[1], first),
                    v: rebuild(&tensors.v, old[2], new[2], first),
                    ..tensors.clone()
                };
                let alone = run(device, &prefix, &cut)?;
                let out = rebuild(&results.out, old[3], new[3], |b, _, h| [b, i, h]);
                let lse: Vec<f32> = results.lse.chunks(s.seqlen_q).map(|row| row[i]).collect();
                let own = bound(&prefix, &cut);
                let name = format!("{causal}\n  row {i}");
                assert_near(&name, &out, &alone.out, limit.max_abs + own.max_abs)?;
                let lse_limit = limit.lse_max_abs + own.lse_max_abs;
                assert_near(&name, &lse, &alone.lse, lse_limit)?;
            }
        }
        Ok(())
    });
}

/// The two tiers compute the same, each within its bound, which is the same for both.
#[test]
fn tiers_agree() {
    law(Axes::ALL, |device, case| {
        let other = case.arch(ArchChoice::Sm80);
        if case.arch == ArchChoice::Sm80 || other.planned().is_err() {
            return Ok(());
        }
        let tensors = Tensors::of(case);
        let (a, b) = (run(device, case, &tensors)?, run(device, &other, &tensors)?);
        judge(case, &tensors, &a)?;
        judge(&other, &tensors, &b)?;
        near("the sm_80 tier", case, &tensors, &a, &b)
    });
}

#[test]
fn batches_do_not_know_of_each_other() {
    law(ANY, |device, case| {
        let mut case = *case;
        case.shape.batch = 3;
        let tensors = Tensors::of(&case);
        let together = run(device, &case, &tensors)?;
        let mut one = case;
        one.shape.batch = 1;
        let (old, new) = (case.shapes(), one.shapes());
        for batch in 0..3 {
            let pick = |_: usize, s: usize, h: usize| [batch, s, h];
            let cut = Tensors {
                q: rebuild(&tensors.q, old[0], new[0], pick),
                k: rebuild(&tensors.k, old[1], new[1], pick),
                v: rebuild(&tensors.v, old[2], new[2], pick),
                ..tensors.clone()
            };
            let rows = together.lse.len() / 3;
            let expected = Results {
                out: rebuild(&together.out, old[3], new[3], pick),
                lse: together.lse[batch * rows..][..rows].to_vec(),
            };
            let alone = run(device, &one, &cut)?;
            same(&format!("{case}\n  batch {batch}"), &alone, &expected)?;
        }
        Ok(())
    });
}

#[test]
fn a_window_wider_than_the_sequences_is_no_window() {
    law(ANY, |device, case| {
        let s = case.shape;
        let reach = (s.seqlen_q + s.seqlen_k) as u32;
        let open = Case {
            window: Window::default(),
            ..*case
        };
        let tensors = Tensors::of(case);
        let expected = run(device, &open, &tensors)?;
        for side in [reach, u32::MAX] {
            let wide = open.window(Some(side), open.causal.is_none().then_some(side));
            let found = run(device, &wide, &tensors)?;
            same(&format!("{wide}\n  without a window"), &found, &expected)?;
        }
        Ok(())
    });
}

#[test]
fn two_runs_give_the_same_bits() {
    law(Axes::ALL, |device, case| {
        let tensors = Tensors::of(case);
        let (a, b) = (run(device, case, &tensors)?, run(device, case, &tensors)?);
        same(&format!("{case}\n  second run"), &a, &b)
    });
}

/// Scales of heads or of blocks that are all alike are a scale of the tensor.
#[test]
fn equal_scales_are_one_scale() {
    law(ANY, |device, case| {
        if case.dtype != DType::E4m3 {
            return Ok(());
        }
        let run = |layout: ScaleLayout| {
            let case = case.scales(layout);
            let mut tensors = Tensors::of(&case);
            for (scales, x) in tensors.scales.iter_mut().zip([0.7, 1.3, 0.6]) {
                scales.fill(x);
            }
            let results = run(device, &case, &tensors)?;
            Ok::<_, String>((case, tensors, results))
        };
        let (one, tensors, expected) = run(ScaleLayout::PerTensor)?;
        for layout in [ScaleLayout::PerHead, ScaleLayout::PerBlock { rows: 128 }] {
            let (scaled, _, found) = run(layout)?;
            near(&format!("{scaled}"), &one, &tensors, &expected, &found)?;
        }
        Ok(())
    });
}

/// The layout of tensors in memory changes which copies are used, and no bit of the result.
#[test]
fn placement_does_not_matter() {
    law(Axes::ALL, |device, case| {
        let tensors = Tensors::of(case);
        let (a, b) = (
            run(device, case, &tensors)?,
            run(device, &plain(*case), &tensors)?,
        );
        same(&format!("{case}\n  contiguous"), &a, &b)
    });
}

/// Column c of the output depends on column c of the values alone.
#[test]
fn columns_of_values_are_independent() {
    law(ANY, |device, case| {
        let dim = case.shape.head_dim_v;
        let tensors = Tensors::of(case);
        let changed = Random::new(case.seed).below(dim);
        let mut others = tensors.clone();
        for v in others.v.iter_mut().skip(changed).step_by(dim) {
            *v = 3.0 - *v;
        }
        // Rounding may not take a number out of the element type.
        others.v = others
            .v
            .iter()
            .map(|&v| flashtile::element::round(case.dtype, v))
            .collect();
        let (a, mut b) = (run(device, case, &tensors)?, run(device, case, &others)?);
        for (x, y) in a.out.iter().zip(&mut b.out).skip(changed).step_by(dim) {
            *y = *x;
        }
        same(&format!("{case}\n  but column {changed}"), &a, &b)
    });
}

/// The oracle itself obeys the law that defines a softmax: equal values are their own average.
#[test]
fn an_average_of_equal_values_is_that_value() {
    law(ANY, |device, case| {
        let mut tensors = Tensors::of(case);
        tensors.v.fill(0.75);
        let results = run(device, case, &tensors)?;
        judge(case, &tensors, &results)?;
        let reference = oracle(case, &tensors);
        let wrong = |r: &f64| *r != 0.0 && (*r - 0.75).abs() > 1e-12;
        match reference.out.iter().find(|r| wrong(r)) {
            Some(r) => Err(format!("{case}: the oracle's average is {r}")),
            None => Ok(()),
        }
    });
}

//! The oracle against numbers made by hand, and the other implementations against the oracle.

use proptest::prelude::*;

use super::*;
use crate::{
    CausalAlignment, DType, OutDType, ScaleLayout, Scales, Shape, TensorLayout, cpu,
    element::{encode, gather, read},
};

/// Uniform in [-1, 1), the same everywhere (xorshift64*).
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn tensors(problem: &Problem) -> [Vec<u8>; 3] {
    let mut seed = 7;
    [&problem.q, &problem.k, &problem.v].map(|layout: &TensorLayout| {
        seed += 12345;
        encode(problem.dtype, &noise(layout.span().unwrap(), seed))
    })
}

fn inputs(tensors: &[Vec<u8>; 3]) -> Inputs<'_> {
    Inputs {
        q: &tensors[0],
        k: &tensors[1],
        v: &tensors[2],
        ..Inputs::default()
    }
}

/// One head, and head dimensions of one.
fn numbers(seqlen_q: usize, seqlen_k: usize) -> Shape {
    Shape {
        batch: 1,
        seqlen_q,
        seqlen_k,
        heads_q: 1,
        heads_kv: 1,
        head_dim_qk: 1,
        head_dim_v: 1,
    }
}

fn shape(seqlen_q: usize, seqlen_k: usize) -> Shape {
    Shape {
        batch: 2,
        seqlen_q,
        seqlen_k,
        heads_q: 4,
        heads_kv: 2,
        head_dim_qk: 16,
        head_dim_v: 8,
    }
}

#[test]
fn two_keys_by_hand() {
    let problem = Problem::contiguous(DType::F32, numbers(1, 2)).scale(1.0);
    let (q, k, v) = (
        encode(DType::F32, &[1.0]),
        encode(DType::F32, &[0.0, 3f32.ln()]),
        encode(DType::F32, &[10.0, 20.0]),
    );
    let inputs = Inputs {
        q: &q,
        k: &k,
        v: &v,
        ..Inputs::default()
    };
    // Weights 1/4 and 3/4.
    let found = attention_f64(&problem, &inputs).unwrap();
    assert!((found.out[0] - 17.5).abs() < 1e-6, "{found:?}");
    assert!((found.lse[0] - 4f64.ln()).abs() < 1e-6);
    // The second key is in the future.
    let top_left = problem.causal(CausalAlignment::TopLeft);
    let found = attention_f64(&top_left, &inputs).unwrap();
    assert_eq!((found.out[0], found.lse[0]), (10.0, 0.0));
    // Capped: 0 and tanh(ln 3) = 0.8.
    let found = attention_f64(&problem.softcap(1.0), &inputs).unwrap();
    assert!((found.lse[0] - (1.0 + 0.8f64.exp()).ln()).abs() < 1e-6);
}

#[test]
fn a_single_output_is_judged_by_the_roundings_it_can_suffer() {
    // Scores of 0: the textbook is exact by luck.
    let bound = |seqlen_k| {
        let problem = Problem::contiguous(DType::F16, numbers(1, seqlen_k));
        let (zeros, ones) = (vec![0.0; seqlen_k], vec![1.0; seqlen_k]);
        let [q, k, v] = [&[1.0][..], &zeros, &ones].map(|x| encode(DType::F16, x));
        let inputs = Inputs {
            q: &q,
            k: &k,
            v: &v,
            ..Inputs::default()
        };
        let reference = attention_f64(&problem, &inputs).unwrap();
        let low = attention_low_precision(&problem, &inputs).unwrap();
        assert_eq!(low.out, [1.0]);
        let bound = error_bound(&problem, &inputs, &reference, &low).unwrap();
        // Less the rounding of the reference: 1 + 0.3 - 0.3 in f16.
        let round = |x: f32| element::round(DType::F16, x);
        bound.max_abs - 2.0 * f64::from(round(round(1.3) - 0.3) - 1.0).abs()
    };
    // Two probabilities of 1/2, each rounded to 11 bits; a single one of 1, which no rounding changes.
    assert!((bound(2) - 2f64.powi(-11)).abs() < 1e-9);
    assert_eq!(bound(1), 0.0);
}

#[test]
fn rows_without_keys() {
    let problem = Problem::contiguous(DType::F16, shape(5, 3))
        .causal(CausalAlignment::BottomRight)
        .lse(true);
    let tensors = tensors(&problem);
    let found = attention_f64(&problem, &inputs(&tensors)).unwrap();
    // The first two of five queries see none of three keys.
    assert!(found.out[..2 * 4 * 8].iter().all(|&x| x == 0.0));
    assert_eq!(
        found.lse[..3]
            .iter()
            .filter(|&&x| x == f64::NEG_INFINITY)
            .count(),
        2
    );
    let outputs = cpu::attention(&problem, &inputs(&tensors)).unwrap();
    assert!(compare(&problem, &inputs(&tensors), &outputs).unwrap().ok);
    let none = Problem::contiguous(DType::F16, shape(5, 0)).lse(true);
    let outputs = cpu::attention(
        &none,
        &Inputs {
            q: &tensors[0],
            k: &[],
            v: &[],
            ..Inputs::default()
        },
    )
    .unwrap();
    assert!(outputs.lse.unwrap().iter().all(|&x| x == f32::NEG_INFINITY));
}

#[test]
fn a_wrong_result_is_found() {
    let problem = Problem::contiguous(DType::F16, shape(9, 11)).lse(true);
    let tensors = tensors(&problem);
    let inputs = inputs(&tensors);
    let good = cpu::attention(&problem, &inputs).unwrap();
    assert!(compare(&problem, &inputs, &good).unwrap().ok);
    let mut bad = good.clone();
    element::write(DType::F16, &mut bad.out, 100, f32::NAN);
    let found = compare(&problem, &inputs, &bad).unwrap();
    assert!(!found.ok && found.max_abs_error == f64::INFINITY);
    let mut bad = good.clone();
    let value = element::read(DType::F16, &bad.out, 3);
    element::write(DType::F16, &mut bad.out, 3, value + 0.01);
    assert!(!compare(&problem, &inputs, &bad).unwrap().ok);
    let mut bad = good.clone();
    bad.lse.as_mut().unwrap()[5] += 1e-4;
    assert!(!compare(&problem, &inputs, &bad).unwrap().ok);
    // One missing key.
    let fewer = problem.window(None, Some(7));
    let bad = cpu::attention(&fewer, &inputs).unwrap();
    assert!(!compare(&problem, &inputs, &bad).unwrap().ok);
    assert!(
        compare(
            &problem,
            &inputs,
            &Outputs {
                out: vec![],
                lse: None
            }
        )
        .is_err()
    );
}

#[test]
fn scores_beyond_the_range_of_f16_leave_the_yardstick_finite() {
    let problem = Problem::contiguous(DType::F16, shape(4, 6)).scale(1e-4);
    let big = |layout: &TensorLayout| {
        let values: Vec<f32> = noise(layout.span().unwrap(), 3);
        encode(
            DType::F16,
            &values.iter().map(|x| x * 6e4).collect::<Vec<_>>(),
        )
    };
    let tensors = [big(&problem.q), big(&problem.k), big(&problem.v)];
    let low = attention_low_precision(&problem, &inputs(&tensors)).unwrap();
    assert!(low.out.iter().chain(&low.lse).all(|x| x.is_finite()));
}

#[test]
fn short_inputs_are_refused() {
    let problem = Problem::contiguous(DType::F16, shape(4, 6));
    let tensors = tensors(&problem);
    let mut short = inputs(&tensors);
    short.k = &short.k[1..];
    let error = attention_f64(&problem, &short).unwrap_err();
    assert!(
        matches!(error, Error::BadInput { argument: "k", .. }),
        "{error}"
    );
}

/// Layouts of one shape: contiguous, heads first, reversed rows, rows with gaps.
fn layout(shape: [usize; 4], kind: usize) -> TensorLayout {
    let mut layout = match kind % 4 {
        1 => TensorLayout::heads_first(shape),
        _ => TensorLayout::contiguous(shape),
    };
    match kind % 4 {
        2 => layout.strides[1] = -layout.strides[1],
        3 => {
            let [_, seqlen, heads, dim] = shape.map(|n| n as i64);
            layout.strides = [seqlen * heads * (dim + 3), heads * (dim + 3), dim + 3, 1];
        }
        _ => {}
    }
    layout
}

fn scale_layout() -> impl Strategy<Value = ScaleLayout> {
    prop_oneof![
        Just(ScaleLayout::One),
        Just(ScaleLayout::PerTensor),
        Just(ScaleLayout::PerHead),
        prop::sample::select(vec![128, 256]).prop_map(|rows| ScaleLayout::PerBlock { rows }),
    ]
}

fn scales() -> impl Strategy<Value = Scales> {
    let all = (scale_layout(), scale_layout(), scale_layout());
    all.prop_map(|(q, k, v)| Scales { q, k, v })
}

/// Scales between 1/4 and 2 that have few bits.
fn scale_values(problem: &Problem) -> [Vec<f32>; 3] {
    let mut seed = 3;
    problem.scaled().map(|scaled| {
        seed += 77;
        let values = noise(scaled.layout.count(scaled.tensor).unwrap(), seed);
        let short = values.iter().map(|x| (x * 100.0).round() / 128.0 + 1.0);
        short.map(|x| x.max(0.25)).collect()
    })
}

fn with_scales<'a>(inputs: Inputs<'a>, scales: &'a [Vec<f32>; 3]) -> Inputs<'a> {
    Inputs {
        q_scale: &scales[0],
        k_scale: &scales[1],
        v_scale: &scales[2],
        ..inputs
    }
}

/// Elements times scales, as f32 tensors that hold the products exactly, are the same problem.
#[test]
fn scales_are_factors_of_the_elements() {
    let layouts = [
        ScaleLayout::PerTensor,
        ScaleLayout::PerHead,
        ScaleLayout::PerBlock { rows: 128 },
    ];
    for layout in layouts {
        let problem = Problem::contiguous(DType::E4m3, shape(150, 300))
            .scales(Scales::all(layout))
            .causal(CausalAlignment::BottomRight)
            .softcap(1.5);
        let (tensors, scales) = (tensors(&problem), scale_values(&problem));
        let found = attention_f64(&problem, &with_scales(inputs(&tensors), &scales)).unwrap();

        let mut plain = problem.scales(Scales::default());
        plain.dtype = DType::F32;
        let mut scaled = problem.scaled().into_iter().zip(&tensors).zip(&scales);
        let products: [Vec<u8>; 3] = std::array::from_fn(|_| {
            let ((scaled, bytes), scales) = scaled.next().unwrap();
            let [_, seqlen, heads, dim] = scaled.tensor.shape;
            let values = gather(DType::E4m3, bytes, scaled.tensor).unwrap();
            let products = values.iter().enumerate().map(|(at, &x)| {
                let row = at / dim;
                let place = [row / heads / seqlen, row / heads % seqlen, row % heads];
                x * scales[layout.index(scaled.tensor, place).unwrap()]
            });
            encode(DType::F32, &products.collect::<Vec<_>>())
        });
        let wanted = attention_f64(&plain, &inputs(&products)).unwrap();
        let pairs = found.out.iter().zip(&wanted.out);
        for (a, b) in pairs.chain(found.lse.iter().zip(&wanted.lse)) {
            // Two orders of the same factors in f64.
            assert!((a - b).abs() < 1e-13, "{layout}: {a} {b}");
        }
    }
}

/// Scales whose product is in range, although that of some is not.
#[test]
fn scales_far_apart_meet() {
    let mut problem = Problem::contiguous(DType::E4m3, shape(40, 50)).lse(true);
    problem.scales = Scales::all(ScaleLayout::PerTensor);
    problem.scale = Some(1e-30);
    let tensors = tensors(&problem);
    let scales = [vec![1e38], vec![1e-8], vec![1e30]];
    let inputs = with_scales(inputs(&tensors), &scales);
    let problem = problem.out_dtype(OutDType::F32);
    let outputs = cpu::attention(&problem, &inputs).unwrap();
    let found = compare(&problem, &inputs, &outputs).unwrap();
    assert!(found.ok, "{found:?}");
    let bytes = &outputs.out;
    assert!((0..bytes.len() / 4).all(|at| read(DType::F32, bytes, at).is_finite()));
}

#[test]
fn wrong_scales_are_refused_before_anything_else() {
    let mut problem = Problem::contiguous(DType::E4m3, shape(4, 6));
    problem.scales.k = ScaleLayout::PerHead;
    let (tensors, ones) = (tensors(&problem), vec![vec![], vec![1.0; 4], vec![]]);
    let mut scales: [Vec<f32>; 3] = ones.try_into().unwrap();
    assert!(cpu::attention(&problem, &with_scales(inputs(&tensors), &scales)).is_ok());
    scales[1][3] = f32::NAN;
    let error = attention_f64(&problem, &with_scales(inputs(&tensors), &scales)).unwrap_err();
    let message = "k_scale: expected positive finite numbers, found NaN at [1, 1]";
    assert_eq!(error.to_string(), message);
    scales[1].pop();
    let error = cpu::attention(&problem, &with_scales(inputs(&tensors), &scales)).unwrap_err();
    let message = "k_scale: expected scales of shape [2, 2], found 3 numbers";
    assert_eq!(error.to_string(), message);
}

/// Two keys of weights 1 and 1/4, values 1 and -1: half a unit in the last place of the larger weight, which is 1 of 256, is 1/16 of it.
#[test]
fn a_single_e4m3_output_is_judged_by_what_its_own_roundings_can_do() {
    let problem = Problem::contiguous(DType::E4m3, numbers(1, 2)).scale(4f32.ln());
    let [q, k, v] = [&[1.0][..], &[0.0, -1.0], &[1.0, -1.0]].map(|x| encode(DType::E4m3, x));
    let inputs = Inputs {
        q: &q,
        k: &k,
        v: &v,
        ..Inputs::default()
    };
    let reference = attention_f64(&problem, &inputs).unwrap();
    assert!((reference.out[0] - 0.6).abs() < 1e-6);
    let low = attention_low_precision(&problem, &inputs).unwrap();
    let bound = error_bound(&problem, &inputs, &reference, &low).unwrap();
    let round = |x: f32| element::round(DType::Bf16, x);
    let rounding = round(round(round(0.6) + 0.3) - 0.3) - round(0.6);
    let found = bound.max_abs - 2.0 * f64::from(rounding.abs());
    // Both weights by 1/16 of them: 1/16. The second score, ln 4, by 2^-8 of it: its probability of 1/5 times its value's distance of
    // 1.6. Sums of one product of exact numbers lose 2^-13 of themselves at most, so nothing that counts here.
    let expected = 1.0 / 16.0 + 4f64.ln() / 256.0 * 0.2 * 1.6;
    assert!((found - expected).abs() < 1e-3, "{found} {expected}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_cpu_device_stays_within_the_bound(
        dtype in prop::sample::select(DType::ALL.to_vec()),
        seqlens in (1usize..40, 0usize..300), heads in (1usize..3, 1usize..4), dims in (1usize..40, 1usize..40),
        causal in prop::sample::select(vec![None, Some(CausalAlignment::TopLeft), Some(CausalAlignment::BottomRight)]),
        window in (prop::option::of(0u32..20), prop::option::of(0u32..20)),
        softcap in prop::option::of(0.5f32..20.0), scale in prop::option::of(-2f32..2.0),
        out_f32: bool, kinds: [usize; 4], scales in scales(),
    ) {
        let shape = Shape {
            batch: 2, seqlen_q: seqlens.0, seqlen_k: seqlens.1, heads_q: heads.0 * heads.1, heads_kv: heads.0,
            head_dim_qk: dims.0, head_dim_v: dims.1,
        };
        let mut problem = Problem::contiguous(dtype, shape).lse(true).window(window.0, window.1);
        (problem.causal, problem.softcap, problem.scale) = (causal, softcap, scale);
        problem.out_dtype = if out_f32 { OutDType::F32 } else { OutDType::Same };
        if dtype == DType::E4m3 {
            problem.scales = scales;
        }
        problem.q = layout(problem.q.shape, kinds[0]);
        problem.k = layout(problem.k.shape, kinds[1]);
        problem.v = layout(problem.v.shape, kinds[2]);
        problem.out = layout(problem.out.shape, kinds[3]);
        let tensors = tensors(&problem);
        let scales = scale_values(&problem);
        let inputs = with_scales(inputs(&tensors), &scales);
        let outputs = cpu::attention(&problem, &inputs).unwrap();
        let found = compare(&problem, &inputs, &outputs).unwrap();
        prop_assert!(found.ok, "{found:?}");
    }
}

#[test]
fn a_log_sum_exp_past_the_range_of_f32_is_infinite() {
    let problem = Problem::contiguous(DType::F16, numbers(2, 2))
        .scale(1e38)
        .lse(true);
    let [q, k, v] = [[9.0, -9.0], [9.0, 9.0], [1.0, 1.0]].map(|x| encode(DType::F16, &x));
    let inputs = Inputs {
        q: &q,
        k: &k,
        v: &v,
        ..Inputs::default()
    };
    let outputs = cpu::attention(&problem, &inputs).unwrap();
    let lse = outputs.lse.clone().unwrap();
    assert_eq!(lse, [f32::INFINITY, f32::NEG_INFINITY]);
    let found = compare(&problem, &inputs, &outputs).unwrap();
    assert!(found.ok, "{found:?}");
    assert_eq!(found.lse_max_abs_error, Some(0.0));
    let swapped = Outputs {
        lse: Some(vec![lse[1], lse[0]]),
        ..outputs
    };
    assert!(!compare(&problem, &inputs, &swapped).unwrap().ok);
}

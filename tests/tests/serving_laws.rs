//! What must be the same, and what may not reach a result, of problems of inference engines.

use std::cell::Cell;

use flashtile::{
    CausalAlignment, DType, DeviceInfo, Error, Outputs, TensorLayout,
    device::emulator::Rule,
    element,
    serving::{MaskType, MergeInputs, MergeProblem, PairLayout, Splits, merge},
};
use flashtile_tests::{
    assert_near, assert_same_bits,
    generate::factor,
    serving::{
        Axes, Built, Cache, CacheOrder, Queries, ServingCase, bound, case, devices, for_all, judge,
        judge_merge, run, try_launch,
    },
};
use flashtile_verify::data::Random;

/// Requires the same bits of two cases' sequences.
fn same_sequences(
    what: &str,
    [a, b]: [&Built; 2],
    [of_a, of_b]: [&Outputs; 2],
    sequences: impl Iterator<Item = [usize; 2]>,
) -> Result<(), String> {
    for [x, y] in sequences {
        let (out, lse) = a.of_sequence(of_a, x);
        let (wanted, wanted_lse) = b.of_sequence(of_b, y);
        assert_same_bits(&format!("{what}, sequence {y}: out"), &out, &wanted)?;
        assert_same_bits(&format!("{what}, sequence {y}: lse"), &lse, &wanted_lse)?;
    }
    Ok(())
}

/// Requires two results of a case within what both may be off by.
fn near(
    what: &str,
    case: &ServingCase,
    built: &Built,
    a: &Outputs,
    b: &Outputs,
) -> Result<(), String> {
    let bound = bound(case, built);
    for sequence in 0..built.problem.batch {
        let (out, lse) = built.of_sequence(a, sequence);
        let (wanted, wanted_lse) = built.of_sequence(b, sequence);
        let name = |of: &str| format!("{case:?}\n  {what}, sequence {sequence}: {of}");
        assert_near(&name("out"), &out, &wanted, 2.0 * bound.max_abs)?;
        assert_near(&name("lse"), &lse, &wanted_lse, 2.0 * bound.lse_max_abs)?;
    }
    Ok(())
}

/// Pages of any size, gaps, starts and used lengths, orders of dimensions: the same bits.
#[test]
fn where_things_are_does_not_matter() {
    for axes in [Axes::DECODE, Axes::SMALL] {
        for_all(40, case(axes), |case| {
            let plain = ServingCase {
                queries: Queries::Packed,
                cache: Cache::Packed,
                order: CacheOrder::RowsFirst,
                gap: 0,
                ..case.clone()
            };
            let built = Built::of(&plain);
            for device in devices() {
                let expected = run(device, &plain, &built)?;
                for (queries, cache, order) in [
                    (
                        Queries::PackedUsed,
                        Cache::PackedUsed,
                        CacheOrder::HeadsFirst,
                    ),
                    (Queries::DenseUsed, Cache::DenseUsed, CacheOrder::RowsFirst),
                    (Queries::Packed, Cache::Paged(16), CacheOrder::RowsFirst),
                    (Queries::Packed, Cache::Paged(1), CacheOrder::HeadsFirst),
                    (
                        Queries::PackedUsed,
                        Cache::PagedStarts(3),
                        CacheOrder::Chunked,
                    ),
                ] {
                    let other = ServingCase {
                        queries,
                        cache,
                        order,
                        gap: case.gap,
                        ..case.clone()
                    };
                    let placed = Built::of(&other);
                    let found = run(device, &other, &placed)?;
                    let all = (0..case.lengths.len()).map(|b| [b, b]);
                    let what = format!("{other:?}");
                    same_sequences(&what, [&placed, &built], [&found, &expected], all)?;
                }
            }
            Ok(())
        });
    }
}

/// A sequence alone has the bits that it has among others, unless its device would be filled another way.
#[test]
fn the_batch_does_not_matter() {
    let compared = Cell::new(0);
    for axes in [Axes::DECODE, Axes::SMALL] {
        for_all(60, case(axes), |case| {
            // What differs from sequence to sequence beside queries, keys and values stays out.
            let case = &ServingCase {
                alibi: case.alibi.map(|_| false),
                bias: None,
                mask: None,
                ranges: 0,
                splits: match case.splits {
                    Splits::Auto => Splits::One,
                    other => other,
                },
                ..case.clone()
            };
            let built = Built::of(case);
            let plan = |built: &Built| {
                let plan = built.problem.plan(&DeviceInfo::emulator());
                plan.map_err(|error| error.to_string())
            };
            for device in devices() {
                let expected = run(device, case, &built)?;
                for b in 0..case.lengths.len() {
                    let alone = case.alone(b);
                    let alone_built = Built::of(&alone);
                    if plan(&alone_built)?.variant() != plan(&built)?.variant() {
                        continue;
                    }
                    compared.set(compared.get() + 1);
                    let found = run(device, &alone, &alone_built)?;
                    same_sequences(
                        &format!("{case:?}"),
                        [&alone_built, &built],
                        [&found, &expected],
                        std::iter::once([0, b]),
                    )?;
                }
            }
            Ok(())
        });
    }
    // Of all cases; where the environment asks for fewer, as many fewer.
    assert!(
        f64::from(compared.get()) > 100.0 * factor().min(1.0),
        "only {} were compared",
        compared.get()
    );
}

/// However keys are split, the result is the same within what it may be off by.
#[test]
fn splits_do_not_matter() {
    for axes in [Axes::DECODE, Axes::SMALL] {
        for_all(40, case(axes), |case| {
            for device in devices() {
                let of = |splits| {
                    let case = ServingCase {
                        splits,
                        ..case.clone()
                    };
                    run(device, &case, &Built::of(&case))
                };
                let built = Built::of(case);
                let expected = of(Splits::One)?;
                for splits in [Splits::Auto, Splits::Keys(1), Splits::Keys(100)] {
                    let found = of(splits)?;
                    near(&format!("{splits:?}"), case, &built, &found, &expected)?;
                }
            }
            Ok(())
        });
    }
}

/// A mask of bits or bytes that says what a causal mask says, says the same.
#[test]
fn masks_by_pairs_are_masks() {
    for_all(60, case(Axes::SMALL), |case| {
        let causal = ServingCase {
            causal: Some(CausalAlignment::BottomRight),
            mask: None,
            ranges: 0,
            ..case.clone()
        };
        let built = Built::of(&causal);
        let [longest_q, longest_k] = case.longest();
        let shape = [case.lengths.len(), 1, longest_q, longest_k];
        for device in devices() {
            let expected = run(device, &causal, &built)?;
            for element in [MaskType::Byte, MaskType::Bit] {
                let mut masked = built.clone();
                let mask = PairLayout::mask(element, shape);
                let bytes = mask.tensor().span().unwrap_or(0) * mask.element_bytes() as usize;
                masked.tensors[4] = vec![0; bytes];
                for b in 0..case.lengths.len() {
                    let [queries, keys] = case.lengths_of(b);
                    for i in 0..queries {
                        for j in 0..keys.min((i + 1 + keys).saturating_sub(queries)) {
                            let tensor = mask.tensor();
                            match element {
                                MaskType::Byte => {
                                    masked.tensors[4][tensor.index([b, 0, i, j])] = 1;
                                }
                                MaskType::Bit => {
                                    let word = tensor.index([b, 0, i, j / 32]);
                                    masked.tensors[4][4 * word + j % 32 / 8] |= 1 << (j % 8);
                                }
                            }
                        }
                    }
                }
                masked.problem.causal = None;
                masked.problem.mask = Some(mask);
                let found = run(device, &causal, &masked)?;
                // ALiBi's and windows' alignment is the same: bottom-right.
                if case.window.right.is_none() {
                    near(&format!("{element:?}"), &causal, &built, &found, &expected)?;
                }
            }
        }
        Ok(())
    });
}

/// Attention over two halves of the keys, merged by their log-sum-exps, is attention over all; and the sink comes at the end.
#[test]
fn merged_halves_are_the_whole() {
    for_all(60, case(Axes::SMALL), |case| {
        let case = &ServingCase {
            lengths: vec![case.lengths[0]],
            queries: Queries::Packed,
            cache: Cache::DenseUsed,
            order: CacheOrder::RowsFirst,
            gap: 0,
            causal: None,
            window: Default::default(),
            alibi: None,
            bias: None,
            mask: None,
            ranges: 0,
            wide_out: true,
            ..case.clone()
        };
        let whole = Built::of(case);
        let [queries, keys] = case.lengths[0];
        let halves = [0..keys / 2, keys / 2..keys];
        for device in devices() {
            let expected = run(device, case, &whole)?;
            let (mut parts, mut lse) = (Vec::new(), Vec::new());
            for half in halves.clone() {
                let mut built = whole.clone();
                built.problem.sink = false;
                built.floats[1].clear();
                for (layout, which) in [(built.problem.k, 1), (built.problem.v, 2)] {
                    let bytes = built.problem.kv_dtype.bytes() as usize;
                    let begin = half.start * layout.strides[1] as usize * bytes;
                    built.tensors[which].drain(..begin.min(whole.tensors[which].len()));
                }
                built.problem.k.shape[1] -= half.start;
                built.problem.v.shape[1] -= half.start;
                built.problem.k_lengths.longest -= half.start;
                built.numbers[3] = vec![half.len() as i32];
                let found = run(device, case, &built)?;
                parts.extend(found.out);
                lse.extend(found.lse.unwrap_or_default());
            }
            let shape = [1, queries, case.heads_q(), case.dims[1]];
            let mut problem = MergeProblem::new(DType::F32, 2, TensorLayout::contiguous(shape));
            problem.sink = case.sink;
            let inputs = MergeInputs {
                parts: &parts,
                lse: &lse,
                sink: &whole.floats[1],
            };
            let merged =
                merge(device, &problem, &inputs).map_err(|error| format!("{case:?}: {error}"))?;
            judge(case, &whole, &merged)?;
            near("halves", case, &whole, &merged, &expected)?;
        }
        Ok(())
    });
}

/// Parts by chance, against f64.
#[test]
fn merging() {
    let dtypes = [
        (DType::F16, DType::F16),
        (DType::Bf16, DType::Bf16),
        (DType::F32, DType::F32),
        (DType::F32, DType::F16),
        (DType::F32, DType::Bf16),
        (DType::F16, DType::F32),
        (DType::Bf16, DType::F32),
    ];
    let mut random = Random::new(5);
    for (dtype, out_dtype) in dtypes {
        for count in [0, 1, 2, 5, 40] {
            let shape = [
                1 + random.below(2),
                random.below(6),
                1 + random.below(5),
                1 + random.below(100),
            ];
            let [batch, rows, heads, _] = shape;
            let part = TensorLayout::contiguous(shape);
            let mut problem = MergeProblem::new(dtype, count, part);
            problem.out_dtype = out_dtype;
            problem.sink = random.below(2) == 0;
            let elements: usize = shape.iter().product();
            let parts: Vec<f32> = (0..count * elements)
                .map(|_| element::round(dtype, random.normal()))
                .collect();
            let lse: Vec<f32> = (0..count * batch * heads * rows)
                .map(|_| match random.below(4) {
                    0 => f32::NEG_INFINITY,
                    _ => 8.0 * random.normal(),
                })
                .collect();
            let sink: Vec<f32> = (0..if problem.sink { heads } else { 0 })
                .map(|_| 8.0 * random.normal())
                .collect();
            let bytes = element::encode(dtype, &parts);
            let inputs = MergeInputs {
                parts: &bytes,
                lse: &lse,
                sink: &sink,
            };
            for device in devices() {
                let found = merge(device, &problem, &inputs).unwrap();
                judge_merge(&problem, &inputs, &found).unwrap();
            }
        }
    }
}

/// Finite queries and keys whose scores f32 cannot hold: the output stays a mean of values, and the log-sum-exp is no NaN.
#[test]
fn scores_past_the_range_of_f32() {
    for_all(60, case(Axes::SMALL), |case| {
        let case = &ServingCase {
            dtype: DType::Bf16,
            // Scores up to 1e40 times a scale.
            spread: 1e20,
            bias: None,
            alibi: None,
            ..case.clone()
        };
        let built = Built::of(case);
        let dtype = built.problem.kv_dtype;
        // Those of a latent cache are elements of keys.
        let at = if built.problem.latent { [1, 2] } else { [2, 3] };
        let values = built.tensors[at[0]].chunks_exact(dtype.bytes() as usize);
        let largest = values
            .map(|bytes| element::read(dtype, bytes, 0).abs())
            .filter(|x| x.is_finite())
            .fold(0.0, f32::max);
        let scales = built.floats[at[1]].iter().copied().reduce(f32::max);
        let largest = largest * scales.unwrap_or(1.0);
        for device in devices() {
            let found = run(device, case, &built)?;
            for b in 0..built.problem.batch {
                let (out, lse) = built.of_sequence(&found, b);
                let allowed = largest * (1.0 + 1.0 / 64.0);
                if let Some(x) = out.iter().find(|x| x.is_nan() || x.abs() > allowed) {
                    return Err(format!("{case:?}: {x}, where values are up to {largest}"));
                }
                if lse.iter().any(|x| x.is_nan()) {
                    return Err(format!("{case:?}: a log-sum-exp is NaN"));
                }
            }
        }
        Ok(())
    });
}

/// Whatever numbers say where sequences are, nothing outside of the tensors is accessed: the sanitizer would see it, for every buffer
/// ends with its tensor. Starts of queries that make sequences overlap make blocks write the same rows, and nothing worse.
#[test]
fn hostile_numbers_stay_inside() {
    for axes in [Axes::DECODE, Axes::SMALL] {
        for_all(120, case(axes), |case| {
            let sound = Built::of(case);
            let mut random = Random::new(case.seed);
            let apart = sound.hostile(&mut random);
            let built = sound.hostile_to_rows(&mut random);
            for device in devices() {
                let launch =
                    |built: &Built| try_launch(device, &built.problem, &built.inputs()).map(|_| ());
                let explain =
                    |built: &Built, error| format!("{case:?}\n{:?}\n  {error}", built.numbers);
                launch(&apart).map_err(|error| explain(&apart, error))?;
                match launch(&built) {
                    Err(Error::Findings { report, .. })
                        if report.findings.iter().all(|it| it.rule == Rule::Race) => {}
                    other => other.map_err(|error| explain(&built, error))?,
                }
            }
            Ok(())
        });
    }
}

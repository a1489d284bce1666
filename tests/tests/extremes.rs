//! Empty problems, empty rows, and numbers at the ends of their ranges.
//!
//! What is promised of elements that are not finite:
//!
//! - a key that a row does not see does not reach the row, whatever the key is: its score is replaced;
//! - a query reaches its own row only (the others stay right, perhaps in other last bits);
//! - a value reaches no row if no query of its block of rows sees any key of the value's tile: such tiles are
//!   never read. In a tile that is read, a value is multiplied by probability 0, and 0 * inf is NaN in
//!   every implementation that multiplies matrices; nothing is promised there.

use flashtile::{Algorithm, ArchChoice, CausalAlignment, DType, DeviceInfo, OutDType, Shape};
use flashtile_tests::{
    Case, Distribution, Results, Tensors, assert_near, assert_same_bits, bound, check, data::row,
    devices_for, judge, oracle, run, sizes,
};

const DTYPES: [DType; 3] = [DType::F16, DType::Bf16, DType::F32];

/// Kernels that differ in their head dimensions alone.
#[derive(Clone, Copy)]
struct Kind {
    algorithm: Algorithm,
    dtype: DType,
    arch: ArchChoice,
}

impl Kind {
    /// Every kind that there is.
    fn all() -> impl Iterator<Item = Self> {
        let tiers = [ArchChoice::Sm80, ArchChoice::Sm90a];
        let all = Algorithm::ALL.into_iter().flat_map(move |algorithm| {
            DTYPES.into_iter().flat_map(move |dtype| {
                tiers.map(|arch| Self {
                    algorithm,
                    dtype,
                    arch,
                })
            })
        });
        all.filter(|kind| kind.case(sizes(1, 1, [1, 1], 8)).planned().is_ok())
    }

    fn case(self, shape: Shape) -> Case {
        Case::new(self.dtype, shape)
            .algorithm(self.algorithm)
            .arch(self.arch)
    }

    /// As many tiles of keys as so many keys are in the sm_80 tier, at head dimensions up to 64.
    fn keys(self, keys: usize) -> usize {
        match self.arch {
            ArchChoice::Sm90a => keys * 160 / 64,
            ArchChoice::Auto | ArchChoice::Sm80 => keys,
        }
    }
}

#[test]
fn both_tiers_are_there() {
    let of = |arch| Kind::all().filter(|kind| kind.arch == arch).count();
    assert_eq!((of(ArchChoice::Sm80), of(ArchChoice::Sm90a)), (9, 2));
    for kind in Kind::all().filter(|kind| kind.algorithm == Algorithm::Fused) {
        let tile = kind.case(sizes(1, 1, [1, 1], 32)).variant().tile;
        let tiles = |keys: usize| kind.keys(keys).div_ceil(tile.block_n as usize);
        // In f32, tiles are half as long.
        let expected = if kind.dtype == DType::F32 { 7 } else { 4 };
        assert_eq!(tiles(200), expected);
    }
}

/// Runs `test` for every kind of kernels, and reports all failures together.
fn everywhere(test: impl Fn(Kind) -> Result<(), String>) {
    let failures: Vec<String> = Kind::all().filter_map(|kind| test(kind).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Runs and judges a case on tensors of its own.
fn check_on(case: &Case, tensors: &Tensors) -> Result<Vec<Results>, String> {
    let mut all = Vec::new();
    for (_, device) in devices_for(case) {
        let results = run(device, case, tensors)?;
        judge(case, tensors, &results)?;
        all.push(results);
    }
    Ok(all)
}

/// Rows that see no key: out is 0 and lse is -inf, exactly; the other rows are right.
#[test]
fn rows_that_see_nothing() {
    everywhere(|kind| {
        let shape = |q, k| kind.case(sizes(q, k, [2, 1], 24));
        let top_left = CausalAlignment::TopLeft;
        let cases = [
            // The first 130 rows stand before the first key: a whole block of them.
            shape(150, 20).causal(CausalAlignment::BottomRight),
            // The last rows stand far behind the last key.
            shape(170, 9).causal(top_left).window(Some(3), None),
            // Nobody sees anything.
            shape(3, 0),
            shape(3, 0).causal(top_left),
            shape(140, 0).softcap(2.0),
        ];
        for case in cases {
            let tensors = Tensors::of(&case);
            let problem = case.problem();
            for results in check_on(&case, &tensors)? {
                for b in 0..case.shape.batch {
                    for i in 0..case.shape.seqlen_q {
                        let sees = |j| flashtile::reference::visible(&problem, i, j);
                        if (0..case.shape.seqlen_k).any(sees) {
                            continue;
                        }
                        for h in 0..case.shape.heads_q {
                            let lse =
                                results.lse[(b * case.shape.heads_q + h) * case.shape.seqlen_q + i];
                            let out = &results.out[row(case.shapes()[3], b, i, h)];
                            if lse != f32::NEG_INFINITY || out.iter().any(|&x| x != 0.0) {
                                return Err(format!("{case}: row {i} has lse {lse}, out {out:?}"));
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn nothing_to_compute() {
    everywhere(|kind| {
        for (batch, seqlen_q, seqlen_k) in [(0, 5, 7), (2, 0, 7), (0, 0, 0), (2, 0, 0)] {
            let mut case = kind.case(sizes(seqlen_q, seqlen_k, [2, 1], 32));
            case.shape.batch = batch;
            check(&case)?;
        }
        Ok(())
    });
}

/// Queries and keys of +-`size`, and values of +-`value`.
fn large(case: &Case, size: f32, value: f32) -> Tensors {
    let mut tensors = Tensors::of(&case.data(Distribution::Normal, 5));
    let to = |x: &mut f32, size: f32| {
        *x = flashtile::element::round(case.dtype, size.copysign(*x));
    };
    tensors.q.iter_mut().for_each(|x| to(x, size));
    tensors.k.iter_mut().for_each(|x| to(x, size));
    tensors.v.iter_mut().for_each(|x| to(x, value));
    tensors
}

#[test]
fn large_values() {
    everywhere(|kind| {
        let case = kind.case(sizes(20, kind.keys(100), [1, 1], 32));
        for case in [
            case,
            case.causal(CausalAlignment::BottomRight),
            case.out_f32(),
        ] {
            check_on(&case, &large(&case, 0.1, 60000.0))?;
        }
        Ok(())
    });
}

#[test]
fn wide_caps_keep_small_scores() {
    everywhere(|kind| {
        let case = kind.case(sizes(140, kind.keys(70), [2, 1], 32));
        let wider = [256.1, 1e4, 1e6, 1e30];
        let wider = wider.into_iter().filter(|_| kind.dtype != DType::E4m3);
        for cap in std::iter::once(256.0).chain(wider) {
            check_on(&case.softcap(cap), &Tensors::of(&case))?;
        }
        Ok(())
    });
}

/// Scores up to 3e9 before scaling, each exact in f32, so that the oracle's ties are ties.
#[test]
fn large_scores() {
    everywhere(|kind| {
        let case = kind.case(sizes(20, kind.keys(100), [1, 1], 32));
        for size in [100.0, 1e3, 1e4] {
            for case in [case, case.scale(1.0), case.scale(-0.1), case.softcap(20.0)] {
                check_on(&case, &large(&case, size, 1.0))
                    .map_err(|reason| format!("q and k of +-{size:e}: {reason}"))?;
            }
        }
        Ok(())
    });
}

/// Finite inputs give finite results as long as scores are finite in f32.
#[test]
fn finite_scores_give_finite_results() {
    everywhere(|kind| {
        let largest = match kind.dtype {
            DType::F16 => 65504.0,
            DType::Bf16 | DType::F32 => 1e15,
            DType::E4m3 => 448.0,
        };
        let case = kind.case(sizes(20, kind.keys(100), [1, 1], 32));
        for case in [case, case.scale(1.0), case.softcap(20.0)] {
            let tensors = large(&case, largest, 1.0);
            for (_, device) in devices_for(&case) {
                let results = run(device, &case, &tensors)?;
                let finite = |x: &f32| x.is_finite();
                if !results.out.iter().all(finite) || !results.lse.iter().all(finite) {
                    let row = results.lse.iter().position(|x| !x.is_finite());
                    return Err(format!(
                        "{case}, q and k of +-{largest:e}: lse[{row:?}] = {:?}, out begins {:?}",
                        row.map(|row| results.lse[row]),
                        &results.out[..4]
                    ));
                }
                judge(&case, &tensors, &results)?;
            }
        }
        Ok(())
    });
}

/// Scores past f32's range count as the largest there are: what remains is an average of values, finite
/// and no larger than they are. (f16 cannot overflow f32.)
#[test]
fn scores_that_overflow_give_no_nan() {
    everywhere(|kind| {
        if kind.dtype == DType::F16 {
            return Ok(());
        }
        let case = kind.case(sizes(20, kind.keys(100), [1, 1], 32));
        for case in [
            case,
            case.causal(CausalAlignment::BottomRight),
            case.softcap(5.0),
        ] {
            for size in [1e20, 1e30, 3e38] {
                let tensors = large(&case, size, 1.0);
                for (_, device) in devices_for(&case) {
                    let results = run(device, &case, &tensors)?;
                    let wrong = results.out.iter().find(|x| x.is_nan() || x.abs() > 1.01);
                    if wrong.is_some() || results.lse.iter().any(|x| x.is_nan()) {
                        return Err(format!("{case}, q and k of +-{size:e}: {wrong:?}"));
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn sums_of_values_stay_finite() {
    everywhere(|kind| {
        let largest = match kind.dtype {
            DType::F16 => 65504.0,
            // bfloat16's largest number, and one that two tf32 numbers hold.
            DType::Bf16 => f32::from_bits(0x7f7f_0000),
            DType::F32 => f32::from_bits(0x7f7f_ff00),
            DType::E4m3 => 448.0,
        };
        let case = kind.case(sizes(20, kind.keys(200), [1, 1], 32));
        for case in [case, case.causal(CausalAlignment::BottomRight)] {
            // Every key weighs the same; the first half of the values is large, the rest as large and negative.
            let mut tensors = large(&case, 0.0, largest);
            let half = tensors.v.len() / 2;
            tensors.v[..half].fill(largest);
            tensors.v[half..].fill(-largest);
            for (_, device) in devices_for(&case) {
                let results = run(device, &case, &tensors)?;
                let reference = oracle(&case, &tensors);
                for (x, r) in results.out.iter().zip(&reference.out) {
                    // Rounding of 1/n in the textbook's P: far below a hundredth.
                    if (f64::from(*x) - r).abs() > 0.01 * f64::from(largest) || x.is_nan() {
                        return Err(format!("{case}, values of +-{largest:e}: {x} for {r}"));
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn one_key_takes_all() {
    everywhere(|kind| {
        let case = kind.case(sizes(20, kind.keys(150), [1, 1], 32));
        for winner in [0, kind.keys(77), kind.keys(150) - 1] {
            let mut tensors = Tensors::of(&case);
            // Every query points along the first axis, and so does one key, far out.
            for q in tensors.q.chunks_mut(32) {
                q[0] = 8.0;
            }
            tensors.k[winner * 32] = 64.0;
            for results in check_on(&case, &tensors)? {
                let expected = tensors.v[winner * 32..][..32].repeat(20);
                assert_same_bits("the winner's value", &results.out, &expected).or_else(
                    |reason| match kind.dtype {
                        // f32 values pass through the tensor cores in two pieces.
                        DType::F32 => Ok(()),
                        _ => Err(format!("{case}, key {winner}: {reason}")),
                    },
                )?;
            }
        }
        Ok(())
    });
}

#[test]
fn ties_subnormals_and_wide_ranges() {
    everywhere(|kind| {
        for data in [
            Distribution::Ternary,
            Distribution::ZeroScores,
            Distribution::Subnormal,
            Distribution::Wide,
            Distribution::Peaked,
        ] {
            let case = kind.case(sizes(33, kind.keys(90), [2, 1], 32));
            for case in [case, case.out_f32().causal(CausalAlignment::TopLeft)] {
                check(&case.data(data, 3))?;
            }
        }
        Ok(())
    });
}

/// f16's subnormal numbers weigh as much as others: products and sums are f32, where they are ordinary numbers.
/// So a power of two taken out of the values and put back into the output changes no bit, and neither does one
/// taken out of the queries and put into the scale. (The bound, made for numbers around 1, can't tell 1e-6 from 0.)
/// Tensor cores that add products without normalising them first keep fewer bits of subnormal ones: there the two
/// agree within both bounds, which are those of the ordinary numbers.
#[test]
fn subnormal_f16_numbers_are_numbers() {
    let tiny = 2f32.powi(-24);
    for kind in Kind::all().filter(|kind| kind.dtype == DType::F16) {
        let case = kind.case(sizes(37, kind.keys(150), [2, 1], 40));
        let case = case.out_f32().scale(0.125);
        let mut whole = Tensors::of(&case);
        // Integers below 1024: multiples of the smallest subnormal number, once they are scaled.
        let integer = |x: &mut f32| *x = (*x * 300.0).round().clamp(-1023.0, 1023.0);
        whole.v.iter_mut().for_each(integer);
        whole.q.iter_mut().for_each(|x| *x = (*x * 4.0).round());
        let (mut values, mut queries) = (whole.clone(), whole.clone());
        values.v.iter_mut().for_each(|x| *x *= tiny);
        queries.q.iter_mut().for_each(|x| *x *= tiny);
        let limit = bound(&case, &whole);
        for (_, device) in devices_for(&case) {
            let normalises = device.info().name == DeviceInfo::emulator().name;
            let same = |what: &str, a: &[f32], b: &[f32], limit: f64| match normalises {
                true => assert_same_bits(what, a, b).unwrap(),
                false => assert_near(what, a, b, 2.0 * limit).unwrap(),
            };
            let expected = run(device, &case, &whole).unwrap();
            judge(&case, &whole, &expected).unwrap();
            let mut found = run(device, &case, &values).unwrap();
            found.out.iter_mut().for_each(|x| *x /= tiny);
            same("subnormal values", &found.out, &expected.out, limit.max_abs);
            let found = run(device, &case.scale(0.125 / tiny), &queries).unwrap();
            same(
                "subnormal queries",
                &found.out,
                &expected.out,
                limit.max_abs,
            );
            let of_lse = limit.lse_max_abs;
            same("their lse", &found.lse, &expected.lse, of_lse);
        }
    }
}

/// The sign of a zero in q and k changes no bit; in v, no number.
#[test]
fn negative_zero_is_zero() {
    everywhere(|kind| {
        let case = kind
            .case(sizes(20, kind.keys(70), [1, 1], 32))
            .data(Distribution::Ternary, 1);
        let tensors = Tensors::of(&case);
        // -0.0 + 0.0 is 0.0.
        let positive = |values: &[f32]| values.iter().map(|x| x + 0.0).collect();
        let unsigned = Tensors {
            q: positive(&tensors.q),
            k: positive(&tensors.k),
            v: positive(&tensors.v),
            ..Tensors::default()
        };
        for (_, device) in devices_for(&case) {
            let mut a = run(device, &case, &tensors)?;
            let mut b = run(device, &case, &unsigned)?;
            a.out = positive(&a.out);
            b.out = positive(&b.out);
            assert_same_bits(&format!("{case}: out"), &a.out, &b.out)?;
            assert_same_bits(&format!("{case}: lse"), &a.lse, &b.lse)?;
        }
        Ok(())
    });
}

/// The results of a case with some elements replaced by NaN and infinities are those without.
fn unreached(
    case: &Case,
    poison: impl Fn(&mut Tensors, f32),
    keep: impl Fn(&Results) -> Results,
) -> Result<(), String> {
    let tensors = Tensors::of(case);
    for (_, device) in devices_for(case) {
        let expected = keep(&run(device, case, &tensors)?);
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut poisoned = tensors.clone();
            poison(&mut poisoned, x);
            let found = keep(&run(device, case, &poisoned)?);
            let what = format!("{case}, with {x}");
            assert_same_bits(&format!("{what}: out"), &found.out, &expected.out)?;
            assert_same_bits(&format!("{what}: lse"), &found.lse, &expected.lse)?;
        }
    }
    Ok(())
}

/// Nobody sees the last keys: the mask is top-left and there are fewer queries than keys.
#[test]
fn a_key_that_is_masked_does_not_leak() {
    everywhere(|kind| {
        let case = kind
            .case(sizes(37, kind.keys(200), [1, 1], 32))
            .causal(CausalAlignment::TopLeft);
        for case in [case, case.softcap(3.0), case.scale(-0.2)] {
            unreached(
                &case,
                |tensors, x| tensors.k[37 * 32..].fill(x),
                Results::clone,
            )?;
            // A key that some rows see reaches those only.
            let rows_before = |results: &Results| Results {
                out: results.out[..20 * 32].to_vec(),
                lse: results.lse[..20].to_vec(),
            };
            unreached(
                &case,
                |tensors, x| tensors.k[20 * 32..21 * 32].fill(x),
                rows_before,
            )?;
        }
        Ok(())
    });
}

#[test]
fn a_value_in_a_tile_that_no_row_sees_does_not_leak() {
    everywhere(|kind| {
        let causal = kind
            .case(sizes(37, kind.keys(200), [1, 1], 32))
            .causal(CausalAlignment::TopLeft);
        let block_n = causal.variant().tile.block_n as usize;
        let first_unseen = 37usize.next_multiple_of(block_n);
        unreached(
            &causal,
            |tensors, x| tensors.v[first_unseen * 32..].fill(x),
            Results::clone,
        )?;
        // Each row with the 10 keys before it; the first one stands at the 37th key from the end.
        let window = kind
            .case(sizes(37, kind.keys(200), [1, 1], 32))
            .window(Some(10), Some(0));
        let first_seen = (kind.keys(200) - 37 - 10) / block_n * block_n;
        assert!(first_seen > 0 && first_unseen < kind.keys(200));
        unreached(
            &window,
            |tensors, x| tensors.v[..first_seen * 32].fill(x),
            Results::clone,
        )
    });
}

/// A query that is not finite may make its block choose another way to compute, so the other rows are
/// right rather than equal bit for bit.
#[test]
fn a_query_reaches_its_own_row_only() {
    everywhere(|kind| {
        let case = kind.case(sizes(20, kind.keys(70), [1, 1], 32));
        let tensors = Tensors::of(&case);
        for (_, device) in devices_for(&case) {
            let expected = run(device, &case, &tensors)?;
            for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut poisoned = tensors.clone();
                poisoned.q[7 * 32..8 * 32].fill(x);
                let mut found = run(device, &case, &poisoned)?;
                found.out[7 * 32..8 * 32].copy_from_slice(&expected.out[7 * 32..8 * 32]);
                found.lse[7] = expected.lse[7];
                judge(&case, &tensors, &found).map_err(|reason| format!("with {x}: {reason}"))?;
            }
        }
        Ok(())
    });
}

/// An output that its element type cannot hold is not hidden: f16 results past 65504 are infinite only
/// if the exact result is.
#[test]
fn the_largest_f16_values_survive() {
    for kind in Kind::all().filter(|kind| kind.dtype == DType::F16) {
        let mut case = kind.case(sizes(5, kind.keys(90), [1, 1], 32));
        let mut tensors = Tensors::of(&case);
        tensors.v.fill(65504.0);
        for out_dtype in [OutDType::Same, OutDType::F32] {
            case.out_dtype = out_dtype;
            check_on(&case, &tensors).unwrap();
        }
    }
}

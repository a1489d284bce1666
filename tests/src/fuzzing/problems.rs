//! Descriptions of problems, sound and hostile, and what `Problem::plan` makes of them.

use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use flashtile::{
    Algorithm, ArchChoice, CausalAlignment, DType, Device, EmulatorDevice, OutDType, Outputs,
    Pointers, Problem, ScaleLayout, Scales, Shape, TensorLayout, Window, element,
    reference::{attention_f64, attention_low_precision, compare, error_bound},
};

use super::{options, work};
use crate::{
    data::{Random, Tensors, scales},
    memory::{Results, run_problem},
};

/// Most multiply-adds of a problem that is run.
const MOST_WORK: u128 = 1 << 20;
/// Most bytes of its tensors, gaps included.
const MOST_BYTES: usize = 64 << 20;
/// Most blocks of its grid.
const MOST_BLOCKS: u32 = 8;
/// Most seeds by which the yardstick is measured anew, where a result is past its own bound.
const SEEDS: u64 = 16;

/// Any problem: an error, or a plan. A plan that is small enough runs on the emulator, in buffers that end with their
/// tensors' last elements: no fault, nothing written but the output, and the right result.
pub fn plan(data: &[u8]) {
    static DEVICE: OnceLock<EmulatorDevice> = OnceLock::new();
    // Too few bytes are no failure of the library: `Unstructured` gives zeros then.
    let Ok(case) = Described::new(&mut Unstructured::new(data)) else {
        return;
    };
    let device = DEVICE.get_or_init(|| EmulatorDevice::with_options(options()));
    let problem = &case.problem;
    let plan = match problem.plan(device.info()) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert_eq!(plan.workspace_bytes(), 0);
    // Any addresses: an error or parameters.
    let _ = plan.params(&case.pointers);
    if !is_small(problem) || plan.config().grid[0] > MOST_BLOCKS {
        return;
    }
    let tensors = case.tensors(case.seed);
    let results = run_problem(device, problem, case.offsets, &tensors)
        .unwrap_or_else(|error| panic!("{problem:?}, offsets {:?}: {error}", case.offsets));
    if plan.is_empty() {
        return;
    }
    let numbers = || results.out.iter().chain(&results.lse);
    assert!(!numbers().any(|x| x.is_nan()), "{case:?}: NaN");
    if case.is_tame() {
        case.judge(&tensors, &results);
    }
}

/// Whether the emulator runs it in milliseconds.
fn is_small(problem: &Problem) -> bool {
    let bytes = [problem.q, problem.k, problem.v, problem.out]
        .iter()
        .try_fold(0usize, |sum, layout| {
            sum.checked_add(layout.span()?.checked_mul(4)?)
        });
    // Of tensors without elements there may be any number of scales.
    let tensors = [&problem.q, &problem.k, &problem.v];
    let layouts = [problem.scales.q, problem.scales.k, problem.scales.v];
    let mut counts = layouts.iter().zip(tensors);
    work(problem).is_some_and(|work| work <= MOST_WORK)
        && bytes.is_some_and(|bytes| bytes <= MOST_BYTES)
        && counts.all(|(layout, tensor)| layout.count(tensor).is_some_and(|n| n <= MOST_BYTES / 4))
}

/// A problem, and what else a run of it needs.
#[derive(Debug)]
struct Described {
    problem: Problem,
    /// Unused elements before each tensor.
    offsets: [usize; 4],
    /// Addresses that were never allocated.
    pointers: Pointers,
    seed: u64,
}

impl Described {
    fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        let dtype = *u.choose(&DType::ALL)?;
        let shape = shape(u)?;
        let mut problem = Problem::contiguous(dtype, shape);
        if u.ratio(1, 4)? {
            problem.out_dtype = match dtype {
                DType::E4m3 => *u.choose(&[OutDType::F32, OutDType::F16, OutDType::Bf16])?,
                _ => OutDType::F32,
            };
        }
        problem.lse = u.arbitrary()?;
        problem.causal = *u.choose(&[
            None,
            Some(CausalAlignment::BottomRight),
            Some(CausalAlignment::TopLeft),
        ])?;
        if u.ratio(1, 3)? {
            let left = window_side(u)?;
            let right = window_side(u)?;
            problem.window = Window { left, right };
        }
        problem.scale = float(u)?;
        problem.softcap = float(u)?;
        problem.algorithm =
            *u.choose(&[Algorithm::Fused, Algorithm::TwoPass, Algorithm::ThreePass])?;
        problem.arch = *u.choose(&[
            ArchChoice::Auto,
            ArchChoice::Auto,
            ArchChoice::Sm80,
            ArchChoice::Sm90a,
        ])?;
        for tensor in 0..4 {
            let layout = [
                &mut problem.q,
                &mut problem.k,
                &mut problem.v,
                &mut problem.out,
            ];
            place(u, layout[tensor])?;
        }
        // One field or a few that fit nothing else.
        if u.ratio(1, 4)? {
            for _ in 0..u.int_in_range(1..=3)? {
                let layouts = [
                    &mut problem.q,
                    &mut problem.k,
                    &mut problem.v,
                    &mut problem.out,
                ];
                let which = u.choose_index(4)?;
                let layout = &mut *layouts[which];
                let dim = u.choose_index(4)?;
                match u.arbitrary()? {
                    true => layout.shape[dim] = hostile(u)? as usize,
                    false => layout.strides[dim] = hostile(u)?,
                }
            }
        }
        let mut offsets = [0; 4];
        for offset in &mut offsets {
            *offset = u.int_in_range(0..=9)?;
        }
        // Hardly ever where there must be none.
        if dtype == DType::E4m3 || u.ratio(1, 32)? {
            problem.scales = Scales {
                q: scale_layout(u)?,
                k: scale_layout(u)?,
                v: scale_layout(u)?,
            };
        }
        let seed = u.arbitrary()?;
        let pointers = Pointers {
            q: hostile(u)? as u64,
            k: hostile(u)? as u64,
            v: hostile(u)? as u64,
            out: hostile(u)? as u64,
            lse: match problem.lse {
                true => Some(hostile(u)? as u64),
                false => None,
            },
            q_scale: scale_address(u, problem.scales.q)?,
            k_scale: scale_address(u, problem.scales.k)?,
            v_scale: scale_address(u, problem.scales.v)?,
            workspace: 0,
        };
        Ok(Self {
            problem,
            offsets,
            pointers,
            seed,
        })
    }

    /// The tensors' elements: normal, and a function of the place in memory, so that indices that share an element
    /// agree on it.
    fn tensors(&self, seed: u64) -> Tensors {
        let dtype = self.problem.dtype;
        let tensor = |which: u64, layout: &TensorLayout| -> Vec<f32> {
            let [batch, seqlen, heads, dim] = layout.shape;
            let mut values = Vec::new();
            for b in 0..batch {
                for s in 0..seqlen {
                    for h in 0..heads {
                        values.extend((0..dim).map(|x| {
                            let at = layout.index([b, s, h, x]) as u64;
                            let mut random = Random::new(seed ^ (at * 4 + which) << 20);
                            element::round(dtype, random.normal())
                        }));
                    }
                }
            }
            values
        };
        Tensors {
            q: tensor(0, &self.problem.q),
            k: tensor(1, &self.problem.k),
            v: tensor(2, &self.problem.v),
            scales: scales(&self.problem, seed),
        }
    }

    /// Whether scores stay where the yardstick is one: the promises for others are the suite's (`extremes.rs`).
    fn is_tame(&self) -> bool {
        let tame = |x: Option<f32>| x.is_none_or(|x| (0.01..=10.0).contains(&x.abs()));
        tame(self.problem.scale) && tame(self.problem.softcap)
    }

    /// Panics unless the results are within the bound of `docs/verification.md`.
    fn judge(&self, tensors: &Tensors, results: &Results) {
        let mut problem = Problem::contiguous(self.problem.dtype, self.problem.shape());
        problem.out_dtype = self.problem.out_dtype;
        problem.scales = self.problem.scales;
        problem.lse = self.problem.lse;
        problem.causal = self.problem.causal;
        problem.window = self.problem.window;
        problem.scale = self.problem.scale;
        problem.softcap = self.problem.softcap;
        let outputs = Outputs {
            out: element::encode(problem.out_element(), &results.out),
            lse: problem.lse.then(|| results.lse.clone()),
        };
        let encoded = tensors.encode(problem.dtype);
        let found = compare(&problem, &encoded.inputs(), &outputs).expect("it ran");
        if found.ok {
            return;
        }
        let mut bound = found.bound;
        for seed in 1..SEEDS {
            let tensors = self.tensors(self.seed.wrapping_add(seed << 40));
            let encoded = tensors.encode(problem.dtype);
            let inputs = encoded.inputs();
            let reference = attention_f64(&problem, &inputs).expect("it ran");
            let low = attention_low_precision(&problem, &inputs).expect("it ran");
            let other = error_bound(&problem, &inputs, &reference, &low).expect("it ran");
            bound.max_abs = bound.max_abs.max(other.max_abs);
            bound.rms = bound.rms.max(other.rms);
            bound.lse_max_abs = bound.lse_max_abs.max(other.lse_max_abs);
        }
        assert!(
            found.max_abs_error <= bound.max_abs
                && found.rms_error <= bound.rms
                && found.lse_max_abs_error.unwrap_or(0.0) <= bound.lse_max_abs,
            "{self:?}: {found:?}, widened to {bound:?}"
        );
    }
}

/// Sizes: mostly of small problems, the edges of tiles among them.
fn shape(u: &mut Unstructured<'_>) -> Result<Shape> {
    const SEQLENS: [usize; 12] = [0, 1, 2, 3, 5, 15, 16, 17, 63, 64, 65, 129];
    const DIMS: [usize; 16] = [1, 2, 3, 7, 8, 8, 15, 16, 16, 24, 32, 32, 33, 64, 80, 256];
    let heads_kv = u.int_in_range(1..=2)?;
    let seqlen_q = *u.choose(&SEQLENS)?;
    let seqlen_k = *u.choose(&SEQLENS)?;
    let head_dim_qk = *u.choose(&DIMS)?;
    let head_dim_v = match u.ratio(1, 3)? {
        true => *u.choose(&DIMS)?,
        false => head_dim_qk,
    };
    Ok(Shape {
        batch: u.int_in_range(0..=2)?,
        seqlen_q,
        seqlen_k,
        heads_q: heads_kv * u.int_in_range(1..=3)?,
        heads_kv,
        head_dim_qk,
        head_dim_v,
    })
}

/// Another layout of the same shape: dimensions in any order, gaps, directions, broadcasts.
fn place(u: &mut Unstructured<'_>, layout: &mut TensorLayout) -> Result<()> {
    if u.ratio(1, 3)? {
        return Ok(());
    }
    const ORDERS: [[usize; 3]; 4] = [[2, 1, 0], [1, 2, 0], [0, 1, 2], [2, 0, 1]];
    let mut stride = layout.shape[3] as i64 + u.int_in_range(0..=8)?;
    for dim in *u.choose(&ORDERS)? {
        layout.strides[dim] = match u.int_in_range(0..=9)? {
            0 => -stride,
            1 => 0,
            _ => stride,
        };
        stride = stride * layout.shape[dim].max(1) as i64 + u.int_in_range(0..=8)?;
    }
    Ok(())
}

/// How many scales a tensor has; sometimes by blocks that no kernel takes.
fn scale_layout(u: &mut Unstructured<'_>) -> Result<ScaleLayout> {
    Ok(match u.int_in_range(0..=7)? {
        0..=2 => ScaleLayout::One,
        3 => ScaleLayout::PerTensor,
        4 => ScaleLayout::PerHead,
        5 => ScaleLayout::PerBlock {
            rows: hostile(u)? as u32,
        },
        _ => ScaleLayout::PerBlock { rows: 128 },
    })
}

/// The address of such scales: none where there are none, but for some.
fn scale_address(u: &mut Unstructured<'_>, layout: ScaleLayout) -> Result<u64> {
    match layout == ScaleLayout::One && !u.ratio(1, 16)? {
        true => Ok(0),
        false => Ok(hostile(u)? as u64),
    }
}

fn window_side(u: &mut Unstructured<'_>) -> Result<Option<u32>> {
    Ok(match u.int_in_range(0..=3)? {
        0 => None,
        1 => Some(u.arbitrary()?),
        _ => Some(u.int_in_range(0..=150)?),
    })
}

/// A scale or a cap: mostly none or a tame one, else any bits.
fn float(u: &mut Unstructured<'_>) -> Result<Option<f32>> {
    Ok(match u.int_in_range(0..=7)? {
        0 => Some(f32::from_bits(u.arbitrary()?)),
        1 => Some(*u.choose(&[
            0.0,
            -0.0,
            f32::INFINITY,
            f32::NAN,
            f32::MAX,
            f32::MIN_POSITIVE,
        ])?),
        2 | 3 => Some(f32::from(u.int_in_range(1..=255u8)?) / 64.0),
        _ => None,
    })
}

/// A number that overflows somewhere.
fn hostile(u: &mut Unstructured<'_>) -> Result<i64> {
    let near = i64::from(u.int_in_range(-4..=4i8)?);
    Ok(match u.int_in_range(0..=2)? {
        0 => near,
        1 => (1i64 << u.int_in_range(0..=62)?).wrapping_add(near),
        _ => u.arbitrary()?,
    })
}

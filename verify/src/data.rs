//! Elements from seeds.

use std::str::FromStr;

use flashtile::{DType, Inputs, Problem, element};

use crate::case::Case;

/// How the elements of q, k and v are distributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Standard normal.
    Normal,
    /// Normal, q and k ten times as large: one key takes almost all of each row.
    Peaked,
    /// -1, -0.0, 0 or 1: scores tie.
    Ternary,
    /// All zero, of either sign: scores are zero, the output is an average.
    ZeroScores,
    /// Normal numbers times powers of two from 2^-12 to 2^4.
    Wide,
    /// Subnormal numbers of the element type.
    Subnormal,
    /// 1e4 and -1e4, and in queries and keys 0 three times out of four. So f32 holds every score exactly,
    /// and ties are ties whatever the order of sums. f32's own queries and keys are up to a quarter less:
    /// the bound of its arithmetic says nothing where large scores tie.
    Large,
    /// Normal, but one key of each head is far out, where all queries point.
    Dominant,
}

impl Distribution {
    /// Every distribution.
    pub const ALL: [Self; 8] = [
        Self::Normal,
        Self::Peaked,
        Self::Ternary,
        Self::ZeroScores,
        Self::Wide,
        Self::Subnormal,
        Self::Large,
        Self::Dominant,
    ];

    /// Name in a case's text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Peaked => "peaked",
            Self::Ternary => "ternary",
            Self::ZeroScores => "zero-scores",
            Self::Wide => "wide",
            Self::Subnormal => "subnormal",
            Self::Large => "1e4",
            Self::Dominant => "dominant",
        }
    }
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|d| d.as_str() == text);
        found.ok_or_else(|| format!("no distribution is called `{text}`"))
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): the same numbers everywhere, from any seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform below `end`, which is positive (and far below 2^64).
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Uniform in (0, 1).
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// Standard normal (Box and Muller, 1958).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }

    /// A random order of `0..len`.
    pub fn permutation(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }

    fn element(&mut self, data: Distribution, dtype: DType, is_value: bool) -> f32 {
        let sign = if self.bits() & 1 == 0 { 1.0 } else { -1.0 };
        match data {
            Distribution::Normal | Distribution::Dominant => self.normal(),
            Distribution::Large if !is_value && !self.bits().is_multiple_of(4) => 0.0,
            Distribution::Large if !is_value && dtype == DType::F32 => {
                sign * (1e4 - 2.5e3 * self.uniform()) as f32
            }
            Distribution::Large => sign * 1e4,
            Distribution::Peaked if is_value => self.normal(),
            Distribution::Peaked => 10.0 * self.normal(),
            Distribution::ZeroScores if is_value => self.normal(),
            Distribution::ZeroScores => sign * 0.0,
            Distribution::Ternary => sign * (self.bits() & 1) as f32,
            Distribution::Wide => self.normal() * 2f32.powi(self.below(17) as i32 - 12),
            Distribution::Subnormal => {
                let largest = match dtype {
                    DType::F16 => 2f32.powi(-14),
                    DType::Bf16 | DType::F32 => f32::MIN_POSITIVE,
                    DType::E4m3 => 2f32.powi(-6),
                };
                sign * (self.uniform() * f64::from(largest)) as f32
            }
        }
    }
}

/// q, k and v in the order of their shapes, without gaps, and their scales. Every number is one of the element type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors {
    /// Queries [batch, seqlen_q, heads_q, head_dim_qk].
    pub q: Vec<f32>,
    /// Keys [batch, seqlen_k, heads_kv, head_dim_qk].
    pub k: Vec<f32>,
    /// Values [batch, seqlen_k, heads_kv, head_dim_v].
    pub v: Vec<f32>,
    /// Scales of q, of k, of v: none where the problem has none.
    pub scales: [Vec<f32>; 3],
}

impl Tensors {
    /// The tensors of a case.
    pub fn of(case: &Case) -> Self {
        let mut tensors = [0, 1, 2].map(|which| {
            let shape = case.shapes()[which];
            let mut random = Random::new(case.seed.wrapping_mul(3).wrapping_add(which as u64));
            let mut next = || {
                let x = random.element(case.data, case.dtype, which == 2);
                element::round(case.dtype, x)
            };
            let count: usize = shape.iter().product();
            let mut values: Vec<f32> = (0..count).map(|_| next()).collect();
            if case.data == Distribution::Dominant {
                dominate(which, shape, &mut values, &mut random);
            }
            if case.placements[which].broadcast && shape[0] > 1 {
                let one = values[..count / shape[0]].to_vec();
                values = one.repeat(shape[0]);
            }
            values
        });
        Self {
            q: std::mem::take(&mut tensors[0]),
            k: std::mem::take(&mut tensors[1]),
            v: std::mem::take(&mut tensors[2]),
            scales: scales(&case.problem(), case.seed),
        }
    }

    /// The tensors as elements of the type, for the library.
    pub fn encode(&self, dtype: DType) -> Encoded<'_> {
        Encoded {
            elements: [&self.q, &self.k, &self.v].map(|values| element::encode(dtype, values)),
            scales: &self.scales,
        }
    }
}

/// Tensors as bytes without gaps.
pub struct Encoded<'a> {
    elements: [Vec<u8>; 3],
    scales: &'a [Vec<f32>; 3],
}

impl Encoded<'_> {
    /// As the library takes them.
    pub fn inputs(&self) -> Inputs<'_> {
        let ([q, k, v], [q_scale, k_scale, v_scale]) = (&self.elements, self.scales);
        Inputs {
            q,
            k,
            v,
            q_scale,
            k_scale,
            v_scale,
        }
    }
}

/// Scales for q, k and v of a problem, as many as it has: between 1/2 and 2.
pub fn scales(problem: &Problem, seed: u64) -> [Vec<f32>; 3] {
    let layouts = [
        (problem.scales.q, &problem.q),
        (problem.scales.k, &problem.k),
        (problem.scales.v, &problem.v),
    ];
    let mut random = Random::new(!seed);
    layouts.map(|(layout, tensor)| {
        let count = layout.count(tensor).unwrap_or_default();
        let scale = |_| (2.0 * random.uniform() - 1.0).exp2() as f32;
        (0..count).map(scale).collect()
    })
}

/// Turns all queries to the first axis, and puts one key of each head far out on it.
fn dominate(which: usize, shape: [usize; 4], values: &mut [f32], random: &mut Random) {
    match which {
        0 => values.iter_mut().step_by(shape[3]).for_each(|x| *x = 8.0),
        1 if shape[1] > 0 => {
            for b in 0..shape[0] {
                for h in 0..shape[2] {
                    values[row(shape, b, random.below(shape[1]), h).start] = 64.0;
                }
            }
        }
        _ => {}
    }
}

/// Row `[b, s, h, :]` of a tensor of this shape, without gaps.
pub fn row(shape: [usize; 4], b: usize, s: usize, h: usize) -> std::ops::Range<usize> {
    let begin = ((b * shape[1] + s) * shape[2] + h) * shape[3];
    begin..begin + shape[3]
}

/// The rows `[b, s, h, :]` of `source` that `pick` names for each row of a new tensor.
pub fn rebuild(
    source: &[f32],
    source_shape: [usize; 4],
    shape: [usize; 4],
    pick: impl Fn(usize, usize, usize) -> [usize; 3],
) -> Vec<f32> {
    let mut out = Vec::with_capacity(shape.iter().product());
    for b in 0..shape[0] {
        for s in 0..shape[1] {
            for h in 0..shape[2] {
                let [b, s, h] = pick(b, s, h);
                out.extend_from_slice(&source[row(source_shape, b, s, h)]);
            }
        }
    }
    out
}

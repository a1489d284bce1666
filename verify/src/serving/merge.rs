//! Partial results that are merged, and what the whole is judged by.

use std::{fmt, str::FromStr};

use flashtile::{
    DType, Device, MergeVariant, Outputs, TensorLayout, element,
    serving::{MergeInputs, MergeProblem, merge},
};

use super::build::GAP;
use crate::{data::Random, text::number};

/// Parts by chance, that are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeCase {
    /// Elements of the parts.
    pub dtype: DType,
    /// Elements of the output.
    pub out_dtype: DType,
    /// Sequences, rows, heads, elements of a row.
    pub shape: [usize; 4],
    /// Parts.
    pub count: usize,
    /// Whether there are sinks.
    pub sink: bool,
    /// Whether the log-sum-exp is wanted.
    pub lse: bool,
    /// Of all numbers.
    pub seed: u64,
}

/// A case's problem and inputs. Some parts of some rows have no keys: they are not there.
#[derive(Clone, Debug)]
pub struct BuiltMerge {
    /// The problem.
    pub problem: MergeProblem,
    /// The parts' outputs.
    pub parts: Vec<u8>,
    /// Their log-sum-exps.
    pub lse: Vec<f32>,
    /// Sinks.
    pub sink: Vec<f32>,
}

impl BuiltMerge {
    /// Of a case, rows being `distance(elements of one, their type)` elements apart.
    pub fn with_rows(case: &MergeCase, distance: &dyn Fn(usize, DType) -> usize) -> Self {
        let ([batch, rows, heads, dim], dtype) = (case.shape, case.dtype);
        let mut random = Random::new(case.seed);
        let apart = |dtype: DType| {
            let wide = TensorLayout::contiguous([batch, rows, heads, distance(dim, dtype)]);
            TensorLayout {
                shape: case.shape,
                ..wide
            }
        };
        let mut problem = MergeProblem::new(dtype, case.count, apart(dtype));
        (problem.out, problem.out_dtype) = (apart(case.out_dtype), case.out_dtype);
        problem.part_stride = problem.part.strides[0] * batch as i64;
        (problem.sink, problem.lse) = (case.sink, case.lse);
        let lse: Vec<f32> = (0..case.count * batch * heads * rows)
            .map(|_| match random.below(4) {
                0 => f32::NEG_INFINITY,
                _ => 4.0 * random.normal(),
            })
            .collect();
        let part = problem.part;
        let elements = match case.count {
            0 => 0,
            _ => part.span().unwrap_or(0) + (case.count - 1) * problem.part_stride as usize,
        };
        let mut parts = vec![GAP; elements * dtype.bytes() as usize];
        for p in 0..case.count {
            for (b, i) in (0..batch).flat_map(|b| (0..rows).map(move |i| (b, i))) {
                for h in 0..heads {
                    if lse[((p * batch + b) * heads + h) * rows + i] == f32::NEG_INFINITY {
                        continue;
                    }
                    let at = part.index([b, i, h, 0]) + p * problem.part_stride as usize;
                    for d in 0..dim {
                        element::write(dtype, &mut parts, at + d, random.normal());
                    }
                }
            }
        }
        let sinks = if case.sink { heads } else { 0 };
        let sink = (0..sinks).map(|_| 4.0 * random.normal()).collect();
        Self {
            problem,
            parts,
            lse,
            sink,
        }
    }

    /// As the library takes them.
    pub fn inputs(&self) -> MergeInputs<'_> {
        MergeInputs {
            parts: &self.parts,
            lse: &self.lse,
            sink: &self.sink,
        }
    }
}

impl MergeCase {
    /// What lines begin with.
    pub const WORD: &str = "merge";

    /// The cases of a kernel.
    pub fn of_variant(variant: &MergeVariant) -> Vec<Self> {
        let own = variant.dtype;
        let types = match own {
            DType::F32 => vec![(own, own)],
            _ => vec![(own, own), (DType::F32, own), (own, DType::F32)],
        };
        let shapes = [
            ([2, 3, 3, 70], 3),
            ([1, 2, 1, 1], 2),
            ([1, 1, 2, 32], 0),
            ([1, 5, 1, 33], 1),
        ];
        let mut cases = Vec::new();
        for (dtype, out_dtype) in types {
            for (at, (shape, count)) in shapes.into_iter().enumerate() {
                for (sink, lse) in [(true, true), (false, at % 2 == 0)] {
                    cases.push(Self {
                        dtype,
                        out_dtype,
                        shape,
                        count,
                        sink,
                        lse,
                        seed: at as u64,
                    });
                }
            }
        }
        cases
    }

    /// Bytes that the case takes, roughly; `None` past 64 bits.
    pub fn bytes(&self) -> Option<u64> {
        let mut factors = self.shape.iter().chain([&self.count]);
        let parts = factors.try_fold(32u64, |product, &n| {
            product.checked_mul(u64::try_from(n).ok()?.max(1))
        });
        parts.filter(|bytes| *bytes < 1 << 62)
    }

    /// The problem, without gaps.
    pub fn problem(&self) -> MergeProblem {
        let mut problem =
            MergeProblem::new(self.dtype, self.count, TensorLayout::contiguous(self.shape));
        (problem.out_dtype, problem.sink, problem.lse) = (self.out_dtype, self.sink, self.lse);
        problem
    }

    /// Merges and judges.
    ///
    /// # Errors
    /// The library's, or what is wrong with the result.
    pub fn attempt(&self, device: &dyn Device) -> Result<Result<(), String>, flashtile::Error> {
        // Refused before any number is drawn.
        self.problem().plan(device.info())?;
        let built = BuiltMerge::with_rows(self, &|dim, _| dim);
        let found = merge(device, &built.problem, &built.inputs())?;
        let judged = judge_merge(&built.problem, &built.inputs(), &found);
        Ok(judged.map_err(|reason| format!("{self}\n  {reason}")))
    }
}

impl fmt::Display for MergeCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [batch, rows, heads, dim] = self.shape;
        let (dtype, count) = (self.dtype.as_str(), self.count);
        write!(
            f,
            "merge {dtype} b{batch} q{rows} h{heads} d{dim} parts={count}"
        )?;
        if self.out_dtype != self.dtype {
            write!(f, " out-dtype={}", self.out_dtype.as_str())?;
        }
        if self.sink {
            write!(f, " sink")?;
        }
        if !self.lse {
            write!(f, " no-lse")?;
        }
        write!(f, " seed={}", self.seed)
    }
}

impl FromStr for MergeCase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        if words.next() != Some(Self::WORD) {
            return Err(format!("no `{}` at the beginning", Self::WORD));
        }
        let mut case = Self {
            dtype: DType::F16,
            out_dtype: DType::F16,
            shape: [1; 4],
            count: 1,
            sink: false,
            lse: true,
            seed: 0,
        };
        let mut out = None;
        for word in words {
            case.read_word(word, &mut out)
                .map_err(|reason| format!("{word}: {reason}"))?;
        }
        case.out_dtype = out.unwrap_or(case.dtype);
        Ok(case)
    }
}

impl MergeCase {
    fn read_word(&mut self, word: &str, out: &mut Option<DType>) -> Result<(), String> {
        let dtype = |text: &str| DType::ALL.into_iter().find(|it| it.as_str() == text);
        match word.split_once('=') {
            Some(("parts", text)) => self.count = number(text)?,
            Some(("seed", text)) => self.seed = number(text)?,
            Some(("out-dtype", text)) => *out = Some(dtype(text).ok_or("no element type")?),
            Some(_) => return Err("not part of a case".into()),
            None if word == "sink" => self.sink = true,
            None if word == "no-lse" => self.lse = false,
            None => match (dtype(word), word.split_at_checked(1)) {
                (Some(dtype), _) => self.dtype = dtype,
                (None, Some((letter, rest))) => {
                    let at = ["b", "q", "h", "d"].iter().position(|it| *it == letter);
                    self.shape[at.ok_or("not part of a case")?] = number(rest)?;
                }
                _ => return Err("not part of a case".into()),
            },
        }
        Ok(())
    }
}

/// What merging so many parts adds: to log-sum-exps, and to outputs relative to twice the mean of the parts' magnitudes. Roundings of
/// exponents: of two logarithms and their difference; then exponential, sum, reciprocal, and products.
pub fn merging_error(largest_lse: f64, parts: usize) -> f64 {
    (8.0 * largest_lse + 2.0 * parts as f64 + 16.0) / 16_777_216.0
}

/// Judges parts merged by their log-sum-exps, against f64. No stride is negative.
///
/// # Errors
/// The first number that is off by more than roundings explain.
pub fn judge_merge(
    problem: &MergeProblem,
    inputs: &MergeInputs<'_>,
    outputs: &Outputs,
) -> Result<(), String> {
    let [batch, rows, heads, dim] = problem.part.shape;
    let (count, dtype) = (problem.count, problem.dtype);
    let (lse, sink) = (inputs.lse, inputs.sink);
    let largest = lse.iter().chain(sink).filter(|x| x.is_finite());
    let largest = largest.fold(0f32, |max, x| max.max(x.abs()));
    let relative = merging_error(f64::from(largest), count);
    for (b, h, i) in
        (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..rows).map(move |i| (b, h, i))))
    {
        let row_lse = |p: usize| f64::from(lse[((p * batch + b) * heads + h) * rows + i]);
        let logits = (0..count).map(row_lse);
        let logits: Vec<f64> = logits.chain(sink.get(h).map(|&s| f64::from(s))).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits
            .iter()
            .filter(|x| **x > f64::NEG_INFINITY)
            .map(|x| (x - max).exp())
            .sum();
        if let Some(found) = &outputs.lse {
            let wanted = if sum == 0.0 { max } else { max + sum.ln() };
            let found = f64::from(found[(b * heads + h) * rows + i]);
            let near = (found - wanted).abs() <= relative;
            if found != wanted && !near {
                return Err(format!("lse[{b}, {h}, {i}] is {found}, not {wanted}"));
            }
        }
        for d in 0..dim {
            let (mut wanted, mut scale) = (0.0, 0.0);
            for p in (0..count).filter(|&p| row_lse(p) > f64::NEG_INFINITY) {
                let share = (row_lse(p) - max).exp() / sum;
                let at = problem.part.index([b, i, h, d]) + p * problem.part_stride as usize;
                let x = f64::from(element::read(dtype, inputs.parts, at));
                wanted += share * x;
                scale += share * x.abs();
            }
            let rounding = match problem.out_dtype {
                DType::F16 => wanted.abs() / 2048.0 + 2f64.powi(-25),
                DType::Bf16 => wanted.abs() / 256.0,
                _ => 0.0,
            };
            let at = problem.out.index([b, i, h, d]);
            let found = f64::from(element::read(problem.out_dtype, &outputs.out, at));
            let near = (found - wanted).abs() <= 1.01 * rounding + 2.0 * relative * scale;
            if !near {
                return Err(format!("out[{b}, {i}, {h}, {d}] is {found}, not {wanted}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_is_read() {
        let all = flashtile::kernels().filter_map(|kernel| match kernel.operation {
            flashtile::Operation::Merge(variant) => Some(variant),
            _ => None,
        });
        for case in all.flat_map(MergeCase::of_variant) {
            assert_eq!(case.to_string().parse(), Ok(case));
        }
        for bad in ["b", "x3", "parts=-1", "out-dtype=f8", "q=1", "\u{fc}"] {
            let error = format!("merge {bad}").parse::<MergeCase>().unwrap_err();
            assert!(error.starts_with(bad), "{error}");
        }
        assert!("serving f16".parse::<MergeCase>().is_err());
    }

    #[test]
    fn wrong_numbers_are_rejected() {
        let case: MergeCase = "merge f32 b1 q2 h2 d3 parts=2 sink seed=1".parse().unwrap();
        let built = BuiltMerge::with_rows(&case, &|dim, _| dim);
        let device = flashtile::EmulatorDevice::new();
        let right = merge(&device, &built.problem, &built.inputs()).unwrap();
        let judge = |outputs: &Outputs| judge_merge(&built.problem, &built.inputs(), outputs);
        assert_eq!(judge(&right), Ok(()));
        let mut wrong = right.clone();
        let x = element::read(DType::F32, &wrong.out, 4);
        element::write(DType::F32, &mut wrong.out, 4, x + 1e-3);
        assert!(judge(&wrong).unwrap_err().starts_with("out[0, 0, 1, 1]"));
        let mut wrong = right;
        if let Some(lse) = &mut wrong.lse {
            lse[3] = f32::NAN;
        }
        assert!(judge(&wrong).unwrap_err().starts_with("lse[0, 1, 1]"));
    }
}

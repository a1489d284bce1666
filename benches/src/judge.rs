//! Whether an output is right: a few of its rows against the library's oracle, each within the library's own bound.
//!
//! A row is a problem of one query over the keys that it sees, so the oracle costs what a row costs, however large
//! the tensors. Inputs are made again from their seeds.

use flashtile::{
    DType, Inputs, Problem, Result, Shape, element,
    reference::{attention_f64, attention_low_precision, error_bound},
};
use rayon::prelude::*;

use crate::{cell::Cell, inputs::part, workload::seeds};

/// Rows that are looked at.
const ROWS: usize = 16;

/// One row of the first set's output.
#[derive(Clone, Debug)]
struct Row {
    /// Batch, query, query head.
    at: [usize; 3],
    reference: Vec<f64>,
    bound: f64,
}

/// Rows and what they should be.
#[derive(Clone, Debug)]
pub struct Judge {
    rows: Vec<Row>,
}

/// How far an output is off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Largest absolute error; infinite for a NaN.
    pub max_abs_error: f64,
    /// Root mean square.
    pub rms_error: f64,
    /// The largest of the rows' bounds.
    pub bound: f64,
    /// Whether every row is within its own.
    pub ok: bool,
}

impl Judge {
    /// Chooses rows of a cell, the first and the last query among them, and computes them.
    ///
    /// # Errors
    /// What the oracle says of the problem.
    pub fn new(cell: &Cell) -> Result<Self> {
        let rows = places(&cell.shape).into_par_iter();
        let rows = rows.map(|at| row(cell, at)).collect::<Result<_>>()?;
        Ok(Self { rows })
    }

    /// The rows: batch, query, query head.
    pub fn places(&self) -> Vec<[usize; 3]> {
        self.rows.iter().map(|row| row.at).collect()
    }

    /// Judges the rows' elements, one row after the other in the order of [`Judge::places`].
    pub fn judge(&self, elements: &[f32]) -> Verdict {
        let expected = self.rows.iter().map(|row| row.reference.len());
        let mut verdict = Verdict {
            max_abs_error: 0.0,
            rms_error: 0.0,
            bound: 0.0,
            ok: elements.len() == expected.sum::<usize>(),
        };
        let (mut squares, mut rest) = (0.0, elements);
        for row in &self.rows {
            let (found, after) = rest.split_at(row.reference.len().min(rest.len()));
            rest = after;
            let errors = found.iter().zip(&row.reference).map(|(&x, r)| {
                let error = (f64::from(x) - r).abs();
                if error.is_nan() { f64::INFINITY } else { error }
            });
            let (mut worst, mut sum) = (0.0f64, 0.0);
            for error in errors {
                worst = worst.max(error);
                sum += error * error;
            }
            squares += sum;
            verdict.max_abs_error = verdict.max_abs_error.max(worst);
            verdict.bound = verdict.bound.max(row.bound);
            verdict.ok &= worst <= row.bound;
        }
        verdict.rms_error = (squares / elements.len().max(1) as f64).sqrt();
        verdict
    }

    /// Judges a whole output [batch, seqlen_q, heads_q, head_dim_v], little-endian, without gaps. An element anywhere
    /// that is not finite makes it wrong.
    pub fn judge_output(&self, cell: &Cell, dtype: DType, output: &[u8]) -> Verdict {
        let s = &cell.shape;
        let width = s.head_dim_v;
        let mut elements = Vec::new();
        for [b, i, h] in self.places() {
            let first = ((b * s.seqlen_q + i) * s.heads_q + h) * width;
            elements.extend((first..first + width).map(|at| element::read(dtype, output, at)));
        }
        let mut verdict = self.judge(&elements);
        let count = output.len() / dtype.bytes() as usize;
        let finite = |at| element::read(dtype, output, at).is_finite();
        verdict.ok &= (0..count).into_par_iter().all(finite);
        verdict
    }
}

/// Rows all over the output.
fn places(s: &Shape) -> Vec<[usize; 3]> {
    let mut places = vec![[0, 0, 0]];
    if s.batch * s.seqlen_q * s.heads_q == 0 {
        return Vec::new();
    }
    places.push([s.batch - 1, s.seqlen_q - 1, s.heads_q - 1]);
    // Steps by the golden ratio visit every region soon, whatever the size.
    let golden = 0.618_033_988_749_895f64;
    for n in 1..ROWS - 1 {
        let place = |step: usize, size: usize| {
            let share = ((n * step) as f64 * golden).fract();
            ((share * size as f64) as usize).min(size - 1)
        };
        places.push([place(3, s.batch), place(1, s.seqlen_q), place(7, s.heads_q)]);
    }
    places.sort_unstable();
    places.dedup();
    places
}

/// What a row should be.
fn row(cell: &Cell, at: [usize; 3]) -> Result<Row> {
    let [b, i, h] = at;
    let s = &cell.shape;
    let seen = cell.seen(i);
    let [q_seed, k_seed, v_seed] = seeds(0);
    let (dim_qk, dim_v) = (s.head_dim_qk, s.head_dim_v);
    let query = ((b * s.seqlen_q + i) * s.heads_q + h) * dim_qk;
    let q = part(cell.dtype, q_seed, query..query + dim_qk);
    let kv_head = h / cell.group().0;
    let rows = |seed: u32, dim: usize| -> Vec<u8> {
        let row = |key: usize| {
            let first = ((b * s.seqlen_k + key) * s.heads_kv + kv_head) * dim;
            part(cell.dtype, seed, first..first + dim)
        };
        seen.clone().flat_map(row).collect()
    };
    let (k, v) = (rows(k_seed, dim_qk), rows(v_seed, dim_v));
    let shape = Shape {
        batch: 1,
        seqlen_q: 1,
        seqlen_k: seen.len(),
        heads_q: 1,
        heads_kv: 1,
        ..*s
    };
    let problem = Problem::contiguous(cell.dtype, shape);
    let inputs = Inputs {
        q: &q,
        k: &k,
        v: &v,
    };
    let reference = attention_f64(&problem, &inputs)?;
    let low = attention_low_precision(&problem, &inputs)?;
    let bound = error_bound(&problem, &inputs, &reference, &low)?;
    Ok(Row {
        at,
        reference: reference.out,
        bound: bound.max_abs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{Grid, Mask},
        inputs::values,
    };
    use flashtile::{ArchChoice, Window, cpu};

    fn cells() -> Vec<Cell> {
        let mut grid = Grid::emulator();
        let window = Window {
            left: Some(20),
            right: Some(3),
        };
        grid.masks.push(Mask::Window(window));
        grid.head_dims = vec![64];
        grid.seqlens = vec![128];
        grid.cells()
    }

    /// The oracle over the whole problem says of a row what the oracle over the row alone says, whatever mask and
    /// heads.
    #[test]
    fn rows_are_those_of_the_whole() {
        for mut cell in cells() {
            // Where queries stand among more keys, too.
            cell.shape.seqlen_q = 100;
            let problem = cell.problem(ArchChoice::Auto);
            let [q, k, v] = seeds(0);
            let upload = |layout: &flashtile::TensorLayout, seed| {
                values(cell.dtype, layout.elements().unwrap(), seed)
            };
            let (q, k, v) = (
                upload(&problem.q, q),
                upload(&problem.k, k),
                upload(&problem.v, v),
            );
            let inputs = Inputs {
                q: &q,
                k: &k,
                v: &v,
            };
            let whole = attention_f64(&problem, &inputs).unwrap();
            let judge = Judge::new(&cell).unwrap();
            let places = judge.places();
            assert!(places.len() > ROWS / 2, "{cell}: {places:?}");
            for place in [[0, 0, 0], [1, 99, cell.shape.heads_q - 1]] {
                assert!(places.contains(&place), "{cell}: {places:?}");
            }
            let dim = cell.shape.head_dim_v;
            for row in &judge.rows {
                let [b, i, h] = row.at;
                let first = ((b * 100 + i) * cell.shape.heads_q + h) * dim;
                for (found, expected) in row.reference.iter().zip(&whole.out[first..]) {
                    // Two sums of the same numbers in f64.
                    assert!(
                        (found - expected).abs() < 1e-12,
                        "{cell}: {place:?}",
                        place = row.at
                    );
                }
            }
            // A right output passes, whoever computed it; a wrong one does not, nor one with a hole.
            let output = cpu::attention(&problem, &inputs).unwrap().out;
            let verdict = judge.judge_output(&cell, cell.dtype, &output);
            assert!(
                verdict.ok && verdict.max_abs_error > 0.0,
                "{cell}: {verdict:?}"
            );
            assert!(verdict.rms_error <= verdict.max_abs_error);
            let mut hole = output.clone();
            hole[2 * dim + 6..][..2].fill(0xff);
            assert!(!judge.judge_output(&cell, cell.dtype, &hole).ok, "{cell}");
            let shifted = [&output[2 * dim..], &output[..2 * dim]].concat();
            assert!(
                !judge.judge_output(&cell, cell.dtype, &shifted).ok,
                "{cell}"
            );
        }
    }

    #[test]
    fn too_few_elements_and_nan_are_wrong() {
        let judge = Judge::new(&cells()[0]).unwrap();
        let right: Vec<f32> = judge
            .rows
            .iter()
            .flat_map(|row| row.reference.iter().map(|&x| x as f32))
            .collect();
        assert!(judge.judge(&right).ok);
        assert!(!judge.judge(&right[1..]).ok);
        assert!(!judge.judge(&[]).ok);
        let mut nan = right.clone();
        nan[5] = f32::NAN;
        let verdict = judge.judge(&nan);
        assert!(!verdict.ok && verdict.max_abs_error == f64::INFINITY);
    }
}

//! Whether an output is right: some of its rows against the library's oracle, within the library's own bound.
//!
//! The rows of one query see the same keys in every batch and head. So they make a problem of their own, of one query to
//! a batch and no mask, which costs what rows cost, however large the tensors. It has as many rows as the bound
//! takes to measure the textbook's error by (1,024 elements), if there are as many. Inputs are made again from their seeds.

use flashtile::{
    DType, Inputs, Outputs, Problem, Result, Shape, TensorLayout, element,
    reference::{ErrorBound, attention_f64, attention_low_precision, error_bound},
    serving::{self, CacheLayout, ServingInputs, ServingProblem},
};
use rayon::prelude::*;

use crate::{
    cell::{Cache, Cell},
    inputs::part,
    workload::seeds,
};

/// Queries that are looked at.
const QUERIES: usize = 4;

/// Elements of each query's rows, if there are as many.
const ELEMENTS: usize = 1024;

/// Rows of one query.
#[derive(Clone, Debug)]
struct Rows {
    query: usize,
    /// Batch and query head of each.
    heads: Vec<[usize; 2]>,
    /// What they should be, one after the other.
    reference: Vec<f64>,
    bound: ErrorBound,
}

/// Rows and what they should be.
#[derive(Clone, Debug)]
pub struct Judge {
    queries: Vec<Rows>,
}

/// How far an output is off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Largest absolute error; infinite for a NaN.
    pub max_abs_error: f64,
    /// Root mean square.
    pub rms_error: f64,
    /// The largest error allowed in any of the rows.
    pub bound: f64,
    /// Whether the rows of every query are within their own bound.
    pub ok: bool,
}

impl Judge {
    /// Chooses rows of a cell, of the first and the last query among others, and computes them.
    ///
    /// # Errors
    /// What the oracle says of the problem.
    pub fn new(cell: &Cell) -> Result<Self> {
        let s = &cell.shape;
        let mut queries: Vec<_> = (0..QUERIES).map(|n| spread(n, s.seqlen_q)).collect();
        queries.sort_unstable();
        queries.dedup();
        let wanted = ELEMENTS.div_ceil(s.head_dim_v.max(1));
        let count = s.batch.saturating_mul(s.heads_q);
        // Spread over three times as many or more, none but the two ends can coincide with others.
        let mut heads: Vec<_> = match count <= 3 * wanted {
            true => (0..count).collect(),
            false => (0..wanted + 2).map(|n| spread(n, count)).collect(),
        };
        heads.sort_unstable();
        heads.dedup();
        let heads = heads
            .iter()
            .map(|head| [head / s.heads_q, head % s.heads_q]);
        let heads: Vec<_> = heads.collect();
        let rows = queries.iter().map(|&query| rows(cell, query, &heads));
        Ok(Self {
            queries: rows.collect::<Result<_>>()?,
        })
    }

    /// The rows: batch, query, query head.
    pub fn places(&self) -> Vec<[usize; 3]> {
        let places = |rows: &Rows| -> Vec<_> {
            let place = |&[b, h]: &[usize; 2]| [b, rows.query, h];
            rows.heads.iter().map(place).collect()
        };
        self.queries.iter().flat_map(places).collect()
    }

    /// Judges the rows' elements, one row after the other in the order of [`Judge::places`].
    pub fn judge(&self, elements: &[f32]) -> Verdict {
        let expected = self.queries.iter().map(|rows| rows.reference.len());
        let mut verdict = Verdict {
            max_abs_error: 0.0,
            rms_error: 0.0,
            bound: 0.0,
            ok: elements.len() == expected.sum::<usize>(),
        };
        let (mut all, mut rest) = (0.0, elements);
        for rows in &self.queries {
            let (found, after) = rest.split_at(rows.reference.len().min(rest.len()));
            rest = after;
            let errors = found.iter().zip(&rows.reference).map(|(&x, r)| {
                let error = (f64::from(x) - r).abs();
                if error.is_nan() { f64::INFINITY } else { error }
            });
            let (mut worst, mut squares) = (0.0f64, 0.0);
            for error in errors {
                worst = worst.max(error);
                squares += error * error;
            }
            let rms = (squares / found.len().max(1) as f64).sqrt();
            all += squares;
            verdict.max_abs_error = verdict.max_abs_error.max(worst);
            verdict.bound = verdict.bound.max(rows.bound.max_abs);
            verdict.ok &= worst <= rows.bound.max_abs && rms <= rows.bound.rms;
        }
        verdict.rms_error = (all / elements.len().max(1) as f64).sqrt();
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

/// Number `n` of numbers below `size` that begin with both ends and then spread evenly, however many there are: steps
/// by the golden ratio.
fn spread(n: usize, size: usize) -> usize {
    let last = size.saturating_sub(1);
    match n {
        0 => 0,
        1 => last,
        n => (((n as f64 * 0.618_033_988_749_895).fract() * size as f64) as usize).min(last),
    }
}

/// What the rows of a query should be.
fn rows(cell: &Cell, query: usize, heads: &[[usize; 2]]) -> Result<Rows> {
    let s = &cell.shape;
    let seen = cell.seen(query);
    let [q_seed, k_seed, v_seed] = seeds(0);
    let row = |seed: u32, [b, i, h]: [usize; 3], [seqlen, heads, dim]: [usize; 3]| {
        let first = ((b * seqlen + i) * heads + h) * dim;
        part(cell.dtype, seed, first..first + dim)
    };
    let group = cell.group().0;
    let keys = |seed: u32, dim: usize| -> Vec<u8> {
        let of = |&[b, h]: &[usize; 2]| -> Vec<u8> {
            let shape = [s.seqlen_k, s.heads_kv, dim];
            let key = |key| row(seed, [b, key, h / group], shape);
            seen.clone().flat_map(key).collect()
        };
        heads.par_iter().flat_map_iter(of).collect()
    };
    let k = keys(k_seed, s.head_dim_qk);
    let v = match cell.cache {
        Cache::Latent(_) => Vec::new(),
        _ => keys(v_seed, s.head_dim_v),
    };
    let shape = [s.seqlen_q, s.heads_q, s.head_dim_qk];
    let q = heads
        .iter()
        .flat_map(|&[b, h]| row(q_seed, [b, query, h], shape));
    let q: Vec<u8> = q.collect();
    let problem = Problem::contiguous(
        cell.dtype,
        Shape {
            batch: heads.len(),
            seqlen_q: 1,
            seqlen_k: seen.len(),
            heads_q: 1,
            heads_kv: 1,
            ..*s
        },
    );
    let inputs = Inputs {
        q: &q,
        k: &k,
        v: &v,
        ..Inputs::default()
    };
    let (reference, bound) = match cell.cache {
        Cache::Latent(_) => latent(cell, heads.len(), seen.len(), &q, &k)?,
        _ => {
            let reference = attention_f64(&problem, &inputs)?;
            let low = attention_low_precision(&problem, &inputs)?;
            let bound = error_bound(&problem, &inputs, &reference, &low)?;
            (reference.out, bound)
        }
    };
    Ok(Rows {
        query,
        heads: heads.to_vec(),
        reference,
        bound,
    })
}

/// What rows of a latent cache should be: their keys are wider than those of dense problems can be.
fn latent(
    cell: &Cell,
    rows: usize,
    keys: usize,
    q: &[u8],
    k: &[u8],
) -> Result<(Vec<f64>, ErrorBound)> {
    let s = &cell.shape;
    let problem = ServingProblem::latent(
        cell.dtype,
        rows,
        TensorLayout::contiguous([rows, 1, 1, s.head_dim_qk]),
        CacheLayout::contiguous([rows, keys, 1, s.head_dim_qk]),
        s.head_dim_v,
    );
    let inputs = ServingInputs {
        q,
        k,
        ..ServingInputs::default()
    };
    let reference = serving::attention_f64(&problem, &inputs)?;
    let out: Vec<f64> = reference.into_iter().flat_map(|rows| rows.out).collect();
    // The bound does not depend on what is compared.
    let any = Outputs {
        out: vec![0; out.len() * problem.out_element().bytes() as usize],
        lse: None,
    };
    let bound = serving::compare(&problem, &inputs, &any)?.bound;
    Ok((out, bound))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cell::{HeadDim, Mask},
        grid::Grid,
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
        grid.head_dims = [64].map(HeadDim::from).to_vec();
        grid.seqlens = vec![128];
        grid.serving.clear();
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
                ..Inputs::default()
            };
            let whole = attention_f64(&problem, &inputs).unwrap();
            let judge = Judge::new(&cell).unwrap();
            let places = judge.places();
            let last = cell.shape.heads_q - 1;
            for place in [[0, 0, 0], [1, 99, last], [0, 99, 0], [1, 0, last]] {
                assert!(places.contains(&place), "{cell}: {places:?}");
            }
            let dim = cell.shape.head_dim_v;
            let reference = judge.queries.iter().flat_map(|rows| &rows.reference);
            let reference: Vec<_> = reference.copied().collect();
            assert!(reference.len() >= QUERIES * ELEMENTS, "{cell}");
            for (&[b, i, h], row) in places.iter().zip(reference.chunks(dim)) {
                let first = ((b * 100 + i) * cell.shape.heads_q + h) * dim;
                for (found, expected) in row.iter().zip(&whole.out[first..]) {
                    // Two sums of the same numbers in f64.
                    assert!((found - expected).abs() < 1e-12, "{cell}: {b}, {i}, {h}");
                }
            }
            // A right output passes, whoever computed it; a wrong one does not, nor one with a hole.
            let output = cpu::attention(&problem, &inputs).unwrap().out;
            let verdict = judge.judge_output(&cell, problem.out_element(), &output);
            assert!(
                verdict.ok && verdict.max_abs_error > 0.0,
                "{cell}: {verdict:?}"
            );
            assert!(verdict.rms_error <= verdict.max_abs_error);
            let mut hole = output.clone();
            hole[2 * dim + 6..][..2].fill(0xff);
            assert!(
                !judge.judge_output(&cell, problem.out_element(), &hole).ok,
                "{cell}"
            );
            let shifted = [&output[2 * dim..], &output[..2 * dim]].concat();
            assert!(
                !judge
                    .judge_output(&cell, problem.out_element(), &shifted)
                    .ok,
                "{cell}"
            );
        }
    }

    #[test]
    fn rows_are_spread_and_enough() {
        for size in [49, 50, 64, 100, 1000, 4096, 100_000] {
            let mut places: Vec<_> = (0..18).map(|n| spread(n, size)).collect();
            places.sort_unstable();
            places.dedup();
            assert!(places.len() >= 16 && places[0] == 0 && places.contains(&(size - 1)));
            let gaps = places.windows(2).map(|pair| pair[1] - pair[0]);
            assert!(gaps.max().unwrap() <= size / 5, "{places:?}");
        }
    }

    #[test]
    fn too_few_elements_and_nan_are_wrong() {
        let judge = Judge::new(&cells()[0]).unwrap();
        let reference = judge.queries.iter().flat_map(|rows| &rows.reference);
        let right: Vec<f32> = reference.map(|&x| x as f32).collect();
        assert!(judge.judge(&right).ok);
        assert!(!judge.judge(&right[1..]).ok);
        assert!(!judge.judge(&[]).ok);
        let mut nan = right.clone();
        nan[5] = f32::NAN;
        let verdict = judge.judge(&nan);
        assert!(!verdict.ok && verdict.max_abs_error == f64::INFINITY);
    }

    /// Over many keys outputs are small: nothing at all, or rows of another query, must still be wrong.
    #[test]
    fn nonsense_is_wrong_over_many_keys_too() {
        let mut cell = Grid::gpu().cells()[0];
        cell.shape.batch = 1;
        (cell.shape.seqlen_q, cell.shape.seqlen_k) = (2, 4096);
        for head_dim in [64, 128] {
            (cell.shape.head_dim_qk, cell.shape.head_dim_v) = (head_dim, head_dim);
            let judge = Judge::new(&cell).unwrap();
            let count = judge.places().len() * head_dim;
            assert!(!judge.judge(&vec![0.0; count]).ok);
            let reference = judge.queries.iter().flat_map(|rows| &rows.reference);
            let right: Vec<f32> = reference.map(|&x| x as f32).collect();
            assert!(judge.judge(&right).ok);
            let swapped = [&right[count / 2..], &right[..count / 2]].concat();
            assert!(!judge.judge(&swapped).ok);
            let fewer_keys: Vec<f32> = right.iter().map(|x| x * 1.5).collect();
            assert!(!judge.judge(&fewer_keys).ok);
        }
    }
}

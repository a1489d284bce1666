//! Attention on the CPU in f32.

use super::{inputs::ServingInputs, problem::ServingProblem, sequence::Sequences};
use crate::{
    cpu::Row,
    element,
    error::{Error, Result},
    plan::band_of,
    reference::{Pairs, per_row},
    run::{Outputs, bytes_of},
};

/// Attention in f32 on all cores, sequence by sequence: whatever a [`ServingProblem`] says, of f16, bf16 or f32 elements. How keys are
/// split does not matter. Rows of out and log-sum-exp that belong to no query that counts are zero.
///
/// # Errors
/// [`Error::BadInput`] names the argument that is wrong, what was expected and what was found.
pub fn attention_cpu(problem: &ServingProblem, inputs: &ServingInputs<'_>) -> Result<Outputs> {
    let sequences = Sequences::new(problem, inputs)?;
    let dtype = problem.out_element();
    let (dim_qk, dim_v) = (sequences.sizes.head_dim_qk, sequences.sizes.head_dim_v);
    let mut out = zeroed("out", bytes_of("out", &problem.out, dtype.bytes())?)?;
    let [_, heads_q, rows_of_lse] = problem.lse_shape();
    let mut lse: Vec<f32> = match problem.lse {
        true => zeroed("lse", problem.lse_shape().iter().product())?,
        false => Vec::new(),
    };
    // Without rows there may be any number of sequences.
    if problem.out.is_empty() {
        return Ok(Outputs {
            out,
            lse: problem.lse.then_some(lse),
        });
    }
    for sequence in sequences.iter() {
        let sequence = sequence?;
        let heads = &sequence.heads;
        let (seqlen_q, seqlen_k) = (heads.shape.seqlen_q, heads.shape.seqlen_k);
        let band = band_of(
            problem.causal,
            problem.window,
            seqlen_q as i32,
            seqlen_k as i32,
        );
        let (rows, row_lse) = per_row(&heads.shape, |b, h, i, out_row: &mut [f32]| {
            let sight = band.row(i as i32);
            let (begin, end) = match problem.ranges {
                Some(_) => (0, seqlen_k),
                None if sight.begin < sight.end => (sight.begin as usize, sight.end as usize),
                None => (0, 0),
            };
            let row = Row {
                query: heads.query(b, h, i),
                keys: &heads.keys(b, h)[begin * dim_qk..end * dim_qk],
                values: &heads.values(b, h)[begin * dim_v..end * dim_v],
                scale: f64::from(problem.softmax_scale()),
                k_scales: &heads.key_scales(b, h)[begin..end],
                v_scales: &heads.value_scales(b, h)[begin..end],
                softcap: problem.softcap,
                sink: sequence.sink(h) as f32,
            };
            let term = |j| Some(sequence.term(h, i, begin + j)?.sum as f32);
            row.attend(term, out_row)
        })?;
        for (index, row) in rows.chunks(dim_v).enumerate() {
            let (i, h) = (index / heads_q, index % heads_q);
            let at = problem
                .out
                .index([sequence.block, sequence.first_row + i, h, 0]);
            for (x, &value) in row.iter().enumerate() {
                element::write(dtype, &mut out, at + x, value);
            }
        }
        if problem.lse && seqlen_q > 0 {
            for (h, source) in row_lse.chunks(seqlen_q).enumerate() {
                let at = (sequence.block * heads_q + h) * rows_of_lse + sequence.first_row;
                lse[at..][..seqlen_q].copy_from_slice(source);
            }
        }
    }
    Ok(Outputs {
        out,
        lse: problem.lse.then_some(lse),
    })
}

/// So many zeros.
fn zeroed<T: Copy + Default>(argument: &'static str, len: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    if values.try_reserve_exact(len).is_err() {
        return Err(Error::bad(
            argument,
            "a tensor that fits in memory",
            format!("{len} elements"),
        ));
    }
    values.resize(len, T::default());
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        CausalAlignment, DType, Inputs, Problem, Shape, TensorLayout, cpu,
        serving::{BiasType, CacheLayout, MaskType, PageTable, PairLayout},
    };

    /// Some numbers, different from each other.
    fn elements(dtype: DType, count: usize, seed: u32) -> Vec<u8> {
        let number = |i: usize| {
            let mixed = (i as u32 ^ seed.rotate_left(16)).wrapping_mul(0x9e37_79b9);
            (mixed >> 16) as f32 / 32768.0 - 1.0
        };
        element::encode(dtype, &(0..count).map(number).collect::<Vec<_>>())
    }

    /// One query and keys of score 0 with values 1, 2, ...
    fn means(keys: usize, change: impl Fn(ServingProblem) -> ServingProblem) -> ServingProblem {
        let shape = Shape {
            batch: 1,
            seqlen_q: 1,
            seqlen_k: keys,
            heads_q: 1,
            heads_kv: 1,
            head_dim_qk: 2,
            head_dim_v: 1,
        };
        change(ServingProblem::contiguous(DType::F32, shape).lse(true))
    }

    fn run(problem: &ServingProblem, inputs: ServingInputs<'_>) -> [f32; 2] {
        let keys = problem.k.shape[1];
        let (q, k) = (vec![0; 8], vec![0; 8 * keys]);
        let v: Vec<f32> = (1..=keys).map(|x| x as f32).collect();
        let v = element::encode(DType::F32, &v);
        let inputs = ServingInputs {
            q: &q,
            k: &k,
            v: &v,
            ..inputs
        };
        let outputs = attention_cpu(problem, &inputs).unwrap();
        [
            element::read(DType::F32, &outputs.out, 0),
            outputs.lse.unwrap()[0],
        ]
    }

    fn close(found: [f32; 2], out: f32, lse: f32) {
        let near = |x: f32, y: f32| x == y || (x - y).abs() <= 4.0 * f32::EPSILON * y.abs();
        assert!(
            near(found[0], out) && near(found[1], lse),
            "{found:?}, not {out}, {lse}"
        );
    }

    #[test]
    fn numbers_made_by_hand() {
        let none = ServingInputs::default();
        close(run(&means(3, |p| p), none), 2.0, 3f32.ln());
        // A sink as heavy as the three keys together.
        let sink = ServingInputs {
            sink: &[3f32.ln()],
            ..none
        };
        close(run(&means(3, |p| p.sink(true)), sink), 1.0, 6f32.ln());
        // Nothing but a sink; nothing at all.
        close(run(&means(0, |p| p.sink(true)), sink), 0.0, 3f32.ln());
        let cold = ServingInputs {
            sink: &[f32::NEG_INFINITY],
            ..none
        };
        close(
            run(&means(0, |p| p.sink(true)), cold),
            0.0,
            f32::NEG_INFINITY,
        );
        close(run(&means(0, |p| p), none), 0.0, f32::NEG_INFINITY);
        // The query stands at the last key: key j has weight 2^(j - 2).
        let slope = ServingInputs {
            alibi: &[2f32.ln()],
            ..none
        };
        close(
            run(&means(3, |p| p.alibi(false)), slope),
            (0.25 + 2.0 * 0.5 + 3.0) / 1.75,
            1.75f32.ln(),
        );
        // Weights 1, 0, 3.
        let bias = element::encode(DType::F32, &[0.0, f32::NEG_INFINITY, 3f32.ln()]);
        let biased = ServingInputs {
            bias: &bias,
            ..none
        };
        let layout = PairLayout::bias(BiasType::F32, [1, 1, 1, 3]);
        close(run(&means(3, |p| p.bias(layout)), biased), 2.5, 4f32.ln());
        // Keys 0 and 2.
        let masked = ServingInputs {
            mask: &[1, 0, 9],
            ..none
        };
        let layout = PairLayout::mask(MaskType::Byte, [1, 1, 1, 3]);
        close(run(&means(3, |p| p.mask(layout)), masked), 2.0, 2f32.ln());
        let masked = ServingInputs {
            mask: &[0b101, 0, 0, 0],
            ..none
        };
        let layout = PairLayout::mask(MaskType::Bit, [1, 1, 1, 3]);
        close(run(&means(3, |p| p.mask(layout)), masked), 2.0, 2f32.ln());
        // The query stands at key 0, and sees the range.
        let causal = |p: ServingProblem| p.causal(CausalAlignment::TopLeft);
        close(run(&means(5, causal), none), 1.0, 0.0);
        let ranges = ServingInputs {
            ranges: &[1, 2, 0, 2],
            ..none
        };
        close(
            run(&means(5, |p| causal(p).ranges(2)), ranges),
            2.0,
            3f32.ln(),
        );
    }

    /// Two sequences in pages, the layouts of vLLM and lengths that are in use: as dense problems.
    #[test]
    fn pages_and_lengths() {
        let dtype = DType::F16;
        let (heads_q, heads_kv, dim, page) = (4, 2, 12, 3);
        let k = CacheLayout::chunked_keys(DType::F16, [6, page, heads_kv, dim]);
        let v = CacheLayout::transposed([6, page, heads_kv, dim]);
        let q = TensorLayout::contiguous([1, 9, heads_q, dim]);
        let problem = ServingProblem::new(dtype, 2, q, k, v)
            .pages(PageTable::contiguous(3))
            .q_starts(5)
            .q_used(5)
            .k_used(9)
            .causal(CausalAlignment::BottomRight)
            .lse(true);
        let q_bytes = elements(dtype, q.span().unwrap(), 1);
        let k_bytes = elements(dtype, k.span().unwrap(), 2);
        let v_bytes = elements(dtype, v.span().unwrap(), 3);
        let table = [4, 0, -7, 5, 2, 1];
        let inputs = ServingInputs {
            q: &q_bytes,
            k: &k_bytes,
            v: &v_bytes,
            q_starts: &[0, 4, 9],
            q_used: &[4, 3],
            k_used: &[5, 8],
            table: &table,
            ..ServingInputs::default()
        };
        let outputs = attention_cpu(&problem, &inputs).unwrap();
        let row_bytes = heads_q * dim * 2;
        for (b, first, rows, keys) in [(0, 0, 4, 5), (1, 4, 3, 8)] {
            let gather = |layout: &CacheLayout, bytes: &[u8]| {
                let mut found = Vec::new();
                for j in 0..keys {
                    for h in 0..heads_kv {
                        for d in 0..dim {
                            let block = table[b * 3 + j / page] as usize;
                            let at = layout.index([block, j % page, h, d]);
                            found.extend_from_slice(&bytes[2 * at..][..2]);
                        }
                    }
                }
                found
            };
            let (k, v) = (gather(&k, &k_bytes), gather(&v, &v_bytes));
            let shape = Shape {
                batch: 1,
                seqlen_q: rows,
                seqlen_k: keys,
                heads_q,
                heads_kv,
                head_dim_qk: dim,
                head_dim_v: dim,
            };
            let dense = Problem::contiguous(dtype, shape)
                .causal(CausalAlignment::BottomRight)
                .lse(true);
            let inputs = Inputs {
                q: &q_bytes[first * row_bytes..],
                k: &k,
                v: &v,
                ..Inputs::default()
            };
            let dense = cpu::attention(&dense, &inputs).unwrap();
            assert_eq!(
                outputs.out[first * row_bytes..][..rows * row_bytes],
                dense.out
            );
            for h in 0..heads_q {
                assert_eq!(
                    outputs.lse.as_ref().unwrap()[h * 9 + first..][..rows],
                    dense.lse.as_ref().unwrap()[h * rows..][..rows]
                );
            }
        }
        // The last two queries of the second sequence do not count.
        assert!(outputs.out[7 * row_bytes..].iter().all(|&byte| byte == 0));
    }
}

//! What candle-flash-attn has not.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{Scores, Sequence, check, numbers, sequence, values};
use flashtile_candle::{Attention, CausalAlignment, FlashAttn, flash_attn};
use proptest::prelude::*;

const CPU: Device = Device::Cpu;
const HEADS: (usize, usize) = (4, 2);

/// A sequence as a batch of one.
fn batch(s: &Sequence, dtype: DType) -> Result<[Tensor; 3]> {
    let one = |x: &Tensor| x.to_dtype(dtype)?.unsqueeze(0);
    Ok([one(&s.q)?, one(&s.k)?, one(&s.v)?])
}

proptest! {
    #![proptest_config(common::cases(80))]

    /// Sinks, biases, masks and the log-sum-exp, together with causal masks and windows.
    #[test]
    fn everything(
        seed in any::<u32>(),
        lengths in (0usize..30, 0usize..50),
        dims in (1usize..80, 1usize..80),
        alignment in prop::option::of(any::<bool>()),
        left in prop::option::of(0usize..30),
        extras in any::<[bool; 5]>(),
        half in any::<bool>(),
    ) {
        let dtype = if half { DType::BF16 } else { DType::F32 };
        let seed = u64::from(seed);
        let s = sequence(seed, dtype, lengths, HEADS, dims).unwrap();
        let [q, k, v] = batch(&s, dtype).unwrap();
        let mut scores = Scores { scale: 0.3, left, ..Scores::default() };
        // A window to the diagonal and a causal mask are one, of the mask's alignment.
        let [sink, bias, mask, by_head, cap] = extras;
        let right = (by_head == sink).then_some(0).filter(|_| alignment.is_some());
        let mut attention = Attention::new(0.3).window(left, right);
        scores.left = left.filter(|&left| left <= lengths.1);
        if let Some(top_left) = alignment {
            scores.right = Some(0);
            scores.top_left = top_left;
            let alignment = [CausalAlignment::BottomRight, CausalAlignment::TopLeft];
            attention = attention.causal(alignment[usize::from(top_left)]);
        }
        if cap {
            scores.softcap = Some(2.5);
            attention = attention.softcap(2.5);
        }
        if sink {
            let logits = [0.5, -2.0, 3.0, f32::NEG_INFINITY];
            scores.sink = Some(logits.to_vec());
            attention = attention.sink(&Tensor::new(&logits, &CPU).unwrap());
        }
        let shape = [if by_head { HEADS.0 } else { 1 }, lengths.0, lengths.1];
        let mut added = Tensor::zeros(&shape, DType::F32, &CPU).unwrap();
        if bias {
            added = numbers(seed + 5, &shape, dtype).unwrap();
            // Of q's type, or f32.
            let typed = added.to_dtype(if by_head { dtype } else { DType::F32 }).unwrap();
            attention = attention.bias(&typed.unsqueeze(0).unwrap());
        }
        if mask {
            let seen = numbers(seed + 6, &shape, DType::F32).unwrap().gt(-0.2).unwrap();
            let hidden = Tensor::full(f32::NEG_INFINITY, &shape[..], &CPU).unwrap();
            added = seen.where_cond(&added, &hidden).unwrap();
            attention = attention.mask(&seen.unsqueeze(0).unwrap());
        }
        if bias || mask {
            scores.bias = Some(added);
        }
        let (out, lse) = attention.forward_with_lse(&q, &k, &v).unwrap();
        check(&s, &scores, &out.get(0).unwrap(), Some(&lse.get(0).unwrap())).unwrap();

        // Into a part of a larger tensor, the rest of which stays as it is.
        let full = |x: f32, shape: &[usize], dtype| Tensor::full(x, shape, &CPU).unwrap().to_dtype(dtype).unwrap();
        let wide = full(7.0, &[2, lengths.0, HEADS.0 + 1, dims.1], dtype);
        let part = wide.narrow(0, 1, 1).unwrap().narrow(2, 0, HEADS.0).unwrap();
        let wide_lse = full(7.0, &[2, HEADS.0, lengths.0], DType::F32);
        let part_lse = wide_lse.narrow(0, 1, 1).unwrap();
        attention.forward_into(&q, &k, &v, &part, Some(&part_lse)).unwrap();
        let same = |a: &Tensor, b: &Tensor| assert_eq!(values(a).unwrap(), values(b).unwrap());
        same(&part, &out);
        same(&part_lse, &lse);
        let sevens = |x: Tensor| assert!(values(&x).unwrap().iter().all(|&x| x == 7.0));
        sevens(wide.narrow(0, 0, 1).unwrap());
        sevens(wide.narrow(2, HEADS.0, 1).unwrap());
        sevens(wide_lse.narrow(0, 0, 1).unwrap());
    }

    /// Pages as vLLM lays them out: keys [pages, heads, dim / 8, rows, 8], values [pages, heads, dim, rows].
    #[test]
    fn pages_of_other_layouts(seed in any::<u32>(), keys in 1usize..40, page in 1usize..9, chunks in 1usize..5) {
        let dim = 8 * chunks;
        let s = sequence(seed.into(), DType::F16, (3, keys), HEADS, (dim, dim)).unwrap();
        let count = keys.div_ceil(page);
        let pages = |x: &Tensor| -> Result<Tensor> {
            x.pad_with_zeros(0, 0, count * page - keys)?.reshape((count, page, HEADS.1, dim))?.to_dtype(DType::F16)
        };
        let (k, v) = (pages(&s.k).unwrap(), pages(&s.v).unwrap());
        let table: Vec<i32> = (0..count as i32).collect();
        let table = Tensor::from_vec(table, (1, count), &CPU).unwrap();
        let used = Tensor::new(&[keys as u32], &CPU).unwrap();
        let attention = Attention::new(0.4).seqused_k(&used, keys).pages(&table);
        let q = s.q.to_dtype(DType::F16).unwrap().unsqueeze(0).unwrap();
        let expected = attention.forward(&q, &k, &v).unwrap();
        let scores = Scores { scale: 0.4, ..Scores::default() };
        check(&s, &scores, &expected.get(0).unwrap(), None).unwrap();
        let chunked = k.reshape((count, page, HEADS.1, chunks, 8)).unwrap().permute((0, 2, 3, 1, 4)).unwrap().contiguous().unwrap();
        let transposed = v.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap().permute((0, 3, 1, 2)).unwrap();
        let heads_first = k.transpose(1, 2).unwrap().contiguous().unwrap().transpose(1, 2).unwrap();
        for k in [chunked, heads_first] {
            let out = attention.forward(&q, &k, &transposed).unwrap();
            let bits = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<half::f16>().unwrap();
            assert_eq!(bits(&out), bits(&expected));
        }
    }
}

/// Tokens that belong to no sequence have out 0.
#[test]
fn tokens_past_the_last_sequence() -> Result<()> {
    let q = Tensor::ones((7, 2, 8), DType::F16, &CPU)?;
    let starts = Tensor::new(&[0u32, 2, 5], &CPU)?;
    let attention = Attention::new(1.0).varlen(&starts, &starts, 3, 3);
    let (out, lse) = attention.forward_with_lse(&q, &q, &q)?;
    assert_eq!(lse.dims(), [2, 7]);
    let sums = out.to_dtype(DType::F32)?.sum((1, 2))?.to_vec1::<f32>()?;
    assert_eq!(sums, [16.0, 16.0, 16.0, 16.0, 16.0, 0.0, 0.0]);
    Ok(())
}

/// A gradient that there is none of is an error, not silence.
#[test]
fn no_backward() -> Result<()> {
    let q = candle_core::Var::ones((1, 2, 1, 8), DType::F32, &CPU)?;
    let q = q.as_tensor();
    let loss = flash_attn(q, q, q, 1.0, true)?.sum_all()?;
    let error = loss.backward().unwrap_err().to_string();
    assert!(error.contains("flash-attn"), "{error}");
    let out = Tensor::zeros((1, 2, 1, 8), DType::F32, &CPU)?;
    let into = |q: &Tensor| Attention::new(1.0).forward_into(q, q, q, &out, None);
    let error = into(q).unwrap_err().to_string();
    assert!(
        error.starts_with("q: expected a tensor without gradients"),
        "{error}"
    );
    into(&q.detach())
}

/// candle-flash-attn's operation, as a value.
#[test]
fn operation_as_a_value() -> Result<()> {
    let s = sequence(3, DType::F16, (5, 9), HEADS, (16, 16))?;
    let [q, k, v] = batch(&s, DType::F16)?;
    let operation = FlashAttn {
        softmax_scale: 0.25,
        alibi_slopes: None,
        window_size_left: Some(3),
        window_size_right: Some(0),
        softcap: Some(0.0),
    };
    let out = q.apply_op3(&k, &v, operation)?;
    let scores = Scores {
        scale: 0.25,
        left: Some(3),
        right: Some(0),
        ..Scores::default()
    };
    check(&s, &scores, &out.get(0)?, None)
}

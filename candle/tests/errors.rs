//! Bad input: which argument, what was expected, what was found.

use candle_core::{DType, Device, Result, Tensor};
use flashtile_candle::*;

const CPU: Device = Device::Cpu;

fn tensor(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F16, &CPU).unwrap()
}

fn ints(numbers: &[u32]) -> Tensor {
    Tensor::new(numbers, &CPU).unwrap()
}

#[track_caller]
fn refused<T>(result: Result<T>, words: &[&str]) {
    let error = match result {
        Ok(_) => panic!("not refused: {words:?}"),
        Err(error) => error.to_string(),
    };
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

#[test]
fn types_ranks_and_shapes() -> Result<()> {
    let x = &tensor(&[2, 5, 4, 8]);
    let dense = |q: &Tensor, k: &Tensor, v: &Tensor| flash_attn(q, k, v, 1.0, false);
    let ints = Tensor::zeros((2, 5, 4, 8), DType::U32, &CPU)?;
    refused(
        dense(&ints, x, x),
        &["q: expected f16, bf16 or f32, found u32"],
    );
    refused(
        dense(x, &x.to_dtype(DType::BF16)?, x),
        &["k: expected f16, as q, or f8e4m3, or u8 as its codes, found bf16"],
    );
    refused(
        dense(x, x, &x.to_dtype(DType::F32)?),
        &["v: expected f16, as k, found f32"],
    );
    refused(
        dense(&x.get(0)?, x, x),
        &["q: expected four dimensions", "[5, 4, 8]"],
    );
    refused(dense(x, &x.get(0)?, x), &["k: expected four dimensions"]);
    refused(
        dense(x, &tensor(&[2, 5, 4, 16]), x),
        &["k: expected shape [2, 5, 4, 8]", "[2, 5, 4, 16]"],
    );
    refused(
        dense(x, &tensor(&[3, 5, 4, 8]), x),
        &["k: expected shape [2, 5, 4, 8]"],
    );
    refused(
        dense(x, x, &tensor(&[2, 6, 4, 8])),
        &["v: expected shape [2, 5, 4, 8]"],
    );
    let three = &tensor(&[2, 5, 3, 8]);
    refused(
        dense(x, three, three),
        &[
            "q: expected a number of heads that is a multiple of k's 3",
            "4",
        ],
    );
    refused(
        dense(&tensor(&[2, 5, 4, 0]), x, x),
        &["q: expected a head_dim of at least 1"],
    );
    refused(
        dense(&tensor(&[2, 5, 0, 8]), x, x),
        &["q: expected at least one head"],
    );
    let gaps = &tensor(&[2, 5, 8, 4]).transpose(2, 3)?;
    refused(
        dense(gaps, x, x),
        &["q: expected a last dimension without gaps"],
    );
    refused(
        dense(x, gaps, x),
        &["k: expected a last dimension without gaps"],
    );
    refused(
        dense(x, x, gaps),
        &["v: expected a last dimension without gaps"],
    );
    refused(
        flash_attn(x, x, x, f32::NAN, false),
        &["softmax_scale: expected a finite number", "NaN"],
    );
    for cap in [-1.0, f32::NAN, f32::INFINITY] {
        let result = flash_attn_alibi_windowed_softcap(x, x, x, None, 1.0, None, None, cap);
        refused(result, &["softcap: expected"]);
    }
    Ok(())
}

#[test]
fn alibi_and_sinks() -> Result<()> {
    let x = &tensor(&[2, 5, 4, 8]);
    let alibi = |slopes: &Tensor| flash_attn_alibi(x, x, x, slopes, 1.0, true);
    let slopes = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &CPU);
    refused(
        alibi(&slopes(&[3])?),
        &["alibi_slopes: expected shape [4], found shape [3]"],
    );
    refused(
        alibi(&slopes(&[3, 4])?),
        &["alibi_slopes: expected shape [2, 4], found shape [3, 4]"],
    );
    refused(
        alibi(&slopes(&[1, 2, 4])?),
        &["alibi_slopes: expected shape [4], found shape [1, 2, 4]"],
    );
    refused(
        alibi(&slopes(&[4])?.to_dtype(DType::F16)?),
        &["alibi_slopes: expected f32, found f16"],
    );
    refused(
        alibi(&slopes(&[4, 2])?.t()?),
        &["alibi_slopes: expected a contiguous tensor"],
    );
    refused(
        alibi(&(slopes(&[4])? / 0.0)?),
        &["alibi_slopes: expected finite slopes, found NaN"],
    );
    let sink = |logits: &Tensor| Attention::new(1.0).sink(logits).forward(x, x, x);
    refused(
        sink(&slopes(&[5])?),
        &["sink: expected shape [4], found shape [5]"],
    );
    refused(
        sink(&Tensor::full(f32::INFINITY, 4, &CPU)?),
        &["sink: expected finite numbers or -inf"],
    );
    let bias = |bias: &Tensor| Attention::new(1.0).bias(bias).forward(x, x, x);
    refused(
        bias(&slopes(&[2, 4, 5, 6])?),
        &["bias: expected a shape that broadcasts to [2, 4, 5, 5]"],
    );
    refused(bias(&slopes(&[5, 5])?), &["bias: expected four dimensions"]);
    refused(
        bias(&slopes(&[1, 1, 5, 5])?.to_dtype(DType::BF16)?),
        &["bias: expected f32 or f16, found bf16"],
    );
    let mask = |mask: &Tensor| Attention::new(1.0).mask(mask).forward(x, x, x);
    refused(
        mask(&slopes(&[1, 1, 5, 5])?),
        &["mask: expected u8, found f32"],
    );
    Ok(())
}

#[test]
fn where_sequences_are() -> Result<()> {
    let x = &tensor(&[10, 4, 8]);
    let varlen = |q: &Tensor, k: &Tensor, longest| {
        flash_attn_varlen(x, x, x, q, k, longest, longest, 1.0, true)
    };
    let good = &ints(&[0, 4, 10]);
    varlen(good, good, 6)?;
    refused(
        varlen(&ints(&[0, 4, 3]), good, 6),
        &["seqlens_q: expected numbers that never decrease, found 3 after 4"],
    );
    refused(
        varlen(good, &ints(&[0, 7, 3]), 6),
        &["seqlens_k: expected numbers that never decrease"],
    );
    refused(
        varlen(&ints(&[1, 4, 10]), good, 9),
        &["seqlens_q: expected 0 at first, found 1"],
    );
    refused(
        varlen(&ints(&[0, 4, 11]), good, 9),
        &["seqlens_q: expected at most 10 tokens", "11"],
    );
    refused(
        varlen(good, &ints(&[0, 4, u32::MAX]), 9),
        &["seqlens_k: expected at most 10 tokens"],
    );
    refused(
        varlen(good, good, 5),
        &[
            "seqlens_q: expected at most 5 tokens of a sequence",
            "6 tokens of sequence 1",
        ],
    );
    refused(
        varlen(good, &ints(&[0, 10]), 10),
        &["seqlens_k: expected shape [3], found shape [2]"],
    );
    refused(
        varlen(&ints(&[]), good, 10),
        &["seqlens_q: expected shape [batch + 1], found shape [0]"],
    );
    let two = &ints(&[0, 4, 4, 10]).reshape((2, 2))?;
    refused(
        varlen(two, good, 10),
        &["seqlens_q: expected shape [batch + 1], found shape [2, 2]"],
    );
    refused(
        varlen(&good.to_dtype(DType::I64)?, good, 6),
        &["seqlens_q: expected u32 or i32, found i64"],
    );
    refused(
        varlen(good, &good.to_dtype(DType::F32)?, 6),
        &["seqlens_k: expected u32 or i32, found f32"],
    );
    let gaps = &ints(&[0, 9, 4, 9, 10, 9])
        .reshape((3, 2))?
        .narrow(1, 0, 1)?
        .squeeze(1)?;
    refused(
        varlen(gaps, good, 6),
        &["seqlens_q: expected a contiguous tensor"],
    );
    let dense = &tensor(&[2, 5, 4, 8]);
    refused(
        flash_attn_varlen(dense, x, x, good, good, 6, 6, 1.0, true),
        &["q: expected [tokens, heads, head_dim], found shape [2, 5, 4, 8]"],
    );
    Ok(())
}

#[test]
fn pages() -> Result<()> {
    let (q, cache) = (&tensor(&[2, 4, 8]), &tensor(&[3, 4, 2, 8]));
    let starts = &ints(&[0, 1, 2]);
    let (keys, table) = (
        &ints(&[0, 5, 9]),
        &Tensor::new(&[[0u32, 1], [2, 77]], &CPU)?,
    );
    let paged = |keys: &Tensor, table: &Tensor, longest, page| {
        flash_attn_varlen_paged_windowed(
            q,
            cache,
            cache,
            starts,
            keys,
            table,
            None,
            1,
            longest,
            1.0,
            None,
            Some(0),
            page,
            None,
        )
    };
    // Entry 77 is behind the sequence's keys.
    paged(keys, table, 8, 4)?;
    refused(
        paged(&ints(&[0, 5, 10]), table, 8, 4),
        &[
            "block_table: expected pages from 0 to 2",
            "77, entry 1 of sequence 1",
        ],
    );
    let negative = &Tensor::new(&[[0i32, -1], [2, 0]], &CPU)?;
    refused(
        paged(keys, negative, 8, 4),
        &[
            "block_table: expected pages from 0 to 2",
            "-1, entry 1 of sequence 0",
        ],
    );
    refused(
        paged(&ints(&[0, 9, 13]), table, 9, 4),
        &[
            "seqlens_k: expected at most 8 tokens, which 2 pages hold",
            "9 tokens of sequence 0",
        ],
    );
    refused(
        paged(keys, table, 4, 4),
        &["seqlens_k: expected at most 4 tokens of a sequence"],
    );
    refused(
        paged(keys, table, 8, 32),
        &["page_block_size: expected 4, as k has rows in a page, found 32"],
    );
    refused(
        paged(keys, &table.get(0)?, 8, 4),
        &["block_table: expected shape [batch, entries], found shape [2]"],
    );
    refused(
        paged(keys, &table.narrow(0, 0, 1)?, 8, 4),
        &["block_table: expected shape [2, entries], found shape [1, 2]"],
    );
    refused(
        paged(keys, &table.to_dtype(DType::I64)?, 8, 4),
        &["block_table: expected u32 or i32, found i64"],
    );

    let ranges = |ranges: &Tensor| {
        flash_attn_varlen_paged_windowed(
            q,
            cache,
            cache,
            starts,
            keys,
            table,
            Some(ranges),
            1,
            8,
            1.0,
            None,
            Some(0),
            4,
            None,
        )
    };
    let of = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &CPU);
    refused(
        ranges(&of(&[2, 1, 3], DType::I32)?),
        &["mm_prefix_ranges: expected shape [2, 1, 2]"],
    );
    refused(
        ranges(&of(&[2, 1, 2], DType::U32)?),
        &["mm_prefix_ranges: expected i32, found u32"],
    );

    let q = &tensor(&[2, 1, 4, 8]);
    let decode =
        |used: &Tensor, longest| flash_attn_decode(q, cache, cache, table, used, longest, 1.0);
    decode(&ints(&[5, 4]), 8)?;
    refused(
        decode(&ints(&[9, 4]), 9),
        &[
            "seqused_k: expected at most 8 tokens, which 2 pages hold",
            "9 tokens of sequence 0",
        ],
    );
    refused(
        decode(&ints(&[5, 4]), 4),
        &["seqused_k: expected at most 4 tokens of a sequence"],
    );
    refused(
        decode(&ints(&[5]), 8),
        &["seqused_k: expected shape [2], found shape [1]"],
    );
    refused(
        flash_attn_decode(q, &tensor(&[4, 2, 8]), cache, table, &ints(&[5, 4]), 8, 1.0),
        &["k: expected four dimensions"],
    );
    Ok(())
}

#[test]
fn outputs_of_the_caller() -> Result<()> {
    let x = &Tensor::ones((1, 5, 2, 8), DType::F32, &CPU)?;
    let into =
        |out: &Tensor, lse: Option<&Tensor>| Attention::new(1.0).forward_into(x, x, x, out, lse);
    let out = &Tensor::zeros((1, 5, 2, 8), DType::F32, &CPU)?;
    let lse = &Tensor::zeros((1, 2, 5), DType::F32, &CPU)?;
    into(out, Some(lse))?;
    refused(
        into(&out.to_dtype(DType::F16)?, None),
        &["out: expected f32, found f16"],
    );
    refused(
        into(&out.narrow(1, 0, 4)?, None),
        &["out: expected shape [1, 5, 2, 8]"],
    );
    refused(
        into(x, None),
        &[
            "out: expected a tensor with storage of its own",
            "shares its storage with q",
        ],
    );
    refused(
        into(
            out,
            Some(
                &out.narrow(3, 0, 1)?
                    .reshape((1, 2, 5))?
                    .to_dtype(DType::F16)?,
            ),
        ),
        &["lse: expected f32, found f16"],
    );
    refused(
        into(out, Some(&lse.t()?)),
        &["lse: expected shape [1, 2, 5]"],
    );
    refused(
        into(out, Some(&Tensor::zeros((1, 5, 2), DType::F32, &CPU)?.t()?)),
        &["lse: expected a contiguous tensor"],
    );
    let both = &Tensor::zeros(100, DType::F32, &CPU)?;
    let part = |at, len, shape: &[usize]| both.narrow(0, at, len)?.reshape(shape);
    refused(
        into(
            &part(0, 80, &[1, 5, 2, 8])?,
            Some(&part(80, 10, &[1, 2, 5])?),
        ),
        &[
            "lse: expected a tensor with storage of its own",
            "shares its storage with out",
        ],
    );
    let overlapping = &out.narrow(1, 0, 1)?.broadcast_as((1, 5, 2, 8))?;
    refused(into(overlapping, None), &["out"]);
    // Sinks and biases are f32 as out may be.
    let with_sink = Attention::new(1.0).sink(&part(0, 2, &[2])?);
    refused(
        with_sink.forward_into(x, x, x, &part(10, 80, &[1, 5, 2, 8])?, None),
        &[
            "out: expected a tensor with storage of its own",
            "shares its storage with sink",
        ],
    );
    Ok(())
}

//! Caches: e4m3 keys and values under queries of 16 bits, and what fills and moves caches.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{Scores, Sequence, check, numbers, sequence, values};
use flashtile_candle::{
    Attention, CacheAppend, CacheGather, RotaryPairs, copy_blocks, gather_cache, reshape_and_cache,
    swap_blocks,
};
use proptest::prelude::*;

const CPU: Device = Device::Cpu;
const HEADS: (usize, usize) = (4, 2);

#[track_caller]
fn refused<T>(result: Result<T>, words: &str) {
    match result {
        Ok(_) => panic!("not refused: {words}"),
        Err(error) => assert!(
            error.to_string().contains(words),
            "{words:?} is not in {error}"
        ),
    }
}

/// Multiples of scales, by head, of e4m3 numbers: exact in f32, since 0.5, 1.5 and their like have two bits.
fn scaled(x: &Tensor, scales: &[f32]) -> Result<Tensor> {
    let scales = match scales.len() {
        1 => Tensor::full(scales[0], (1, HEADS.1, 1), &CPU)?,
        _ => Tensor::new(scales, &CPU)?.reshape((1, HEADS.1, 1))?,
    };
    x.broadcast_mul(&scales)
}

/// As f8e4m3, or as codes.
fn narrow(x: &Tensor, codes: bool) -> Result<Tensor> {
    match codes {
        false => x.to_dtype(DType::F8E4M3),
        true => {
            let bytes = flashtile::element::encode(flashtile::DType::E4m3, &values(x)?);
            Tensor::from_vec(bytes, x.shape(), &CPU)
        }
    }
}

proptest! {
    #![proptest_config(common::cases(60))]

    #[test]
    fn e4m3(
        seed in any::<u32>(),
        lengths in (1usize..6, 1usize..60),
        dims in (1usize..40, 1usize..40),
        page in prop::option::of(1usize..20),
        codes in any::<bool>(),
        kind in 0usize..4,
        half in any::<bool>(),
    ) {
        let dtype = if half { DType::F16 } else { DType::BF16 };
        let s = sequence(seed.into(), dtype, lengths, HEADS, dims).unwrap();
        // In e4m3's grid.
        let grid = |x: &Tensor| x.to_dtype(DType::F8E4M3).unwrap().to_dtype(DType::F32).unwrap();
        let (k, v) = (grid(&s.k), grid(&s.v));
        let (k_scales, v_scales): (&[f32], &[f32]) = match kind {
            0 => (&[1.0], &[1.0]),
            1 => (&[0.75], &[1.5]),
            _ => (&[0.5, 1.5], &[3.0, 0.75]),
        };
        let meant = Sequence {
            q: s.q.clone(),
            k: scaled(&k, k_scales).unwrap(),
            v: scaled(&v, v_scales).unwrap(),
        };
        let scores = Scores { scale: 0.3, ..Scores::default() };
        let mut attention = Attention::new(0.3);
        if kind > 0 {
            let scale = |numbers: &[f32]| {
                let scale = Tensor::new(numbers, &CPU).unwrap();
                // One for each head of the one sequence.
                if kind == 3 { scale.reshape((1, 2)).unwrap() } else { scale }
            };
            attention = attention.kv_scales(&scale(k_scales), &scale(v_scales));
        }
        let q = s.q.to_dtype(dtype).unwrap().unsqueeze(0).unwrap();
        let layout = |x: &Tensor| match page {
            None => narrow(x, codes).unwrap().unsqueeze(0).unwrap(),
            Some(page) => {
                let pages = lengths.1.div_ceil(page);
                let x = x.pad_with_zeros(0, 0, pages * page - lengths.1).unwrap();
                let dim = x.dim(2).unwrap();
                narrow(&x.reshape((pages, page, HEADS.1, dim)).unwrap(), codes).unwrap()
            }
        };
        if let Some(page) = page {
            let pages = lengths.1.div_ceil(page) as u32;
            let table = Tensor::arange(0, pages, &CPU).unwrap().unsqueeze(0).unwrap();
            let used = Tensor::new(&[lengths.1 as u32], &CPU).unwrap();
            attention = attention.pages(&table).seqused_k(&used, lengths.1);
        }
        let (out, lse) = attention.forward_with_lse(&q, &layout(&k), &layout(&v)).unwrap();
        check(&meant, &scores, &out.get(0).unwrap(), Some(&lse.get(0).unwrap())).unwrap();

        // An output that is reused.
        let into = Tensor::full(7.0f32, out.shape(), &CPU).unwrap().to_dtype(dtype).unwrap();
        attention.forward_into(&q, &layout(&k), &layout(&v), &into, None).unwrap();
        prop_assert_eq!(values(&into).unwrap(), values(&out).unwrap());
    }

    /// Rows go where slots say, from views too; gathered, they come out; nothing else is touched.
    #[test]
    fn slots(seed in any::<u32>(), tokens in 1usize..8, page in 1usize..6, chunked in any::<bool>()) {
        let seed = u64::from(seed);
        // Keys and values side by side.
        let kv = numbers(seed, &[tokens, 2, HEADS.1, 16], DType::F16).unwrap().to_dtype(DType::F16).unwrap();
        let part = |n| kv.narrow(1, n, 1).unwrap().squeeze(1).unwrap();
        let blocks = 20usize.div_ceil(page);
        let cache = || Tensor::full(7f32, (blocks, page, HEADS.1, 16), &CPU).unwrap().to_dtype(DType::F16).unwrap();
        let k_cache = match chunked {
            false => cache(),
            true => cache().reshape((blocks, HEADS.1, 2, page, 8)).unwrap(),
        };
        let v_cache = cache();
        let slots: Vec<i64> = (0..tokens as i64).map(|t| if t == 2 { -1 } else { 19 - 2 * t }).collect();
        let mapping = Tensor::new(slots.as_slice(), &CPU).unwrap();
        reshape_and_cache(&part(0), &part(1), &k_cache, &v_cache, &mapping).unwrap();
        let k_rows = match chunked {
            false => k_cache,
            true => k_cache.permute((0, 3, 1, 2, 4)).unwrap().contiguous().unwrap(),
        };
        for (cache, n) in [(k_rows, 0), (v_cache, 1)] {
            let rows = values(&cache).unwrap();
            let tensor = values(&part(n)).unwrap();
            let width = HEADS.1 * 16;
            for (slot, row) in rows.chunks(width).enumerate() {
                match slots.iter().position(|&s| s == slot as i64) {
                    Some(token) => prop_assert_eq!(row, &tensor[token * width..][..width]),
                    None => prop_assert!(row.iter().all(|&x| x == 7.0)),
                }
            }
        }
    }

    /// What goes into e4m3 caches becomes the nearest numbers, times scales, and comes out as that.
    #[test]
    fn e4m3_caches_are_filled(
        seed in any::<u32>(),
        lengths in [0usize..5, 0usize..5],
        codes in any::<bool>(),
        kind in 0usize..4,
        half in any::<bool>(),
    ) {
        let dtype = if half { DType::F16 } else { DType::BF16 };
        let seed = u64::from(seed);
        let longest = lengths[0].max(lengths[1]).max(1);
        let rows = |n| numbers(seed + n, &[2, longest, HEADS.1, 16], dtype).unwrap().to_dtype(dtype).unwrap();
        let (k, v) = (rows(1), rows(2));
        let cache = || Tensor::zeros((6, 3, HEADS.1, 16), if codes { DType::U8 } else { DType::F8E4M3 }, &CPU).unwrap();
        let (k_cache, v_cache) = (cache(), cache());
        // Powers of two, so that 16-bit elements have what comes out.
        let all: [[f32; 4]; 2] = [[0.5, 4.0, 0.125, 2.0], [8.0, 0.25, 1.0, 0.5]];
        let scale = |side: usize, sequence: usize, head: usize| match kind {
            0 => 1.0,
            1 => all[side][0],
            2 => all[side][head],
            _ => all[side][2 * sequence + head],
        };
        let tensor = |side: usize| match kind {
            1 => Tensor::new(&all[side][..1], &CPU).unwrap(),
            2 => Tensor::new(&all[side][..2], &CPU).unwrap(),
            _ => Tensor::new(&all[side], &CPU).unwrap().reshape((2, 2)).unwrap(),
        };
        let table = Tensor::new(&[[3u32, 0, 5], [1, 4, 2]], &CPU).unwrap();
        let starts = Tensor::new(&[0u32, lengths[0] as u32, (lengths[0] + lengths[1]) as u32], &CPU).unwrap();
        let used = Tensor::new(&lengths.map(|n| n as u32), &CPU).unwrap();
        let mut append = CacheAppend::pages(&table, &Tensor::zeros(2, DType::U32, &CPU).unwrap()).seqused(&used);
        let mut gather = CacheGather::new(&table, &starts).dtype(dtype);
        if kind > 0 {
            append = append.kv_scales(&tensor(0), &tensor(1));
            gather = gather.kv_scales(&tensor(0), &tensor(1));
        }
        append.forward(&k, &v, &k_cache, &v_cache).unwrap();
        let (k_out, v_out) = gather.forward(&k_cache, &v_cache, lengths[0] + lengths[1]).unwrap();
        for (side, (from, found)) in [(k, k_out), (v, v_out)].into_iter().enumerate() {
            prop_assert_eq!(found.dtype(), dtype);
            let (from, found) = (values(&from).unwrap(), values(&found).unwrap());
            let mut found = found.into_iter();
            for (b, length) in lengths.into_iter().enumerate() {
                for (row, h, d) in (0..length).flat_map(|row| (0..HEADS.1 * 16).map(move |at| (row, at / 16, at % 16))) {
                    let x = from[((b * longest + row) * HEADS.1 + h) * 16 + d];
                    let scale = scale(side, b, h);
                    let expected = flashtile::element::round(flashtile::DType::E4m3, x / scale) * scale;
                    prop_assert_eq!(found.next(), Some(expected), "{}", x);
                }
            }
        }
    }

    /// Keys and queries are turned on their way into pages, by the angles of their positions.
    #[test]
    fn rotary(
        seed in any::<u32>(),
        seqlen in 1usize..4,
        held in [0u32..6, 0u32..6],
        pairs in 1usize..9,
        interleaved in any::<bool>(),
    ) {
        let seed = u64::from(seed);
        let shape = |heads| [2, seqlen, heads, 16];
        let tensor = |n, heads| numbers(seed + n, &shape(heads), DType::F16).unwrap().to_dtype(DType::F16).unwrap();
        let (k, v, q) = (tensor(1, HEADS.1), tensor(2, HEADS.1), tensor(3, HEADS.0));
        let (cos, sin) = (numbers(seed + 4, &[10, pairs], DType::F32).unwrap(), numbers(seed + 5, &[10, pairs], DType::F32).unwrap());
        let cache = || Tensor::zeros((6, 4, HEADS.1, 16), DType::F16, &CPU).unwrap();
        let (k_cache, v_cache) = (cache(), cache());
        let table = Tensor::new(&[[3u32, 0, 5], [1, 4, 2]], &CPU).unwrap();
        let kind = if interleaved { RotaryPairs::Interleaved } else { RotaryPairs::Halves };
        let append = CacheAppend::pages(&table, &Tensor::new(&held, &CPU).unwrap()).rotary(&cos, &sin, kind);
        let turned = append.forward_with_queries(&q, &k, &v, &k_cache, &v_cache).unwrap();

        let starts = [0, held[0] + seqlen as u32, held[0] + held[1] + 2 * seqlen as u32];
        let starts = Tensor::new(&starts, &CPU).unwrap();
        let tokens = (held[0] + held[1]) as usize + 2 * seqlen;
        let (k_rows, v_rows) = gather_cache(&k_cache, &v_cache, &table, &starts, tokens + 1).unwrap();
        let last = values(&k_rows.narrow(0, tokens, 1).unwrap()).unwrap();
        prop_assert!(last.iter().all(|&x| x == 0.0));
        let (cos, sin) = (cos.to_vec2::<f32>().unwrap(), sin.to_vec2::<f32>().unwrap());
        let check = |row: &[f32], source: &[f32], position: usize| {
            for d in 0..16 {
                let (pair, first) = match interleaved {
                    _ if d >= 2 * pairs => {
                        assert_eq!(row[d], source[d]);
                        continue;
                    }
                    true => (d / 2, d % 2 == 0),
                    false => (d % pairs, d < pairs),
                };
                let other = match (interleaved, first) {
                    (true, true) => d + 1,
                    (true, false) => d - 1,
                    (false, true) => d + pairs,
                    (false, false) => d - pairs,
                };
                let (c, s) = (f64::from(cos[position][pair]), f64::from(sin[position][pair]));
                let (own, other) = (f64::from(source[d]), f64::from(source[other]));
                let expected = own * c + if first { -other * s } else { other * s };
                // One product and one FMA, in f32, then rounded to f16, whose smallest numbers have no relative precision.
                let f32_error = 2f64.powi(-24) * ((other * s).abs() + expected.abs() * 1.001);
                let limit = f32_error + 2f64.powi(-11) * (expected.abs() + f32_error) + 2f64.powi(-25);
                assert!((f64::from(row[d]) - expected).abs() <= limit, "{} instead of {expected}", row[d]);
            }
        };
        for b in 0..2 {
            let begin = if b == 0 { 0 } else { held[0] as usize + seqlen };
            for i in 0..seqlen {
                let position = held[b] as usize + i;
                let row = |x: &Tensor, h: usize| values(&x.get(begin + position).unwrap().get(h).unwrap()).unwrap();
                let source = |x: &Tensor, h: usize| values(&x.get(b).unwrap().get(i).unwrap().get(h).unwrap()).unwrap();
                for h in 0..HEADS.1 {
                    check(&row(&k_rows, h), &source(&k, h), position);
                    prop_assert_eq!(row(&v_rows, h), source(&v, h));
                }
                for h in 0..HEADS.0 {
                    check(&source(&turned, h), &source(&q, h), position);
                }
            }
        }
    }
}

#[test]
fn blocks_are_copied() -> Result<()> {
    let cache = |first: f32| Tensor::arange(first, first + 24.0, &CPU)?.reshape((4, 3, 1, 2));
    let (a, b) = (cache(0.0)?, cache(100.0)?);
    let pairs = Tensor::new(&[[0i64, 3], [1, 2]], &CPU)?;
    copy_blocks(&[&a, &b], &pairs)?;
    for (cache, first) in [(&a, 0.0), (&b, 100.0)] {
        let block = |n: f32| {
            (0..6)
                .map(|i| first + 6.0 * n + i as f32)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            values(cache)?,
            [block(0.0), block(1.0), block(1.0), block(0.0)].concat()
        );
    }
    // Of a cache of bytes, and of numbers of blocks that are no longs.
    let (from, to) = (
        Tensor::new(&[[1u8, 2], [3, 4]], &CPU)?,
        Tensor::zeros((3, 2), DType::U8, &CPU)?,
    );
    swap_blocks(&from, &to, &Tensor::new(&[[1u32, 0], [0, 2]], &CPU)?)?;
    assert_eq!(to.to_vec2::<u8>()?, [[3, 4], [0, 0], [1, 2]]);
    Ok(())
}

#[test]
fn bad_caches() -> Result<()> {
    let x = |shape: &[usize]| Tensor::zeros(shape, DType::F16, &CPU).unwrap();
    let (k, cache) = (&x(&[3, 2, 8]), &x(&[4, 2, 2, 8]));
    let other = &x(&[4, 2, 2, 8]);
    let slots = |numbers: &[i64]| Tensor::new(numbers, &CPU).unwrap();
    let put = |k: &Tensor, v: &Tensor, to: &Tensor, to_v: &Tensor, slots: &Tensor| {
        reshape_and_cache(k, v, to, to_v, slots)
    };
    let good = &slots(&[0, -1, 7]);
    put(k, k, cache, other, good)?;
    refused(
        put(k, k, cache, cache, good),
        "v_cache: expected a tensor with storage of its own, found one that shares its storage with k_cache",
    );
    refused(
        put(k, k, cache, other, &slots(&[0, 8, 1])),
        "slot_mapping: expected -1, or a slot below 8",
    );
    refused(put(k, k, cache, other, &slots(&[0, -2, 1])), "slot_mapping");
    refused(
        put(k, k, cache, other, &slots(&[5, 5, 1])),
        "row 1 of block 2 for two",
    );
    refused(
        put(k, k, cache, other, &slots(&[0, 1])),
        "slot_mapping: expected 3 numbers",
    );
    refused(
        put(k, k, cache, other, &Tensor::zeros(3, DType::U32, &CPU)?),
        "slot_mapping: expected i64, found u32",
    );
    refused(
        put(k, k, &cache.to_dtype(DType::BF16)?, other, good),
        "k_cache: expected f16 or f8e4m3 or u8, found bf16",
    );
    let wide = k.to_dtype(DType::F32)?;
    refused(
        put(&wide, k, cache, other, good),
        "k: expected f16 or bf16, found f32",
    );
    refused(
        put(k, k, cache, &x(&[4, 2, 2, 9]), good),
        "v_cache: expected shape [4, 2, 2, 8]",
    );
    refused(
        put(k, k, &cache.get(0)?, other, good),
        "k_cache: expected four dimensions",
    );
    let var = candle_core::Var::ones((3, 2, 8), DType::F16, &CPU)?;
    refused(
        put(var.as_tensor(), k, cache, other, good),
        "k: expected a tensor without gradients",
    );

    let angles = Tensor::zeros((10, 2), DType::F32, &CPU)?;
    let append = CacheAppend::slots(good);
    let turning = append.clone().rotary(&angles, &angles, RotaryPairs::Halves);
    refused(
        turning.forward(k, k, cache, other),
        "positions: expected positions of the tokens",
    );
    refused(
        turning
            .clone()
            .positions(&slots(&[1, 2, 10]))
            .forward(k, k, cache, other),
        "positions: expected 0 to 10 positions",
    );
    refused(
        turning
            .clone()
            .positions(&slots(&[1]))
            .forward(k, k, cache, other),
        "positions: expected 3 numbers",
    );
    refused(
        append.forward_with_queries(k, k, k, cache, other),
        "q: expected no queries without `rotary`",
    );
    let narrow = Tensor::zeros((10, 5), DType::F32, &CPU)?;
    let wide = append
        .rotary(&narrow, &narrow, RotaryPairs::Halves)
        .positions(&slots(&[1, 2, 3]));
    refused(
        wide.forward(k, k, cache, other),
        "rotary_dim: expected an even number from 2 to head_dim 8",
    );

    let batch = &x(&[1, 3, 2, 8]);
    let table = &Tensor::new(&[[1u32, 9]], &CPU)?;
    let held = |n: u32| Tensor::new(&[n], &CPU).unwrap();
    let pages = |n: u32| CacheAppend::pages(table, &held(n)).forward(batch, batch, cache, other);
    refused(pages(0), "block_table: expected blocks below 4, found 9");
    refused(
        pages(2),
        "seqlens: expected 3 rows from there on in a cache of 4, found 2",
    );
    refused(
        CacheAppend::pages(table, &held(0)).forward(
            &x(&[2, 3, 2, 8]),
            &x(&[2, 3, 2, 8]),
            cache,
            other,
        ),
        "seqlens: expected shape [2]",
    );
    let starts = |numbers: &[u32]| Tensor::new(numbers, &CPU).unwrap();
    refused(
        gather_cache(cache, other, table, &starts(&[0, 3]), 3),
        "block_table",
    );
    refused(
        gather_cache(cache, other, table, &starts(&[0, 2]), 1),
        "seqlens: expected 0 to 1 next",
    );
    refused(
        gather_cache(cache, other, table, &starts(&[0, 1, 2]), 2),
        "block_table: expected shape [2, entries]",
    );

    let pairs = |numbers: &[[i64; 2]]| {
        Tensor::new(numbers.as_flattened(), &CPU)
            .unwrap()
            .reshape((numbers.len(), 2))
            .unwrap()
    };
    refused(
        copy_blocks(&[cache], &pairs(&[[0, 4]])),
        "pairs: expected blocks below 4 and 4",
    );
    refused(
        copy_blocks(&[cache], &pairs(&[[0, 1], [1, 2]])),
        "pairs: expected blocks that are read or written, not both",
    );
    let gaps = &cache.narrow(3, 0, 4)?;
    refused(
        copy_blocks(&[gaps], &pairs(&[[0, 1]])),
        "cache: expected blocks (of the first dimension) without gaps",
    );
    refused(
        swap_blocks(cache, cache, &pairs(&[[0, 1]])),
        "dst: expected a tensor with storage of its own",
    );
    refused(
        swap_blocks(&x(&[4, 2, 8]), cache, &pairs(&[[0, 1]])),
        "src: expected blocks of 64 bytes, as dst",
    );
    refused(
        swap_blocks(&wide_cache()?, cache, &pairs(&[[0, 1]])),
        "src: expected f16, found f32",
    );
    Ok(())
}

fn wide_cache() -> Result<Tensor> {
    Tensor::zeros((4, 2, 2, 8), DType::F32, &CPU)
}

#[test]
fn bad_scales_of_caches() -> Result<()> {
    let k = &Tensor::zeros((3, 2, 8), DType::F16, &CPU)?;
    let cache = |dtype| Tensor::zeros((4, 2, 2, 8), dtype, &CPU).unwrap();
    let (codes, codes_v, halves) = (&cache(DType::U8), &cache(DType::U8), &cache(DType::F16));
    let slots = &Tensor::new(&[0i64, -1, 7], &CPU)?;
    let scale = |numbers: &[f32]| Tensor::new(numbers, &CPU).unwrap();
    let put = |k_scale: &Tensor, v_scale: &Tensor, to: &Tensor, to_v: &Tensor| {
        let append = CacheAppend::slots(slots).kv_scales(k_scale, v_scale);
        append.forward(k, k, to, to_v)
    };
    let one = &scale(&[1.0]);
    put(one, one, codes, codes_v)?;
    put(&scale(&[1.0, 2.0]), &scale(&[3.0, 4.0]), codes, codes_v)?;
    refused(
        put(one, one, halves, &cache(DType::F16)),
        "k_scale: expected no scales, since the caches are not e4m3",
    );
    refused(
        put(&scale(&[0.0]), one, codes, codes_v),
        "k_scale: expected positive finite numbers, found 0",
    );
    refused(
        put(one, &scale(&[f32::NAN]), codes, codes_v),
        "v_scale: expected positive finite numbers, found NaN",
    );
    refused(
        put(&one.reshape((1, 1))?, one, codes, codes_v),
        "k_scale: expected shape [1] or [2], found shape [1, 1]",
    );
    refused(
        put(one, &scale(&[1.0, 1.0]), codes, codes_v),
        "v_scale: expected shape [1]",
    );
    refused(
        put(one, one, codes, &cache(DType::F8E4M3)),
        "v_cache: expected u8",
    );
    let (table, starts) = (
        &Tensor::new(&[[1u32]], &CPU)?,
        &Tensor::new(&[0u32, 2], &CPU)?,
    );
    let gather = CacheGather::new(table, starts);
    refused(
        gather.forward(codes, codes_v, 2),
        "dtype: expected f16 or bf16, which rows of e4m3 caches become, found none",
    );
    let gather = gather.dtype(DType::F16);
    gather.forward(codes, codes_v, 2)?;
    refused(
        gather.clone().dtype(DType::F32).forward(codes, codes_v, 2),
        "dtype: expected f16 or bf16, found f32",
    );
    refused(
        gather.clone().dtype(DType::BF16).forward(halves, halves, 2),
        "k_cache: expected bf16 or f8e4m3 or u8, found f16",
    );
    refused(
        gather
            .clone()
            .kv_scales(one, one)
            .forward(halves, halves, 2),
        "k_scale: expected no scales",
    );
    let negative = &scale(&[-1.0]);
    refused(
        gather.kv_scales(negative, one).forward(codes, codes_v, 2),
        "k_scale: expected positive finite numbers, found -1",
    );
    Ok(())
}

#[test]
fn bad_scales() -> Result<()> {
    let q = &Tensor::zeros((1, 2, 4, 8), DType::F16, &CPU)?;
    let k = &Tensor::zeros((1, 5, 2, 8), DType::U8, &CPU)?;
    let scale = |numbers: &[f32]| Tensor::new(numbers, &CPU).unwrap();
    let one = &scale(&[1.0]);
    let run = |q: &Tensor, k: &Tensor, v: &Tensor, k_scale: &Tensor, v_scale: &Tensor| {
        Attention::new(1.0)
            .kv_scales(k_scale, v_scale)
            .forward(q, k, v)
    };
    run(q, k, k, one, one)?;
    refused(
        run(q, k, k, &scale(&[0.0]), one),
        "k_scale: expected positive finite numbers, found 0",
    );
    refused(
        run(q, k, k, one, &scale(&[f32::NAN])),
        "v_scale: expected positive finite numbers",
    );
    refused(
        run(q, k, k, one, &scale(&[f32::INFINITY])),
        "v_scale: expected positive finite numbers",
    );
    refused(
        run(q, k, k, &scale(&[1.0, 1.0, 1.0]), one),
        "k_scale: expected shape [1], [2] or [1, 2]",
    );
    refused(
        run(q, k, k, one, &scale(&[1.0, 1.0])),
        "v_scale: expected shape [1]",
    );
    refused(
        run(q, k, k, &one.to_dtype(DType::F16)?, one),
        "k_scale: expected f32, found f16",
    );
    refused(
        run(q, k, &k.to_dtype(DType::F16)?, one, one),
        "v: expected u8, as k, found f16",
    );
    let half = &k.to_dtype(DType::F16)?;
    refused(run(q, half, half, one, one), "k_scale: expected no scales");
    let wide = &q.to_dtype(DType::F32)?;
    refused(run(wide, k, k, one, one), "k: expected f32, as q, found u8");
    Ok(())
}

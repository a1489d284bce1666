//! Every function against plain candle ops.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use common::{Scores, Sequence, check, sequence};
use flashtile_candle::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    dtype: DType,
    lengths: Vec<(usize, usize)>,
    heads_kv: usize,
    group: usize,
    dims: (usize, usize),
    window: (Option<usize>, Option<usize>),
    softcap: Option<f32>,
    alibi_by_sequence: bool,
    page: usize,
    spread: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let dtype = prop_oneof![Just(DType::F16), Just(DType::BF16), Just(DType::F32)];
    let dim = prop_oneof![Just(8usize), Just(64), Just(1), Just(7), 1usize..130];
    let window = (prop::option::of(0usize..40), prop::option::of(0usize..40));
    let window = prop_oneof![Just((None, Some(0))), Just((None, None)), window];
    (
        (
            any::<u32>(),
            dtype,
            prop::collection::vec((0usize..40, 0usize..70), 1..4),
        ),
        (1usize..4, 1usize..5, dim.clone(), prop::option::of(dim)),
        (
            window,
            prop::option::of(1f32..30.0),
            any::<bool>(),
            1usize..20,
            any::<bool>(),
        ),
    )
        .prop_map(
            |((seed, dtype, lengths), (heads_kv, group, dim, dim_v), rest)| Case {
                seed: seed.into(),
                dtype,
                lengths,
                heads_kv,
                group,
                dims: (dim, dim_v.unwrap_or(dim)),
                window: rest.0,
                softcap: rest.1,
                alibi_by_sequence: rest.2,
                page: rest.3,
                spread: rest.4,
            },
        )
}

impl Case {
    fn scale(&self) -> f32 {
        1.0 / (self.dims.0 as f32).sqrt()
    }

    fn heads(&self) -> usize {
        self.heads_kv * self.group
    }

    fn sequences(&self) -> Result<Vec<Sequence>> {
        let make = |(b, &lengths)| {
            let heads = (self.heads(), self.heads_kv);
            sequence(
                self.seed + 10 * b as u64,
                self.dtype,
                lengths,
                heads,
                self.dims,
            )
        };
        self.lengths.iter().enumerate().map(make).collect()
    }

    /// The same with equally long sequences.
    fn dense(mut self) -> Self {
        self.lengths = vec![self.lengths[0]; self.lengths.len()];
        self
    }

    fn slopes(&self) -> Vec<Vec<f32>> {
        let by_head = |b: usize| {
            (0..self.heads())
                .map(|h| 0.05 * (h + 3 * b + 1) as f32)
                .collect()
        };
        (0..self.lengths.len())
            .map(|b| by_head(if self.alibi_by_sequence { b } else { 0 }))
            .collect()
    }

    fn slopes_tensor(&self) -> Result<Tensor> {
        match self.alibi_by_sequence {
            true => Tensor::new(self.slopes(), &Device::Cpu),
            false => Tensor::new(self.slopes().swap_remove(0), &Device::Cpu),
        }
    }

    /// Scores of sequence `b`. A window past the longest sequence of keys is none.
    fn scores(
        &self,
        b: usize,
        window: (Option<usize>, Option<usize>),
        alibi: bool,
        cap: bool,
    ) -> Scores {
        let longest = self.lengths.iter().map(|l| l.1).max().unwrap_or(0);
        Scores {
            scale: self.scale(),
            left: window.0.filter(|&keys| keys <= longest),
            right: window.1.filter(|&keys| keys <= longest),
            slopes: alibi.then(|| self.slopes().swap_remove(b)),
            softcap: self.softcap.filter(|_| cap),
            ..Scores::default()
        }
    }

    /// Rows [tokens, heads, dim] in this case's type; spread: as a part of a wider tensor, with strides of its own.
    fn tensor(&self, parts: &[Tensor], stacked: bool) -> Result<Tensor> {
        let joined = match stacked {
            true => Tensor::stack(parts, 0)?,
            false => Tensor::cat(parts, 0)?,
        };
        let joined = joined.to_dtype(self.dtype)?;
        let Some(heads_at) = joined.rank().checked_sub(2).filter(|_| self.spread) else {
            return Ok(joined);
        };
        let heads = joined.dim(heads_at)?;
        let wide = joined
            .pad_with_zeros(heads_at, 2, 1)?
            .pad_with_zeros(0, 1, 0)?
            .contiguous()?;
        wide.narrow(heads_at, 2, heads)?
            .narrow(0, 1, joined.dim(0)?)
    }

    fn qkv(&self, sequences: &[Sequence], stacked: bool) -> Result<[Tensor; 3]> {
        let parts = |part: fn(&Sequence) -> &Tensor| {
            let parts: Vec<_> = sequences.iter().map(|s| part(s).clone()).collect();
            self.tensor(&parts, stacked)
        };
        Ok([parts(|s| &s.q)?, parts(|s| &s.k)?, parts(|s| &s.v)?])
    }

    /// Where sequences start, and the longest: u32 of queries and i32 of keys, as both are taken.
    fn starts(&self) -> Result<(Tensor, Tensor, usize, usize)> {
        let sums = |length: fn(&(usize, usize)) -> usize| {
            let mut sum = 0;
            let ends = self.lengths.iter().map(|l| {
                sum += length(l) as u32;
                sum
            });
            std::iter::once(0)
                .chain(ends.collect::<Vec<_>>())
                .collect::<Vec<u32>>()
        };
        let longest = |length: fn(&(usize, usize)) -> usize| {
            self.lengths.iter().map(length).max().unwrap_or(0)
        };
        Ok((
            Tensor::new(sums(|l| l.0), &Device::Cpu)?,
            Tensor::new(sums(|l| l.1), &Device::Cpu)?.to_dtype(DType::I32)?,
            longest(|l| l.0),
            longest(|l| l.1),
        ))
    }

    /// Keys or values in pages that lie backwards, with a page of other numbers between any two; and the table.
    fn pages(
        &self,
        sequences: &[Sequence],
        part: fn(&Sequence) -> &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let entries = self
            .lengths
            .iter()
            .map(|l| l.1.div_ceil(self.page))
            .max()
            .unwrap_or(0)
            .max(1);
        let first = part(&sequences[0]);
        let (heads, dim) = (first.dim(1)?, first.dim(2)?);
        let noise = Tensor::full(1e4f32, (self.page, heads, dim), &Device::Cpu)?;
        let mut pages = vec![noise.clone()];
        let mut table = Vec::new();
        for s in sequences {
            let rows = part(s);
            let count = rows.dim(0)?.div_ceil(self.page);
            let padded = rows.pad_with_zeros(0, 0, count * self.page - rows.dim(0)?)?;
            let mut of_sequence = vec![u32::MAX; entries];
            for (page, entry) in of_sequence[..count].iter_mut().enumerate() {
                *entry = pages.len() as u32;
                pages.push(padded.narrow(0, page * self.page, self.page)?);
                pages.push(noise.clone());
            }
            table.push(of_sequence);
        }
        pages.reverse();
        let last = pages.len() as u32 - 1;
        for entry in table
            .iter_mut()
            .flatten()
            .filter(|entry| **entry != u32::MAX)
        {
            *entry = last - *entry;
        }
        Ok((
            self.tensor(&pages, true)?,
            Tensor::new(table, &Device::Cpu)?,
        ))
    }
}

type Window = (Option<usize>, Option<usize>);

fn check_stacked(case: &Case, out: &Tensor, scores: impl Fn(usize) -> Scores) -> Result<()> {
    for (b, s) in case.sequences()?.iter().enumerate() {
        check(s, &scores(b), &out.get(b)?, None)?;
    }
    Ok(())
}

fn check_varlen(case: &Case, out: &Tensor, scores: impl Fn(usize) -> Scores) -> Result<()> {
    let mut first = 0;
    for (b, s) in case.sequences()?.iter().enumerate() {
        let rows = s.q.dim(0)?;
        check(s, &scores(b), &out.narrow(0, first, rows)?, None)?;
        first += rows;
    }
    assert_eq!(out.dim(0)?, first);
    Ok(())
}

fn causal_of(causal: bool) -> Window {
    (None, causal.then_some(0))
}

fn dense_functions(case: &Case) -> Result<()> {
    let sequences = case.sequences()?;
    let [q, k, v] = &case.qkv(&sequences, true)?;
    let (scale, slopes) = (case.scale(), &case.slopes_tensor()?);
    let (left, right) = case.window;
    for causal in [false, true] {
        let out = flash_attn(q, k, v, scale, causal)?;
        assert_eq!(out.dtype(), case.dtype);
        check_stacked(case, &out, |b| {
            case.scores(b, causal_of(causal), false, false)
        })?;
        let out = flash_attn_alibi(q, k, v, slopes, scale, causal)?;
        check_stacked(case, &out, |b| {
            case.scores(b, causal_of(causal), true, false)
        })?;
    }
    let out = flash_attn_windowed(q, k, v, scale, left, right)?;
    check_stacked(case, &out, |b| case.scores(b, case.window, false, false))?;
    let out = flash_attn_alibi_windowed(q, k, v, slopes, scale, left, right)?;
    check_stacked(case, &out, |b| case.scores(b, case.window, true, false))?;
    let cap = case.softcap.unwrap_or(0.0);
    for alibi in [None, Some(slopes)] {
        let out = flash_attn_alibi_windowed_softcap(q, k, v, alibi, scale, left, right, cap)?;
        check_stacked(case, &out, |b| {
            case.scores(b, case.window, alibi.is_some(), true)
        })?;
    }
    Ok(())
}

fn varlen_functions(case: &Case) -> Result<()> {
    let sequences = case.sequences()?;
    let [q, k, v] = &case.qkv(&sequences, false)?;
    let (scale, slopes) = (case.scale(), &case.slopes_tensor()?);
    let (left, right) = case.window;
    let (sq, sk, mq, mk) = &case.starts()?;
    let (mq, mk) = (*mq, *mk);
    for causal in [false, true] {
        let out = flash_attn_varlen(q, k, v, sq, sk, mq, mk, scale, causal)?;
        check_varlen(case, &out, |b| {
            case.scores(b, causal_of(causal), false, false)
        })?;
        let out = flash_attn_varlen_alibi(q, k, v, slopes, sq, sk, mq, mk, scale, causal)?;
        check_varlen(case, &out, |b| {
            case.scores(b, causal_of(causal), true, false)
        })?;
    }
    let out = flash_attn_varlen_windowed(q, k, v, sq, sk, mq, mk, scale, left, right)?;
    check_varlen(case, &out, |b| case.scores(b, case.window, false, false))?;
    let out =
        flash_attn_varlen_alibi_windowed(q, k, v, slopes, sq, sk, mq, mk, scale, left, right)?;
    check_varlen(case, &out, |b| case.scores(b, case.window, true, false))?;
    let cap = case.softcap.unwrap_or(0.0);
    for alibi in [None, Some(slopes)] {
        let out = flash_attn_varlen_alibi_windowed_softcap(
            q, k, v, alibi, sq, sk, mq, mk, scale, left, right, cap,
        )?;
        check_varlen(case, &out, |b| {
            case.scores(b, case.window, alibi.is_some(), true)
        })?;
    }
    Ok(())
}

fn paged_function(case: &Case) -> Result<()> {
    let sequences = case.sequences()?;
    let [q, ..] = &case.qkv(&sequences, false)?;
    let (k, table) = case.pages(&sequences, |s| &s.k)?;
    let (v, _) = case.pages(&sequences, |s| &s.v)?;
    let (sq, sk, mq, mk) = &case.starts()?;
    let (left, right) = case.window;
    // Two ranges by sequence: one that may reach past the causal mask, and none.
    let ranges: Vec<_> = (0..sequences.len() as i32)
        .map(|b| [[b, 5 + 2 * b], [3, 2]])
        .collect();
    let ranges_tensor = Tensor::from_vec(
        ranges.as_flattened().as_flattened().to_vec(),
        (sequences.len(), 2, 2),
        &Device::Cpu,
    )?;
    // A table of every other column of a wider one: strides of its own.
    let entries = table.dim(1)?;
    let wide = Tensor::stack(&[&table, &table], 2)?.contiguous()?;
    let strided = wide.narrow(2, 1, 1)?.squeeze(2)?.narrow(1, 0, entries)?;
    for (table, ranges_tensor) in [(table, None), (strided.clone(), Some(&ranges_tensor))] {
        let out = flash_attn_varlen_paged_windowed(
            q,
            &k,
            &v,
            sq,
            sk,
            &table,
            ranges_tensor,
            *mq,
            *mk,
            case.scale(),
            left,
            right,
            case.page,
            case.softcap,
        )?;
        check_varlen(case, &out, |b| {
            let mut scores = case.scores(b, case.window, false, true);
            if ranges_tensor.is_some() {
                scores.ranges = ranges[b].iter().map(|r| (r[0], r[1])).collect();
            }
            scores
        })?;
    }

    // The same pages, for as many queries of each sequence, by what is used of them.
    let used: Vec<u32> = case.lengths.iter().map(|l| l.1 as u32).collect();
    let used = Tensor::new(used, &Device::Cpu)?;
    let queries = case.lengths[0].0;
    let new: Vec<_> = (0..sequences.len())
        .map(|b| {
            common::numbers(
                case.seed + 77 + b as u64,
                &[queries, case.heads(), case.dims.0],
                case.dtype,
            )
        })
        .collect::<Result<_>>()?;
    let q = case.tensor(&new, true)?;
    let out = flash_attn_decode(&q, &k, &v, &strided, &used, *mk, case.scale())?;
    for (b, s) in sequences.iter().enumerate() {
        let s = Sequence {
            q: new[b].clone(),
            ..s.clone()
        };
        check(
            &s,
            &case.scores(b, (None, Some(0)), false, false),
            &out.get(b)?,
            None,
        )?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(common::cases(60))]

    #[test]
    fn dense(case in case()) {
        dense_functions(&case.dense()).unwrap();
    }

    #[test]
    fn varlen(case in case()) {
        varlen_functions(&case).unwrap();
    }

    #[test]
    fn paged(case in case()) {
        paged_function(&case).unwrap();
    }
}

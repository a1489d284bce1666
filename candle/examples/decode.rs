//! Greedy decoding by a small Llama-like decoder with random weights: all prompts together over a KV cache in pages, with flashtile's
//! attention; and each prompt by itself over a contiguous cache, in plain candle ops. The tokens must be the same.
//!
//! ```text
//! cargo run --release -p flashtile-candle --example decode
//! ```

use std::{error::Error, time::Instant};

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{
    Linear, Module,
    ops::{rms_norm, silu, softmax_last_dim},
};
use flashtile_candle::{flash_attn_decode, flash_attn_varlen_paged_windowed};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

const PROMPTS: [&str; 3] = [
    "Attention is a weighted mean.",
    "A cache in pages needs no copies when it grows, whatever the pages' order is.",
    "Why?",
];
const NEW_TOKENS: usize = 40;

const VOCABULARY: usize = 256; // Bytes.
const LAYERS: usize = 4;
const HEADS: usize = 8;
const HEADS_KV: usize = 2;
const HEAD_DIM: usize = 32;
const HIDDEN: usize = HEADS * HEAD_DIM;
const INNER: usize = 3 * HIDDEN;
const SCALE: f32 = 0.176_776_7; // 1 / sqrt(HEAD_DIM)
const PAGE: usize = 5;

/// Decodes both ways and compares.
pub fn main() -> std::result::Result<(), Box<dyn Error>> {
    let device = Device::cuda_if_available(0)?;
    let dtype = if device.is_cuda() {
        DType::F16
    } else {
        DType::F32
    };
    let mut random = StdRng::seed_from_u64(5);
    let model = Decoder::new(&mut random, dtype, &device)?;
    let prompts = PROMPTS.map(|text| text.bytes().map(u32::from).collect::<Vec<u32>>());

    let start = Instant::now();
    let capacity = prompts.each_ref().map(|prompt| prompt.len() + NEW_TOKENS);
    let mut paged = PagedCache::new(&capacity, &mut random, dtype, &device)?;
    let flash = model.decode(&prompts, &mut paged)?;
    let flash_time = start.elapsed();

    let start = Instant::now();
    let mut plain = Vec::new();
    for prompt in &prompts {
        let mut cache = ContiguousCache::default();
        plain.extend(model.decode(std::slice::from_ref(prompt), &mut cache)?);
    }
    let plain_time = start.elapsed();

    println!(
        "{dtype:?}, {device:?}; {} prompts, {NEW_TOKENS} tokens each, pages of {PAGE}",
        prompts.len()
    );
    let mut same = true;
    for ((prompt, flash), plain) in PROMPTS.iter().zip(&flash).zip(&plain) {
        println!("{prompt:?}\n  flash {flash:?}\n  plain {plain:?}");
        same &= flash == plain;
    }
    println!(
        "flash {flash_time:.1?}, plain {plain_time:.1?}; tokens {}",
        if same { "equal" } else { "differ" }
    );
    match same {
        true => Ok(()),
        false => Err("the tokens differ".into()),
    }
}

/// The tokens of a step: of each sequence the same number, or a prompt.
struct Step {
    /// New tokens of each sequence.
    lengths: Vec<usize>,
    /// Tokens of each sequence in the cache before.
    past: Vec<usize>,
}

/// Attention over all tokens so far, which a cache keeps: q [tokens, heads, dim], k and v [tokens, heads_kv, dim] of the new tokens,
/// sequence after sequence.
trait Cache {
    fn attend(
        &mut self,
        layer: usize,
        step: &Step,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor>;
}

/// Keys and values of all sequences in pages, in no order.
struct PagedCache {
    /// Of each layer, [pages, PAGE, heads_kv, dim].
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    pages: Vec<Vec<u32>>,
    table: Tensor,
    longest: usize,
}

impl PagedCache {
    fn new(capacity: &[usize], random: &mut StdRng, dtype: DType, device: &Device) -> Result<Self> {
        let counts: Vec<usize> = capacity
            .iter()
            .map(|tokens| tokens.div_ceil(PAGE))
            .collect();
        let total = counts.iter().sum::<usize>();
        let mut free: Vec<u32> = (0..total as u32).collect();
        free.shuffle(random);
        let entries = counts.iter().copied().max().unwrap_or(0);
        let pages: Vec<Vec<u32>> = counts
            .iter()
            .map(|&count| free.split_off(free.len() - count))
            .collect();
        // No sequence has these pages: they are never looked at.
        let row = |pages: &Vec<u32>| {
            (0..entries)
                .map(|at| pages.get(at).copied().unwrap_or(u32::MAX))
                .collect()
        };
        let table = Tensor::new(pages.iter().map(row).collect::<Vec<Vec<u32>>>(), device)?;
        let cache = || {
            (0..LAYERS)
                .map(|_| Tensor::zeros((total, PAGE, HEADS_KV, HEAD_DIM), dtype, device))
                .collect::<Result<_>>()
        };
        Ok(Self {
            keys: cache()?,
            values: cache()?,
            pages,
            table,
            longest: entries * PAGE,
        })
    }

    /// Writes new keys or values to their places.
    fn append(&self, cache: &Tensor, step: &Step, new: &Tensor) -> Result<()> {
        let (pages, ..) = cache.dims4()?;
        let slots = cache.reshape((pages * PAGE, HEADS_KV, HEAD_DIM))?;
        let mut from = 0;
        for ((pages, &past), &length) in self.pages.iter().zip(&step.past).zip(&step.lengths) {
            let mut at = past;
            while at < past + length {
                // To the end of the page.
                let count = (PAGE - at % PAGE).min(past + length - at);
                let slot = pages[at / PAGE] as usize * PAGE + at % PAGE;
                slots.slice_set(&new.narrow(0, from, count)?.contiguous()?, 0, slot)?;
                from += count;
                at += count;
            }
        }
        Ok(())
    }
}

impl Cache for PagedCache {
    fn attend(
        &mut self,
        layer: usize,
        step: &Step,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        let (keys, values) = (&self.keys[layer], &self.values[layer]);
        self.append(keys, step, k)?;
        self.append(values, step, v)?;
        let device = q.device();
        let totals = || {
            step.past
                .iter()
                .zip(&step.lengths)
                .map(|(past, new)| (past + new) as u32)
        };
        let batch = step.lengths.len();
        if step.lengths.iter().all(|&length| length == 1) {
            let used = Tensor::new(totals().collect::<Vec<u32>>(), device)?;
            let q = q.unsqueeze(1)?;
            let out = flash_attn_decode(&q, keys, values, &self.table, &used, self.longest, SCALE)?;
            return out.reshape((batch, HEADS, HEAD_DIM));
        }
        let starts = |lengths: Vec<u32>| {
            let mut starts = vec![0];
            starts.extend(lengths.iter().scan(0, |sum, length| {
                *sum += length;
                Some(*sum)
            }));
            Tensor::new(starts, device)
        };
        let seqlens_q = starts(step.lengths.iter().map(|&length| length as u32).collect())?;
        let seqlens_k = starts(totals().collect())?;
        let longest_q = step.lengths.iter().copied().max().unwrap_or(0);
        flash_attn_varlen_paged_windowed(
            q,
            keys,
            values,
            &seqlens_q,
            &seqlens_k,
            &self.table,
            None,
            longest_q,
            self.longest,
            SCALE,
            None,
            Some(0),
            PAGE,
            None,
        )
    }
}

/// Keys and values of one sequence, [tokens, heads_kv, dim], copied whenever a token is added.
#[derive(Default)]
struct ContiguousCache(Vec<(Tensor, Tensor)>);

impl Cache for ContiguousCache {
    fn attend(
        &mut self,
        layer: usize,
        step: &Step,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        let (k, v) = match self.0.get(layer) {
            Some((keys, values)) => (Tensor::cat(&[keys, k], 0)?, Tensor::cat(&[values, v], 0)?),
            None => (k.clone(), v.clone()),
        };
        match self.0.get_mut(layer) {
            Some(kept) => *kept = (k.clone(), v.clone()),
            None => self.0.push((k.clone(), v.clone())),
        }
        let (tokens, past) = (step.lengths[0], step.past[0]);
        let by_query_head = |x: &Tensor| {
            let group = HEADS / HEADS_KV;
            let x = x
                .unsqueeze(2)?
                .expand((past + tokens, HEADS_KV, group, HEAD_DIM))?;
            x.reshape((past + tokens, HEADS, HEAD_DIM))?
                .transpose(0, 1)?
                .contiguous()
        };
        let (q, k, v) = (
            q.transpose(0, 1)?.contiguous()?,
            by_query_head(&k)?,
            by_query_head(&v)?,
        );
        let hidden: Vec<f32> = (0..tokens)
            .flat_map(|i| {
                (0..past + tokens).map(move |j| if j > past + i { f32::NEG_INFINITY } else { 0.0 })
            })
            .collect();
        let hidden =
            Tensor::from_vec(hidden, (tokens, past + tokens), q.device())?.to_dtype(q.dtype())?;
        let scores = (q.matmul(&k.t()?)? * f64::from(SCALE))?.broadcast_add(&hidden)?;
        softmax_last_dim(&scores)?
            .matmul(&v)?
            .transpose(0, 1)?
            .contiguous()
    }
}

struct Layer {
    norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    inner_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Root-mean-square norms, rotary positions, grouped-query attention, gated inner layers.
struct Decoder {
    embeddings: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Linear,
    dtype: DType,
    device: Device,
}

impl Decoder {
    fn new(random: &mut StdRng, dtype: DType, device: &Device) -> Result<Self> {
        let mut matrix = |rows: usize, columns: usize| {
            let bound = (3.0 / columns as f32).sqrt();
            let numbers: Vec<f32> = (0..rows * columns)
                .map(|_| random.random_range(-bound..bound))
                .collect();
            Tensor::from_vec(numbers, (rows, columns), device)?.to_dtype(dtype)
        };
        let ones = || Tensor::ones(HIDDEN, dtype, device);
        let embeddings = matrix(VOCABULARY, HIDDEN)?;
        let mut linear =
            |to, from| Ok::<_, candle_core::Error>(Linear::new(matrix(to, from)?, None));
        let mut layers = Vec::new();
        for _ in 0..LAYERS {
            layers.push(Layer {
                norm: ones()?,
                query: linear(HIDDEN, HIDDEN)?,
                key: linear(HEADS_KV * HEAD_DIM, HIDDEN)?,
                value: linear(HEADS_KV * HEAD_DIM, HIDDEN)?,
                output: linear(HIDDEN, HIDDEN)?,
                inner_norm: ones()?,
                gate: linear(INNER, HIDDEN)?,
                up: linear(INNER, HIDDEN)?,
                down: linear(HIDDEN, INNER)?,
            });
        }
        Ok(Self {
            embeddings,
            layers,
            norm: ones()?,
            head: linear(VOCABULARY, HIDDEN)?,
            dtype,
            device: device.clone(),
        })
    }

    /// Continues prompts, all at once.
    fn decode(&self, prompts: &[Vec<u32>], cache: &mut dyn Cache) -> Result<Vec<Vec<u32>>> {
        let mut new = prompts.to_vec();
        let mut past = vec![0; prompts.len()];
        let mut decoded = vec![Vec::new(); prompts.len()];
        for _ in 0..NEW_TOKENS {
            let step = Step {
                lengths: new.iter().map(Vec::len).collect(),
                past: past.clone(),
            };
            let next = self.step(&new.concat(), &step, cache)?;
            for (past, length) in past.iter_mut().zip(&step.lengths) {
                *past += length;
            }
            for (decoded, &token) in decoded.iter_mut().zip(&next) {
                decoded.push(token);
            }
            new = next.into_iter().map(|token| vec![token]).collect();
        }
        Ok(decoded)
    }

    /// The most likely token after each sequence.
    fn step(&self, tokens: &[u32], step: &Step, cache: &mut dyn Cache) -> Result<Vec<u32>> {
        let positions = step
            .past
            .iter()
            .zip(&step.lengths)
            .flat_map(|(&past, &new)| past..past + new);
        let rotation = self.rotation(positions)?;
        let mut x = self
            .embeddings
            .index_select(&Tensor::new(tokens, &self.device)?, 0)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let y = rms_norm(&x, &layer.norm, 1e-5)?;
            let heads = |linear: &Linear, heads| {
                linear.forward(&y)?.reshape((tokens.len(), heads, HEAD_DIM))
            };
            let q = rotate(&heads(&layer.query, HEADS)?, &rotation)?;
            let k = rotate(&heads(&layer.key, HEADS_KV)?, &rotation)?;
            let v = heads(&layer.value, HEADS_KV)?;
            let y = cache
                .attend(index, step, &q, &k, &v)?
                .reshape((tokens.len(), HIDDEN))?;
            x = (x + layer.output.forward(&y)?)?;
            let y = rms_norm(&x, &layer.inner_norm, 1e-5)?;
            let y = (silu(&layer.gate.forward(&y)?)? * layer.up.forward(&y)?)?;
            x = (x + layer.down.forward(&y)?)?;
        }
        let last = step.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end as u32 - 1)
        });
        let last = Tensor::new(last.collect::<Vec<u32>>(), &self.device)?;
        let x = rms_norm(&x.index_select(&last, 0)?, &self.norm, 1e-5)?;
        self.head.forward(&x)?.argmax(D::Minus1)?.to_vec1()
    }

    /// Cosines and sines of positions, [tokens, 1, HEAD_DIM / 2].
    fn rotation(&self, positions: impl Iterator<Item = usize>) -> Result<(Tensor, Tensor)> {
        let half = HEAD_DIM / 2;
        let angles: Vec<f32> = positions
            .flat_map(|at| {
                (0..half).map(move |i| at as f32 * 10_000f32.powf(-(i as f32) / half as f32))
            })
            .collect();
        let angles =
            Tensor::from_vec(angles.clone(), (angles.len() / half, 1, half), &self.device)?;
        Ok((
            angles.cos()?.to_dtype(self.dtype)?,
            angles.sin()?.to_dtype(self.dtype)?,
        ))
    }
}

/// Rotary positions (arXiv:2104.09864), halves of a head being the two coordinates.
fn rotate(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
    let (a, b) = (
        x.narrow(2, 0, HEAD_DIM / 2)?,
        x.narrow(2, HEAD_DIM / 2, HEAD_DIM / 2)?,
    );
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    Tensor::cat(&[first, second], 2)
}

//! Sentence embeddings by a BERT model, with flashtile's attention over sequences without padding, and with plain candle ops over padded
//! ones; and how far apart they are.
//!
//! ```text
//! cargo run --release -p flashtile-candle --example embed -- FOLDER [TEXT...]
//! ```
//!
//! The folder is that of a model such as all-MiniLM-L6-v2: `config.json`, `model.safetensors`, `tokenizer.json`.

use std::{error::Error, fs, path::Path, time::Instant};

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{
    Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm, linear,
    ops::softmax_last_dim,
};
use flashtile_candle::flash_attn_varlen;
use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams};

const TEXTS: [&str; 4] = [
    "A kernel is compiled once and launched many times.",
    "GPU programs are built ahead of time and run over and over again.",
    "The cat sleeps on the warm windowsill while rain falls on the garden and nobody is in a hurry to go anywhere.",
    "Rain.",
];

/// Largest number of tokens of a text: what all-MiniLM-L6-v2 was trained on.
const MAX_TOKENS: usize = 256;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let Some(folder) = arguments.next() else {
        return Err("usage: embed FOLDER [TEXT...]".into());
    };
    let mut texts: Vec<String> = arguments.collect();
    if texts.is_empty() {
        texts = TEXTS.map(String::from).to_vec();
    }
    let device = Device::cuda_if_available(0)?;
    let dtype = if device.is_cuda() {
        DType::F16
    } else {
        DType::F32
    };
    run(Path::new(&folder), &texts, dtype, &device).map(drop)
}

/// Embeds texts both ways; how far apart the embeddings are at most.
pub fn run(
    folder: &Path,
    texts: &[String],
    dtype: DType,
    device: &Device,
) -> std::result::Result<f64, Box<dyn Error>> {
    let model = Bert::load(folder, dtype, device)?;
    let tokens = tokenize(&folder.join("tokenizer.json"), texts)?;

    let start = Instant::now();
    let flash = model.embed_packed(&tokens)?;
    let flash_time = start.elapsed();
    let start = Instant::now();
    let plain = model.embed_padded(&tokens)?;
    let plain_time = start.elapsed();

    let rows = |x: &Tensor| x.to_dtype(DType::F32)?.to_vec2::<f32>();
    let (flash, plain) = (rows(&flash)?, rows(&plain)?);
    println!("{} texts, {dtype:?}, {device:?}", texts.len());
    let (mut difference, mut cosine) = (0f64, 1f64);
    for ((text, tokens), (a, b)) in texts.iter().zip(&tokens).zip(flash.iter().zip(&plain)) {
        let pairs = || a.iter().zip(b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let apart = pairs().fold(0.0, |max, (a, b)| f64::max(max, (a - b).abs()));
        let alike = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        println!(
            "{:3} tokens  max difference {apart:.2e}  cosine {alike:.8}  {text}",
            tokens.len()
        );
        difference = difference.max(apart);
        cosine = cosine.min(alike);
    }
    println!("alike, by the embeddings with flashtile's attention:");
    for a in &flash {
        println!(
            "{}",
            flash
                .iter()
                .map(|b| format!(" {:6.3}", dot(a, b)))
                .collect::<String>()
        );
    }
    println!("flash {flash_time:.1?}, plain {plain_time:.1?}");
    println!("max difference {difference:.2e}, smallest cosine {cosine:.8}");
    // Embeddings have length 1. Beyond this the model does not work, whatever the rounding.
    match cosine > 0.999 {
        true => Ok(difference),
        false => Err("the embeddings differ".into()),
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

fn tokenize(file: &Path, texts: &[String]) -> std::result::Result<Vec<Vec<u32>>, Box<dyn Error>> {
    let mut tokenizer = Tokenizer::from_file(file).map_err(|error| error.to_string())?;
    let truncation = TruncationParams {
        max_length: MAX_TOKENS,
        ..TruncationParams::default()
    };
    tokenizer
        .with_padding(None)
        .with_truncation(Some(truncation))
        .map_err(|error| error.to_string())?;
    let ids = |text: &String| {
        let encoding = tokenizer
            .encode(text.as_str(), true)
            .map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    };
    texts.iter().map(ids).collect()
}

/// How the tokens of a batch lie, and how they attend to each other.
enum Batch {
    /// [tokens, hidden]: one text after the other.
    Packed { starts: Tensor, longest: usize },
    /// [texts, longest, hidden], and what is added to the scores: -inf for padding.
    Padded { bias: Tensor },
}

struct Layer {
    heads: usize,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    output_norm: LayerNorm,
    up: Linear,
    down: Linear,
    down_norm: LayerNorm,
}

impl Layer {
    fn load(hidden: usize, inner: usize, heads: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        let of_self = vb.pp("attention.self");
        Ok(Self {
            heads,
            query: linear(hidden, hidden, of_self.pp("query"))?,
            key: linear(hidden, hidden, of_self.pp("key"))?,
            value: linear(hidden, hidden, of_self.pp("value"))?,
            output: linear(hidden, hidden, vb.pp("attention.output.dense"))?,
            output_norm: layer_norm(hidden, eps, vb.pp("attention.output.LayerNorm"))?,
            up: linear(hidden, inner, vb.pp("intermediate.dense"))?,
            down: linear(inner, hidden, vb.pp("output.dense"))?,
            down_norm: layer_norm(hidden, eps, vb.pp("output.LayerNorm"))?,
        })
    }

    fn forward(&self, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        let attended = self.attention(x, batch)?;
        let x = self
            .output_norm
            .forward(&(self.output.forward(&attended)? + x)?)?;
        let inner = self.up.forward(&x)?.gelu_erf()?;
        self.down_norm.forward(&(self.down.forward(&inner)? + x)?)
    }

    fn attention(&self, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        let hidden = x.dim(D::Minus1)?;
        let dim = hidden / self.heads;
        let scale = 1.0 / (dim as f32).sqrt();
        // [.., hidden] to [.., heads, dim].
        let split = |x: Tensor| {
            let mut shape = x.dims().to_vec();
            shape.pop();
            shape.extend([self.heads, dim]);
            x.reshape(shape)
        };
        let q = split(self.query.forward(x)?)?;
        let k = split(self.key.forward(x)?)?;
        let v = split(self.value.forward(x)?)?;
        let out = match batch {
            Batch::Packed { starts, longest } => {
                flash_attn_varlen(&q, &k, &v, starts, starts, *longest, *longest, scale, false)?
            }
            Batch::Padded { bias } => {
                let heads_first = |x: Tensor| x.transpose(1, 2)?.contiguous();
                let (q, k, v) = (heads_first(q)?, heads_first(k)?, heads_first(v)?);
                let scores = (q.matmul(&k.t()?)? * f64::from(scale))?.broadcast_add(bias)?;
                softmax_last_dim(&scores)?.matmul(&v)?.transpose(1, 2)?
            }
        };
        out.reshape(x.shape())
    }
}

struct Bert {
    words: Embedding,
    positions: Embedding,
    types: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    dtype: DType,
    device: Device,
}

impl Bert {
    fn load(
        folder: &Path,
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, Box<dyn Error>> {
        let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json"))?)?;
        let number = |key: &str| {
            let number = config[key].as_u64().and_then(|n| usize::try_from(n).ok());
            number.ok_or_else(|| format!("config.json has no number `{key}`"))
        };
        let eps = config["layer_norm_eps"].as_f64().unwrap_or(1e-12);
        let (hidden, inner, heads) = (
            number("hidden_size")?,
            number("intermediate_size")?,
            number("num_attention_heads")?,
        );
        let weights = fs::read(folder.join("model.safetensors"))?;
        let vb = VarBuilder::from_buffered_safetensors(weights, dtype, device)?;
        let embeddings = vb.pp("embeddings");
        let layer = |index| {
            Layer::load(
                hidden,
                inner,
                heads,
                eps,
                vb.pp(format!("encoder.layer.{index}")),
            )
        };
        Ok(Self {
            words: embedding(
                number("vocab_size")?,
                hidden,
                embeddings.pp("word_embeddings"),
            )?,
            positions: embedding(
                number("max_position_embeddings")?,
                hidden,
                embeddings.pp("position_embeddings"),
            )?,
            // Every token is of the first type.
            types: embeddings
                .get(
                    (number("type_vocab_size")?, hidden),
                    "token_type_embeddings.weight",
                )?
                .get(0)?,
            norm: layer_norm(hidden, eps, embeddings.pp("LayerNorm"))?,
            layers: (0..number("num_hidden_layers")?)
                .map(layer)
                .collect::<Result<_>>()?,
            dtype,
            device: device.clone(),
        })
    }

    /// Token ids and their positions, of one shape, to hidden states.
    fn forward(&self, ids: &Tensor, positions: &Tensor, batch: &Batch) -> Result<Tensor> {
        let x = (self.words.forward(ids)? + self.positions.forward(positions)?)?;
        let x = self.norm.forward(&x.broadcast_add(&self.types)?)?;
        self.layers
            .iter()
            .try_fold(x, |x, layer| layer.forward(&x, batch))
    }

    /// Embeddings [texts, hidden] with flashtile's attention: no padding anywhere.
    fn embed_packed(&self, texts: &[Vec<u32>]) -> Result<Tensor> {
        let positions: Vec<u32> = texts.iter().flat_map(|text| 0..text.len() as u32).collect();
        let mut starts = vec![0u32];
        for text in texts {
            starts.push(starts[starts.len() - 1] + text.len() as u32);
        }
        let batch = Batch::Packed {
            starts: Tensor::new(starts.as_slice(), &self.device)?,
            longest: longest(texts),
        };
        let ids = Tensor::new(texts.concat(), &self.device)?;
        let x = self.forward(&ids, &Tensor::new(positions, &self.device)?, &batch)?;
        let mean =
            |(start, text): (&u32, &Vec<u32>)| x.narrow(0, *start as usize, text.len())?.mean(0);
        normalised(&Tensor::stack(
            &starts
                .iter()
                .zip(texts)
                .map(mean)
                .collect::<Result<Vec<_>>>()?,
            0,
        )?)
    }

    /// The same in plain candle ops, texts padded to the longest.
    fn embed_padded(&self, texts: &[Vec<u32>]) -> Result<Tensor> {
        let longest = longest(texts);
        let padded = |text: &Vec<u32>| {
            let mut text = text.clone();
            text.resize(longest, 0);
            text
        };
        let ids = texts.iter().map(padded).collect::<Vec<_>>();
        let ids = Tensor::new(ids, &self.device)?;
        let positions = Tensor::arange(0, longest as u32, &self.device)?;
        let positions = positions
            .unsqueeze(0)?
            .broadcast_as(ids.shape())?
            .contiguous()?;
        let bias = |text: &Vec<u32>| -> Vec<f32> {
            (0..longest)
                .map(|at| {
                    if at < text.len() {
                        0.0
                    } else {
                        f32::NEG_INFINITY
                    }
                })
                .collect()
        };
        let bias = texts.iter().map(bias).collect::<Vec<_>>();
        let bias = Tensor::new(bias, &self.device)?.to_dtype(self.dtype)?;
        let batch = Batch::Padded {
            bias: bias.unsqueeze(1)?.unsqueeze(1)?,
        };
        let x = self.forward(&ids, &positions, &batch)?;
        let mean =
            |(index, text): (usize, &Vec<u32>)| x.get(index)?.narrow(0, 0, text.len())?.mean(0);
        normalised(&Tensor::stack(
            &texts
                .iter()
                .enumerate()
                .map(mean)
                .collect::<Result<Vec<_>>>()?,
            0,
        )?)
    }
}

fn longest(texts: &[Vec<u32>]) -> usize {
    texts.iter().map(Vec::len).max().unwrap_or(0)
}

/// Rows of length 1.
fn normalised(x: &Tensor) -> Result<Tensor> {
    let x = x.to_dtype(DType::F32)?;
    x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

//! Code that was written for candle-flash-attn, unchanged but for a `use`.

mod common;

use candle_core::{D, DType, Device, Result, Tensor};
use common::numbers;
use flashtile_candle as candle_flash_attn;

type Window = Option<usize>;

/// The eleven functions, by their exact types.
#[test]
#[allow(clippy::type_complexity)] // That is the point.
fn signatures() {
    type Slopes<'a> = Option<&'a Tensor>;
    let _: fn(&Tensor, &Tensor, &Tensor, f32, bool) -> Result<Tensor> =
        candle_flash_attn::flash_attn;
    let _: fn(&Tensor, &Tensor, &Tensor, f32, Window, Window) -> Result<Tensor> =
        candle_flash_attn::flash_attn_windowed;
    let _: fn(&Tensor, &Tensor, &Tensor, &Tensor, f32, bool) -> Result<Tensor> =
        candle_flash_attn::flash_attn_alibi;
    let _: fn(&Tensor, &Tensor, &Tensor, &Tensor, f32, Window, Window) -> Result<Tensor> =
        candle_flash_attn::flash_attn_alibi_windowed;
    let _: fn(&Tensor, &Tensor, &Tensor, Slopes, f32, Window, Window, f32) -> Result<Tensor> =
        candle_flash_attn::flash_attn_alibi_windowed_softcap;
    let _: fn(
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        usize,
        usize,
        f32,
        bool,
    ) -> Result<Tensor> = candle_flash_attn::flash_attn_varlen;
    let _: fn(
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        usize,
        usize,
        f32,
        Window,
        Window,
    ) -> Result<Tensor> = candle_flash_attn::flash_attn_varlen_windowed;
    let _: fn(
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        usize,
        usize,
        f32,
        bool,
    ) -> Result<Tensor> = candle_flash_attn::flash_attn_varlen_alibi;
    let _: fn(
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        usize,
        usize,
        f32,
        Window,
        Window,
    ) -> Result<Tensor> = candle_flash_attn::flash_attn_varlen_alibi_windowed;
    let _: fn(
        &Tensor,
        &Tensor,
        &Tensor,
        Slopes,
        &Tensor,
        &Tensor,
        usize,
        usize,
        f32,
        Window,
        Window,
        f32,
    ) -> Result<Tensor> = candle_flash_attn::flash_attn_varlen_alibi_windowed_softcap;
    let _: fn(
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        &Tensor,
        Option<&Tensor>,
        usize,
        usize,
        f32,
        Window,
        Window,
        usize,
        Option<f32>,
    ) -> Result<Tensor> = candle_flash_attn::flash_attn_varlen_paged_windowed;
}

// As candle-transformers' models call it.
fn flash_attn(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    candle_flash_attn::flash_attn(q, k, v, softmax_scale, causal)
}

/// A layer's attention as candle-transformers' models have it, with heads before tokens and transposes around the call.
struct SelfAttention {
    heads: usize,
    heads_kv: usize,
    use_flash_attn: bool,
    cache: Option<(Tensor, Tensor)>,
}

impl SelfAttention {
    fn forward(&mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (batch, seq_len, _) = q.dims3()?;
        let split = |x: &Tensor, heads| {
            x.reshape((batch, seq_len, heads, ()))?
                .transpose(1, 2)?
                .contiguous()
        };
        let (q, mut k, mut v) = (
            split(q, self.heads)?,
            split(k, self.heads_kv)?,
            split(v, self.heads_kv)?,
        );
        if let Some((old_k, old_v)) = &self.cache {
            k = Tensor::cat(&[old_k, &k], 2)?;
            v = Tensor::cat(&[old_v, &v], 2)?;
        }
        self.cache = Some((k.clone(), v.clone()));
        let scale = 1f32 / (q.dim(D::Minus1)? as f32).sqrt();
        let y = if self.use_flash_attn {
            let (q, k, v) = (q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?);
            flash_attn(&q, &k, &v, scale, seq_len > 1)?.transpose(1, 2)?
        } else {
            let repeat = |x: Tensor| {
                let (b, h, s, d) = x.dims4()?;
                let group = self.heads / self.heads_kv;
                x.unsqueeze(2)?
                    .expand((b, h, group, s, d))?
                    .reshape((b, h * group, s, d))
            };
            let (k, v) = (repeat(k)?, repeat(v)?);
            let scores = (q.matmul(&k.t()?)? * f64::from(scale))?;
            let past = k.dim(2)? - seq_len;
            let hidden: Vec<f32> = (0..seq_len)
                .flat_map(|i| {
                    (0..past + seq_len)
                        .map(move |j| if j > past + i { f32::NEG_INFINITY } else { 0.0 })
                })
                .collect();
            let hidden = Tensor::from_vec(hidden, (seq_len, past + seq_len), &Device::Cpu)?;
            candle_nn::ops::softmax_last_dim(&scores.broadcast_add(&hidden)?)?.matmul(&v)?
        };
        y.transpose(1, 2)?.reshape((batch, seq_len, ()))
    }
}

#[test]
fn a_layer_of_candle_transformers() -> Result<()> {
    let (heads, heads_kv, dim) = (4, 2, 16);
    let layer = |use_flash_attn| SelfAttention {
        heads,
        heads_kv,
        use_flash_attn,
        cache: None,
    };
    let (mut flash, mut plain) = (layer(true), layer(false));
    // A prompt, then two tokens one after the other.
    for seq_len in [7, 1, 1] {
        let random = |seed, heads| numbers(seed, &[2, seq_len, heads * dim], DType::F32);
        let (q, k, v) = (
            random(1, heads)?,
            random(2, heads_kv)?,
            random(3, heads_kv)?,
        );
        let difference = (flash.forward(&q, &k, &v)? - plain.forward(&q, &k, &v)?)?;
        let largest = difference
            .abs()?
            .flatten_all()?
            .max(0)?
            .to_scalar::<f32>()?;
        // Two f32 computations of 9 keys at most, as tests/common derives it: 16 products of numbers below 1 and a scale of 1/4 make
        // scores of 4 at most; values are below 1.
        let unit = 2f32.powi(-24);
        let weight = unit * ((16.0 + 4.0) * 4.0 + 8.0 * 4.0 + 8.0);
        let limit = 2.0 * (2.0 * weight + 3.0 * (9.0 + 2.0) * unit);
        assert!(largest <= limit, "{largest:e} past {limit:e}");
    }
    Ok(())
}

/// As text-embeddings-inference calls it: sequences without padding, a window on both sides, ALiBi.
#[test]
fn sequences_without_padding() -> Result<()> {
    let random = |seed| numbers(seed, &[12, 4, 32], DType::F16)?.to_dtype(DType::F16);
    let (q, k, v) = (random(1)?, random(2)?, random(3)?);
    let cu_seqlens = Tensor::new(&[0u32, 5, 12], &Device::Cpu)?;
    let slopes = Tensor::new(&[0.5f32, 0.25, 0.125, 0.0625], &Device::Cpu)?;
    let all = candle_flash_attn::flash_attn_varlen_alibi_windowed(
        &q,
        &k,
        &v,
        &slopes,
        &cu_seqlens,
        &cu_seqlens,
        7,
        7,
        0.2,
        Some(3),
        Some(3),
    )?;
    for (first, length) in [(0, 5), (5, 7)] {
        let part = |x: &Tensor| x.narrow(0, first, length)?.unsqueeze(0);
        let alone = candle_flash_attn::flash_attn_alibi_windowed(
            &part(&q)?,
            &part(&k)?,
            &part(&v)?,
            &slopes,
            0.2,
            Some(3),
            Some(3),
        )?;
        let bits = |x: &Tensor| x.contiguous()?.flatten_all()?.to_vec1::<half::f16>();
        assert_eq!(bits(&part(&all)?)?, bits(&alone)?);
    }
    Ok(())
}

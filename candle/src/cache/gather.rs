//! Rows out of caches.

use candle_core::{DType, Result, Tensor};
use flashtile::{
    TensorLayout,
    cache::{GatherProblem, Place, Rows, Sequences, gather_cpu},
    serving::CacheLayout,
};

use super::place::{HALVES, PlaceNumbers, cache_type, page_table};
use crate::{
    error::{bad, from_flashtile},
    into::{Locked, Memory, check_writes, elsewhere, write_up_to_three},
    operands::{bytes, bytes_mut, ints, scale_numbers},
    problem::{INDICES, dense, dtype_of, expect, page_keys, scales, typed},
};

/// Keys and values of all sequences that are read from caches in pages.
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use flashtile_candle::CacheGather;
///
/// # fn main() -> candle_core::Result<()> {
/// // One sequence of three tokens, in pages 4 and 0 of two rows; elements are e4m3 codes, and mean half of what they are.
/// let cache = Tensor::full(0x38u8, (5, 2, 1, 8), &Device::Cpu)?; // 1.0
/// let (table, starts) = (Tensor::new(&[[4u32, 0]], &Device::Cpu)?, Tensor::new(&[0u32, 3], &Device::Cpu)?);
/// let half = Tensor::new(&[0.5f32], &Device::Cpu)?;
/// let (k, _) = CacheGather::new(&table, &starts).dtype(DType::F16).kv_scales(&half, &half).forward(&cache, &cache, 3)?;
/// assert_eq!(k.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?, 12.0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CacheGather {
    table: Tensor,
    seqlens: Tensor,
    dtype: Option<DType>,
    scales: Option<[Tensor; 2]>,
}

impl CacheGather {
    /// Sequence `b` has the rows `seqlens[b]..seqlens[b + 1]` of what is gathered, as in `flash_attn_varlen`, its keys being in the pages of
    /// row `b` of `block_table` ([batch, entries] of any strides); both u32 or i32.
    pub fn new(block_table: &Tensor, seqlens: &Tensor) -> Self {
        Self {
            table: block_table.clone(),
            seqlens: seqlens.clone(),
            dtype: None,
            scales: None,
        }
    }

    /// Type of what is gathered, f16 or bf16: that of the caches, unless they are e4m3 (f8e4m3, or u8: their codes).
    #[must_use]
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// What elements of e4m3 caches are multiplied by: as [`CacheAppend::kv_scales`](crate::CacheAppend::kv_scales), [batch, heads_kv] included.
    #[must_use]
    pub fn kv_scales(mut self, k_scale: &Tensor, v_scale: &Tensor) -> Self {
        self.scales = Some([k_scale.clone(), v_scale.clone()]);
        self
    }

    /// Keys and values, one sequence after the other: [tokens, heads_kv, head_dim] each. Rows past the last sequence are 0. `tokens` is how many
    /// rows there are: what `seqlens` ends with, or more.
    ///
    /// # Errors
    /// Names the argument that is wrong, what was expected and what was found; numbers only on the CPU.
    pub fn forward(
        &self,
        k_cache: &Tensor,
        v_cache: &Tensor,
        tokens: usize,
    ) -> Result<(Tensor, Tensor)> {
        let dtype = match (self.dtype, k_cache.dtype()) {
            (Some(dtype), _) if HALVES.contains(&dtype) => dtype,
            (None, dtype) if HALVES.contains(&dtype) => dtype,
            (Some(dtype), _) => return Err(bad("dtype", "f16 or bf16", dtype.as_str())),
            (None, DType::F8E4M3 | DType::U8) => {
                return Err(bad(
                    "dtype",
                    "f16 or bf16, which rows of e4m3 caches become",
                    "none",
                ));
            }
            (None, _) => {
                typed("k_cache", k_cache, &HALVES)?;
                k_cache.dtype()
            }
        };
        let kv_dtype = cache_type(dtype, k_cache, v_cache)?;
        let (block_table, seqlens) = (&self.table, &self.seqlens);
        let batch = crate::problem::sequences("seqlens", seqlens)?;
        expect("seqlens", seqlens, &[batch + 1], &INDICES)?;
        let rows = |cache: CacheLayout| Rows {
            tensor: TensorLayout::contiguous([1, tokens, cache.shape[2], cache.shape[3]]),
            cache,
        };
        let k = rows(page_keys("k_cache", k_cache.layout())?);
        let v = rows(CacheLayout::from_tensor(dense(
            "v_cache",
            v_cache.layout(),
        )?));
        let problem = GatherProblem {
            dtype: dtype_of(dtype),
            kv_dtype,
            kv_scales: scales(self.scales.as_ref(), Some(batch), k.tensor.shape[2])?,
            k,
            v: Some(v),
            place: Place::Sequences(Sequences {
                batch,
                starts: true,
                used: false,
                first: false,
                pages: Some(page_table(block_table, batch)?),
            }),
        };
        let mut reads = vec![
            ("k_cache", k_cache),
            ("v_cache", v_cache),
            ("block_table", block_table),
            ("seqlens", seqlens),
        ];
        if let Some([k_scale, v_scale]) = &self.scales {
            reads.extend([("k_scale", k_scale), ("v_scale", v_scale)]);
        }
        check_writes(&[], &reads)?;
        let empty = |rows: &Rows| {
            let [_, tokens, heads, dim] = rows.tensor.shape;
            Tensor::zeros((tokens, heads, dim), dtype, k_cache.device())
        };
        let (k_out, v_out) = (empty(&k)?, empty(&v)?);
        if tokens == 0 {
            return Ok((k_out, v_out));
        }
        let written = [Some(&k_out), Some(&v_out), None];
        write_up_to_three(written, &mut |memory| match memory {
            [Some(Memory::Cpu(to)), Some(Memory::Cpu(to_v)), _] => {
                let numbers = PlaceNumbers {
                    starts: ints("seqlens", seqlens, batch + 1)?,
                    table: ints("block_table", block_table, usize::MAX)?,
                    ..PlaceNumbers::default()
                };
                let locked = Locked::new(&[k_cache, v_cache]);
                let caches = [
                    bytes("k_cache", locked.cpu("k_cache", 0)?, k_cache.layout())?,
                    bytes("v_cache", locked.cpu("v_cache", 1)?, v_cache.layout())?,
                ];
                let [k_scale, v_scale] = scale_numbers(self.scales.as_ref())?;
                let [k, v] = gather_cpu(&problem, &numbers.data(), caches, [&k_scale, &v_scale])
                    .map_err(from_flashtile)?;
                bytes_mut("k", to, k_out.layout())?[..k.len()].copy_from_slice(&k);
                bytes_mut("v", to_v, v_out.layout())?[..v.len()].copy_from_slice(&v);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            [Some(Memory::Cuda(to)), Some(Memory::Cuda(to_v)), _] => crate::cuda::gather(
                &problem,
                &reads,
                vec![("k", to, k_out.layout()), ("v", to_v, v_out.layout())],
            ),
            _ => Err(elsewhere("v_cache")),
        })?;
        Ok((k_out, v_out))
    }
}

/// [`CacheGather`] from caches of f16 or bf16.
///
/// # Errors
/// As [`CacheGather::forward`].
pub fn gather_cache(
    k_cache: &Tensor,
    v_cache: &Tensor,
    block_table: &Tensor,
    seqlens: &Tensor,
    tokens: usize,
) -> Result<(Tensor, Tensor)> {
    CacheGather::new(block_table, seqlens).forward(k_cache, v_cache, tokens)
}

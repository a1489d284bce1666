//! New rows into caches.

use candle_core::{DType, Result, Tensor};
use flashtile::{
    cache::{
        AppendProblem, CacheData, IndexType, Place, QueryRows, Rotary, RotaryPairs, RotaryTable,
        Rows, TableType, append_cpu,
    },
    serving::CacheLayout,
};

use super::place::{HALVES, PlaceNumbers, Tokens, cache_type, count};
use crate::{
    error::{bad, from_flashtile},
    into::{Locked, Memory, Named, check_writes, elsewhere, write_up_to_three},
    operands::{bytes, bytes_mut, longs, scale_numbers},
    problem::{dense, dtype_of, page_keys, queries, scales, strides, typed},
};

/// New keys and values that go into a cache, where slots or tables of pages say; on the way, keys and queries may be turned by a rotary
/// position embedding.
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use flashtile_candle::CacheAppend;
///
/// # fn main() -> candle_core::Result<()> {
/// // Three tokens of two heads, into pages of four rows: slot 9 is row 1 of page 2; -1 is none.
/// let k = Tensor::ones((3, 2, 16), DType::F16, &Device::Cpu)?;
/// let k_cache = Tensor::zeros((5, 4, 2, 16), DType::F16, &Device::Cpu)?;
/// let v_cache = k_cache.copy()?;
/// let slots = Tensor::new(&[9i64, -1, 0], &Device::Cpu)?;
/// CacheAppend::slots(&slots).forward(&k, &k, &k_cache, &v_cache)?;
/// assert_eq!(k_cache.to_dtype(DType::F32)?.sum((2, 3))?.get(2)?.to_vec1::<f32>()?, [0.0, 32.0, 0.0, 0.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CacheAppend {
    place: Tokens,
    scales: Option<[Tensor; 2]>,
    rotary: Option<(Tensor, Tensor, RotaryPairs)>,
    positions: Option<Tensor>,
}

impl CacheAppend {
    /// Each token has a slot, i64 and contiguous: slot `s` is row `s % rows` of block `s / rows`, and -1 is none. Keys are
    /// [tokens, heads_kv, head_dim] or [batch, seqlen, heads_kv, head_dim], values likewise.
    pub fn slots(slot_mapping: &Tensor) -> Self {
        Self::new(Tokens::Slots(slot_mapping.clone()))
    }

    /// Token `i` of sequence `b` becomes row `seqlens[b] + i`, `seqlens` (`[batch]`) being what the cache holds already, in pages by
    /// `block_table` ([batch, entries] of any strides); both u32 or i32. Keys are [batch, seqlen, heads_kv, head_dim], values likewise.
    pub fn pages(block_table: &Tensor, seqlens: &Tensor) -> Self {
        Self::new(Tokens::Pages {
            table: block_table.clone(),
            seqlens: seqlens.clone(),
            seqused: None,
        })
    }

    fn new(place: Tokens) -> Self {
        Self {
            place,
            scales: None,
            rotary: None,
            positions: None,
        }
    }

    /// Only the first `seqused[b]` tokens of sequence `b` count, `[batch]`, u32 or i32; with [`pages`](Self::pages).
    #[must_use]
    pub fn seqused(mut self, seqused: &Tensor) -> Self {
        if let Tokens::Pages { seqused: used, .. } = &mut self.place {
            *used = Some(seqused.clone());
        }
        self
    }

    /// Scales of e4m3 caches (f8e4m3, or u8: their codes): an element is divided by its scale and rounded to the nearest number, at most 448. f32,
    /// contiguous, positive and finite, `[1]` or `[heads_kv]`; with [`pages`](Self::pages) also [batch, heads_kv]. Without them they are 1.
    #[must_use]
    pub fn kv_scales(mut self, k_scale: &Tensor, v_scale: &Tensor) -> Self {
        self.scales = Some([k_scale.clone(), v_scale.clone()]);
        self
    }

    /// Turns keys, and queries if there are any. Tables [positions, rotary_dim / 2], f32 or of the keys' type, whose rows have no gaps. A token's
    /// position is its row in its sequence; with slots there must be [`positions`](Self::positions).
    #[must_use]
    pub fn rotary(mut self, cos: &Tensor, sin: &Tensor, pairs: RotaryPairs) -> Self {
        self.rotary = Some((cos.clone(), sin.clone(), pairs));
        self
    }

    /// Positions of the tokens, contiguous, i64, u32 or i32.
    #[must_use]
    pub fn positions(mut self, positions: &Tensor) -> Self {
        self.positions = Some(positions.clone());
        self
    }

    /// Writes keys and values into their caches.
    ///
    /// # Errors
    /// Names the argument that is wrong, what was expected and what was found. On the CPU that goes for numbers too: slots, lengths, tables
    /// and positions. On a GPU they are not looked at; tokens whose row the cache does not have are left out.
    pub fn forward(
        &self,
        k: &Tensor,
        v: &Tensor,
        k_cache: &Tensor,
        v_cache: &Tensor,
    ) -> Result<()> {
        self.run(k, v, [k_cache, v_cache], None)
    }

    /// The same, and returns the queries turned: [.., heads_q, head_dim], otherwise as the keys. Those of tokens that are left out are 0.
    ///
    /// # Errors
    /// As [`CacheAppend::forward`].
    pub fn forward_with_queries(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        k_cache: &Tensor,
        v_cache: &Tensor,
    ) -> Result<Tensor> {
        if self.rotary.is_none() {
            return Err(bad("q", "no queries without `rotary`", "some"));
        }
        let turned = Tensor::zeros(q.shape(), q.dtype(), q.device())?;
        self.run(k, v, [k_cache, v_cache], Some((q, &turned)))?;
        Ok(turned)
    }

    fn run(
        &self,
        k: &Tensor,
        v: &Tensor,
        [k_cache, v_cache]: [&Tensor; 2],
        q: Option<(&Tensor, &Tensor)>,
    ) -> Result<()> {
        let problem = self.problem(k, v, [k_cache, v_cache], q)?;
        let mut reads: Vec<Named<'_>> = vec![("k", k), ("v", v)];
        reads.extend(q.map(|(q, _)| ("q", q)));
        reads.extend(self.others());
        let written = [
            Some(("k_cache", k_cache)),
            Some(("v_cache", v_cache)),
            q.map(|(_, out)| ("q_out", out)),
        ];
        let outputs: Vec<_> = written.iter().flatten().copied().collect();
        check_writes(&outputs, &reads)?;
        if k.elem_count() == 0 {
            return Ok(());
        }
        write_up_to_three(
            written.map(|it| it.map(|(_, tensor)| tensor)),
            &mut |memory| match memory {
                [Some(Memory::Cpu(to)), Some(Memory::Cpu(to_v)), to_q] => {
                    let to = [
                        bytes_mut("k_cache", to, k_cache.layout())?,
                        bytes_mut("v_cache", to_v, v_cache.layout())?,
                    ];
                    let turned = self.on_cpu(&problem, [k, v], q.map(|(q, _)| q), to)?;
                    match (q, to_q) {
                        (Some((_, out)), Some(Memory::Cpu(to))) => {
                            bytes_mut("q_out", to, out.layout())?[..turned.len()]
                                .copy_from_slice(&turned);
                            Ok(())
                        }
                        (Some(_), _) => Err(elsewhere("q")),
                        (None, _) => Ok(()),
                    }
                }
                #[cfg(feature = "cuda")]
                [Some(Memory::Cuda(to)), Some(Memory::Cuda(to_v)), to_q] => {
                    let mut written = vec![
                        ("k_cache", to, k_cache.layout()),
                        ("v_cache", to_v, v_cache.layout()),
                    ];
                    match (q, to_q) {
                        (Some((_, out)), Some(Memory::Cuda(to))) => {
                            written.push(("q_out", to, out.layout()));
                        }
                        (Some(_), _) => return Err(elsewhere("q")),
                        (None, _) => {}
                    }
                    crate::cuda::append(&problem, &reads, written)
                }
                _ => Err(elsewhere("v_cache")),
            },
        )
    }

    fn on_cpu(
        &self,
        problem: &AppendProblem,
        [k, v]: [&Tensor; 2],
        q: Option<&Tensor>,
        caches: [&mut [u8]; 2],
    ) -> Result<Vec<u8>> {
        let tables = self.rotary.as_ref().map(|(cos, sin, _)| [cos, sin]);
        let mut read = vec![k, v];
        read.extend(tables.into_iter().flatten());
        read.extend(q);
        let locked = Locked::new(&read);
        let of =
            |argument, at: usize| bytes(argument, locked.cpu(argument, at)?, read[at].layout());
        let numbers = PlaceNumbers::new(&self.place)?;
        let [k_scale, v_scale] = scale_numbers(self.scales.as_ref())?;
        let positions = self.positions.as_ref();
        let positions = positions.map(|it| longs("positions", it)).transpose()?;
        let data = CacheData {
            k: of("k", 0)?,
            v: of("v", 1)?,
            place: numbers.data(),
            k_scale: &k_scale,
            v_scale: &v_scale,
            cos: tables.map_or(Ok(&[][..]), |_| of("cos", 2))?,
            sin: tables.map_or(Ok(&[][..]), |_| of("sin", 3))?,
            positions: positions.as_deref().unwrap_or_default(),
            q: q.map_or(Ok(&[][..]), |_| of("q", read.len() - 1))?,
        };
        append_cpu(problem, &data, caches).map_err(from_flashtile)
    }

    /// Every tensor beside keys, values and queries, with its name.
    fn others(&self) -> impl Iterator<Item = Named<'_>> {
        let (slots, table, seqlens, seqused) = match &self.place {
            Tokens::Slots(slots) => (Some(slots), None, None, None),
            Tokens::Pages {
                table,
                seqlens,
                seqused,
            } => (None, Some(table), Some(seqlens), seqused.as_ref()),
        };
        [
            ("slot_mapping", slots),
            ("block_table", table),
            ("seqlens", seqlens),
            ("seqused", seqused),
            ("k_scale", self.scales.as_ref().map(|it| &it[0])),
            ("v_scale", self.scales.as_ref().map(|it| &it[1])),
            ("cos", self.rotary.as_ref().map(|it| &it.0)),
            ("sin", self.rotary.as_ref().map(|it| &it.1)),
            ("positions", self.positions.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, tensor)| Some((name, tensor?)))
    }

    fn problem(
        &self,
        k: &Tensor,
        v: &Tensor,
        [k_cache, v_cache]: [&Tensor; 2],
        q: Option<(&Tensor, &Tensor)>,
    ) -> Result<AppendProblem> {
        let dtype = k.dtype();
        typed("k", k, &HALVES)?;
        typed("v", v, &[dtype])?;
        let kv_dtype = cache_type(dtype, k_cache, v_cache)?;
        let rows =
            |argument, tensor: &Tensor| queries(argument, tensor.layout(), tensor.rank() == 3);
        let k = Rows {
            tensor: rows("k", k)?,
            cache: page_keys("k_cache", k_cache.layout())?,
        };
        let v = Rows {
            tensor: rows("v", v)?,
            cache: CacheLayout::from_tensor(dense("v_cache", v_cache.layout())?),
        };
        let [batch, seqlen, ..] = k.tensor.shape;
        let place = self.place.check(batch, batch * seqlen)?;
        let sequences = match &place {
            Place::Slots => None,
            Place::Sequences(sequences) => Some(sequences.batch),
        };
        let kv_scales = scales(self.scales.as_ref(), sequences, k.tensor.shape[2])?;
        let rotary = match &self.rotary {
            None => None,
            Some((cos, sin, pairs)) => {
                typed("cos", cos, &[DType::F32, dtype])?;
                expect_rows("cos", cos)?;
                typed("sin", sin, &[cos.dtype()])?;
                expect_rows("sin", sin)?;
                if sin.dims() != cos.dims() || sin.stride() != cos.stride() {
                    return Err(bad(
                        "sin",
                        format!(
                            "shape {:?} and strides {:?}, as cos",
                            cos.dims(),
                            cos.stride()
                        ),
                        format!("shape {:?} and strides {:?}", sin.dims(), sin.stride()),
                    ));
                }
                let [stride, _] = strides(cos.layout());
                Some(Rotary {
                    rotary_dim: cos.dims()[1].saturating_mul(2),
                    pairs: *pairs,
                    table: RotaryTable {
                        element: match cos.dtype() == dtype {
                            true => TableType::Same,
                            false => TableType::F32,
                        },
                        positions: cos.dims()[0],
                        stride,
                    },
                    positions: self.position_type(batch * seqlen)?,
                    queries: match q {
                        None => None,
                        Some((q, out)) => {
                            typed("q", q, &[dtype])?;
                            let (q, out) = (rows("q", q)?, rows("q_out", out)?);
                            Some(QueryRows { q, out })
                        }
                    },
                })
            }
        };
        Ok(AppendProblem {
            dtype: dtype_of(dtype),
            kv_dtype,
            kv_scales,
            k,
            v: Some(v),
            place,
            rotary,
        })
    }

    fn position_type(&self, tokens: usize) -> Result<Option<IndexType>> {
        let Some(positions) = &self.positions else {
            return Ok(None);
        };
        count("positions", positions, tokens)?;
        typed(
            "positions",
            positions,
            &[DType::I64, DType::U32, DType::I32],
        )?;
        Ok(Some(match positions.dtype() {
            DType::I64 => IndexType::I64,
            _ => IndexType::I32,
        }))
    }
}

/// Refuses what is not [positions, pairs] with rows without gaps.
fn expect_rows(argument: &str, tensor: &Tensor) -> Result<()> {
    match (tensor.dims(), tensor.stride()) {
        (&[_, pairs], &[_, stride]) if stride == 1 || pairs <= 1 => Ok(()),
        (dims, stride) => Err(bad(
            argument,
            "shape [positions, rotary_dim / 2], rows without gaps",
            format!("shape {dims:?}, strides {stride:?}"),
        )),
    }
}

/// [`CacheAppend::slots`] without rotary embedding, under the name that vLLM gave it.
///
/// # Errors
/// As [`CacheAppend::forward`].
pub fn reshape_and_cache(
    k: &Tensor,
    v: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    slot_mapping: &Tensor,
) -> Result<()> {
    CacheAppend::slots(slot_mapping).forward(k, v, k_cache, v_cache)
}

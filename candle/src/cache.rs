//! Caches of keys and values: new rows written into them, rows gathered from them, blocks copied.
//!
//! Caches are [blocks, rows, heads_kv, head_dim], of f16 or bf16 and of any strides; keys also [blocks, heads_kv, head_dim / x, rows, x],
//! as vLLM has them. They are written where they are: each has storage of its own.

use candle_core::{DType, Result, Tensor};
use flashtile::{
    TensorLayout,
    cache::{
        AppendProblem, BlocksLayout, CacheData, CopyProblem, GatherProblem, IndexType, Place,
        PlaceData, QueryRows, Rotary, RotaryPairs, RotaryTable, Rows, Sequences, TableType,
        append_cpu, copy_blocks_cpu, gather_cpu,
    },
    serving::{CacheLayout, PageTable},
};

use crate::{
    error::{bad, from_flashtile},
    into::{Locked, Memory, Named, check_writes, elsewhere, write_up_to_three},
    operands::{bytes, bytes_mut, ints, longs},
    problem::{INDICES, dense, dtype_of, expect, page_keys, queries, strides, typed},
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
    rotary: Option<(Tensor, Tensor, RotaryPairs)>,
    positions: Option<Tensor>,
}

/// Where tokens go.
#[derive(Clone, Debug)]
enum Tokens {
    Slots(Tensor),
    Pages {
        table: Tensor,
        seqlens: Tensor,
        seqused: Option<Tensor>,
    },
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
        let positions = self.positions.as_ref();
        let positions = positions.map(|it| longs("positions", it)).transpose()?;
        let data = CacheData {
            k: of("k", 0)?,
            v: of("v", 1)?,
            place: numbers.data(),
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
        for (argument, tensor) in [("v", v), ("k_cache", k_cache), ("v_cache", v_cache)] {
            typed(argument, tensor, &[dtype])?;
        }
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

const HALVES: [DType; 2] = [DType::F16, DType::BF16];

impl Tokens {
    fn check(&self, batch: usize, tokens: usize) -> Result<Place> {
        match self {
            Self::Slots(slots) => {
                count("slot_mapping", slots, tokens)?;
                typed("slot_mapping", slots, &[DType::I64])?;
                Ok(Place::Slots)
            }
            Self::Pages {
                table,
                seqlens,
                seqused,
            } => {
                expect("seqlens", seqlens, &[batch], &INDICES)?;
                if let Some(seqused) = seqused {
                    expect("seqused", seqused, &[batch], &INDICES)?;
                }
                Ok(Place::Sequences(Sequences {
                    batch,
                    starts: false,
                    used: seqused.is_some(),
                    first: true,
                    pages: Some(page_table(table, batch)?),
                }))
            }
        }
    }
}

/// A table [batch, entries].
fn page_table(table: &Tensor, batch: usize) -> Result<PageTable> {
    match table.dims() {
        &[rows, entries] if rows == batch => {
            typed("block_table", table, &INDICES)?;
            Ok(PageTable {
                entries,
                strides: strides(table.layout()),
            })
        }
        found => Err(bad(
            "block_table",
            format!("shape [{batch}, entries]"),
            format!("shape {found:?}"),
        )),
    }
}

/// Refuses another number of numbers, and gaps.
fn count(argument: &str, tensor: &Tensor, wanted: usize) -> Result<()> {
    match tensor.elem_count() == wanted && tensor.is_contiguous() {
        true => Ok(()),
        false => Err(bad(
            argument,
            format!("{wanted} numbers without gaps, one for each token"),
            format!("shape {:?}, strides {:?}", tensor.dims(), tensor.stride()),
        )),
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

/// Numbers that say where tokens go, in the host's memory.
#[derive(Default)]
struct PlaceNumbers {
    slots: Vec<i64>,
    starts: Vec<i32>,
    used: Vec<i32>,
    first: Vec<i32>,
    table: Vec<i32>,
}

impl PlaceNumbers {
    fn new(place: &Tokens) -> Result<Self> {
        match place {
            Tokens::Slots(slots) => Ok(Self {
                slots: longs("slot_mapping", slots)?,
                ..Self::default()
            }),
            Tokens::Pages {
                table,
                seqlens,
                seqused,
            } => Ok(Self {
                first: ints("seqlens", seqlens, seqlens.elem_count())?,
                used: match seqused {
                    Some(used) => ints("seqused", used, used.elem_count())?,
                    None => Vec::new(),
                },
                table: ints("block_table", table, usize::MAX)?,
                ..Self::default()
            }),
        }
    }

    fn data(&self) -> PlaceData<'_> {
        PlaceData {
            slots: &self.slots,
            starts: &self.starts,
            used: &self.used,
            first: &self.first,
            table: &self.table,
        }
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

/// Keys and values of all sequences, one after the other, from caches in pages: [tokens, heads_kv, head_dim] each. Sequence `b` has the rows
/// `seqlens[b]..seqlens[b + 1]` of them, as in `flash_attn_varlen`, its keys being in the pages of row `b` of `block_table`. Rows past the last
/// sequence are 0. `tokens` is how many rows there are: what `seqlens` ends with, or more.
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found; numbers only on the CPU.
pub fn gather_cache(
    k_cache: &Tensor,
    v_cache: &Tensor,
    block_table: &Tensor,
    seqlens: &Tensor,
    tokens: usize,
) -> Result<(Tensor, Tensor)> {
    let dtype = k_cache.dtype();
    typed("k_cache", k_cache, &HALVES)?;
    typed("v_cache", v_cache, &[dtype])?;
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
    let reads = [
        ("k_cache", k_cache),
        ("v_cache", v_cache),
        ("block_table", block_table),
        ("seqlens", seqlens),
    ];
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
            let [k, v] = gather_cpu(&problem, &numbers.data(), caches).map_err(from_flashtile)?;
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

/// Copies blocks within each of some caches: `pairs` is [n, 2], i64, u32 or i32, which block is read and which one it is written to. No block
/// is written twice, or both read and written. Caches are of any type, and their blocks (first dimension) have no gaps.
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found; numbers only on the CPU.
pub fn copy_blocks(caches: &[&Tensor], pairs: &Tensor) -> Result<()> {
    caches.iter().try_for_each(|cache| copy(None, cache, pairs))
}

/// Copies blocks from one cache to another on the same device: as [`copy_blocks`], whose `pairs` are here of a block of `src` and one of `dst`.
///
/// # Errors
/// As [`copy_blocks`].
pub fn swap_blocks(src: &Tensor, dst: &Tensor, pairs: &Tensor) -> Result<()> {
    copy(Some(src), dst, pairs)
}

fn copy(src: Option<&Tensor>, dst: &Tensor, pairs: &Tensor) -> Result<()> {
    let argument = src.map_or("cache", |_| "dst");
    let (blocks, block_bytes) = blocks(argument, dst)?;
    let count = match pairs.dims() {
        &[count, 2] if pairs.is_contiguous() => count,
        found => {
            return Err(bad(
                "pairs",
                "shape [pairs, 2] without gaps",
                format!("shape {found:?}"),
            ));
        }
    };
    typed("pairs", pairs, &[DType::I64, DType::U32, DType::I32])?;
    let mut problem = CopyProblem {
        pairs: count,
        index: match pairs.dtype() {
            DType::I64 => IndexType::I64,
            _ => IndexType::I32,
        },
        block_bytes,
        src: blocks,
        dst: blocks,
    };
    if let Some(src) = src {
        typed("src", src, &[dst.dtype()])?;
        let (blocks, bytes) = self::blocks("src", src)?;
        if bytes != block_bytes {
            return Err(bad(
                "src",
                format!("blocks of {block_bytes} bytes, as dst"),
                format!("blocks of {bytes}"),
            ));
        }
        problem.src = blocks;
    }
    let mut reads: Vec<Named<'_>> = vec![("pairs", pairs)];
    reads.extend(src.map(|src| ("src", src)));
    check_writes(&[(argument, dst)], &reads)?;
    if count == 0 || block_bytes == 0 {
        return Ok(());
    }
    write_up_to_three([Some(dst), None, None], &mut |memory| match memory {
        [Some(Memory::Cpu(to)), ..] => {
            let numbers = longs("pairs", pairs)?;
            let (pairs, _) = numbers.as_chunks::<2>();
            let tensors: Vec<_> = src.into_iter().collect();
            let locked = Locked::new(&tensors);
            let from = match src {
                Some(src) => Some(bytes("src", locked.cpu("src", 0)?, src.layout())?),
                None => None,
            };
            let to = bytes_mut(argument, to, dst.layout())?;
            copy_blocks_cpu(&problem, pairs, from, to).map_err(from_flashtile)
        }
        #[cfg(feature = "cuda")]
        [Some(Memory::Cuda(to)), ..] => {
            crate::cuda::copy_blocks(&problem, &reads, vec![("dst", to, dst.layout())])
        }
        _ => Err(elsewhere(argument)),
    })
}

/// A tensor's blocks without gaps, and the bytes of one.
fn blocks(argument: &str, tensor: &Tensor) -> Result<(BlocksLayout, usize)> {
    let refused = || {
        bad(
            argument,
            "blocks (of the first dimension) without gaps",
            format!("shape {:?}, strides {:?}", tensor.dims(), tensor.stride()),
        )
    };
    let [blocks, rest @ ..] = tensor.dims() else {
        return Err(refused());
    };
    let elements: usize = rest.iter().product();
    // In any order: the strides of what has more than one index are, sorted, the products of the smaller ones.
    let mut dims: Vec<_> = rest
        .iter()
        .zip(&tensor.stride()[1..])
        .filter(|(n, _)| **n > 1)
        .collect();
    dims.sort_unstable_by_key(|(_, stride)| **stride);
    let mut product = 1;
    for (n, stride) in dims {
        if *stride != product {
            return Err(refused());
        }
        product *= n;
    }
    let size = tensor.dtype().size_in_bytes();
    let stride = tensor.stride()[0].saturating_mul(size);
    let layout = BlocksLayout {
        blocks: *blocks,
        stride: i64::try_from(stride).unwrap_or(i64::MAX),
    };
    Ok((layout, elements * size))
}

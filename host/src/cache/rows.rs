//! What appending and gathering have in common: checks, and the parameters.

use flashtile_abi::{
    DType, Divisor, RowsParams,
    cache::{RotaryView, THREADS, flags, row_units},
    serving::{Lengths, Pages},
};

use super::{
    address::{address, cache_in_pieces, expect, in_pieces, numbers, whole_units},
    plan::{MAX_GRID, RowsPointers},
    problem::{IndexType, Place, Rotary, RotaryPairs, Rows, Sequences},
};
use crate::{
    error::{Error, Result},
    layout::TensorLayout,
    plan::view,
    serving::{CacheLayout, cache_view},
};

/// The rows of a problem.
pub(super) struct Moved<'a> {
    pub dtype: DType,
    pub k: &'a Rows,
    pub v: Option<&'a Rows>,
    pub place: &'a Place,
}

impl Moved<'_> {
    fn sides(&self) -> impl Iterator<Item = ([&'static str; 2], &Rows)> {
        let v = self.v.map(|v| (["v", "v_cache"], v));
        [(["k", "k_cache"], self.k)].into_iter().chain(v)
    }

    pub(super) fn check(&self) -> Result<()> {
        if !matches!(self.dtype, DType::F16 | DType::Bf16) {
            return Err(Error::bad("dtype", "f16 or bf16", self.dtype.as_str()));
        }
        let element = self.dtype.bytes();
        let [batch, rows, heads, _] = self.k.tensor.shape;
        let [blocks, block_rows, ..] = self.k.cache.shape;
        for ([argument, cache], side) in self.sides() {
            let dim = side.tensor.shape[3];
            if heads == 0 || dim == 0 {
                return Err(Error::bad(
                    argument,
                    "at least one head, of at least one element",
                    format!("shape {:?}", side.tensor.shape),
                ));
            }
            expect(argument, side.tensor.shape, [batch, rows, heads, dim])?;
            expect(cache, side.cache.shape, [blocks, block_rows, heads, dim])?;
            side.tensor.check(argument, element)?;
            side.cache.check(cache, element)?;
        }
        check_block_counts(&self.k.cache)?;
        match self.place {
            Place::Slots => {
                let slots = blocks as u64 * block_rows as u64;
                if slots > MAX_GRID {
                    return Err(Error::bad(
                        "k_cache",
                        format!("at most {MAX_GRID} slots"),
                        format!("{slots}, in blocks of {block_rows}"),
                    ));
                }
                Ok(())
            }
            Place::Sequences(sequences) => sequences.check(batch, blocks),
        }
    }

    pub(super) fn tokens(&self) -> Result<u64> {
        let [batch, rows, ..] = self.k.tensor.shape;
        let tokens = (batch as u64).checked_mul(rows as u64);
        tokens.filter(|&n| n <= MAX_GRID).ok_or_else(|| {
            let shape = self.k.tensor.shape;
            Error::bad(
                "k",
                format!("at most {MAX_GRID} tokens"),
                format!("shape {shape:?}"),
            )
        })
    }

    /// The parameters without addresses, and without the flags that depend on them.
    pub(super) fn params(&self, rotary: Option<&Rotary>) -> Result<RowsParams> {
        let element = self.dtype.bytes();
        let [_, rows, heads_kv, dim] = self.k.tensor.shape;
        let [blocks, block_rows, ..] = self.k.cache.shape;
        let tokens = self.tokens()?;
        let small = |argument, n: usize| {
            let small = u32::try_from(n).ok().filter(|&n| n <= 1 << 24);
            small.ok_or_else(|| {
                Error::bad(
                    argument,
                    "at most 2^24 heads and elements of a row",
                    n.to_string(),
                )
            })
        };
        let [heads_kv, head_dim_qk] = [small("k", heads_kv)?, small("k", dim)?];
        let (heads_v, head_dim_v) = match self.v {
            Some(v) => (heads_kv, small("v", v.tensor.shape[3])?),
            None => (0, 0),
        };
        let queries = rotary.and_then(|rotary| rotary.queries);
        let heads_q = match &queries {
            Some(queries) => small("q", queries.q.shape[2])?,
            None => 0,
        };
        let pairs = rotary.map_or(0, |rotary| rotary.rotary_dim as u32 / 2);
        let (key_units, value_units) = (row_units(head_dim_qk, pairs), row_units(head_dim_v, 0));
        let units = u64::from(heads_kv) * u64::from(key_units)
            + u64::from(heads_v) * u64::from(value_units)
            + u64::from(heads_q) * u64::from(key_units);
        if units > MAX_GRID {
            return Err(Error::bad(
                "k",
                format!("at most {MAX_GRID} units of 16 bytes of a token"),
                units.to_string(),
            ));
        }
        let mut params = RowsParams {
            k: view(&self.k.tensor, element),
            k_cache: cache_view("k_cache", &self.k.cache, element)?,
            lengths: Lengths {
                tokens: tokens as i32,
                longest: tokens as i32,
                ..Lengths::default()
            },
            pages: Pages {
                page: Divisor::new(block_rows as u32),
                blocks: blocks as u32,
                ..Pages::default()
            },
            rows: Divisor::new(rows as u32),
            parts: Divisor::new(units.div_ceil(u64::from(THREADS)) as u32),
            key_units: Divisor::new(key_units),
            value_units: Divisor::new(value_units),
            heads_q,
            heads_kv,
            heads_v,
            head_dim_qk,
            head_dim_v,
            // Without pages: what a block holds; with slots, all blocks, which a check has counted.
            capacity: match self.place {
                Place::Slots => blocks as u32 * block_rows as u32,
                Place::Sequences(_) => block_rows as u32,
            },
            ..RowsParams::default()
        };
        if let Some(v) = self.v {
            params.v = view(&v.tensor, element);
            params.v_cache = cache_view("v_cache", &v.cache, element)?;
        }
        if let Place::Sequences(sequences) = self.place {
            params.batch = sequences.batch as u32;
            if let Some(table) = &sequences.pages {
                params.pages.sequence_stride = table.strides[0].wrapping_mul(4);
                params.pages.entry_stride = table.strides[1].wrapping_mul(4);
                let capacity = (table.entries as u64).saturating_mul(block_rows as u64);
                params.capacity = capacity.min(MAX_GRID) as u32;
            }
        }
        if let Some(rotary) = rotary {
            let bytes = i64::from(rotary.table.element.of(self.dtype).bytes());
            params.rotary = RotaryView {
                row_stride: rotary.table.stride.wrapping_mul(bytes),
                table_rows: rotary.table.positions as u32,
                pairs,
                ..RotaryView::default()
            };
            if rotary.table.element.of(self.dtype) == DType::F32 {
                params.flags |= flags::TABLE_F32;
            }
            if rotary.pairs == RotaryPairs::Interleaved {
                params.flags |= flags::INTERLEAVED;
            }
            if rotary.positions == Some(IndexType::I64) {
                params.flags |= flags::POSITIONS_I64;
            }
            if let Some(queries) = &queries {
                params.q = view(&queries.q, element);
                params.q_out = view(&queries.out, element);
            }
        }
        Ok(params)
    }

    /// Fills in addresses, and the flags that depend on them.
    pub(super) fn addresses(&self, params: &mut RowsParams, pointers: &RowsPointers) -> Result<()> {
        let element = self.dtype.bytes();
        let none = Rows {
            tensor: TensorLayout::contiguous([0; 4]),
            cache: CacheLayout::contiguous([0; 4]),
        };
        let v = self.v.unwrap_or(&none);
        let turned = params.rotary.pairs;
        let of_tensor = |argument, layout: &TensorLayout, ptr, exists| {
            let (low, high) = layout.offsets().unwrap_or_default();
            address(argument, ptr, element, layout.is_empty(), exists, low, high)
        };
        let of_cache = |argument, layout: &CacheLayout, ptr, exists| {
            let (low, high) = layout.offsets().unwrap_or_default();
            address(argument, ptr, element, layout.is_empty(), exists, low, high)
        };
        of_tensor("k", &self.k.tensor, pointers.k, true)?;
        of_cache("k_cache", &self.k.cache, pointers.k_cache, true)?;
        of_tensor("v", &v.tensor, pointers.v, self.v.is_some())?;
        of_cache("v_cache", &v.cache, pointers.v_cache, self.v.is_some())?;
        params.k.ptr = pointers.k;
        params.v.ptr = pointers.v;
        params.k_cache.ptr = pointers.k_cache;
        params.v_cache.ptr = pointers.v_cache;
        let key_rows = whole_units(params.head_dim_qk, turned);
        let value_rows = whole_units(params.head_dim_v, 0);
        for (flag, pieces) in [
            (flags::K_PIECES, key_rows && in_pieces(&params.k)),
            (flags::V_PIECES, value_rows && in_pieces(&params.v)),
            (
                flags::K_CACHE_PIECES,
                key_rows && cache_in_pieces(&params.k_cache),
            ),
            (
                flags::V_CACHE_PIECES,
                value_rows && cache_in_pieces(&params.v_cache),
            ),
        ] {
            if pieces {
                params.flags |= flag;
            }
        }

        let tokens = i64::from(params.lengths.tokens);
        let (slots, sequences) = match self.place {
            Place::Slots => (true, None),
            Place::Sequences(sequences) => (false, Some(sequences)),
        };
        let has = |has: fn(&Sequences) -> bool| sequences.is_some_and(has);
        let batch = sequences.map_or(0, |it| it.batch as i64);
        numbers("slots", pointers.slots, 8, slots, tokens)?;
        numbers("starts", pointers.starts, 4, has(|it| it.starts), batch + 1)?;
        numbers("used", pointers.used, 4, has(|it| it.used), batch)?;
        numbers("first", pointers.first, 4, has(|it| it.first), batch)?;
        let table = sequences.and_then(|it| it.pages);
        let layout = table.as_ref().map(|table| table.tensor(batch as usize));
        let (low, high) = layout.and_then(|it| it.offsets()).unwrap_or_default();
        let empty = layout.is_none_or(|it| it.is_empty());
        address(
            "block_table",
            pointers.table,
            4,
            empty,
            table.is_some(),
            low,
            high,
        )?;
        params.slots = pointers.slots;
        params.lengths.starts = pointers.starts;
        params.lengths.used = pointers.used;
        params.first = pointers.first;
        params.pages.table = pointers.table;
        Ok(())
    }
}

impl Sequences {
    fn check(&self, batches: usize, blocks: usize) -> Result<()> {
        let expected = if self.starts { 1 } else { self.batch };
        if batches != expected {
            let why = match self.starts {
                true => "since sequences follow each other",
                false => "one for each sequence",
            };
            return Err(Error::bad(
                "k",
                format!("batch {expected}, {why}"),
                format!("batch {batches}"),
            ));
        }
        if self.batch as u64 >= MAX_GRID || (self.starts && self.batch == 0) {
            return Err(Error::bad(
                "batch",
                format!("1 to {} sequences", MAX_GRID - 1),
                self.batch.to_string(),
            ));
        }
        match &self.pages {
            Some(table) => table.tensor(self.batch).check("block_table", 4),
            None if blocks == self.batch => Ok(()),
            None => Err(Error::bad(
                "k_cache",
                format!(
                    "{} blocks, one for each sequence, since there are no pages",
                    self.batch
                ),
                format!("{blocks} blocks"),
            )),
        }
    }
}

/// Refuses blocks and rows that a kernel cannot count.
fn check_block_counts(cache: &CacheLayout) -> Result<()> {
    let [blocks, rows, ..] = cache.shape;
    if blocks as u64 > MAX_GRID || rows as u64 > MAX_GRID {
        return Err(Error::bad(
            "k_cache",
            format!("at most {MAX_GRID} blocks, and rows of a block"),
            format!("shape {:?}", cache.shape),
        ));
    }
    Ok(())
}

//! What appending and gathering have in common: checks, and the parameters.

use flashtile_abi::{
    DType, Divisor, RowsParams,
    cache::{RotaryView, THREADS, flags, row_units},
    serving::{Lengths, Pages},
};

use super::{
    address::{cache_in_pieces, expect, in_pieces, whole_units},
    plan::{MAX_GRID, RowsPointers},
    problem::{IndexType, Place, Rotary, RotaryPairs, Rows, Sequences},
};
use crate::{
    error::{Error, Result},
    extent::{Extent, check_address},
    plan::view,
    serving::{CacheLayout, CacheScales, cache_view},
};

/// The rows of a problem.
pub(super) struct Moved<'a> {
    pub dtype: DType,
    pub kv_dtype: DType,
    pub kv_scales: CacheScales,
    pub k: &'a Rows,
    pub v: Option<&'a Rows>,
    pub place: &'a Place,
}

/// Extents of a problem's tensors; none of those that it does not have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowsExtents {
    pub k: Extent,
    pub k_cache: Extent,
    pub v: Option<Extent>,
    pub v_cache: Option<Extent>,
    pub k_scale: Option<Extent>,
    pub v_scale: Option<Extent>,
    pub slots: Option<Extent>,
    pub starts: Option<Extent>,
    pub used: Option<Extent>,
    pub first: Option<Extent>,
    pub table: Option<Extent>,
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
        let narrow = self.kv_dtype == DType::E4m3;
        if self.kv_dtype != self.dtype && !narrow {
            return Err(Error::bad(
                "kv_dtype",
                format!("{}, as outside of the cache, or e4m3", self.dtype.as_str()),
                self.kv_dtype.as_str(),
            ));
        }
        let expected = match (self.kv_scales, self.place) {
            (CacheScales::None, _) => None,
            _ if !narrow => Some("no scales, since the caches are not e4m3"),
            (CacheScales::PerSequence, Place::Slots) => {
                Some("no scales of sequences, since slots say nothing of sequences")
            }
            _ => None,
        };
        if let Some(expected) = expected {
            let found = format!("{:?}", self.kv_scales);
            return Err(Error::bad("k_scale", expected, found));
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
            side.cache.check(cache, self.kv_dtype.bytes())?;
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
        let (element, kv_element) = (self.dtype.bytes(), self.kv_dtype.bytes());
        let scales = self.kv_scales.view(self.k.tensor.shape[2]);
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
            k_cache: cache_view("k_cache", &self.k.cache, kv_element)?,
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
            k_scale: scales,
            v_scale: scales,
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
            params.v_cache = cache_view("v_cache", &v.cache, kv_element)?;
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

    /// The problem has passed its checks.
    pub(super) fn extents(&self) -> RowsExtents {
        let (element, kv_element) = (self.dtype.bytes(), self.kv_dtype.bytes());
        let [batch, rows, heads, _] = self.k.tensor.shape;
        let scales = self.kv_scales.count(batch_of(self.place), heads);
        let scales = (scales > 0).then(|| Extent::numbers(scales, 4));
        let (slots, sequences) = match self.place {
            Place::Slots => (Some(Extent::numbers(batch * rows, 8)), None),
            Place::Sequences(sequences) => (None, Some(sequences)),
        };
        let numbers = |count: fn(&Sequences) -> Option<usize>| {
            let count = sequences.and_then(count)?;
            Some(Extent::numbers(count, 4))
        };
        RowsExtents {
            k: Extent::tensor(&self.k.tensor, element),
            k_cache: Extent::cache(&self.k.cache, kv_element),
            v: self.v.map(|v| Extent::tensor(&v.tensor, element)),
            v_cache: self.v.map(|v| Extent::cache(&v.cache, kv_element)),
            k_scale: scales,
            v_scale: scales.filter(|_| self.v.is_some()),
            slots,
            starts: numbers(|it| it.starts.then_some(it.batch + 1)),
            used: numbers(|it| it.used.then_some(it.batch)),
            first: numbers(|it| it.first.then_some(it.batch)),
            table: sequences.and_then(|it| {
                let table = it.pages?.tensor(it.batch);
                Some(Extent::tensor(&table, 4))
            }),
        }
    }

    /// Fills in addresses, and the flags that depend on them.
    pub(super) fn addresses(&self, params: &mut RowsParams, pointers: &RowsPointers) -> Result<()> {
        let has = self.extents();
        for (argument, extent, ptr) in [
            ("k", Some(has.k), pointers.k),
            ("k_cache", Some(has.k_cache), pointers.k_cache),
            ("v", has.v, pointers.v),
            ("v_cache", has.v_cache, pointers.v_cache),
            ("k_scale", has.k_scale, pointers.k_scale),
            ("v_scale", has.v_scale, pointers.v_scale),
            ("slots", has.slots, pointers.slots),
            ("starts", has.starts, pointers.starts),
            ("used", has.used, pointers.used),
            ("first", has.first, pointers.first),
            ("block_table", has.table, pointers.table),
        ] {
            check_address(argument, extent, ptr)?;
        }
        let turned = params.rotary.pairs;
        params.k.ptr = pointers.k;
        params.v.ptr = pointers.v;
        params.k_cache.ptr = pointers.k_cache;
        params.v_cache.ptr = pointers.v_cache;
        params.k_scale.ptr = pointers.k_scale;
        params.v_scale.ptr = pointers.v_scale;
        let kv_element = self.kv_dtype.bytes();
        let key_rows = whole_units(params.head_dim_qk, turned);
        let value_rows = whole_units(params.head_dim_v, 0);
        for (flag, pieces) in [
            (flags::K_PIECES, key_rows && in_pieces(&params.k)),
            (flags::V_PIECES, value_rows && in_pieces(&params.v)),
            (
                flags::K_CACHE_PIECES,
                key_rows && cache_in_pieces(&params.k_cache, kv_element),
            ),
            (
                flags::V_CACHE_PIECES,
                value_rows && cache_in_pieces(&params.v_cache, kv_element),
            ),
        ] {
            if pieces {
                params.flags |= flag;
            }
        }

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

/// Sequences that may have scales of their own.
fn batch_of(place: &Place) -> usize {
    match place {
        Place::Slots => 1,
        Place::Sequences(sequences) => sequences.batch,
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

//! From rows to a launch: checks, the grid, the parameters.

use flashtile_abi::{
    Arch, CacheVariant, CacheWork, DType, Divisor, RowsParams, TensorView,
    cache::{RotaryView, THREADS, cache_variants, flags, row_units},
    serving::{CacheView, Lengths, Pages},
};

use super::problem::{
    AppendProblem, GatherProblem, IndexType, Place, QueryRows, Rotary, RotaryPairs, RotaryTable,
    Rows, Sequences,
};
use crate::{
    device::{Device, DeviceInfo, LaunchConfig, Stream},
    error::{Error, Result},
    layout::TensorLayout,
    plan::{check_pointer, view},
    serving::{CacheLayout, cache_view},
};

/// Longest grid in x, and more than any count that a kernel divides.
pub(super) const MAX_GRID: u64 = (1 << 31) - 1;

/// Device addresses of rows and of what says where they go. Tensors' and caches' are those of element [0, 0, 0, 0]; what the problem does
/// not have is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowsPointers {
    /// Keys outside of the cache.
    pub k: u64,
    /// Values outside of the cache.
    pub v: u64,
    /// Keys in the cache.
    pub k_cache: u64,
    /// Values in the cache.
    pub v_cache: u64,
    /// `i64` by token: [`Place::Slots`].
    pub slots: u64,
    /// `i32[batch + 1]`: [`Sequences::starts`].
    pub starts: u64,
    /// `i32[batch]`: [`Sequences::used`].
    pub used: u64,
    /// `i32[batch]`: [`Sequences::first`].
    pub first: u64,
    /// `i32` or `u32` [batch, entries]: [`Sequences::pages`].
    pub table: u64,
}

/// Device addresses of what turns keys and queries; all 0 without [`AppendProblem::rotary`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RotaryPointers {
    /// Cosines, at position 0.
    pub cos: u64,
    /// Sines, at position 0.
    pub sin: u64,
    /// Positions by token: [`Rotary::positions`].
    pub positions: u64,
    /// Queries: [`Rotary::queries`].
    pub q: u64,
    /// Where they go.
    pub q_out: u64,
}

/// How new rows go into a cache, decided once for every launch of the same problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AppendPlan {
    problem: AppendProblem,
    rows: RowsPlan,
}

/// How rows are read from a cache, decided once for every launch of the same problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatherPlan {
    problem: GatherProblem,
    rows: RowsPlan,
}

impl AppendProblem {
    /// Checks the problem. Touches no device.
    ///
    /// # Errors
    /// [`Error::BadInput`] names the argument that is wrong; [`Error::NoDevice`] a device that cannot run the kernels.
    pub fn plan(&self, device: &DeviceInfo) -> Result<AppendPlan> {
        device.supports(Arch::Sm80)?;
        let moved = self.moved();
        moved.check()?;
        self.k.cache.check_distinct("k_cache")?;
        if let Some(v) = &self.v {
            v.cache.check_distinct("v_cache")?;
        }
        if let Some(rotary) = &self.rotary {
            rotary.check(self)?;
        }
        let params = moved.params(self.rotary.as_ref())?;
        let rows = RowsPlan::new(params, moved.tokens()?, CacheWork::Append, self.dtype)?;
        Ok(AppendPlan {
            problem: *self,
            rows,
        })
    }

    fn moved(&self) -> Moved<'_> {
        Moved {
            dtype: self.dtype,
            k: &self.k,
            v: self.v.as_ref(),
            place: &self.place,
        }
    }
}

impl GatherProblem {
    /// Checks the problem. Touches no device.
    ///
    /// # Errors
    /// [`Error::BadInput`] names the argument that is wrong; [`Error::NoDevice`] a device that cannot run the kernels.
    pub fn plan(&self, device: &DeviceInfo) -> Result<GatherPlan> {
        device.supports(Arch::Sm80)?;
        let moved = self.moved();
        moved.check()?;
        self.k.tensor.check_distinct("k")?;
        if let Some(v) = &self.v {
            v.tensor.check_distinct("v")?;
        }
        let params = moved.params(None)?;
        let rows = RowsPlan::new(params, moved.tokens()?, CacheWork::Gather, self.dtype)?;
        Ok(GatherPlan {
            problem: *self,
            rows,
        })
    }

    fn moved(&self) -> Moved<'_> {
        Moved {
            dtype: self.dtype,
            k: &self.k,
            v: self.v.as_ref(),
            place: &self.place,
        }
    }
}

impl AppendPlan {
    /// The problem.
    pub fn problem(&self) -> &AppendProblem {
        &self.problem
    }

    /// The kernel: for [`Device::load`].
    pub fn variant(&self) -> &'static CacheVariant {
        self.rows.variant
    }

    /// Grid and block.
    pub fn config(&self) -> &LaunchConfig {
        &self.rows.config
    }

    /// The kernel's parameters for these addresses.
    ///
    /// # Errors
    /// [`Error::BadInput`] for an address that is 0 although the problem has such a tensor, that is not 0 although it has none, that is no
    /// multiple of the element's size, or from which the tensor would leave the address space; for queries that overlap where they go.
    pub fn params(&self, rows: &RowsPointers, rotary: &RotaryPointers) -> Result<RowsParams> {
        let mut params = self.rows.params;
        self.problem.moved().addresses(&mut params, rows)?;
        rotary_addresses(&self.problem, &mut params, rotary)?;
        Ok(params)
    }

    /// Enqueues the kernel on a stream. Does not allocate and does not wait, so that the call can be captured in a CUDA graph (call
    /// [`Device::load`] beforehand).
    ///
    /// # Errors
    /// As [`AppendPlan::params`], and whatever the device says.
    ///
    /// # Safety
    /// Every address must be that of device memory which holds what the problem says, stays allocated until the kernel has finished, and is
    /// neither written (what the kernel reads) nor accessed at all (caches, the queries' output) by anything else meanwhile; caches overlap
    /// nothing else. `stream` must be a live stream of the device. What the memory holds does not matter.
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        rows: &RowsPointers,
        rotary: &RotaryPointers,
    ) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let params = self.params(rows, rotary)?;
        // SAFETY: the caller vouches for the addresses and the stream; the plan's geometry keeps the kernel within the tensors.
        unsafe { self.rows.launch(device, stream, &params) }
    }
}

impl GatherPlan {
    /// The problem.
    pub fn problem(&self) -> &GatherProblem {
        &self.problem
    }

    /// The kernel: for [`Device::load`].
    pub fn variant(&self) -> &'static CacheVariant {
        self.rows.variant
    }

    /// Grid and block.
    pub fn config(&self) -> &LaunchConfig {
        &self.rows.config
    }

    /// The kernel's parameters for these addresses.
    ///
    /// # Errors
    /// As [`AppendPlan::params`].
    pub fn params(&self, rows: &RowsPointers) -> Result<RowsParams> {
        let mut params = self.rows.params;
        self.problem.moved().addresses(&mut params, rows)?;
        Ok(params)
    }

    /// Enqueues the kernel on a stream. Does not allocate and does not wait, so that the call can be captured in a CUDA graph (call
    /// [`Device::load`] beforehand). Rows of the tensors that are no sequence's are left alone.
    ///
    /// # Errors
    /// As [`GatherPlan::params`], and whatever the device says.
    ///
    /// # Safety
    /// As [`AppendPlan::launch`], the tensors being what is written.
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        rows: &RowsPointers,
    ) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let params = self.params(rows)?;
        // SAFETY: the caller vouches for the addresses and the stream; the plan's geometry keeps the kernel within the tensors.
        unsafe { self.rows.launch(device, stream, &params) }
    }
}

/// A kernel for rows, and how it is launched.
#[derive(Clone, Copy, Debug, PartialEq)]
struct RowsPlan {
    variant: &'static CacheVariant,
    config: LaunchConfig,
    params: RowsParams,
}

impl RowsPlan {
    fn new(params: RowsParams, tokens: u64, work: CacheWork, dtype: DType) -> Result<Self> {
        let blocks = tokens * u64::from(params.parts.divisor);
        if blocks > MAX_GRID {
            return Err(Error::bad(
                "k",
                format!("at most {MAX_GRID} units of {THREADS} times 16 bytes over all tokens"),
                format!("{blocks}"),
            ));
        }
        let variant = variant(work, Some(dtype));
        Ok(Self {
            variant,
            config: config(variant, blocks as u32),
            params,
        })
    }

    fn is_empty(&self) -> bool {
        self.config.grid[0] == 0
    }

    /// # Safety
    /// As [`AppendPlan::launch`].
    unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        params: &RowsParams,
    ) -> Result<()> {
        // SAFETY: the caller's promise; the parameters are those of the variant's entry point.
        unsafe { device.launch(self.variant, &self.config, params.as_bytes(), stream) }
    }
}

/// The kernel for some work on elements of this type, or of any.
pub(super) fn variant(work: CacheWork, dtype: Option<DType>) -> &'static CacheVariant {
    let all = cache_variants();
    let fits = |it: &&CacheVariant| it.work == work && (it.dtype.is_none() || it.dtype == dtype);
    // The first is never taken: each work has a kernel of every type that plans let through.
    all.iter().find(fits).unwrap_or(&all[0])
}

/// A launch of so many blocks.
pub(super) fn config(variant: &CacheVariant, blocks: u32) -> LaunchConfig {
    LaunchConfig {
        grid: [blocks, 1, 1],
        block: [variant.threads, 1, 1],
        shared_bytes: variant.shared_bytes,
        cluster: 1,
    }
}

/// What appending and gathering have in common.
struct Moved<'a> {
    dtype: DType,
    k: &'a Rows,
    v: Option<&'a Rows>,
    place: &'a Place,
}

impl Moved<'_> {
    fn sides(&self) -> impl Iterator<Item = ([&'static str; 2], &Rows)> {
        let v = self.v.map(|v| (["v", "v_cache"], v));
        [(["k", "k_cache"], self.k)].into_iter().chain(v)
    }

    fn check(&self) -> Result<()> {
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

    fn tokens(&self) -> Result<u64> {
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
    fn params(&self, rotary: Option<&Rotary>) -> Result<RowsParams> {
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
            // Without sequences and without pages: what a block holds.
            capacity: block_rows as u32,
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
    fn addresses(&self, params: &mut RowsParams, pointers: &RowsPointers) -> Result<()> {
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

impl Rotary {
    fn check(&self, problem: &AppendProblem) -> Result<()> {
        let [batch, rows, _, head_dim] = problem.k.tensor.shape;
        let dim = self.rotary_dim;
        if dim == 0 || !dim.is_multiple_of(2) || dim > head_dim {
            return Err(Error::bad(
                "rotary_dim",
                format!("an even number from 2 to head_dim {head_dim}"),
                dim.to_string(),
            ));
        }
        if problem.place == Place::Slots && self.positions.is_none() {
            return Err(Error::bad(
                "positions",
                "positions of the tokens, which slots do not tell",
                "none",
            ));
        }
        if self.table.positions as u64 > MAX_GRID {
            return Err(Error::bad(
                "cos",
                format!("at most {MAX_GRID} positions"),
                self.table.positions.to_string(),
            ));
        }
        let element = self.table.element.of(problem.dtype).bytes();
        table_of_angles(&self.table, dim / 2).check("cos", element)?;
        if let Some(QueryRows { q, out }) = &self.queries {
            let heads = q.shape[2];
            if heads == 0 {
                return Err(Error::bad(
                    "q",
                    "at least one head",
                    format!("shape {:?}", q.shape),
                ));
            }
            for (argument, layout) in [("q", q), ("q_out", out)] {
                expect(argument, layout.shape, [batch, rows, heads, head_dim])?;
                layout.check(argument, problem.dtype.bytes())?;
            }
            out.check_distinct("q_out")?;
        }
        Ok(())
    }
}

fn rotary_addresses(
    problem: &AppendProblem,
    params: &mut RowsParams,
    pointers: &RotaryPointers,
) -> Result<()> {
    let rotary = problem.rotary.as_ref();
    let tokens = i64::from(params.lengths.tokens);
    let element = problem.dtype.bytes();
    for (argument, ptr) in [("cos", pointers.cos), ("sin", pointers.sin)] {
        let table = rotary.map(|it| (table_of_angles(&it.table, it.rotary_dim / 2), it.table));
        let bytes = table.map_or(4, |(_, it)| it.element.of(problem.dtype).bytes());
        let layout = table.map(|(layout, _)| layout);
        let (low, high) = layout.and_then(|it| it.offsets()).unwrap_or_default();
        let empty = layout.is_none_or(|it| it.is_empty());
        address(argument, ptr, bytes, empty, rotary.is_some(), low, high)?;
    }
    let index = rotary.and_then(|it| it.positions);
    let bytes = index.map_or(4, IndexType::bytes);
    numbers(
        "positions",
        pointers.positions,
        bytes,
        index.is_some(),
        tokens,
    )?;
    let queries = rotary.and_then(|it| it.queries);
    let mut ranges = [(0i128, 0i128); 2];
    for (range, (argument, layout, ptr)) in ranges.iter_mut().zip([
        ("q", queries.map(|it| it.q), pointers.q),
        ("q_out", queries.map(|it| it.out), pointers.q_out),
    ]) {
        let (low, high) = layout.and_then(|it| it.offsets()).unwrap_or_default();
        let empty = layout.is_none_or(|it| it.is_empty());
        address(argument, ptr, element, empty, queries.is_some(), low, high)?;
        if !empty {
            let at = |offset: i64| i128::from(ptr) + i128::from(offset) * i128::from(element);
            *range = (at(low), at(high) + i128::from(element));
        }
    }
    if let Some(QueryRows { q, out }) = queries {
        let in_place = pointers.q == pointers.q_out && same_elements(&q, &out);
        if !in_place && ranges[0].0 < ranges[1].1 && ranges[1].0 < ranges[0].1 {
            return Err(Error::bad(
                "q_out",
                "q's own memory in q's layout, or memory that does not overlap it",
                format!("address {:#x} beside {:#x}", pointers.q_out, pointers.q),
            ));
        }
    }
    params.rotary.cos = pointers.cos;
    params.rotary.sin = pointers.sin;
    params.rotary.positions = pointers.positions;
    params.q.ptr = pointers.q;
    params.q_out.ptr = pointers.q_out;
    let whole = whole_units(params.head_dim_qk, params.rotary.pairs);
    let table = [pointers.cos, pointers.sin, params.rotary.row_stride as u64];
    for (flag, pieces) in [
        (flags::Q_PIECES, whole && in_pieces(&params.q)),
        (flags::Q_OUT_PIECES, whole && in_pieces(&params.q_out)),
        (
            flags::TABLE_PIECES,
            params.rotary.pairs.is_multiple_of(8) && table.iter().all(|x| x.is_multiple_of(16)),
        ),
    ] {
        if pieces {
            params.flags |= flag;
        }
    }
    Ok(())
}

/// Whether two layouts of one shape have every element at the same offset.
fn same_elements(a: &TensorLayout, b: &TensorLayout) -> bool {
    (0..4).all(|dim| a.shape[dim] <= 1 || a.strides[dim] == b.strides[dim])
}

/// Whether all units of a row are eight elements that begin at a multiple of eight.
fn whole_units(head_dim: u32, pairs: u32) -> bool {
    head_dim.is_multiple_of(8) && pairs.is_multiple_of(8)
}

fn in_pieces(view: &TensorView) -> bool {
    let strides = [view.batch_stride, view.row_stride, view.head_stride];
    multiples_of_16(view.ptr, &strides)
}

fn cache_in_pieces(view: &CacheView) -> bool {
    let strides = [
        view.block_stride,
        view.row_stride,
        view.head_stride,
        view.chunk_stride,
    ];
    view.element_stride == 2 && multiples_of_16(view.ptr, &strides)
}

fn multiples_of_16(address: u64, strides: &[i64]) -> bool {
    address.is_multiple_of(16) && strides.iter().all(|stride| stride % 16 == 0)
}

/// A table of cosines or sines as a tensor.
pub(super) fn table_of_angles(table: &RotaryTable, pairs: usize) -> TensorLayout {
    TensorLayout {
        shape: [1, table.positions, 1, pairs],
        strides: [0, table.stride, 0, 1],
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

fn expect(argument: &'static str, found: [usize; 4], wanted: [usize; 4]) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::bad(
        argument,
        format!("shape {wanted:?}"),
        format!("shape {found:?}"),
    ))
}

/// Refuses an address from which a tensor cannot start, and one of a tensor that there is not.
fn address(
    argument: &'static str,
    ptr: u64,
    element_bytes: u32,
    is_empty: bool,
    exists: bool,
    low: i64,
    high: i64,
) -> Result<()> {
    if !exists && ptr != 0 {
        return Err(Error::bad(
            argument,
            "no address, since the problem has no such tensor",
            format!("{ptr:#x}"),
        ));
    }
    check_pointer(argument, is_empty || !exists, ptr, element_bytes, low, high)
}

/// As [`address`], of so many contiguous numbers.
pub(super) fn numbers(
    argument: &'static str,
    ptr: u64,
    bytes: u32,
    exists: bool,
    count: i64,
) -> Result<()> {
    let last = (count - 1).max(0);
    address(argument, ptr, bytes, count <= 0, exists, 0, last)
}

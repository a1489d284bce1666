//! From what the warps hold to outputs and log-sum-exps, whole or partial.

use super::config::{ServingConfig, ServingExt};
use super::kernel::State;
use super::latent;
use super::operands::Cached;
use super::place::Place;
use crate::attention::sm80::config::ConfigExt;
use crate::attention::sm80::epilogue::{out_room, store_staged};
use crate::attention::softmax::{self, RowStats, finite_max};
use crate::element::{Element, F32, Scalar};
use crate::ptx::{copy, math, special, sync};
use crate::tile::reg::{AccumTile, MAX_M_FRAGS, RowVec};
use core::f32::consts::{LN_2, LOG2_E};
use flashtile_abi::serving::flags;
use flashtile_abi::{DType, LseView, TensorView};

/// CTA barriers of [`finish`].
pub const fn barriers<C: ServingConfig>() -> u32 {
    if C::JOINS { 2 } else { C::ADDS_PARTS as u32 }
}

/// Writes the block's results.
#[inline(always)]
pub fn finish<C: ServingConfig>(place: &Place<'_>, mut state: State<C>) {
    softmax::reduce_sums::<C::Output>(&mut state.stats.sum);
    if C::ADDS_PARTS {
        latent::add_parts::<C>(place, &mut state.stats.sum);
    }
    let inverse_sum = softmax::inverse_sums::<C::Output>(&state.stats.sum);
    softmax::scale_rows(&mut state.out, &inverse_sum);
    if !matches!(C::Cached::DTYPE, DType::F16 | DType::Bf16) {
        C::Cached::pair_up(&mut state.out);
        let scale = place.cached_scale::<C>(&place.params.v_scale);
        softmax::scale_rows(&mut state.out, &[[scale; 2]; MAX_M_FRAGS]);
    }
    let factor = if place.is_careful() {
        C::Element::CAREFUL_FACTOR
    } else {
        1.0
    };
    let results = Results::new(place);
    if C::JOINS {
        let log2 = log2_sums(&state.stats, place.exponent_scale(), factor, 1);
        join::<C>(place, &results, &state.out, &log2);
    } else {
        let m_frags = C::Output::M_FRAGS;
        let log2 = log2_sums(&state.stats, place.exponent_scale(), factor, m_frags);
        store_rows::<C>(place, &results, &mut state.out, &log2);
    }
}

/// The same views, read now: the compiler would read them when the kernel starts, and they would take registers all the while.
#[inline(always)]
fn anew(out: &TensorView, lse: &LseView) -> (TensorView, LseView) {
    let number = |stride: i64| special::opaque_u64(stride as u64) as i64;
    let out = TensorView {
        ptr: special::opaque_u64(out.ptr),
        batch_stride: number(out.batch_stride),
        row_stride: number(out.row_stride),
        head_stride: number(out.head_stride),
    };
    let lse = LseView {
        ptr: special::opaque_u64(lse.ptr),
        batch_stride: number(lse.batch_stride),
        head_stride: number(lse.head_stride),
    };
    (out, lse)
}

/// Where a block's results go.
struct Results {
    out: TensorView,
    lse: LseView,
    /// Outputs are f32.
    wide: bool,
    /// They are a part of the keys' only.
    partial: bool,
}

impl Results {
    #[inline(always)]
    fn new(place: &Place<'_>) -> Self {
        let params = place.params;
        let partial = params.splits > 1;
        if partial {
            let (out, lse) = anew(&params.partial.out, &params.partial.lse);
            let split = place.split as i64;
            let out_skipped = split * params.partial.out_stride;
            let lse_skipped = split * params.partial.lse_stride;
            return Self {
                out: TensorView {
                    ptr: out.ptr.wrapping_add(out_skipped as u64),
                    ..out
                },
                lse: LseView {
                    ptr: lse.ptr.wrapping_add(lse_skipped as u64),
                    ..lse
                },
                wide: true,
                partial,
            };
        }
        let (out, lse) = anew(&params.out, &params.lse);
        Self {
            out,
            lse,
            wide: place.has(flags::OUT_F32),
            partial,
        }
    }

    /// Address of a packed row's output.
    #[inline(always)]
    fn row(&self, place: &Place<'_>, row: i32) -> u64 {
        let (query, head) = place.query_of(row);
        let offset = place.batch as i64 * self.out.batch_stride
            + (place.queries.first as i64 + query as i64) * self.out.row_stride
            + head as i64 * self.out.head_stride;
        self.out.ptr.wrapping_add(offset as u64)
    }

    /// Writes a packed row's log-sum-exp.
    #[inline(always)]
    fn store_lse(&self, place: &Place<'_>, row: i32, lse: f32) {
        if self.lse.ptr == 0 {
            return;
        }
        let (query, head) = place.query_of(row);
        let offset = place.batch as i64 * self.lse.batch_stride
            + head as i64 * self.lse.head_stride
            + (place.queries.first as i64 + query as i64) * 4;
        // SAFETY: the row exists, and the log-sum-exp is 4-byte aligned.
        unsafe { copy::st_global_u32(self.lse.ptr.wrapping_add(offset as u64), lse.to_bits()) };
    }
}

/// Base-2 logarithms of the rows' sums of exponentials: -inf without keys. The sums are reduced, and `factor` (a power of two) times
/// what they should be.
#[inline(always)]
fn log2_sums(stats: &RowStats, exponent_scale: f32, factor: f32, m_frags: usize) -> RowVec {
    let mut log2 = [[f32::NEG_INFINITY; 2]; MAX_M_FRAGS];
    for m in 0..m_frags {
        for half in 0..2 {
            let sum = stats.sum[m][half];
            if sum != 0.0 {
                let sum = math::lg2(sum * math::rcp(factor));
                log2[m][half] = math::fma(stats.max[m][half], exponent_scale, sum);
            }
        }
    }
    log2
}

/// Parts of a sum of exponentials, by their logarithms.
#[derive(Clone, Copy)]
pub struct Sum {
    /// The largest, finite.
    top: f32,
    /// Sum relative to it.
    sum: f32,
}

impl Sum {
    /// Of parts of which this is the largest. -inf is none.
    #[inline(always)]
    pub fn below(largest: f32) -> Self {
        Self {
            top: finite_max(largest),
            sum: 0.0,
        }
    }

    /// A part relative to the largest.
    #[inline(always)]
    fn relative(&self, log2: f32) -> f32 {
        math::ex2(math::min(log2, f32::MAX) - self.top)
    }

    /// Adds a part.
    #[inline(always)]
    pub fn add(&mut self, log2: f32) {
        self.sum += self.relative(log2);
    }

    /// A part's share of the whole: 0 if there is nothing.
    #[inline(always)]
    pub fn share(&self, log2: f32) -> f32 {
        if self.sum == 0.0 {
            0.0
        } else {
            self.relative(log2) * math::rcp(self.sum)
        }
    }

    /// The whole's natural logarithm.
    #[inline(always)]
    pub fn ln(&self) -> f32 {
        if self.sum == 0.0 {
            f32::NEG_INFINITY
        } else if self.top == f32::MAX {
            // Past f32's range.
            f32::INFINITY
        } else {
            (self.top + math::lg2(self.sum)) * LN_2
        }
    }

    /// As [`below`](Self::below), with this head's sink among the parts, if there are sinks.
    #[inline(always)]
    pub fn with_sink(largest: f32, sinks: u64, head: u32) -> Self {
        if sinks == 0 {
            return Self::below(largest);
        }
        // SAFETY: there is a sink for every query head, 4-byte aligned.
        let sink = unsafe { F32::load(sinks + head as u64 * 4) } * LOG2_E;
        let mut it = Self::below(math::max(largest, sink));
        it.add(sink);
        it
    }
}

/// Each warp's rows by themselves, or its columns of them.
#[inline(always)]
fn store_rows<C: ServingConfig>(
    place: &Place<'_>,
    results: &Results,
    out: &mut C::Output,
    log2: &RowVec,
) {
    let params = place.params;
    let mut share = [[1.0; 2]; MAX_M_FRAGS];
    for m in 0..C::Output::M_FRAGS {
        for half in 0..2 {
            let row = place.lane_row(m, half);
            if row >= place.rows() {
                continue;
            }
            let log2 = log2[m][half];
            let sinks = if results.partial { 0 } else { params.sink.ptr };
            let mut sum = Sum::with_sink(log2, sinks, place.query_of(row).1);
            sum.add(log2);
            share[m][half] = sum.share(log2);
            // One lane of the quad writes, of one of the warps that share the row.
            if place.lane.is_multiple_of(4) && place.part() == 0 {
                results.store_lse(place, row, sum.ln());
            }
        }
    }
    if params.sink.ptr != 0 {
        softmax::scale_rows(out, &share);
    }
    let begin = place.warp_row_begin();
    let (first_column, columns) = if C::LATENT {
        let width = C::TILE.warp_columns();
        let first = place.part() * width;
        (first, params.head_dim_v.saturating_sub(first).min(width))
    } else {
        (0, params.head_dim_v)
    };
    if results.wide {
        for m in 0..C::Output::M_FRAGS {
            for half in 0..2 {
                let row = place.lane_row(m, half);
                if row >= place.rows() {
                    continue;
                }
                let mut base = results.row(place, row) + first_column as u64 * 4;
                if C::TILE.v_splits > 1 {
                    // Opaque, or the compiler adds the first column to each of the others and keeps them.
                    base = special::opaque_u64(base);
                }
                for n in 0..C::Output::N_FRAGS {
                    for i in 0..2 {
                        let column = C::Cached::pair_column(n, place.lane) + i as u32;
                        if column < columns {
                            let dst = base.wrapping_add(column as u64 * 4);
                            // SAFETY: the element exists, 4-byte aligned.
                            unsafe { F32::store(dst, out.frag(m, n)[2 * half + i]) };
                        }
                    }
                }
            }
        }
        return;
    }
    // Over the warp's own queries, which all lanes must have read.
    sync::warp_sync();
    store_staged::<C>(
        out_room::<C>(place.smem, place.warp),
        place.lane,
        out,
        (place.rows() - begin).min(C::WARP_ROWS as i32),
        columns,
        place.has(flags::OUT_ALIGNED),
        |n| C::Cached::pair_column(n, place.lane),
        |row| {
            let first = first_column * C::TILE.dtype.bytes();
            results.row(place, begin + row as i32) + first as u64
        },
    );
}

/// Rows of a block whose warps share them.
const ROWS: u32 = 16;

/// Where warps leave their parts of the same rows: outputs f32 `[warps][ROWS][head_dim_v]` in the room of the keys and values, and
/// logarithms `[warps][ROWS]` in that of the queries.
struct Parts {
    outputs: u32,
    row_bytes: u32,
    logarithms: u32,
}

impl Parts {
    #[inline(always)]
    fn new<C: ServingConfig>(place: &Place<'_>) -> Self {
        let plan = C::TILE.shared();
        const {
            let fits = C::TILE.block_m == ROWS && C::TILE.warps * ROWS * 4 <= C::TILE.shared().k;
            // (Compiled for the others too, and never run.)
            assert!(fits || !C::JOINS);
        }
        Self {
            outputs: place.smem + plan.k,
            row_bytes: C::TILE.join_row_bytes(),
            logarithms: place.smem + plan.q,
        }
    }

    #[inline(always)]
    fn output(&self, warp: u32, row: u32, column: u32) -> u32 {
        self.outputs + (warp * ROWS + row) * self.row_bytes + column * 4
    }

    #[inline(always)]
    fn logarithm(&self, warp: u32, row: u32) -> u32 {
        self.logarithms + (warp * ROWS + row) * 4
    }
}

/// Joins the warps' parts of the same rows, in the order of warps. Each row has a few threads.
#[inline(always)]
fn join<C: ServingConfig>(place: &Place<'_>, results: &Results, out: &C::Output, log2: &RowVec) {
    let params = place.params;
    let parts = Parts::new::<C>(place);
    // Every warp is done with queries, keys and values.
    sync::cta_sync();
    for half in 0..2 {
        let row = 8 * half as u32 + place.lane / 4;
        if place.lane.is_multiple_of(4) {
            // SAFETY: inside the block's shared memory, 4-byte aligned.
            unsafe {
                copy::st_shared_u32(parts.logarithm(place.warp, row), log2[0][half].to_bits())
            };
        }
        for n in 0..C::Output::N_FRAGS {
            let frag = out.frag(0, n);
            let dst = parts.output(place.warp, row, C::Cached::pair_column(n, place.lane));
            let pair = [frag[2 * half].to_bits(), frag[2 * half + 1].to_bits()];
            // SAFETY: inside the block's shared memory, 8-byte aligned.
            unsafe { copy::st_shared_v2(dst, pair) };
        }
    }
    sync::cta_sync();

    let threads = C::TILE.threads() / ROWS;
    let (row, member) = (place.thread / threads, place.thread % threads);
    let packed = place.row_begin + row as i32;
    if packed >= place.rows() {
        return;
    }
    let logarithm = |warp: u32| {
        // SAFETY: inside the block's shared memory, 4-byte aligned.
        f32::from_bits(unsafe { copy::ld_shared_u32(parts.logarithm(warp, row)) })
    };
    let mut largest = f32::NEG_INFINITY;
    for warp in 0..C::TILE.warps {
        largest = math::max(largest, logarithm(warp));
    }
    let sinks = if results.partial { 0 } else { params.sink.ptr };
    let mut sum = Sum::with_sink(largest, sinks, place.query_of(packed).1);
    for warp in 0..C::TILE.warps {
        sum.add(logarithm(warp));
    }
    if member == 0 {
        results.store_lse(place, packed, sum.ln());
    }
    let base = results.row(place, packed);
    let element = if results.wide {
        4
    } else {
        C::TILE.dtype.bytes()
    };
    let whole = results.partial || place.has(flags::OUT_ALIGNED);
    let mut column = 4 * member;
    while column < params.head_dim_v {
        let mut values = [0.0; 4];
        for warp in 0..C::TILE.warps {
            let share = sum.share(logarithm(warp));
            // SAFETY: inside the block's shared memory, 16-byte aligned.
            let part = unsafe { copy::ld_shared_v4(parts.output(warp, row, column)) };
            for i in 0..4 {
                values[i] = math::fma(share, f32::from_bits(part[i]), values[i]);
            }
        }
        let dst = base.wrapping_add((column * element) as u64);
        // SAFETY: the elements exist; rows are 16-byte aligned where they are written whole.
        unsafe {
            if whole && column + 4 <= params.head_dim_v {
                if results.wide {
                    F32::store_four(dst, values);
                } else {
                    <C::Element as Scalar>::store_four(dst, values);
                }
            } else {
                for i in 0..4 {
                    if column + (i as u32) < params.head_dim_v {
                        let dst = dst.wrapping_add((i as u32 * element) as u64);
                        if results.wide {
                            F32::store(dst, values[i]);
                        } else {
                            <C::Element as Scalar>::store(dst, values[i]);
                        }
                    }
                }
            }
        }
        column += 4 * threads;
    }
}

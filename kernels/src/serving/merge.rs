//! Partial results over parts of the keys made one, by their log-sum-exps: `out = sum_p exp(lse_p - lse) out_p`,
//! `lse = ln sum_p exp(lse_p)` (FlashAttention-2's split-KV, arXiv:2307.08691, section 3.3; FlashInfer's merge of states).

use super::finish::Sum;
use super::place::Sequence;
use crate::element::{F32, Scalar};
use crate::ptx::math::div_rem;
use crate::ptx::{math, special, sync};
use core::f32::consts::LOG2_E;
use flashtile_abi::MergeParams;
use flashtile_abi::serving::{MERGE_ROWS, merge_flags};

/// CTA barriers in the kernel's code.
pub const BARRIERS: u32 = 0;

/// Runs the block: each warp makes one row.
#[inline(always)]
pub fn run<E: Scalar>(params: &MergeParams) {
    let thread = special::thread_idx();
    let (lane, warp) = (thread % 32, sync::broadcast(thread / 32));
    let (batch, block) = div_rem(special::block_idx(), params.row_blocks);
    let sequence = Sequence::new(&params.lengths, batch, false);
    let (token, head) = params.heads.div_rem(block * MERGE_ROWS + warp);
    if token as i32 >= sequence.len {
        return;
    }
    let token = sequence.first as i64 + token as i64;

    let parts = &params.parts;
    let lse = parts.lse.ptr.wrapping_add(
        (batch as i64 * parts.lse.batch_stride + head as i64 * parts.lse.head_stride + token * 4)
            as u64,
    );
    // Base-2 logarithm of a part's sum.
    let logarithm = |part: u32| {
        let address = lse.wrapping_add((part as i64 * parts.lse_stride) as u64);
        // SAFETY: there is one for each part and row, 4-byte aligned.
        unsafe { F32::load(address) * LOG2_E }
    };
    let mut largest = f32::NEG_INFINITY;
    for part in 0..special::opaque(params.count) {
        largest = math::max(largest, logarithm(part));
    }
    let mut sum = Sum::with_sink(largest, params.sink.ptr, head);
    for part in 0..special::opaque(params.count) {
        sum.add(logarithm(part));
    }
    if params.lse.ptr != 0 && lane == 0 {
        let offset = batch as i64 * params.lse.batch_stride
            + head as i64 * params.lse.head_stride
            + token * 4;
        // SAFETY: the row exists, 4-byte aligned.
        unsafe { F32::store(params.lse.ptr.wrapping_add(offset as u64), sum.ln()) };
    }

    let wide = params.flags & merge_flags::PARTS_F32 != 0;
    let part_bytes = if wide { 4 } else { E::BYTES };
    let source = parts.out.ptr.wrapping_add(
        (batch as i64 * parts.out.batch_stride
            + token * parts.out.row_stride
            + head as i64 * parts.out.head_stride) as u64,
    );
    let out_wide = params.flags & merge_flags::OUT_F32 != 0;
    let out_bytes = if out_wide { 4 } else { E::BYTES };
    let out = params.out.ptr.wrapping_add(
        (batch as i64 * params.out.batch_stride
            + token * params.out.row_stride
            + head as i64 * params.out.head_stride) as u64,
    );
    let mut column = lane;
    while column < params.head_dim {
        let mut value = 0.0;
        for part in 0..special::opaque(params.count) {
            let share = sum.share(logarithm(part));
            // What has no share may never have been written.
            if share != 0.0 {
                let src = source
                    .wrapping_add((part as i64 * parts.out_stride) as u64)
                    .wrapping_add((column * part_bytes) as u64);
                // SAFETY: the element exists, aligned to itself.
                let x = unsafe { if wide { F32::load(src) } else { E::load(src) } };
                value = math::fma(share, x, value);
            }
        }
        let dst = out.wrapping_add((column * out_bytes) as u64);
        // SAFETY: the element exists, aligned to itself.
        unsafe {
            if out_wide {
                F32::store(dst, value);
            } else {
                E::store(dst, value);
            }
        }
        column += 32;
    }
}

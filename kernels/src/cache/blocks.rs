//! Whole blocks from cache to cache (`copy_blocks`, `swap_blocks`).

use core::mem::offset_of;

use super::place::index;
use crate::ptx::{copy, special};
use flashtile_abi::BlocksParams;
use flashtile_abi::cache::{COPY_BYTES, CachePair, THREADS, flags};

/// Pieces of 16 bytes that a thread has under way.
const AT_ONCE: usize = (COPY_BYTES / THREADS / 16) as usize;

/// One thread's part. `address` is that of the parameters, in their own space.
#[inline(always)]
pub fn run(params: &BlocksParams, address: u64) {
    let (rest, part) = params.parts.div_rem(special::block_idx());
    let (cache, pair) = params.count.div_rem(rest);
    let wide = params.flags & flags::PAIRS_I64 != 0;
    let at = 2 * pair as u64;
    // SAFETY: there are two numbers for each pair.
    let (src, dst) = unsafe {
        (
            index(params.pairs, at, wide),
            index(params.pairs, at + 1, wide),
        )
    };
    // Negative ones are large here.
    if src as u64 >= params.src_blocks as u64 || dst as u64 >= params.dst_blocks as u64 {
        return;
    }
    let caches = address + offset_of!(BlocksParams, caches) as u64;
    let cache = caches + cache as u64 * size_of::<CachePair>() as u64;
    // SAFETY: the grid has no more caches than there are.
    let (src_cache, dst_cache) = unsafe {
        (
            copy::ld_param_u64(cache + offset_of!(CachePair, src) as u64),
            copy::ld_param_u64(cache + offset_of!(CachePair, dst) as u64),
        )
    };
    let begin = part as u64 * COPY_BYTES as u64;
    let from = src_cache.wrapping_add((src * params.src_stride) as u64) + begin;
    let to = dst_cache.wrapping_add((dst * params.dst_stride) as u64) + begin;
    // The part exists, so the difference is positive.
    let bytes = (params.block_bytes - begin).min(COPY_BYTES as u64) as u32;
    let thread = special::thread_idx();
    // SAFETY: both blocks exist and have these bytes.
    unsafe {
        if params.flags & flags::BLOCK_PIECES != 0 {
            let mut pieces = [[0; 4]; AT_ONCE];
            let offset = |i: usize| 16 * (thread + i as u32 * THREADS);
            for i in 0..AT_ONCE {
                if offset(i) < bytes {
                    pieces[i] = copy::ld_global_written_v4(from + offset(i) as u64);
                }
            }
            for i in 0..AT_ONCE {
                if offset(i) < bytes {
                    copy::st_global_v4(to + offset(i) as u64, pieces[i]);
                }
            }
        } else {
            let mut offset = thread;
            while offset < bytes {
                let byte = copy::ld_global_written_u8(from + offset as u64);
                copy::st_global_u8(to + offset as u64, byte);
                offset += THREADS;
            }
        }
    }
}

//! Where the elements of a row are, and up to eight of them in registers.

use super::place::Place;
use super::unit::{Codes, Unit};
use crate::ptx::copy;
use flashtile_abi::TensorView;
use flashtile_abi::cache::UNIT;
use flashtile_abi::serving::CacheView;

/// A row of elements in global memory: of 16 bits, or of 8.
#[derive(Clone, Copy)]
pub struct Row {
    /// Of element 0.
    address: u64,
    /// 2^chunk_log2 elements are a chunk: 16 bytes.
    chunk_log2: u32,
    chunk_stride: i64,
    element_stride: i64,
    /// All units of it are whole pieces, aligned to their size.
    pieces: bool,
}

impl Row {
    /// `tensor[batch, row, head, :]`
    #[inline(always)]
    pub fn of_tensor(tensor: &TensorView, batch: u32, row: u32, head: u32, pieces: bool) -> Self {
        let offset = batch as i64 * tensor.batch_stride
            + row as i64 * tensor.row_stride
            + head as i64 * tensor.head_stride;
        Self {
            address: tensor.ptr.wrapping_add(offset as u64),
            chunk_log2: 3,
            chunk_stride: 16,
            element_stride: 2,
            pieces,
        }
    }

    /// `cache[place.block, place.row, head, :]`, of elements of 8 bits if `narrow`.
    #[inline(always)]
    pub fn of_cache(
        cache: &CacheView,
        place: Place,
        head: u32,
        pieces: bool,
        narrow: bool,
    ) -> Self {
        let offset = place.block as i64 * cache.block_stride
            + place.row as i64 * cache.row_stride
            + head as i64 * cache.head_stride;
        Self {
            address: cache.ptr.wrapping_add(offset as u64),
            chunk_log2: if narrow { 4 } else { 3 },
            chunk_stride: cache.chunk_stride,
            element_stride: cache.element_stride,
            pieces,
        }
    }

    #[inline(always)]
    fn element(&self, at: u32) -> u64 {
        let (chunk, in_chunk) = (at >> self.chunk_log2, at & ((1 << self.chunk_log2) - 1));
        let offset = chunk as i64 * self.chunk_stride + in_chunk as i64 * self.element_stride;
        self.address.wrapping_add(offset as u64)
    }

    /// Elements `first..first + count` of 16 bits, one to eight; zeros after them.
    ///
    /// # Safety
    /// They exist and can be read; the launch's flags speak the truth.
    #[inline(always)]
    pub unsafe fn load(&self, first: u32, count: u32) -> Unit {
        if self.pieces {
            // SAFETY: the unit is a whole, aligned piece.
            return unsafe { copy::ld_global_written_v4(self.element(first)) };
        }
        let mut unit = [0; 4];
        for i in 0..UNIT {
            if i == 0 || i < count {
                // SAFETY: the caller's promise; elements are aligned.
                let element = unsafe { copy::ld_global_written_u16(self.element(first + i)) };
                unit[i as usize / 2] |= (element as u32) << (16 * (i % 2));
            }
        }
        unit
    }

    /// Overwrites elements `first..first + count` of 16 bits, one to eight.
    ///
    /// # Safety
    /// They exist and can be written; the launch's flags speak the truth.
    #[inline(always)]
    pub unsafe fn store(&self, first: u32, count: u32, unit: Unit) {
        if self.pieces {
            // SAFETY: the unit is a whole, aligned piece.
            return unsafe { copy::st_global_v4(self.element(first), unit) };
        }
        for i in 0..UNIT {
            if i == 0 || i < count {
                let element = (unit[i as usize / 2] >> (16 * (i % 2))) as u16;
                // SAFETY: the caller's promise; elements are aligned.
                unsafe { copy::st_global_u16(self.element(first + i), element) };
            }
        }
    }

    /// As [`Row::load`], of elements of 8 bits.
    ///
    /// # Safety
    /// As [`Row::load`].
    #[inline(always)]
    pub unsafe fn load_codes(&self, first: u32, count: u32) -> Codes {
        if self.pieces {
            // SAFETY: the unit is a whole, aligned piece.
            return unsafe { copy::ld_global_written_v2(self.element(first)) };
        }
        let mut codes = [0; 2];
        for i in 0..UNIT {
            if i == 0 || i < count {
                // SAFETY: the caller's promise.
                let code = unsafe { copy::ld_global_written_u8(self.element(first + i)) };
                codes[i as usize / 4] |= (code as u32) << (8 * (i % 4));
            }
        }
        codes
    }

    /// As [`Row::store`], of elements of 8 bits.
    ///
    /// # Safety
    /// As [`Row::store`].
    #[inline(always)]
    pub unsafe fn store_codes(&self, first: u32, count: u32, codes: Codes) {
        if self.pieces {
            // SAFETY: the unit is a whole, aligned piece.
            return unsafe { copy::st_global_v2(self.element(first), codes) };
        }
        for i in 0..UNIT {
            if i == 0 || i < count {
                let code = (codes[i as usize / 4] >> (8 * (i % 4))) as u16;
                // SAFETY: the caller's promise.
                unsafe { copy::st_global_u8(self.element(first + i), code) };
            }
        }
    }
}

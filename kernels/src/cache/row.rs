//! Where the elements of a row are, and up to eight of them in registers.

use crate::ptx::copy;
use flashtile_abi::TensorView;
use flashtile_abi::cache::UNIT;
use flashtile_abi::serving::CacheView;

/// Eight elements of 16 bits, in pairs.
pub type Unit = [u32; 4];

/// A row of 16-bit elements in global memory.
#[derive(Clone, Copy)]
pub struct Row {
    /// Of element 0.
    address: u64,
    chunk_stride: i64,
    element_stride: i64,
    /// All units of it are whole, aligned pieces of 16 bytes.
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
            chunk_stride: 16,
            element_stride: 2,
            pieces,
        }
    }

    /// `cache[block, row, head, :]`
    #[inline(always)]
    pub fn of_cache(cache: &CacheView, block: u32, row: u32, head: u32, pieces: bool) -> Self {
        let offset = block as i64 * cache.block_stride
            + row as i64 * cache.row_stride
            + head as i64 * cache.head_stride;
        Self {
            address: cache.ptr.wrapping_add(offset as u64),
            chunk_stride: cache.chunk_stride,
            element_stride: cache.element_stride,
            pieces,
        }
    }

    #[inline(always)]
    fn element(&self, at: u32) -> u64 {
        let offset =
            (at / UNIT) as i64 * self.chunk_stride + (at % UNIT) as i64 * self.element_stride;
        self.address.wrapping_add(offset as u64)
    }

    /// Elements `first..first + count`, one to eight; zeros after them.
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

    /// Overwrites elements `first..first + count`, one to eight.
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
}

//! Copies of tiles from global to shared memory, by all threads of a block together.
//!
//! Rows past the end of the tensor and columns past its head_dim arrive as zeros, so the kernels can
//! compute on whole tiles whatever the shape, and nothing outside the tensor is read.

use super::smem::{CHUNK, SmemTile};
use crate::ptx::{copy, special};
use flashtile_abi::TensorView;

/// What a copy moves, fixed at compile time.
#[derive(Clone, Copy)]
pub struct LoadShape {
    /// Rows of the tile.
    pub rows: u32,
    /// Bytes of a row of the tile.
    pub row_bytes: u32,
    /// Bytes of an element: 2 or 4.
    pub element: u32,
    /// Threads that copy.
    pub threads: u32,
}

impl LoadShape {
    /// Threads side by side on one row. Up to 8, so that a quarter warp reads whole 128-byte lines, and
    /// a divisor of the row's chunks, so that each thread keeps its column.
    pub(super) const fn lanes_per_row(self) -> u32 {
        if (self.row_bytes / CHUNK).is_multiple_of(8) {
            8
        } else {
            4
        }
    }

    pub(super) const fn rows_per_step(self) -> u32 {
        self.threads / self.lanes_per_row()
    }

    /// Rows that one thread copies.
    pub const fn row_steps(self) -> u32 {
        self.rows / self.rows_per_step()
    }

    pub(super) const fn column_steps(self) -> u32 {
        self.row_bytes / CHUNK / self.lanes_per_row()
    }
}

/// The copies of tiles of one tensor (one batch, one head). Uniform over the block: a thread's part is
/// derived from its index with each tile, which is cheaper than registers from tile to tile.
#[derive(Clone, Copy)]
pub struct TileLoader {
    shape: LoadShape,
    /// Global address of row 0.
    base: u64,
    row_stride: i64,
    /// Bytes of a row that exist.
    columns: u32,
    aligned: bool,
}

/// One thread's part in the copy of one tile.
struct Part {
    /// Shared address of the first chunk.
    dst: u32,
    /// Global address of the first chunk.
    src: u64,
    /// Rows from the first chunk's row to the end of the tensor; may be negative.
    rows: i32,
    /// Bytes from the first chunk to the end of head_dim; may be negative.
    columns: i32,
}

impl TileLoader {
    /// The loader of `tensor[batch, :, head, :head_dim]`. `aligned`: address and strides are multiples of 16.
    #[inline(always)]
    pub fn new(
        shape: LoadShape,
        tensor: &TensorView,
        batch: u32,
        head: u32,
        head_dim: u32,
        aligned: bool,
    ) -> Self {
        let offset = batch as i64 * tensor.batch_stride + head as i64 * tensor.head_stride;
        Self {
            shape,
            base: tensor.ptr.wrapping_add(offset as u64),
            row_stride: tensor.row_stride,
            columns: head_dim * shape.element,
            aligned,
        }
    }

    /// Starts `thread`'s part in the copy of rows `first_row..` of the tensor, which ends at `rows_end`,
    /// to `tile`. The tile is there once the thread's copies have been waited for and the block has met.
    #[inline(always)]
    pub fn load(&self, tile: SmemTile, thread: u32, first_row: i32, rows_end: i32) {
        let row = first_row + (thread / self.shape.lanes_per_row()) as i32;
        let column = thread % self.shape.lanes_per_row() * CHUNK;
        let part = Part {
            dst: self.dst(tile, thread),
            src: self
                .base
                .wrapping_add((row as i64 * self.row_stride) as u64)
                + column as u64,
            rows: rows_end - row,
            columns: self.columns as i32 - column as i32,
        };
        if self.aligned {
            self.copy_chunks(part);
        } else {
            self.copy_elements(part);
        }
    }

    /// Flips the sign of every element of the chunks that `thread` copied and waited for.
    #[inline(always)]
    pub fn negate(&self, tile: SmemTile, thread: u32) {
        let sign = if self.shape.element == 2 {
            0x8000_8000
        } else {
            0x8000_0000
        };
        let dst = self.dst(tile, thread);
        for i in 0..special::opaque(self.shape.row_steps()) {
            for j in 0..special::opaque(self.shape.column_steps()) {
                // SAFETY: the chunk is inside the tile, and this thread alone has touched it.
                unsafe {
                    let [a, b, c, d] = copy::ld_shared_v4(dst + self.step_offset(i, j));
                    let negated = [a ^ sign, b ^ sign, c ^ sign, d ^ sign];
                    copy::st_shared_v4(dst + self.step_offset(i, j), negated);
                }
            }
        }
    }

    /// Shared address of the thread's first chunk. Steps go down whole multiples of 8 rows and along
    /// whole multiples of the swizzle's span, which leave the swizzle as it is.
    #[inline(always)]
    fn dst(&self, tile: SmemTile, thread: u32) -> u32 {
        tile.chunk(
            thread / self.shape.lanes_per_row(),
            thread % self.shape.lanes_per_row(),
        )
    }

    #[inline(always)]
    fn step_offset(&self, row_step: u32, column_step: u32) -> u32 {
        row_step * self.shape.rows_per_step() * self.shape.row_bytes
            + column_step * self.shape.lanes_per_row() * CHUNK
    }

    #[inline(always)]
    fn copy_chunks(&self, part: Part) {
        let mut src = part.src;
        let step_stride = self.shape.rows_per_step() as i64 * self.row_stride;
        for i in 0..self.shape.row_steps() {
            let row_exists = ((i * self.shape.rows_per_step()) as i32) < part.rows;
            for j in 0..self.shape.column_steps() {
                let skipped = j * self.shape.lanes_per_row() * CHUNK;
                let exists = (part.columns - skipped as i32).clamp(0, CHUNK as i32) as u32;
                let bytes = if row_exists { exists } else { 0 };
                // SAFETY: dst is inside the tile; `bytes` bytes exist at src, which is 16-byte aligned
                // because the tensor's address and strides are.
                unsafe {
                    copy::cp_async_16(
                        part.dst + self.step_offset(i, j),
                        src + skipped as u64,
                        bytes,
                    )
                };
            }
            src = src.wrapping_add(step_stride as u64);
        }
    }

    /// For tensors that 16-byte copies can't address: element by element, through registers.
    #[inline(always)]
    fn copy_elements(&self, part: Part) {
        let mut src = part.src;
        let step_stride = self.shape.rows_per_step() as i64 * self.row_stride;
        for i in 0..special::opaque(self.shape.row_steps()) {
            let row_exists = ((i * self.shape.rows_per_step()) as i32) < part.rows;
            for j in 0..special::opaque(self.shape.column_steps()) {
                let skipped = j * self.shape.lanes_per_row() * CHUNK;
                let exists = if row_exists {
                    part.columns - skipped as i32
                } else {
                    0
                };
                let mut chunk = [0u32; 4];
                for w in 0..4 {
                    chunk[w] =
                        self.load_word(src + skipped as u64 + 4 * w as u64, exists - 4 * w as i32);
                }
                // SAFETY: the chunk is inside the tile.
                unsafe { copy::st_shared_v4(part.dst + self.step_offset(i, j), chunk) };
            }
            src = src.wrapping_add(step_stride as u64);
        }
    }

    /// The 4 bytes at `src`, of which `exists` exist.
    #[inline(always)]
    fn load_word(&self, src: u64, exists: i32) -> u32 {
        let mut word = 0;
        // SAFETY: each load is of an element that exists, and elements are aligned to their size.
        unsafe {
            if self.shape.element == 4 {
                if exists >= 4 {
                    word = copy::ld_global_u32(src);
                }
            } else {
                if exists >= 2 {
                    word = copy::ld_global_u16(src) as u32;
                }
                if exists >= 4 {
                    word |= (copy::ld_global_u16(src + 2) as u32) << 16;
                }
            }
        }
        word
    }
}

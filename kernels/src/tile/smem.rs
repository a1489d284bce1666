//! Swizzled tiles in shared memory.
//!
//! A row is cut into chunks of 16 bytes, the unit of `cp.async` and of an `ldmatrix` row. Chunk `c` of
//! row `r` lies where chunk `c ^ swizzle(r)` would: eight consecutive rows then put the same chunk into
//! eight different groups of four banks, so `ldmatrix` and row-wise copies are free of bank conflicts.

use crate::ptx::mma;

/// A tile of rows in shared memory.
#[derive(Clone, Copy)]
pub struct SmemTile {
    /// Shared address of row 0, a multiple of 128.
    pub base: u32,
    /// Bytes of a row: an odd multiple of 64, or a multiple of 128.
    pub row_bytes: u32,
}

/// Bytes of a chunk.
pub const CHUNK: u32 = 16;

impl SmemTile {
    /// Chunks that the swizzle permutes among themselves: 8 where rows fill whole 128-byte lines; 4
    /// where they fill an odd number of half lines (two rows then alternate between the halves).
    const fn span(self) -> u32 {
        if self.row_bytes.is_multiple_of(128) {
            8
        } else {
            4
        }
    }

    /// What is XORed to the chunk index in row `row`.
    #[inline(always)]
    const fn swizzle(self, row: u32) -> u32 {
        if self.row_bytes.is_multiple_of(128) {
            row & 7
        } else {
            (row >> 1) & 3
        }
    }

    /// Shared address of a chunk.
    #[inline(always)]
    pub const fn chunk(self, row: u32, chunk: u32) -> u32 {
        self.base + row * self.row_bytes + (chunk ^ self.swizzle(row)) * CHUNK
    }

    /// The lane's view for an `ldmatrix` whose four matrices are rows 0-7 and 8-15 of one chunk, then
    /// of the next: the A operand of Q * K^T, and (transposed) the B operand of P * V.
    #[inline(always)]
    pub fn rows_then_chunks(self, lane: u32) -> FragmentView {
        self.view(lane & 15, lane >> 4, 0)
    }

    /// The lane's view for an `ldmatrix` whose four matrices are a chunk and the next of rows 0-7, then
    /// of rows 8-15: the B operands of Q * K^T for 16 keys.
    #[inline(always)]
    pub fn chunks_then_rows(self, lane: u32) -> FragmentView {
        self.view((lane & 7) | (lane >> 4 << 3), (lane >> 3) & 1, 0)
    }

    /// The lane's view for an `ldmatrix` whose four matrices are four chunks of rows 0-7: the B operands of two steps of Q * K^T for 8
    /// keys. Fragments of it are at chunks that are multiples of 4.
    #[inline(always)]
    pub fn chunks(self, lane: u32) -> FragmentView {
        self.view(lane & 7, lane >> 3, 0)
    }

    /// The lane's view of its 8 bytes of 32 in row `lane / 4`: two chunks, of which lane `t` of a quad has the `t`th 8 bytes.
    #[inline(always)]
    pub fn eighths(self, lane: u32) -> FragmentView {
        self.view(lane / 4, lane % 4 / 2, lane % 2 * 8)
    }

    /// The lane's view of 32-bit word `word` (0 to 7) of two chunks, in row `row`.
    #[inline(always)]
    pub fn word(self, row: u32, word: u32) -> FragmentView {
        self.view(row, word / 4, word % 4 * 4)
    }

    #[inline(always)]
    fn view(self, row: u32, chunk: u32, byte: u32) -> FragmentView {
        FragmentView {
            lane_base: self.chunk(row, chunk) + byte,
            tile: self,
        }
    }
}

/// Where one lane finds its piece of every fragment of a tile.
#[derive(Clone, Copy)]
pub struct FragmentView {
    lane_base: u32,
    tile: SmemTile,
}

impl FragmentView {
    /// Shared address of the lane's piece of the fragment at `row` (a multiple of 8) and `chunk` (even).
    ///
    /// `lane_base` holds chunk bit 0 and the swizzle in address bits 4 to 6; an even chunk only flips
    /// bits 5 and 6, so the whole costs one XOR, and constants that the instruction's offset takes.
    #[inline(always)]
    pub fn address(&self, row: u32, chunk: u32) -> u32 {
        let span = self.tile.span();
        (self.lane_base ^ (chunk % span * CHUNK))
            + row * self.tile.row_bytes
            + chunk / span * span * CHUNK
    }

    /// The view of the columns from byte `bytes` of each row on, a multiple of 128.
    #[inline(always)]
    pub fn skip(self, bytes: u32) -> Self {
        Self {
            lane_base: self.lane_base + bytes,
            ..self
        }
    }

    /// `ldmatrix` of the fragment at `row` and `chunk`.
    #[inline(always)]
    pub fn ldmatrix(&self, row: u32, chunk: u32) -> [u32; 4] {
        mma::ldmatrix_x4(self.address(row, chunk))
    }
}

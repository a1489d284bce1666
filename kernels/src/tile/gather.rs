//! Copies of tiles whose rows are anywhere: in pages, in pieces, or apart.

use super::load::LoadShape;
use super::smem::{CHUNK, SmemTile};
use crate::ptx::{copy, special};
use flashtile_abi::serving::{CacheView, Pages};

/// Most rows that one thread copies of a tile.
pub const MAX_ROW_STEPS: usize = 4;

/// Entry of a row that is in no page, or past the end.
const NOWHERE: u32 = u32::MAX;

/// The rows of one sequence: which exist, and where.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The pages.
    pub pages: &'a Pages,
    /// Device address of the sequence's entries in the table.
    table: u64,
    /// Without pages: the sequence's first row in its block.
    first: i32,
    /// Rows that exist.
    pub count: i32,
}

/// The table's entries for a thread's rows of a tile, read ahead of the copy.
pub type Entries = [u32; MAX_ROW_STEPS];

impl<'a> Rows<'a> {
    /// The rows of sequence `batch`, `count` of them (not past what the table holds), the first at row `first` where there are no pages.
    #[inline(always)]
    pub fn new(pages: &'a Pages, batch: u32, first: i32, count: i32) -> Self {
        let offset = batch as i64 * pages.sequence_stride;
        Self {
            pages,
            table: pages.table.wrapping_add(offset as u64),
            first,
            count,
        }
    }

    #[inline(always)]
    fn paged(&self) -> bool {
        self.pages.table != 0
    }

    /// Row of the thread in a step.
    #[inline(always)]
    fn row(shape: LoadShape, thread: u32, first_row: i32, step: u32) -> i32 {
        first_row + (thread / shape.lanes_per_row() + step * shape.rows_per_step()) as i32
    }

    /// The table's entry for a row.
    #[inline(always)]
    pub fn entry(&self, row: i32) -> u32 {
        if !self.paged() {
            return 0;
        }
        if row >= self.count {
            return NOWHERE;
        }
        let (page, _) = self.pages.page.div_rem(row as u32);
        let offset = page as i64 * self.pages.entry_stride;
        // SAFETY: the sequence has an entry for the page of each of its rows, 4-byte aligned.
        unsafe { copy::ld_global_u32(self.table.wrapping_add(offset as u64)) }
    }

    /// Reads the entries for `thread`'s part of the tile that starts at row `first_row` (not negative).
    #[inline(always)]
    pub fn entries(&self, shape: LoadShape, thread: u32, first_row: i32) -> Entries {
        let mut entries = [0; MAX_ROW_STEPS];
        if self.paged() {
            for i in 0..shape.row_steps() {
                entries[i as usize] = self.entry(Self::row(shape, thread, first_row, i));
            }
        }
        entries
    }
}

/// The copies of one head's keys or values.
#[derive(Clone, Copy)]
pub struct Gather<'a> {
    shape: LoadShape,
    view: &'a CacheView,
    /// Global address of row 0 of block 0, or without pages of the sequence's block.
    base: u64,
    /// Bytes from a thread's piece of a row to its next one.
    pub stride: u64,
    /// Bytes of a row that exist.
    pub columns: u32,
    /// Pieces are contiguous, and aligned.
    pub aligned: bool,
}

impl<'a> Gather<'a> {
    /// Of `head`; without pages, of block `block`. `aligned`: pieces of 16 bytes are contiguous, and all addresses multiples of 16.
    #[inline(always)]
    pub fn new(
        shape: LoadShape,
        view: &'a CacheView,
        block: u32,
        head: u32,
        head_dim: u32,
        aligned: bool,
    ) -> Self {
        let offset = block as i64 * view.block_stride + head as i64 * view.head_stride;
        Self {
            shape,
            view,
            base: view.ptr.wrapping_add(offset as u64),
            stride: view.chunk_stride as u64 * shape.lanes_per_row() as u64,
            columns: head_dim * shape.element,
            aligned,
        }
    }

    /// Starts `thread`'s part in the copy of the tile that starts at row `first_row`. Rows that don't exist, or that no page holds,
    /// arrive as zeros. `entries` are those of these rows.
    #[inline(always)]
    pub fn load(
        &self,
        rows: &Rows<'_>,
        entries: &Entries,
        tile: SmemTile,
        thread: u32,
        first_row: i32,
    ) {
        let shape = self.shape;
        let lane = thread % shape.lanes_per_row();
        let tile_row = thread / shape.lanes_per_row();
        // Where the thread's first piece of a step's row goes: the swizzle may differ from step to step.
        let dst = |i: u32| tile.chunk(tile_row + i * shape.rows_per_step(), lane);
        if self.aligned {
            for i in 0..shape.row_steps() {
                let row = Rows::row(shape, thread, first_row, i);
                let (src, exists) = self.source(rows, row, entries[i as usize]);
                let mut piece = self.piece(src, exists, lane);
                for j in 0..shape.column_steps() {
                    // SAFETY: the destination is inside the tile; the source has so many bytes and is 16-byte aligned.
                    unsafe { copy::cp_async_16(dst(i) + self.step(j), piece.src, piece.bytes) };
                    // From piece to piece: distances from the first would be products, kept in registers from tile to tile.
                    let src = special::opaque_u64(piece.src.wrapping_add(self.stride));
                    piece = self.piece_at(src, exists, lane + (j + 1) * shape.lanes_per_row());
                }
            }
        } else {
            // A loop of its own, since it is seldom and would be most of the code.
            for i in 0..special::opaque(shape.row_steps()) {
                let row = Rows::row(shape, thread, first_row, i);
                self.copy_row_by_elements(rows, row, lane, |j| dst(i) + self.step(j));
            }
        }
    }

    /// Copies a thread's pieces of a row element by element, through registers: `lane` is its first piece, and `dst` says where each goes.
    #[inline(always)]
    pub fn copy_row_by_elements(
        &self,
        rows: &Rows<'_>,
        row: i32,
        lane: u32,
        dst: impl Fn(u32) -> u32,
    ) {
        let shape = self.shape;
        let (src, exists) = self.source(rows, row, rows.entry(row));
        for j in 0..special::opaque(shape.column_steps()) {
            let piece = self.piece(src, exists, lane + j * shape.lanes_per_row());
            copy_elements(dst(j), piece, shape.element, self.view.element_stride);
        }
    }

    /// Address of a row's first element, and whether the row exists.
    #[inline(always)]
    pub fn source(&self, rows: &Rows<'_>, row: i32, entry: u32) -> (u64, bool) {
        let mut exists = row < rows.count;
        let at = if rows.paged() {
            exists &= entry < rows.pages.blocks;
            rows.pages.page.div_rem(row as u32).1 as i64
        } else {
            row as i64 + rows.first as i64
        };
        let offset = entry as i64 * self.view.block_stride + at * self.view.row_stride;
        (
            self.base
                .wrapping_add(if exists { offset as u64 } else { 0 }),
            exists,
        )
    }

    /// Piece `chunk` of a row.
    #[inline(always)]
    pub fn piece(&self, row: u64, exists: bool, chunk: u32) -> Piece {
        let src = row.wrapping_add((chunk as i64 * self.view.chunk_stride) as u64);
        self.piece_at(src, exists, chunk)
    }

    /// Piece `chunk` of a row, which is at `src`.
    #[inline(always)]
    fn piece_at(&self, src: u64, exists: bool, chunk: u32) -> Piece {
        let left = self.columns as i32 - (chunk * CHUNK) as i32;
        let bytes = left.clamp(0, CHUNK as i32) as u32;
        Piece {
            src,
            bytes: if exists { bytes } else { 0 },
        }
    }

    /// Bytes from a row's first piece of the thread to another one: steps along a row are whole multiples of the swizzle's span.
    #[inline(always)]
    fn step(&self, column_step: u32) -> u32 {
        column_step * self.shape.lanes_per_row() * CHUNK
    }
}

/// Copies a piece to shared address `dst` element by element, through registers: elements of so many bytes, so many bytes apart. What
/// does not exist becomes 0.
#[inline(always)]
pub fn copy_elements(dst: u32, piece: Piece, bytes: u32, stride: i64) {
    for word in 0..special::opaque(4) {
        let mut value = 0;
        for i in 0..4 / bytes {
            let at = 4 / bytes * word + i;
            if bytes * at < piece.bytes {
                let src = piece.src.wrapping_add((at as i64 * stride) as u64);
                // SAFETY: the element exists, and elements are aligned to their size.
                let element = unsafe {
                    if bytes == 1 {
                        copy::ld_global_u8(src)
                    } else {
                        copy::ld_global_u16(src)
                    }
                };
                value |= (element as u32) << (8 * bytes * i);
            }
        }
        // SAFETY: inside the tile, 4-byte aligned.
        unsafe { copy::st_shared_u32(dst + 4 * word, value) };
    }
}

/// 16 bytes of a row, of which so many exist.
#[derive(Clone, Copy)]
pub struct Piece {
    /// Global address of the first.
    pub src: u64,
    /// Bytes that exist.
    pub bytes: u32,
}

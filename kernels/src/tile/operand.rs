//! Tiles in shared memory as the copy engine writes them and the tensor cores read them.
//!
//! A tile is cut into blocks of columns, each [`width`](OperandTile::width) bytes wide, one after another. In a block the rows
//! follow each other; 16-byte chunk `c` of a row lies where chunk `c ^ s` would, `s` being bits of the address above the row's:
//! the swizzle of both engines (manual: section 5.5.7).

use crate::ptx::wgmma::Descriptor;
use flashtile_abi::hopper::swizzle_bytes;

/// Shape of a tile.
#[derive(Clone, Copy)]
pub struct OperandTile {
    /// Rows.
    pub rows: u32,
    /// Bytes of a row, over all blocks of columns.
    pub row_bytes: u32,
}

impl OperandTile {
    /// Bytes of a row of a block of columns: 128, 64 or 32.
    pub const fn width(self) -> u32 {
        swizzle_bytes(self.row_bytes)
    }

    /// Blocks of columns.
    pub const fn blocks(self) -> u32 {
        self.row_bytes / self.width()
    }

    /// Bytes of a block of columns.
    pub const fn block_bytes(self) -> u32 {
        self.rows * self.width()
    }

    /// The descriptor of the tile at `address` as an operand whose rows are contiguous along the product's sum.
    #[inline(always)]
    pub const fn along(self, address: u32) -> Descriptor {
        Descriptor::new(address, self.width(), 16)
    }

    /// Bytes from the first step of the sum to another, a step being 32 bytes of each row.
    pub const fn along_step(self, step: u32) -> u32 {
        let steps = self.width() / 32;
        step / steps * self.block_bytes() + step % steps * 32
    }

    /// The descriptor of the tile at `address` as an operand whose rows are the terms of the product's sum.
    #[inline(always)]
    pub const fn across(self, address: u32) -> Descriptor {
        Descriptor::new(address, self.width(), self.block_bytes())
    }

    /// Bytes from the first step of the sum to another, a step being 16 rows.
    pub const fn across_step(self, step: u32) -> u32 {
        step * 16 * self.width()
    }

    /// Shared address of a chunk of the tile at `address`, a multiple of 1024.
    #[inline(always)]
    pub const fn chunk(self, address: u32, row: u32, chunk: u32) -> u32 {
        let per_row = self.width() / 16;
        let swizzle = match self.width() {
            128 => row & 7,
            64 => (row >> 1) & 3,
            _ => (row >> 2) & 1,
        };
        address
            + chunk / per_row * self.block_bytes()
            + row * self.width()
            + (chunk % per_row ^ swizzle) * 16
    }
}

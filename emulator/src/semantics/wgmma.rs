//! `wgmma.mma_async`: matrix products of a warpgroup, with operands in shared memory.
//!
//! Warp w of the four has rows 16 w to 16 w + 15 of D and of A. Its fragments are those of `mma.sync`: A of the shapes
//! m16n8k16, k8 (tf32) and k32 (8 bits); D one accumulator of m16n8 for every 8 columns. So a product is four times N / 8
//! products of `mma`, with its [numerics](super::mma).
//!
//! **Operands in shared memory** consist of pieces of 16 bytes, in groups of eight ([`Layout::piece`]). In a K-major
//! operand a piece is 16 bytes of K of one row (of B: column), and a group eight rows; in an MN-major one, which only
//! 16-bit operands can be, a piece is eight rows at one k, and a group eight k. One product needs 32 bytes of K. With a
//! swizzle of W bytes, and LBO, SBO as the descriptor says, the offset from its start is
//!
//! | | |
//! |---|---|
//! | K-major | mn / 8 * SBO + mn % 8 * W + 16-byte piece of K * 16 |
//! | K-major, no swizzle | mn / 8 * SBO + mn % 8 * 16 + piece of K * LBO |
//! | MN-major | 2 mn / W * LBO + 2 mn % W + k / 8 * SBO + k % 8 * W |
//! | MN-major, no swizzle | mn / 8 * SBO + k / 8 * LBO + k % 8 * 16 |
//!
//! and the address is start + offset, with bits 4 to 6 changed by bits 7 to 9 as the swizzle says. (PTX ISA 9.7.15.5.1)

use super::mma::fused::FusedSum;
use super::mma::{TileA, TileB, accumulate, accumulate_f16, fp8_values, fragment_a, tf32_to_f32};
use super::{Float, Lanes, cvt::f16_to_f32};
use crate::numerics::TensorCores;
use crate::tensor_map::Swizzle;

/// A matrix descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// First shared address, a multiple of 16.
    pub start: u32,
    /// Leading dimension byte offset.
    pub lbo: u32,
    /// Stride dimension byte offset.
    pub sbo: u32,
    /// Permutation of the pieces.
    pub swizzle: Swizzle,
}

impl Descriptor {
    /// The descriptor of 64 bits.
    ///
    /// # Errors
    ///
    /// Bits are set that mean nothing, or a base offset: what hardware does with one is not known well enough.
    pub fn decode(bits: u64) -> Result<Self, String> {
        let field = |at: u32| (bits >> at & 0x3fff) as u32 * 16;
        // Two bits after each of the fields, and those around the base offset.
        let reserved = 0x3 << 14 | 0x3 << 30 | 0x7 << 46 | 0x3ff << 52;
        if bits & reserved != 0 {
            return Err(format!(
                "the matrix descriptor {bits:#018x} has bits set that mean nothing"
            ));
        }
        if bits >> 49 & 7 != 0 {
            return Err(format!(
                "the matrix descriptor {bits:#018x} has a base offset, which is not supported"
            ));
        }
        let swizzles = [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32];
        Ok(Descriptor {
            start: field(0),
            lbo: field(16),
            sbo: field(32),
            swizzle: swizzles[(bits >> 62) as usize],
        })
    }
}

/// How an operand lies in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Where.
    pub descriptor: Descriptor,
    /// Rows of A (columns of B) are contiguous, not k.
    pub mn_major: bool,
}

/// Pieces along the direction of K (K-major), or groups of eight k (MN-major), of one product.
pub const HALVES: usize = 2;

impl Layout {
    /// The shared address of a piece. Of the eight rows (columns of B) from `8 * eight` on, K-major: bytes `16 * half` and on
    /// of K, of the `n`-th row; MN-major: all rows, at `k = 8 * half + n`.
    #[must_use]
    pub fn piece(self, eight: usize, half: usize, n: usize) -> u32 {
        let Descriptor {
            start,
            lbo,
            sbo,
            swizzle,
        } = self.descriptor;
        let (eight, half, n) = (eight as u32, half as u32, n as u32);
        let offset = match (swizzle.span(), self.mn_major) {
            (Some(span), false) => eight * sbo + n * span + half * 16,
            (None, false) => eight * sbo + n * 16 + half * lbo,
            (Some(span), true) => {
                16 * eight / span * lbo + 16 * eight % span + half * sbo + n * span
            }
            (None, true) => eight * sbo + half * lbo + n * 16,
        };
        let address = start + offset;
        address ^ (address & swizzle.mask() as u32) >> 3
    }

    /// The addresses of all pieces of so many rows (columns of B): in the order of `eight`, `half`, `n`.
    pub fn pieces(self, rows: usize) -> impl Iterator<Item = u32> {
        (0..rows / 8).flat_map(move |eight| {
            (0..HALVES).flat_map(move |half| (0..8).map(move |n| self.piece(eight, half, n)))
        })
    }
}

/// The pieces of eight rows: 16 bytes each, as [`Layout::pieces`] orders them.
pub type Eight = [[u8; 16]; 8 * HALVES];

/// How a product computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Formats of A and B.
    pub formats: [Float; 2],
    /// D is f16, not f32.
    pub narrow: bool,
    /// A and B are negated.
    pub negated: [bool; 2],
    /// A and B are MN-major.
    pub mn_major: [bool; 2],
}

impl Kind {
    /// The columns of K of one product: 32 bytes.
    #[must_use]
    pub fn k(&self) -> usize {
        match self.formats[0] {
            Float::F16 | Float::Bf16 => 16,
            Float::Tf32 => 8,
            _ => 32,
        }
    }
}

/// The values of a piece.
#[inline(always)]
fn values<const V: usize>(format: Float, piece: &[u8; 16]) -> [f32; V] {
    let half = |n: usize| u32::from(u16::from_le_bytes([piece[2 * n], piece[2 * n + 1]]));
    match format {
        Float::Bf16 => std::array::from_fn(|n| f32::from_bits(half(n) << 16)),
        Float::F16 => std::array::from_fn(|n| f32::from_bits(f16_to_f32(half(n)))),
        Float::Tf32 => std::array::from_fn(|n| {
            let word = [0, 1, 2, 3].map(|byte| piece[4 * n + byte]);
            tf32_to_f32(u32::from_le_bytes(word))
        }),
        _ => {
            let table = fp8_values(format);
            std::array::from_fn(|n| table[usize::from(piece[n])])
        }
    }
}

fn negate(values: &mut [f32], negated: bool) {
    if negated {
        for x in values {
            *x = -*x;
        }
    }
}

/// Eight rows of an operand from their pieces: `put(row, k, value)`.
#[inline(always)]
fn spread<const V: usize>(
    format: Float,
    mn_major: bool,
    pieces: &Eight,
    mut put: impl FnMut(usize, usize, f32),
) {
    for (number, piece) in pieces.iter().enumerate() {
        let (half, n) = (number / 8, number % 8);
        for (i, value) in values::<V>(format, piece).into_iter().enumerate() {
            if mn_major {
                put(i, 8 * half + n, value);
            } else {
                put(n, V * half + i, value);
            }
        }
    }
}

/// Eight columns of B. `V` is half of `K`: the values of a piece.
#[must_use]
pub fn columns<const K: usize, const V: usize>(kind: Kind, pieces: &Eight) -> TileB<K> {
    let mut tile = [[0.0; 8]; K];
    spread::<V>(kind.formats[1], kind.mn_major[1], pieces, |n, k, value| {
        // The accumulator's order: even columns first.
        tile[k][n / 2 + n % 2 * 4] = value;
    });
    negate(tile.as_flattened_mut(), kind.negated[1]);
    tile
}

/// A warp's 16 rows of A.
#[must_use]
pub fn rows<const K: usize, const V: usize>(kind: Kind, pieces: [&Eight; 2]) -> TileA<K> {
    let mut tile = [[0.0; K]; 16];
    for (first, pieces) in [(0, pieces[0]), (8, pieces[1])] {
        spread::<V>(kind.formats[0], kind.mn_major[0], pieces, |n, k, value| {
            tile[first + n][k] = value;
        });
    }
    negate(tile.as_flattened_mut(), kind.negated[0]);
    tile
}

/// The same from registers.
#[must_use]
pub fn rows_of_fragment<const K: usize>(kind: Kind, a: &[Lanes; 4]) -> TileA<K> {
    let mut tile = fragment_a(kind.formats[0], a);
    negate(tile.as_flattened_mut(), kind.negated[0]);
    tile
}

/// Eight columns of a warp's `d = a * b + d`, or without `keep` `a * b`.
pub fn multiply<const K: usize>(
    cores: TensorCores,
    kind: Kind,
    a: &TileA<K>,
    b: &TileB<K>,
    d: [&mut Lanes; 4],
    keep: bool,
) {
    let sum = FusedSum::of_wgmma(cores, kind.formats[0], false);
    accumulate(sum, kind.formats, a, b, d, keep);
}

/// The same with accumulators of f16, two in a register.
pub fn multiply_f16<const K: usize>(
    cores: TensorCores,
    kind: Kind,
    a: &TileA<K>,
    b: &TileB<K>,
    d: [&mut Lanes; 2],
    keep: bool,
) {
    let sum = FusedSum::of_wgmma(cores, kind.formats[0], true);
    accumulate_f16(sum, kind.formats, a, b, d, keep);
}

#[cfg(test)]
mod tests;

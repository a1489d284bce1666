//! `mma.sync`: the warp-wide matrix multiply-accumulate.
//!
//! Operands are register fragments, one [`Lanes`] array per register; the maps from (lane, element) to (row, column)
//! are the manual's. With g = lane / 4 and t = lane % 4:
//!
//! | operand | element i | row (k for B) | column (n for B) |
//! |---|---|---|---|
//! | A, 16-bit, k16 | register i / 2, half i % 2 | g, + 8 if i in {2, 3, 6, 7} | 2t + i % 2, + 8 if i >= 4 |
//! | B, 16-bit, k16 | register i / 2, half i % 2 | 2t + i % 2, + 8 if i >= 2 | g |
//! | A, 8-bit, k32 | register i / 4, byte i % 4 | g, + 8 if i / 4 is odd | 4t + i % 4, + 16 if i >= 8 |
//! | B, 8-bit, k32 | register i / 4, byte i % 4 | 4t + i % 4, + 16 if i >= 4 | g |
//! | A, tf32, k8 | register i | g, + 8 if i is odd | t, + 4 if i >= 2 |
//! | B, tf32, k8 | register i | t + 4i | g |
//! | C, D (32-bit) | register i | g, + 8 if i >= 2 | 2t + i % 2 |
//!
//! **Numerics.** PTX leaves order and rounding open. With [`TensorCores::Fast`] each element is `c`, then for k ascending
//! `fma(a, b, sum)` in f32, rounded to nearest even, subnormals kept, NaN canonical. Hardware adds several products at
//! once and truncates: [`fused`] is its rule. The bits are the same with and without vector instructions.

use super::{
    Float, Lanes, Num, Round,
    cvt::{f16_to_f32, f16_to_f32_lanes, f32_to_f16x2_lanes},
    float::canonical_f32,
};
use crate::numerics::TensorCores;
use fused::FusedSum;

/// A 16-bit element format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl Half {
    const fn format(self) -> Float {
        match self {
            Half::F16 => Float::F16,
            Half::Bf16 => Float::Bf16,
        }
    }
}

/// The A operand, row by row.
pub type TileA<const K: usize> = [[f32; K]; 16];
/// The B operand, one row per k. Columns may be in any order, as long as it is the accumulator's.
pub type TileB<const K: usize> = [[f32; 8]; K];
/// The accumulator. Fragments are unpacked with the even columns first, then the odd ones, which is their order in the
/// registers.
pub type TileC = [[f32; 8]; 16];

/// `c += a * b`, k ascending, one fused multiply-add after the other; NaN results are canonical.
pub fn multiply<const K: usize>(a: &TileA<K>, b: &TileB<K>, c: &mut TileC) {
    #[cfg(target_arch = "x86_64")]
    if x86::available() {
        // SAFETY: the processor has the features that the function is compiled for.
        return unsafe { x86::multiply(a, b, c) };
    }
    multiply_portable(a, b, c);
}

fn multiply_portable<const K: usize>(a: &TileA<K>, b: &TileB<K>, c: &mut TileC) {
    for (a, c) in a.iter().zip(c) {
        for (&a, b) in a.iter().zip(b) {
            for (c, &b) in c.iter_mut().zip(b) {
                *c = a.mul_add(b, *c);
            }
        }
        for c in c {
            *c = f32::from_bits(canonical_f32(c.to_bits()));
        }
    }
}

/// The fragment column at a position of a tile's row: 0, 2, 4, 6, 1, 3, 5, 7.
const fn column(position: usize) -> usize {
    2 * (position % 4) + position / 4
}

fn unpack_c(c: &[Lanes; 4]) -> TileC {
    std::array::from_fn(|row| {
        std::array::from_fn(|p| f32::from_bits(c[2 * (row / 8) + p / 4][4 * (row % 8) + p % 4]))
    })
}

fn pack_d(d: &mut [Lanes; 4], c: &TileC) {
    for (row, c) in c.iter().enumerate() {
        for (p, c) in c.iter().enumerate() {
            d[2 * (row / 8) + p / 4][4 * (row % 8) + p % 4] = c.to_bits();
        }
    }
}

#[inline(always)]
fn half_to_f32(kind: Half, x: u32) -> f32 {
    f32::from_bits(match kind {
        Half::F16 => f16_to_f32(x & 0xffff),
        Half::Bf16 => x << 16,
    })
}

fn unpack_half<const K: usize>(kind: Half, a: &[Lanes], b: &[Lanes]) -> (TileA<K>, TileB<K>) {
    let tile_b = std::array::from_fn(|k| {
        std::array::from_fn(|p| {
            half_to_f32(kind, b[k / 8][4 * column(p) + k % 8 / 2] >> (16 * (k % 2)))
        })
    });
    (half_a(kind, a), tile_b)
}

fn half_a<const K: usize>(kind: Half, a: &[Lanes]) -> TileA<K> {
    std::array::from_fn(|row| {
        std::array::from_fn(|k| {
            let register = 2 * (k / 8) + row / 8;
            half_to_f32(
                kind,
                a[register][4 * (row % 8) + k % 8 / 2] >> (16 * (k % 2)),
            )
        })
    })
}

fn half<const K: usize>(
    sum: Option<FusedSum>,
    kind: Half,
    d: &mut [Lanes; 4],
    a: &[Lanes],
    b: &[Lanes],
    c: &[Lanes; 4],
) {
    let (a, b) = unpack_half::<K>(kind, a, b);
    let mut tile = unpack_c(c);
    match sum {
        None => multiply(&a, &b, &mut tile),
        Some(sum) => fused::multiply(sum, [kind.format(); 2], &a, &b, &mut tile),
    }
    pack_d(d, &tile);
}

fn half_k16(
    sum: Option<FusedSum>,
    kind: Half,
    d: &mut [Lanes; 4],
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &[Lanes; 4],
) {
    #[cfg(target_arch = "x86_64")]
    if x86::available() {
        // SAFETY: the processor has the features that the function is compiled for.
        return unsafe { x86::half_k16(sum, kind, d, a, b, c) };
    }
    half::<16>(sum, kind, d, a, b, c);
}

/// `mma.sync.aligned.m16n8k16.row.col.f32.{f16,bf16}.{f16,bf16}.f32`.
pub fn mma_m16n8k16_f32(
    cores: TensorCores,
    kind: Half,
    d: &mut [Lanes; 4],
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &[Lanes; 4],
) {
    half_k16(FusedSum::of(cores, kind.format(), false), kind, d, a, b, c);
}

/// `mma.sync.aligned.m16n8k8.row.col.f32.{f16,bf16}.{f16,bf16}.f32`.
pub fn mma_m16n8k8_f32(
    cores: TensorCores,
    kind: Half,
    d: &mut [Lanes; 4],
    a: &[Lanes; 2],
    b: &[Lanes; 1],
    c: &[Lanes; 4],
) {
    let sum = FusedSum::of(cores, kind.format(), false);
    half::<8>(sum, kind, d, a, b, c);
}

/// f16 accumulators: register 0 holds row g, register 1 row g + 8, columns 2t and 2t + 1 in its halves.
fn widen_c(c: &[Lanes; 2]) -> [Lanes; 4] {
    let mut wide = [[0; 32]; 4];
    for (i, wide) in wide.iter_mut().enumerate() {
        f16_to_f32_lanes(wide, &c[i / 2].map(|x| x >> (16 * (i % 2)) & 0xffff));
    }
    wide
}

fn narrow_d(d: &mut [Lanes; 2], wide: &[Lanes; 4]) {
    for (i, d) in d.iter_mut().enumerate() {
        f32_to_f16x2_lanes(d, &wide[2 * i + 1], &wide[2 * i]);
    }
}

/// `mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16`. With fast tensor cores summed in f32 and rounded to f16 once,
/// at the end.
pub fn mma_m16n8k16_f16(
    cores: TensorCores,
    d: &mut [Lanes; 2],
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &[Lanes; 2],
) {
    let sum = FusedSum::of(cores, Float::F16, true);
    let mut wide = [[0; 32]; 4];
    half_k16(sum, Half::F16, &mut wide, a, b, &widen_c(c));
    narrow_d(d, &wide);
}

/// `mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16`.
pub fn mma_m16n8k8_f16(
    cores: TensorCores,
    d: &mut [Lanes; 2],
    a: &[Lanes; 2],
    b: &[Lanes; 1],
    c: &[Lanes; 2],
) {
    let sum = FusedSum::of(cores, Float::F16, true);
    let mut wide = [[0; 32]; 4];
    half::<8>(sum, Half::F16, &mut wide, a, b, &widen_c(c));
    narrow_d(d, &wide);
}

/// tf32 is f32 without the low 13 bits.
pub(super) fn tf32_to_f32(x: u32) -> f32 {
    f32::from_bits(x & !0x1fff)
}

fn tf32_a<const K: usize>(a: &[Lanes]) -> TileA<K> {
    std::array::from_fn(|row| {
        std::array::from_fn(|k| tf32_to_f32(a[2 * (k / 4) + row / 8][4 * (row % 8) + k % 4]))
    })
}

fn tf32<const K: usize>(
    cores: TensorCores,
    d: &mut [Lanes; 4],
    a: &[Lanes],
    b: &[Lanes],
    c: &[Lanes; 4],
) {
    let a: TileA<K> = tf32_a(a);
    let b: TileB<K> = std::array::from_fn(|k| {
        std::array::from_fn(|p| tf32_to_f32(b[k / 4][4 * column(p) + k % 4]))
    });
    let mut tile = unpack_c(c);
    match FusedSum::of(cores, Float::Tf32, false) {
        None => multiply(&a, &b, &mut tile),
        Some(sum) => fused::multiply(sum, [Float::Tf32; 2], &a, &b, &mut tile),
    }
    pack_d(d, &tile);
}

/// `mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32`. The low 13 bits of the operands are ignored.
pub fn mma_m16n8k8_tf32(
    cores: TensorCores,
    d: &mut [Lanes; 4],
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &[Lanes; 4],
) {
    tf32::<8>(cores, d, a, b, c);
}

/// `mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32`.
pub fn mma_m16n8k4_tf32(
    cores: TensorCores,
    d: &mut [Lanes; 4],
    a: &[Lanes; 2],
    b: &[Lanes; 1],
    c: &[Lanes; 4],
) {
    tf32::<4>(cores, d, a, b, c);
}

const fn fp8_table(f: Float) -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = f32::from_bits(Num::unpack(f, i as u64).pack(Float::F32, Round::Rn) as u32);
        i += 1;
    }
    table
}

static E4M3: [f32; 256] = fp8_table(Float::E4m3);
static E5M2: [f32; 256] = fp8_table(Float::E5m2);

/// The f32 value of every byte of an 8-bit format (`Float::E4m3`, else e5m2).
pub fn fp8_values(f: Float) -> &'static [f32; 256] {
    if f == Float::E4m3 { &E4M3 } else { &E5M2 }
}

/// `mma.sync.aligned.m16n8k32.row.col.f32.{e4m3,e5m2}.{e4m3,e5m2}.f32`.
pub fn mma_m16n8k32_fp8(
    cores: TensorCores,
    a_type: Float,
    b_type: Float,
    d: &mut [Lanes; 4],
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &[Lanes; 4],
) {
    let (a_values, b_values) = (fp8_values(a_type), fp8_values(b_type));
    let (a, b) = unpack_bytes::<32, f32>(
        a,
        b,
        |x| a_values[usize::from(x)],
        |x| b_values[usize::from(x)],
    );
    let mut tile = unpack_c(c);
    match cores {
        TensorCores::Fast => multiply(&a, &b, &mut tile),
        TensorCores::Ampere => fused::multiply(fused::ADA_FP8, [a_type, b_type], &a, &b, &mut tile),
        TensorCores::Hopper => fp8_as_f16(&a, &b, &mut tile),
    }
    pack_d(d, &tile);
}

/// What Hopper makes of an 8-bit `mma.sync`: its operands as f16, a product of half the columns of A (those where
/// k % 4 < 2), another of the rest that adds to it, and an addition of c.
fn fp8_as_f16(a: &TileA<32>, b: &TileB<32>, c: &mut TileC) {
    let mut sums: TileC = [[0.0; 8]; 16];
    for part in 0..2 {
        let from = |k: usize| 4 * (k / 2) + 2 * part + k % 2;
        let a: TileA<16> = a.map(|row| std::array::from_fn(|k| row[from(k)]));
        let b: TileB<16> = std::array::from_fn(|k| b[from(k)]);
        fused::multiply(fused::HOPPER_F16, [Float::F16; 2], &a, &b, &mut sums);
    }
    for (c, sum) in c.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
        *c = f32::from_bits(canonical_f32((*c + sum).to_bits()));
    }
}

/// 8-bit fragments, their bytes mapped to `T`.
#[inline(always)]
fn unpack_bytes<const K: usize, T: Copy + Default>(
    a: &[Lanes],
    b: &[Lanes],
    value_a: impl Fn(u8) -> T,
    value_b: impl Fn(u8) -> T,
) -> ([[T; K]; 16], [[T; 8]; K]) {
    let tile_a = bytes_a(a, value_a);
    let mut tile_b = [[T::default(); 8]; K];
    for (word, four) in tile_b.chunks_exact_mut(4).enumerate() {
        for p in 0..8 {
            let bytes = b[word / 4][4 * column(p) + word % 4].to_le_bytes();
            for (x, byte) in four.iter_mut().zip(bytes) {
                x[p] = value_b(byte);
            }
        }
    }
    (tile_a, tile_b)
}

#[inline(always)]
fn bytes_a<const K: usize, T: Copy + Default>(
    a: &[Lanes],
    value: impl Fn(u8) -> T,
) -> [[T; K]; 16] {
    let mut tile = [[T::default(); K]; 16];
    for (row, tile) in tile.iter_mut().enumerate() {
        for (word, four) in tile.chunks_exact_mut(4).enumerate() {
            let bytes = a[2 * (word / 4) + row / 8][4 * (row % 8) + word % 4].to_le_bytes();
            for (x, byte) in four.iter_mut().zip(bytes) {
                *x = value(byte);
            }
        }
    }
    tile
}

/// The A operand of a format, from the registers of a fragment: k16 of 16 bits, k8 of tf32, k32 of 8 bits.
pub(super) fn fragment_a<const K: usize>(format: Float, a: &[Lanes; 4]) -> TileA<K> {
    match format {
        Float::F16 => half_a(Half::F16, a),
        Float::Bf16 => half_a(Half::Bf16, a),
        Float::E4m3 | Float::E5m2 => {
            let values = fp8_values(format);
            bytes_a(a, |x| values[usize::from(x)])
        }
        _ => tf32_a(a),
    }
}

/// `d = a * b + c` of 8 columns, with the accumulator in the registers of its fragment; without `keep`, c is zero.
pub(super) fn accumulate<const K: usize>(
    sum: Option<FusedSum>,
    formats: [Float; 2],
    a: &TileA<K>,
    b: &TileB<K>,
    d: [&mut Lanes; 4],
    keep: bool,
) {
    #[cfg(target_arch = "x86_64")]
    if x86::available() {
        // SAFETY: the processor has the features that the function is compiled for.
        return unsafe { x86::accumulate(sum, formats, a, b, d, keep) };
    }
    accumulate_portable(sum, formats, a, b, d, keep);
}

fn accumulate_portable<const K: usize>(
    sum: Option<FusedSum>,
    formats: [Float; 2],
    a: &TileA<K>,
    b: &TileB<K>,
    d: [&mut Lanes; 4],
    keep: bool,
) {
    let mut tile: TileC = [[0.0; 8]; 16];
    if keep {
        tile = std::array::from_fn(|row| {
            std::array::from_fn(|p| f32::from_bits(d[2 * (row / 8) + p / 4][4 * (row % 8) + p % 4]))
        });
    }
    match sum {
        None => multiply(a, b, &mut tile),
        Some(sum) => fused::multiply(sum, formats, a, b, &mut tile),
    }
    for (row, c) in tile.iter().enumerate() {
        for (p, c) in c.iter().enumerate() {
            d[2 * (row / 8) + p / 4][4 * (row % 8) + p % 4] = c.to_bits();
        }
    }
}

/// The same with f16 accumulators: two of them in a register.
pub(super) fn accumulate_f16<const K: usize>(
    sum: Option<FusedSum>,
    formats: [Float; 2],
    a: &TileA<K>,
    b: &TileB<K>,
    d: [&mut Lanes; 2],
    keep: bool,
) {
    let mut wide = widen_c(&[*d[0], *d[1]]);
    accumulate(sum, formats, a, b, wide.each_mut(), keep);
    let mut narrow = [[0; 32]; 2];
    narrow_d(&mut narrow, &wide);
    for (d, narrow) in d.into_iter().zip(narrow) {
        *d = narrow;
    }
}

fn bytes_s32<const K: usize>(
    signed: [bool; 2],
    satfinite: bool,
    d: &mut [Lanes; 4],
    a: &[Lanes],
    b: &[Lanes],
    c: &[Lanes; 4],
) {
    let value = |signed: bool| {
        move |x: u8| {
            if signed {
                i32::from(x as i8)
            } else {
                i32::from(x)
            }
        }
    };
    let (a, b) = unpack_bytes::<K, i32>(a, b, value(signed[0]), value(signed[1]));
    for (row, a) in a.iter().enumerate() {
        // At most 32 products below 2^16: no overflow.
        let mut sum = [0i32; 8];
        for (&a, b) in a.iter().zip(&b) {
            for (sum, &b) in sum.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
        for (p, sum) in sum.into_iter().enumerate() {
            let (register, lane) = (2 * (row / 8) + p / 4, 4 * (row % 8) + p % 4);
            let c = c[register][lane] as i32;
            d[register][lane] = if satfinite {
                c.saturating_add(sum)
            } else {
                c.wrapping_add(sum)
            } as u32;
        }
    }
}

/// `mma.sync.aligned.m16n8k32.row.col{.satfinite}.s32.{u8,s8}.{u8,s8}.s32`; wraps without `.satfinite`. `signed` is for
/// A and B.
pub fn mma_m16n8k32_s32(
    signed: [bool; 2],
    satfinite: bool,
    d: &mut [Lanes; 4],
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &[Lanes; 4],
) {
    bytes_s32::<32>(signed, satfinite, d, a, b, c);
}

/// `mma.sync.aligned.m16n8k16.row.col{.satfinite}.s32.{u8,s8}.{u8,s8}.s32`.
pub fn mma_m16n8k16_s32(
    signed: [bool; 2],
    satfinite: bool,
    d: &mut [Lanes; 4],
    a: &[Lanes; 2],
    b: &[Lanes; 1],
    c: &[Lanes; 4],
) {
    bytes_s32::<16>(signed, satfinite, d, a, b, c);
}

pub mod fused;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

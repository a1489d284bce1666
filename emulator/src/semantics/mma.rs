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
//! **Numerics.** Each element is `c`, then for k ascending `fma(a, b, sum)` in f32, rounded to nearest even, subnormals
//! kept, NaN canonical. PTX leaves order and rounding open; hardware adds several products at once and truncates. The
//! bits are the same with and without vector instructions, since every path rounds the same fused operations in the
//! same order.

use super::{
    Float, Lanes, Num, Round,
    cvt::{f16_to_f32, f32_to_f16x2},
    float::canonical_f32,
};

/// A 16-bit element format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

/// The A operand, row by row.
pub type TileA<const K: usize> = [[f32; K]; 16];
/// The B operand, one row per k. Columns may be in any order, as long as it is the accumulator's.
pub type TileB<const K: usize> = [[f32; 8]; K];
/// The accumulator. Fragments are unpacked with the even columns first, then the odd ones, which is their order in the
/// registers.
pub type TileC = [[f32; 8]; 16];

/// `c += a * b`, k ascending, fused; NaN results are canonical.
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
    let tile_a = std::array::from_fn(|row| {
        std::array::from_fn(|k| {
            let register = 2 * (k / 8) + row / 8;
            half_to_f32(
                kind,
                a[register][4 * (row % 8) + k % 8 / 2] >> (16 * (k % 2)),
            )
        })
    });
    let tile_b = std::array::from_fn(|k| {
        std::array::from_fn(|p| {
            half_to_f32(kind, b[k / 8][4 * column(p) + k % 8 / 2] >> (16 * (k % 2)))
        })
    });
    (tile_a, tile_b)
}

fn half_f32<const K: usize>(
    kind: Half,
    d: &mut [Lanes; 4],
    a: &[Lanes],
    b: &[Lanes],
    c: &[Lanes; 4],
) {
    let (a, b) = unpack_half::<K>(kind, a, b);
    let mut tile = unpack_c(c);
    multiply(&a, &b, &mut tile);
    pack_d(d, &tile);
}

/// `mma.sync.aligned.m16n8k16.row.col.f32.{f16,bf16}.{f16,bf16}.f32`.
pub fn mma_m16n8k16_f32(
    kind: Half,
    d: &mut [Lanes; 4],
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &[Lanes; 4],
) {
    #[cfg(target_arch = "x86_64")]
    if x86::available() {
        // SAFETY: the processor has the features that the function is compiled for.
        return unsafe { x86::half_k16(kind, d, a, b, c) };
    }
    half_f32::<16>(kind, d, a, b, c);
}

/// `mma.sync.aligned.m16n8k8.row.col.f32.{f16,bf16}.{f16,bf16}.f32`.
pub fn mma_m16n8k8_f32(
    kind: Half,
    d: &mut [Lanes; 4],
    a: &[Lanes; 2],
    b: &[Lanes; 1],
    c: &[Lanes; 4],
) {
    half_f32::<8>(kind, d, a, b, c);
}

/// f16 accumulators: register 0 holds row g, register 1 row g + 8, columns 2t and 2t + 1 in its halves.
fn widen_c(c: &[Lanes; 2]) -> [Lanes; 4] {
    std::array::from_fn(|i| {
        std::array::from_fn(|lane| f16_to_f32(c[i / 2][lane] >> (16 * (i % 2)) & 0xffff))
    })
}

fn narrow_d(d: &mut [Lanes; 2], wide: &[Lanes; 4]) {
    for (i, d) in d.iter_mut().enumerate() {
        for (lane, d) in d.iter_mut().enumerate() {
            *d = f32_to_f16x2(wide[2 * i + 1][lane], wide[2 * i][lane]);
        }
    }
}

/// `mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16`: summed in f32, rounded to f16 once at the end.
pub fn mma_m16n8k16_f16(d: &mut [Lanes; 2], a: &[Lanes; 4], b: &[Lanes; 2], c: &[Lanes; 2]) {
    let mut wide = [[0; 32]; 4];
    mma_m16n8k16_f32(Half::F16, &mut wide, a, b, &widen_c(c));
    narrow_d(d, &wide);
}

/// `mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16`.
pub fn mma_m16n8k8_f16(d: &mut [Lanes; 2], a: &[Lanes; 2], b: &[Lanes; 1], c: &[Lanes; 2]) {
    let mut wide = [[0; 32]; 4];
    mma_m16n8k8_f32(Half::F16, &mut wide, a, b, &widen_c(c));
    narrow_d(d, &wide);
}

fn tf32<const K: usize>(d: &mut [Lanes; 4], a: &[Lanes], b: &[Lanes], c: &[Lanes; 4]) {
    let value = |x: u32| f32::from_bits(x & !0x1fff);
    let a: TileA<K> = std::array::from_fn(|row| {
        std::array::from_fn(|k| value(a[2 * (k / 4) + row / 8][4 * (row % 8) + k % 4]))
    });
    let b: TileB<K> =
        std::array::from_fn(|k| std::array::from_fn(|p| value(b[k / 4][4 * column(p) + k % 4])));
    let mut tile = unpack_c(c);
    multiply(&a, &b, &mut tile);
    pack_d(d, &tile);
}

/// `mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32`. The low 13 bits of the operands are ignored.
pub fn mma_m16n8k8_tf32(d: &mut [Lanes; 4], a: &[Lanes; 4], b: &[Lanes; 2], c: &[Lanes; 4]) {
    tf32::<8>(d, a, b, c);
}

/// `mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32`.
pub fn mma_m16n8k4_tf32(d: &mut [Lanes; 4], a: &[Lanes; 2], b: &[Lanes; 1], c: &[Lanes; 4]) {
    tf32::<4>(d, a, b, c);
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
    a_type: Float,
    b_type: Float,
    d: &mut [Lanes; 4],
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &[Lanes; 4],
) {
    let (a_values, b_values) = (fp8_values(a_type), fp8_values(b_type));
    let a: TileA<32> = std::array::from_fn(|row| {
        std::array::from_fn(|k| a_values[usize::from(byte_a(a, row, k))])
    });
    let b: TileB<32> = std::array::from_fn(|k| {
        std::array::from_fn(|p| b_values[usize::from(byte_b(b, k, column(p)))])
    });
    let mut tile = unpack_c(c);
    multiply(&a, &b, &mut tile);
    pack_d(d, &tile);
}

#[inline(always)]
fn byte_a(a: &[Lanes], row: usize, k: usize) -> u8 {
    (a[2 * (k / 16) + row / 8][4 * (row % 8) + k % 16 / 4] >> (8 * (k % 4))) as u8
}

#[inline(always)]
fn byte_b(b: &[Lanes], k: usize, n: usize) -> u8 {
    (b[k / 16][4 * n + k % 16 / 4] >> (8 * (k % 4))) as u8
}

fn bytes_s32<const K: usize>(
    signed: [bool; 2],
    satfinite: bool,
    d: &mut [Lanes; 4],
    a: &[Lanes],
    b: &[Lanes],
    c: &[Lanes; 4],
) {
    let value = |x: u8, signed: bool| {
        if signed {
            i64::from(x as i8)
        } else {
            i64::from(x)
        }
    };
    for (i, (d, c)) in d.iter_mut().zip(c).enumerate() {
        for (lane, (d, &c)) in d.iter_mut().zip(c).enumerate() {
            let (row, n) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let sum: i64 = (0..K)
                .map(|k| value(byte_a(a, row, k), signed[0]) * value(byte_b(b, k, n), signed[1]))
                .sum();
            let sum = sum + i64::from(c as i32);
            let bounded = if satfinite {
                sum.clamp(i32::MIN.into(), i32::MAX.into())
            } else {
                sum
            };
            *d = bounded as u32;
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

/// The same with AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Half, Lanes, TileA, TileB, TileC};
    use std::arch::x86_64::*;

    /// Whether the functions of this module may be called. The standard library caches the answer.
    #[inline(always)]
    pub(super) fn available() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(x: &[f32; 8]) -> __m256 {
        // SAFETY: a reference to 32 readable bytes; the load needs no alignment.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn save(x: &mut [f32; 8], v: __m256) {
        // SAFETY: a reference to 32 writable bytes; the store needs no alignment.
        unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) }
    }

    /// Four registers of neighbouring lanes, from lane 4g.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load4(x: &Lanes, g: usize) -> __m128i {
        let part = &x[4 * g..4 * g + 4];
        // SAFETY: a slice of 16 readable bytes; the load needs no alignment.
        unsafe { _mm_loadu_si128(part.as_ptr().cast()) }
    }

    /// Eight registers of neighbouring lanes, from lane 8i.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load8(x: &Lanes, i: usize) -> __m256i {
        let part = &x[8 * i..8 * i + 8];
        // SAFETY: a slice of 32 readable bytes; the load needs no alignment.
        unsafe { _mm256_loadu_si256(part.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn save4(x: &mut Lanes, g: usize, v: __m128i) {
        let part = &mut x[4 * g..4 * g + 4];
        // SAFETY: a slice of 16 writable bytes; the store needs no alignment.
        unsafe { _mm_storeu_si128(part.as_mut_ptr().cast(), v) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn canonical(x: __m256) -> __m256 {
        let nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
        _mm256_blendv_ps(x, nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x))
    }

    /// See [`super::multiply`]: eight rows at a time, so that their chains of additions overlap.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn multiply<const K: usize>(a: &TileA<K>, b: &TileB<K>, c: &mut TileC) {
        for half in [0, 8] {
            let mut sum = [_mm256_setzero_ps(); 8];
            for (sum, c) in sum.iter_mut().zip(&c[half..]) {
                *sum = load(c);
            }
            for (k, b) in b.iter().enumerate() {
                let b = load(b);
                for (row, sum) in sum.iter_mut().enumerate() {
                    *sum = _mm256_fmadd_ps(_mm256_broadcast_ss(&a[half + row][k]), b, *sum);
                }
            }
            for (sum, c) in sum.into_iter().zip(&mut c[half..]) {
                save(c, canonical(sum));
            }
        }
    }

    /// The whole of m16n8k16 in f32, from registers to registers.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn half_k16(
        kind: Half,
        d: &mut [Lanes; 4],
        a: &[Lanes; 4],
        b: &[Lanes; 2],
        c: &[Lanes; 4],
    ) {
        let mut tile_a: TileA<16> = [[0.0; 16]; 16];
        let mut tile_b: TileB<16> = [[0.0; 8]; 16];
        let mut tile_c: TileC = [[0.0; 8]; 16];
        for row in 0..16 {
            let (g, low) = (row % 8, row / 8);
            // Lanes 4g..4g+4 of one register hold eight neighbouring elements of row g.
            let (first, second) = (load4(&a[low], g), load4(&a[2 + low], g));
            let widen = |x: __m128i| match kind {
                Half::F16 => _mm256_cvtph_ps(x),
                Half::Bf16 => {
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x)))
                }
            };
            let (left, right) = tile_a[row].split_at_mut(8);
            if let (Ok(left), Ok(right)) = (left.try_into(), right.try_into()) {
                save(left, widen(first));
                save(right, widen(second));
            }
            let even = _mm256_castsi128_si256(load4(&c[2 * low], g));
            let both = _mm256_inserti128_si256::<1>(even, load4(&c[2 * low + 1], g));
            save(&mut tile_c[row], _mm256_castsi256_ps(both));
        }
        for (i, register) in b.iter().enumerate() {
            // Lane 4n + t holds k = 2t and 2t + 1 of column n: transpose so that each vector holds one t and the
            // columns 0, 2, 4, 6, 1, 3, 5, 7, the accumulator's order.
            let [y0, y1, y2, y3] = [0, 1, 2, 3].map(|i| load8(register, i));
            let (low0, low1) = (_mm256_unpacklo_epi32(y0, y1), _mm256_unpacklo_epi32(y2, y3));
            let (high0, high1) = (_mm256_unpackhi_epi32(y0, y1), _mm256_unpackhi_epi32(y2, y3));
            let pairs = [
                _mm256_unpacklo_epi64(low0, low1),
                _mm256_unpackhi_epi64(low0, low1),
                _mm256_unpacklo_epi64(high0, high1),
                _mm256_unpackhi_epi64(high0, high1),
            ];
            for (t, pair) in pairs.into_iter().enumerate() {
                let (even, odd) = match kind {
                    Half::Bf16 => {
                        let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                        let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair));
                        (even, _mm256_castsi256_ps(_mm256_and_si256(pair, upper)))
                    }
                    Half::F16 => {
                        // Narrow each 32-bit element to its low (high) half: all low ones into the lower 128 bits.
                        let low = _mm256_and_si256(pair, _mm256_set1_epi32(0xffff));
                        let high = _mm256_srli_epi32::<16>(pair);
                        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(
                            _mm256_packus_epi32(low, high),
                        );
                        let lower = _mm256_castsi256_si128(packed);
                        (
                            _mm256_cvtph_ps(lower),
                            _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(packed)),
                        )
                    }
                };
                save(&mut tile_b[8 * i + 2 * t], even);
                save(&mut tile_b[8 * i + 2 * t + 1], odd);
            }
        }
        multiply(&tile_a, &tile_b, &mut tile_c);
        for (row, c) in tile_c.iter().enumerate() {
            let (g, low) = (row % 8, row / 8);
            let both = _mm256_castps_si256(load(c));
            save4(&mut d[2 * low], g, _mm256_castsi256_si128(both));
            save4(&mut d[2 * low + 1], g, _mm256_extracti128_si256::<1>(both));
        }
    }
}

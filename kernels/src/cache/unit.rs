//! Eight elements of a row: as bits, and as numbers.

use crate::element::{Bf16, F16};
use crate::ptx::math;
use flashtile_abi::cache::UNIT;
use flashtile_abi::e4m3;

/// Elements of 16 bits, in pairs.
pub type Unit = [u32; 4];

/// Elements of 8 bits, in fours.
pub type Codes = [u32; 2];

/// What they mean.
pub type Numbers = [f32; UNIT as usize];

/// A 16-bit element type with which is computed.
pub trait Half {
    /// Two elements, exactly.
    fn unpack(pair: u32) -> [f32; 2];
    /// Two elements, rounded to nearest even.
    fn pack(lo: f32, hi: f32) -> u32;
}

impl Half for F16 {
    #[inline(always)]
    fn unpack(pair: u32) -> [f32; 2] {
        math::unpack_f16x2(pair)
    }

    #[inline(always)]
    fn pack(lo: f32, hi: f32) -> u32 {
        math::pack_f16x2(lo, hi)
    }
}

impl Half for Bf16 {
    #[inline(always)]
    fn unpack(pair: u32) -> [f32; 2] {
        [
            f32::from_bits(pair << 16),
            f32::from_bits(pair & 0xffff_0000),
        ]
    }

    #[inline(always)]
    fn pack(lo: f32, hi: f32) -> u32 {
        math::pack_bf16x2(lo, hi)
    }
}

/// What elements mean, exactly.
#[inline(always)]
pub fn numbers<E: Half>(unit: Unit) -> Numbers {
    let mut numbers = [0.0; UNIT as usize];
    for i in 0..4 {
        [numbers[2 * i], numbers[2 * i + 1]] = E::unpack(unit[i]);
    }
    numbers
}

/// The elements nearest to numbers.
#[inline(always)]
pub fn elements<E: Half>(numbers: Numbers) -> Unit {
    let mut unit = [0; 4];
    for i in 0..4 {
        unit[i] = E::pack(numbers[2 * i], numbers[2 * i + 1]);
    }
    unit
}

/// What e4m3 elements with a scale mean.
#[inline(always)]
pub fn scaled(codes: Codes, scale: f32) -> Numbers {
    let mut numbers = [0.0; UNIT as usize];
    for i in 0..UNIT as usize {
        numbers[i] = e4m3::decode((codes[i / 4] >> (8 * (i % 4))) as u8) * scale;
    }
    numbers
}

/// The e4m3 elements nearest to numbers over a scale; the largest for what is larger.
#[inline(always)]
pub fn codes(numbers: Numbers, scale: f32) -> Codes {
    let mut codes = [0; 2];
    for i in 0..UNIT as usize {
        codes[i / 4] |= (e4m3::encode(numbers[i] / scale) as u32) << (8 * (i % 4));
    }
    codes
}

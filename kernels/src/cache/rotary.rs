//! Rotary position embedding of a unit of pairs.

use super::row::Unit;
use crate::element::{Bf16, F16};
use crate::ptx::{copy, math};
use flashtile_abi::RowsParams;
use flashtile_abi::cache::{UNIT, flags};

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

/// Cosines or sines of a unit.
type Factors = [f32; UNIT as usize];

/// Numbers `first..first + count` of a row of a table, one to eight.
///
/// # Safety
/// They exist; the launch's flags speak the truth.
#[inline(always)]
unsafe fn factors<E: Half>(row: u64, first: u32, count: u32, with: u32) -> Factors {
    let mut factors = [0.0; UNIT as usize];
    let (wide, pieces) = (
        with & flags::TABLE_F32 != 0,
        with & flags::TABLE_PIECES != 0,
    );
    if wide {
        let address = row + 4 * first as u64;
        if pieces {
            for half in 0..2 {
                // SAFETY: the unit is two whole, aligned pieces.
                let piece = unsafe { copy::ld_global_written_v4(address + 16 * half as u64) };
                for i in 0..4 {
                    factors[4 * half + i] = f32::from_bits(piece[i]);
                }
            }
        } else {
            for i in 0..UNIT {
                if i == 0 || i < count {
                    // SAFETY: the caller's promise; numbers are aligned.
                    let bits = unsafe { copy::ld_global_u32(address + 4 * i as u64) };
                    factors[i as usize] = f32::from_bits(bits);
                }
            }
        }
    } else {
        let address = row + 2 * first as u64;
        if pieces {
            // SAFETY: the unit is a whole, aligned piece.
            let piece = unsafe { copy::ld_global_written_v4(address) };
            for i in 0..4 {
                [factors[2 * i], factors[2 * i + 1]] = E::unpack(piece[i]);
            }
        } else {
            for i in 0..UNIT {
                if i == 0 || i < count {
                    // SAFETY: the caller's promise; numbers are aligned.
                    let bits = unsafe { copy::ld_global_u16(address + 2 * i as u64) };
                    [factors[i as usize], _] = E::unpack(bits as u32);
                }
            }
        }
    }
    factors
}

/// One pair: two products and a sum each, of which the second product and the sum are rounded.
#[inline(always)]
fn turn(x: f32, y: f32, cos: f32, sin: f32) -> [f32; 2] {
    [math::fma(x, cos, -(y * sin)), math::fma(y, cos, x * sin)]
}

/// Pairs `first..first + count` of a row, turned by the angles of a position that the tables have. Their elements are `a` and `b`: of
/// each pair the first is in `a` and the second in `b`, or pairs follow each other through `a`, then `b`.
///
/// # Safety
/// The tables have such pairs; the launch's flags speak the truth.
#[inline(always)]
pub unsafe fn rotate<E: Half>(
    params: &RowsParams,
    position: u32,
    first: u32,
    count: u32,
    [a, b]: [Unit; 2],
) -> [Unit; 2] {
    let rotary = &params.rotary;
    let row = (position as i64 * rotary.row_stride) as u64;
    // SAFETY: the caller's promise.
    let [cos, sin] = unsafe {
        [rotary.cos, rotary.sin]
            .map(|table| factors::<E>(table.wrapping_add(row), first, count, params.flags))
    };
    let [mut to_a, mut to_b] = [[0; 4]; 2];
    if params.flags & flags::INTERLEAVED != 0 {
        for i in 0..4 {
            let [x, y] = E::unpack(a[i]);
            let [x, y] = turn(x, y, cos[i], sin[i]);
            to_a[i] = E::pack(x, y);
            let [x, y] = E::unpack(b[i]);
            let [x, y] = turn(x, y, cos[4 + i], sin[4 + i]);
            to_b[i] = E::pack(x, y);
        }
    } else {
        for i in 0..4 {
            let ([x0, x1], [y0, y1]) = (E::unpack(a[i]), E::unpack(b[i]));
            let [x0, y0] = turn(x0, y0, cos[2 * i], sin[2 * i]);
            let [x1, y1] = turn(x1, y1, cos[2 * i + 1], sin[2 * i + 1]);
            to_a[i] = E::pack(x0, x1);
            to_b[i] = E::pack(y0, y1);
        }
    }
    [to_a, to_b]
}

//! Rotary position embedding of a unit of pairs.

use super::unit::{Half, Numbers, Unit, numbers};
use crate::ptx::{copy, math};
use flashtile_abi::RowsParams;
use flashtile_abi::cache::{UNIT, flags};

/// Numbers `first..first + count` of a row of a table, one to eight.
///
/// # Safety
/// They exist; the launch's flags speak the truth.
#[inline(always)]
unsafe fn factors<E: Half>(row: u64, first: u32, count: u32, with: u32) -> Numbers {
    let mut factors: Numbers = [0.0; UNIT as usize];
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
            factors = numbers::<E>(unsafe { copy::ld_global_written_v4(address) });
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

/// Pairs `first..first + count` of a row, turned by the angles of a position that the tables have, not rounded. Their elements are two
/// units: of each pair the first is in one and the second in the other, or pairs follow each other through one, then the other.
///
/// # Safety
/// The tables have such pairs; the launch's flags speak the truth.
#[inline(always)]
pub unsafe fn rotate<E: Half>(
    params: &RowsParams,
    position: u32,
    first: u32,
    count: u32,
    units: [Unit; 2],
) -> [Numbers; 2] {
    let rotary = &params.rotary;
    let row = (position as i64 * rotary.row_stride) as u64;
    // SAFETY: the caller's promise.
    let [cos, sin] = unsafe {
        [rotary.cos, rotary.sin]
            .map(|table| factors::<E>(table.wrapping_add(row), first, count, params.flags))
    };
    let [mut a, mut b] = units.map(numbers::<E>);
    if params.flags & flags::INTERLEAVED != 0 {
        for i in 0..4 {
            [a[2 * i], a[2 * i + 1]] = turn(a[2 * i], a[2 * i + 1], cos[i], sin[i]);
            [b[2 * i], b[2 * i + 1]] = turn(b[2 * i], b[2 * i + 1], cos[4 + i], sin[4 + i]);
        }
    } else {
        for i in 0..UNIT as usize {
            [a[i], b[i]] = turn(a[i], b[i], cos[i], sin[i]);
        }
    }
    [a, b]
}

use super::*;
use crate::semantics::tests::Rng;
use proptest::prelude::*;

const AMPERE: FusedSum = FusedSum {
    fraction_bits: 24,
    products: 8,
    rounding: Rounding::F32,
};
const HOPPER: FusedSum = HOPPER_F16;

/// Element (0, 0) of a product of the row by the column, added to `c`, by each of the three ways to compute it.
fn dot(sum: FusedSum, format: Float, factors: &[(f32, f32)], c: f32) -> u32 {
    match (sum.products, factors.len()) {
        (8, ..=8) => dot_of::<8, 8>(sum, format, factors, c),
        (8, _) => dot_of::<16, 8>(sum, format, factors, c),
        (16, ..=16) => dot_of::<16, 16>(sum, format, factors, c),
        (16, _) => dot_of::<32, 16>(sum, format, factors, c),
        _ => dot_of::<32, 32>(sum, format, factors, c),
    }
}

fn dot_of<const K: usize, const P: usize>(
    sum: FusedSum,
    format: Float,
    factors: &[(f32, f32)],
    c: f32,
) -> u32 {
    let mut a: TileA<K> = [[0.0; K]; 16];
    let mut b: TileB<K> = [[0.0; 8]; K];
    for (k, &(x, y)) in factors.iter().enumerate() {
        (a[0][k], b[k][0]) = (x, y);
    }
    let mut tile: TileC = [[0.0; 8]; 16];
    tile[0][0] = c;
    let mut portable = tile;
    multiply(sum, [format; 2], &a, &b, &mut tile);
    multiply_portable::<K, P>(sum, [format; 2], &a, &b, &mut portable);
    let mut element = c;
    for k in (0..K).step_by(P) {
        let factors = (k..k + P).map(|k| (a[0][k], b[k][0]));
        element = sum.element([format; 2], factors, element);
    }
    let got = tile[0][0].to_bits();
    assert_eq!(got, portable[0][0].to_bits(), "portable");
    assert_eq!(got, element.to_bits(), "in integers");
    got
}

/// 2^n.
fn p(n: i32) -> f32 {
    2f32.powi(n)
}

/// The same in f16, with these factors.
fn f16(sum: FusedSum, factors: &[(f32, f32)], c: f32) -> u32 {
    dot(sum, Float::F16, factors, c)
}

const ONE: u32 = 0x3f80_0000;
const NAN: u32 = 0x7fff_ffff;

/// Fraction bits: beside 1, a term of 2^-25 is below Ampere's last place, 2^-24, and is Hopper's.
#[test]
fn terms_are_cut() {
    let small = |n: usize, exponent: i32| vec![(p(-12), p(exponent + 12)); n];
    // 1 + 2 * 2^-24 = 1 + 2^-23, the next f32. To nearest, one after the other, it would be 1 twice.
    assert_eq!(f16(AMPERE, &small(2, -24), 1.0), ONE + 1);
    assert_eq!(f16(HOPPER, &small(2, -24), 1.0), ONE + 1);
    // 4 * 2^-25 is 2^-23 too, but Ampere drops each.
    assert_eq!(f16(AMPERE, &small(4, -25), 1.0), ONE);
    assert_eq!(f16(HOPPER, &small(4, -25), 1.0), ONE + 1);
    assert_eq!(f16(HOPPER, &small(8, -26), 1.0), ONE);
    // Toward zero, whatever the sign: 1 - 2^-26 stays 1, and -1 - 4 * 2^-25 is the mirror image.
    assert_eq!(f16(HOPPER, &[(p(-13), -p(-13))], 1.0), ONE);
    assert_eq!(
        f16(HOPPER, &[(p(-13), -p(-12)); 4], -1.0),
        0x8000_0000 | (ONE + 1)
    );
    // A product of 1.5 * 2^-25 is cut to 2^-25: 4 of them make 2^-23, uncut they would make 1.5 * 2^-23.
    assert_eq!(f16(HOPPER, &[(1.5 * p(-13), p(-12)); 4], 1.0), ONE + 1);
}

/// The result is rounded toward zero: 1 + 3 * 2^-24 lies between 1 + 2^-23 and 1 + 2^-22; to nearest even is the latter.
#[test]
fn results_are_truncated() {
    assert_eq!(f16(HOPPER, &[(p(-12), p(-12)); 3], 1.0), ONE + 1);
    assert_eq!(
        f16(HOPPER, &[(-p(-12), p(-12)); 3], -1.0),
        0x8000_0000 | (ONE + 1)
    );
    // 1 - 2^-25 is not an f32 (below 1 they are 2^-24 apart): toward zero it is 1 - 2^-24.
    assert_eq!(f16(HOPPER, &[(p(-13), -p(-12))], 1.0), ONE - 1);
}

/// The accumulator is a term like any other: beside 4 - 4, Ampere's last place is 2^-22 and Hopper's 2^-23.
#[test]
fn the_accumulator_is_cut() {
    let cancel = [(2.0, 2.0), (2.0, -2.0)];
    let c = 1.0 + p(-23);
    assert_eq!(f16(AMPERE, &cancel, c), ONE);
    assert_eq!(f16(HOPPER, &cancel, c), ONE + 1);
    assert_eq!(f16(HOPPER, &[(4.0, 4.0), (4.0, -4.0)], c), ONE);
}

/// Ampere adds 8 products, then the next 8; Hopper 16.
#[test]
fn halves() {
    let at = |places: [usize; 2]| {
        let mut factors = [(0.0, 0.0); 16];
        for k in places {
            factors[k] = (p(-12), p(-12));
        }
        factors
    };
    // 2^-24 in each half: both sums round to 1.
    assert_eq!(f16(AMPERE, &at([0, 15]), 1.0), ONE);
    assert_eq!(f16(AMPERE, &at([8, 15]), 1.0), ONE + 1);
    assert_eq!(f16(HOPPER, &at([0, 15]), 1.0), ONE + 1);
    // -1 + 1 in the first half, 2^-26 in the second: it survives only where the ones have gone before.
    let mut factors = [(0.0, 0.0); 16];
    factors[0] = (1.0, 1.0);
    factors[15] = (p(-13), p(-13));
    assert_eq!(f16(AMPERE, &factors, -1.0), p(-26).to_bits());
    assert_eq!(f16(HOPPER, &factors, -1.0), 0);
    factors.swap(15, 7);
    assert_eq!(f16(AMPERE, &factors, -1.0), 0);
}

/// 1.5 * 1.5 = 2.25 has the exponent 0 + 0: 2^-25 is still Hopper's last place. As 1.125 * 2^1 it would not be.
#[test]
fn products_are_not_normalised() {
    let factors = [(1.5, 1.5), (1.5, -1.5), (p(-13), p(-12))];
    assert_eq!(f16(HOPPER, &factors, 0.0), p(-25).to_bits());
    let factors = [(1.0, 2.0), (1.0, -2.0), (p(-13), p(-12))];
    assert_eq!(f16(HOPPER, &factors, 0.0), 0);
}

#[test]
fn subnormals() {
    // 2^-24 is f16's least number, with the exponent -14: the last place is 2^-39. Of (1 + 2^-10)^2 2^-28, that is
    // 2^-28 (1 + 2^-9 + 2^-20), the last part is cut. With the exponent -24 it would stay.
    let x = p(-14) * (1.0 + p(-10));
    let factors = [(p(-24), 1.0), (p(-24), -1.0), (x, x)];
    let want = p(-28) * (1.0 + p(-9));
    assert_eq!(f16(HOPPER, &factors, 0.0), want.to_bits());
    // As bf16, whose exponent -24 is a normal one, 2^-24 leaves all of (1 + 2^-7)^2 2^-28.
    let x = p(-14) * (1.0 + p(-7));
    let factors = [(p(-24), 1.0), (p(-24), -1.0), (x, x)];
    let got = dot(HOPPER, Float::Bf16, &factors, 0.0);
    assert_eq!(got, (x * x).to_bits());
    // f32's least number is 2^-149; half of it is truncated, two halves are not. Below 2^-126 - 25 all is cut.
    let bf16 = |factors: &[(f32, f32)], c: f32| dot(HOPPER, Float::Bf16, factors, c);
    assert_eq!(bf16(&[(p(-100), p(-49))], 0.0), 1);
    assert_eq!(bf16(&[(p(-100), p(-50))], 0.0), 0);
    assert_eq!(bf16(&[(p(-100), -p(-50))], 0.0), 0x8000_0000);
    assert_eq!(bf16(&[(p(-100), p(-50)); 2], 0.0), 1);
    assert_eq!(bf16(&[(p(-100), p(-52)); 16], 0.0), 0);
    assert_eq!(
        bf16(&[(p(-130), p(10))], f32::from_bits(3)),
        p(-120).to_bits()
    );
    assert_eq!(bf16(&[], f32::from_bits(3)), 3);
}

#[test]
fn large_numbers() {
    let bf16 = |factors: &[(f32, f32)], c: f32| dot(HOPPER, Float::Bf16, factors, c);
    let (inf, most) = (0x7f80_0000, 0x7f7f_ffff);
    // Half a last place more than the largest is cut; a whole one is infinite.
    assert_eq!(bf16(&[(p(100), p(3))], f32::MAX), most);
    assert_eq!(bf16(&[(p(100), p(4))], f32::MAX), inf);
    assert_eq!(bf16(&[(p(100), -p(4))], f32::MIN), 0x8000_0000 | inf);
    // Products have more range than f32: 2^254 - 2^254 leaves nothing of 1.
    let (x, y) = (p(127), -p(127));
    assert_eq!(bf16(&[(x, x), (x, y)], 1.0), 0);
    assert_eq!(bf16(&[(x, x)], 0.0), inf);
    // 16 times almost 4 and almost 2 more: past 2^31 last places of 2^-25. The f16 before 2 squares to
    // 4 - 2^-8 + 2^-20; the sum is 66 - 2^-4 + 2^-16 - 2^-23, truncated to a multiple of 2^-17.
    let x = 2.0 - p(-10);
    let sum = 65.9375 + p(-17);
    assert_eq!(f16(HOPPER, &[(x, x); 16], 2.0 - p(-23)), sum.to_bits());
}

#[test]
fn special_operands() {
    let (inf, nan) = (f32::INFINITY, f32::from_bits(0xffc0_0001));
    assert_eq!(f16(HOPPER, &[(inf, 1.0)], 1.0), 0x7f80_0000);
    assert_eq!(f16(HOPPER, &[(inf, -p(-24))], 1.0), 0xff80_0000);
    assert_eq!(f16(HOPPER, &[(inf, 1.0), (1.0, -inf)], 1.0), NAN);
    assert_eq!(f16(HOPPER, &[(inf, 1.0)], -inf), NAN);
    assert_eq!(f16(HOPPER, &[(inf, 0.0)], 1.0), NAN);
    assert_eq!(f16(HOPPER, &[(1.0, 1.0)], nan), NAN);
    assert_eq!(f16(AMPERE, &[(0.0, nan)], 0.0), NAN);
    assert_eq!(f16(AMPERE, &[(1.0, 1.0)], -inf), 0xff80_0000);
    // Zeros: the sum is +0, and a zero times 2^15 is no term that others are cut against.
    assert_eq!(f16(HOPPER, &[(-0.0, 1.0)], -0.0), 0);
    let c = p(-20) * (1.0 + p(-23));
    assert_eq!(f16(HOPPER, &[(0.0, p(15))], c), c.to_bits());
}

/// To f16, to nearest even, once a sum.
#[test]
fn narrow_results() {
    let [ampere, hopper] = [AMPERE, HOPPER].map(|sum| FusedSum {
        rounding: Rounding::F16,
        ..sum
    });
    // 1 + 2^-11 is a tie, and even is 1; 2^-24 more is not.
    assert_eq!(f16(hopper, &[(p(-11), 1.0)], 1.0), ONE);
    let above = [(p(-11), 1.0), (p(-12), p(-12))];
    assert_eq!(f16(hopper, &above, 1.0), (1.0 + p(-10)).to_bits());
    assert_eq!(
        f16(hopper, &[(p(-11), 1.0)], -1.0),
        (-1.0 + p(-11)).to_bits()
    );
    // 65504 + 16 is halfway to 65536, which is infinite; 15 is not enough.
    assert_eq!(f16(hopper, &[(4.0, 4.0)], 65504.0), 0x7f80_0000);
    assert_eq!(f16(hopper, &[(3.0, 5.0)], 65504.0), 65504f32.to_bits());
    // 1 + 2^-11 in each half: Ampere rounds to 1 twice.
    let mut factors = [(0.0, 0.0); 16];
    (factors[0], factors[8]) = ((p(-11), 1.0), (p(-11), 1.0));
    assert_eq!(f16(ampere, &factors, 1.0), ONE);
    assert_eq!(f16(hopper, &factors, 1.0), (1.0 + p(-10)).to_bits());
}

/// 13 fraction bits: DeepSeek-V3's "14 bits" of 8-bit products on Hopper.
#[test]
fn eight_bit() {
    let sums = [HOPPER_WGMMA_FP8, ADA_FP8];
    for sum in sums {
        let dot = |factors: &[(f32, f32)], c: f32| dot(sum, Float::E4m3, factors, c);
        // The accumulator is cut to 13 fraction bits, and a product of 2^-14 beside 1 to nothing.
        assert_eq!(dot(&[], 1.0 + p(-13) + p(-14)), ONE + (1 << 10));
        assert_eq!(dot(&[(p(-7), p(-7)); 8], 1.0), ONE);
        assert_eq!(dot(&[(p(-7), p(-6)); 8], 1.0), (1.0 + p(-10)).to_bits());
        // 2.25 + 2^-13 needs 14 fraction bits: truncated.
        assert_eq!(dot(&[(1.5, 1.5), (p(-7), p(-6))], 0.0), 2.25f32.to_bits());
        // e4m3's 2^-9 has the exponent -6: beside it the last place is 2^-19, beside its square 2^-25.
        assert_eq!(dot(&[(p(-9), 1.0)], p(-20)), p(-9).to_bits());
        assert_eq!(dot(&[(p(-9), p(-9))], p(-26)), p(-18).to_bits());
        assert_eq!(dot(&[(p(-9), p(-9))], -p(-26)), p(-18).to_bits());
    }
    // 2^-13 in each half of 32: Ada rounds 2.25 + 2^-13 to 2.25 twice, Hopper adds 2^-12 at once.
    let mut factors = [(0.0, 0.0); 32];
    (factors[0], factors[1], factors[31]) = ((1.5, 1.5), (p(-7), p(-6)), (p(-7), p(-6)));
    let got = sums.map(|sum| dot(sum, Float::E4m3, &factors, 0.0));
    assert_eq!(got, [0x4010_0400, 0x4010_0000]);
}

/// The rule once more, from the bits of the formats, in integers of 128 bits, slowly.
fn oracle(sum: FusedSum, format: Float, a: &[u32], b: &[u32], c: u32) -> u32 {
    /// NaN, infinite (by sign) or sign, significand and the exponent of the significand's last bit, with the format's
    /// own exponent.
    enum Value {
        Nan,
        Infinite(bool),
        Finite(bool, i128, i32, i32),
    }
    let value = |f: Float, bits: u32| {
        // tf32 lies in the upper 19 bits of a register, f32 in all of them.
        let bits = if f == Float::Tf32 { bits >> 13 } else { bits };
        let (man, exp) = (f.man_bits(), f.exp_bits());
        let fraction = bits & ((1 << man) - 1);
        let field = bits >> man & ((1 << exp) - 1);
        let negative = bits >> (man + exp) & 1 == 1;
        let (bias, full) = ((1 << (exp - 1)) - 1, (1 << exp) - 1);
        if f == Float::E4m3 {
            if field == full && fraction == 7 {
                return Value::Nan;
            }
        } else if field == full {
            return if fraction == 0 {
                Value::Infinite(negative)
            } else {
                Value::Nan
            };
        }
        let hidden = if field == 0 { 0 } else { 1 << man };
        let exponent = field.max(1) as i32 - bias;
        Value::Finite(
            negative,
            i128::from(fraction | hidden),
            exponent - man as i32,
            exponent,
        )
    };
    let nan = if sum.rounding == Rounding::F16 {
        0x7fff
    } else {
        NAN
    };
    let mut infinite = [false; 2];
    let mut terms = Vec::new();
    for (&a, &b) in a.iter().zip(b) {
        match (value(format, a), value(format, b)) {
            (Value::Nan, _) | (_, Value::Nan) => return nan,
            (Value::Infinite(_), Value::Finite(_, 0, ..)) => return nan,
            (Value::Finite(_, 0, ..), Value::Infinite(_)) => return nan,
            (Value::Infinite(x), Value::Infinite(y) | Value::Finite(y, ..))
            | (Value::Finite(x, ..), Value::Infinite(y)) => infinite[usize::from(x != y)] = true,
            (Value::Finite(x, m, u, e), Value::Finite(y, n, v, f)) => {
                terms.push((x != y, m * n, u + v, e + f));
            }
        }
    }
    let narrow = sum.rounding == Rounding::F16;
    let c_format = if narrow { Float::F16 } else { Float::F32 };
    match value(c_format, c) {
        Value::Nan => return nan,
        Value::Infinite(negative) => infinite[usize::from(negative)] = true,
        Value::Finite(negative, m, u, e) => terms.push((negative, m, u, e)),
    }
    let infinity = |negative: bool| {
        (c_format.infinity() | if negative { c_format.sign_bit() } else { 0 }) as u32
    };
    match infinite {
        [true, true] => return nan,
        [false, false] => {}
        [_, negative] => return infinity(negative),
    }
    let live = || terms.iter().filter(|(_, m, ..)| *m != 0);
    let top = live().map(|&(.., e)| e).max().unwrap_or(-126).max(-126);
    let place = top - sum.fraction_bits as i32;
    let mut total = 0i128;
    for &(negative, magnitude, unit, _) in live() {
        let shift = place - unit;
        let cut = match shift {
            ..=0 => magnitude << -shift,
            1..=100 => magnitude >> shift,
            _ => 0,
        };
        total += if negative { -cut } else { cut };
    }
    // The result: search all magnitudes of the format for the last that is not beyond the sum.
    let exceeds = |bits: u32| match value(c_format, bits) {
        Value::Finite(_, m, unit, _) => {
            // m * 2^unit > |total| * 2^place
            let shift = unit - place;
            let total = total.abs();
            match shift {
                80.. => m != 0,
                0..80 => m << shift > total,
                -60..0 => m > total << -shift,
                // |total| is either 0 or at least 2^60 * 2^unit, more than any m.
                _ => total == 0 && m != 0,
            }
        }
        _ => true,
    };
    let (mut below, mut above) = (0u32, c_format.infinity() as u32);
    while above - below > 1 {
        let middle = below.midpoint(above);
        if exceeds(middle) {
            above = middle
        } else {
            below = middle
        }
    }
    let mut magnitude = match sum.rounding {
        Rounding::F16 => {
            // Twice the sum against the sum of the neighbours; the one beyond the largest is 2^16.
            let of = |bits: u32| match value(Float::F16, bits) {
                Value::Finite(_, m, unit, _) => m << (unit + 24),
                _ => 1 << 40,
            };
            // place may be far below 2^-24, or above: compare in units of 2^-200 where the sum fits, else it is huge.
            let scaled = |x: i128, unit: i32| x << (unit + 60).clamp(0, 80);
            let (low, high) = (scaled(of(below), -24), scaled(of(above), -24));
            let twice = 2 * scaled(total.abs(), place);
            let up = match twice.cmp(&(low + high)) {
                std::cmp::Ordering::Less => false,
                std::cmp::Ordering::Greater => true,
                std::cmp::Ordering::Equal => below & 1 == 1,
            };
            if up { above } else { below }
        }
        // 2^128 and more, that is from the largest f32 on by a whole last place, is infinite.
        _ if below == 0x7f7f_ffff => {
            let beyond = match 128 - place {
                shift @ 0..120 => total.abs() >= 1 << shift,
                shift => shift < 0,
            };
            if beyond { 0x7f80_0000 } else { below }
        }
        _ => below,
    };
    if sum.rounding == Rounding::E8m13 {
        magnitude &= !0x3ff;
    }
    magnitude
        | if total < 0 {
            c_format.sign_bit() as u32
        } else {
            0
        }
}

/// The f32 of an operand's bits.
fn widen(f: Float, bits: u32) -> f32 {
    f32::from_bits(Num::unpack(f, bits.into()).pack(Float::F32, Round::Rn) as u32)
}

const CASES: [(Float, FusedSum); 9] = {
    const fn with(fraction_bits: u32, products: usize, rounding: Rounding) -> FusedSum {
        FusedSum {
            fraction_bits,
            products,
            rounding,
        }
    }
    [
        (Float::F16, AMPERE),
        (Float::F16, HOPPER),
        (Float::Bf16, AMPERE),
        (Float::Bf16, HOPPER),
        (Float::Tf32, with(24, 4, Rounding::F32)),
        (Float::Tf32, with(25, 8, Rounding::F32)),
        (Float::F16, with(25, 16, Rounding::F16)),
        (Float::E4m3, HOPPER_WGMMA_FP8),
        (Float::E5m2, ADA_FP8),
    ]
};

/// Bits of a format: anything, or near 1 so that terms meet, or small multiples of powers of two so that they cancel.
fn operand(f: Float, r: u64, kind: u64) -> u32 {
    let width = f.man_bits() + f.exp_bits() + 1;
    let any = (r as u32) & (((1u64 << width) - 1) as u32);
    let (man, bias) = (f.man_bits(), (1u32 << (f.exp_bits() - 1)) - 1);
    let bits = match kind {
        0 => any,
        1 => {
            let exponent = bias + (r >> 40) as u32 % 9 - 4;
            any & (1 << (width - 1) | ((1 << man) - 1)) | exponent << man
        }
        2 => any & (1 << (width - 1)) | (bias + (r >> 40) as u32 % 3 - 1) << man,
        _ => any & (1 << (width - 1) | ((2 << man) - 1)),
    };
    if f == Float::Tf32 { bits << 13 } else { bits }
}

/// One row of a case, all three ways, against the oracle.
fn agree(case: usize, seed: u64, kind: u64) -> Result<(), TestCaseError> {
    let (format, sum) = CASES[case];
    let mut rng = Rng(seed);
    let n = sum.products;
    let mut bits = |kind: u64| (0..n).map(|_| operand(format, rng.next(), kind)).collect();
    let a: Vec<u32> = bits(kind % 4);
    let b: Vec<Vec<u32>> = (0..8).map(|_| bits(kind / 4 % 4)).collect();
    let narrow = sum.rounding == Rounding::F16;
    let c: [u32; 8] = std::array::from_fn(|i| {
        let format = if narrow { Float::F16 } else { Float::F32 };
        match (kind / 16 + i as u64) % 3 {
            0 => 0,
            which => operand(format, rng.next(), which - 1),
        }
    });
    let widen_c = |x: u32| widen(if narrow { Float::F16 } else { Float::F32 }, x);
    let mut tile_a: TileA<32> = [[0.0; 32]; 16];
    let mut tile_b: TileB<32> = [[0.0; 8]; 32];
    for k in 0..n {
        // In the last sum, so that the others, of zeros, only round `c`.
        tile_a[3][32 - n + k] = widen(format, a[k]);
        for (column, b) in b.iter().enumerate() {
            tile_b[32 - n + k][column] = widen(format, b[k]);
        }
    }
    for (n, &c) in c.iter().enumerate() {
        let want = oracle(sum, format, &a, &b[n], c);
        let want = widen_c(want).to_bits();
        let want = if want & 0x7fff_ffff > 0x7f80_0000 {
            NAN
        } else {
            want
        };
        let factors = a.iter().zip(&b[n]);
        let factors = factors.map(|(&a, &b)| (widen(format, a), widen(format, b)));
        let got = sum.element([format; 2], factors, widen_c(c)).to_bits();
        prop_assert_eq!(got, want, "{:?} {:x?} {:x?} {:#x}", sum, &a, &b[n], c);
    }
    let mut wide: TileC = [[0.0; 8]; 16];
    wide[3] = c.map(widen_c);
    let mut portable = wide;
    let mut one_by_one = wide[3];
    // `c` goes through sums of zeros first, which cut it only to 13 fraction bits.
    for (n, c) in one_by_one.iter_mut().enumerate() {
        for k in (0..32).step_by(sum.products) {
            let factors = (k..k + sum.products).map(|k| (tile_a[3][k], tile_b[k][n]));
            *c = sum.element([format; 2], factors, *c);
        }
    }
    multiply(sum, [format; 2], &tile_a, &tile_b, &mut wide);
    match n {
        4 => multiply_portable::<32, 4>(sum, [format; 2], &tile_a, &tile_b, &mut portable),
        8 => multiply_portable::<32, 8>(sum, [format; 2], &tile_a, &tile_b, &mut portable),
        16 => multiply_portable::<32, 16>(sum, [format; 2], &tile_a, &tile_b, &mut portable),
        _ => multiply_portable::<32, 32>(sum, [format; 2], &tile_a, &tile_b, &mut portable),
    }
    let bits = |row: [f32; 8]| row.map(f32::to_bits);
    prop_assert_eq!(
        bits(wide[3]),
        bits(one_by_one),
        "{:?} {:x?} {:x?}",
        sum,
        a,
        b
    );
    prop_assert_eq!(
        bits(portable[3]),
        bits(one_by_one),
        "portable {:?} {:x?} {:x?}",
        sum,
        a,
        b
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_oracle(case in 0..CASES.len(), seed: u64, kind in 0u64..48) {
        agree(case, seed, kind)?;
    }
}

//! e4m3: sign, 4 exponent bits with bias 7, 3 fraction bits. No infinities; the code of all ones is NaN (OCP FP8).
//!
//! In arithmetic that every GPU has, without branches: the instructions for it come with sm_89.

/// Fraction bits of f32 that e4m3 lacks.
const DROPPED: u32 = 23 - 3;

/// 2^120. A code in the place of an f32's highest bits means a number smaller by so much, subnormal ones included: the exponents' biases are
/// 7 and 127.
const TWO_TO_120: f32 = f32::from_bits((127 + 120) << 23);

/// Its inverse.
const TWO_TO_MINUS_120: f32 = f32::from_bits((127 - 120) << 23);

/// Largest number.
const LARGEST: f32 = 448.0;

/// Code of the largest number.
const LARGEST_CODE: u32 = 0x7e;

/// The exponent of f32, in its place.
const EXPONENT: u32 = 0xff << 23;

/// Exponent of the smallest normal number, 2^-6. Smaller numbers are multiples of 2^-9 too.
const LEAST_EXPONENT: u32 = (127 - 6) << 23;

/// The number that a code means, exactly.
#[inline(always)]
pub fn decode(code: u8) -> f32 {
    let magnitude = (code & 0x7f) as u32;
    let number = f32::from_bits(magnitude << DROPPED) * TWO_TO_120;
    let number = if magnitude > LARGEST_CODE {
        f32::NAN
    } else {
        number
    };
    if code & 0x80 == 0 { number } else { -number }
}

/// The code of the nearest number, ties to even; of the largest one for what is larger, infinities included. (PTX:
/// `cvt.rn.satfinite.e4m3x2.f32`.)
#[inline(always)]
pub fn encode(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) & 0x80;
    let magnitude = f32::from_bits(x.to_bits() & !(1 << 31));
    let kept = magnitude.min(LARGEST);
    // A number whose last bit is worth as much as the code's: added and subtracted, it rounds.
    let exponent = (kept.to_bits() & EXPONENT).max(LEAST_EXPONENT);
    let rounder = f32::from_bits(exponent + (DROPPED << 23));
    let rounded = (kept + rounder) - rounder;
    let code = (rounded * TWO_TO_MINUS_120).to_bits() >> DROPPED;
    // NaN has become the largest number, whose code differs from NaN's by the lowest bit.
    let nan = magnitude.is_nan() as u32;
    ((code | sign) & !(nan << 7) | nan) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the format's definition, in arithmetic.
    fn meaning(code: u8) -> f64 {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
        let magnitude = match exponent {
            0 => fraction / 8.0 * 2f64.powi(-6),
            15 if code & 7 == 7 => f64::NAN,
            _ => (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7),
        };
        if code & 0x80 == 0 {
            magnitude
        } else {
            -magnitude
        }
    }

    #[test]
    fn every_code_means_what_the_format_says_and_survives() {
        for code in 0..=255 {
            let (found, wanted) = (decode(code), meaning(code));
            if wanted.is_nan() {
                assert!(found.is_nan() && code & 0x7f == 0x7f);
                assert_eq!(encode(found), 0x7f);
            } else {
                assert_eq!(f64::from(found), wanted, "{code:#x}");
                assert_eq!(found.is_sign_negative(), code & 0x80 != 0);
                assert_eq!(encode(found), code);
            }
        }
    }

    /// Between every two neighbours: just below the middle, the middle, just above it.
    #[test]
    fn numbers_between_two_codes_go_to_the_nearest_and_ties_to_the_even_one() {
        for code in 0..0x7e_u8 {
            let (low, high) = (decode(code), decode(code + 1));
            // Exact: both have 4 significant bits.
            let middle = (low + high) / 2.0;
            let even = code + (code & 1);
            for (x, wanted) in [
                (low.next_up(), code),
                (middle.next_down(), code),
                (middle, even),
                (middle.next_up(), code + 1),
                (high.next_down(), code + 1),
            ] {
                assert_eq!(encode(x), wanted, "{x:e}");
                assert_eq!(encode(-x), wanted | 0x80, "{x:e}");
            }
        }
    }

    #[test]
    fn constants_are_powers_of_two() {
        assert_eq!(f64::from(TWO_TO_120), 2f64.powi(120));
        assert_eq!(f64::from(TWO_TO_MINUS_120), 2f64.powi(-120));
        assert_eq!(f32::from_bits(LEAST_EXPONENT), 2f32.powi(-6));
    }

    #[test]
    fn what_is_larger_saturates_and_nothing_else_is_nan() {
        for x in [448.0, 464.0, 480.0, 1e4, f32::MAX, f32::INFINITY] {
            assert_eq!((encode(x), encode(-x)), (0x7e, 0xfe), "{x:e}");
        }
        for x in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)] {
            assert_eq!(encode(x), 0x7f);
        }
        let tiny = f32::MIN_POSITIVE;
        assert_eq!((encode(0.0), encode(-0.0)), (0, 0x80));
        assert_eq!((encode(tiny), encode(-tiny)), (0, 0x80));
        assert_eq!(encode(f32::from_bits(1)), 0);
    }
}

//! e4m3: sign, 4 exponent bits with bias 7, 3 fraction bits. No infinities; the code of all ones is NaN (OCP FP8).

/// Fraction bits of f32 that e4m3 lacks.
const DROPPED: u32 = 23 - 3;

/// Difference of the exponents' biases, at e4m3's exponent field.
const REBIAS: u32 = (127 - 7) << 3;

/// Smallest normal number: 2^-6.
const LEAST_NORMAL: f32 = 0.015_625;

/// Code of the largest number, 448.
const LARGEST: u32 = 0x7e;

/// The number that a code means, exactly.
#[inline]
pub(super) fn decode(code: u8) -> f32 {
    let magnitude = match u32::from(code & 0x7f) {
        0x7f => f32::NAN,
        // Multiples of 2^-9.
        subnormal @ 0..8 => subnormal as f32 / 512.0,
        normal => f32::from_bits((normal + REBIAS) << DROPPED),
    };
    if code & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

/// The code of the nearest number, ties to even; of the largest one for what is larger, infinities included. (PTX:
/// `cvt.rn.satfinite.e4m3x2.f32`.)
#[inline]
pub(super) fn encode(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let magnitude = x.abs();
    let code = if magnitude < LEAST_NORMAL {
        (magnitude * 512.0).round_ties_even() as u32
    } else {
        let bits = magnitude.to_bits();
        let half = (1 << (DROPPED - 1)) - 1 + (bits >> DROPPED & 1);
        (((bits + half) >> DROPPED) - REBIAS).min(LARGEST)
    };
    // At most 7 bits.
    code as u8 | if x.is_sign_negative() { 0x80 } else { 0 }
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

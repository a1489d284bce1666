//! 2^x by arithmetic alone, for kernels whose special-function units are the limit.
//!
//! x = n + f with n the nearest integer: 2^n by the exponent's bits, 2^f by a polynomial (Cody and Waite's reduction; the idea for
//! attention is FlashAttention-4's). Good to 2^-22, relative, as `ex2.approx` is; 2^0 = 1 exactly; 0 below 2^-126.

/// Added to a number, and subtracted again, rounds it to an integer: 1.5 * 2^23.
pub const ROUND: f32 = 12_582_912.0;

/// Coefficients of 2^f on [-1/2, 1/2], the constant first: a minimax fit of the relative error, its constant rounded to 1.
pub const POLYNOMIAL: [f32; 6] = [
    1.0,
    0.693_146_94,
    0.240_221_2,
    0.055_507_13,
    0.009_675_541,
    0.001_327_647_2,
];

/// Exponents below it count as it: 2^n is 0 there, and the bits of n don't wrap.
pub const LEAST: f32 = -130.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels' steps.
    fn exp2(x: f32) -> f32 {
        let x = x.max(LEAST);
        let shifted = x + ROUND;
        let f = x - (shifted - ROUND);
        let mut p = POLYNOMIAL[5];
        for c in POLYNOMIAL[..5].iter().rev() {
            p = p.mul_add(f, *c);
        }
        let bits = (p.to_bits() as i32).wrapping_add((shifted.to_bits() << 23) as i32);
        f32::from_bits(bits.max(0) as u32)
    }

    #[test]
    fn it_is_as_good_as_the_instruction() {
        // Every 97th number from 9 to -126.
        let (top, bottom) = (9f32.to_bits(), (-126f32).to_bits());
        let positive = (0..=top).step_by(97);
        let negative = (0x8000_0000..=bottom).step_by(97);
        let mut worst = 0f64;
        for x in positive.chain(negative).map(f32::from_bits) {
            let exact = f64::from(x).exp2();
            worst = worst.max((f64::from(exp2(x)) / exact - 1.0).abs());
        }
        assert!(worst <= 2f64.powi(-22), "{worst:e}");
    }

    #[test]
    fn the_ends_are_exact() {
        assert_eq!(exp2(0.0), 1.0);
        for n in -126..=9 {
            assert_eq!(exp2(n as f32), 2f32.powi(n));
        }
        for x in [
            -127.0,
            -130.0,
            -131.5,
            -1e6,
            -1e30,
            f32::MIN,
            f32::NEG_INFINITY,
        ] {
            let found = exp2(x);
            assert!((0.0..=f32::MIN_POSITIVE).contains(&found), "{x}: {found:e}");
        }
        assert_eq!(exp2(-1000.0), 0.0);
    }
}

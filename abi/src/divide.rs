//! Division by numbers that a launch knows beforehand.

/// A divisor, and what it is divided by with: a product and a shift. (Granlund and Montgomery, "Division by invariant integers using
/// multiplication", PLDI 1994, section 4, for dividends of 31 bits.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Divisor {
    /// The divisor, positive, at most 2^31.
    pub divisor: u32,
    multiplier: u32,
    shift: u32,
}

impl Divisor {
    /// The largest dividend.
    pub const MAX_DIVIDEND: u32 = (1 << 31) - 1;

    /// The divisor; 0 counts as 1.
    pub const fn new(divisor: u32) -> Self {
        let divisor = if divisor == 0 { 1 } else { divisor };
        // 2^log is the least power of two that is not below the divisor.
        let log = 32 - (divisor - 1).leading_zeros();
        let shift = 31 + log;
        // Below 2^32, since 2^log is below twice the divisor; 2^31 for the divisors that are powers of two.
        let multiplier = ((1u64 << shift) as u128).div_ceil(divisor as u128) as u32;
        Self {
            divisor,
            multiplier,
            shift,
        }
    }

    /// Quotient and remainder of a dividend of at most [`MAX_DIVIDEND`](Self::MAX_DIVIDEND).
    #[inline(always)]
    pub const fn div_rem(self, dividend: u32) -> (u32, u32) {
        let quotient = ((dividend as u64 * self.multiplier as u64) >> self.shift) as u32;
        (
            quotient,
            dividend.wrapping_sub(quotient.wrapping_mul(self.divisor)),
        )
    }
}

impl Default for Divisor {
    fn default() -> Self {
        Self::new(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_are_exact() {
        let near = |x: u32| x.saturating_sub(3)..=x.saturating_add(3).min(1 << 31);
        let divisors = (1..=300).chain((0..32).flat_map(|log| near(1 << log)));
        for divisor in divisors.filter(|&d| d > 0) {
            let by = Divisor::new(divisor);
            let multiples = [1, 2, 3, 1000, Divisor::MAX_DIVIDEND / divisor];
            let dividends = multiples
                .iter()
                .flat_map(|&m| near(divisor.saturating_mul(m)))
                .chain(0..300)
                .chain(near(Divisor::MAX_DIVIDEND));
            for dividend in dividends.filter(|&x| x <= Divisor::MAX_DIVIDEND) {
                let expected = (dividend / divisor, dividend % divisor);
                assert_eq!(by.div_rem(dividend), expected, "{dividend} / {divisor}");
            }
        }
    }
}

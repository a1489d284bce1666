//! Floating-point formats and rounding, from f64 arithmetic.
//!
//! A result of f32, f16 or bf16 operands is held as a pair of f64s: the sum or product in f64, and what that lost.
//! One rounding of the pair, in any direction, is the instruction's.

/// A direction of rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To nearest, ties to even.
    Rn,
    /// Toward zero.
    Rz,
    /// Down.
    Rm,
    /// Up.
    Rp,
}

impl Mode {
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::Rn, "rn"),
        (Self::Rz, "rz"),
        (Self::Rm, "rm"),
        (Self::Rp, "rp"),
    ];
}

/// A binary format: bits of the significand, the leading one included, and of the exponent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub name: &'static str,
    significand: u32,
    exponent: u32,
}

pub const F16: Format = Format {
    name: "f16",
    significand: 11,
    exponent: 5,
};
pub const BF16: Format = Format {
    name: "bf16",
    significand: 8,
    exponent: 8,
};
pub const F32: Format = Format {
    name: "f32",
    significand: 24,
    exponent: 8,
};
pub const F64: Format = Format {
    name: "f64",
    significand: 53,
    exponent: 11,
};

/// A number and what it lost to f64's rounding.
pub type Pair = (f64, f64);

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// Bits of infinity.
    pub fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << (self.significand - 1)
    }

    /// The sign's bit.
    pub fn sign(self) -> u64 {
        1 << (self.significand + self.exponent - 1)
    }

    /// What NaN results are: all ones but the sign; of f64 the quiet bit alone.
    pub fn nan(self) -> u64 {
        match self {
            F64 => 0x7ff8_0000_0000_0000,
            _ => self.sign() - 1,
        }
    }

    pub fn is_nan(self, bits: u64) -> bool {
        bits & (self.sign() - 1) > self.infinity()
    }

    pub fn is_subnormal(self, bits: u64) -> bool {
        let magnitude = bits & (self.sign() - 1);
        magnitude != 0 && magnitude < 1 << (self.significand - 1)
    }

    /// A subnormal number becomes a zero of its sign.
    pub fn flush(self, bits: u64) -> u64 {
        match self.is_subnormal(bits) {
            true => bits & self.sign(),
            false => bits,
        }
    }

    /// The number, exactly.
    pub fn decode(self, bits: u64) -> f64 {
        let sign = if bits & self.sign() != 0 { -1.0 } else { 1.0 };
        let fraction = bits & ((1 << (self.significand - 1)) - 1);
        let exponent = (bits & (self.sign() - 1)) >> (self.significand - 1);
        let places = self.significand as i32 - 1;
        if self == F64 {
            f64::from_bits(bits)
        } else if exponent == (1 << self.exponent) - 1 {
            if fraction == 0 {
                sign * f64::INFINITY
            } else {
                f64::NAN
            }
        } else if exponent == 0 {
            sign * fraction as f64 * 2f64.powi(1 - self.bias() - places)
        } else {
            let significand = (fraction | 1 << places) as f64;
            sign * significand * 2f64.powi(exponent as i32 - self.bias() - places)
        }
    }

    /// The pair's sum, rounded once. Formats narrower than f64 only.
    pub fn round(self, (value, lost): Pair, mode: Mode) -> u64 {
        if value.is_nan() {
            return self.nan();
        }
        let sign = if value.is_sign_negative() {
            self.sign()
        } else {
            0
        };
        if value.is_infinite() {
            return sign | self.infinity();
        }
        if value == 0.0 {
            return sign;
        }
        // |value| = significand * 2^exponent; two more bits for what was lost, of which only the side matters.
        let bits = value.abs().to_bits();
        let (field, fraction) = ((bits >> 52) as i32, bits & ((1 << 52) - 1));
        let (mut significand, exponent) = match field {
            0 => (fraction << 2, -1074 - 2),
            _ => ((fraction | 1 << 52) << 2, field - 1075 - 2),
        };
        if lost != 0.0 {
            match (lost > 0.0) == (value > 0.0) {
                true => significand += 1,
                false => significand -= 1,
            }
        }
        let top = 63 - significand.leading_zeros() as i32 + exponent;
        let places = self.significand as i32 - 1;
        let smallest = 1 - self.bias();
        let unit = top.max(smallest) - places;
        let shift = (unit - exponent) as u32;
        let wide = u128::from(significand);
        let (kept, rest) = match shift {
            0..=100 => (wide >> shift, wide & ((1 << shift) - 1)),
            _ => (0, 1),
        };
        let half = 1u128 << (shift.min(100) - 1);
        let up = match mode {
            Mode::Rn => rest > half || rest == half && kept & 1 == 1,
            Mode::Rz => false,
            Mode::Rm => rest != 0 && value < 0.0,
            Mode::Rp => rest != 0 && value > 0.0,
        };
        let kept = kept as u64 + u64::from(up);
        // The leading one adds 1 to the exponent's field, and so does a carry.
        let field = (top.max(smallest) + self.bias() - 1) as u64;
        let magnitude = (field << places) + kept;
        if magnitude < self.infinity() {
            return sign | magnitude;
        }
        let away = match mode {
            Mode::Rn => true,
            Mode::Rz => false,
            Mode::Rm => value < 0.0,
            Mode::Rp => value > 0.0,
        };
        sign | if away {
            self.infinity()
        } else {
            self.infinity() - 1
        }
    }
}

/// Sum (Knuth's two-sum). A sum that is zero although its terms are not zeros of one sign is -0 when rounded down.
pub fn sum(a: f64, b: f64, mode: Mode) -> Pair {
    let s = a + b;
    if s == 0.0 && mode == Mode::Rm && !(a.is_sign_positive() && b.is_sign_positive()) {
        return (-0.0, 0.0);
    }
    if !s.is_finite() {
        return (s, 0.0);
    }
    let b_part = s - a;
    (s, (a - (s - b_part)) + (b - b_part))
}

/// Quotient of operands of at most 24 bits.
pub fn quotient(a: f64, b: f64) -> Pair {
    let q = a / b;
    match q.is_finite() && q != 0.0 && b.is_finite() {
        true => (q, q.mul_add(-b, a) / b),
        false => (q, 0.0),
    }
}

/// Square root of an operand of at most 24 bits.
pub fn root(a: f64) -> Pair {
    let s = a.sqrt();
    match s.is_finite() && s != 0.0 {
        true => (s, s.mul_add(-s, a)),
        false => (s, 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Random;

    #[test]
    fn nearest_is_what_the_host_computes() {
        let mut random = Random::new(1);
        for _ in 0..200_000 {
            let bits = [0; 3].map(|_| random.bits() as u32);
            // Exponents near each other half of the time, so that sums cancel.
            let near = random.bits() & 1 == 0;
            let [a, b, c] = bits.map(|x| {
                if near {
                    x & 0x83ff_ffff | 0x3c00_0000
                } else {
                    x
                }
            });
            let [x, y, z] = [a, b, c].map(f32::from_bits);
            let [p, q, r] = [x, y, z].map(f64::from);
            let same = |pair, host: f32| {
                // Without this, the optimiser takes the root of a negative number for no NaN (rustc 1.95).
                let host = std::hint::black_box(host);
                let found = F32.round(pair, Mode::Rn) as u32;
                let host = if host.is_nan() {
                    0x7fff_ffff
                } else {
                    host.to_bits()
                };
                assert_eq!(found, host, "{x:e} {y:e} {z:e}");
            };
            same(sum(p, q, Mode::Rn), x + y);
            same((p * q, 0.0), x * y);
            same(sum(p * q, r, Mode::Rn), x.mul_add(y, z));
            same(quotient(p, q), x / y);
            same(root(p), x.sqrt());
            if !x.is_nan() {
                assert_eq!(F32.decode(a.into()).to_bits(), p.to_bits());
            }
        }
    }

    #[test]
    fn directions() {
        let third = quotient(1.0, 3.0);
        let round = |mode| F32.round(third, mode);
        assert_eq!(round(Mode::Rn), 0x3eaa_aaab);
        assert_eq!(round(Mode::Rz), 0x3eaa_aaaa);
        assert_eq!(round(Mode::Rm), 0x3eaa_aaaa);
        assert_eq!(round(Mode::Rp), 0x3eaa_aaab);
        let huge = (1e10, 0.0);
        let over = [Mode::Rn, Mode::Rz, Mode::Rm, Mode::Rp].map(|mode| F16.round(huge, mode));
        assert_eq!(over, [0x7c00, 0x7bff, 0x7bff, 0x7c00]);
        // Below half of f16's least number, and just above it.
        assert_eq!(F16.round((2f64.powi(-25), 0.0), Mode::Rn), 0);
        assert_eq!(F16.round((2f64.powi(-25), 1e-300), Mode::Rn), 1);
        assert_eq!(F16.round((-2f64.powi(-200), 0.0), Mode::Rm), 0x8001);
        assert_eq!(sum(1.0, -1.0, Mode::Rm).0.to_bits(), (-0f64).to_bits());
        assert_eq!(sum(0.0, 0.0, Mode::Rm).0.to_bits(), 0);
    }
}

//! The arithmetic of PTX instructions: pure functions from register bits to register bits.
//!
//! Nothing here knows about registers, memory or divergence; the machine routes operands in and results out.
//! A warp-wide operand is a [`Lanes`] array, one 32-bit register per lane.
//!
//! This module holds what the others share: the floating-point formats, the rounding modes, and a small exact
//! soft-float ([`Num`]) that every rounding mode but the hot round-to-nearest ones goes through.

pub mod cvt;
pub mod float;
pub mod half;
pub mod int;
pub mod matrix;
pub mod mma;
pub mod special;
pub mod warp;
pub mod wgmma;

/// One 32-bit register across the 32 lanes of a warp.
pub type Lanes = [u32; 32];

/// A rounding direction: `.rn`, `.rz`, `.rm`, `.rp`, and `.rna` (nearest, ties away from zero).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Round {
    /// To nearest, ties to even.
    #[default]
    Rn,
    /// Toward zero.
    Rz,
    /// Toward negative infinity.
    Rm,
    /// Toward positive infinity.
    Rp,
    /// To nearest, ties away from zero.
    Rna,
}

/// A floating-point format. Its bits sit in the low end of a `u64`; `Tf32` uses the f32 container with 13 zero bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// tf32: an f32 whose low 13 bits are zero.
    Tf32,
    /// 8-bit, 4 exponent bits, no infinity, 0x7f is NaN, largest finite 448.
    E4m3,
    /// 8-bit, 5 exponent bits, IEEE-like.
    E5m2,
}

impl Float {
    /// Explicit significand bits.
    pub const fn man_bits(self) -> u32 {
        match self {
            Float::F64 => 52,
            Float::F32 => 23,
            Float::F16 | Float::Tf32 => 10,
            Float::Bf16 => 7,
            Float::E4m3 => 3,
            Float::E5m2 => 2,
        }
    }

    /// Exponent bits.
    pub const fn exp_bits(self) -> u32 {
        match self {
            Float::F64 => 11,
            Float::F32 | Float::Bf16 | Float::Tf32 => 8,
            Float::F16 | Float::E5m2 => 5,
            Float::E4m3 => 4,
        }
    }

    /// Zero bits below the significand in the register container.
    const fn pad(self) -> u32 {
        if matches!(self, Float::Tf32) { 13 } else { 0 }
    }

    const fn bias(self) -> i32 {
        (1 << (self.exp_bits() - 1)) - 1
    }

    /// The sign bit in the register container.
    pub const fn sign_bit(self) -> u64 {
        1 << (self.man_bits() + self.exp_bits() + self.pad())
    }

    /// Positive infinity, or NaN in a format without one.
    pub const fn infinity(self) -> u64 {
        match self {
            Float::E4m3 => 0x7f,
            _ => ((1u64 << self.exp_bits()) - 1) << (self.man_bits() + self.pad()),
        }
    }

    /// The largest finite value.
    pub const fn max_finite(self) -> u64 {
        self.infinity() - (1 << self.pad())
    }

    /// The value 1.
    pub const fn one(self) -> u64 {
        (self.bias() as u64) << (self.man_bits() + self.pad())
    }

    /// The NaN that arithmetic and conversions produce: all ones below the sign, as the hardware gives for f32, f16
    /// and bf16; for f64 the plain quiet NaN.
    pub const fn canonical_nan(self) -> u64 {
        match self {
            Float::F64 => 0x7ff8_0000_0000_0000,
            Float::Tf32 => 0x7fff_ffff,
            _ => self.sign_bit() - 1,
        }
    }

    /// Whether `bits` is a NaN of this format.
    pub const fn is_nan(self, bits: u64) -> bool {
        let magnitude = bits & (self.sign_bit() - 1);
        match self {
            Float::E4m3 => magnitude == 0x7f,
            _ => magnitude > self.infinity(),
        }
    }

    /// Whether `bits` is subnormal (not zero).
    pub const fn is_subnormal(self, bits: u64) -> bool {
        let magnitude = bits & (self.sign_bit() - 1);
        magnitude != 0 && magnitude < 1 << (self.man_bits() + self.pad())
    }

    /// `.ftz`: a subnormal becomes a zero of the same sign.
    pub const fn flush(self, bits: u64) -> u64 {
        if self.is_subnormal(bits) {
            bits & self.sign_bit()
        } else {
            bits
        }
    }

    /// `.sat`: clamp to [0, 1], NaN to +0.
    pub const fn saturate(self, bits: u64) -> u64 {
        if self.is_nan(bits) || bits & self.sign_bit() != 0 {
            0
        } else if bits > self.one() {
            self.one()
        } else {
            bits
        }
    }

    /// `.relu`: negative values (and -0) to +0, NaN to the canonical NaN.
    pub const fn relu(self, bits: u64) -> u64 {
        if self.is_nan(bits) {
            self.canonical_nan()
        } else if bits & self.sign_bit() != 0 {
            0
        } else {
            bits
        }
    }
}

/// A value taken out of its format: exact, except that an inexact operation leaves a 1 in the lowest bit of a
/// significand far longer than any format's ("jamming"), so one later [`Num::pack`] still rounds correctly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Num {
    /// Not a number.
    Nan,
    /// Infinity; true when negative.
    Inf(bool),
    /// (negative, magnitude, exponent): magnitude x 2^exponent.
    Fin(bool, u128, i32),
}

/// Shifts right, keeping in bit 0 whether anything was lost.
const fn shift_right_jam(magnitude: u128, shift: u32) -> u128 {
    if shift == 0 {
        magnitude
    } else if shift >= 128 {
        (magnitude != 0) as u128
    } else {
        (magnitude >> shift) | (magnitude << (128 - shift) != 0) as u128
    }
}

/// Moves the leading one of a non-zero magnitude to bit `msb` (upwards or, jamming, downwards).
const fn normalise(magnitude: u128, exponent: i32, msb: u32) -> (u128, i32) {
    let top = 127 - magnitude.leading_zeros();
    if top <= msb {
        (magnitude << (msb - top), exponent - (msb - top) as i32)
    } else {
        (
            shift_right_jam(magnitude, top - msb),
            exponent + (top - msb) as i32,
        )
    }
}

impl Num {
    /// Reads a value of format `f`.
    pub const fn unpack(f: Float, bits: u64) -> Num {
        let bits = bits >> f.pad();
        let man = f.man_bits();
        let exp_mask = (1u64 << f.exp_bits()) - 1;
        let negative = bits >> (man + f.exp_bits()) & 1 != 0;
        let fraction = bits & ((1 << man) - 1);
        let biased = bits >> man & exp_mask;
        let lowest = 1 - f.bias() - man as i32;
        if biased == exp_mask && !matches!(f, Float::E4m3) {
            if fraction == 0 {
                Num::Inf(negative)
            } else {
                Num::Nan
            }
        } else if matches!(f, Float::E4m3) && bits & 0x7f == 0x7f {
            Num::Nan
        } else if biased == 0 {
            Num::Fin(negative, fraction as u128, lowest)
        } else {
            Num::Fin(
                negative,
                (fraction | 1 << man) as u128,
                lowest + biased as i32 - 1,
            )
        }
    }

    /// Rounds to format `f`. Overflow gives infinity or the largest finite value, as the direction says.
    pub const fn pack(self, f: Float, round: Round) -> u64 {
        let (negative, magnitude, exponent) = match self {
            Num::Nan => return f.canonical_nan(),
            Num::Inf(negative) => return f.infinity() | if negative { f.sign_bit() } else { 0 },
            Num::Fin(negative, magnitude, exponent) => (negative, magnitude, exponent),
        };
        let sign = if negative { f.sign_bit() } else { 0 };
        if magnitude == 0 {
            return sign;
        }
        let man = f.man_bits() as i32;
        let emin = 1 - f.bias();
        let top = 127 - magnitude.leading_zeros() as i32 + exponent;
        let scale = if top > emin { top } else { emin };
        let up = match round {
            Round::Rp => !negative,
            Round::Rm => negative,
            _ => false,
        };
        if scale > f.bias() + 1 {
            return sign | overflow(f, round, up);
        }
        let rounded = round_shift(magnitude, scale - man - exponent, round, up) as u64;
        let bits = (((scale - emin) as u64) << man) + rounded;
        if bits > f.max_finite() >> f.pad() {
            return sign | overflow(f, round, up);
        }
        sign | bits << f.pad()
    }

    /// The value negated.
    pub const fn neg(self) -> Num {
        match self {
            Num::Nan => Num::Nan,
            Num::Inf(s) => Num::Inf(!s),
            Num::Fin(s, m, e) => Num::Fin(!s, m, e),
        }
    }

    /// Sum. `round` only decides the sign of an exact zero.
    pub const fn add(self, other: Num, round: Round) -> Num {
        match (self, other) {
            (Num::Nan, _) | (_, Num::Nan) => Num::Nan,
            (Num::Inf(a), Num::Inf(b)) => {
                if a == b {
                    self
                } else {
                    Num::Nan
                }
            }
            (Num::Inf(_), _) => self,
            (_, Num::Inf(_)) => other,
            (Num::Fin(sa, ma, ea), Num::Fin(sb, mb, eb)) => {
                let zero = Num::Fin(matches!(round, Round::Rm), 0, 0);
                if ma == 0 && mb == 0 {
                    return if sa == sb { self } else { zero };
                } else if ma == 0 {
                    return other;
                } else if mb == 0 {
                    return self;
                }
                let ((mut ma, mut ea), (mut mb, mut eb)) =
                    (normalise(ma, ea, 125), normalise(mb, eb, 125));
                if ea < eb {
                    ma = shift_right_jam(ma, (eb - ea) as u32);
                    ea = eb;
                } else {
                    mb = shift_right_jam(mb, (ea - eb) as u32);
                    eb = ea;
                }
                if sa == sb {
                    Num::Fin(sa, ma + mb, ea)
                } else if ma == mb {
                    zero
                } else if ma > mb {
                    Num::Fin(sa, ma - mb, ea)
                } else {
                    Num::Fin(sb, mb - ma, eb)
                }
            }
        }
    }

    /// Product; exact for operands of at most 64 significant bits.
    pub const fn mul(self, other: Num) -> Num {
        match (self, other) {
            (Num::Nan, _) | (_, Num::Nan) => Num::Nan,
            (Num::Inf(a), Num::Inf(b)) => Num::Inf(a != b),
            (Num::Inf(a), Num::Fin(b, m, _)) | (Num::Fin(b, m, _), Num::Inf(a)) => {
                if m == 0 {
                    Num::Nan
                } else {
                    Num::Inf(a != b)
                }
            }
            (Num::Fin(sa, ma, ea), Num::Fin(sb, mb, eb)) => {
                Num::Fin(sa != sb, ma.wrapping_mul(mb), ea + eb)
            }
        }
    }

    /// `self * b + c`, to be rounded once.
    pub const fn fma(self, b: Num, c: Num, round: Round) -> Num {
        self.mul(b).add(c, round)
    }

    /// Quotient.
    pub const fn div(self, other: Num) -> Num {
        match (self, other) {
            (Num::Nan, _) | (_, Num::Nan) | (Num::Inf(_), Num::Inf(_)) => Num::Nan,
            (Num::Inf(a), Num::Fin(b, ..)) => Num::Inf(a != b),
            (Num::Fin(a, ..), Num::Inf(b)) => Num::Fin(a != b, 0, 0),
            (Num::Fin(sa, ma, ea), Num::Fin(sb, mb, eb)) => {
                if mb == 0 {
                    return if ma == 0 {
                        Num::Nan
                    } else {
                        Num::Inf(sa != sb)
                    };
                } else if ma == 0 {
                    return Num::Fin(sa != sb, 0, 0);
                }
                let (ma, ea) = normalise(ma, ea, 127);
                Num::Fin(sa != sb, (ma / mb) | (ma % mb != 0) as u128, ea - eb)
            }
        }
    }

    /// Square root.
    pub const fn sqrt(self) -> Num {
        match self {
            Num::Fin(_, 0, _) | Num::Inf(false) => self,
            Num::Nan | Num::Inf(true) | Num::Fin(true, ..) => Num::Nan,
            Num::Fin(false, m, e) => {
                let (m, e) = normalise(m, e, 126);
                let (m, e) = if e % 2 == 0 { (m, e) } else { (m << 1, e - 1) };
                // The root has 64 bits; two more bits of room let the remainder jam without disturbing them.
                let root = m.isqrt();
                Num::Fin(false, root << 2 | (root * root != m) as u128, e / 2 - 2)
            }
        }
    }

    /// Rounds to an integral value (sign kept, so -0.3 gives -0).
    pub const fn round_integral(self, round: Round) -> Num {
        match self {
            Num::Fin(negative, m, e) if e < 0 => {
                let up = match round {
                    Round::Rp => !negative,
                    Round::Rm => negative,
                    _ => false,
                };
                Num::Fin(negative, round_shift(m, -e, round, up), 0)
            }
            _ => self,
        }
    }
}

/// `magnitude / 2^shift` rounded; `up` says that a directed mode rounds this sign away from zero.
const fn round_shift(magnitude: u128, shift: i32, round: Round, up: bool) -> u128 {
    if shift <= 0 {
        return magnitude << -shift;
    }
    let (kept, rest, half) = if shift < 128 {
        (
            magnitude >> shift,
            magnitude & ((1 << shift) - 1),
            1u128 << (shift - 1),
        )
    } else if shift == 128 {
        (0, magnitude, 1 << 127)
    } else {
        (0, (magnitude != 0) as u128, 2)
    };
    let increment = match round {
        Round::Rn => rest > half || (rest == half && kept & 1 == 1),
        Round::Rna => rest >= half,
        Round::Rz => false,
        Round::Rm | Round::Rp => up && rest != 0,
    };
    kept + increment as u128
}

const fn overflow(f: Float, round: Round, up: bool) -> u64 {
    match round {
        Round::Rn | Round::Rna => f.infinity(),
        _ if up => f.infinity(),
        _ => f.max_finite(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small deterministic generator (xorshift64*), so that tests need no dependency.
    pub(crate) struct Rng(pub u64);

    impl Rng {
        pub(crate) fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        /// A bit pattern with all exponents and special values about equally likely.
        pub(crate) fn f32_bits(&mut self) -> u32 {
            let special = [
                0,
                1,
                0x7f_ffff,
                0x80_0000,
                0x3f80_0000,
                0x7f7f_ffff,
                0x7f80_0000,
                0x7fc0_0001,
            ];
            let r = self.next();
            match r % 8 {
                0 => special[(r >> 8) as usize % 8] | (r >> 32) as u32 & 0x8000_0000,
                1..=3 => (r >> 32) as u32 & 0x8fff_ffff | 0x3000_0000,
                _ => (r >> 32) as u32,
            }
        }
    }

    /// The exact core must agree with the host's IEEE f64 arithmetic, which is round-to-nearest-even.
    #[test]
    fn core_matches_native_f64() {
        let mut rng = Rng(7);
        let same = |got: u64, want: f64, what: &str| {
            if want.is_nan() {
                assert!(Float::F64.is_nan(got), "{what}");
            } else {
                assert_eq!(got, want.to_bits(), "{what}: {want:e}");
            }
        };
        for i in 0..200_000 {
            let bits = |rng: &mut Rng| {
                let r = rng.next();
                if i % 2 == 0 {
                    r
                } else {
                    r & 0x803f_ffff_ffff_ffff | 0x3fc0_0000_0000_0000
                }
            };
            let (x, y, z) = (bits(&mut rng), bits(&mut rng), bits(&mut rng));
            let (a, b, c) = (f64::from_bits(x), f64::from_bits(y), f64::from_bits(z));
            let n = |v| Num::unpack(Float::F64, v);
            let p = |v: Num| v.pack(Float::F64, Round::Rn);
            same(p(n(x).add(n(y), Round::Rn)), a + b, "add");
            same(p(n(x).mul(n(y))), a * b, "mul");
            same(p(n(x).fma(n(y), n(z), Round::Rn)), a.mul_add(b, c), "fma");
            same(p(n(x).div(n(y))), a / b, "div");
            same(p(n(x).sqrt()), a.sqrt(), "sqrt");
            same(p(n(x).round_integral(Round::Rm)), a.floor(), "floor");
            same(
                p(n(x).round_integral(Round::Rn)),
                a.round_ties_even(),
                "rint",
            );
        }
    }

    /// Expected values from the formats' definitions.
    #[test]
    fn constants() {
        assert_eq!(Float::E4m3.max_finite(), 0x7e);
        assert_eq!(
            Num::unpack(Float::E4m3, 0x7e).pack(Float::F32, Round::Rn),
            u64::from(448f32.to_bits())
        );
        assert_eq!(
            Num::unpack(Float::E5m2, 0x7b).pack(Float::F32, Round::Rn),
            u64::from(57344f32.to_bits())
        );
        assert_eq!(Float::F16.max_finite(), 0x7bff);
        assert_eq!(Float::F16.one(), 0x3c00);
        assert_eq!(Float::Bf16.one(), 0x3f80);
        assert_eq!(Float::F32.canonical_nan(), 0x7fff_ffff);
        assert_eq!(Float::F16.canonical_nan(), 0x7fff);
        // 1 + 2^-11 is halfway between two tf32 values: even is 1, away is 1 + 2^-10.
        let tie = Num::unpack(Float::F32, 0x3f80_1000);
        assert_eq!(tie.pack(Float::Tf32, Round::Rn), 0x3f80_0000);
        assert_eq!(tie.pack(Float::Tf32, Round::Rna), 0x3f80_2000);
    }
}

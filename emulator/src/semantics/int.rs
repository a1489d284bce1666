//! Integer arithmetic, shifts, bit fields, permutes and comparisons.
//!
//! Width-generic operations live in [`w16`], [`w32`] and [`w64`]; operands and results are unsigned bits, signedness
//! is in the name.

use std::cmp::Ordering;

macro_rules! width {
    ($name:ident, $u:ty, $s:ty, $uu:ty, $ss:ty, $doc:literal) => {
        #[doc = $doc]
        pub mod $name {
            /// `mul.hi`, unsigned.
            #[inline(always)]
            pub fn mul_hi_u(a: $u, b: $u) -> $u {
                ((<$uu>::from(a) * <$uu>::from(b)) >> <$u>::BITS) as $u
            }

            /// `mul.hi`, signed.
            #[inline(always)]
            pub fn mul_hi_s(a: $u, b: $u) -> $u {
                ((<$ss>::from(a as $s) * <$ss>::from(b as $s)) >> <$u>::BITS) as $u
            }

            /// `mul.wide`, unsigned.
            #[inline(always)]
            pub fn mul_wide_u(a: $u, b: $u) -> $uu {
                <$uu>::from(a) * <$uu>::from(b)
            }

            /// `mul.wide`, signed.
            #[inline(always)]
            pub fn mul_wide_s(a: $u, b: $u) -> $uu {
                (<$ss>::from(a as $s) * <$ss>::from(b as $s)) as $uu
            }

            /// `mul.lo`, either signedness.
            #[inline(always)]
            pub fn mul_lo(a: $u, b: $u) -> $u {
                a.wrapping_mul(b)
            }

            /// `mad.lo`, either signedness.
            #[inline(always)]
            pub fn mad_lo(a: $u, b: $u, c: $u) -> $u {
                a.wrapping_mul(b).wrapping_add(c)
            }

            /// `mad.hi`, signed: high half of the product plus `c`.
            #[inline(always)]
            pub fn mad_hi_s(a: $u, b: $u, c: $u) -> $u {
                mul_hi_s(a, b).wrapping_add(c)
            }

            /// `mad.hi`, unsigned.
            #[inline(always)]
            pub fn mad_hi_u(a: $u, b: $u, c: $u) -> $u {
                mul_hi_u(a, b).wrapping_add(c)
            }

            /// `mad.wide`, unsigned.
            #[inline(always)]
            pub fn mad_wide_u(a: $u, b: $u, c: $uu) -> $uu {
                mul_wide_u(a, b).wrapping_add(c)
            }

            /// `mad.wide`, signed.
            #[inline(always)]
            pub fn mad_wide_s(a: $u, b: $u, c: $uu) -> $uu {
                mul_wide_s(a, b).wrapping_add(c)
            }

            /// `add.cc` / `addc{.cc}`: sum and carry out.
            #[inline(always)]
            pub fn add_carry(a: $u, b: $u, carry: bool) -> ($u, bool) {
                let (x, c0) = a.overflowing_add(b);
                let (x, c1) = x.overflowing_add(carry as $u);
                (x, c0 | c1)
            }

            /// `sub.cc` / `subc{.cc}`: `a - (b + borrow)` and borrow out.
            #[inline(always)]
            pub fn sub_borrow(a: $u, b: $u, borrow: bool) -> ($u, bool) {
                let (x, c0) = a.overflowing_sub(b);
                let (x, c1) = x.overflowing_sub(borrow as $u);
                (x, c0 | c1)
            }

            /// `div`, unsigned; by zero gives all ones (unspecified in PTX, what the GPU's sequence gives).
            #[inline(always)]
            pub fn div_u(a: $u, b: $u) -> $u {
                a.checked_div(b).unwrap_or(<$u>::MAX)
            }

            /// `div`, signed; by zero gives all ones, MIN / -1 wraps to MIN.
            #[inline(always)]
            pub fn div_s(a: $u, b: $u) -> $u {
                if b == 0 {
                    <$u>::MAX
                } else {
                    (a as $s).wrapping_div(b as $s) as $u
                }
            }

            /// `rem`, unsigned; by zero gives all ones.
            #[inline(always)]
            pub fn rem_u(a: $u, b: $u) -> $u {
                a.checked_rem(b).unwrap_or(<$u>::MAX)
            }

            /// `rem`, signed, with the dividend's sign; by zero gives all ones, MIN % -1 gives 0.
            #[inline(always)]
            pub fn rem_s(a: $u, b: $u) -> $u {
                if b == 0 {
                    <$u>::MAX
                } else {
                    (a as $s).wrapping_rem(b as $s) as $u
                }
            }

            /// `abs`; MIN stays MIN.
            #[inline(always)]
            pub fn abs(a: $u) -> $u {
                (a as $s).wrapping_abs() as $u
            }

            /// `neg`.
            #[inline(always)]
            pub fn neg(a: $u) -> $u {
                a.wrapping_neg()
            }

            /// `min`, unsigned.
            #[inline(always)]
            pub fn min_u(a: $u, b: $u) -> $u {
                a.min(b)
            }

            /// `max`, unsigned.
            #[inline(always)]
            pub fn max_u(a: $u, b: $u) -> $u {
                a.max(b)
            }

            /// `min`, signed.
            #[inline(always)]
            pub fn min_s(a: $u, b: $u) -> $u {
                (a as $s).min(b as $s) as $u
            }

            /// `max`, signed.
            #[inline(always)]
            pub fn max_s(a: $u, b: $u) -> $u {
                (a as $s).max(b as $s) as $u
            }

            /// `shl`; an amount of the width or more gives 0.
            #[inline(always)]
            pub fn shl(a: $u, n: u32) -> $u {
                a.checked_shl(n).unwrap_or(0)
            }

            /// `shr`, unsigned; an amount of the width or more gives 0.
            #[inline(always)]
            pub fn shr_u(a: $u, n: u32) -> $u {
                a.checked_shr(n).unwrap_or(0)
            }

            /// `shr`, signed; an amount of the width or more gives the sign in every bit.
            #[inline(always)]
            pub fn shr_s(a: $u, n: u32) -> $u {
                ((a as $s) >> n.min(<$u>::BITS - 1)) as $u
            }

            /// `sad`, unsigned: `c + |a - b|`.
            #[inline(always)]
            pub fn sad_u(a: $u, b: $u, c: $u) -> $u {
                c.wrapping_add(a.abs_diff(b))
            }

            /// `sad`, signed.
            #[inline(always)]
            pub fn sad_s(a: $u, b: $u, c: $u) -> $u {
                c.wrapping_add((a as $s).abs_diff(b as $s))
            }

            /// `brev`.
            #[inline(always)]
            pub fn brev(a: $u) -> $u {
                a.reverse_bits()
            }

            /// `clz`.
            #[inline(always)]
            pub fn clz(a: $u) -> u32 {
                a.leading_zeros()
            }

            /// `popc`.
            #[inline(always)]
            pub fn popc(a: $u) -> u32 {
                a.count_ones()
            }

            /// `bfind`: position of the leading one (of the leading non-sign bit when `signed`), or all ones.
            #[inline(always)]
            pub fn bfind(a: $u, signed: bool) -> u32 {
                let a = if signed && (a as $s) < 0 { !a } else { a };
                a.checked_ilog2().unwrap_or(u32::MAX)
            }

            /// `bfind.shiftamt`: the left shift that brings that bit to the top, or all ones.
            #[inline(always)]
            pub fn bfind_shiftamt(a: $u, signed: bool) -> u32 {
                match bfind(a, signed) {
                    u32::MAX => u32::MAX,
                    found => <$u>::BITS - 1 - found,
                }
            }

            /// `bfe`: `len` bits from `pos`, each operand taken modulo 256. A signed field is extended with its top
            /// bit, or with the top bit of `a` where the field runs past it; `len` 0 gives 0.
            #[inline(always)]
            pub fn bfe(a: $u, pos: u32, len: u32, signed: bool) -> $u {
                let (pos, len) = (pos & 0xff, len & 0xff);
                if len == 0 {
                    return 0;
                }
                let field = if len >= <$u>::BITS {
                    <$u>::MAX
                } else {
                    (1 << len) - 1
                };
                let value = shr_u(a, pos) & field;
                let top = (pos + len - 1).min(<$u>::BITS - 1);
                if signed && a >> top & 1 != 0 {
                    // Every bit that is not copied from `a` becomes 1.
                    let copied = field & shr_u(<$u>::MAX, pos);
                    value | !copied
                } else {
                    value
                }
            }

            /// `bfi`: the low `len` bits of `a` placed at `pos` of `b`; bits past the top are dropped.
            #[inline(always)]
            pub fn bfi(a: $u, b: $u, pos: u32, len: u32) -> $u {
                let (pos, len) = (pos & 0xff, len & 0xff);
                let field = if len >= <$u>::BITS {
                    <$u>::MAX
                } else {
                    (1 << len) - 1
                };
                let mask = shl(field, pos);
                (b & !mask) | (shl(a, pos) & mask)
            }
        }
    };
}

width!(w16, u16, i16, u32, i32, "16-bit operations.");
width!(w32, u32, i32, u64, i64, "32-bit operations.");
width!(w64, u64, i64, u128, i128, "64-bit operations.");

/// `add.sat.s32`.
#[inline(always)]
pub fn add_sat_s32(a: u32, b: u32) -> u32 {
    (a as i32).saturating_add(b as i32) as u32
}

/// `sub.sat.s32`.
#[inline(always)]
pub fn sub_sat_s32(a: u32, b: u32) -> u32 {
    (a as i32).saturating_sub(b as i32) as u32
}

/// `mad.hi.sat.s32`.
#[inline(always)]
pub fn mad_hi_sat_s32(a: u32, b: u32, c: u32) -> u32 {
    add_sat_s32(w32::mul_hi_s(a, b), c)
}

/// `mul24`: the low (`hi` false) or high 32 bits of the 48-bit product of the low 24 bits.
#[inline(always)]
pub fn mul24(a: u32, b: u32, signed: bool, hi: bool) -> u32 {
    let product = if signed {
        let extend = |x: u32| i64::from((x << 8) as i32 >> 8);
        (extend(a) * extend(b)) as u64
    } else {
        u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)
    };
    (product >> if hi { 16 } else { 0 }) as u32
}

/// `shf.l`: the high word of `hi:lo << n`; `n` clamped to 32, or taken modulo 32 when `wrap`.
#[inline(always)]
pub fn shf_l(lo: u32, hi: u32, n: u32, wrap: bool) -> u32 {
    let n = if wrap { n & 31 } else { n.min(32) };
    let both = u64::from(hi) << 32 | u64::from(lo);
    ((both << n) >> 32) as u32
}

/// `shf.r`: the low word of `hi:lo >> n`; `n` clamped to 32, or taken modulo 32 when `wrap`.
#[inline(always)]
pub fn shf_r(lo: u32, hi: u32, n: u32, wrap: bool) -> u32 {
    let n = if wrap { n & 31 } else { n.min(32) };
    let both = u64::from(hi) << 32 | u64::from(lo);
    (both >> n) as u32
}

/// `lop3.b32`: bit (4a + 2b + c) of `lut` for each bit position.
#[inline(always)]
pub fn lop3(a: u32, b: u32, c: u32, lut: u8) -> u32 {
    let mut d = 0;
    for i in 0..8 {
        let term = if i & 4 != 0 { a } else { !a }
            & if i & 2 != 0 { b } else { !b }
            & if i & 1 != 0 { c } else { !c };
        d |= term & u32::from(lut >> i & 1).wrapping_neg();
    }
    d
}

/// The modes of `prmt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Prmt {
    /// Four selectors, each with a sign-replication bit.
    #[default]
    Default,
    /// Forward 4 extract.
    F4e,
    /// Backward 4 extract.
    B4e,
    /// Replicate 8.
    Rc8,
    /// Edge clamp left.
    Ecl,
    /// Edge clamp right.
    Ecr,
    /// Replicate 16.
    Rc16,
}

/// `prmt.b32{.mode} d, a, b, c`: bytes 0..3 are `a`'s, 4..7 are `b`'s.
#[inline(always)]
pub fn prmt(a: u32, b: u32, c: u32, mode: Prmt) -> u32 {
    let pool = u64::from(b) << 32 | u64::from(a);
    // Selectors as nibbles, d.b0 in the lowest; the manual lists them from d.b3 down.
    let table: [u32; 4] = match mode {
        Prmt::Default => [c & 0xffff; 4],
        Prmt::F4e => [0x3210, 0x4321, 0x5432, 0x6543],
        Prmt::B4e => [0x5670, 0x6701, 0x7012, 0x0123],
        Prmt::Rc8 => [0x0000, 0x1111, 0x2222, 0x3333],
        Prmt::Ecl => [0x3210, 0x3211, 0x3222, 0x3333],
        Prmt::Ecr => [0x0000, 0x1110, 0x2210, 0x3210],
        Prmt::Rc16 => [0x1010, 0x3232, 0x1010, 0x3232],
    };
    let selectors = table[(c & 3) as usize];
    let mut d = 0;
    for i in 0..4 {
        let selector = selectors >> (4 * i);
        let byte = (pool >> (8 * (selector & 7))) as u8;
        let byte = if selector & 8 != 0 {
            (byte as i8 >> 7) as u8
        } else {
            byte
        };
        d |= u32::from(byte) << (8 * i);
    }
    d
}

/// `dp4a.atype.btype`: four byte products added to `c`, wrapping.
#[inline(always)]
pub fn dp4a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let mut sum = c;
    for i in 0..4 {
        let part = |x: u32, signed: bool| {
            let byte = (x >> (8 * i)) as u8;
            if signed {
                byte as i8 as u32
            } else {
                u32::from(byte)
            }
        };
        sum = sum.wrapping_add(part(a, a_signed).wrapping_mul(part(b, b_signed)));
    }
    sum
}

/// `dp2a`: two 16-bit x 8-bit products added to `c`; `hi` takes the upper two bytes of `b`.
#[inline(always)]
pub fn dp2a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool, hi: bool) -> u32 {
    let mut sum = c;
    for i in 0..2 {
        let x = (a >> (16 * i)) as u16;
        let x = if a_signed {
            x as i16 as u32
        } else {
            u32::from(x)
        };
        let y = (b >> (8 * i + if hi { 16 } else { 0 })) as u8;
        let y = if b_signed {
            y as i8 as u32
        } else {
            u32::from(y)
        };
        sum = sum.wrapping_add(x.wrapping_mul(y));
    }
    sum
}

/// `szext`: the low `n` bits of `a`, sign- or zero-extended; `n` clamped to 32, or modulo 32 when `wrap`.
#[inline(always)]
pub fn szext(a: u32, n: u32, signed: bool, wrap: bool) -> u32 {
    let n = if wrap { n & 31 } else { n.min(32) };
    w32::bfe(a, 0, n, signed)
}

/// `bmsk`: `len` ones from `pos`; both clamped to 32, or modulo 32 when `wrap`.
#[inline(always)]
pub fn bmsk(pos: u32, len: u32, wrap: bool) -> u32 {
    let limit = |x: u32| if wrap { x & 31 } else { x.min(32) };
    (((1u64 << limit(len)) - 1) << limit(pos)) as u32
}

/// A comparison of `set` / `setp`. `Lo`, `Ls`, `Hi`, `Hs` are the unsigned names of `Lt`, `Le`, `Gt`, `Ge`; the
/// others from `Equ` on are for floats only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[rustfmt::skip]
#[allow(missing_docs)] // The names are the manual's.
pub enum Cmp {
    Eq, Ne, Lt, Le, Gt, Ge, Lo, Ls, Hi, Hs,
    Equ, Neu, Ltu, Leu, Gtu, Geu, Num, Nan,
}

impl Cmp {
    /// From the manual's spelling, without the dot.
    pub fn parse(name: &str) -> Option<Cmp> {
        use Cmp::*;
        const NAMES: [(&str, Cmp); 18] = [
            ("eq", Eq),
            ("ne", Ne),
            ("lt", Lt),
            ("le", Le),
            ("gt", Gt),
            ("ge", Ge),
            ("lo", Lo),
            ("ls", Ls),
            ("hi", Hi),
            ("hs", Hs),
            ("equ", Equ),
            ("neu", Neu),
            ("ltu", Ltu),
            ("leu", Leu),
            ("gtu", Gtu),
            ("geu", Geu),
            ("num", Num),
            ("nan", Nan),
        ];
        NAMES.iter().find(|(n, _)| *n == name).map(|&(_, c)| c)
    }

    /// The result for an ordering; `None` means that an operand is NaN.
    #[inline(always)]
    pub fn holds(self, order: Option<Ordering>) -> bool {
        use Cmp::*;
        match order {
            None => matches!(self, Equ | Neu | Ltu | Leu | Gtu | Geu | Nan),
            Some(order) => match self {
                Eq | Equ => order.is_eq(),
                Ne | Neu => order.is_ne(),
                Lt | Lo | Ltu => order.is_lt(),
                Le | Ls | Leu => order.is_le(),
                Gt | Hi | Gtu => order.is_gt(),
                Ge | Hs | Geu => order.is_ge(),
                Num => true,
                Nan => false,
            },
        }
    }

    /// Compares zero-extended unsigned integers of any width. `.lt` and `.lo` mean the same here.
    #[inline(always)]
    pub fn unsigned(self, a: u64, b: u64) -> bool {
        self.holds(Some(a.cmp(&b)))
    }

    /// Compares sign-extended signed integers of any width.
    #[inline(always)]
    pub fn signed(self, a: i64, b: i64) -> bool {
        self.holds(Some(a.cmp(&b)))
    }
}

#[cfg(test)]
mod tests;

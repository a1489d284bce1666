//! Which bytes of a warp's registers were never written.

use crate::program::{Kind, Spread, Src, WARP};
use crate::semantics::int;

/// One bit a byte of a 32-bit row: lane l's byte b at bit 32 b + l.
type Bytes = u128;

/// The uninitialised bytes of a register: of the low and the high word.
pub(crate) type Poison = [Bytes; 2];

/// The lanes' bits, for every byte of a row.
#[inline(always)]
fn every_byte(lanes: u32) -> Bytes {
    u128::from(lanes) * 0x1_0000_0001_0000_0001_0000_0001
}

/// The lanes in which any byte is poison.
#[inline(always)]
fn any_byte(bytes: Bytes) -> u32 {
    let halves = bytes | bytes >> 64;
    (halves | halves >> 32) as u32
}

/// What a lane's value and its poison bytes are, for the rules that look at single bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Operand {
    pub(crate) value: u64,
    /// Bit b: byte b is poison.
    pub(crate) poison: u8,
}

/// The shadow of a warp's registers. Poison is what no instruction has written; it flows through arithmetic.
#[derive(Debug, Default)]
pub(crate) struct RegisterShadow {
    rows: Vec<Bytes>,
    preds: Vec<u32>,
    pub(crate) carry: u32,
    /// Whether anything may be poison. Mostly nothing is, and there is nothing to do.
    pub(crate) any: bool,
}

impl RegisterShadow {
    pub(crate) fn new(rows: u32, preds: u32) -> Self {
        Self {
            rows: vec![0; rows as usize + 1],
            preds: vec![0; preds as usize],
            carry: 0,
            any: false,
        }
    }

    /// A new block: the registers that may be read before they are written are poison.
    pub(crate) fn reset(&mut self, undefined: &[Src]) {
        if self.any {
            self.rows.fill(0);
            self.preds.fill(0);
        }
        self.any = !undefined.is_empty();
        self.carry = 0;
        for &src in undefined {
            self.put(src, u32::MAX, [u128::MAX; 2]);
        }
    }

    #[inline(always)]
    pub(crate) fn get(&self, src: Src) -> Poison {
        match src.kind {
            Kind::Pred => [every_byte(self.preds[src.slot as usize]); 2],
            Kind::W64 => [
                self.rows[src.slot as usize],
                self.rows[src.slot as usize + 1],
            ],
            _ => [self.rows[src.slot as usize], 0],
        }
    }

    /// The lanes in which any byte of a register is poison.
    #[inline(always)]
    pub(crate) fn lanes(&self, src: Src) -> u32 {
        if !self.any {
            return 0;
        }
        let [low, high] = self.get(src);
        any_byte(low | high)
    }

    #[inline(always)]
    pub(crate) fn pred(&self, index: u32) -> u32 {
        if self.any {
            self.preds[index as usize]
        } else {
            0
        }
    }

    pub(crate) fn put_pred(&mut self, index: u32, active: u32, poison: u32) {
        let pred = &mut self.preds[index as usize];
        *pred = *pred & !active | poison & active;
        self.any |= poison & active != 0;
    }

    /// Sets the active lanes of a register.
    pub(crate) fn put(&mut self, dst: Src, active: u32, poison: Poison) {
        let mask = every_byte(active);
        let slot = dst.slot as usize;
        let keep: Bytes = match dst.kind {
            Kind::Pred => return self.put_pred(dst.slot, active, any_byte(poison[0] | poison[1])),
            Kind::W8 => u128::MAX >> 96,
            Kind::W16 => u128::MAX >> 64,
            _ => u128::MAX,
        };
        self.rows[slot] = self.rows[slot] & !mask | poison[0] & mask & keep;
        self.any |= poison[0] & mask & keep != 0;
        if dst.kind == Kind::W64 {
            self.rows[slot + 1] = self.rows[slot + 1] & !mask | poison[1] & mask;
            self.any |= poison[1] & mask != 0;
        }
    }

    /// Sets all bytes of the active lanes.
    pub(crate) fn put_all(&mut self, dst: Src, active: u32, poison: u32) {
        self.put(dst, active, [every_byte(poison); 2]);
    }

    /// One lane's bytes: bit b of the result is byte b.
    pub(crate) fn lane(&self, src: Src, lane: u32) -> u8 {
        if !self.any {
            return 0;
        }
        let [low, high] = self.get(src);
        let byte = |n: u32| {
            let row = if n < 4 { low } else { high };
            (row >> (32 * (n % 4) + lane)) as u8 & 1
        };
        (0..8).fold(0, |mask, n| mask | byte(n) << n)
    }

    pub(crate) fn set_lane(&mut self, dst: Src, lane: u32, bytes: u8) {
        let mut poison = [0; 2];
        for n in 0..8 {
            poison[n / 4] |= Bytes::from(bytes >> n & 1) << (32 * (n as u32 % 4) + lane);
        }
        self.put(dst, 1 << lane, poison);
    }

    /// An operation's result, by its rule; `operands` gives a lane's operands.
    pub(crate) fn operation(
        &mut self,
        spread: Spread,
        d: Src,
        sources: [Src; 3],
        active: u32,
        operand: impl Fn(Src, u32) -> u64,
    ) {
        let any = sources.iter().fold(0, |any, &s| any | self.lanes(s)) & active;
        if any == 0 || spread == Spread::Mix {
            return self.put_all(d, active, any);
        }
        let bytes: [u8; WARP] = std::array::from_fn(|lane| {
            let [a, b, c] = sources.map(|s| Operand {
                value: operand(s, lane as u32),
                poison: self.lane(s, lane as u32),
            });
            result(spread, a, b, c)
        });
        for (lane, &bytes) in bytes.iter().enumerate() {
            if active >> lane & 1 != 0 {
                self.set_lane(d, lane as u32, bytes);
            }
        }
    }
}

/// 0xff for every byte of the mask.
pub(crate) fn widen(mask: u8) -> u64 {
    (0..8).fold(0, |bits, n| {
        bits | (u64::from(mask >> n & 1) * 0xff) << (8 * n)
    })
}

/// The bytes with any bit.
pub(crate) fn collapse(bits: u64) -> u8 {
    (0..8).fold(0, |mask, n| {
        mask | u8::from(bits >> (8 * n) & 0xff != 0) << n
    })
}

/// The bits of a function of three operands that the poison of the operands decides.
fn logic(table: u8, operands: [Operand; 3]) -> u64 {
    let values = operands.map(|o| o.value);
    let poison = operands.map(|o| widen(o.poison));
    let of = |[a, b, c]: [u64; 3]| {
        (0..8).filter(|n| table >> n & 1 != 0).fold(0, |bits, n| {
            let pick = |bit: u8, v: u64| if n & bit != 0 { v } else { !v };
            bits | pick(4, a) & pick(2, b) & pick(1, c)
        })
    };
    // Bits don't mix, so it is enough to turn all of an operand's at once.
    (1..8).fold(0, |unknown, turned| {
        let turn = |n: usize| values[n] ^ if turned >> n & 1 != 0 { poison[n] } else { 0 };
        unknown | (of([turn(0), turn(1), turn(2)]) ^ of(values))
    })
}

/// The poison bytes of a lane's result.
fn result(spread: Spread, a: Operand, b: Operand, c: Operand) -> u8 {
    let all = |poison: u8| if poison != 0 { 0xff } else { 0 };
    let both = a.poison | b.poison;
    match spread {
        Spread::Mix => all(both | c.poison),
        Spread::Bytewise => both,
        Spread::Logic(table) => collapse(logic(table, [a, b, c])),
        Spread::Left | Spread::Right(..) if b.poison != 0 => 0xff,
        Spread::Left => collapse(widen(a.poison).checked_shl(b.value as u32).unwrap_or(0)),
        // The top bit is poison if its byte is, and fills as any bit does.
        Spread::Right(bytes, signed) => {
            let above = 64 - 8 * u32::from(bytes.clamp(1, 8));
            let bits = widen(a.poison) << above;
            let by = (b.value.min(64) as u32).min(63);
            collapse(match (signed, b.value) {
                (true, _) => (bits as i64 >> above >> by) as u64,
                (false, 0..64) => bits >> above >> by,
                (false, _) => 0,
            })
        }
        Spread::Insert { place, len } => {
            collapse(int::w64::bfi(widen(a.poison), widen(b.poison), place, len))
        }
        Spread::Field { .. } if (b.poison | c.poison) & 1 != 0 => 0xff,
        // A poison top bit is copied as a set one is.
        Spread::Field { signed } => {
            let bits = widen(a.poison) as u32;
            let (place, len) = (b.value as u32, c.value as u32);
            collapse(u64::from(int::w32::bfe(bits, place, len, signed)))
        }
        Spread::Permute if c.poison != 0 => 0xff,
        Spread::Permute => {
            let pool = u16::from(a.poison & 0xf) | u16::from(b.poison & 0xf) << 4;
            (0..4).fold(0, |mask, n| {
                let pick = c.value >> (4 * n) & 7;
                mask | ((pool >> pick & 1) as u8) << n
            })
        }
        Spread::Halves => {
            let any = both | c.poison;
            let half = |bits: u8| if any & bits != 0 { bits } else { 0 };
            half(0x03) | half(0x0c)
        }
        Spread::PackHalves => {
            let half = |poison: u8, bits: u8| if poison != 0 { bits } else { 0 };
            half(a.poison, 0x0c) | half(b.poison, 0x03)
        }
        Spread::Extend(bytes, signed) => {
            let kept = if bytes >= 8 { 0xff } else { (1u8 << bytes) - 1 };
            let top = a.poison & kept & !(kept >> 1);
            a.poison & kept | if signed && top != 0 { !kept } else { 0 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(value: u64, poison: u8) -> Operand {
        Operand { value, poison }
    }

    #[test]
    fn bytes_go_where_they_are_moved() {
        let none = Operand::default();
        let x = value(0x1122_3344, 0b0100);
        assert_eq!(result(Spread::Mix, x, none, none), 0xff);
        assert_eq!(
            result(Spread::Logic(0xc0), x, value(0x0000_ffff, 0), none),
            0
        );
        assert_eq!(
            result(Spread::Logic(0xc0), x, value(0x00ff_0000, 0), none),
            0b0100
        );
        assert_eq!(
            result(Spread::Logic(0xfc), x, value(0x00ff_0000, 0), none),
            0
        );
        assert_eq!(
            result(Spread::Logic(0xfc), x, value(0x007f_0000, 0), none),
            0b0100
        );
        assert_eq!(result(Spread::Left, x, value(8, 0), none), 0b1000);
        assert_eq!(result(Spread::Left, x, value(4, 0), none), 0b1100);
        assert_eq!(
            result(Spread::Right(4, false), x, value(16, 0), none),
            0b0001
        );
        assert_eq!(result(Spread::Right(4, false), x, value(24, 0), none), 0);
        let top = value(0, 0b1000);
        assert_eq!(
            result(Spread::Right(4, true), top, value(8, 0), none) & 0xf,
            0b1100
        );
        assert_eq!(
            result(Spread::Right(4, false), top, value(8, 0), none),
            0b0100
        );
        let sign = value(0, 0b10);
        assert_eq!(
            result(Spread::Right(2, true), sign, value(99, 0), none) & 0b11,
            0b11
        );
        let insert = Spread::Insert { place: 16, len: 8 };
        assert_eq!(result(insert, value(0, 0b0011), none, none), 0b0100);
        assert_eq!(result(insert, none, value(0, 0b0111), none), 0b0011);
        let field = |signed| Spread::Field { signed };
        let (place, len) = (value(8, 0), value(8, 0));
        assert_eq!(result(field(false), x, place, len), 0);
        assert_eq!(result(field(true), value(0, 0b0010), place, len), 0b1111);
        assert_eq!(result(field(false), x, value(8, 1), len), 0xff);
        assert_eq!(result(Spread::Permute, x, none, value(0x2222, 0)), 0b1111);
        assert_eq!(result(Spread::Permute, x, none, value(0x7610, 0)), 0);
        assert_eq!(result(Spread::Halves, x, none, none), 0b1100);
        assert_eq!(result(Spread::PackHalves, x, none, none), 0b1100);
        assert_eq!(result(Spread::PackHalves, none, x, none), 0b0011);
        assert_eq!(result(Spread::Extend(2, false), x, none, none), 0);
        assert_eq!(
            result(Spread::Extend(2, true), value(0, 0b0010), none, none),
            0xfe
        );
    }
}

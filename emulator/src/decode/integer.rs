//! Integer arithmetic and logic.

use super::lift::{narrow1, narrow2, narrow3, wide1, wide2, wide3};
use super::{Decoded, Decoder, Form};
use crate::program::{NarrowFn, Op, PredSrc, WideFn};
use crate::semantics::int::{self, Prmt};

/// Sign-extends the low bits.
fn sext(bits: u32, value: u64) -> i64 {
    (value << (64 - bits)) as i64 >> (64 - bits)
}

fn cut(bits: u32, value: u64) -> u64 {
    if bits == 64 {
        value
    } else {
        value & ((1 << bits) - 1)
    }
}

impl Decoder<'_> {
    pub(super) fn integer(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let ty = form.ty()?;
        let bits = ty.bits;
        let signed = ty.name.starts_with('s');
        let opcode = form.opcode();
        if bits == 1 {
            return self.predicate_logic(form);
        }
        match opcode {
            "add" | "sub" | "addc" | "subc" if form.has(".cc") || opcode.len() == 4 => {
                let d = self.dst(&form.operands[0], bits)?;
                let a = self.src(&form.operands[1], bits)?;
                let b = self.src(&form.operands[2], bits)?;
                let (carry_in, negate) = (opcode.len() == 4, opcode.starts_with("sub"));
                return Ok(Op::Carry {
                    d,
                    a,
                    b,
                    carry_in,
                    carry_out: form.has(".cc"),
                    negate,
                });
            }
            "mad" | "madc" if form.has(".cc") || opcode == "madc" => {
                let d = self.dst(&form.operands[0], bits)?;
                let a = self.src(&form.operands[1], bits)?;
                let b = self.src(&form.operands[2], bits)?;
                let c = self.src(&form.operands[3], bits)?;
                let (carry_in, carry_out) = (opcode == "madc", form.has(".cc"));
                return Ok(Op::MadCarry {
                    d,
                    a,
                    b,
                    c,
                    high: form.has(".hi"),
                    signed,
                    carry_in,
                    carry_out,
                });
            }
            "mul" | "mad" if form.has(".wide") => {
                if bits == 64 {
                    return Err("`.wide` takes 16 and 32 bits".to_owned());
                }
                let product = move |a: u64, b: u64| {
                    if signed {
                        (sext(bits, a) * sext(bits, b)) as u64
                    } else {
                        a * b
                    }
                };
                let f: WideFn = match (opcode, signed, bits) {
                    ("mul", false, _) => wide2(|a, b| a * b),
                    ("mul", true, 32) => {
                        wide2(|a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64)
                    }
                    ("mul", ..) => wide2(product),
                    _ => wide3(move |a, b, c| cut(2 * bits, product(a, b).wrapping_add(c))),
                };
                return self.wide(form, &[2 * bits, bits, bits, 2 * bits], f);
            }
            "shl" | "shr" => {
                let f: WideFn = match (opcode, bits, signed) {
                    ("shl", ..) => wide2(move |a, n| if n < 64 { cut(bits, a << n) } else { 0 }),
                    (_, _, true) => {
                        wide2(move |a, n| cut(bits, (sext(bits, a) >> n.min(63)) as u64))
                    }
                    _ => wide2(|a, n| if n < 64 { a >> n } else { 0 }),
                };
                if bits == 32 {
                    let f = match (opcode, signed) {
                        ("shl", _) => narrow2(int::w32::shl),
                        (_, true) => narrow2(int::w32::shr_s),
                        _ => narrow2(int::w32::shr_u),
                    };
                    return self.narrow(form, 32, f);
                }
                return self.wide(form, &[bits, bits, 32], f);
            }
            "clz" | "popc" | "bfind" if bits == 64 => {
                let shift = form.has(".shiftamt");
                let f = match opcode {
                    "clz" => wide1(|a| u64::from(a.leading_zeros())),
                    "popc" => wide1(|a| u64::from(a.count_ones())),
                    _ if shift => wide1(move |a| u64::from(int::w64::bfind_shiftamt(a, signed))),
                    _ => wide1(move |a| u64::from(int::w64::bfind(a, signed))),
                };
                return self.wide(form, &[32, 64], f);
            }
            "bfe" if bits == 64 => {
                let f = wide3(move |a, p, n| int::w64::bfe(a, p as u32, n as u32, signed));
                return self.wide(form, &[64, 64, 32, 32], f);
            }
            "bfi" => {
                // bfi has four sources: the field's place and length must be numbers, or are packed beforehand.
                let place = self.immediate(&form.operands[3]);
                let len = self.immediate(&form.operands[4]);
                let (Ok(place), Ok(len)) = (place, len) else {
                    return Err(
                        "`bfi` with a place or length in a register is not supported".to_owned(),
                    );
                };
                let (place, len) = (place as u32, len as u32);
                let d = self.dst(&form.operands[0], bits)?;
                let a = self.src(&form.operands[1], bits)?;
                let b = self.src(&form.operands[2], bits)?;
                return Ok(if bits == 64 {
                    Op::Wide {
                        f: wide2(move |a, b| int::w64::bfi(a, b, place, len)),
                        d,
                        a,
                        b,
                        c: a,
                    }
                } else {
                    let f = narrow2(move |a, b| int::w32::bfi(a, b, place, len));
                    Op::Narrow {
                        f,
                        d: d.slot,
                        a: a.slot,
                        b: b.slot,
                        c: a.slot,
                    }
                });
            }
            "lop3" => {
                let lut = self.immediate(&form.operands[4])? as u8;
                let f: NarrowFn = match lut {
                    0x96 => narrow3(|a, b, c| a ^ b ^ c),
                    0xe2 | 0xca => narrow3(move |a, b, c| int::lop3(a, b, c, lut)),
                    _ => narrow3(move |a, b, c| int::lop3(a, b, c, lut)),
                };
                let form = Form {
                    operands: &form.operands[..4],
                    ..*form
                };
                return self.narrow(&form, 32, f);
            }
            "mul24" | "mad24" => {
                let high = form.has(".hi");
                let f = if opcode == "mul24" {
                    narrow2(move |a, b| int::mul24(a, b, signed, high))
                } else {
                    narrow3(move |a, b, c| int::mul24(a, b, signed, high).wrapping_add(c))
                };
                return self.narrow(form, 32, f);
            }
            "dp4a" | "dp2a" => {
                let types = form.types();
                let (a_signed, b_signed) = (types[0].name == "s32", types[1].name == "s32");
                let high = form.has(".hi");
                let f = if opcode == "dp4a" {
                    narrow3(move |a, b, c| int::dp4a(a, b, c, a_signed, b_signed))
                } else {
                    narrow3(move |a, b, c| int::dp2a(a, b, c, a_signed, b_signed, high))
                };
                return self.narrow(form, 32, f);
            }
            "shf" => {
                let wrap = form.has(".wrap");
                let f = if form.has(".l") {
                    narrow3(move |a, b, c| int::shf_l(a, b, c, wrap))
                } else {
                    narrow3(move |a, b, c| int::shf_r(a, b, c, wrap))
                };
                return self.narrow(form, 32, f);
            }
            "bmsk" | "szext" => {
                let wrap = form.has(".wrap");
                let f = if opcode == "bmsk" {
                    narrow2(move |a, b| int::bmsk(a, b, wrap))
                } else {
                    narrow2(move |a, b| int::szext(a, b, signed, wrap))
                };
                return self.narrow(form, 32, f);
            }
            "prmt" => {
                let modes = [
                    (".f4e", Prmt::F4e),
                    (".b4e", Prmt::B4e),
                    (".rc8", Prmt::Rc8),
                    (".ecl", Prmt::Ecl),
                    (".ecr", Prmt::Ecr),
                    (".rc16", Prmt::Rc16),
                ];
                let mode = modes
                    .iter()
                    .find(|(m, _)| form.has(m))
                    .map_or(Prmt::Default, |&(_, mode)| mode);
                return self.narrow(form, 32, narrow3(move |a, b, c| int::prmt(a, b, c, mode)));
            }
            "fns" => return Err("`fns` is not supported".to_owned()),
            _ => {}
        }
        if form.has(".sat") && !(signed && bits == 32) {
            return Err("`.sat` takes `.s32` only".to_owned());
        }
        let saturate = form.has(".sat");
        let high = form.has(".hi");
        if bits == 32 {
            let f: NarrowFn = match (opcode, signed) {
                ("add", _) if saturate => narrow2(int::add_sat_s32),
                ("sub", _) if saturate => narrow2(int::sub_sat_s32),
                ("mad", _) if saturate && high => narrow3(int::mad_hi_sat_s32),
                ("mad", _) if saturate => return Err("`.sat` takes `.hi` only".to_owned()),
                ("add", _) => narrow2(u32::wrapping_add),
                ("sub", _) => narrow2(u32::wrapping_sub),
                ("mul", false) if high => narrow2(int::w32::mul_hi_u),
                ("mul", true) if high => narrow2(int::w32::mul_hi_s),
                ("mul", _) => narrow2(u32::wrapping_mul),
                ("mad", false) if high => narrow3(int::w32::mad_hi_u),
                ("mad", true) if high => narrow3(int::w32::mad_hi_s),
                ("mad", _) => narrow3(|a, b, c| a.wrapping_mul(b).wrapping_add(c)),
                ("div", false) => narrow2(int::w32::div_u),
                ("div", true) => narrow2(int::w32::div_s),
                ("rem", false) => narrow2(int::w32::rem_u),
                ("rem", true) => narrow2(int::w32::rem_s),
                ("sad", false) => narrow3(int::w32::sad_u),
                ("sad", true) => narrow3(int::w32::sad_s),
                ("abs", _) => narrow1(int::w32::abs),
                ("neg", _) => narrow1(u32::wrapping_neg),
                ("min", _) if form.has(".relu") => {
                    narrow2(|a, b| (a as i32).min(b as i32).max(0) as u32)
                }
                ("max", _) if form.has(".relu") => {
                    narrow2(|a, b| (a as i32).max(b as i32).max(0) as u32)
                }
                ("min", false) => narrow2(|a, b| a.min(b)),
                ("min", true) => narrow2(|a, b| (a as i32).min(b as i32) as u32),
                ("max", false) => narrow2(|a, b| a.max(b)),
                ("max", true) => narrow2(|a, b| (a as i32).max(b as i32) as u32),
                ("and", _) => narrow2(|a, b| a & b),
                ("or", _) => narrow2(|a, b| a | b),
                ("xor", _) => narrow2(|a, b| a ^ b),
                ("not", _) => narrow1(|a| !a),
                ("cnot", _) => narrow1(|a| u32::from(a == 0)),
                ("brev", _) => narrow1(u32::reverse_bits),
                ("clz", _) => narrow1(u32::leading_zeros),
                ("popc", _) => narrow1(u32::count_ones),
                ("bfind", _) if form.has(".shiftamt") => {
                    narrow1(move |a| int::w32::bfind_shiftamt(a, signed))
                }
                ("bfind", _) => narrow1(move |a| int::w32::bfind(a, signed)),
                ("bfe", _) => narrow3(move |a, p, n| int::w32::bfe(a, p, n, signed)),
                _ => return Err(format!("`{opcode}` has no 32-bit form")),
            };
            return self.narrow(form, 32, f);
        }
        let f: WideFn = match (opcode, signed, bits) {
            ("add", ..) => wide2(move |a, b| cut(bits, a.wrapping_add(b))),
            ("sub", ..) => wide2(move |a, b| cut(bits, a.wrapping_sub(b))),
            ("mul", false, 64) if high => wide2(int::w64::mul_hi_u),
            ("mul", true, 64) if high => wide2(int::w64::mul_hi_s),
            ("mul", false, 16) if high => wide2(|a, b| (a * b) >> 16),
            ("mul", true, 16) if high => {
                wide2(|a, b| cut(16, ((sext(16, a) * sext(16, b)) >> 16) as u64))
            }
            ("mul", ..) => wide2(move |a, b| cut(bits, a.wrapping_mul(b))),
            ("mad", false, 64) if high => wide3(int::w64::mad_hi_u),
            ("mad", true, 64) if high => wide3(int::w64::mad_hi_s),
            ("mad", false, _) if high => wide3(|a, b, c| cut(16, ((a * b) >> 16) + c)),
            ("mad", true, _) if high => wide3(|a, b, c| {
                cut(
                    16,
                    (((sext(16, a) * sext(16, b)) >> 16) as u64).wrapping_add(c),
                )
            }),
            ("mad", ..) => wide3(move |a, b, c| cut(bits, a.wrapping_mul(b).wrapping_add(c))),
            ("div", false, _) => wide2(move |a, b| cut(bits, int::w64::div_u(a, b))),
            ("rem", false, _) => wide2(move |a, b| cut(bits, int::w64::rem_u(a, b))),
            ("div", true, _) => wide2(move |a, b| {
                cut(
                    bits,
                    int::w64::div_s(sext(bits, a) as u64, sext(bits, b) as u64),
                )
            }),
            ("rem", true, _) => wide2(move |a, b| {
                cut(
                    bits,
                    int::w64::rem_s(sext(bits, a) as u64, sext(bits, b) as u64),
                )
            }),
            ("sad", false, _) => wide3(move |a, b, c| cut(bits, a.abs_diff(b).wrapping_add(c))),
            ("sad", true, _) => wide3(move |a, b, c| {
                cut(bits, sext(bits, a).abs_diff(sext(bits, b)).wrapping_add(c))
            }),
            ("abs", ..) => wide1(move |a| cut(bits, sext(bits, a).wrapping_abs() as u64)),
            ("neg", ..) => wide1(move |a| cut(bits, a.wrapping_neg())),
            ("min", false, _) => wide2(|a, b| a.min(b)),
            ("max", false, _) => wide2(|a, b| a.max(b)),
            ("min", true, _) => {
                wide2(move |a, b| if sext(bits, a) <= sext(bits, b) { a } else { b })
            }
            ("max", true, _) => {
                wide2(move |a, b| if sext(bits, a) >= sext(bits, b) { a } else { b })
            }
            ("and", ..) => wide2(|a, b| a & b),
            ("or", ..) => wide2(|a, b| a | b),
            ("xor", ..) => wide2(|a, b| a ^ b),
            ("not", ..) => wide1(move |a| cut(bits, !a)),
            ("cnot", ..) => wide1(|a| u64::from(a == 0)),
            ("brev", _, 64) => wide1(u64::reverse_bits),
            _ => return Err(format!("`{opcode}` has no {bits}-bit form")),
        };
        self.wide(form, &[bits; 4], f)
    }

    fn predicate_logic(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let d = self
            .pred_dst(&form.operands[0])?
            .ok_or("a predicate register was expected")?;
        let a = self.pred_src(&form.operands[1])?;
        let b = form
            .operands
            .get(2)
            .map_or(Ok(PredSrc::TRUE), |b| self.pred_src(b))?;
        let table = match form.opcode() {
            "and" => 0b1000,
            "or" => 0b1110,
            "xor" => 0b0110,
            _ => 0b0101,
        };
        Ok(Op::Pred { table, d, a, b })
    }
}

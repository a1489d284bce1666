//! Conversions.

use super::float::{format_of, is_row, round_of};
use super::lift::{narrow2, wide1, wide2};
use super::{Decoded, Decoder, Form, kind_of};
use crate::parse::tree::Type;
use crate::program::{NarrowFn, Op, Src, WideFn};
use crate::semantics::cvt::{self, Int, Mods};
use crate::semantics::{Float, Round};

fn int_of(ty: Type) -> Int {
    Int {
        bits: ty.bits,
        signed: ty.name.starts_with('s'),
    }
}

impl Decoder<'_> {
    pub(super) fn convert(&mut self, form: &Form<'_>) -> Decoded<Op> {
        if form.opcode() == "cvt.pack" {
            return self.cvt_pack(form);
        }
        let round = round_of(form.mods);
        let mods = Mods {
            round,
            integral: form
                .mods
                .iter()
                .any(|m| matches!(*m, ".rni" | ".rzi" | ".rmi" | ".rpi")),
            ftz: form.has(".ftz"),
            sat: form.has(".sat"),
            relu: form.has(".relu"),
            satfinite: form.has(".satfinite"),
        };
        let names: Vec<&str> = form
            .mods
            .iter()
            .rev()
            .take(2)
            .rev()
            .map(|m| &m[1..])
            .collect();
        let (to, from) = (names[0], names[1]);
        let plain = round == Round::Rn && !mods.relu && !mods.satfinite && !mods.ftz && !mods.sat;
        let fp8 = |name: &str| match name {
            "e4m3x2" => Some(Float::E4m3),
            "e5m2x2" => Some(Float::E5m2),
            _ => None,
        };
        match (to, from) {
            ("f16x2" | "bf16x2", "f32") => {
                let format = if to == "f16x2" {
                    Float::F16
                } else {
                    Float::Bf16
                };
                let f: NarrowFn = match (format, plain) {
                    (Float::F16, true) => Box::new(|d, a, b, _| cvt::f32_to_f16x2_lanes(d, a, b)),
                    (_, true) => Box::new(|d, a, b, _| cvt::f32_to_bf16x2_lanes(d, a, b)),
                    _ => narrow2(move |a, b| cvt::pack2(format, mods, a, b)),
                };
                return self.narrow(form, 32, f);
            }
            ("tf32", _) => {
                let f = wide1(move |a| cvt::float_to_float(Float::Tf32, Float::F32, mods, a));
                return self.wide(form, &[32, 32], f);
            }
            (_, "f32") if let Some(format) = fp8(to) => {
                let f = wide2(move |a, b| u64::from(cvt::pack2(format, mods, a as u32, b as u32)));
                return self.wide(form, &[16, 32, 32], f);
            }
            (_, "f16x2") if let Some(format) = fp8(to) => {
                let relu = mods.relu;
                let f = wide1(move |a| u64::from(cvt::f16x2_to_fp8x2(format, relu, a as u32)));
                return self.wide(form, &[16, 32], f);
            }
            ("f16x2", _) if let Some(format) = fp8(from) => {
                let relu = mods.relu;
                let f = wide1(move |a| u64::from(cvt::fp8x2_to_f16x2(format, relu, a as u16)));
                return self.wide(form, &[32, 16], f);
            }
            _ => {}
        }
        let named = |name| Type::named(name).ok_or("a type was expected");
        let (to, from) = (named(to)?, named(from)?);
        let d = self.dst_relaxed(&form.operands[0], to.bits)?;
        let a = self.src_relaxed(&form.operands[1], from.bits)?;
        if d.kind == crate::program::Kind::Pred {
            return Err("a predicate cannot be converted".to_owned());
        }
        // The source's bits above its type are cut off; the result is extended to the destination register.
        let cut = if from.bits == 64 {
            u64::MAX
        } else {
            (1 << from.bits) - 1
        };
        let exact = kind_of(from) == a.kind;
        let rounded = form
            .mods
            .iter()
            .any(|m| m.starts_with(".r") && *m != ".relu");
        let f: WideFn = match (format_of(to), format_of(from)) {
            (None, None) => {
                if rounded || mods.ftz {
                    return Err("integers are not rounded".to_owned());
                }
                let (to, from, sat) = (int_of(to), int_of(from), mods.sat);
                if !sat {
                    return Ok(self.resize(d, a, to, from));
                }
                wide1(move |x| cvt::int_to_int(to, from, true, x & cut))
            }
            (Some((format, _)), None) => {
                if !rounded {
                    return Err(
                        "a conversion from integer to floating point needs a rounding".to_owned(),
                    );
                }
                let (from, sat) = (int_of(from), mods.sat);
                if format == Float::F32 && from.bits <= 32 && plain {
                    if from.signed {
                        let up = 64 - from.bits;
                        wide1(move |x| u64::from((((x << up) as i64 >> up) as f32).to_bits()))
                    } else {
                        wide1(move |x| u64::from(((x & cut) as f32).to_bits()))
                    }
                } else {
                    wide1(move |x| cvt::int_to_float(format, from, round, sat, x & cut))
                }
            }
            (None, Some((format, _))) => {
                if !mods.integral {
                    return Err(
                        "a conversion from floating point to integer needs an integer rounding"
                            .to_owned(),
                    );
                }
                let (to, ftz) = (int_of(to), mods.ftz);
                wide1(move |x| cvt::float_to_int(to, format, round, ftz, x & cut))
            }
            (Some((to, _)), Some((from, _))) => {
                if exact && is_row(d.kind) && plain && !mods.integral {
                    let f: Option<NarrowFn> = match (to, from) {
                        (Float::F32, Float::F16) => {
                            Some(Box::new(|d, a, _, _| cvt::f16_to_f32_lanes(d, a)))
                        }
                        (Float::F32, Float::Bf16) => {
                            Some(Box::new(|d, a, _, _| cvt::bf16_to_f32_lanes(d, a)))
                        }
                        (Float::F16, Float::F32) => Some(super::lift::narrow1(cvt::f32_to_f16)),
                        (Float::Bf16, Float::F32) => Some(super::lift::narrow1(cvt::f32_to_bf16)),
                        _ => None,
                    };
                    if let Some(f) = f {
                        return Ok(Op::Narrow {
                            f,
                            d: d.slot,
                            a: a.slot,
                            b: a.slot,
                            c: a.slot,
                        });
                    }
                }
                if !rounded && to.man_bits() < from.man_bits() {
                    return Err("a conversion to a narrower format needs a rounding".to_owned());
                }
                wide1(move |x| cvt::float_to_float(to, from, mods, x & cut))
            }
        };
        Ok(Op::Wide {
            f,
            d,
            a,
            b: a,
            c: a,
        })
    }

    /// Integer to integer without saturation.
    fn resize(&mut self, d: Src, a: Src, to: Int, from: Int) -> Op {
        let narrow = to.bits.min(from.bits);
        // Widening extends as the source's type says; then the destination register is filled as the type says.
        let signed = if from.bits < to.bits {
            from.signed
        } else {
            to.signed
        };
        let f: WideFn = match (narrow, signed) {
            (64, _) => wide1(|x| x),
            (32, false) => wide1(|x| u64::from(x as u32)),
            (32, true) => wide1(|x| i64::from(x as u32 as i32) as u64),
            _ => wide1(move |x| {
                let up = 64 - narrow;
                if signed {
                    ((x << up) as i64 >> up) as u64
                } else {
                    x << up >> up
                }
            }),
        };
        // A narrower unsigned destination type than its register is zero above.
        let f: WideFn = if signed && !to.signed && to.bits < 64 {
            Box::new(move |d, a, b, c| {
                f(d, a, b, c);
                for v in d {
                    *v &= (1 << to.bits) - 1;
                }
            })
        } else {
            f
        };
        Op::Wide {
            f,
            d,
            a,
            b: a,
            c: a,
        }
    }

    fn cvt_pack(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let to = Type::named(&form.mods[1][1..]).ok_or("a type was expected")?;
        let (int, eight) = (int_of(to), to.bits == 8);
        if eight != (form.operands.len() == 4) {
            return Err("the 8-bit forms, and only they, take a third operand".to_owned());
        }
        let f = super::lift::narrow3(move |a, b, c| cvt::pack_sat(int, a, b, c));
        self.narrow(form, 32, f)
    }
}

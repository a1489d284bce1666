//! Floating-point arithmetic.

use super::lift::{narrow1, narrow2, narrow3, wide1, wide2, wide3};
use super::{Decoded, Decoder, Form};
use crate::parse::tree::Type;
use crate::program::{Kind, NarrowFn, Op, WideFn};
use crate::semantics::float::{self, MinMax, Mods, TestP};
use crate::semantics::special::{self, Special, perturb::perturbed_f32_lanes};
use crate::semantics::{Float, Round, half};

pub(super) fn round_of(mods: &[&str]) -> Round {
    for m in mods {
        return match *m {
            ".rn" | ".rni" => Round::Rn,
            ".rz" | ".rzi" => Round::Rz,
            ".rm" | ".rmi" => Round::Rm,
            ".rp" | ".rpi" => Round::Rp,
            ".rna" => Round::Rna,
            _ => continue,
        };
    }
    Round::Rn
}

/// The format of a type, and whether it is a pair.
pub(super) fn format_of(ty: Type) -> Option<(Float, bool)> {
    Some(match ty.name {
        "f16" => (Float::F16, false),
        "bf16" => (Float::Bf16, false),
        "f16x2" => (Float::F16, true),
        "bf16x2" => (Float::Bf16, true),
        "f32" => (Float::F32, false),
        "f64" => (Float::F64, false),
        _ => return None,
    })
}

impl Decoder<'_> {
    pub(super) fn float(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let ty = form.ty()?;
        let (format, pair) = format_of(ty).ok_or("a floating-point type was expected")?;
        let opcode = form.opcode();
        let (ftz, sat, relu) = (form.has(".ftz"), form.has(".sat"), form.has(".relu"));
        let round = round_of(form.mods);
        let mods = Mods {
            round,
            ftz,
            sat,
            relu,
        };
        if opcode == "testp" {
            let property = match form.mods[0] {
                ".finite" => TestP::Finite,
                ".infinite" => TestP::Infinite,
                ".number" => TestP::Number,
                ".notanumber" => TestP::NotANumber,
                ".normal" => TestP::Normal,
                _ => TestP::Subnormal,
            };
            let f = wide1(move |a| u64::from(float::testp(format, a, property)));
            return self.wide(form, &[1, ty.bits], f);
        }
        let special = match opcode {
            "rcp" | "sqrt" if !form.has(".approx") || format == Float::F64 => None,
            "rcp" => Some(Special::Rcp),
            "sqrt" => Some(Special::Sqrt),
            "rsqrt" => Some(Special::Rsqrt),
            "sin" => Some(Special::Sin),
            "cos" => Some(Special::Cos),
            "lg2" => Some(Special::Lg2),
            "ex2" => Some(Special::Ex2),
            "tanh" => Some(Special::Tanh),
            _ => None,
        };
        if let Some(op) = special {
            let f: NarrowFn = match (format, pair) {
                (Float::F32, _) => match self.numerics.perturb {
                    None => Box::new(move |d, a, _, _| special::approx_f32_lanes(op, ftz, d, a)),
                    Some(seed) => {
                        Box::new(move |d, a, _, _| perturbed_f32_lanes(op, seed, ftz, d, a))
                    }
                },
                (_, false) => narrow1(move |a| special::approx_half(op, format, ftz, a)),
                _ => narrow1(move |a| {
                    half::x2_unary(a, |half| {
                        u64::from(special::approx_half(op, format, ftz, half as u32))
                    })
                }),
            };
            return self.narrow(form, ty.bits, f);
        }
        let plain = format == Float::F32 && round == Round::Rn && !sat && !relu;
        if plain {
            let f: Option<NarrowFn> = match opcode {
                "add" => Some(Box::new(move |d, a, b, _| {
                    float::add_rn_f32_lanes(ftz, d, a, b)
                })),
                "sub" => Some(Box::new(move |d, a, b, _| {
                    float::sub_rn_f32_lanes(ftz, d, a, b)
                })),
                "mul" => Some(Box::new(move |d, a, b, _| {
                    float::mul_rn_f32_lanes(ftz, d, a, b)
                })),
                "fma" | "mad" => Some(Box::new(move |d, a, b, c| {
                    float::fma_rn_f32_lanes(ftz, d, a, b, c)
                })),
                "min" | "max"
                    if form.operands.len() == 3
                        && !form.has(".NaN")
                        && !form.has(".xorsign.abs") =>
                {
                    if opcode == "max" {
                        Some(Box::new(move |d, a, b, _| {
                            float::max_f32_lanes(ftz, d, a, b)
                        }))
                    } else {
                        Some(Box::new(move |d, a, b, _| {
                            float::min_f32_lanes(ftz, d, a, b)
                        }))
                    }
                }
                _ => None,
            };
            if let Some(f) = f {
                return self.narrow(form, 32, f);
            }
        }
        let minmax = MinMax {
            ftz,
            nan: form.has(".NaN"),
            xorsign_abs: form.has(".xorsign.abs"),
        };
        if form.operands.len() == 4 && matches!(opcode, "min" | "max") && format != Float::F32 {
            return Err("only `.f32` has the form with three operands".to_owned());
        }
        let greater = opcode == "max";
        let three = form.operands.len() == 4;
        let one = move |a: u64| match opcode {
            "abs" => float::abs(format, a, ftz),
            "neg" => float::neg(format, a, ftz),
            "rcp" => float::rcp(format, a, mods),
            _ => float::sqrt(format, a, mods),
        };
        let two = move |a: u64, b: u64| match opcode {
            "add" => float::add(format, a, b, mods),
            "sub" => float::sub(format, a, b, mods),
            "mul" => float::mul(format, a, b, mods),
            "div" => float::div(format, a, b, mods),
            "copysign" => float::copysign(format, a, b),
            _ => float::min_max(format, a, b, greater, minmax),
        };
        let fma = move |a: u64, b: u64, c: u64| match opcode {
            "fma" | "mad" => float::fma(format, a, b, c, mods),
            _ => float::min_max(
                format,
                float::min_max(format, a, b, greater, minmax),
                c,
                greater,
                minmax,
            ),
        };
        match (opcode, three) {
            ("abs" | "neg" | "rcp" | "sqrt", _) if pair => {
                self.narrow(form, 32, narrow1(move |a| half::x2_unary(a, one)))
            }
            ("abs", _) if format == Float::F32 && !ftz => {
                self.narrow(form, 32, narrow1(|a| a & 0x7fff_ffff))
            }
            ("neg", _) if format == Float::F32 && !ftz => {
                self.narrow(form, 32, narrow1(|a| a ^ 0x8000_0000))
            }
            ("abs" | "neg" | "rcp" | "sqrt", _) => {
                let f: WideFn = wide1(one);
                self.wide(form, &[ty.bits; 4], f)
            }
            (_, true) if pair => self.narrow(
                form,
                32,
                narrow3(move |a, b, c| half::x2_ternary(a, b, c, fma)),
            ),
            (_, true) => self.wide(form, &[ty.bits; 4], wide3(fma)),
            (_, false) if pair => self.narrow(form, 32, narrow2(move |a, b| half::x2(a, b, two))),
            (_, false) => self.wide(form, &[ty.bits; 4], wide2(two)),
        }
    }
}

/// A register of this kind holds a 32-bit row.
pub(super) fn is_row(kind: Kind) -> bool {
    matches!(kind, Kind::W8 | Kind::W16 | Kind::W32)
}

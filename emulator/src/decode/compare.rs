//! Comparison and selection.

use super::float::format_of;
use super::lift::{compare_narrow, compare_wide, wide2, wide3};
use super::{Decoded, Decoder, Form};
use crate::parse::tree::Type;
use crate::program::{Combine, Comparison, NarrowCompareFn, Op, PredSrc, SetP};
use crate::semantics::float;
use crate::semantics::int::Cmp;

/// Compares two values of a type, given with zeros above their bits.
fn comparison(
    cmp: Cmp,
    ty: Type,
    ftz: bool,
) -> Decoded<impl Fn(u64, u64) -> bool + Copy + Send + Sync + 'static> {
    let format = format_of(ty);
    if matches!(format, Some((_, true))) {
        return Err(format!("a comparison of `.{}` is not supported", ty.name));
    }
    let only_float = matches!(
        cmp,
        Cmp::Num | Cmp::Nan | Cmp::Equ | Cmp::Neu | Cmp::Ltu | Cmp::Leu | Cmp::Gtu | Cmp::Geu
    );
    if format.is_none() && only_float {
        return Err("this comparison takes floating-point values".to_owned());
    }
    let signed = ty.name.starts_with('s');
    if signed && matches!(cmp, Cmp::Lo | Cmp::Ls | Cmp::Hi | Cmp::Hs) {
        return Err("this comparison takes unsigned values".to_owned());
    }
    let up = 64 - ty.bits;
    Ok(move |a: u64, b: u64| match format {
        Some((format, _)) => float::compare(format, cmp, a, b, ftz),
        None if signed => cmp.signed((a << up) as i64, (b << up) as i64),
        None => cmp.unsigned(a, b),
    })
}

/// A comparison of 32-bit rows with the operation known at compile time.
fn rows(cmp: Cmp, ty: Type, ftz: bool) -> Option<NarrowCompareFn> {
    macro_rules! each {
        ($($cmp:ident)*) => {
            match (cmp, ty.name, ftz) {
                $(
                    (Cmp::$cmp, "u32" | "b32", _) => {
                        compare_narrow(|a, b| Cmp::$cmp.unsigned(u64::from(a), u64::from(b)))
                    }
                    (Cmp::$cmp, "s32", _) => {
                        compare_narrow(|a, b| Cmp::$cmp.signed(i64::from(a as i32), i64::from(b as i32)))
                    }
                    (Cmp::$cmp, "f32", false) => {
                        compare_narrow(|a, b| float::compare_f32::<false>(Cmp::$cmp, a, b))
                    }
                )*
                _ => return None,
            }
        };
    }
    Some(each!(Eq Ne Lt Le Gt Ge))
}

impl Decoder<'_> {
    pub(super) fn compare(&mut self, form: &Form<'_>) -> Decoded<Op> {
        match form.opcode() {
            "selp" => self.selp(form),
            "slct" => {
                let types = form.types();
                let (ty, by) = (types[0], types[1]);
                let (ftz, float) = (form.has(".ftz"), by.name == "f32");
                let f = wide3(move |a, b, c| {
                    let keep = match (float, ftz) {
                        (true, true) => float::compare_f32::<true>(Cmp::Ge, c as u32, 0),
                        (true, false) => float::compare_f32::<false>(Cmp::Ge, c as u32, 0),
                        (false, _) => c as u32 as i32 >= 0,
                    };
                    if keep { a } else { b }
                });
                self.wide(form, &[ty.bits, ty.bits, ty.bits, 32], f)
            }
            _ => self.setp(form),
        }
    }

    fn selp(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let bits = form.ty()?.bits;
        let d = self.dst(&form.operands[0], bits)?.slot;
        let a = self.src(&form.operands[1], bits)?.slot;
        let b = self.src(&form.operands[2], bits)?.slot;
        let p = self.pred_src(&form.operands[3])?;
        Ok(if bits == 64 {
            Op::Select64 { d, a, b, p }
        } else {
            Op::Select32 { d, a, b, p }
        })
    }

    fn setp(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let ty = form.ty()?;
        let cmp = Cmp::parse(&form.mods[0][1..]).ok_or("a comparison was expected")?;
        if matches!(ty.name, "b16" | "b32" | "b64") && !matches!(cmp, Cmp::Eq | Cmp::Ne) {
            return Err("untyped bits can only be compared with `.eq` and `.ne`".to_owned());
        }
        let ftz = form.has(".ftz");
        let combine = [
            (".and", Combine::And),
            (".or", Combine::Or),
            (".xor", Combine::Xor),
        ];
        let combine = combine.iter().find(|(m, _)| form.has(m)).map(|&(_, c)| c);
        if combine.is_some() != (form.operands.len() == 4) {
            return Err("a predicate operand and `.and`, `.or` or `.xor` go together".to_owned());
        }
        let a = self.src(&form.operands[1], ty.bits)?;
        let b = self.src(&form.operands[2], ty.bits)?;
        let holds = comparison(cmp, ty, ftz)?;
        if form.opcode() == "set" {
            let d_ty = form.types()[0];
            let d = self.dst(&form.operands[0], d_ty.bits)?;
            if combine.is_some() {
                return Err("`set` with a predicate operand is not supported".to_owned());
            }
            let yes = match d_ty.name {
                "f32" => u64::from(1f32.to_bits()),
                "f16" => 0x3c00,
                "bf16" => 0x3f80,
                _ => u64::MAX,
            };
            let f = wide2(move |a, b| if holds(a, b) { yes } else { 0 });
            return Ok(Op::Wide { f, d, a, b, c: a });
        }
        let (p, q) = self.pair(&form.operands[0]);
        let (p, q) = (self.pred_dst(p)?, q.map_or(Ok(None), |q| self.pred_dst(q))?);
        let combine = match combine {
            Some(c) => Some((c, self.pred_src(&form.operands[3])?)),
            None => None,
        };
        let compare = match rows(cmp, ty, ftz) {
            Some(f) => Comparison::Narrow(f, a.slot, b.slot),
            None => Comparison::Wide(compare_wide(holds), a, b),
        };
        Ok(Op::SetP(Box::new(SetP {
            compare,
            p,
            q,
            combine: combine.or(None::<(Combine, PredSrc)>),
        })))
    }
}

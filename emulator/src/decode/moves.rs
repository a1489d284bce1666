//! Moves, addresses, memory and control flow.

use super::lift::{wide1, wide2};
use super::{Decoded, Decoder, Form, window};
use crate::error::Space;
use crate::exec::RANK_SHIFT;
use crate::parse::tree::{Operand, Type};
use crate::program::{Atomic, AtomicFn, Dst, Kind, Load, Op, Order, PredSrc, Src, Store};
use crate::semantics::float::{self, Mods};
use crate::semantics::{Float, half};

impl Decoder<'_> {
    pub(super) fn moves(&mut self, form: &Form<'_>) -> Decoded<Op> {
        match form.opcode() {
            "mov" => self.mov(form),
            "cvta" => {
                let bits = form.ty()?.bits;
                let d = self.dst(&form.operands[0], bits)?;
                let space = form.space();
                if let (Operand::Var(var, offset), false) = (&form.operands[1], form.has(".to")) {
                    let a = self.variable(*var, *offset, bits, true)?;
                    return Ok(self.copy(d, a));
                }
                let a = self.src(&form.operands[1], bits)?;
                let base = window(space);
                if base == 0 || bits == 32 {
                    return Ok(self.copy(d, a));
                }
                let f = if form.has(".to") {
                    wide1(move |a| a.wrapping_sub(base))
                } else {
                    wide1(move |a| a.wrapping_add(base))
                };
                Ok(Op::Wide {
                    f,
                    d,
                    a,
                    b: a,
                    c: a,
                })
            }
            "mapa" | "getctarank" => self.of_cluster(form),
            _ => {
                let d = self
                    .pred_dst(&form.operands[0])?
                    .ok_or("a predicate register was expected")?;
                let a = self.src_any(&form.operands[1], 64)?;
                Ok(Op::IsSpace {
                    d,
                    a,
                    space: form.space(),
                })
            }
        }
    }

    /// `mapa`, `getctarank`: addresses hold the rank of their block.
    fn of_cluster(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let bits = form.ty()?.bits;
        let generic = !form.has(".shared::cluster");
        let a = match &form.operands[1] {
            Operand::Var(var, offset) => self.variable(*var, *offset, bits, generic)?,
            operand => self.src(operand, bits)?,
        };
        if form.opcode() == "getctarank" {
            let d = self.dst(&form.operands[0], 32)?;
            return Ok(Op::Wide {
                f: wide1(|a| a >> RANK_SHIFT & 0xff),
                d,
                a,
                b: a,
                c: a,
            });
        }
        let d = self.dst(&form.operands[0], bits)?;
        let b = self.src(&form.operands[2], 32)?;
        // Above the rank are the bits of the window.
        let keep = !(0xff << RANK_SHIFT);
        Ok(Op::Wide {
            f: wide2(move |a, rank| a & keep | (rank & 0xff) << RANK_SHIFT),
            d,
            a,
            b,
            c: a,
        })
    }

    fn copy(&self, d: Src, a: Src) -> Op {
        match (d.kind, a.kind) {
            (Kind::W64, Kind::W64) => Op::Mov64 {
                d: d.slot,
                a: a.slot,
            },
            (Kind::W64, _) => Op::Wide {
                f: wide1(|a| a),
                d,
                a,
                b: a,
                c: a,
            },
            _ => Op::Mov32 {
                d: d.slot,
                a: a.slot,
            },
        }
    }

    fn mov(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let ty = form.ty()?;
        let [to, from] = [&form.operands[0], &form.operands[1]];
        if ty.bits == 1 {
            let d = self
                .pred_dst(to)?
                .ok_or("a predicate register was expected")?;
            let a = self.pred_src(from)?;
            return Ok(Op::Pred {
                table: 0b1010,
                d,
                a,
                b: PredSrc::TRUE,
            });
        }
        if let Operand::Vector(parts) = from {
            let bits = part_bits(ty, parts.len())?;
            let parts = parts
                .iter()
                .map(|p| self.src(p, bits))
                .collect::<Decoded<Vec<_>>>()?;
            let d = self.dst(to, ty.bits)?;
            return Ok(Op::Pack { d, parts, bits });
        }
        if let Operand::Vector(parts) = to {
            let bits = part_bits(ty, parts.len())?;
            let parts = parts
                .iter()
                .map(|p| self.dst_or_sink(p, bits))
                .collect::<Decoded<Vec<_>>>()?;
            let a = self.src(from, ty.bits)?;
            return Ok(Op::Unpack { parts, a, bits });
        }
        let d = self.dst(to, ty.bits)?;
        if let Operand::Special(name) = from
            && matches!(
                name.as_str(),
                "%clock" | "%clock_hi" | "%clock64" | "%globaltimer" | "%globaltimer_lo"
            )
        {
            return Ok(Op::Clock { d });
        }
        let a = self.src(from, ty.bits)?;
        Ok(self.copy(d, a))
    }

    /// Checks a parameter access by name at once.
    fn vector_parts<'o>(&self, form: &Form<'o>, operand: &'o Operand) -> Decoded<&'o [Operand]> {
        let parts = match operand {
            Operand::Vector(parts) => parts.as_slice(),
            other => std::slice::from_ref(other),
        };
        if parts.len() != form.vector() {
            return Err(format!(
                "{} registers, {} are needed",
                parts.len(),
                form.vector()
            ));
        }
        Ok(parts)
    }

    pub(super) fn memory(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let ty = form.ty()?;
        let bytes = ty.bits / 8;
        let space = form.space();
        match form.opcode() {
            "ld" | "ldu" => {
                let parts = self.vector_parts(form, &form.operands[0])?;
                let total = bytes as usize * parts.len();
                if total > 16 && !(total == 32 && space == Space::Global) {
                    return Err(format!("a load of {total} bytes"));
                }
                let sink = |p: &Operand| match p {
                    Operand::Sink => Ok(None),
                    p => self.dst_relaxed(p, ty.bits).map(Some),
                };
                let dst = parts.iter().map(sink).collect::<Decoded<Vec<Dst>>>()?;
                let address = self.address(&form.operands[1], space)?;
                let signed = ty.name.starts_with('s');
                Ok(Op::Load(Box::new(Load {
                    space,
                    address,
                    bytes,
                    signed,
                    dst,
                    order: order(form),
                })))
            }
            "st" => {
                let parts = self.vector_parts(form, &form.operands[1])?;
                let total = bytes as usize * parts.len();
                if total > 16 && !(total == 32 && space == Space::Global) {
                    return Err(format!("a store of {total} bytes"));
                }
                let src = parts
                    .iter()
                    .map(|p| self.src_relaxed(p, ty.bits))
                    .collect::<Decoded<Vec<_>>>()?;
                let address = self.address(&form.operands[0], space)?;
                Ok(Op::Store(Box::new(Store {
                    space,
                    address,
                    bytes,
                    src,
                    order: order(form),
                })))
            }
            opcode => {
                let has_result = opcode == "atom";
                let rest = if has_result {
                    &form.operands[1..]
                } else {
                    form.operands
                };
                let dst = if has_result {
                    self.dst_or_sink(&form.operands[0], ty.bits)?
                } else {
                    None
                };
                let address = self.address(&rest[0], space)?;
                let a = self.src(&rest[1], ty.bits)?;
                let b = if form.has(".cas") {
                    self.src(&rest[2], ty.bits)?
                } else {
                    a
                };
                let f = update(form, ty)?;
                Ok(Op::Atomic(Box::new(Atomic {
                    space,
                    address,
                    bytes,
                    dst,
                    a,
                    b,
                    f,
                    order: order(form),
                })))
            }
        }
    }

    pub(super) fn control(&mut self, form: &Form<'_>) -> Decoded<Op> {
        match form.opcode() {
            "bra" => Ok(Op::Branch {
                target: self.target(&form.operands[0])?,
                uniform: form.has(".uni"),
            }),
            "brx.idx" => {
                let index = self.src(&form.operands[0], 32)?;
                let Operand::Label(table) = &form.operands[1] else {
                    return Err("a `.branchtargets` label was expected".to_owned());
                };
                let labels = self
                    .body
                    .tables
                    .get(table)
                    .ok_or("the label has no `.branchtargets`")?;
                let targets = labels
                    .iter()
                    .map(|&l| self.label(l))
                    .collect::<Decoded<Vec<_>>>()?;
                Ok(Op::BranchIndex {
                    index,
                    targets,
                    uniform: form.has(".uni"),
                })
            }
            "ret" | "exit" => Ok(Op::Exit),
            "trap" => Ok(Op::Trap),
            _ => Err("`brkpt` is not supported".to_owned()),
        }
    }

    fn target(&self, operand: &Operand) -> Decoded<u32> {
        match operand {
            Operand::Label(label) => self.label(*label),
            Operand::Unknown(name) => Err(format!("there is no label `{name}`")),
            _ => Err("a label was expected".to_owned()),
        }
    }

    fn label(&self, label: u32) -> Decoded<u32> {
        let found = self
            .body
            .labels
            .get(label as usize)
            .ok_or("there is no such label")?;
        let target = found.target.ok_or_else(|| {
            format!(
                "the label `{}` of line {} stands nowhere",
                found.name, found.line
            )
        })?;
        Ok(target as u32)
    }

    pub(super) fn hint(&mut self, form: &Form<'_>) -> Decoded<Op> {
        match form.opcode() {
            "nanosleep" => Ok(Op::Yield),
            "createpolicy.fractional" => {
                let d = self.dst(&form.operands[0], 64)?.slot;
                let a = self.bits(64, 0x1000_0000_0000_0000).slot;
                Ok(Op::Mov64 { d, a })
            }
            "pmevent" => Err("`pmevent` is not supported".to_owned()),
            _ => Ok(Op::Nop),
        }
    }
}

/// How strong a load, store or atomic is. Atomics without a word are relaxed, and of scope `.gpu`.
fn order(form: &Form<'_>) -> Order {
    let atomic = matches!(form.opcode(), "atom" | "red");
    let both = form.has(".acq_rel");
    let strong = atomic
        || [".volatile", ".relaxed", ".acquire", ".release"]
            .iter()
            .any(|m| form.has(m));
    Order {
        strong,
        acquire: both || form.has(".acquire"),
        release: both || form.has(".release"),
        beyond_block: strong && !form.has(".cta"),
    }
}

fn part_bits(ty: Type, parts: usize) -> Decoded<u32> {
    match (ty.bits, parts) {
        (16, 2) => Ok(8),
        (32, 2) => Ok(16),
        (32, 4) => Ok(8),
        (64, 2) => Ok(32),
        (64, 4) => Ok(16),
        _ => Err(format!("a vector of {parts} parts in {} bits", ty.bits)),
    }
}

/// What an atomic does to the old value: `.add` of `.u32`, and so on.
fn update(form: &Form<'_>, ty: Type) -> Decoded<AtomicFn> {
    let ops = [
        ".and", ".or", ".xor", ".exch", ".add", ".inc", ".dec", ".min", ".max", ".cas",
    ];
    let op = ops
        .into_iter()
        .find(|op| form.has(op))
        .ok_or("an operation was expected")?;
    update_named(op, ty)
}

/// The same, by the operation's modifier.
pub(super) fn update_named(op: &str, ty: Type) -> Decoded<AtomicFn> {
    let bits = ty.bits;
    let cut = move |v: u64| if bits == 64 { v } else { v & ((1 << bits) - 1) };
    let mods = Mods::default();
    Ok(match (op, ty.name) {
        (".cas", _) => Box::new(|old, a, b| if old == a { b } else { old }),
        (".exch", "b32" | "b64" | "u32" | "s32" | "u64" | "s64" | "f32" | "f64") => {
            Box::new(|_, a, _| a)
        }
        (".and", "b32" | "b64") => Box::new(|old, a, _| old & a),
        (".or", "b32" | "b64") => Box::new(|old, a, _| old | a),
        (".xor", "b32" | "b64") => Box::new(|old, a, _| old ^ a),
        (".add", "u32" | "s32" | "u64" | "s64") => {
            Box::new(move |old, a, _| cut(old.wrapping_add(a)))
        }
        (".add", "f32") => {
            Box::new(move |old, a, _| float::add(Float::F32, old, a, Mods { ftz: false, ..mods }))
        }
        (".add", "f64") => Box::new(move |old, a, _| float::add(Float::F64, old, a, mods)),
        (".add" | ".min" | ".max", "f16" | "bf16" | "f16x2" | "bf16x2") => {
            let format = if ty.name.starts_with('f') {
                Float::F16
            } else {
                Float::Bf16
            };
            let packed = ty.bits == 32;
            let greater = op == ".max";
            let minmax = float::MinMax {
                ftz: false,
                nan: false,
                xorsign_abs: false,
            };
            let add = op == ".add";
            Box::new(move |old, a, _| {
                let each = |x, y| {
                    if add {
                        float::add(format, x, y, mods)
                    } else {
                        float::min_max(format, x, y, greater, minmax)
                    }
                };
                if packed {
                    u64::from(half::x2(old as u32, a as u32, each))
                } else {
                    each(old, a)
                }
            })
        }
        (".inc", "u32") => Box::new(|old, a, _| if old >= a { 0 } else { old + 1 }),
        (".dec", "u32") => Box::new(|old, a, _| if old == 0 || old > a { a } else { old - 1 }),
        (".min", "u32" | "u64") => Box::new(|old, a, _| old.min(a)),
        (".max", "u32" | "u64") => Box::new(|old, a, _| old.max(a)),
        (".min", "s32") => Box::new(|old, a, _| if (old as i32) <= a as i32 { old } else { a }),
        (".max", "s32") => Box::new(|old, a, _| if (old as i32) >= a as i32 { old } else { a }),
        (".min", "s64") => Box::new(|old, a, _| (old as i64).min(a as i64) as u64),
        (".max", "s64") => Box::new(|old, a, _| (old as i64).max(a as i64) as u64),
        _ => return Err(format!("there is no atomic `{op}.{}`", ty.name)),
    })
}

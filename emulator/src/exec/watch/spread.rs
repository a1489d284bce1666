//! How bytes that were never written go through arithmetic.

use super::super::alu::lookup;
use super::super::memory::lanes;
use super::super::warp::Warp;
use super::{pair, row};
use crate::memory::ones;
use crate::program::{Combine, Comparison, Inst, Op, PredSrc, Src};
use crate::sanitize::Sanitizer;
use crate::sanitize::registers::RegisterShadow;

impl Warp {
    /// Lets poison flow from the sources of an arithmetic instruction to its results.
    pub(super) fn spread(&mut self, watch: &mut Sanitizer, inst: &Inst, op: &Op, active: u32) {
        let shadow = &mut watch.registers[self.index as usize];
        let value = |src: Src, lane: u32| self.regs.lane(src, lane);
        match op {
            Op::Narrow { d, a, b, c, .. } => {
                shadow.operation(inst.spread, row(*d), [*a, *b, *c].map(row), active, value);
            }
            Op::Wide { d, a, b, c, .. } => {
                shadow.operation(inst.spread, *d, [*a, *b, *c], active, value);
            }
            Op::Mov32 { d, a } => shadow.put(row(*d), active, shadow.get(row(*a))),
            Op::Mov64 { d, a } => shadow.put(pair(*d), active, shadow.get(pair(*a))),
            Op::Pred { table, d, a, b } => {
                let (of_a, of_b) = (shadow.pred(a.index), shadow.pred(b.index));
                let (a, b) = (self.regs.pred(*a), self.regs.pred(*b));
                let turned = [(a ^ of_a, b), (a, b ^ of_b), (a ^ of_a, b ^ of_b)];
                let poison = turned.iter().fold(0, |poison, &(x, y)| {
                    poison | (lookup(*table, x, y) ^ lookup(*table, a, b))
                });
                shadow.put_pred(*d, active, poison);
            }
            Op::SetP(op) => {
                let mut poison = match &op.compare {
                    Comparison::Narrow(_, a, b) => shadow.lanes(row(*a)) | shadow.lanes(row(*b)),
                    Comparison::Wide(_, a, b) => shadow.lanes(*a) | shadow.lanes(*b),
                };
                if let Some((combine, with)) = op.combine {
                    let (value, unknown) = (self.regs.pred(with), shadow.pred(with.index));
                    // Lanes in which it decides alone.
                    let decides = match combine {
                        Combine::And => !value,
                        Combine::Or => value,
                        Combine::Xor => 0,
                    };
                    poison = poison & !decides | unknown;
                }
                for index in [op.p, op.q].into_iter().flatten() {
                    shadow.put_pred(index, active, poison);
                }
            }
            Op::Select32 { d, a, b, p } => {
                self.select(shadow, row(*d), row(*a), row(*b), *p, active);
            }
            Op::Select64 { d, a, b, p } => {
                self.select(shadow, pair(*d), pair(*a), pair(*b), *p, active);
            }
            Op::Carry {
                d,
                a,
                b,
                carry_in,
                carry_out,
                ..
            } => {
                let flag = if *carry_in { shadow.carry } else { 0 };
                let poison = shadow.lanes(*a) | shadow.lanes(*b) | flag;
                if *carry_out {
                    shadow.carry = shadow.carry & !active | poison & active;
                }
                shadow.put_all(*d, active, poison);
            }
            Op::MadCarry {
                d,
                a,
                b,
                c,
                carry_in,
                carry_out,
                ..
            } => {
                let flag = if *carry_in { shadow.carry } else { 0 };
                let poison = shadow.lanes(*a) | shadow.lanes(*b) | shadow.lanes(*c) | flag;
                if *carry_out {
                    shadow.carry = shadow.carry & !active | poison & active;
                }
                shadow.put_all(*d, active, poison);
            }
            Op::Pack { d, parts, bits } => {
                let bytes = *bits as usize / 8;
                for lane in lanes(active) {
                    let part = |n: usize, src: Src| {
                        (u32::from(shadow.lane(src, lane)) & ones(bytes)) << (n * bytes)
                    };
                    let all = parts.iter().enumerate();
                    let poison = all.fold(0, |poison, (n, &src)| poison | part(n, src));
                    shadow.set_lane(*d, lane, poison as u8);
                }
            }
            Op::Unpack { parts, a, bits } => {
                let bytes = *bits as usize / 8;
                for lane in lanes(active) {
                    let all = u32::from(shadow.lane(*a, lane));
                    for (n, dst) in parts.iter().enumerate() {
                        if let Some(dst) = dst {
                            let poison = all >> (n * bytes) & ones(bytes);
                            shadow.set_lane(*dst, lane, poison as u8);
                        }
                    }
                }
            }
            Op::Clock { d } | Op::ActiveMask { d } => shadow.put_all(*d, active, 0),
            Op::IsSpace { d, a, .. } => {
                let poison = shadow.lanes(*a);
                shadow.put_pred(*d, active, poison);
            }
            _ => {}
        }
    }

    pub(super) fn select(
        &self,
        shadow: &mut RegisterShadow,
        d: Src,
        a: Src,
        b: Src,
        p: PredSrc,
        active: u32,
    ) {
        let (from_a, unknown) = (self.regs.pred(p), shadow.pred(p.index));
        let (of_a, of_b) = (shadow.get(a), shadow.get(b));
        shadow.put(d, active & from_a, of_a);
        shadow.put(d, active & !from_a, of_b);
        if active & unknown != 0 {
            shadow.put_all(d, active & unknown, u32::MAX);
        }
    }
}

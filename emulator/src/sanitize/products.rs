//! Products of warpgroups between their issue and their wait: what they read in shared memory, and the registers that are
//! theirs until then.

use std::cell::RefCell;
use std::rc::Rc;

use super::conflict::{Ordering, Recording};
use super::shadow::{Access, Before, Strength};
use super::{Rule, Sanitizer};
use crate::error::Space;
use crate::exec::{Machine, Place, Who};
use crate::program::{Kind, Op, Src, Wgmma, WgmmaA};

/// A product that a warp has not waited for.
struct Flying {
    /// Number among the warpgroup's products.
    number: u64,
    pc: u32,
}

/// Last accesses to a warp's registers.
pub(super) struct WarpProducts {
    flying: Vec<Flying>,
    /// Of each row: the last product that holds it as part of D, and as part of A: its instruction, and 1; 0: none does.
    held: Vec<[u32; 2]>,
    /// Of each row: the instruction that accessed it since the last `wgmma.fence`, and 1; 0: none has.
    touched: Vec<u32>,
    /// Whether there was a `wgmma.fence`.
    fenced: bool,
}

/// What a product reads in shared memory, for those of its warps that come to it later.
pub(super) struct ProductRead {
    /// Who stands for the warpgroup's products.
    who: usize,
    number: u64,
    /// What wrote there.
    writes: Vec<Access>,
}

impl WarpProducts {
    pub(super) fn new(rows: u32) -> Self {
        WarpProducts {
            flying: Vec::new(),
            held: vec![[0; 2]; rows as usize + 1],
            touched: vec![0; rows as usize + 1],
            fenced: false,
        }
    }

    pub(super) fn reset(&mut self) {
        self.flying.clear();
        self.held.fill([0; 2]);
        self.touched.fill(0);
        self.fenced = false;
    }

    /// A product holds its registers.
    fn hold(&mut self, op: &Wgmma, pc: u32) {
        for (part, slots) in fragments(op).into_iter().enumerate() {
            for &slot in slots {
                self.held[slot as usize][part] = pc + 1;
            }
        }
    }
}

/// Registers of an operand: D, then A.
fn fragments(op: &Wgmma) -> [&[u32]; 2] {
    let a = match &op.a {
        WgmmaA::Registers(slots) => slots.as_slice(),
        WgmmaA::Shared(_) => &[],
    };
    [&op.d, a]
}

/// The moment of a warp that has waited for a product of this number.
fn moment_after(number: u64) -> u32 {
    let last = u64::from(Access::NEVER - 1);
    (number + 1).min(last) as u32
}

fn product_at<'m>(machine: &Machine<'m>, pc: u32) -> Option<&'m Wgmma> {
    match machine.code().get(pc as usize).map(|inst| &inst.op) {
        Some(Op::Wgmma(op)) => Some(op),
        _ => None,
    }
}

impl Sanitizer {
    /// An instruction other than a product accesses these registers.
    #[inline]
    pub(crate) fn touch(&mut self, machine: &Machine<'_>, who: Who, registers: &[Src]) {
        let warp = &mut self.products[who.warp as usize];
        let mut held = None;
        for src in registers {
            let rows = match src.kind {
                Kind::Pred => continue,
                Kind::W64 => 2,
                _ => 1,
            };
            for row in src.slot..src.slot + rows {
                warp.touched[row as usize] = who.pc + 1;
                if warp.held[row as usize] != [0; 2] {
                    held = Some(row);
                }
            }
        }
        if let Some(row) = held {
            self.touches_held(machine, who, row);
        }
    }

    #[cold]
    fn touches_held(&mut self, machine: &Machine<'_>, who: Who, row: u32) {
        let held = self.products[who.warp as usize].held[row as usize];
        let (pc, part) = match held {
            [0, of_a] => (of_a, "fragment of A"),
            [of_d, _] => (of_d, "accumulator"),
        };
        let message = || {
            format!("accesses a register of the {part} of a matrix product that was not waited for")
        };
        self.add_with(
            machine,
            Rule::RegisterInFlight,
            who,
            pc - 1,
            "started",
            message,
        );
    }

    /// A warp comes to a product: its registers.
    pub(crate) fn product_registers(
        &mut self,
        machine: &Machine<'_>,
        who: Who,
        op: &Wgmma,
        number: u64,
    ) {
        let warp = &self.products[who.warp as usize];
        let [d, a] = fragments(op);
        let held = |slot: u32, part: usize| warp.held[slot as usize][part].checked_sub(1);
        // Products of one shape on one accumulator follow each other.
        let same = |pc: u32| {
            product_at(machine, pc).is_some_and(|other| {
                other.d == op.d && other.n == op.n && other.kind.formats == op.kind.formats
            })
        };
        let mut last = None;
        let of_d = d.iter().find_map(|&slot| {
            let by_d = held(slot, 0).filter(|&pc| {
                // Mostly it is the same one for all of the accumulator.
                let known = last == Some(pc);
                last = Some(pc);
                !known && !same(pc)
            });
            by_d.or(held(slot, 1))
        });
        let of_a = a.iter().find_map(|&slot| held(slot, 0));
        let what = "a register of this product is one of another that was not waited for";
        let mut found = of_d.or(of_a).map(|pc| (Rule::RegisterInFlight, pc, what));
        let all = fragments(op).concat();
        let stale = all
            .iter()
            .find_map(|&slot| warp.touched[slot as usize].checked_sub(1));
        if found.is_none() {
            let what = "a register of this product was accessed since the last wgmma.fence";
            found = stale.map(|pc| (Rule::WgmmaFence, pc, what));
        }
        if let Some((rule, pc, what)) = found {
            self.add_with(machine, rule, who, pc, "accessed", || what.to_owned());
        } else if !warp.fenced {
            let message = || "there was no wgmma.fence before it".to_owned();
            self.add(machine, Rule::WgmmaFence, who, message);
        }
        let warp = &mut self.products[who.warp as usize];
        warp.hold(op, who.pc);
        warp.flying.push(Flying { number, pc: who.pc });
    }

    /// A warp comes to a product: what that reads. The first warp of the warpgroup reads for all.
    pub(crate) fn product_reads(
        &mut self,
        machine: &Machine<'_>,
        who: Who,
        number: u64,
        pieces: &Rc<[u32]>,
        first: bool,
    ) {
        let warp = who.warp as usize;
        let Some(proxies) = &mut self.proxies else {
            return;
        };
        self.clocks.find_common(warp);
        let of_group = proxies.of_warpgroup(who.warp);
        if first {
            proxies.set_issuer(of_group, who.thread());
        }
        // It has happened for those who know that all four warps have waited for it.
        let me = Access::new(of_group, moment_after(number), who.pc, Strength::Product);
        let ordering = Ordering {
            clocks: &self.clocks,
            thread: who.thread(),
            row: self.clocks.common(warp),
            block: self.block,
            proxies: self.proxies.as_ref(),
            by_proxy: Some(Space::Shared),
        };
        let mut conflict = None;
        if first {
            let before = Recording {
                ordering,
                met: RefCell::default(),
            };
            for &piece in pieces.iter() {
                let found = self.shared.access(piece as usize, 16, me, false, &before);
                if let (None, Some((at, found))) = (&conflict, found) {
                    conflict = Some((at, before.ordering.knows(found.other), found));
                }
            }
            let met = before.met.into_inner().into_iter();
            self.product_reads.push(ProductRead {
                who: of_group,
                number,
                writes: met.map(|(access, _)| access).collect(),
            });
        } else {
            // The others of the warpgroup read the same: what the first one met is all that there is to look at.
            let mut reads = self.product_reads.iter().rev();
            let read = reads.find(|read| read.who == of_group && read.number == number);
            let mut writes = read.iter().flat_map(|read| &read.writes);
            if writes.any(|&write| !ordering.ordered(write)) {
                conflict = pieces.iter().find_map(|&piece| {
                    let (at, found) = self.shared.check_read(piece as usize, 16, me, &ordering)?;
                    Some((at, ordering.knows(found.other), found))
                });
            }
        }
        if let Some((at, known, conflict)) = conflict {
            self.conflict(
                machine,
                who,
                Place::Shared(at),
                (false, me, known),
                conflict,
            );
        }
    }

    /// `wgmma.fence` of a warp.
    pub(crate) fn wgmma_fence(&mut self, warp: u32) {
        let warp = &mut self.products[warp as usize];
        warp.touched.fill(0);
        warp.fenced = true;
    }

    /// A warp has waited for all products before a number.
    pub(crate) fn products_waited(&mut self, machine: &Machine<'_>, warp: u32, need: u64) {
        let Some(proxies) = &mut self.proxies else {
            return;
        };
        let own = &mut self.products[warp as usize];
        own.flying.retain(|f| f.number >= need);
        own.held.fill([0; 2]);
        for pc in own.flying.iter().map(|f| f.pc).collect::<Vec<_>>() {
            if let Some(op) = product_at(machine, pc) {
                own.hold(op, pc);
            }
        }
        // All four warps have come to them.
        let of_group = proxies.of_warpgroup(warp);
        self.product_reads
            .retain(|read| read.who != of_group || read.number >= need);
        let Some(last) = need.checked_sub(1) else {
            return;
        };
        let (of_warp, moment) = (proxies.of_warp(warp), moment_after(last));
        proxies.set_waited(of_warp, moment);
        for lane in 0..32 {
            let thread = warp as usize * 32 + lane;
            self.clocks.learn_of(thread, of_warp, moment);
        }
    }

    /// A warp ends.
    pub(super) fn exit_with_products(&mut self, machine: &Machine<'_>, who: Who) {
        let flying = std::mem::take(&mut self.products[who.warp as usize].flying);
        for flying in flying {
            let message = "the warp ends, but has not waited for its matrix product";
            self.exits_in_flight(machine, who, who.thread(), flying.pc, message);
        }
    }
}

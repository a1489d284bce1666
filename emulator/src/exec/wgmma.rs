//! Matrix products of warpgroups.
//!
//! A warp that comes to a `wgmma.mma_async` only notes it. The product happens at once for all four warps of the
//! warpgroup, when all have come to it, and when the timing says:
//!
//! - *Early*: then. The warps wait for it at the instruction, unless nothing else can move.
//! - *Late*: when one of them waits for it.
//! - *Seeded*: at some moment between.
//!
//! Until then its operands in shared memory and in registers have not been read. Products happen in order.

use std::collections::VecDeque;
use std::rc::Rc;

use super::cluster::Runner;
use super::registers::Registers;
use super::warp::{Flow, State, Warp};
use super::{Cluster, SHARED_BASE, Trouble, trouble};
use crate::device::AsyncTiming;
use crate::error::{FaultKind, Space};
use crate::program::{ALL, Op, Src, Wgmma, WgmmaA};
use crate::semantics::wgmma::{self, Descriptor, Eight, Layout};

/// Warps of a warpgroup.
pub(super) const WARPS: usize = 4;
/// Most products of a warpgroup that wait to happen.
const MOST_PENDING: u64 = 4096;

/// An instruction that all warps of a warpgroup execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Step {
    pc: u32,
    /// Descriptors of A and B, and whether the accumulator is added to, of a product; else 0.
    operands: [u64; 3],
}

/// Places in the cluster's shared memory of the pieces of a product's operands: of A, if it is there, then of B.
#[derive(Debug, Hash)]
pub(super) struct Pieces {
    pub(super) all: Rc<[u32]>,
    of_a: usize,
}

impl Pieces {
    pub(super) fn a(&self) -> &[u32] {
        &self.all[..self.of_a]
    }

    pub(super) fn b(&self) -> &[u32] {
        &self.all[self.of_a..]
    }
}

/// A product that has not happened.
#[derive(Debug, Hash)]
struct Product {
    pc: u32,
    pieces: Rc<Pieces>,
    keep: bool,
}

/// Four warps of a block.
#[derive(Debug, Default, Hash)]
pub(super) struct Warpgroup {
    /// What the first of them executed and the last has not, and how many steps came before.
    steps: VecDeque<Step>,
    first: u64,
    /// Steps and products that each warp has come to.
    passed: [u64; WARPS],
    issued: [u64; WARPS],
    /// Of each warp's groups: the products before their ends. Those that a wait has covered are left out.
    groups: [VecDeque<u64>; WARPS],
    products: VecDeque<Product>,
    /// Products that have happened, and those that somebody waits for.
    done: u64,
    wanted: u64,
    /// Warps that have exited.
    exited: [bool; WARPS],
    /// Registers that a thread of each warp has, beyond those that it began with.
    extra: [i32; WARPS],
}

impl Warpgroup {
    /// Products that all warps have come to.
    fn ready(&self) -> u64 {
        self.issued.iter().copied().min().unwrap_or(0)
    }

    /// A warp that has not come to the product that others wait for.
    fn missing(&self, need: u64) -> Option<usize> {
        self.issued.iter().position(|&issued| issued < need)
    }
}

impl Warp {
    fn group_and_member(&self) -> (usize, usize) {
        let warp = self.in_block() as usize;
        (warp / WARPS, warp % WARPS)
    }

    fn warpgroup<'c>(&self, cluster: &'c mut Cluster<'_, '_>) -> &'c mut Warpgroup {
        let (group, _) = self.group_and_member();
        let groups = &mut cluster.cta_mut().warpgroups;
        &mut groups[group]
    }

    /// All lanes of a warp have come to an instruction that the whole warpgroup must execute. The first warp to come says
    /// which; true for it.
    pub(super) fn warpgroup_step(
        &self,
        cluster: &mut Cluster<'_, '_>,
        pc: u32,
        operands: [u64; 3],
    ) -> Result<bool, Trouble> {
        let fault = |reason: String| trouble(None, FaultKind::Warpgroup { reason });
        let (group, member) = self.group_and_member();
        let (warps, machine) = (cluster.machine.warps() as usize, cluster.machine);
        if (group + 1) * WARPS > warps {
            let reason = format!(
                "warps {} to {} are no warpgroup: it has four",
                group * WARPS,
                warps - 1
            );
            return fault(reason);
        }
        let state = self.warpgroup(cluster);
        let place = (state.passed[member] - state.first) as usize;
        let step = Step { pc, operands };
        let name = |member: usize| group * WARPS + member;
        let is_first = match state.steps.get(place) {
            None => {
                if let Some(gone) = (0..WARPS).find(|&m| state.exited[m]) {
                    let reason = format!("warp {} of the warpgroup has exited", name(gone));
                    return fault(reason);
                }
                state.steps.push_back(step);
                true
            }
            Some(expected) if expected.pc != pc => {
                let (line, text) = machine.instruction(expected.pc);
                let other =
                    (0..WARPS).find(|&m| m != member && state.passed[m] > state.passed[member]);
                let reason = format!(
                    "warp {} of the warpgroup has executed another one in its place: {text} at line {line}",
                    name(other.unwrap_or(0))
                );
                return fault(reason);
            }
            Some(expected) if *expected != step => {
                let [a, b, keep] = expected.operands;
                let reason = format!(
                    "the operands {operands:#x?} differ from those of another warp of the warpgroup: {:#x?}",
                    [a, b, keep]
                );
                return fault(reason);
            }
            Some(_) => false,
        };
        state.passed[member] += 1;
        while state.passed.iter().all(|&passed| passed > state.first) {
            state.steps.pop_front();
            state.first += 1;
        }
        Ok(is_first)
    }

    /// `setmaxnreg`.
    pub(super) fn setmaxnreg(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        count: u32,
        more: bool,
        pc: u32,
    ) -> Result<Flow, Trouble> {
        if !std::mem::take(&mut self.waited) {
            self.warpgroup_step(cluster, pc, [u64::from(count), 0, 0])?;
        }
        let begun = cluster.machine.program.registers.unwrap_or(0) as i32;
        let (_, member) = self.group_and_member();
        let had = begun + self.warpgroup(cluster).extra[member];
        let change = count as i32 - had;
        if change != 0 && (change > 0) != more {
            let word = if more { "more" } else { "fewer" };
            let reason =
                format!("{count} registers are not {word} than the {had} that the warp has");
            return trouble(None, FaultKind::BadOperand { reason });
        }
        let pool = &mut cluster.cta_mut().free_registers;
        if change > *pool {
            self.waited = true;
            return Ok(Flow::Wait(State::Registers { need: change }));
        }
        *pool -= change;
        self.warpgroup(cluster).extra[member] += change;
        Ok(Flow::Next)
    }

    /// The value of an operand that all lanes must agree on.
    fn uniform(&self, src: Src, what: &str) -> Result<u64, Trouble> {
        let value = self.regs.lane(src, 0);
        match (1..32).find(|&lane| self.regs.lane(src, lane) != value) {
            None => Ok(value),
            Some(lane) => {
                let reason = format!("{what} differs between the lanes of a warp");
                trouble(Some(lane), FaultKind::BadOperand { reason })
            }
        }
    }

    /// `wgmma.mma_async`, all lanes of the warp together.
    pub(super) fn wgmma(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        op: &Wgmma,
        pc: u32,
    ) -> Result<Flow, Trouble> {
        let keep = self.regs.pred(op.scale_d);
        if keep != 0 && keep != ALL {
            let reason = "scale-d differs between the lanes of a warp".to_owned();
            return trouble(None, FaultKind::BadOperand { reason });
        }
        let keep = keep != 0;
        let a = match op.a {
            WgmmaA::Shared(src) => Some(self.uniform(src, "the descriptor of A")?),
            WgmmaA::Registers(_) => None,
        };
        let b = self.uniform(op.b, "the descriptor of B")?;
        let first = self.warpgroup_step(cluster, pc, [a.unwrap_or(0), b, u64::from(keep)])?;
        if first {
            let mut all = Vec::new();
            if let Some(a) = a {
                pieces(cluster, a, op.kind.mn_major[0], 64, &mut all)?;
            }
            let of_a = all.len();
            pieces(cluster, b, op.kind.mn_major[1], op.n, &mut all)?;
            let pieces = Rc::new(Pieces {
                all: all.into(),
                of_a,
            });
            let product = Product { pc, pieces, keep };
            self.warpgroup(cluster).products.push_back(product);
        }
        self.watched(cluster, |warp, watch, cluster| {
            let (_, member) = warp.group_and_member();
            let state = warp.warpgroup(cluster);
            let number = state.issued[member];
            // It cannot have happened: this warp had not come to it.
            if let Some(product) = state.products.get((number - state.done) as usize) {
                let pieces = Rc::clone(&product.pieces);
                warp.observe_wgmma(watch, cluster, op, &pieces, (number, first, keep));
            }
        });
        let early = cluster.machine.timing == AsyncTiming::Early;
        let (_, member) = self.group_and_member();
        let state = self.warpgroup(cluster);
        state.issued[member] += 1;
        let (issued, ready) = (state.issued[member], state.ready());
        let many = ready - state.done > MOST_PENDING;
        if !early && !many {
            // Another warp may wait for this one to come.
            let awaited = state.wanted.min(ready) > state.done;
            cluster.products |= awaited;
            return Ok(Flow::Next);
        }
        let need = if early { issued } else { state.done + 1 };
        state.wanted = state.wanted.max(need);
        cluster.products = true;
        Ok(Flow::Pause(State::Products { need, must: false }))
    }

    /// `wgmma.commit_group`.
    pub(super) fn wgmma_commit(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        pc: u32,
    ) -> Result<(), Trouble> {
        self.warpgroup_step(cluster, pc, [0; 3])?;
        let (_, member) = self.group_and_member();
        let state = self.warpgroup(cluster);
        let issued = state.issued[member];
        state.groups[member].push_back(issued);
        Ok(())
    }

    /// `wgmma.wait_group`.
    pub(super) fn wgmma_wait(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        allowed: u32,
        pc: u32,
    ) -> Result<Flow, Trouble> {
        let (_, member) = self.group_and_member();
        // It comes here again when the products have happened.
        if !std::mem::take(&mut self.waited) {
            self.warpgroup_step(cluster, pc, [0; 3])?;
        }
        let state = self.warpgroup(cluster);
        let groups = &mut state.groups[member];
        let covered = groups.len().saturating_sub(allowed as usize);
        let need = match covered.checked_sub(1) {
            Some(last) => groups[last],
            None => 0,
        };
        if need > state.done {
            state.wanted = state.wanted.max(need);
            cluster.products = true;
            self.waited = true;
            return Ok(Flow::Wait(State::Products { need, must: true }));
        }
        groups.drain(..covered);
        if covered != 0 {
            self.watched(cluster, |warp, watch, cluster| {
                watch.products_waited(cluster.machine, warp.index, need);
            });
        }
        Ok(Flow::Next)
    }

    /// Whether the products that a group waits for have happened.
    pub(super) fn products_done(&self, cluster: &Cluster<'_, '_>, need: u64) -> bool {
        let (group, _) = self.group_and_member();
        let groups = &cluster.cta().warpgroups;
        groups.get(group).is_none_or(|state| state.done >= need)
    }

    /// What a wait for products waits for.
    pub(super) fn describe_products(&self, cluster: &Cluster<'_, '_>, need: u64) -> String {
        let (group, _) = self.group_and_member();
        let state = &cluster.cta().warpgroups[group];
        match state.missing(need) {
            Some(member) => format!(
                "waits for products that warp {} of its warpgroup has not come to",
                group * WARPS + member
            ),
            None => "waits for products".to_owned(),
        }
    }

    /// The warp has ended; an error says what it has left out.
    pub(super) fn leave_warpgroup(&self, cluster: &mut Cluster<'_, '_>) -> Result<(), Trouble> {
        let (group, member) = self.group_and_member();
        let machine = cluster.machine;
        let Some(state) = cluster.cta_mut().warpgroups.get_mut(group) else {
            return Ok(());
        };
        state.exited[member] = true;
        let place = (state.passed[member] - state.first) as usize;
        let Some(step) = state.steps.get(place) else {
            return Ok(());
        };
        let (line, text) = machine.instruction(step.pc);
        let reason = format!(
            "the warp ends, but another of its warpgroup has executed {text} at line {line}, which all four must"
        );
        trouble(None, FaultKind::Warpgroup { reason })
    }
}

/// Adds the places in the cluster's shared memory of all pieces of an operand.
fn pieces(
    cluster: &Cluster<'_, '_>,
    descriptor: u64,
    mn_major: bool,
    rows: usize,
    places: &mut Vec<u32>,
) -> Result<(), Trouble> {
    let descriptor = match Descriptor::decode(descriptor) {
        Ok(descriptor) => descriptor,
        Err(reason) => return trouble(None, FaultKind::BadOperand { reason }),
    };
    let layout = Layout {
        descriptor,
        mn_major,
    };
    let len = cluster.machine.shared_bytes;
    places.reserve(2 * rows);
    for address in layout.pieces(rows) {
        let at = u64::from(address).wrapping_sub(SHARED_BASE) as usize;
        if at >= len || at + 16 > len {
            let kind = FaultKind::OutOfBounds {
                space: Space::Shared,
                address: u64::from(address),
                size: 16,
                detail: format!("a matrix operand in {len} bytes from {SHARED_BASE:#x}"),
            };
            return trouble(None, kind);
        }
        places.push((cluster.offset + at) as u32);
    }
    Ok(())
}

impl Runner<'_, '_> {
    /// Lets products happen that are wanted, in all warpgroups.
    pub(super) fn wanted_products(&mut self) {
        self.cluster.products = false;
        self.some_products(|state, _| state.wanted);
    }

    /// With random timing: lets some products happen.
    pub(super) fn random_products(&mut self) {
        if matches!(self.cluster.machine.timing, AsyncTiming::Seeded(_)) {
            self.some_products(|state, random| state.done + u64::from(random % 4 == 0));
        }
    }

    /// Lets products happen up to those that `until` says, as far as all warps have come to them.
    fn some_products(&mut self, until: impl Fn(&Warpgroup, u64) -> u64) {
        for rank in 0..self.cluster.blocks.len() {
            for group in 0..self.cluster.blocks[rank].warpgroups.len() {
                if self.cluster.blocks[rank].warpgroups[group]
                    .products
                    .is_empty()
                {
                    continue;
                }
                let random = self.cluster.random();
                let state = &self.cluster.blocks[rank].warpgroups[group];
                let until = until(state, random).min(state.ready());
                for _ in state.done..until {
                    let state = &mut self.cluster.blocks[rank].warpgroups[group];
                    state.done += 1;
                    if let Some(product) = state.products.pop_front() {
                        let each = self.cluster.machine.warps() as usize;
                        let first = rank * each + group * WARPS;
                        let warps = &mut self.warps[first..first + WARPS];
                        happen(&self.cluster, warps, &product);
                    }
                }
            }
        }
    }
}

/// A product happens.
fn happen(cluster: &Cluster<'_, '_>, warps: &mut [Warp], product: &Product) {
    let Some(Op::Wgmma(op)) = cluster
        .machine
        .program
        .code
        .get(product.pc as usize)
        .map(|i| &i.op)
    else {
        return;
    };
    match op.kind.k() {
        16 => multiply::<16, 8>(cluster, warps, op, product),
        8 => multiply::<8, 4>(cluster, warps, op, product),
        _ => multiply::<32, 16>(cluster, warps, op, product),
    }
}

fn multiply<const K: usize, const V: usize>(
    cluster: &Cluster<'_, '_>,
    warps: &mut [Warp],
    op: &Wgmma,
    product: &Product,
) {
    let gather = |places: &[u32]| -> Eight {
        let mut pieces = [[0; 16]; 8 * wgmma::HALVES];
        for (piece, &place) in pieces.iter_mut().zip(places) {
            piece.copy_from_slice(&cluster.shared[place as usize..place as usize + 16]);
        }
        pieces
    };
    let each = 8 * wgmma::HALVES;
    let b: Vec<_> = product
        .pieces
        .b()
        .chunks_exact(each)
        .map(|places| wgmma::columns::<K, V>(op.kind, &gather(places)))
        .collect();
    for (w, warp) in warps.iter_mut().enumerate() {
        let a = match op.a {
            WgmmaA::Registers(slots) => {
                let fragment = slots.map(|slot| *warp.regs.narrow(slot));
                wgmma::rows_of_fragment::<K>(op.kind, &fragment)
            }
            WgmmaA::Shared(_) => {
                let of = |n: usize| gather(&product.pieces.a()[(2 * w + n) * each..][..each]);
                wgmma::rows::<K, V>(op.kind, [&of(0), &of(1)])
            }
        };
        accumulate(&mut warp.regs, op, &a, &b, product.keep);
    }
}

fn accumulate<const K: usize>(
    regs: &mut Registers,
    op: &Wgmma,
    a: &[[f32; K]; 16],
    b: &[[[f32; 8]; K]],
    keep: bool,
) {
    // Decoding has seen to it that no register stands twice in the accumulator.
    if op.kind.narrow {
        for (slots, b) in op.d.as_chunks::<2>().0.iter().zip(b) {
            if let Some(d) = regs.several_mut(*slots) {
                wgmma::multiply_f16(op.cores, op.kind, a, b, d, keep);
            }
        }
    } else {
        for (slots, b) in op.d.as_chunks::<4>().0.iter().zip(b) {
            if let Some(d) = regs.several_mut(*slots) {
                wgmma::multiply(op.cores, op.kind, a, b, d, keep);
            }
        }
    }
}

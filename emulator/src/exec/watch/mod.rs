//! What the sanitizer is told of each instruction. Everything here runs only while one is watching.

mod bulk;
mod matrix;
mod memory;
mod spread;
mod sync;
mod wgmma;

use super::memory::{Intent, Place, lanes};
use super::warp::Warp;
use super::{Cluster, Machine, Who};
use crate::error::Space;
use crate::program::{Address, Inst, Kind, Op, Src};
use crate::sanitize::{Rule, Sanitizer};

fn row(slot: u32) -> Src {
    Src {
        slot,
        kind: Kind::W32,
    }
}

fn pair(slot: u32) -> Src {
    Src {
        slot,
        kind: Kind::W64,
    }
}

/// A predicate as an operand like any other.
pub(in crate::exec) fn pred(slot: u32) -> Src {
    Src {
        slot,
        kind: Kind::Pred,
    }
}

impl Warp {
    pub(in crate::exec) fn who(&self, lane: u32) -> Who {
        Who {
            warp: self.index,
            lane,
            pc: self.pc,
        }
    }

    /// Calls `f` with the sanitizer, if there is one.
    #[inline(always)]
    pub(in crate::exec) fn watched(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        f: impl FnOnce(&mut Self, &mut Sanitizer, &mut Cluster<'_, '_>),
    ) {
        if let Some(mut watch) = cluster.watch.take() {
            f(self, &mut watch, cluster);
            cluster.watch = Some(watch);
        }
    }

    /// Before an instruction is executed by the lanes of `mask` whose guard allows it. Those that need other lanes, or
    /// wait, report for themselves when they happen.
    #[inline(never)]
    pub(in crate::exec) fn observe(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        inst: &Inst,
        pc: u32,
        mask: u32,
    ) {
        if cluster.stalls.observed {
            cluster.stalls.note(&inst.op);
        }
        self.pc = pc;
        self.watched(cluster, |warp, watch, cluster| {
            warp.observe_with(watch, cluster, inst, mask);
        });
    }

    fn observe_with(
        &mut self,
        watch: &mut Sanitizer,
        cluster: &mut Cluster<'_, '_>,
        inst: &Inst,
        mask: u32,
    ) {
        let machine = cluster.machine;
        let message = || "a predicate that was never written decides".to_owned();
        let (rule, guard) = (Rule::UninitializedBranch, pred(inst.guard.index));
        self.check_written(watch, machine, rule, guard, mask, message);
        let active = mask & self.regs.pred(inst.guard);
        if active == 0 {
            return;
        }
        if let Some(registers) = machine.touched(self.pc) {
            watch.touch(machine, self.who(active.trailing_zeros()), registers);
        }
        match &inst.op {
            Op::Load(op) => self.observe_load(watch, cluster, op, active),
            Op::Store(op) => self.observe_store(watch, cluster, op, active),
            Op::Atomic(op) => self.observe_atomic(watch, cluster, op, active),
            Op::CpAsync(op) => self.observe_copy(watch, cluster, op, active),
            Op::Fence { beyond_block } => watch.fence(self.index, active, *beyond_block),
            Op::ProxyFence(fence) => watch.proxy_fence(self.index, active, *fence),
            Op::Branch { uniform, .. } if *uniform && active != mask => {
                let message = || "a .uni branch is taken by some threads only".to_owned();
                let who = self.who(active.trailing_zeros());
                watch.add(machine, Rule::Divergence, who, message);
            }
            Op::BranchIndex { index, uniform, .. } => {
                let of = |lane| self.regs.lane(*index, lane);
                let first = active.trailing_zeros();
                let other = lanes(active).find(|&lane| of(lane) != of(first));
                if let (true, Some(lane)) = (*uniform, other) {
                    let message = || "a .uni branch goes to several places".to_owned();
                    watch.add(machine, Rule::Divergence, self.who(lane), message);
                }
                let message = || "an index that was never written decides".to_owned();
                let rule = Rule::UninitializedBranch;
                self.check_written(watch, machine, rule, *index, active, message);
            }
            Op::WarpSync { members }
            | Op::Vote { members, .. }
            | Op::Match { members, .. }
            | Op::Redux { members, .. }
            | Op::Elect { members, .. } => {
                self.check_operand(watch, machine, *members, active, "the member mask");
            }
            op if watch.registers[self.index as usize].any => self.spread(watch, inst, op, active),
            _ => {}
        }
    }

    /// Reports an address, or an operand that steers an instruction, that was never written.
    pub(in crate::exec) fn check_operand(
        &self,
        watch: &mut Sanitizer,
        machine: &Machine<'_>,
        src: Src,
        active: u32,
        what: &str,
    ) {
        let message = || format!("{what} was never written");
        let rule = Rule::UninitializedAddress;
        self.check_written(watch, machine, rule, src, active, message);
    }

    /// Reports a register that was never written in an active lane.
    fn check_written(
        &self,
        watch: &mut Sanitizer,
        machine: &Machine<'_>,
        rule: Rule,
        src: Src,
        active: u32,
        message: impl FnOnce() -> String,
    ) {
        let poison = watch.registers[self.index as usize].lanes(src) & active;
        if poison != 0 {
            watch.add(machine, rule, self.who(poison.trailing_zeros()), message);
        }
    }

    /// Where the lanes' accesses are. What is not inside an object ends the launch when it is executed.
    fn places(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        space: Space,
        address: Address,
        bytes: usize,
        intent: Intent,
        active: u32,
    ) -> Vec<(u32, Place)> {
        let addresses = self.addresses(address);
        lanes(active)
            .map_while(|lane| {
                let address = addresses[lane as usize];
                let place = self.place(cluster, space, address, bytes as u32, intent, lane);
                place.ok().map(|place| (lane, place))
            })
            .collect()
    }

    /// A result that every active lane gets from all of them.
    #[inline(always)]
    pub(in crate::exec) fn collective(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        sources: &[Src],
        results: &[Option<Src>],
        active: u32,
    ) {
        self.watched(cluster, |warp, watch, _| {
            let shadow = &mut watch.registers[warp.index as usize];
            if shadow.any {
                let poison = sources.iter().fold(0, |p, &s| p | shadow.lanes(s)) & active;
                let all = if poison != 0 { u32::MAX } else { 0 };
                for dst in results.iter().flatten() {
                    shadow.put_all(*dst, active, all);
                }
            }
        });
    }
}

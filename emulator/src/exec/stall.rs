//! When nothing in a cluster can move: asynchronous copies that somebody waits for happen, waits for mbarriers that took
//! too long return, and if that leads nowhere it is a deadlock.
//!
//! A wait that returns "not yet" mostly stands in a loop, so its warp comes back to it. The cluster has come round a
//! circle if it stands as it did at an earlier standstill: the same registers, the same shared memory, the same barriers.
//! From there it does the same for ever, unless it looks at something that others change, which is global memory and
//! the clock. So it goes round once more under observation, and if it does not look, it is a deadlock.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::bulk::LateTrouble;
use super::cluster::Runner;
use super::warp::State;
use crate::error::{Fault, FaultKind, Space, Waiter};
use crate::program::Op;

/// Most standstills of a circle that is found.
const LONGEST: u64 = 64;

/// Standstills of a cluster, and the search for a circle among them. At powers of two the state is kept, and compared with
/// the next ones: to look at it takes longer than most that happens in between.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    count: u64,
    kept: Option<u64>,
    /// Until which standstill states are compared with the kept one.
    until: u64,
    /// Whether the cluster goes round the circle that ends with `kept` under observation.
    pub(super) observed: bool,
    /// What it looks at can be changed from outside.
    open: bool,
}

impl Stalls {
    /// An instruction is executed in the observed round.
    #[cold]
    pub(super) fn note(&mut self, op: &Op) {
        let outside = |space: Space| matches!(space, Space::Global | Space::Const | Space::Generic);
        self.open |= match op {
            Op::Load(op) => outside(op.space),
            Op::Store(op) => outside(op.space),
            Op::Atomic(op) => outside(op.space),
            Op::Clock { .. } | Op::Bulk(_) | Op::CpAsync(_) => true,
            _ => false,
        };
    }

    /// Another standstill. True if it is a deadlock.
    fn hopeless(&mut self, state: impl FnOnce() -> u64) -> bool {
        self.count += 1;
        let keep = self.count.is_power_of_two();
        if self.count > self.until {
            self.observed = false;
            if !keep {
                return false;
            }
        }
        let state = state();
        if self.kept == Some(state) {
            if self.observed && !self.open {
                return true;
            }
            self.observed = true;
            self.open = false;
        } else if keep {
            self.kept = Some(state);
            self.observed = false;
        } else {
            return false;
        }
        self.until = self.count + LONGEST;
        false
    }
}

impl Runner<'_, '_> {
    /// Nothing can move. Makes something move, or says what is wrong.
    pub(super) fn stalled(&mut self) -> Result<(), Fault> {
        match self.land_what_is_awaited() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(trouble) => return Err(self.late_fault(trouble)),
        }
        // Products that need not have happened yet are not waited for.
        let idle = |s: &State| matches!(s, State::Products { must: false, .. });
        let groups = self.warps.iter_mut().flat_map(|w| &mut w.groups);
        let mut moved = false;
        for group in groups.filter(|g| idle(&g.state)) {
            group.state = State::Ready;
            moved = true;
        }
        if moved {
            return Ok(());
        }
        let waits = |s: &State| matches!(s, State::Mbarrier { .. });
        if !self
            .warps
            .iter()
            .flat_map(|w| &w.groups)
            .any(|g| waits(&g.state))
        {
            return Err(self.deadlock());
        }
        let mut stalls = std::mem::take(&mut self.cluster.stalls);
        let hopeless = stalls.hopeless(|| self.state());
        self.cluster.stalls = stalls;
        if hopeless {
            return Err(self.deadlock());
        }
        self.cluster.observed = self.cluster.machine.sanitize || self.cluster.stalls.observed;
        for group in self.warps.iter_mut().flat_map(|w| &mut w.groups) {
            if waits(&group.state) {
                group.state = State::Expired;
            }
        }
        Ok(())
    }

    /// Lets the loads happen that the first lanes wait for that wait for nothing else.
    fn land_what_is_awaited(&mut self) -> Result<bool, LateTrouble> {
        for warp in &self.warps {
            self.cluster.enter(warp.rank);
            let waiting = warp.groups.iter();
            for group in waiting.filter(|g| matches!(g.state, State::Mbarrier { .. })) {
                let program = self.cluster.machine.program;
                for awaited in warp.awaited_objects(&self.cluster, program, group.pc, group.mask) {
                    if self.cluster.land_for(awaited.at)? {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// A fingerprint of all that decides what the cluster does next, but for global memory.
    fn state(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        for warp in &self.warps {
            warp.hash(&mut hash);
        }
        let cluster = &self.cluster;
        cluster.shared.hash(&mut hash);
        (cluster.phases, cluster.bulk.issued, &cluster.barrier).hash(&mut hash);
        for block in &cluster.blocks {
            block.hash(&mut hash);
        }
        hash.finish()
    }

    fn deadlock(&mut self) -> Fault {
        let mut waiters = Vec::new();
        let mut first = None;
        for warp in &self.warps {
            self.cluster.enter(warp.rank);
            for (pc, lanes, reason) in warp.waits(&self.cluster) {
                first = first.or(Some((warp.index, lanes.trailing_zeros().min(31), pc)));
                let (line, instruction) = self.cluster.machine.instruction(pc);
                let machine = self.cluster.machine;
                let block = machine.block_index(self.cluster.index, warp.rank);
                waiters.push(Waiter {
                    block: (machine.cluster_size() > 1).then_some(block),
                    warp: warp.in_block(),
                    lanes,
                    line,
                    instruction,
                    reason,
                });
            }
        }
        let (warp, lane, pc) = first.unwrap_or((0, 0, 0));
        self.fault(warp, lane, pc, FaultKind::Deadlock { waiters })
    }

    pub(super) fn late_fault(&mut self, (who, kind): LateTrouble) -> Fault {
        self.fault(who.warp, who.lane, who.pc, kind)
    }
}

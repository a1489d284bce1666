//! Barriers of a block.

use super::memory::lanes;
use super::warp::{Flow, State, Warp};
use super::watch::pred;
use super::{Cluster, Trouble, trouble};
use crate::error::FaultKind;
use crate::program::{Bar, BarKind, Inst, Op};

/// One of the block's sixteen barriers.
#[derive(Debug, Clone, Default, Hash)]
pub(super) struct Barrier {
    /// Rounds that have ended.
    pub(super) round: u64,
    /// Threads that have arrived in this round.
    arrived: u32,
    /// Threads this round needs; 0 before anyone has arrived, `u32::MAX` for all that have not exited.
    expected: u32,
    /// Whether this round reduces.
    reduces: Option<BarKind>,
    /// Arrived threads whose predicate is true.
    votes: u32,
    voters: u32,
    /// Result of the last round's reduction.
    pub(super) result: u32,
}

impl Barrier {
    pub(super) fn describe(&self, id: u32, alive: u32) -> String {
        let expected = if self.expected == u32::MAX {
            alive
        } else {
            self.expected
        };
        format!(
            "waits at barrier {id}, {} of {expected} threads have arrived",
            self.arrived
        )
    }

    fn end_if_complete(&mut self, alive: u32) {
        let expected = if self.expected == u32::MAX {
            alive
        } else {
            self.expected
        };
        if self.expected == 0 || self.arrived < expected {
            return;
        }
        self.result = match self.reduces {
            Some(BarKind::And) => u32::from(self.votes == self.voters),
            Some(BarKind::Or) => u32::from(self.votes != 0),
            _ => self.votes,
        };
        let (round, result) = (self.round + 1, self.result);
        *self = Barrier {
            round,
            result,
            ..Barrier::default()
        };
    }
}

/// The barrier of a cluster's threads.
#[derive(Debug, Default, Hash)]
pub(super) struct ClusterBarrier {
    /// Rounds that have ended.
    pub(super) round: u64,
    /// Threads that have neither arrived in this round nor exited.
    pub(super) missing: u32,
}

impl Cluster<'_, '_> {
    /// Threads come to the cluster's barrier, or exit.
    fn count_at_barrier(&mut self, threads: u32) {
        let barrier = &mut self.barrier;
        barrier.missing -= threads;
        if barrier.missing == 0 {
            barrier.round += 1;
            barrier.missing = self.blocks.iter().map(|b| b.alive).sum();
            if let Some(watch) = &mut self.watch {
                watch.cluster_complete();
            }
        }
    }

    /// Ends the barriers that waited only for threads which have exited.
    pub(super) fn check_barriers(&mut self) {
        let rank = self.rank;
        let block = &mut self.blocks[rank as usize];
        for (id, barrier) in block.barriers.iter_mut().enumerate() {
            if barrier.expected == u32::MAX {
                let round = barrier.round;
                barrier.end_if_complete(block.alive);
                if barrier.round != round
                    && let Some(watch) = &mut self.watch
                {
                    watch.complete(rank, id as u32);
                }
            }
        }
    }
}

impl Warp {
    /// `bar` and `barrier`.
    pub(super) fn barrier(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        bar: &Bar,
        mask: u32,
        active: u32,
    ) -> Result<Flow, Trouble> {
        if bar.aligned
            && let Some(flow) = self.need_warp(mask, active)?
        {
            return Ok(flow);
        }
        if active != mask {
            return Ok(Flow::Alone);
        }
        self.some_copies(cluster)?;
        let lane = active.trailing_zeros();
        let id = self.regs.lane(bar.id, lane) as u32;
        let bad = |reason: String| {
            trouble(
                Some(lane),
                FaultKind::BadBarrier {
                    barrier: id,
                    reason,
                },
            )
        };
        if id >= 16 {
            return bad("there are barriers 0 to 15".to_owned());
        }
        for other in lanes(active) {
            let same = |src| self.regs.lane(src, other) == self.regs.lane(src, lane);
            if !same(bar.id) || !bar.count.is_none_or(same) {
                return bad("the operands differ between threads of the warp".to_owned());
            }
        }
        let expected = match bar.count {
            Some(count) => self.regs.lane(count, lane) as u32,
            None => u32::MAX,
        };
        if bar.count.is_some() && (expected == 0 || expected % 32 != 0) {
            return bad(format!(
                "the thread count {expected} is not a positive multiple of 32"
            ));
        }
        let limit = cluster.machine.threads().next_multiple_of(32);
        if bar.count.is_some() && expected > limit {
            return bad(format!(
                "the thread count {expected} is greater than the block's {limit} threads"
            ));
        }
        let all = cluster.cta().alive;
        let barrier = &mut cluster.cta_mut().barriers[id as usize];
        if barrier.expected != 0 && barrier.expected != expected {
            let words = |n| {
                if n == u32::MAX {
                    "all".to_owned()
                } else {
                    format!("{n}")
                }
            };
            return bad(format!(
                "this thread expects {} threads, those already there expect {}",
                words(expected),
                words(barrier.expected)
            ));
        }
        let reduces = (!matches!(bar.kind, BarKind::Sync | BarKind::Arrive)).then_some(bar.kind);
        if barrier.expected != 0 && barrier.reduces != reduces {
            return bad("a reduction meets a barrier without, or with another one".to_owned());
        }
        barrier.expected = expected;
        barrier.reduces = reduces;
        // Arrival counts whole warps, except in a barrier of all threads, where only those left count.
        let whole = expected != u32::MAX && (bar.aligned || active == self.alive);
        barrier.arrived += if whole { 32 } else { active.count_ones() };
        if expected != u32::MAX && barrier.arrived > expected {
            let arrived = barrier.arrived;
            return bad(format!(
                "{arrived} threads have arrived, {expected} were expected"
            ));
        }
        if reduces.is_some() {
            barrier.votes += (self.regs.pred(bar.operand) & active).count_ones();
            barrier.voters += active.count_ones();
        }
        let round = barrier.round;
        barrier.end_if_complete(all);
        let ends = barrier.round != round;
        self.watched(cluster, |warp, watch, cluster| {
            for src in [Some(bar.id), bar.count].into_iter().flatten() {
                warp.check_operand(watch, cluster.machine, src, active, "the barrier's operand");
            }
            if reduces.is_some() {
                let vote = pred(bar.operand.index);
                warp.check_operand(watch, cluster.machine, vote, active, "the predicate");
            }
            watch.arrive(
                warp.rank,
                id,
                warp.index,
                active,
                bar.kind != BarKind::Arrive,
            );
            if ends {
                watch.complete(warp.rank, id);
            }
            if let Some(dst) = bar.dst {
                watch.registers[warp.index as usize].put_all(dst, active, 0);
            }
        });
        if bar.kind == BarKind::Arrive {
            return Ok(Flow::Next);
        }
        Ok(Flow::Wait(State::Barrier { id, round }))
    }

    /// `barrier.cluster.arrive`.
    pub(super) fn cluster_arrive(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        release: bool,
        active: u32,
    ) -> Result<(), Trouble> {
        for lane in lanes(active) {
            let arrived = &mut self.arrived[lane as usize];
            if *arrived != 0 {
                let reason =
                    "arrives at the cluster's barrier without having waited since it last did";
                return trouble(Some(lane), FaultKind::ClusterBarrier { reason });
            }
            *arrived = cluster.barrier.round + 1;
        }
        self.watched(cluster, |warp, watch, _| {
            watch.cluster_arrive(warp.index, active, release);
        });
        cluster.count_at_barrier(active.count_ones());
        Ok(())
    }

    /// `barrier.cluster.wait`.
    pub(super) fn cluster_wait(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        active: u32,
    ) -> Result<Flow, Trouble> {
        let round = cluster.barrier.round;
        for lane in lanes(active) {
            match self.arrived[lane as usize] {
                0 => {
                    let reason = "waits at the cluster's barrier without having arrived";
                    return trouble(Some(lane), FaultKind::ClusterBarrier { reason });
                }
                arrived if arrived > round => {
                    return Ok(Flow::Wait(State::ClusterBarrier { round }));
                }
                _ => {}
            }
        }
        for lane in lanes(active) {
            self.arrived[lane as usize] = 0;
        }
        self.watched(cluster, |warp, watch, _| {
            watch.cluster_wait(warp.index, active);
        });
        Ok(Flow::Next)
    }

    /// Lanes have exited: the cluster's barrier does not wait for them.
    pub(super) fn leave_cluster(&mut self, cluster: &mut Cluster<'_, '_>, gone: u32) {
        let round = cluster.barrier.round + 1;
        let arrived = |lane: &u32| self.arrived[*lane as usize] == round;
        let missing = lanes(gone).filter(|lane| !arrived(lane)).count();
        cluster.count_at_barrier(missing as u32);
    }

    /// Gives a reduction's result to the lanes that waited.
    pub(super) fn end_barrier(&mut self, inst: &Inst, mask: u32, result: u32) {
        if let Op::Bar(bar) = &inst.op {
            self.regs.put_uniform(bar.dst, mask, u64::from(result));
        }
    }
}

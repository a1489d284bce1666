//! Barriers of the block and mbarrier objects.

use super::memory::{Intent, lanes};
use super::warp::{Flow, State, Warp};
use super::watch::pred;
use super::{Cluster, Trouble, trouble};
use crate::error::FaultKind;
use crate::program::{Bar, BarKind, Inst, Mbarrier, MbarrierOp, Op};

/// One of the block's sixteen barriers.
#[derive(Debug, Clone, Default)]
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

impl Cluster<'_, '_> {
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

    /// Gives a reduction's result to the lanes that waited.
    pub(super) fn end_barrier(&mut self, inst: &Inst, mask: u32, result: u32) {
        if let Op::Bar(bar) = &inst.op {
            self.regs.put_uniform(bar.dst, mask, u64::from(result));
        }
    }

    /// The mbarrier instructions: lane after lane.
    pub(super) fn mbarrier(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        op: &Mbarrier,
        active: u32,
    ) -> Result<Flow, Trouble> {
        let Some(address) = op.address else {
            // mbarrier.pending_count: the state is the operand.
            for lane in lanes(active) {
                let state = Object::unpack(op.operand.map_or(0, |src| self.regs.lane(src, lane)));
                if let Some(dst) = op.dst {
                    self.regs.set_lane(dst, lane, u64::from(state.pending));
                }
            }
            self.watched(cluster, |warp, watch, _| {
                let shadow = &mut watch.registers[warp.index as usize];
                if let (Some(dst), true) = (op.dst, shadow.any) {
                    let poison = op.operand.map_or(0, |state| shadow.lanes(state));
                    shadow.put_all(dst, active, poison);
                }
            });
            return Ok(Flow::Next);
        };
        let addresses = self.addresses(address);
        let mut waits = false;
        if let MbarrierOp::CopyArrive(_) = op.op {
            // The arrival happens when the thread's earlier copies have: here, now.
            self.all_copies(cluster, active)?;
        }
        for lane in lanes(active) {
            let at = addresses[lane as usize];
            let place = self.place(cluster, op.space, at, 8, Intent::Write, lane)?;
            let operand = op.operand.map(|src| self.regs.lane(src, lane));
            let bits = self.get::<8>(cluster, place, 0);
            let bad = |reason: String| {
                trouble(
                    Some(lane),
                    FaultKind::Mbarrier {
                        address: at,
                        reason,
                    },
                )
            };
            let mut object = Object::unpack(bits);
            if op.op == MbarrierOp::Init {
                let count = operand.unwrap_or(0);
                if count == 0 || count > u64::from(Object::MOST) {
                    return bad(format!("the count {count} is not in 1..={}", Object::MOST));
                }
                object = Object {
                    phase: false,
                    pending: count as u32,
                    expected: count as u32,
                    tx: 0,
                };
            } else if bits == u64::MAX || object.expected == 0 {
                return bad("it is not initialised".to_owned());
            }
            let before = bits;
            let phase = object.phase;
            let mut result = None;
            let arrivals = |n: Option<u64>| n.unwrap_or(1).min(u64::from(u32::MAX)) as u32;
            let tx = |n: Option<u64>| n.unwrap_or(0) as u32 as i32;
            let outcome = match op.op {
                MbarrierOp::Init => Ok(()),
                MbarrierOp::Inval => {
                    self.put::<8>(cluster, place, 0, u64::MAX);
                    self.watched(cluster, |warp, watch, cluster| {
                        warp.observe_mbarrier(watch, cluster.machine, op, lane, place, false, None);
                    });
                    continue;
                }
                MbarrierOp::Arrive => object.arrive(arrivals(operand)),
                MbarrierOp::ArriveNoComplete => object.arrive(arrivals(operand)).and_then(|()| {
                    if object.ends() {
                        Err("`.noComplete`, but the arrival ends the phase".to_owned())
                    } else {
                        Ok(())
                    }
                }),
                MbarrierOp::ArriveDrop => {
                    let n = arrivals(operand);
                    object.arrive_drop(n)
                }
                MbarrierOp::ExpectTx => object.add_tx(tx(operand)),
                MbarrierOp::ArriveExpectTx => {
                    object.add_tx(tx(operand)).and_then(|()| object.arrive(1))
                }
                MbarrierOp::CompleteTx => object.add_tx(tx(operand).wrapping_neg()),
                MbarrierOp::CopyArrive(no_increment) => {
                    // Without .noinc the pending count rises by one first, so the net effect is none.
                    if no_increment {
                        object.arrive(1)
                    } else {
                        Ok(())
                    }
                }
                MbarrierOp::TestWait | MbarrierOp::TryWait => {
                    // The state is that of a phase: it has ended if the object is in another.
                    let of = Object::unpack(operand.unwrap_or(0)).phase;
                    result = Some(u64::from(object.phase != of));
                    Ok(())
                }
                MbarrierOp::TestWaitParity | MbarrierOp::TryWaitParity => {
                    result = Some(u64::from(object.phase != (operand.unwrap_or(0) & 1 != 0)));
                    Ok(())
                }
                MbarrierOp::PendingCount => Ok(()),
            };
            if let Err(reason) = outcome {
                return bad(reason);
            }
            object.complete();
            self.put::<8>(cluster, place, 0, object.pack());
            let ends = object.phase != phase;
            self.watched(cluster, |warp, watch, cluster| {
                warp.observe_mbarrier(watch, cluster.machine, op, lane, place, ends, result);
            });
            if result == Some(0) {
                waits = true;
            }
            if let Some(dst) = op.dst {
                self.regs.set_lane(dst, lane, result.unwrap_or(before));
            }
        }
        Ok(if waits { Flow::Yield } else { Flow::Next })
    }
}

/// An mbarrier object: 1 bit of phase, 20 of pending arrivals, 20 of expected arrivals, 21 of transaction count, in
/// that order from the top.
#[derive(Debug, Clone, Copy)]
struct Object {
    phase: bool,
    pending: u32,
    expected: u32,
    tx: i32,
}

impl Object {
    const MOST: u32 = (1 << 20) - 1;

    fn unpack(bits: u64) -> Self {
        Object {
            phase: bits >> 63 != 0,
            pending: (bits >> 43) as u32 & Self::MOST,
            expected: (bits >> 23) as u32 & Self::MOST,
            tx: ((bits as i64) << 41 >> 41) as i32,
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.phase) << 63
            | u64::from(self.pending) << 43
            | u64::from(self.expected) << 23
            | self.tx as u64 & ((1 << 23) - 1)
    }

    fn arrive(&mut self, count: u32) -> Result<(), String> {
        if count > self.pending {
            return Err(format!(
                "{count} arrivals, but only {} are pending in this phase",
                self.pending
            ));
        }
        self.pending -= count;
        Ok(())
    }

    fn arrive_drop(&mut self, count: u32) -> Result<(), String> {
        self.arrive(count)?;
        self.expected = self.expected.saturating_sub(count);
        Ok(())
    }

    fn add_tx(&mut self, bytes: i32) -> Result<(), String> {
        let tx = i64::from(self.tx) + i64::from(bytes);
        if tx.unsigned_abs() > u64::from(Self::MOST) {
            return Err(format!("the transaction count {tx} is out of range"));
        }
        self.tx = tx as i32;
        Ok(())
    }

    fn ends(self) -> bool {
        self.pending == 0 && self.tx == 0
    }

    fn complete(&mut self) {
        if self.ends() {
            self.phase = !self.phase;
            self.pending = self.expected;
        }
    }
}

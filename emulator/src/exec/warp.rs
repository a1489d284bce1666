//! A warp: its registers, and the groups its lanes form.
//!
//! A branch that some lanes take and others don't parts a group in two. The paths meet again at the branch's immediate
//! post-dominator, which decoding has found: a [`Join`] collects the lanes that reach it, and lets them go on as one
//! group when all of them that have not exited are there. A branch whose paths meet only at the end of the entry makes
//! no join. Of several groups that can run, the one at the lowest instruction runs.
//!
//! An instruction that needs lanes of other groups waits until they come. If they can't, because they wait at a join
//! for the lanes that wait for them, or have exited, it faults: on hardware this is undefined.

use std::hash::{Hash, Hasher};

use super::memory::PendingCopies;
use super::registers::Registers;
use super::{Cluster, Trouble, trouble};
use crate::device::Schedule;
use crate::error::FaultKind;
use crate::program::{ALL, NOWHERE, Program, WARP};

/// What a group waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum State {
    Ready,
    /// For other lanes of the warp to come to the same instruction.
    Lanes(u32),
    /// For the end of a barrier's current round.
    Barrier {
        id: u32,
        round: u64,
    },
    /// For the end of an mbarrier's phase. So many phases, of all mbarriers, had ended when it last looked.
    Mbarrier {
        phases: u64,
    },
    /// For products of its warpgroup, so many in all. If that leads nowhere, the group goes on where it need not wait.
    Products {
        need: u64,
        must: bool,
    },
    /// For the end of the cluster's barrier's current round.
    ClusterBarrier {
        round: u64,
    },
    /// For registers of the block's pool.
    Registers {
        need: i32,
    },
    /// Ready, but its wait for an mbarrier has taken too long.
    Expired,
}

/// Lanes that are at the same instruction.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) struct Group {
    pub(super) pc: u32,
    pub(super) mask: u32,
    /// Index into [`Warp::joins`], or [`NOWHERE`].
    join: u32,
    pub(super) state: State,
    /// Phases of mbarriers, of all, that had ended when a wait last told these lanes that theirs has not.
    pub(super) told: u64,
}

/// A place where lanes meet.
#[derive(Debug, Clone, Copy, Hash)]
struct Join {
    pc: u32,
    /// Lanes that will come, unless they exit.
    expected: u32,
    arrived: u32,
    parent: u32,
}

/// What came of a warp's turn.
pub(super) enum Turn {
    /// It did something.
    Moved,
    /// It waits.
    Stuck,
}

/// What an instruction does to its group.
pub(super) enum Flow {
    Next,
    /// Some of the lanes go elsewhere.
    Branch {
        taken: u32,
        target: u32,
        join: u32,
    },
    /// Some of the lanes go elsewhere, the others execute the instruction again.
    Split {
        taken: u32,
        target: u32,
        join: u32,
    },
    /// The active lanes form a group of their own and execute the instruction again; the others go on.
    Alone,
    /// The lanes end.
    Exit(u32),
    /// The group waits in this state, and executes the instruction again (or, at barriers, ends it) later.
    Wait(State),
    /// The group waits in this state, and then goes on.
    Pause(State),
    /// The group goes on, after other warps have had a turn.
    Yield,
}

pub(super) struct Warp {
    /// Its number in the cluster.
    pub(super) index: u32,
    /// Rank of its block.
    pub(super) rank: u32,
    /// Warps before it in the cluster that are not of its block.
    before: u32,
    /// The instruction being executed, while a sanitizer watches.
    pub(super) pc: u32,
    /// Threads of a block.
    threads: u32,
    pub(super) regs: Registers,
    /// Carry flags.
    pub(super) carry: u32,
    /// Local memory: one lane after the other.
    pub(super) local: Vec<u8>,
    pub(super) copies: PendingCopies,
    /// The allocation that the last global access hit.
    pub(super) last: usize,
    /// Lanes that have not exited.
    pub(super) alive: u32,
    pub(super) groups: Vec<Group>,
    joins: Vec<Join>,
    /// Prefer the group at the highest instruction instead: set in turns, so that lanes that spin cannot keep the
    /// lanes that they wait for from running.
    backwards: bool,
    /// The group that runs.
    pub(super) current: usize,
    /// The wait for an mbarrier that is about to be executed shall not suspend its lanes.
    pub(super) expired: bool,
    /// Its wait for products has begun.
    pub(super) waited: bool,
    /// The round of the cluster's barrier, from 1, at which each lane has arrived and not waited for; 0: none.
    pub(super) arrived: [u64; WARP],
}

/// A number that no count reaches.
const NEVER: u64 = u64::MAX;

impl Warp {
    /// A warp of a cluster whose blocks have `each` warps.
    pub(super) fn new(program: &Program, index: u32, each: u32, threads: u32) -> Self {
        Self {
            index,
            rank: index / each,
            before: index / each * each,
            pc: 0,
            threads,
            regs: Registers::new(program),
            carry: 0,
            local: vec![0xff; program.local as usize * WARP],
            copies: PendingCopies::default(),
            last: 0,
            alive: 0,
            groups: Vec::new(),
            joins: Vec::new(),
            backwards: false,
            current: 0,
            expired: false,
            waited: false,
            arrived: [0; WARP],
        }
    }

    /// Its number in its block.
    pub(super) fn in_block(&self) -> u32 {
        self.index - self.before
    }

    /// Makes it ready for a new cluster.
    pub(super) fn reset(&mut self) {
        let lanes = (self.threads - self.in_block() * WARP as u32).min(WARP as u32);
        self.alive = if lanes == 32 { ALL } else { (1 << lanes) - 1 };
        self.carry = 0;
        self.local.fill(0xff);
        self.copies.clear();
        self.joins.clear();
        self.groups.clear();
        self.backwards = false;
        self.expired = false;
        self.waited = false;
        self.arrived = [0; WARP];
        self.groups.push(Group {
            pc: 0,
            mask: self.alive,
            join: NOWHERE,
            state: State::Ready,
            told: NEVER,
        });
    }

    /// All that decides what it does next.
    pub(super) fn hash(&self, hash: &mut impl Hasher) {
        (&self.regs, self.carry, &self.local).hash(hash);
        (&self.groups, &self.joins, self.alive).hash(hash);
    }

    /// An instruction and a lane at which it stands.
    pub(super) fn stands_at(&self) -> Option<(u32, u32)> {
        self.groups
            .first()
            .map(|g| (g.pc, g.mask.trailing_zeros().min(31)))
    }

    /// What its lanes wait for.
    pub(super) fn waits(&self, cluster: &Cluster<'_, '_>) -> Vec<(u32, u32, String)> {
        let groups = self.groups.iter().map(|g| {
            let reason = match g.state {
                State::Ready => "can run".to_owned(),
                State::Mbarrier { .. } | State::Expired => {
                    let program = cluster.machine.program;
                    let awaited = self.awaited_objects(cluster, program, g.pc, g.mask);
                    let reasons = awaited.iter().map(|a| a.describe(cluster));
                    reasons.collect::<Vec<_>>().join(", and ")
                }
                State::Lanes(need) => format!("waits for lanes {:#010x}", need & !g.mask),
                State::ClusterBarrier { .. } => {
                    let missing = cluster.barrier.missing;
                    format!("waits at the cluster's barrier, {missing} threads have not arrived")
                }
                State::Registers { need } => {
                    let free = cluster.cta().free_registers;
                    format!("waits for {need} more registers a thread, the block's pool has {free}")
                }
                State::Products { need, .. } => self.describe_products(cluster, need),
                State::Barrier { id, .. } => {
                    let block = cluster.cta();
                    block.barriers[id as usize & 15].describe(id, block.alive)
                }
            };
            (g.pc, g.mask, reason)
        });
        let joins = self
            .joins
            .iter()
            .filter(|j| j.arrived != 0 && j.arrived != j.expected)
            .map(|j| {
                (
                    j.pc,
                    j.arrived,
                    format!(
                        "waits to reconverge with lanes {:#010x}",
                        j.expected & !j.arrived
                    ),
                )
            });
        groups.chain(joins).collect()
    }

    /// Runs for at most so many instructions. An error says where, and which lanes were active.
    pub(super) fn turn(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        share: u32,
    ) -> Result<Turn, (u32, u32, Trouble)> {
        let mut left = share;
        let mut moved = false;
        while left > 0 && self.alive != 0 {
            let Some(at) = self.pick(cluster)? else { break };
            moved = true;
            let before = left;
            let go_on = self.run_group(at, cluster, &mut left)?;
            cluster.stats.warp_instructions += u64::from(before - left);
            if !go_on || left == 0 {
                self.backwards = self.groups.len() > 1 && !self.backwards;
            }
            if !go_on || cluster.stats.warp_instructions > cluster.machine.max_instructions {
                break;
            }
        }
        Ok(if moved { Turn::Moved } else { Turn::Stuck })
    }

    /// The group to run next: the one at the lowest instruction of those that can.
    fn pick(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
    ) -> Result<Option<usize>, (u32, u32, Trouble)> {
        for at in 0..self.groups.len() {
            if let State::Mbarrier { phases } = self.groups[at].state
                && phases != cluster.phases
            {
                self.groups[at].state = State::Ready;
            }
            if let State::Products { need, .. } = self.groups[at].state
                && self.products_done(cluster, need)
            {
                self.groups[at].state = State::Ready;
            }
            if let State::ClusterBarrier { round } = self.groups[at].state
                && round != cluster.barrier.round
            {
                self.groups[at].state = State::Ready;
            }
            if let State::Registers { need } = self.groups[at].state
                && need <= cluster.cta().free_registers
            {
                self.groups[at].state = State::Ready;
            }
            if let State::Barrier { id, round } = self.groups[at].state {
                let barrier = &cluster.cta().barriers[id as usize & 15];
                if barrier.round != round {
                    let result = barrier.result;
                    let (pc, mask) = (self.groups[at].pc, self.groups[at].mask);
                    self.end_barrier(&cluster.machine.program.code[pc as usize], mask, result);
                    self.groups[at].state = State::Ready;
                    self.groups[at].pc = pc + 1;
                }
            }
        }
        let can_run = |g: &usize| matches!(self.groups[*g].state, State::Ready | State::Expired);
        let ready = (0..self.groups.len()).filter(can_run);
        let pc = |&g: &usize| self.groups[g].pc;
        let best = if cluster.machine.schedule != Schedule::InOrder && self.groups.len() > 1 {
            let count = ready.clone().count();
            let n = cluster.random() as usize % count.max(1);
            ready.clone().nth(n)
        } else if self.backwards {
            ready.max_by_key(pc)
        } else {
            ready.min_by_key(pc)
        };
        if let Some(best) = best {
            self.expired = self.groups[best].state == State::Expired;
            self.groups[best].state = State::Ready;
            return Ok(Some(best));
        }
        // Lanes that wait for each other at one instruction go on together.
        for at in 0..self.groups.len() {
            let group = self.groups[at];
            let State::Lanes(need) = group.state else {
                continue;
            };
            let same = |g: &Group| {
                g.pc == group.pc && g.join == group.join && matches!(g.state, State::Lanes(_))
            };
            let all = self
                .groups
                .iter()
                .filter(|g| same(g))
                .fold(0, |all, g| all | g.mask);
            if need & self.alive & !all == 0 {
                self.groups.retain(|g| !same(g));
                self.groups.push(Group {
                    mask: all,
                    state: State::Ready,
                    ..group
                });
                return Ok(Some(self.groups.len() - 1));
            }
        }
        // Somebody else may yet end what lanes of this warp wait for; otherwise there is no hope.
        let hope = self
            .groups
            .iter()
            .any(|g| !matches!(g.state, State::Lanes(_)));
        match self
            .groups
            .iter()
            .find(|g| matches!(g.state, State::Lanes(_)))
        {
            Some(&Group {
                pc,
                mask,
                state: State::Lanes(need),
                ..
            }) if !hope => {
                let kind = FaultKind::Divergent {
                    active: mask,
                    missing: need & !mask,
                };
                Err((pc, mask, Box::new((None, kind))))
            }
            _ => Ok(None),
        }
    }

    /// Runs one group until it parts, meets others, waits, or the warp's share is used up. False if the warp's turn is
    /// over.
    fn run_group(
        &mut self,
        at: usize,
        cluster: &mut Cluster<'_, '_>,
        left: &mut u32,
    ) -> Result<bool, (u32, u32, Trouble)> {
        let program = cluster.machine.program;
        self.current = at;
        let Group {
            mut pc, mask, join, ..
        } = self.groups[at];
        let stop = self.joins.get(join as usize).map_or(NOWHERE, |j| j.pc);
        let lanes = u64::from(mask.count_ones());
        while *left > 0 {
            if pc == stop {
                self.groups.swap_remove(at);
                self.joins[join as usize].arrived |= mask;
                self.settle();
                return Ok(true);
            }
            let Some(inst) = program.code.get(pc as usize) else {
                let reason = "control reached the end of the entry without `ret`".to_owned();
                return Err((
                    pc,
                    mask,
                    Box::new((None, FaultKind::Unsupported { reason })),
                ));
            };
            *left -= 1;
            cluster.stats.lane_instructions += lanes;
            if cluster.observed {
                self.observe(cluster, inst, pc, mask);
            }
            let active = mask & self.regs.pred(inst.guard);
            if active == 0 {
                pc += 1;
                continue;
            }
            match self.step(cluster, inst, pc, mask, active) {
                Ok(Flow::Next) => pc += 1,
                Ok(Flow::Branch { taken, target, .. }) if taken == mask => pc = target,
                Ok(Flow::Branch {
                    taken,
                    target,
                    join: meet,
                }) => {
                    self.groups[at].pc = pc;
                    self.part(at, taken, target, meet, pc + 1);
                    return Ok(true);
                }
                Ok(Flow::Split {
                    taken,
                    target,
                    join: meet,
                }) => {
                    self.groups[at].pc = pc;
                    let rest = if taken == active { pc + 1 } else { pc };
                    self.part(at, taken, target, meet, rest);
                    return Ok(true);
                }
                Ok(Flow::Alone) => {
                    self.groups[at].pc = pc;
                    self.part(at, active, pc, NOWHERE, pc + 1);
                    return Ok(true);
                }
                Ok(Flow::Exit(lanes)) => {
                    self.groups[at].pc = pc + 1;
                    self.groups[at].mask &= !lanes;
                    if self.groups[at].mask == 0 {
                        self.groups.swap_remove(at);
                    }
                    self.alive &= !lanes;
                    for j in &mut self.joins {
                        j.expected &= !lanes;
                    }
                    self.settle();
                    cluster.cta_mut().alive -= lanes.count_ones();
                    self.leave_cluster(cluster, lanes);
                    if self.alive == 0 {
                        self.leave_warpgroup(cluster)
                            .map_err(|found| (pc, lanes, found))?;
                    }
                    self.watched(cluster, |warp, watch, cluster| {
                        let last = [warp.alive == 0, cluster.cta().alive == 0];
                        watch.exit(cluster.machine, warp.who(0), lanes, last);
                    });
                    cluster.check_barriers();
                    return Ok(true);
                }
                Ok(Flow::Wait(state)) => {
                    self.groups[at].pc = pc;
                    self.groups[at].state = state;
                    return Ok(true);
                }
                Ok(Flow::Pause(state)) => {
                    self.groups[at].pc = pc + 1;
                    self.groups[at].state = state;
                    return Ok(true);
                }
                Ok(Flow::Yield) => {
                    self.groups[at].pc = pc + 1;
                    return Ok(false);
                }
                Err(found) => return Err((pc, active, found)),
            }
        }
        self.groups[at].pc = pc;
        Ok(true)
    }

    /// Parts a group: `taken` go to `target`, the others to `rest`; all meet at `meet`.
    fn part(&mut self, at: usize, taken: u32, target: u32, meet: u32, rest: u32) {
        let group = self.groups[at];
        let mut join = group.join;
        if meet != NOWHERE && self.joins.get(join as usize).is_none_or(|j| j.pc != meet) {
            let new = Join {
                pc: meet,
                expected: group.mask,
                arrived: 0,
                parent: group.join,
            };
            // Joins are kept in place, since groups refer to them by index; a join that nobody expects is free.
            let free = self.joins.iter().position(|j| j.expected == 0);
            match free {
                Some(free) => {
                    self.joins[free] = new;
                    join = free as u32;
                }
                None => {
                    join = self.joins.len() as u32;
                    self.joins.push(new);
                }
            }
        }
        self.groups[at] = Group {
            pc: rest,
            mask: group.mask & !taken,
            join,
            state: State::Ready,
            told: NEVER,
        };
        self.groups.push(Group {
            pc: target,
            mask: taken,
            join,
            state: State::Ready,
            told: NEVER,
        });
    }

    /// Lets the lanes of complete joins go on.
    fn settle(&mut self) {
        for at in 0..self.joins.len() {
            let join = self.joins[at];
            if join.expected != 0 && join.arrived & join.expected == join.expected {
                let group = Group {
                    pc: join.pc,
                    mask: join.expected,
                    join: join.parent,
                    state: State::Ready,
                    told: NEVER,
                };
                self.joins[at].expected = 0;
                self.joins[at].arrived = 0;
                self.groups.push(group);
            }
        }
    }

    /// For instructions that need every lane of the warp: whether to wait for lanes of other groups.
    pub(super) fn need_warp(&self, mask: u32, active: u32) -> Result<Option<Flow>, Trouble> {
        self.need_lanes(mask, active, self.alive)
    }

    /// For instructions that need the lanes `need`.
    pub(super) fn need_lanes(
        &self,
        mask: u32,
        active: u32,
        need: u32,
    ) -> Result<Option<Flow>, Trouble> {
        let missing = need & !active;
        if missing == 0 {
            return Ok(None);
        }
        if missing & mask != 0 || missing & !self.alive != 0 {
            return trouble(None, FaultKind::Divergent { active, missing });
        }
        Ok(Some(Flow::Wait(State::Lanes(need))))
    }
}

//! A cluster of blocks: what its warps share, and how they take turns.
//!
//! The blocks of a cluster run together; a launch without clusters has clusters of one block. A worker thread owns one
//! [`Runner`] and runs cluster after cluster in it.

use super::bulk::BulkCopies;
use super::stall::Stalls;
use super::sync::{Barrier, ClusterBarrier};
use super::warp::{Turn, Warp};
use super::wgmma::{WARPS, Warpgroup};
use super::{Machine, SHARED_BASE, special_value};
use crate::device::{AsyncTiming, Schedule, Stats};
use crate::error::{Fault, FaultKind};
use crate::memory::POISON;
use crate::program::WARP;
use crate::sanitize::{Report, Sanitizer};

/// Instructions a warp executes before the next one's turn.
const SHARE: u32 = 1 << 14;
/// The bit of a shared address at which the rank of its block begins.
pub(crate) const RANK_SHIFT: u32 = 24;
/// The bits of a shared address below.
pub(crate) const RANK_MASK: u64 = (1 << RANK_SHIFT) - 1;

/// What the warps of a block share.
#[derive(Hash)]
pub(super) struct Cta {
    pub(super) barriers: [Barrier; 16],
    /// Lanes that have not exited.
    pub(super) alive: u32,
    pub(super) warpgroups: Vec<Warpgroup>,
    /// Registers in the block's pool: for so many of each thread of a warp.
    pub(super) free_registers: i32,
}

impl Cta {
    fn new(threads: u32) -> Self {
        Cta {
            barriers: std::array::from_fn(|_| Barrier::default()),
            alive: threads,
            warpgroups: std::iter::repeat_with(Warpgroup::default)
                .take(threads.div_ceil((WARP * WARPS) as u32) as usize)
                .collect(),
            free_registers: 0,
        }
    }
}

/// What the warps of a cluster share.
pub(super) struct Cluster<'m, 'a> {
    pub(super) machine: &'m Machine<'a>,
    /// Index of its first block in the grid.
    pub(super) index: [u32; 3],
    /// The blocks' shared memory: one after the other, [`Machine::shared_stride`] bytes each.
    pub(super) shared: Vec<u8>,
    pub(super) blocks: Vec<Cta>,
    pub(super) barrier: ClusterBarrier,
    /// The block whose warp is running: its rank, the first address of its shared memory, and where that is in `shared`.
    pub(super) rank: u32,
    pub(super) window: u64,
    pub(super) offset: usize,
    random: u64,
    pub(super) stats: Stats,
    /// Phases of mbarriers that have ended.
    pub(super) phases: u64,
    pub(super) bulk: BulkCopies,
    /// Whether products of warpgroups are wanted.
    pub(super) products: bool,
    pub(super) stalls: Stalls,
    /// Checks what hardware does not, if the options say so.
    pub(super) watch: Option<Box<Sanitizer>>,
    /// Whether somebody looks at every instruction: the sanitizer, or whoever searches for a deadlock.
    pub(super) observed: bool,
}

impl Cluster<'_, '_> {
    /// The next of a sequence of pseudo-random numbers (splitmix64).
    pub(super) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// The block whose warp is running.
    pub(super) fn cta(&self) -> &Cta {
        &self.blocks[self.rank as usize]
    }

    pub(super) fn cta_mut(&mut self) -> &mut Cta {
        &mut self.blocks[self.rank as usize]
    }

    pub(super) fn enter(&mut self, rank: u32) {
        self.rank = rank;
        self.window = (u64::from(rank) << RANK_SHIFT) + SHARED_BASE;
        self.offset = rank as usize * self.machine.shared_stride();
    }
}

/// A cluster and the storage of its warps, used for one cluster after the other.
pub(crate) struct Runner<'m, 'a> {
    pub(super) cluster: Cluster<'m, 'a>,
    pub(super) warps: Vec<Warp>,
}

impl<'m, 'a> Runner<'m, 'a> {
    pub(crate) fn new(machine: &'m Machine<'a>) -> Self {
        let blocks = machine.cluster_size();
        let each = machine.warps();
        let mut warps: Vec<Warp> = (0..blocks * each)
            .map(|index| Warp::new(machine.program, index, each, machine.threads()))
            .collect();
        for warp in &mut warps {
            for (place, value) in machine.constants(warp.rank) {
                warp.regs.broadcast(place, value);
            }
        }
        let cluster = Cluster {
            machine,
            index: [0; 3],
            shared: vec![POISON; machine.shared_stride() * blocks as usize],
            blocks: Vec::new(),
            barrier: ClusterBarrier::default(),
            rank: 0,
            window: 0,
            offset: 0,
            random: 0,
            stats: Stats::default(),
            phases: 0,
            bulk: BulkCopies::default(),
            products: false,
            stalls: Stalls::default(),
            watch: machine.sanitize.then(|| Box::new(Sanitizer::new(machine))),
            observed: machine.sanitize,
        };
        Runner { cluster, warps }
    }

    /// Runs the cluster of that place in the grid of clusters to its end; `linear` is its number.
    pub(crate) fn run(&mut self, place: [u32; 3], linear: u64) -> Result<Stats, Fault> {
        self.begin(place, linear);
        let machine = self.cluster.machine;
        let mut order: Vec<usize> = (0..self.warps.len()).collect();
        let mut running = true;
        while running {
            running = false;
            let mut moved = false;
            if machine.schedule != Schedule::InOrder {
                // Fisher and Yates.
                for n in (1..order.len()).rev() {
                    order.swap(n, self.cluster.random() as usize % (n + 1));
                }
            }
            for &at in &order {
                if self.warps[at].alive == 0 {
                    continue;
                }
                running = true;
                if self.cluster.products {
                    self.wanted_products();
                }
                self.random_products();
                let share = match machine.schedule {
                    Schedule::InOrder => SHARE,
                    Schedule::Seeded { share, .. } => {
                        1 + (self.cluster.random() % u64::from(share.clamp(1, SHARE))) as u32
                    }
                };
                let warp = &mut self.warps[at];
                self.cluster.enter(warp.rank);
                if let Err(trouble) = self.cluster.some_bulk_copies() {
                    return Err(self.late_fault(trouble));
                }
                match warp.turn(&mut self.cluster, share) {
                    Ok(Turn::Moved) => moved = true,
                    Ok(Turn::Stuck) => {}
                    Err((pc, lanes, found)) => {
                        let lane = found.0.unwrap_or(lanes.trailing_zeros().min(31));
                        return Err(self.fault(at as u32, lane, pc, found.1));
                    }
                }
            }
            if self.cluster.stats.warp_instructions > machine.max_instructions {
                let (pc, lane) = self
                    .warps
                    .iter()
                    .find_map(Warp::stands_at)
                    .unwrap_or((0, 0));
                let kind = FaultKind::InstructionLimit {
                    limit: machine.max_instructions,
                };
                let warp = self.warps.iter().position(|w| w.alive != 0).unwrap_or(0);
                return Err(self.fault(warp as u32, lane, pc, kind));
            }
            if self.cluster.products {
                self.wanted_products();
            } else if running && !moved {
                self.stalled()?;
            }
        }
        self.cluster.end_bulk_copies();
        Ok(self.cluster.stats)
    }

    /// Puts everything into the state in which a cluster starts.
    fn begin(&mut self, place: [u32; 3], linear: u64) {
        let machine = self.cluster.machine;
        let cluster = &mut self.cluster;
        cluster.index = std::array::from_fn(|n| place[n] * machine.cluster[n]);
        cluster.shared.fill(POISON);
        cluster.blocks.clear();
        cluster
            .blocks
            .resize_with(machine.cluster_size() as usize, || {
                Cta::new(machine.threads())
            });
        let mut seed = match machine.timing {
            AsyncTiming::Seeded(seed) => seed,
            _ => 0,
        };
        if let Schedule::Seeded {
            seed: of_schedule, ..
        } = machine.schedule
        {
            seed ^= of_schedule.rotate_left(32);
        }
        cluster.random = seed ^ linear.wrapping_mul(0xd134_2543_de82_ef95);
        cluster.stats = Stats {
            blocks: u64::from(machine.cluster_size()),
            ..Stats::default()
        };
        cluster.barrier = ClusterBarrier {
            round: 0,
            missing: machine.cluster_size() * machine.threads(),
        };
        cluster.phases = 0;
        cluster.bulk = BulkCopies::default();
        cluster.products = false;
        cluster.stalls = Stalls::default();
        cluster.observed = machine.sanitize;
        for warp in &mut self.warps {
            warp.reset();
            let block = machine.block_index(cluster.index, warp.rank);
            for &(place, special) in &machine.program.specials {
                let (rank, at) = (warp.rank, warp.in_block());
                warp.regs.set(place, |lane| {
                    special_value(machine, block, rank, at, special, lane)
                });
            }
        }
        if let Some(watch) = &mut cluster.watch {
            watch.begin_cluster(cluster.index, machine);
        }
    }

    /// What the sanitizer found in the clusters that ran.
    pub(crate) fn into_report(self) -> Report {
        self.cluster
            .watch
            .map(|watch| watch.into_report())
            .unwrap_or_default()
    }

    pub(super) fn fault(&mut self, warp: u32, lane: u32, pc: u32, kind: FaultKind) -> Fault {
        let machine = self.cluster.machine;
        let (line, instruction) = machine.instruction(pc);
        let number = warp as usize * WARP + lane as usize;
        let fault = Fault {
            kind,
            block: machine.block_of(self.cluster.index, number),
            thread: machine.thread_index(number),
            line,
            instruction,
        };
        if let Some(watch) = &mut self.cluster.watch {
            watch.add_fault(machine, &fault, pc);
        }
        fault
    }
}

//! Rings of tiles between the producer and the consumers, each slot with two mbarriers: `full` (the bytes have arrived) and `empty`
//! (every consumer has read them).

use super::config::{Config, ConfigExt};
use crate::ptx::{cluster, mbarrier};

/// A place in a ring: a slot, and the parity of the phase that its barriers are in.
#[derive(Clone, Copy)]
pub struct Cursor {
    /// The slot.
    pub stage: u32,
    parity: u32,
}

impl Cursor {
    /// Before the first slot.
    pub const START: Self = Self {
        stage: 0,
        parity: 0,
    };

    /// The slot before.
    #[inline(always)]
    pub fn previous(self, stages: u32) -> Self {
        let Self { stage, parity } = self;
        let first = (stage == 0) as u32;
        Self {
            stage: match stages {
                1 => 0,
                2 => stage ^ 1,
                _ if first == 1 => stages - 1,
                _ => stage - 1,
            },
            parity: parity ^ first,
        }
    }

    /// The next slot.
    #[inline(always)]
    pub fn advance(&mut self, stages: u32) {
        if stages == 1 {
            self.parity ^= 1;
        } else if stages == 2 {
            self.parity ^= self.stage;
            self.stage ^= 1;
        } else {
            self.stage += 1;
            if self.stage == stages {
                self.stage = 0;
                self.parity ^= 1;
            }
        }
    }
}

/// One ring: its barriers are `full` of every slot, then `empty` of every slot.
#[derive(Clone, Copy)]
pub struct Ring {
    barriers: u32,
    stages: u32,
}

impl Ring {
    /// The ring of the queries.
    #[inline(always)]
    pub fn q<C: Config>(smem: u32) -> Self {
        Self {
            barriers: smem + C::PLAN.barriers,
            stages: 1,
        }
    }

    /// The ring of K tiles.
    #[inline(always)]
    pub fn k<C: Config>(smem: u32) -> Self {
        Self {
            barriers: smem + C::PLAN.barriers + 16,
            stages: C::TILE.stages,
        }
    }

    /// The ring of V tiles.
    #[inline(always)]
    pub fn v<C: Config>(smem: u32) -> Self {
        Self {
            barriers: smem + C::PLAN.barriers + 16 + 16 * C::TILE.stages,
            stages: C::TILE.stages,
        }
    }

    /// The ring of transposed V tiles.
    #[inline(always)]
    pub fn vt<C: Config>(smem: u32) -> Self {
        Self {
            barriers: smem + C::PLAN.barriers + 16 + 32 * C::TILE.stages,
            stages: C::TILE.stages,
        }
    }

    /// Makes the barriers: phases of `full` end with `writers` arrivals (and the bytes these expect), those of `empty` with `readers` ones.
    ///
    /// # Safety
    /// One thread does so, before any other uses the ring.
    #[inline(always)]
    pub unsafe fn init(self, writers: u32, readers: u32) {
        for stage in 0..self.stages {
            // SAFETY: the barriers are inside the plan, and the caller's alone.
            unsafe {
                mbarrier::init(self.full(stage), writers);
                mbarrier::init(self.empty(stage), readers);
            }
        }
    }

    /// The barrier of a slot that bytes arrive at.
    #[inline(always)]
    pub fn full(self, stage: u32) -> u32 {
        self.barriers + 8 * stage
    }

    #[inline(always)]
    fn empty(self, stage: u32) -> u32 {
        self.barriers + 8 * (self.stages + stage)
    }

    /// Producer: waits until the slot is empty.
    #[inline(always)]
    pub fn acquire(self, at: Cursor) {
        // Fresh slots are empty: their barriers count as having ended a phase of parity 1.
        // SAFETY: the barrier was made before the roles parted.
        unsafe { mbarrier::wait(self.empty(at.stage), at.parity ^ 1) };
    }

    /// Producer: whether the slot is empty, perhaps after a while.
    #[inline(always)]
    pub fn is_empty(self, at: Cursor) -> bool {
        // SAFETY: as for `acquire`.
        unsafe { mbarrier::has_ended(self.empty(at.stage), at.parity ^ 1) }
    }

    /// Producer, one thread: announces the bytes of a slot that are about to be copied.
    #[inline(always)]
    pub fn expect(self, at: Cursor, bytes: u32) {
        // SAFETY: as for `acquire`.
        unsafe { mbarrier::arrive_expect_tx(self.full(at.stage), bytes) };
    }

    /// Producer, one thread of a warp that has written to a slot: it is done.
    #[inline(always)]
    pub fn fill_own(self, at: Cursor) {
        // SAFETY: as for `acquire`.
        unsafe { mbarrier::arrive(self.full(at.stage)) };
    }

    /// Consumer: waits until the slot is full.
    #[inline(always)]
    pub fn wait(self, at: Cursor) {
        // SAFETY: as for `acquire`.
        unsafe { mbarrier::wait(self.full(at.stage), at.parity) };
    }

    /// Consumer, every lane of a warp: the warp has read the slot. Lane `n` of the first `cluster` says so to block `n` of the
    /// cluster, which may be about to overwrite it.
    #[inline(always)]
    pub fn release(self, at: Cursor, lane: u32, cluster: u32) {
        if lane < cluster {
            // SAFETY: no block of the cluster ends before all of them are done with their rings.
            unsafe { mbarrier::arrive_cluster(cluster::map(self.empty(at.stage), lane)) };
        }
    }

    /// Consumer, one thread: the same, for a slot that this block alone fills.
    #[inline(always)]
    pub fn release_own(self, at: Cursor) {
        // SAFETY: as for `acquire`.
        unsafe { mbarrier::arrive(self.empty(at.stage)) };
    }
}

//! Bulk copies between their issue and their wait.
//!
//! What a load writes is there for those who have acquired the phase of the mbarrier that counted its bytes: who stands
//! for that mbarrier has then written it. A store's ends are its thread's until that thread waits.

use super::shadow::{Access, PAGE, Strength};
use super::{Conflict, Key, Rule, Sanitizer, key};
use crate::exec::{Machine, Place, Who};
use crate::program::Order;

/// Ranges in the cluster's shared memory, and in global memory: allocation, offset, bytes.
#[derive(Debug, Default)]
pub(crate) struct BulkEnds {
    pub(crate) shared: Vec<(usize, usize)>,
    pub(crate) global: Vec<(usize, u64, usize)>,
}

/// A copy into shared memory that nobody has seen the end of.
pub(super) struct BulkLoad {
    mbarrier: Key,
    thread: usize,
    pc: u32,
    bytes: i64,
    /// What it writes, and what it reads.
    to: BulkEnds,
    from: BulkEnds,
    /// Rank of the block that it writes to.
    rank: u32,
    /// Its phase has ended.
    landed: bool,
}

/// A copy out of shared memory that its thread has not waited for.
pub(super) struct BulkStore {
    thread: usize,
    pc: u32,
    group: u32,
    from: BulkEnds,
    to: BulkEnds,
    /// The source has been waited for.
    read: bool,
}

/// Parts of a range that lie in one page of the global shadow each.
fn pages(at: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    let end = at + len as u64;
    let mut from = at;
    std::iter::from_fn(move || {
        let to = end.min((from / PAGE as u64 + 1) * PAGE as u64);
        let part = (from, (to - from) as usize);
        from = to;
        (part.1 != 0).then_some(part)
    })
}

impl Sanitizer {
    /// Notes accesses to all of these ranges.
    fn note_ends(
        &mut self,
        machine: &Machine<'_>,
        who: Who,
        ends: &BulkEnds,
        write: bool,
        me: Access,
    ) {
        for &(at, len) in &ends.shared {
            self.note(machine, who, Place::Shared(at), len, write, me);
        }
        for &(allocation, at, len) in &ends.global {
            for (at, len) in pages(at, len) {
                self.note(machine, who, Place::Global(allocation, at), len, write, me);
            }
        }
    }

    /// What was in flight at these ranges has landed.
    fn land_ends(&mut self, ends: &BulkEnds, flight: Access, landed: Access) {
        for &(at, len) in &ends.shared {
            self.shared.land(at, len, flight, landed);
        }
        for &(allocation, at, len) in &ends.global {
            for (at, len) in pages(at, len) {
                self.global.land(allocation, at, len, flight, landed);
            }
        }
    }

    /// A bulk copy into the shared memory of a block.
    pub(crate) fn bulk_load(
        &mut self,
        machine: &Machine<'_>,
        who: Who,
        from: BulkEnds,
        to: BulkEnds,
        mbarrier: Place,
        [bytes, rank]: [u32; 2],
    ) {
        let me = Access::in_flight(who.thread(), who.pc, Strength::Proxy);
        // It counts at the mbarrier, as an atomic update.
        self.access(machine, who, mbarrier, 8, true, Order::ATOMIC);
        self.check_init_fence(machine, who, mbarrier);
        self.note_ends(machine, who, &from, false, me);
        self.note_ends(machine, who, &to, true, me);
        let Some(mbarrier) = key(mbarrier) else {
            return;
        };
        self.bulk_loads.push(BulkLoad {
            mbarrier,
            thread: who.thread(),
            pc: who.pc,
            bytes: i64::from(bytes),
            to,
            from,
            rank,
            landed: false,
        });
    }

    /// A bulk copy out of shared memory; `updates`: it updates its destination, element by element.
    pub(crate) fn bulk_store(
        &mut self,
        machine: &Machine<'_>,
        who: Who,
        from: BulkEnds,
        to: BulkEnds,
        group: u32,
        updates: bool,
    ) {
        let me = Access::in_flight(who.thread(), who.pc, Strength::Proxy);
        self.note_ends(machine, who, &from, false, me);
        if updates {
            // Relaxed atomic updates, of the device's scope: they race with nothing that is as strong.
            let now = self.clocks.now(who.thread());
            let me = Access::new(who.thread(), now, who.pc, Strength::Device);
            self.note_ends(machine, who, &to, true, me);
        } else {
            self.note_ends(machine, who, &to, true, me);
        }
        self.bulk_stores.push(BulkStore {
            thread: who.thread(),
            pc: who.pc,
            group,
            from,
            to,
            read: false,
        });
    }

    /// A phase has ended: the loads have landed whose bytes it expected.
    pub(super) fn bulk_landed(&mut self, mbarrier: Key, who: usize, moment: u32, expected: i64) {
        let mut left = expected;
        for at in 0..self.bulk_loads.len() {
            let load = &mut self.bulk_loads[at];
            if load.mbarrier != mbarrier || load.landed || load.bytes > left {
                continue;
            }
            left -= load.bytes;
            load.landed = true;
            let flight = Access::in_flight(load.thread, load.pc, Strength::Proxy);
            let ends = [std::mem::take(&mut load.to), std::mem::take(&mut load.from)];
            if let Some(proxies) = &mut self.proxies {
                proxies.set_issuer(who, load.thread);
            }
            for ends in ends {
                self.land_ends(&ends, flight, flight.landed(who, moment));
            }
        }
    }

    /// Somebody has seen the end of a phase.
    pub(super) fn bulk_seen(&mut self, mbarrier: Key) {
        self.bulk_loads
            .retain(|load| !load.landed || load.mbarrier != mbarrier);
    }

    /// A thread waits for its groups before `done`: until their sources have been read, or (`read` false) for all.
    pub(crate) fn bulk_wait(&mut self, thread: usize, done: u32, read: bool) {
        let mut stores = std::mem::take(&mut self.bulk_stores);
        stores.retain_mut(|store| {
            if store.thread != thread || store.group >= done {
                return true;
            }
            let flight = Access::in_flight(thread, store.pc, Strength::Proxy);
            let landed = flight.landed(thread, self.clocks.now(thread));
            if !store.read {
                self.land_ends(&store.from, flight, landed);
                store.read = true;
            }
            if !read {
                self.land_ends(&store.to, flight, landed);
            }
            read
        });
        self.bulk_stores = stores;
        // What the thread does from now on is not what it did before the wait.
        self.clocks.advance(thread);
    }

    /// Lanes end whose stores may still read shared memory.
    pub(super) fn exit_with_stores(&mut self, machine: &Machine<'_>, who: Who, lanes: u32) {
        let mine = |store: &&BulkStore| {
            let (warp, lane) = (store.thread / 32, store.thread % 32);
            !store.read && warp == who.warp as usize && lanes >> lane & 1 != 0
        };
        let left: Vec<(usize, u32)> = self
            .bulk_stores
            .iter()
            .filter(mine)
            .map(|store| (store.thread, store.pc))
            .collect();
        for (thread, pc) in left {
            let lane = (thread % 32) as u32;
            let message =
                "the thread ends, but has not waited until its bulk store has read shared memory";
            self.exits_in_flight(machine, Who { lane, ..who }, thread, pc, message);
        }
    }

    /// A block ends into whose shared memory loads may still come.
    pub(super) fn exit_with_loads(&mut self, machine: &Machine<'_>, who: Who, rank: u32) {
        let left: Vec<(usize, u32)> = self
            .bulk_loads
            .iter()
            .filter(|load| load.rank == rank)
            .map(|load| (load.thread, load.pc))
            .collect();
        self.bulk_loads.retain(|load| load.rank != rank);
        for (thread, pc) in left {
            let message =
                "the block ends, but nobody has waited for a bulk load into its shared memory";
            self.exits_in_flight(machine, who, thread, pc, message);
        }
    }

    pub(super) fn exits_in_flight(
        &mut self,
        machine: &Machine<'_>,
        who: Who,
        thread: usize,
        pc: u32,
        message: &str,
    ) {
        let other = Conflict {
            other: Access::in_flight(thread, pc, Strength::Proxy),
            wrote: true,
            block: None,
        };
        let message = || message.to_owned();
        let other = Some((other, "started"));
        self.add_pair(machine, Rule::ExitInFlight, who, other, message);
    }
}

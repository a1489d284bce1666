//! What orders accesses: barriers, mbarriers, fences, releases and acquires.

use std::collections::HashMap;

use super::clock::Knowledge;
use super::conflict::Ordering;
use super::proxy::Proxies;
use super::shadow::{Access, Strength};
use super::{Rule, Sanitizer, key};
use crate::exec::{Machine, Place, Who};
use crate::program::Order;

/// What arrivals have released: in this round, and in the one before.
#[derive(Default)]
pub(super) struct Meeting {
    arriving: Knowledge,
    completed: Knowledge,
}

/// An mbarrier.
#[derive(Default)]
pub(super) struct Mbarrier {
    meeting: Meeting,
    /// Who stands for the bytes that it counts.
    counter: usize,
    /// The access that made it.
    pub(super) init: Option<Access>,
    /// Phases that have ended.
    phases: u64,
    /// Bytes that the running phase expects.
    expected: i64,
    /// The last phase, from 1, whose end each thread has seen; 0 stands for the time before the first.
    seen: HashMap<usize, u64>,
}

/// What a strong store has released at an address.
pub(super) struct Release {
    block: u32,
    /// For threads of the same block, and for others.
    within: Knowledge,
    beyond: Knowledge,
}

/// One of a block's sixteen barriers.
#[derive(Default, Clone)]
pub(super) struct Named {
    arriving: Knowledge,
    waiting: Vec<usize>,
}

impl Sanitizer {
    /// Threads arrive at a barrier, and wait there or not.
    pub(crate) fn arrive(&mut self, rank: u32, barrier: u32, warp: u32, lanes: u32, waits: bool) {
        let named = &mut self.barriers[rank as usize][barrier as usize & 15];
        for lane in (0..32).filter(|lane| lanes >> lane & 1 != 0) {
            let thread = (warp * 32 + lane) as usize;
            self.clocks.release(thread, &mut named.arriving);
            if waits {
                named.waiting.push(thread);
            }
        }
    }

    /// All that a barrier waited for have arrived.
    pub(crate) fn complete(&mut self, rank: u32, barrier: u32) {
        let named = &mut self.barriers[rank as usize][barrier as usize & 15];
        for thread in named.waiting.drain(..) {
            self.clocks.acquire(thread, &named.arriving);
        }
        named.arriving = Knowledge::default();
    }

    /// Threads arrive at the cluster's barrier.
    pub(crate) fn cluster_arrive(&mut self, warp: u32, lanes: u32, release: bool) {
        for lane in (0..32).filter(|lane| lanes >> lane & 1 != 0) {
            let thread = (warp * 32 + lane) as usize;
            match &self.fenced[thread][1] {
                _ if release => self.clocks.release(thread, &mut self.cluster.arriving),
                Some(fenced) => self.cluster.arriving.join(fenced),
                None => {}
            }
        }
    }

    /// All threads have arrived there.
    pub(crate) fn cluster_complete(&mut self) {
        self.cluster.completed = std::mem::take(&mut self.cluster.arriving);
    }

    /// Threads go on from there.
    pub(crate) fn cluster_wait(&mut self, warp: u32, lanes: u32) {
        for lane in (0..32).filter(|lane| lanes >> lane & 1 != 0) {
            let thread = (warp * 32 + lane) as usize;
            self.clocks.acquire(thread, &self.cluster.completed);
        }
    }

    /// The last thread of a block ends: its shared memory is gone.
    pub(super) fn block_exits(&mut self, machine: &Machine<'_>, who: Who) {
        let rank = machine.rank_of(who.thread());
        self.exit_with_loads(machine, who, rank);
        if machine.cluster_size() == 1 {
            return;
        }
        let each = machine.warps() as usize * 32;
        let threads = rank as usize * each..(rank as usize + 1) * each;
        let row = self.clocks.joined(threads);
        let stride = machine.shared_stride();
        let before = Ordering {
            clocks: &self.clocks,
            thread: who.thread(),
            row: &row,
            block: self.block,
            proxies: self.proxies.as_ref(),
            by_proxy: None,
        };
        let now = self.clocks.now(who.thread());
        let me = Access::new(who.thread(), now, who.pc, Strength::Weak);
        let found = self
            .shared
            .access(rank as usize * stride, stride, me, true, &before);
        if let Some((at, conflict)) = found {
            let what = if conflict.wrote { "written" } else { "read" };
            let (_, address) = machine.address_of(Place::Shared(at));
            let message = || {
                format!(
                    "the block ends, and nothing orders that after an access of another block to its shared memory, byte {address:#x}"
                )
            };
            self.add_pair(
                machine,
                Rule::UseAfterFree,
                who,
                Some((conflict, what)),
                message,
            );
        }
    }

    /// `bar.warp.sync`.
    pub(crate) fn warp_sync(&mut self, warp: u32, lanes: u32) {
        self.clocks.meet(warp as usize * 32, lanes);
    }

    /// An arrival at an mbarrier.
    pub(crate) fn mbarrier_arrives(&mut self, who: Who, place: Place, relaxed: bool) {
        let thread = who.thread();
        let Some(object) = key(place).and_then(|key| self.mbarriers.get_mut(&key)) else {
            return;
        };
        let arriving = &mut object.meeting.arriving;
        match &self.fenced[thread][0] {
            _ if !relaxed => self.clocks.release(thread, arriving),
            Some(fenced) => arriving.join(fenced),
            None => {}
        }
    }

    /// Bytes that an mbarrier's phase waits for.
    pub(crate) fn mbarrier_expects(&mut self, place: Place, bytes: i64) {
        if let Some(object) = key(place).and_then(|key| self.mbarriers.get_mut(&key)) {
            object.expected += bytes;
        }
    }

    /// An arrival that comes when the thread's copies have landed. For the thread itself that is no wait.
    pub(crate) fn mbarrier_copies(&mut self, who: Who, place: Place) {
        let Some(key) = key(place) else { return };
        self.copies_arrive(who, key);
        self.mbarrier_arrives(who, place, false);
    }

    /// All that an mbarrier's phase waits for is there, the copies that lead to arrivals among it.
    pub(crate) fn mbarrier_ends(&mut self, place: Place) {
        let Some(key) = key(place) else { return };
        if let Some(object) = self.mbarriers.get_mut(&key) {
            object.meeting.completed = std::mem::take(&mut object.meeting.arriving);
            object.phases += 1;
            let expected = std::mem::take(&mut object.expected);
            if let Some(proxies) = &mut self.proxies {
                // Who acquires the phase comes after what has landed.
                let (counter, width) = (object.counter, self.clocks.width());
                let moment = proxies.advance(counter);
                object.meeting.completed.add(counter, moment, width);
                self.bulk_landed(key, counter, moment, expected);
            }
        }
        self.copies_arrived(key);
    }

    /// A wait that found its phase ended.
    pub(crate) fn mbarrier_passed(&mut self, who: Who, place: Place, relaxed: bool) {
        let thread = who.thread();
        let Some(key) = key(place) else { return };
        let Some(object) = self.mbarriers.get(&key) else {
            return;
        };
        if relaxed {
            self.unfenced[thread][0].join(&object.meeting.completed);
        } else {
            self.clocks.acquire(thread, &object.meeting.completed);
        }
        self.bulk_seen(key);
    }

    /// A thread waits for the phase of a parity, and finds it ended or not: a barrier may have gone on without it.
    pub(crate) fn mbarrier_phase(
        &mut self,
        machine: &Machine<'_>,
        who: Who,
        place: Place,
        parity: bool,
        passed: bool,
    ) {
        let object = key(place).and_then(|key| self.mbarriers.get_mut(&key));
        let Some(object) = object else { return };
        let phases = object.phases;
        let seen = object.seen.get(&who.thread()).copied();
        if passed {
            object.seen.insert(who.thread(), phases);
        }
        // It waits for the phase after the one that it saw last; phase n, from 1, has the parity of n - 1.
        let Some(next) = seen.map(|seen| seen + 1) else {
            return;
        };
        if (next % 2 == 1) == parity || phases <= next {
            return;
        }
        let end = if passed {
            "its wait passes for a later one"
        } else {
            "its wait goes on to a later one"
        };
        let missed = phases - next;
        let (_, address) = machine.address_of(place);
        let message = || {
            format!(
                "phase {next} of the mbarrier at {address:#x} has ended, and {missed} more, before the thread saw it: {end}"
            )
        };
        self.add(machine, Rule::MbarrierPhase, who, message);
    }

    pub(crate) fn mbarrier_init(&mut self, machine: &Machine<'_>, who: Who, place: Place) {
        let Some(key) = key(place) else { return };
        let now = self.clocks.now(who.thread());
        let object = Mbarrier {
            counter: self.proxies.as_mut().map_or(0, Proxies::new_mbarrier),
            init: Some(Access::new(who.thread(), now, who.pc, Strength::Weak)),
            ..Mbarrier::default()
        };
        if self.mbarriers.insert(key, object).is_some() {
            let message = || "an mbarrier is made where one is, without `inval`".to_owned();
            self.add(machine, Rule::Mbarrier, who, message);
        }
    }

    pub(crate) fn mbarrier_inval(&mut self, place: Place) {
        if let Some(key) = key(place) {
            self.mbarriers.remove(&key);
        }
    }

    /// The order that a strong access makes. (PTX ISA 8.9: release and acquire patterns, with fences or without)
    pub(crate) fn synchronize(
        &mut self,
        who: Who,
        place: Place,
        order: Order,
        [reads, writes]: [bool; 2],
    ) {
        let Some(key) = key(place) else { return };
        let thread = who.thread();
        if reads && let Some(release) = self.releases.get(&key) {
            let own = release.block == self.block;
            let knowledge = match own {
                true => release.within.clone(),
                false if order.beyond_block => release.beyond.of_block(release.block),
                false => Knowledge::default(),
            };
            if order.acquire {
                self.clocks.acquire(thread, &knowledge);
            }
            self.unfenced[thread][usize::from(!own)].join(&knowledge);
        }
        if !writes {
            return;
        }
        let mut within = Knowledge::default();
        if order.release {
            self.clocks.release(thread, &mut within);
        }
        let mut beyond = within.clone();
        // A fence before it releases too, as far as the narrower of both scopes.
        let [of_any, of_device] = &self.fenced[thread];
        for fenced in [of_any, of_device].into_iter().flatten() {
            within.join(fenced);
        }
        if let Some(fenced) = of_device {
            beyond.join(fenced);
        }
        // An atomic update goes on with the release that it reads.
        if reads && let Some(last) = self.releases.get(&key) {
            if last.block == self.block {
                within.join(&last.within);
                beyond.join(&last.beyond);
            } else if order.beyond_block {
                let foreign = last.beyond.of_block(last.block);
                within.join(&foreign);
                beyond.join(&foreign);
            }
        }
        if !order.beyond_block {
            beyond = Knowledge::default();
        }
        // Mostly an update releases nothing, and memory that is updated may be large.
        if within.is_empty() {
            self.releases.remove(&key);
            return;
        }
        let release = Release {
            block: self.block,
            within,
            beyond,
        };
        self.releases.insert(key, release);
    }

    /// `fence`.
    pub(crate) fn fence(&mut self, warp: u32, lanes: u32, beyond_block: bool) {
        for lane in (0..32).filter(|lane| lanes >> lane & 1 != 0) {
            let thread = (warp * 32 + lane) as usize;
            let [own, foreign] = &self.unfenced[thread];
            self.clocks.acquire(thread, own);
            if beyond_block {
                self.clocks.acquire(thread, foreign);
            }
            let mut knowledge = Knowledge::default();
            self.clocks.release(thread, &mut knowledge);
            // A fence for the device is one for the block.
            if beyond_block {
                self.fenced[thread][1] = Some(knowledge.clone());
            }
            self.fenced[thread][0] = Some(knowledge);
        }
    }
}

//! Asynchronous copies between their start and their wait.

use super::clock::Clocks;
use super::shadow::{Access, Conflict, Strength};
use super::{Key, Rule, Sanitizer};
use crate::exec::{Machine, Place, Who};
use crate::memory::ones;

/// Most flights of a warp: what comes with more lands, as it does in the machine.
const MOST_FLIGHTS: usize = 4096;

/// An asynchronous copy that its thread has not waited for, in some lanes of a warp.
pub(super) struct Flight {
    lanes: u32,
    pc: u32,
    /// Which of the lane's groups it belongs to.
    group: [u32; 32],
    bytes: usize,
    dst: Vec<(u32, Place)>,
    /// Where bytes are read, and how many.
    src: Vec<(u32, Place, usize)>,
    /// mbarriers at which a lane arrives when the copy has landed, and the lane's moment then.
    arrivals: Vec<(Key, u32, u32)>,
}

impl Sanitizer {
    /// A lane of a `cp.async`: from now on its destination and its source are in use.
    pub(crate) fn copy_starts(
        &mut self,
        machine: &Machine<'_>,
        who: Who,
        dst: Place,
        bytes: usize,
        src: Option<(Place, usize)>,
    ) {
        let me = Access::in_flight(who.thread(), who.pc, Strength::Async);
        let mut written = 0;
        if let Some((src, len)) = src {
            self.note(machine, who, src, len, false, me);
            written = self.written(machine, who.warp, src, len);
        }
        // Bytes beyond the source's are zero.
        let read = src.map_or(0, |(_, len)| len);
        let zeros = if read >= bytes {
            0
        } else {
            ones(bytes) & !(((1u64 << read) - 1) as u32)
        };
        self.note(machine, who, dst, bytes, true, me);
        self.set_written(machine, who.warp, dst, bytes, written | zeros);
    }

    /// The whole `cp.async` of a warp.
    pub(crate) fn copies_start(
        &mut self,
        who: Who,
        lanes: u32,
        committed: &[u32; 32],
        bytes: usize,
        dst: Vec<(u32, Place)>,
        src: Vec<(u32, Place, usize)>,
    ) {
        if self.flights[who.warp as usize].len() >= MOST_FLIGHTS {
            self.wait(who.warp, u32::MAX, committed, None);
        }
        self.flights[who.warp as usize].push(Flight {
            lanes,
            pc: who.pc,
            group: *committed,
            bytes,
            dst,
            src,
            arrivals: Vec::new(),
        });
    }

    /// A wait: `allowed` groups may be left, or nothing (`None`).
    pub(crate) fn wait(
        &mut self,
        warp: u32,
        lanes: u32,
        committed: &[u32; 32],
        allowed: Option<u32>,
    ) {
        let mut flights = std::mem::take(&mut self.flights[warp as usize]);
        for flight in &mut flights {
            let done = (0..32).filter(|&lane| {
                let covered = allowed.is_none_or(|allowed| {
                    flight.group[lane] < committed[lane].saturating_sub(allowed)
                });
                covered && (lanes & flight.lanes) >> lane & 1 != 0
            });
            let done = done.fold(0u32, |mask, lane| mask | 1 << lane);
            if done != 0 {
                self.land(warp, flight, done, |clocks, thread, _| clocks.now(thread));
            }
        }
        flights.retain(|flight| flight.lanes != 0);
        self.flights[warp as usize] = flights;
    }

    /// A thread arrives at an mbarrier when its copies have landed.
    pub(super) fn copies_arrive(&mut self, who: Who, at: Key) {
        let now = self.clocks.now(who.thread());
        for flight in &mut self.flights[who.warp as usize] {
            if flight.lanes >> who.lane & 1 != 0 {
                flight.arrivals.push((at, who.lane, now));
            }
        }
    }

    /// All arrivals have come: the copies that led to them have landed.
    pub(super) fn copies_arrived(&mut self, at: Key) {
        for warp in 0..self.flights.len() {
            let mut flights = std::mem::take(&mut self.flights[warp]);
            for flight in &mut flights {
                let mut clocks = [0; 32];
                let mut done = 0;
                flight.arrivals.retain(|&(of, lane, clock)| {
                    if of == at && flight.lanes >> lane & 1 != 0 {
                        done |= 1u32 << lane;
                        clocks[lane as usize] = clock;
                    }
                    of != at
                });
                self.land(warp as u32, flight, done, |_, _, lane| {
                    clocks[lane as usize]
                });
            }
            flights.retain(|flight| flight.lanes != 0);
            self.flights[warp] = flights;
        }
    }

    /// A copy has landed in some lanes, at a moment of each.
    fn land(
        &mut self,
        warp: u32,
        flight: &mut Flight,
        done: u32,
        moment: impl Fn(&Clocks, usize, u32) -> u32,
    ) {
        let dst = flight.dst.iter().map(|&(l, p)| (l, p, flight.bytes));
        for (lane, place, len) in dst.chain(flight.src.iter().copied()) {
            if done >> lane & 1 == 0 {
                continue;
            }
            let thread = (warp * 32 + lane) as usize;
            let flying = Access::in_flight(thread, flight.pc, Strength::Async);
            let landed = flying.landed(thread, moment(&self.clocks, thread, lane));
            match place {
                Place::Shared(at) => self.shared.land(at, len, flying, landed),
                Place::Global(a, at) => self.global.land(a, at, len, flying, landed),
                Place::Local(_) | Place::Param(_) => {}
            }
        }
        flight.lanes &= !done;
    }

    /// Lanes end; `last`: no lane of their block is left, or of the warp.
    pub(crate) fn exit(
        &mut self,
        machine: &Machine<'_>,
        who: Who,
        lanes: u32,
        [last_of_warp, last_of_block]: [bool; 2],
    ) {
        self.exit_with_stores(machine, who, lanes);
        if last_of_warp {
            self.exit_with_products(machine, who);
        }
        if last_of_block {
            self.block_exits(machine, who);
        }
        // An mbarrier may wait in the thread's place.
        let waits = |f: &Flight| {
            f.arrivals
                .iter()
                .fold(0, |m, (_, lane, _)| m | 1u32 << lane)
        };
        let flights = &self.flights[who.warp as usize];
        let left: Vec<(u32, u32)> = flights
            .iter()
            .map(|f| (f.pc, f.lanes & lanes & !waits(f)))
            .filter(|&(_, lanes)| lanes != 0)
            .collect();
        for (pc, lanes) in left {
            let lane = lanes.trailing_zeros();
            let (line, instruction) = machine.instruction(pc);
            let exiting = Who { lane, ..who };
            let copy = Conflict {
                other: Access::in_flight(exiting.thread(), pc, Strength::Async),
                wrote: true,
                block: None,
            };
            let message = || {
                format!(
                    "the thread ends, but has not waited for its copy of line {line}: {instruction}"
                )
            };
            self.add_pair(
                machine,
                Rule::ExitInFlight,
                exiting,
                Some((copy, "started")),
                message,
            );
        }
    }
}

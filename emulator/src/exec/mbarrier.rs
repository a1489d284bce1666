//! mbarrier objects.
//!
//! A wait that finds its phase running says so at once the first time, as it may: code that takes that for an end goes
//! wrong here. The next one suspends its lanes, as hardware does for a while. They try again when a phase of any mbarrier
//! has ended, and are told "not yet" when nothing in the cluster can move: see `stall`.

use super::memory::{Intent, Place, lanes};
use super::warp::{Flow, State, Warp};
use super::{Cluster, Trouble, trouble};
use crate::error::{FaultKind, Space};
use crate::program::{Mbarrier, MbarrierOp, Op, Program, WARP, Wide};

impl Cluster<'_, '_> {
    /// The object at a place in shared memory.
    pub(super) fn object(&self, at: usize) -> Object {
        let mut word = [0; 8];
        word.copy_from_slice(&self.shared[at..at + 8]);
        Object::unpack(u64::from_le_bytes(word))
    }

    /// Puts an object there; true if that ends its phase.
    pub(super) fn put_object(&mut self, at: usize, mut object: Object) -> bool {
        let ends = object.complete();
        self.phases += u64::from(ends);
        self.shared[at..at + 8].copy_from_slice(&object.pack().to_le_bytes());
        ends
    }

    /// Bytes of a copy have arrived; an error says what is wrong with the object.
    pub(super) fn complete_tx(&mut self, at: usize, bytes: u32) -> Result<(), String> {
        let mut object = self.object(at);
        object.check()?;
        object.add_tx(-i64::from(bytes))?;
        if self.put_object(at, object)
            && let Some(watch) = &mut self.watch
        {
            watch.mbarrier_ends(Place::Shared(at));
        }
        Ok(())
    }
}

impl Warp {
    /// The mbarrier instructions: lane after lane.
    pub(super) fn mbarrier(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        op: &Mbarrier,
        active: u32,
    ) -> Result<Flow, Trouble> {
        let Some(address) = op.address else {
            self.pending_count(cluster, op, active);
            return Ok(Flow::Next);
        };
        let addresses = self.addresses(address);
        if op.waits() {
            return self.mbarrier_wait(cluster, op, &addresses, active);
        }
        if let MbarrierOp::CopyArrive(_) = op.op {
            // The arrival happens when the thread's earlier copies have: here, now.
            self.all_copies(cluster, active)?;
        }
        for lane in lanes(active) {
            let address = addresses[lane as usize];
            let at = self.mbarrier_place(cluster, op.space, address, lane)?;
            let operand = op.operand.map(|src| self.regs.lane(src, lane));
            let before = cluster.object(at);
            let object = apply(op.op, before, operand)
                .or_else(|reason| trouble(Some(lane), FaultKind::Mbarrier { address, reason }))?;
            let ends = match object {
                Some(object) => cluster.put_object(at, object),
                None => {
                    cluster.shared[at..at + 8].fill(0xff);
                    false
                }
            };
            self.watched(cluster, |warp, watch, cluster| {
                let place = Place::Shared(at);
                warp.observe_mbarrier(watch, cluster.machine, op, lane, place, ends);
            });
            if let Some(dst) = op.dst {
                self.regs.set_lane(dst, lane, before.pack());
            }
        }
        Ok(Flow::Next)
    }

    /// `test_wait` and `try_wait`.
    fn mbarrier_wait(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        op: &Mbarrier,
        addresses: &Wide,
        active: u32,
    ) -> Result<Flow, Trouble> {
        let (mut passed, mut places) = (0, [0; WARP]);
        for lane in lanes(active) {
            let address = addresses[lane as usize];
            let at = self.mbarrier_place(cluster, op.space, address, lane)?;
            if at / cluster.machine.shared_stride() != cluster.rank as usize {
                let reason = "a wait for an mbarrier of another block".to_owned();
                return trouble(Some(lane), FaultKind::Mbarrier { address, reason });
            }
            places[lane as usize] = at;
            let object = cluster.object(at);
            if let Err(reason) = object.check() {
                return trouble(Some(lane), FaultKind::Mbarrier { address, reason });
            }
            passed |= u32::from(object.phase != self.awaited(op, lane)) << lane;
        }
        let expired = std::mem::take(&mut self.expired);
        let group = &mut self.groups[self.current];
        let told = std::mem::replace(&mut group.told, cluster.phases);
        if passed != active && !expired && told == cluster.phases {
            return Ok(Flow::Wait(State::Mbarrier {
                phases: cluster.phases,
            }));
        }
        self.watched(cluster, |warp, watch, cluster| {
            for lane in lanes(active) {
                let place = Place::Shared(places[lane as usize]);
                let passed = passed >> lane & 1 != 0;
                warp.observe_wait(watch, cluster.machine, op, lane, place, passed);
            }
        });
        if let Some(dst) = op.dst {
            self.regs.put_pred(Some(dst.slot), active, passed);
        }
        Ok(if passed == active {
            Flow::Next
        } else {
            Flow::Yield
        })
    }

    /// The parity of the phase that a lane waits for.
    fn awaited(&self, op: &Mbarrier, lane: u32) -> bool {
        let operand = op.operand.map_or(0, |src| self.regs.lane(src, lane));
        match op.op {
            // A state is that of its phase.
            MbarrierOp::TestWait | MbarrierOp::TryWait => Object::unpack(operand).phase,
            _ => operand & 1 != 0,
        }
    }

    /// Where an object is, in the cluster's shared memory.
    pub(super) fn mbarrier_place(
        &mut self,
        cluster: &Cluster<'_, '_>,
        space: Space,
        address: u64,
        lane: u32,
    ) -> Result<usize, Trouble> {
        match self.place(cluster, space, address, 8, Intent::Write, lane)? {
            Place::Shared(at) => Ok(at),
            _ => {
                let reason = "it is not in shared memory".to_owned();
                trouble(Some(lane), FaultKind::Mbarrier { address, reason })
            }
        }
    }

    /// `mbarrier.pending_count`: the state is the operand.
    fn pending_count(&mut self, cluster: &mut Cluster<'_, '_>, op: &Mbarrier, active: u32) {
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
    }

    /// The phases that the lanes of a group wait for at an instruction, those that have ended left out.
    pub(super) fn awaited_objects(
        &self,
        cluster: &Cluster<'_, '_>,
        program: &Program,
        pc: u32,
        mask: u32,
    ) -> Vec<Awaited> {
        let mut found: Vec<Awaited> = Vec::new();
        let Some(inst) = program.code.get(pc as usize) else {
            return found;
        };
        let Op::Mbarrier(op) = &inst.op else {
            return found;
        };
        let Some(address) = op.address else {
            return found;
        };
        let addresses = self.addresses(address);
        for lane in lanes(mask & self.regs.pred(inst.guard)) {
            // The wait has found the object in its own block.
            let address = addresses[lane as usize];
            let offset = (address & super::RANK_MASK).wrapping_sub(super::SHARED_BASE) as usize;
            let at = cluster.offset + offset;
            if at + 8 > cluster.shared.len() {
                continue;
            }
            let parity = self.awaited(op, lane);
            if cluster.object(at).phase != parity {
                continue;
            }
            let awaited = Awaited {
                address: address & 0xffff_ffff,
                at,
                parity,
            };
            if !found.contains(&awaited) {
                found.push(awaited);
            }
        }
        found
    }
}

/// A phase that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Awaited {
    /// Shared address of the object, and its place.
    address: u64,
    pub(super) at: usize,
    parity: bool,
}

impl Awaited {
    /// What it is that does not come.
    pub(super) fn describe(self, cluster: &Cluster<'_, '_>) -> String {
        let Object { pending, tx, .. } = cluster.object(self.at);
        let (address, parity) = (self.address, u32::from(self.parity));
        let arrivals = match pending {
            0 => "all have arrived".to_owned(),
            1 => "1 arrival is missing".to_owned(),
            n => format!("{n} arrivals are missing"),
        };
        let bytes = match tx {
            0 => String::new(),
            1.. => {
                let flying = cluster.bulk.bytes_for(self.at);
                format!(", of the bytes expected {tx} are missing, {flying} are on their way")
            }
            _ => format!(", {} bytes more than expected have come", -tx),
        };
        format!(
            "waits for the phase of parity {parity} of the mbarrier at {address:#x}: {arrivals}{bytes}"
        )
    }
}

/// What an instruction that is no wait makes of an object; `None`: no object.
fn apply(op: MbarrierOp, before: Object, operand: Option<u64>) -> Result<Option<Object>, String> {
    let mut object = before;
    let arrivals = operand.unwrap_or(1).min(u64::from(u32::MAX)) as u32;
    let tx = i64::from(operand.unwrap_or(0) as u32 as i32);
    if op == MbarrierOp::Init {
        let count = operand.unwrap_or(0);
        if count == 0 || count > u64::from(Object::MOST) {
            return Err(format!("the count {count} is not in 1..={}", Object::MOST));
        }
        return Ok(Some(Object {
            phase: false,
            pending: count as u32,
            expected: count as u32,
            tx: 0,
        }));
    }
    before.check()?;
    match op {
        MbarrierOp::Inval => return Ok(None),
        MbarrierOp::Arrive => object.arrive(arrivals)?,
        MbarrierOp::ArriveNoComplete => {
            object.arrive(arrivals)?;
            if object.ends() {
                return Err("`.noComplete`, but the arrival ends the phase".to_owned());
            }
        }
        MbarrierOp::ArriveDrop => object.arrive_drop(arrivals)?,
        MbarrierOp::ExpectTx => object.add_tx(tx)?,
        MbarrierOp::ArriveExpectTx => {
            object.add_tx(tx)?;
            object.arrive(1)?;
        }
        MbarrierOp::CompleteTx => object.add_tx(-tx)?,
        // Without .noinc the pending count rises by one first, so the net effect is none.
        MbarrierOp::CopyArrive(true) => object.arrive(1)?,
        _ => {}
    }
    Ok(Some(object))
}

/// An mbarrier object: 1 bit of phase, 20 of pending arrivals, 20 of expected arrivals, 23 of transaction count, in
/// that order from the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Object {
    /// Parity of the phase that runs.
    pub(super) phase: bool,
    /// Arrivals that it waits for.
    pub(super) pending: u32,
    /// Arrivals that the next phase will wait for.
    expected: u32,
    /// Bytes that it waits for.
    pub(super) tx: i32,
}

impl Object {
    /// Largest count.
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

    /// Whether it is one. What was never written has all bits set, and no object has such a transaction count.
    pub(super) fn check(self) -> Result<(), String> {
        if self.expected == 0 && self.pending == 0 || self.pack() == u64::MAX {
            return Err("it is not initialised".to_owned());
        }
        Ok(())
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

    pub(super) fn add_tx(&mut self, bytes: i64) -> Result<(), String> {
        let tx = i64::from(self.tx) + bytes;
        if tx.unsigned_abs() > u64::from(Self::MOST) {
            return Err(format!("the transaction count {tx} is out of range"));
        }
        self.tx = tx as i32;
        Ok(())
    }

    fn ends(self) -> bool {
        self.pending == 0 && self.tx == 0
    }

    /// Ends the phase if all is there; true if so.
    fn complete(&mut self) -> bool {
        let ends = self.ends();
        if ends {
            self.phase = !self.phase;
            self.pending = self.expected;
        }
        ends
    }
}

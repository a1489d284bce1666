//! Bulk copies: `cp.async.bulk` and its kin, with tensor maps or without.
//!
//! Addresses are checked when a copy is issued. When its bytes move, [`AsyncTiming`] says:
//!
//! - *Early*: when it is issued.
//! - *Late*: loads when nothing in the cluster can move, some lanes wait for an mbarrier whose arrivals are all there, and
//!   its missing bytes are this copy's; stores at a wait: at one for `.read` the source is read, at one without the
//!   destination is written. What was read is written at the end at the latest; what was not, never is.
//! - *Seeded*: at some moment between.

use std::collections::HashMap;
use std::rc::Rc;

use super::memory::{Intent, Place, lanes};
use super::tile::{Start, Tile};
use super::warp::Warp;
use super::{Cluster, RANK_SHIFT, SHARED_BASE, Trouble, Who, at, trouble};
use crate::device::AsyncTiming;
use crate::error::{FaultKind, Space};
use crate::program::{AtomicFn, Bulk, Direction, Extent, Op};
use crate::tensor_map::{TENSOR_MAP_ALIGN, TENSOR_MAP_BYTES, TensorMap};

/// Most copies of a cluster that wait to happen. A kernel that never waits must not fill the host's memory.
const MOST_PENDING: usize = 4096;

/// A copy into shared memory that has not happened.
pub(super) struct Load {
    pub(super) who: Who,
    pub(super) tile: Rc<Tile>,
    /// The source, if it is in shared memory too.
    pub(super) from: Option<Start>,
    pub(super) to: Start,
    /// Place of the mbarrier that counts the bytes.
    pub(super) mbarrier: usize,
}

/// A copy out of shared memory that has not happened.
pub(super) struct Store {
    pub(super) who: Who,
    pub(super) tile: Rc<Tile>,
    pub(super) from: Start,
    /// Which of its thread's groups it belongs to.
    pub(super) group: u32,
    /// What was read of the source.
    bytes: Option<Vec<u8>>,
}

/// The bulk copies of a cluster that have not happened, oldest first.
#[derive(Default)]
pub(super) struct BulkCopies {
    loads: Vec<Load>,
    stores: Vec<Store>,
    /// Groups that each thread has committed.
    committed: HashMap<usize, u32>,
    /// Copies that were issued.
    pub(super) issued: u64,
}

impl BulkCopies {
    /// Bytes that are on their way to an mbarrier.
    pub(super) fn bytes_for(&self, mbarrier: usize) -> u32 {
        let loads = self.loads.iter().filter(|l| l.mbarrier == mbarrier);
        loads.map(|l| l.tile.bytes()).sum()
    }

    fn committed(&self, thread: usize) -> u32 {
        self.committed.get(&thread).copied().unwrap_or(0)
    }
}

/// A fault of a copy that happens after its instruction: who issued it, and what.
pub(super) type LateTrouble = (Who, FaultKind);

impl Cluster<'_, '_> {
    /// Lets a load happen.
    fn land(&mut self, load: &Load) -> Result<(), LateTrouble> {
        match load.from {
            None => load.tile.load(self, load.to),
            Some(from) => {
                let stride = self.machine.shared_stride();
                let (from, to) = (from.place(stride, from.address), load.to);
                let bytes = load.tile.bytes() as usize;
                self.shared
                    .copy_within(from..from + bytes, to.place(stride, to.address));
            }
        }
        self.complete_tx(load.mbarrier, load.tile.bytes())
            .map_err(|reason| {
                let at = load.mbarrier;
                let (_, address) = self.machine.address_of(Place::Shared(at));
                (load.who, FaultKind::Mbarrier { address, reason })
            })
    }

    /// Reads a store's source.
    fn read_source(&self, store: &mut Store) {
        if store.bytes.is_none() {
            store.bytes = Some(store.tile.gather(self, store.from));
        }
    }

    /// Writes what a store has read.
    fn write_destination(&self, store: &Store) {
        let machine = self.machine;
        let Some(bytes) = &store.bytes else { return };
        let reduce = match machine
            .program
            .code
            .get(store.who.pc as usize)
            .map(|i| &i.op)
        {
            Some(Op::Bulk(op)) => update_of(op, &store.tile),
            _ => None,
        };
        store.tile.store(machine.memory, bytes, reduce);
    }

    /// Lets loads happen that count for the running phase of an mbarrier, until it ends. False if it does not wait for
    /// bytes alone.
    pub(super) fn land_for(&mut self, mbarrier: usize) -> Result<bool, LateTrouble> {
        let mut moved = false;
        loop {
            let object = self.object(mbarrier);
            let next = self.bulk.loads.iter().position(|l| l.mbarrier == mbarrier);
            let (0, 1.., Some(next)) = (object.pending, object.tx, next) else {
                return Ok(moved);
            };
            moved = true;
            let load = self.bulk.loads.remove(next);
            let phases = self.phases;
            self.land(&load)?;
            if self.phases != phases {
                return Ok(true);
            }
        }
    }

    /// With random timing: lets some of the pending copies happen.
    pub(super) fn some_bulk_copies(&mut self) -> Result<(), LateTrouble> {
        if !matches!(self.machine.timing, AsyncTiming::Seeded(_)) {
            return Ok(());
        }
        let mut at = 0;
        while at < self.bulk.loads.len() {
            if self.random().is_multiple_of(8) {
                let load = self.bulk.loads.remove(at);
                self.land(&load)?;
            } else {
                at += 1;
            }
        }
        let mut stores = std::mem::take(&mut self.bulk.stores);
        stores.retain_mut(|store| match self.random() % 8 {
            0 => {
                self.read_source(store);
                self.write_destination(store);
                false
            }
            1 => {
                self.read_source(store);
                true
            }
            _ => true,
        });
        self.bulk.stores = stores;
        Ok(())
    }

    /// All blocks have ended: what was read is written.
    pub(super) fn end_bulk_copies(&mut self) {
        for store in std::mem::take(&mut self.bulk.stores) {
            self.write_destination(&store);
        }
    }
}

/// How a bulk copy updates the elements of a tile, and their size.
fn update_of<'o>(op: &'o Bulk, tile: &Tile) -> Option<(&'o AtomicFn, u32)> {
    let of_type = |(ty, _): &&(_, AtomicFn)| tile.element().is_none_or(|element| element == *ty);
    let (ty, f) = op.reduce.iter().find(of_type)?;
    Some((f, ty.bytes()))
}

impl Warp {
    /// A bulk copy: one for each lane.
    pub(super) fn bulk(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        op: &Bulk,
        pc: u32,
        active: u32,
    ) -> Result<(), Trouble> {
        for lane in lanes(active) {
            let who = Who {
                warp: self.index,
                lane,
                pc,
            };
            let issued = self.issue(cluster, op, who)?;
            self.watched(cluster, |warp, watch, cluster| {
                warp.observe_bulk(watch, cluster, op, &issued);
            });
            cluster.bulk.issued += 1;
            let outcome = match issued {
                Issued::Loads(loads) => self.begin_loads(cluster, loads),
                Issued::Store(store) => {
                    self.begin_store(cluster, store);
                    Ok(())
                }
            };
            outcome.map_err(|(who, kind)| at(who.lane)(kind))?;
        }
        Ok(())
    }

    fn begin_loads(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        loads: Vec<Load>,
    ) -> Result<(), LateTrouble> {
        for load in loads {
            if cluster.machine.timing == AsyncTiming::Early {
                cluster.land(&load)?;
                continue;
            }
            if cluster.bulk.loads.len() >= MOST_PENDING {
                let oldest = cluster.bulk.loads.remove(0);
                cluster.land(&oldest)?;
            }
            cluster.bulk.loads.push(load);
        }
        Ok(())
    }

    fn begin_store(&mut self, cluster: &mut Cluster<'_, '_>, mut store: Store) {
        if cluster.machine.timing == AsyncTiming::Early {
            cluster.read_source(&mut store);
            cluster.write_destination(&store);
            return;
        }
        if cluster.bulk.stores.len() >= MOST_PENDING {
            let mut oldest = cluster.bulk.stores.remove(0);
            cluster.read_source(&mut oldest);
            cluster.write_destination(&oldest);
        }
        cluster.bulk.stores.push(store);
    }

    /// `cp.async.bulk.commit_group`.
    pub(super) fn bulk_commit(&mut self, cluster: &mut Cluster<'_, '_>, pc: u32, active: u32) {
        for lane in lanes(active) {
            let thread = self.thread(lane, pc).thread();
            *cluster.bulk.committed.entry(thread).or_default() += 1;
        }
    }

    /// `cp.async.bulk.wait_group`.
    pub(super) fn bulk_wait(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        allowed: u32,
        read: bool,
        active: u32,
    ) {
        for lane in lanes(active) {
            let thread = self.thread(lane, 0).thread();
            let done = cluster.bulk.committed(thread).saturating_sub(allowed);
            self.watched(cluster, |_, watch, _| watch.bulk_wait(thread, done, read));
            let mut stores = std::mem::take(&mut cluster.bulk.stores);
            stores.retain_mut(|store| {
                if store.who.thread() != thread || store.group >= done {
                    return true;
                }
                cluster.read_source(store);
                if !read {
                    cluster.write_destination(store);
                }
                read
            });
            cluster.bulk.stores = stores;
        }
    }

    fn thread(&self, lane: u32, pc: u32) -> Who {
        Who {
            warp: self.index,
            lane,
            pc,
        }
    }

    /// Checks all that a lane's copy touches.
    fn issue(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        op: &Bulk,
        who: Who,
    ) -> Result<Issued, Trouble> {
        let lane = who.lane;
        let fault = |kind: FaultKind| trouble(Some(lane), kind);
        let here = at(lane);
        let memory = cluster.machine.memory;
        let write = op.direction == Direction::Store;
        let tile = match &op.extent {
            Extent::Linear { global, bytes } => {
                let bytes = self.regs.lane(*bytes, lane) as u32;
                if !bytes.is_multiple_of(16) {
                    let reason = format!("the size {bytes} is not a multiple of 16");
                    return fault(FaultKind::BadOperand { reason });
                }
                self.fits(cluster, u64::from(bytes), lane)?;
                match global {
                    Some(address) => {
                        let address = self.address_of(*address, lane);
                        aligned(Space::Global, address, 16).map_err(&here)?;
                        Tile::linear(memory, address, bytes, write)
                    }
                    None => Ok(Tile::unmapped(bytes)),
                }
            }
            Extent::Tensor { map, coordinates } => {
                let map = self.tensor_map(cluster, self.address_of(*map, lane), lane)?;
                self.fits(cluster, map.moved_bytes(), lane)?;
                let coordinates: Vec<i32> = coordinates
                    .iter()
                    .map(|&c| self.regs.lane(c, lane) as u32 as i32)
                    .collect();
                Tile::boxed(memory, &map, &coordinates, write)
            }
        };
        let tile = tile.map_err(here)?;
        if !op.reduce.is_empty() && update_of(op, &tile).is_none() {
            let reason = format!("this update of elements of {:?}", tile.element());
            return fault(FaultKind::BadOperand { reason });
        }
        let align = match op.extent {
            Extent::Tensor { .. } => 128,
            Extent::Linear { .. } => 16,
        };
        let (space, address) = (op.shared.0, self.address_of(op.shared.1, lane));
        let shared = self.stretch(cluster, space, address, tile.bytes(), align, lane)?;
        let Some((space, address)) = op.mbarrier else {
            let thread = who.thread();
            return Ok(Issued::Store(Store {
                who,
                tile,
                from: shared,
                group: cluster.bulk.committed(thread),
                bytes: None,
            }));
        };
        let address = self.address_of(address, lane);
        let mbarrier = self.mbarrier_place(cluster, space, address, lane)?;
        if let Some(remote) = op.remote {
            let to = self.address_of(remote, lane);
            let to = self.stretch(cluster, Space::Cluster, to, tile.bytes(), 16, lane)?;
            let from = Some(shared);
            self.live_object(cluster, mbarrier, address, lane)?;
            return Ok(Issued::Loads(vec![Load {
                who,
                tile,
                from,
                to,
                mbarrier,
            }]));
        }
        let mask = match op.multicast {
            None => 1 << shared.rank,
            Some(mask) => self.regs.lane(mask, lane) as u32,
        };
        let blocks = cluster.blocks.len() as u32;
        if mask == 0 || mask >> blocks != 0 {
            let reason = format!("the mask {mask:#x} of a cluster of {blocks} blocks");
            return fault(FaultKind::BadOperand { reason });
        }
        let stride = cluster.machine.shared_stride();
        if mbarrier / stride != shared.rank as usize {
            let reason = "it is not in the destination's block".to_owned();
            return fault(FaultKind::Mbarrier { address, reason });
        }
        let mut loads = Vec::new();
        for rank in lanes(mask) {
            if cluster.blocks[rank as usize].alive == 0 {
                let address = (u64::from(rank) << RANK_SHIFT) | shared.address;
                return fault(FaultKind::BlockExited { address, rank });
            }
            let mbarrier = rank as usize * stride + mbarrier % stride;
            self.live_object(cluster, mbarrier, address, lane)?;
            loads.push(Load {
                who,
                tile: Rc::clone(&tile),
                from: None,
                to: Start { rank, ..shared },
                mbarrier,
            });
        }
        Ok(Issued::Loads(loads))
    }

    fn address_of(&self, address: crate::program::Address, lane: u32) -> u64 {
        let base = self.regs.lane(address.base, lane);
        base.wrapping_add(address.offset as u64)
    }

    /// More bytes than a block has are not looked at one by one.
    fn fits(&self, cluster: &Cluster<'_, '_>, bytes: u64, lane: u32) -> Result<(), Trouble> {
        let most = cluster.machine.shared_bytes;
        if bytes > most as u64 {
            let reason =
                format!("a copy of {bytes} bytes, but the block has {most} in shared memory");
            return trouble(Some(lane), FaultKind::BadOperand { reason });
        }
        Ok(())
    }

    fn live_object(
        &self,
        cluster: &Cluster<'_, '_>,
        place: usize,
        address: u64,
        lane: u32,
    ) -> Result<(), Trouble> {
        let object = cluster.object(place);
        object
            .check()
            .map_err(|reason| at(lane)(FaultKind::Mbarrier { address, reason }))
    }

    /// A stretch of shared memory, all of which must be there.
    fn stretch(
        &mut self,
        cluster: &Cluster<'_, '_>,
        space: Space,
        address: u64,
        bytes: u32,
        align: u64,
        lane: u32,
    ) -> Result<Start, Trouble> {
        aligned(space, address, align).map_err(at(lane))?;
        let mut first = 0;
        // The first byte, and the last.
        for offset in [0, u64::from(bytes.max(1)) - 1] {
            let address = address.wrapping_add(offset);
            match self.place(cluster, space, address, 1, Intent::Write, lane)? {
                Place::Shared(place) if offset == 0 => first = place,
                Place::Shared(_) => {}
                _ => {
                    let reason = format!("the address {address:#x} is not in shared memory");
                    return trouble(Some(lane), FaultKind::BadOperand { reason });
                }
            }
        }
        let stride = cluster.machine.shared_stride();
        Ok(Start {
            rank: (first / stride) as u32,
            address: (first % stride) as u64 + SHARED_BASE,
        })
    }

    /// The tensor map at a generic address.
    fn tensor_map(
        &mut self,
        cluster: &Cluster<'_, '_>,
        address: u64,
        lane: u32,
    ) -> Result<TensorMap, Trouble> {
        let fault = |reason: String| trouble(Some(lane), FaultKind::BadOperand { reason });
        aligned(Space::Generic, address, TENSOR_MAP_ALIGN).map_err(at(lane))?;
        let mut bytes = [0; TENSOR_MAP_BYTES];
        let words = bytes.as_chunks_mut::<8>().0;
        for (n, word) in words.iter_mut().enumerate() {
            let address = address.wrapping_add(8 * n as u64);
            let place = self.place(cluster, Space::Generic, address, 8, Intent::Read, lane)?;
            if matches!(place, Place::Shared(_) | Place::Local(_)) {
                let reason = "a tensor map that is not in global, constant or parameter memory";
                return fault(reason.to_owned());
            }
            *word = self.get::<8>(cluster, place, 0).to_le_bytes();
        }
        TensorMap::decode(&bytes).or_else(|error| fault(error.to_string()))
    }
}

/// A copy whose addresses are checked.
pub(super) enum Issued {
    Loads(Vec<Load>),
    Store(Store),
}

fn aligned(space: Space, address: u64, align: u64) -> Result<(), FaultKind> {
    if address.is_multiple_of(align) {
        return Ok(());
    }
    Err(FaultKind::Misaligned {
        space,
        address,
        align: align as u32,
    })
}

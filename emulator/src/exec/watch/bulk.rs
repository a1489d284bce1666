//! Bulk copies.

use super::super::bulk::{Issued, Load, Store};
use super::super::tile::{CHUNK, Tile};
use super::super::warp::Warp;
use super::super::{Cluster, Machine};
use crate::exec::Place;
use crate::memory::ones;
use crate::program::{Bulk, Extent};
use crate::sanitize::{BulkEnds, Rule, Sanitizer};

/// The bytes of a range in global memory, at most 16, that were written: a bit each.
fn global_written(machine: &Machine<'_>, allocation: usize, at: u64, len: usize) -> u32 {
    let first = len.min((32 - at % 32) as usize);
    let low = machine.global_written(allocation, at, first);
    if first == len {
        return low;
    }
    low | machine.global_written(allocation, at + first as u64, len - first) << first
}

/// Ranges of a tile in global memory.
fn global_ends(tile: &Tile) -> Vec<(usize, u64, usize)> {
    let inside = tile.rows.iter().filter(|row| row.from != row.to);
    inside
        .map(|row| (row.global.0, row.global.1, (row.to - row.from) as usize))
        .collect()
}

impl Warp {
    /// A bulk copy of one lane, which has been found legal.
    pub(in crate::exec) fn observe_bulk(
        &mut self,
        watch: &mut Sanitizer,
        cluster: &mut Cluster<'_, '_>,
        op: &Bulk,
        issued: &Issued,
    ) {
        let machine = cluster.machine;
        let lane = match issued {
            Issued::Loads(loads) => loads.first().map_or(0, |load| load.who.lane),
            Issued::Store(store) => store.who.lane,
        };
        let mut check = |src, what| self.check_operand(watch, machine, src, 1 << lane, what);
        check(op.shared.1.base, "the address in shared memory");
        match &op.extent {
            Extent::Linear { global, bytes } => {
                check(*bytes, "the size");
                if let Some(global) = global {
                    check(global.base, "the address in global memory");
                }
            }
            Extent::Tensor { map, coordinates } => {
                check(map.base, "the tensor map's address");
                coordinates.iter().for_each(|&c| check(c, "a coordinate"));
            }
        }
        if let Some(remote) = op.remote {
            check(remote.base, "the destination's address");
        }
        if let Some((_, mbarrier)) = op.mbarrier {
            check(mbarrier.base, "the mbarrier's address");
        }
        if let Some(mask) = op.multicast {
            check(mask, "the mask of blocks");
        }
        match issued {
            Issued::Loads(loads) => {
                for load in loads {
                    observe_load(watch, cluster, load);
                }
            }
            Issued::Store(store) => observe_store(watch, cluster, op, store),
        }
    }
}

fn observe_load(watch: &mut Sanitizer, cluster: &Cluster<'_, '_>, load: &Load) {
    let machine = cluster.machine;
    let stride = machine.shared_stride();
    let bytes = load.tile.bytes() as usize;
    let to = load.to.place(stride, load.to.address);
    let mut from = BulkEnds::default();
    match load.from {
        Some(start) => {
            let at = start.place(stride, start.address);
            from.shared.push((at, bytes));
            for n in (0..bytes).step_by(CHUNK) {
                let written = watch.written(machine, 0, Place::Shared(at + n), CHUNK);
                watch.set_written(machine, 0, Place::Shared(to + n), CHUNK, written);
            }
        }
        None => {
            from.global = global_ends(&load.tile);
            for (n, row) in load.tile.rows.iter().enumerate() {
                let (first, last) = (row.from as usize, row.to as usize);
                for (at, len, place) in load.tile.pieces(stride, load.to, n) {
                    for part in (at..at + len).step_by(CHUNK) {
                        // What is outside of the tensor is filled.
                        let (inside, end) = (first.max(part), last.min(part + CHUNK));
                        let mut written = ones(CHUNK);
                        if inside < end {
                            let offset = row.global.1 + (inside - first) as u64;
                            let bits = global_written(machine, row.global.0, offset, end - inside);
                            let poison = !bits & ones(end - inside);
                            written &= !(poison << (inside - part));
                        }
                        let place = Place::Shared(place + part - at);
                        watch.set_written(machine, 0, place, CHUNK, written);
                    }
                }
            }
        }
    }
    let to = BulkEnds {
        shared: vec![(to, bytes)],
        global: Vec::new(),
    };
    let of = [bytes as u32, load.to.rank];
    let mbarrier = Place::Shared(load.mbarrier);
    watch.bulk_load(machine, load.who, from, to, mbarrier, of);
}

fn observe_store(watch: &mut Sanitizer, cluster: &Cluster<'_, '_>, op: &Bulk, store: &Store) {
    let machine = cluster.machine;
    let stride = machine.shared_stride();
    let updates = !op.reduce.is_empty();
    let (mut stale, mut fresh) = (false, false);
    for (n, row) in store.tile.rows.iter().enumerate() {
        let (first, last) = (row.from as usize, row.to as usize);
        for (at, len, place) in store.tile.pieces(stride, store.from, n) {
            for part in (at..at + len).step_by(CHUNK) {
                let (inside, end) = (first.max(part), last.min(part + CHUNK));
                if inside >= end {
                    continue;
                }
                let mask = ones(end - inside);
                let from = Place::Shared(place + inside - at);
                stale |= watch.written(machine, 0, from, end - inside) != mask;
                let (allocation, offset) = (row.global.0, row.global.1 + (inside - first) as u64);
                fresh |= global_written(machine, allocation, offset, end - inside) != mask;
                let split = (end - inside).min((32 - offset % 32) as usize);
                machine.set_global_written(allocation, offset, split, mask);
                if split < end - inside {
                    let rest = end - inside - split;
                    machine.set_global_written(allocation, offset + split as u64, rest, mask);
                }
            }
        }
    }
    let rule = Rule::UninitializedStore;
    if stale {
        let message = || "part of what is stored was never written".to_owned();
        watch.add(machine, rule, store.who, message);
    }
    if updates && fresh {
        let message = || "the memory that is updated was never written".to_owned();
        watch.add(machine, rule, store.who, message);
    }
    let from = BulkEnds {
        shared: vec![(
            store.from.place(stride, store.from.address),
            store.tile.bytes() as usize,
        )],
        global: Vec::new(),
    };
    let to = BulkEnds {
        shared: Vec::new(),
        global: global_ends(&store.tile),
    };
    watch.bulk_store(machine, store.who, from, to, store.group, updates);
}

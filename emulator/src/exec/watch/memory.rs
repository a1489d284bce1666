//! Accesses to memory.

use super::super::Cluster;
use super::super::memory::{Intent, Place};
use super::super::warp::Warp;
use super::pred;
use crate::memory::ones;
use crate::program::{Atomic, CpAsync, Load, Store};
use crate::sanitize::{Rule, Sanitizer};

impl Warp {
    pub(super) fn observe_load(
        &mut self,
        watch: &mut Sanitizer,
        cluster: &mut Cluster<'_, '_>,
        op: &Load,
        active: u32,
    ) {
        let machine = cluster.machine;
        self.check_operand(watch, machine, op.address.base, active, "the address");
        let each = op.bytes as usize;
        let total = each * op.dst.len();
        for (lane, place) in self.places(cluster, op.space, op.address, total, Intent::Read, active)
        {
            let who = self.who(lane);
            watch.access(machine, who, place, total, false, op.order);
            if op.order.strong {
                watch.synchronize(who, place, op.order, [true, false]);
            }
            let poison = !watch.written(machine, self.index, place, total) & ones(total);
            let shadow = &mut watch.registers[self.index as usize];
            if poison == 0 && !shadow.any {
                continue;
            }
            for (n, dst) in op.dst.iter().enumerate() {
                let Some(dst) = dst else { continue };
                let bytes = poison >> (n * each) & ones(each);
                let top = bytes >> (each - 1) & 1 != 0;
                let above = if op.signed && top { !ones(each) } else { 0 };
                shadow.set_lane(*dst, lane, (bytes | above) as u8);
            }
        }
    }

    pub(super) fn observe_store(
        &mut self,
        watch: &mut Sanitizer,
        cluster: &mut Cluster<'_, '_>,
        op: &Store,
        active: u32,
    ) {
        let machine = cluster.machine;
        self.check_operand(watch, machine, op.address.base, active, "the address");
        let each = op.bytes as usize;
        let total = each * op.src.len();
        for (lane, place) in
            self.places(cluster, op.space, op.address, total, Intent::Write, active)
        {
            let who = self.who(lane);
            let shadow = &watch.registers[self.index as usize];
            let mut written = ones(total);
            if shadow.any {
                for (n, &src) in op.src.iter().enumerate() {
                    let poison = u32::from(shadow.lane(src, lane)) & ones(each);
                    written &= !(poison << (n * each));
                }
            }
            // A register that is spilled may be anything.
            if written != ones(total) && !matches!(place, Place::Local(_)) {
                let byte = (!written).trailing_zeros();
                let message = || format!("byte {byte} of what is stored was never written");
                watch.add(machine, Rule::UninitializedStore, who, message);
                written = ones(total);
            }
            watch.access(machine, who, place, total, true, op.order);
            if op.order.strong {
                watch.synchronize(who, place, op.order, [false, true]);
            }
            watch.set_written(machine, self.index, place, total, written);
        }
    }

    pub(super) fn observe_atomic(
        &mut self,
        watch: &mut Sanitizer,
        cluster: &mut Cluster<'_, '_>,
        op: &Atomic,
        active: u32,
    ) {
        let machine = cluster.machine;
        self.check_operand(watch, machine, op.address.base, active, "the address");
        for operand in [op.a, op.b] {
            let message = || "an operand of the update was never written".to_owned();
            let rule = Rule::UninitializedStore;
            self.check_written(watch, machine, rule, operand, active, message);
        }
        let bytes = op.bytes as usize;
        for (lane, place) in
            self.places(cluster, op.space, op.address, bytes, Intent::Write, active)
        {
            let who = self.who(lane);
            watch.access(machine, who, place, bytes, true, op.order);
            watch.synchronize(who, place, op.order, [true, true]);
            if watch.written(machine, self.index, place, bytes) != ones(bytes) {
                let message = || "the memory that is updated was never written".to_owned();
                watch.add(machine, Rule::UninitializedStore, who, message);
                watch.set_written(machine, self.index, place, bytes, ones(bytes));
            }
            if let Some(dst) = op.dst {
                watch.registers[self.index as usize].put_all(dst, 1 << lane, 0);
            }
        }
    }

    pub(super) fn observe_copy(
        &mut self,
        watch: &mut Sanitizer,
        cluster: &mut Cluster<'_, '_>,
        op: &CpAsync,
        active: u32,
    ) {
        let machine = cluster.machine;
        self.check_operand(
            watch,
            machine,
            op.dst.base,
            active,
            "the destination's address",
        );
        if let Some(ignore) = op.ignore {
            self.check_operand(watch, machine, pred(ignore.index), active, "the predicate");
        }
        if let Some(size) = op.src_bytes {
            self.check_operand(watch, machine, size, active, "the source's size");
        }
        let bytes = op.bytes as usize;
        let ignored = op.ignore.map_or(0, |p| self.regs.pred(p));
        let dst = self.places(cluster, op.dst_space, op.dst, bytes, Intent::Write, active);
        let from = self.addresses(op.src);
        let mut src = Vec::with_capacity(dst.len());
        for &(lane, place) in &dst {
            let size = op
                .src_bytes
                .map_or(bytes, |s| self.regs.lane(s, lane) as usize);
            let size = if ignored >> lane & 1 != 0 {
                0
            } else {
                size.min(bytes)
            };
            let mut source = None;
            if size != 0 {
                self.check_operand(
                    watch,
                    machine,
                    op.src.base,
                    1 << lane,
                    "the source's address",
                );
                let address = from[lane as usize];
                if let Ok(at) = self.place(cluster, op.src_space, address, 1, Intent::Read, lane) {
                    source = Some((at, size));
                    src.push((lane, at, size));
                }
            }
            watch.copy_starts(machine, self.who(lane), place, bytes, source);
        }
        watch.copies_start(
            self.who(0),
            active,
            self.copies.committed(),
            bytes,
            dst,
            src,
        );
    }
}

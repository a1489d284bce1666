//! What the sanitizer is told of each instruction. Everything here runs only while one is watching.

use super::alu::lookup;
use super::memory::{Intent, Place, lanes};
use super::warp::Warp;
use super::{Cluster, Machine, Who};
use crate::error::Space;
use crate::memory::ones;
use crate::program::{
    Address, Atomic, Combine, Comparison, CpAsync, Inst, Kind, Load, Matrix, Mbarrier, MbarrierOp,
    Mma, Op, Order, Shfl, Src, Store, WARP,
};
use crate::sanitize::registers::{RegisterShadow, collapse, widen};
use crate::sanitize::{Rule, Sanitizer};
use crate::semantics::matrix;

fn row(slot: u32) -> Src {
    Src {
        slot,
        kind: Kind::W32,
    }
}

fn pair(slot: u32) -> Src {
    Src {
        slot,
        kind: Kind::W64,
    }
}

/// A predicate as an operand like any other.
pub(super) fn pred(slot: u32) -> Src {
    Src {
        slot,
        kind: Kind::Pred,
    }
}

impl Warp {
    pub(super) fn who(&self, lane: u32) -> Who {
        Who {
            warp: self.index,
            lane,
            pc: self.pc,
        }
    }

    /// Calls `f` with the sanitizer, if there is one.
    #[inline(always)]
    pub(super) fn watched(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        f: impl FnOnce(&mut Self, &mut Sanitizer, &mut Cluster<'_, '_>),
    ) {
        if let Some(mut watch) = cluster.watch.take() {
            f(self, &mut watch, cluster);
            cluster.watch = Some(watch);
        }
    }

    /// Before an instruction is executed by the lanes of `mask` whose guard allows it. Those that need other lanes, or
    /// wait, report for themselves when they happen.
    #[inline(never)]
    pub(super) fn observe(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        inst: &Inst,
        pc: u32,
        mask: u32,
    ) {
        self.pc = pc;
        self.watched(cluster, |warp, watch, cluster| {
            warp.observe_with(watch, cluster, inst, mask);
        });
    }

    fn observe_with(
        &mut self,
        watch: &mut Sanitizer,
        cluster: &mut Cluster<'_, '_>,
        inst: &Inst,
        mask: u32,
    ) {
        let machine = cluster.machine;
        let message = || "a predicate that was never written decides".to_owned();
        let (rule, guard) = (Rule::UninitializedBranch, pred(inst.guard.index));
        self.check_written(watch, machine, rule, guard, mask, message);
        let active = mask & self.regs.pred(inst.guard);
        if active == 0 {
            return;
        }
        match &inst.op {
            Op::Load(op) => self.observe_load(watch, cluster, op, active),
            Op::Store(op) => self.observe_store(watch, cluster, op, active),
            Op::Atomic(op) => self.observe_atomic(watch, cluster, op, active),
            Op::CpAsync(op) => self.observe_copy(watch, cluster, op, active),
            Op::Fence { beyond_block } => watch.fence(self.index, active, *beyond_block),
            Op::Branch { uniform, .. } if *uniform && active != mask => {
                let message = || "a .uni branch is taken by some threads only".to_owned();
                let who = self.who(active.trailing_zeros());
                watch.add(machine, Rule::Divergence, who, message);
            }
            Op::BranchIndex { index, uniform, .. } => {
                let of = |lane| self.regs.lane(*index, lane);
                let first = active.trailing_zeros();
                let other = lanes(active).find(|&lane| of(lane) != of(first));
                if let (true, Some(lane)) = (*uniform, other) {
                    let message = || "a .uni branch goes to several places".to_owned();
                    watch.add(machine, Rule::Divergence, self.who(lane), message);
                }
                let message = || "an index that was never written decides".to_owned();
                let rule = Rule::UninitializedBranch;
                self.check_written(watch, machine, rule, *index, active, message);
            }
            Op::WarpSync { members }
            | Op::Vote { members, .. }
            | Op::Match { members, .. }
            | Op::Redux { members, .. }
            | Op::Elect { members, .. } => {
                self.check_operand(watch, machine, *members, active, "the member mask");
            }
            op if watch.registers[self.index as usize].any => self.spread(watch, inst, op, active),
            _ => {}
        }
    }

    /// Lets poison flow from the sources of an arithmetic instruction to its results.
    fn spread(&mut self, watch: &mut Sanitizer, inst: &Inst, op: &Op, active: u32) {
        let shadow = &mut watch.registers[self.index as usize];
        let value = |src: Src, lane: u32| self.regs.lane(src, lane);
        match op {
            Op::Narrow { d, a, b, c, .. } => {
                shadow.operation(inst.spread, row(*d), [*a, *b, *c].map(row), active, value);
            }
            Op::Wide { d, a, b, c, .. } => {
                shadow.operation(inst.spread, *d, [*a, *b, *c], active, value);
            }
            Op::Mov32 { d, a } => shadow.put(row(*d), active, shadow.get(row(*a))),
            Op::Mov64 { d, a } => shadow.put(pair(*d), active, shadow.get(pair(*a))),
            Op::Pred { table, d, a, b } => {
                let (of_a, of_b) = (shadow.pred(a.index), shadow.pred(b.index));
                let (a, b) = (self.regs.pred(*a), self.regs.pred(*b));
                let turned = [(a ^ of_a, b), (a, b ^ of_b), (a ^ of_a, b ^ of_b)];
                let poison = turned.iter().fold(0, |poison, &(x, y)| {
                    poison | (lookup(*table, x, y) ^ lookup(*table, a, b))
                });
                shadow.put_pred(*d, active, poison);
            }
            Op::SetP(op) => {
                let mut poison = match &op.compare {
                    Comparison::Narrow(_, a, b) => shadow.lanes(row(*a)) | shadow.lanes(row(*b)),
                    Comparison::Wide(_, a, b) => shadow.lanes(*a) | shadow.lanes(*b),
                };
                if let Some((combine, with)) = op.combine {
                    let (value, unknown) = (self.regs.pred(with), shadow.pred(with.index));
                    // Lanes in which it decides alone.
                    let decides = match combine {
                        Combine::And => !value,
                        Combine::Or => value,
                        Combine::Xor => 0,
                    };
                    poison = poison & !decides | unknown;
                }
                for index in [op.p, op.q].into_iter().flatten() {
                    shadow.put_pred(index, active, poison);
                }
            }
            Op::Select32 { d, a, b, p } => {
                self.select(shadow, row(*d), row(*a), row(*b), *p, active);
            }
            Op::Select64 { d, a, b, p } => {
                self.select(shadow, pair(*d), pair(*a), pair(*b), *p, active);
            }
            Op::Carry {
                d,
                a,
                b,
                carry_in,
                carry_out,
                ..
            } => {
                let flag = if *carry_in { shadow.carry } else { 0 };
                let poison = shadow.lanes(*a) | shadow.lanes(*b) | flag;
                if *carry_out {
                    shadow.carry = shadow.carry & !active | poison & active;
                }
                shadow.put_all(*d, active, poison);
            }
            Op::MadCarry {
                d,
                a,
                b,
                c,
                carry_in,
                carry_out,
                ..
            } => {
                let flag = if *carry_in { shadow.carry } else { 0 };
                let poison = shadow.lanes(*a) | shadow.lanes(*b) | shadow.lanes(*c) | flag;
                if *carry_out {
                    shadow.carry = shadow.carry & !active | poison & active;
                }
                shadow.put_all(*d, active, poison);
            }
            Op::Pack { d, parts, bits } => {
                let bytes = *bits as usize / 8;
                for lane in lanes(active) {
                    let part = |n: usize, src: Src| {
                        (u32::from(shadow.lane(src, lane)) & ones(bytes)) << (n * bytes)
                    };
                    let all = parts.iter().enumerate();
                    let poison = all.fold(0, |poison, (n, &src)| poison | part(n, src));
                    shadow.set_lane(*d, lane, poison as u8);
                }
            }
            Op::Unpack { parts, a, bits } => {
                let bytes = *bits as usize / 8;
                for lane in lanes(active) {
                    let all = u32::from(shadow.lane(*a, lane));
                    for (n, dst) in parts.iter().enumerate() {
                        if let Some(dst) = dst {
                            let poison = all >> (n * bytes) & ones(bytes);
                            shadow.set_lane(*dst, lane, poison as u8);
                        }
                    }
                }
            }
            Op::Clock { d } | Op::ActiveMask { d } => shadow.put_all(*d, active, 0),
            Op::IsSpace { d, a, .. } => {
                let poison = shadow.lanes(*a);
                shadow.put_pred(*d, active, poison);
            }
            _ => {}
        }
    }

    fn select(
        &self,
        shadow: &mut RegisterShadow,
        d: Src,
        a: Src,
        b: Src,
        p: crate::program::PredSrc,
        active: u32,
    ) {
        let (from_a, unknown) = (self.regs.pred(p), shadow.pred(p.index));
        let (of_a, of_b) = (shadow.get(a), shadow.get(b));
        shadow.put(d, active & from_a, of_a);
        shadow.put(d, active & !from_a, of_b);
        if active & unknown != 0 {
            shadow.put_all(d, active & unknown, u32::MAX);
        }
    }

    /// Reports an address, or an operand that steers an instruction, that was never written.
    pub(super) fn check_operand(
        &self,
        watch: &mut Sanitizer,
        machine: &Machine<'_>,
        src: Src,
        active: u32,
        what: &str,
    ) {
        let message = || format!("{what} was never written");
        let rule = Rule::UninitializedAddress;
        self.check_written(watch, machine, rule, src, active, message);
    }

    /// Reports a register that was never written in an active lane.
    fn check_written(
        &self,
        watch: &mut Sanitizer,
        machine: &Machine<'_>,
        rule: Rule,
        src: Src,
        active: u32,
        message: impl FnOnce() -> String,
    ) {
        let poison = watch.registers[self.index as usize].lanes(src) & active;
        if poison != 0 {
            watch.add(machine, rule, self.who(poison.trailing_zeros()), message);
        }
    }

    /// Where the lanes' accesses are. What is not inside an object ends the launch when it is executed.
    fn places(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        space: Space,
        address: Address,
        bytes: usize,
        intent: Intent,
        active: u32,
    ) -> Vec<(u32, Place)> {
        let addresses = self.addresses(address);
        lanes(active)
            .map_while(|lane| {
                let address = addresses[lane as usize];
                let place = self.place(cluster, space, address, bytes as u32, intent, lane);
                place.ok().map(|place| (lane, place))
            })
            .collect()
    }

    fn observe_load(
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

    fn observe_store(
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

    fn observe_atomic(
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

    fn observe_copy(
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

    /// `ldmatrix` and `stmatrix`, whose lanes are all there.
    pub(super) fn observe_matrix(
        &mut self,
        watch: &mut Sanitizer,
        cluster: &mut Cluster<'_, '_>,
        op: &Matrix,
    ) {
        let machine = cluster.machine;
        let addresses = self.addresses(op.address);
        let used = ones(8 * op.regs.len());
        self.check_operand(watch, machine, op.address.base, used, "the address");
        for (j, &slot) in op.regs.iter().enumerate() {
            let mut poison = [[0; 16]; 8];
            let mut any = false;
            if op.store {
                let message = || "part of what is stored was never written".to_owned();
                let rule = Rule::UninitializedStore;
                self.check_written(watch, machine, rule, row(slot), u32::MAX, message);
            }
            for (r, poison) in poison.iter_mut().enumerate() {
                let lane = (8 * j + r) as u32;
                let intent = if op.store {
                    Intent::Write
                } else {
                    Intent::Read
                };
                let address = addresses[lane as usize];
                let Ok(place) = self.place(cluster, op.space, address, 16, intent, lane) else {
                    return;
                };
                watch.access(machine, self.who(lane), place, 16, op.store, Order::WEAK);
                if op.store {
                    watch.set_written(machine, self.index, place, 16, ones(16));
                    continue;
                }
                let written = watch.written(machine, self.index, place, 16);
                if written != ones(16) {
                    any = true;
                    for (n, byte) in poison.iter_mut().enumerate() {
                        *byte = if written >> n & 1 != 0 { 0 } else { 0xff };
                    }
                }
            }
            let shadow = &mut watch.registers[self.index as usize];
            if op.store || !any && !shadow.any {
                continue;
            }
            // Poison goes to the registers as the bytes do.
            let bytes = matrix::load(&poison, op.transposed);
            for (lane, bytes) in bytes.into_iter().enumerate() {
                shadow.set_lane(row(slot), lane as u32, collapse(u64::from(bytes)));
            }
        }
    }

    /// `mma.sync`: a row of the result is poison if its row of A is, a column if its column of B is. In all shapes, odd
    /// registers of A hold rows 8 to 15, the four lanes of a quad share a row of A and a column of B.
    pub(super) fn observe_mma(&mut self, watch: &mut Sanitizer, op: &Mma) {
        let shadow = &mut watch.registers[self.index as usize];
        if !shadow.any {
            return;
        }
        let quads = |lanes: u32| -> u8 {
            (0..8).fold(0, |mask, q| {
                mask | u8::from(lanes >> (4 * q) & 0xf != 0) << q
            })
        };
        let of = |slots: &[u32], shadow: &RegisterShadow| {
            slots
                .iter()
                .fold(0, |lanes, &s| lanes | shadow.lanes(row(s)))
        };
        let half = |odd: usize| -> Vec<u32> { op.a.iter().skip(odd).step_by(2).copied().collect() };
        let rows = [quads(of(&half(0), shadow)), quads(of(&half(1), shadow))];
        let columns = quads(of(&op.b, shadow));
        let of_c: Vec<u32> = op.c.iter().map(|&s| shadow.lanes(row(s))).collect();
        // Four registers of one value each, or two of two: the first half of them holds rows 0 to 7.
        for (n, &slot) in op.d.iter().enumerate() {
            let second = n >= op.d.len() / 2;
            let mut poison = of_c[n];
            for lane in 0..WARP as u32 {
                let row_poison = rows[usize::from(second)] >> (lane / 4) & 1 != 0;
                // Columns 2 t and 2 t + 1: one each in four registers, both in two.
                let column = 2 * (lane % 4);
                let column_poison = if op.d.len() == 4 {
                    columns >> (column + n as u32 % 2) & 1 != 0
                } else {
                    columns >> column & 3 != 0
                };
                poison |= u32::from(row_poison || column_poison) << lane;
            }
            shadow.put_all(row(slot), u32::MAX, poison);
        }
    }

    /// `shfl.sync`.
    pub(super) fn observe_shfl(
        &mut self,
        watch: &mut Sanitizer,
        machine: &Machine<'_>,
        op: &Shfl,
        active: u32,
    ) {
        for src in [op.b, op.c, op.members] {
            self.check_operand(watch, machine, src, active, "the shuffle's operand");
        }
        let own: [u32; WARP] = std::array::from_fn(|lane| lane as u32);
        let from = self.shuffled(op, &own, active);
        let undefined = from.undefined & active;
        if undefined != 0 {
            let lane = undefined.trailing_zeros();
            let of = from.values[lane as usize];
            let message = || format!("reads lane {of}, which does not take part");
            watch.add(machine, Rule::InactiveLane, self.who(lane), message);
        }
        let shadow = &mut watch.registers[self.index as usize];
        if shadow.any {
            let bytes = from.values.map(|lane| shadow.lane(op.a, lane));
            for lane in lanes(active) {
                if let Some(d) = op.d {
                    shadow.set_lane(d, lane, bytes[lane as usize]);
                }
            }
            if let Some(p) = op.p {
                shadow.put_pred(p, active, 0);
            }
        }
    }

    /// A result that every active lane gets from all of them.
    #[inline(always)]
    pub(super) fn collective(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        sources: &[Src],
        results: &[Option<Src>],
        active: u32,
    ) {
        self.watched(cluster, |warp, watch, _| {
            let shadow = &mut watch.registers[warp.index as usize];
            if shadow.any {
                let poison = sources.iter().fold(0, |p, &s| p | shadow.lanes(s)) & active;
                let all = if poison != 0 { u32::MAX } else { 0 };
                for dst in results.iter().flatten() {
                    shadow.put_all(*dst, active, all);
                }
            }
        });
    }

    /// An mbarrier instruction of one lane: making and ending the object are ordinary writes, all else is atomic.
    #[expect(clippy::too_many_arguments)]
    pub(super) fn observe_mbarrier(
        &mut self,
        watch: &mut Sanitizer,
        machine: &Machine<'_>,
        op: &Mbarrier,
        lane: u32,
        place: Place,
        ends: bool,
        result: Option<u64>,
    ) {
        let who = self.who(lane);
        if let Some(address) = op.address {
            self.check_operand(watch, machine, address.base, 1 << lane, "the address");
        }
        if let Some(operand) = op.operand {
            self.check_operand(watch, machine, operand, 1 << lane, "the operand");
        }
        let makes = matches!(op.op, MbarrierOp::Init | MbarrierOp::Inval);
        let order = Order {
            strong: !makes,
            ..Order::WEAK
        };
        watch.access(machine, who, place, 8, true, order);
        watch.set_written(machine, self.index, place, 8, ones(8));
        match op.op {
            MbarrierOp::Init => watch.mbarrier_init(machine, who, place),
            MbarrierOp::Inval => watch.mbarrier_inval(place),
            MbarrierOp::CopyArrive(_) => watch.mbarrier_copies(who, place),
            MbarrierOp::Arrive
            | MbarrierOp::ArriveNoComplete
            | MbarrierOp::ArriveDrop
            | MbarrierOp::ArriveExpectTx => watch.mbarrier_arrives(who, place, op.relaxed),
            _ if result == Some(1) => watch.mbarrier_passed(who, place, op.relaxed),
            _ => {}
        }
        if ends {
            watch.mbarrier_ends(place);
        }
        if let Some(dst) = op.dst {
            watch.registers[self.index as usize].put_all(dst, 1 << lane, 0);
        }
    }

    /// `movmatrix`.
    pub(super) fn observe_movmatrix(&mut self, watch: &mut Sanitizer, d: u32, a: u32) {
        let shadow = &mut watch.registers[self.index as usize];
        if shadow.any {
            let bytes: [u32; WARP] =
                std::array::from_fn(|lane| widen(shadow.lane(row(a), lane as u32)) as u32);
            let moved = matrix::movmatrix_trans(&bytes);
            for (lane, bytes) in moved.into_iter().enumerate() {
                shadow.set_lane(row(d), lane as u32, collapse(u64::from(bytes)));
            }
        }
    }
}

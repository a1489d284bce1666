//! Matrix fragments, and exchange between lanes.

use super::super::memory::{Intent, lanes};
use super::super::warp::Warp;
use super::super::{Cluster, Machine};
use super::row;
use crate::memory::ones;
use crate::program::{Matrix, Mma, Order, Shfl, WARP};
use crate::sanitize::registers::{RegisterShadow, collapse, widen};
use crate::sanitize::{Rule, Sanitizer};
use crate::semantics::matrix;

impl Warp {
    /// `ldmatrix` and `stmatrix`, whose lanes are all there.
    pub(in crate::exec) fn observe_matrix(
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
    pub(in crate::exec) fn observe_mma(&mut self, watch: &mut Sanitizer, op: &Mma) {
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

    /// `movmatrix`.
    pub(in crate::exec) fn observe_movmatrix(&mut self, watch: &mut Sanitizer, d: u32, a: u32) {
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

    /// `shfl.sync`.
    pub(in crate::exec) fn observe_shfl(
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
}

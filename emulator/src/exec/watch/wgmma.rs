//! Products of warpgroups.

use std::rc::Rc;

use super::super::Cluster;
use super::super::warp::Warp;
use super::super::wgmma::Pieces;
use super::{pred, row};
use crate::exec::Place;
use crate::memory::ones;
use crate::program::{ALL, Wgmma, WgmmaA};
use crate::sanitize::Sanitizer;
use crate::semantics::wgmma::HALVES;

impl Warp {
    /// A warp comes to a product, the `number`-th of its warpgroup, as the first of the four or not.
    pub(in crate::exec) fn observe_wgmma(
        &mut self,
        watch: &mut Sanitizer,
        cluster: &Cluster<'_, '_>,
        op: &Wgmma,
        pieces: &Rc<Pieces>,
        (number, first, keep): (u64, bool, bool),
    ) {
        let machine = cluster.machine;
        self.check_operand(watch, machine, op.b, ALL, "the descriptor of B");
        if let WgmmaA::Shared(src) = op.a {
            self.check_operand(watch, machine, src, ALL, "the descriptor of A");
        }
        let scale = pred(op.scale_d.index);
        self.check_operand(watch, machine, scale, ALL, "scale-d");
        watch.product_registers(machine, self.who(0), op, number);
        watch.product_reads(machine, self.who(0), number, &pieces.all, first);
        // A column of the result is undefined if any of its eight neighbours of B is; all is, if anything of A is.
        let undefined = |watch: &Sanitizer, pieces: &[u32]| {
            let piece = |&at: &u32| watch.written(machine, 0, Place::Shared(at as usize), 16);
            pieces.iter().any(|at| piece(at) != ones(16))
        };
        let of_a = undefined(watch, pieces.a());
        let shadow = &watch.registers[self.index as usize];
        let of_fragment = match op.a {
            WgmmaA::Registers(slots) => slots.iter().any(|&slot| shadow.lanes(row(slot)) != 0),
            WgmmaA::Shared(_) => false,
        };
        let registers = op.d.chunks(op.d.len() / (op.n / 8));
        let columns = pieces.b().chunks(8 * HALVES);
        for (registers, columns) in registers.zip(columns) {
            let all = of_a || of_fragment || undefined(watch, columns);
            let shadow = &mut watch.registers[self.index as usize];
            if !all && !shadow.any {
                continue;
            }
            for &slot in registers {
                let before = if keep { shadow.lanes(row(slot)) } else { 0 };
                shadow.put_all(row(slot), ALL, if all { ALL } else { before });
            }
        }
    }
}

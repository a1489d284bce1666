//! mbarriers.

use super::super::Machine;
use super::super::memory::Place;
use super::super::warp::Warp;
use crate::memory::ones;
use crate::program::{Mbarrier, MbarrierOp, Order};
use crate::sanitize::Sanitizer;

impl Warp {
    /// An mbarrier instruction of one lane, which `ends` the phase or not: making and ending the object are ordinary writes, all else is atomic.
    pub(in crate::exec) fn observe_mbarrier(
        &mut self,
        watch: &mut Sanitizer,
        machine: &Machine<'_>,
        op: &Mbarrier,
        lane: u32,
        place: Place,
        ends: bool,
    ) {
        let who = self.who(lane);
        if let Some(address) = op.address {
            self.check_operand(watch, machine, address.base, 1 << lane, "the address");
        }
        if let Some(operand) = op.operand {
            self.check_operand(watch, machine, operand, 1 << lane, "the operand");
        }
        let makes = matches!(op.op, MbarrierOp::Init | MbarrierOp::Inval);
        let order = if makes { Order::WEAK } else { Order::ATOMIC };
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
            _ => {}
        }
        let bytes = op
            .operand
            .map_or(0, |o| i64::from(self.regs.lane(o, lane) as u32 as i32));
        match op.op {
            MbarrierOp::ExpectTx | MbarrierOp::ArriveExpectTx => {
                watch.mbarrier_expects(place, bytes);
            }
            MbarrierOp::CompleteTx => watch.mbarrier_expects(place, -bytes),
            _ => {}
        }
        if ends {
            watch.mbarrier_ends(place);
        }
        if let Some(dst) = op.dst {
            watch.registers[self.index as usize].put_all(dst, 1 << lane, 0);
        }
    }

    /// A wait for an mbarrier, by one lane, that has found the phase ended or not.
    pub(in crate::exec) fn observe_wait(
        &mut self,
        watch: &mut Sanitizer,
        machine: &Machine<'_>,
        op: &Mbarrier,
        lane: u32,
        place: Place,
        passed: bool,
    ) {
        self.observe_mbarrier(watch, machine, op, lane, place, false);
        let parity = [MbarrierOp::TestWaitParity, MbarrierOp::TryWaitParity].contains(&op.op);
        if let (true, Some(operand)) = (parity, op.operand) {
            let parity = self.regs.lane(operand, lane) & 1 != 0;
            watch.mbarrier_phase(machine, self.who(lane), place, parity, passed);
        }
        if passed {
            watch.mbarrier_passed(self.who(lane), place, op.relaxed);
        }
    }
}

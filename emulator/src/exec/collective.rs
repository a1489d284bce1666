//! Exchange between the lanes of a warp.

use super::memory::lanes;
use super::warp::{Flow, Warp};
use super::{Trouble, trouble};
use crate::error::FaultKind;
use crate::program::{Dst, Kind, Narrow, PredSrc, ReduxMode, Shfl, ShflMode, Src, VoteMode, WARP};
use crate::semantics::warp as lanewise;

impl Warp {
    /// The lanes that take part in a `.sync` instruction, or what to do until they are there.
    #[inline(always)]
    pub(super) fn members(
        &self,
        members: Src,
        mask: u32,
        active: u32,
    ) -> Result<Option<Flow>, Trouble> {
        let first = active.trailing_zeros();
        let named = self.regs.lane(members, first) as u32;
        for lane in lanes(active) {
            let mask = self.regs.lane(members, lane) as u32;
            if mask >> lane & 1 == 0 {
                return trouble(Some(lane), FaultKind::BadMemberMask { mask, active });
            }
            if mask != named {
                let reason = format!(
                    "member masks {named:#010x} and {mask:#010x} in one group are not supported"
                );
                return trouble(Some(lane), FaultKind::Unsupported { reason });
            }
        }
        self.need_lanes(mask, active, named)
    }

    /// A shuffle of these values.
    pub(super) fn shuffled(&self, op: &Shfl, values: &Narrow, active: u32) -> lanewise::Shuffled {
        let mode = match op.mode {
            ShflMode::Up => lanewise::Shfl::Up,
            ShflMode::Down => lanewise::Shfl::Down,
            ShflMode::Bfly => lanewise::Shfl::Bfly,
            ShflMode::Idx => lanewise::Shfl::Idx,
        };
        let (b, c) = (self.regs.narrow(op.b.slot), self.regs.narrow(op.c.slot));
        lanewise::shfl(mode, values, b, c, active)
    }

    pub(super) fn shfl(&mut self, op: &Shfl, active: u32) {
        let out = self.shuffled(op, self.regs.narrow(op.a.slot), active);
        if let Some(d) = op.d {
            self.regs.put_narrow(d.slot, active, &out.values);
        }
        self.regs.put_pred(op.p, active, out.in_range);
    }

    pub(super) fn vote(&mut self, mode: VoteMode, d: Dst, a: PredSrc, active: u32) {
        let predicate = self.regs.pred(a);
        let result = match mode {
            VoteMode::All => u32::from(lanewise::vote_all(predicate, active)),
            VoteMode::Any => u32::from(lanewise::vote_any(predicate, active)),
            VoteMode::Uni => u32::from(lanewise::vote_uni(predicate, active)),
            VoteMode::Ballot => lanewise::vote_ballot(predicate, active),
        };
        self.regs.put_uniform(d, active, u64::from(result));
    }

    pub(super) fn match_lanes(&mut self, all: bool, d: Dst, p: Option<u32>, a: Src, active: u32) {
        let mut wide = [0; WARP];
        self.regs.widen(a, &mut wide);
        let low = wide.map(|v| v as u32);
        let high = wide.map(|v| (v >> 32) as u32);
        let high = (a.kind == Kind::W64).then_some(&high);
        if all {
            let (mask, same) = lanewise::match_all(&low, high, active);
            self.regs.put_uniform(d, active, u64::from(mask));
            self.regs
                .put_pred(p, active, if same { u32::MAX } else { 0 });
        } else if let Some(d) = d {
            let masks = lanewise::match_any(&low, high, active);
            self.regs.put_narrow(d.slot, active, &masks);
        }
    }

    pub(super) fn redux(&mut self, mode: ReduxMode, d: Src, a: Src, active: u32) {
        let op = match mode {
            ReduxMode::And => lanewise::Redux::And,
            ReduxMode::Or => lanewise::Redux::Or,
            ReduxMode::Xor => lanewise::Redux::Xor,
            ReduxMode::Add => lanewise::Redux::Add,
            ReduxMode::MinU => lanewise::Redux::MinU,
            ReduxMode::MaxU => lanewise::Redux::MaxU,
            ReduxMode::MinS => lanewise::Redux::MinS,
            ReduxMode::MaxS => lanewise::Redux::MaxS,
        };
        let result = lanewise::redux(op, self.regs.narrow(a.slot), active);
        self.regs.put_uniform(Some(d), active, u64::from(result));
    }

    pub(super) fn elect(&mut self, d: Dst, p: Option<u32>, members: Src, active: u32) {
        let mask = self.regs.lane(members, active.trailing_zeros()) as u32;
        let leader = lanewise::elect(mask);
        self.regs.put_uniform(d, active, u64::from(leader));
        self.regs.put_pred(p, active, 1 << (leader & 31));
    }
}

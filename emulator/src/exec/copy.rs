//! `cp.async`: copies that happen later.

use super::memory::{Intent, lanes};
use super::warp::Warp;
use super::{Cta, Trouble, trouble};
use crate::device::AsyncTiming;
use crate::error::{FaultKind, Space};
use crate::program::{CpAsync, WARP, Wide};

/// One `cp.async` of a warp that has not happened in all of its lanes.
struct Copy {
    /// Lanes in which it has not happened.
    mask: u32,
    bytes: u32,
    dst_space: Space,
    src_space: Space,
    dst: Wide,
    src: Wide,
    /// Bytes that are read; the others are zero.
    src_bytes: [u8; WARP],
    /// Which of the lane's groups it belongs to.
    group: [u32; WARP],
}

/// Most copies of a warp that wait to happen. A kernel that never waits for its copies must not fill the host's memory.
const MOST_PENDING: usize = 4096;

/// The copies of a warp that have not happened, oldest first.
#[derive(Default)]
pub(super) struct PendingCopies {
    pending: Vec<Copy>,
    /// Groups that each lane has committed.
    committed: [u32; WARP],
}

impl PendingCopies {
    /// Groups that each lane has committed.
    pub(super) fn committed(&self) -> &[u32; WARP] {
        &self.committed
    }

    pub(super) fn clear(&mut self) {
        self.pending.clear();
        self.committed = [0; WARP];
    }
}

impl Warp {
    /// `cp.async`. Addresses are checked now; bytes move when the options say.
    pub(super) fn cp_async(
        &mut self,
        cta: &mut Cta<'_, '_>,
        op: &CpAsync,
        active: u32,
    ) -> Result<(), Trouble> {
        let (dst, src) = (self.addresses(op.dst), self.addresses(op.src));
        let mut src_bytes = [op.bytes as u8; WARP];
        for lane in lanes(active) {
            if let Some(size) = op.src_bytes {
                let size = self.regs.lane(size, lane);
                if size > u64::from(op.bytes) {
                    let reason = format!("src-size {size} is greater than cp-size {}", op.bytes);
                    return trouble(Some(lane), FaultKind::BadOperand { reason });
                }
                src_bytes[lane as usize] = size as u8;
            }
            if op
                .ignore
                .is_some_and(|p| self.regs.pred(p) >> lane & 1 != 0)
            {
                src_bytes[lane as usize] = 0;
            }
            self.place(
                cta,
                op.dst_space,
                dst[lane as usize],
                op.bytes,
                Intent::Write,
                lane,
            )?;
            let from = src[lane as usize];
            if src_bytes[lane as usize] != 0 {
                self.check_source(
                    cta,
                    op.src_space,
                    from,
                    op.bytes,
                    u32::from(src_bytes[lane as usize]),
                    lane,
                )?;
            }
        }
        cta.count_banks(op.dst_space, &dst, active, op.bytes as usize);
        if self.copies.pending.len() >= MOST_PENDING {
            self.land(cta, |_, copy| copy.mask)?;
        }
        let (bytes, dst_space, src_space) = (op.bytes, op.dst_space, op.src_space);
        let group = self.copies.committed;
        let copy = Copy {
            mask: active,
            bytes,
            dst_space,
            src_space,
            dst,
            src,
            src_bytes,
            group,
        };
        match cta.machine.timing {
            AsyncTiming::Early => self.happen(cta, &copy, active),
            AsyncTiming::Late => {
                self.copies.pending.push(copy);
                Ok(())
            }
            AsyncTiming::Seeded(_) => {
                self.copies.pending.push(copy);
                self.some_copies(cta)
            }
        }
    }

    /// With random timing: lets some of the pending copies happen.
    pub(super) fn some_copies(&mut self, cta: &mut Cta<'_, '_>) -> Result<(), Trouble> {
        if !matches!(cta.machine.timing, AsyncTiming::Seeded(_)) {
            return Ok(());
        }
        self.land(cta, |cta, copy| {
            copy.mask & cta.random() as u32 & cta.random() as u32
        })
    }

    /// A source of `read` bytes, aligned as the whole copy.
    fn check_source(
        &mut self,
        cta: &Cta<'_, '_>,
        space: Space,
        address: u64,
        bytes: u32,
        read: u32,
        lane: u32,
    ) -> Result<(), Trouble> {
        if !address.is_multiple_of(u64::from(bytes)) {
            return trouble(
                Some(lane),
                FaultKind::Misaligned {
                    space,
                    address,
                    align: bytes,
                },
            );
        }
        self.place(cta, space, address, 1, Intent::Read, lane)?;
        self.place(
            cta,
            space,
            address + u64::from(read) - 1,
            1,
            Intent::Read,
            lane,
        )?;
        Ok(())
    }

    /// Lets the copies happen in the lanes that `which` picks.
    fn land(
        &mut self,
        cta: &mut Cta<'_, '_>,
        mut which: impl FnMut(&mut Cta<'_, '_>, &Copy) -> u32,
    ) -> Result<(), Trouble> {
        let mut pending = std::mem::take(&mut self.copies.pending);
        let mut result = Ok(());
        for copy in &mut pending {
            let now = which(cta, copy) & copy.mask;
            if now != 0 && result.is_ok() {
                result = self.happen(cta, copy, now);
                copy.mask &= !now;
            }
        }
        pending.retain(|copy| copy.mask != 0);
        self.copies.pending = pending;
        result
    }

    fn happen(&mut self, cta: &mut Cta<'_, '_>, copy: &Copy, mask: u32) -> Result<(), Trouble> {
        for lane in lanes(mask) {
            let at = lane as usize;
            let to = self.place(
                cta,
                copy.dst_space,
                copy.dst[at],
                copy.bytes,
                Intent::Write,
                lane,
            )?;
            if u32::from(copy.src_bytes[at]) == copy.bytes {
                let from = self.place(
                    cta,
                    copy.src_space,
                    copy.src[at],
                    copy.bytes,
                    Intent::Read,
                    lane,
                )?;
                match copy.bytes {
                    4 => {
                        let value = self.get::<4>(cta, from, 0);
                        self.put::<4>(cta, to, 0, value);
                    }
                    bytes => {
                        for offset in (0..bytes as usize).step_by(8) {
                            let value = self.get::<8>(cta, from, offset);
                            self.put::<8>(cta, to, offset, value);
                        }
                    }
                }
                continue;
            }
            for offset in 0..copy.bytes {
                let mut value = 0;
                if offset < u32::from(copy.src_bytes[at]) {
                    let address = copy.src[at] + u64::from(offset);
                    let from = self.place(cta, copy.src_space, address, 1, Intent::Read, lane)?;
                    value = self.get::<1>(cta, from, 0);
                }
                self.put::<1>(cta, to, offset as usize, value);
            }
        }
        Ok(())
    }

    /// `cp.async.commit_group`.
    pub(super) fn commit_copies(
        &mut self,
        cta: &mut Cta<'_, '_>,
        active: u32,
    ) -> Result<(), Trouble> {
        for lane in lanes(active) {
            self.copies.committed[lane as usize] += 1;
        }
        self.some_copies(cta)
    }

    /// Lets all copies of the lanes happen.
    pub(super) fn all_copies(&mut self, cta: &mut Cta<'_, '_>, active: u32) -> Result<(), Trouble> {
        self.land(cta, |_, _| active)
    }

    /// `cp.async.wait_group` and `wait_all`.
    pub(super) fn wait_copies(
        &mut self,
        cta: &mut Cta<'_, '_>,
        allowed: Option<u32>,
        active: u32,
    ) -> Result<(), Trouble> {
        let committed = self.copies.committed;
        self.watched(cta, |warp, watch, _| {
            watch.wait(warp.index, active, &committed, allowed);
        });
        self.land(cta, |_, copy| {
            let Some(allowed) = allowed else {
                return active;
            };
            let mut now = 0;
            for (lane, (group, committed)) in copy.group.iter().zip(&committed).enumerate() {
                let done = *group < committed.saturating_sub(allowed);
                now |= u32::from(done) << lane;
            }
            now & active
        })
    }
}

//! `cp.async`: copies that happen later.

use super::memory::{Intent, lanes};
use super::warp::Warp;
use super::{Cluster, Trouble, trouble};
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
        cluster: &mut Cluster<'_, '_>,
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
                cluster,
                op.dst_space,
                dst[lane as usize],
                op.bytes,
                Intent::Write,
                lane,
            )?;
            let from = src[lane as usize];
            if src_bytes[lane as usize] != 0 {
                self.check_source(
                    cluster,
                    op.src_space,
                    from,
                    op.bytes,
                    u32::from(src_bytes[lane as usize]),
                    lane,
                )?;
            }
        }
        cluster.count_banks(op.dst_space, &dst, active, op.bytes as usize);
        if self.copies.pending.len() >= MOST_PENDING {
            self.land(cluster, |_, copy| copy.mask)?;
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
        match cluster.machine.timing {
            AsyncTiming::Early => self.happen(cluster, &copy, active),
            AsyncTiming::Late => {
                self.copies.pending.push(copy);
                Ok(())
            }
            AsyncTiming::Seeded(_) => {
                self.copies.pending.push(copy);
                self.some_copies(cluster)
            }
        }
    }

    /// With random timing: lets some of the pending copies happen.
    pub(super) fn some_copies(&mut self, cluster: &mut Cluster<'_, '_>) -> Result<(), Trouble> {
        if !matches!(cluster.machine.timing, AsyncTiming::Seeded(_)) {
            return Ok(());
        }
        self.land(cluster, |cluster, copy| {
            copy.mask & cluster.random() as u32 & cluster.random() as u32
        })
    }

    /// A source of `read` bytes, aligned as the whole copy.
    fn check_source(
        &mut self,
        cluster: &Cluster<'_, '_>,
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
        self.place(cluster, space, address, 1, Intent::Read, lane)?;
        self.place(
            cluster,
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
        cluster: &mut Cluster<'_, '_>,
        mut which: impl FnMut(&mut Cluster<'_, '_>, &Copy) -> u32,
    ) -> Result<(), Trouble> {
        let mut pending = std::mem::take(&mut self.copies.pending);
        let mut result = Ok(());
        for copy in &mut pending {
            let now = which(cluster, copy) & copy.mask;
            if now != 0 && result.is_ok() {
                result = self.happen(cluster, copy, now);
                copy.mask &= !now;
            }
        }
        pending.retain(|copy| copy.mask != 0);
        self.copies.pending = pending;
        result
    }

    fn happen(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        copy: &Copy,
        mask: u32,
    ) -> Result<(), Trouble> {
        for lane in lanes(mask) {
            let at = lane as usize;
            let to = self.place(
                cluster,
                copy.dst_space,
                copy.dst[at],
                copy.bytes,
                Intent::Write,
                lane,
            )?;
            if u32::from(copy.src_bytes[at]) == copy.bytes {
                let from = self.place(
                    cluster,
                    copy.src_space,
                    copy.src[at],
                    copy.bytes,
                    Intent::Read,
                    lane,
                )?;
                match copy.bytes {
                    4 => {
                        let value = self.get::<4>(cluster, from, 0);
                        self.put::<4>(cluster, to, 0, value);
                    }
                    bytes => {
                        for offset in (0..bytes as usize).step_by(8) {
                            let value = self.get::<8>(cluster, from, offset);
                            self.put::<8>(cluster, to, offset, value);
                        }
                    }
                }
                continue;
            }
            for offset in 0..copy.bytes {
                let mut value = 0;
                if offset < u32::from(copy.src_bytes[at]) {
                    let address = copy.src[at] + u64::from(offset);
                    let from =
                        self.place(cluster, copy.src_space, address, 1, Intent::Read, lane)?;
                    value = self.get::<1>(cluster, from, 0);
                }
                self.put::<1>(cluster, to, offset as usize, value);
            }
        }
        Ok(())
    }

    /// `cp.async.commit_group`.
    pub(super) fn commit_copies(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        active: u32,
    ) -> Result<(), Trouble> {
        for lane in lanes(active) {
            self.copies.committed[lane as usize] += 1;
        }
        self.some_copies(cluster)
    }

    /// Lets all copies of the lanes happen.
    pub(super) fn all_copies(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        active: u32,
    ) -> Result<(), Trouble> {
        self.land(cluster, |_, _| active)
    }

    /// `cp.async.wait_group` and `wait_all`.
    pub(super) fn wait_copies(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        allowed: Option<u32>,
        active: u32,
    ) -> Result<(), Trouble> {
        let committed = self.copies.committed;
        self.watched(cluster, |warp, watch, _| {
            watch.wait(warp.index, active, &committed, allowed);
        });
        self.land(cluster, |_, copy| {
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

//! One instruction of one group.

use super::warp::{Flow, Warp};
use super::watch::pred;
use super::{Cluster, LOCAL_WINDOW, PARAM_WINDOW, RANK_SHIFT, SHARED_WINDOW, Trouble, trouble};
use crate::error::{FaultKind, Space};
use crate::program::{Combine, Comparison, Dst, Inst, Op, PredSrc, SetP, Src, WARP};

/// Bit (a | b << 1) of the table, in every lane.
pub(super) fn lookup(table: u8, a: u32, b: u32) -> u32 {
    let bit = |n: u8, mask: u32| if table >> n & 1 != 0 { mask } else { 0 };
    bit(0, !a & !b) | bit(1, a & !b) | bit(2, !a & b) | bit(3, a & b)
}

impl Warp {
    /// Executes an instruction in the lanes `active` of the group `mask`.
    #[inline(always)]
    pub(super) fn step(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        inst: &Inst,
        pc: u32,
        mask: u32,
        active: u32,
    ) -> Result<Flow, Trouble> {
        /// Leaves if the instruction cannot be executed yet.
        macro_rules! converge {
            ($wait:expr) => {
                if let Some(flow) = $wait? {
                    return Ok(flow);
                }
            };
        }
        match &inst.op {
            Op::Narrow { f, d, a, b, c } => {
                let mut out = [0; WARP];
                f(
                    &mut out,
                    self.regs.narrow(*a),
                    self.regs.narrow(*b),
                    self.regs.narrow(*c),
                );
                self.regs.put_narrow(*d, active, &out);
            }
            Op::Wide { f, d, a, b, c } => {
                let (mut wa, mut wb, mut wc, mut out) =
                    ([0; WARP], [0; WARP], [0; WARP], [0; WARP]);
                self.regs.widen(*a, &mut wa);
                self.regs.widen(*b, &mut wb);
                self.regs.widen(*c, &mut wc);
                f(&mut out, &wa, &wb, &wc);
                self.regs.put_wide(*d, active, &out);
            }
            Op::Mov32 { d, a } => {
                let value = *self.regs.narrow(*a);
                self.regs.put_narrow(*d, active, &value);
            }
            Op::Mov64 { d, a } => {
                let value = *self.regs.wide(*a);
                let d = Src {
                    slot: *d,
                    kind: crate::program::Kind::W64,
                };
                self.regs.put_wide(d, active, &value);
            }
            Op::Pred { table, d, a, b } => {
                let (a, b) = (self.regs.pred(*a), self.regs.pred(*b));
                self.regs.put_pred(Some(*d), active, lookup(*table, a, b));
            }
            Op::SetP(op) => self.setp(op, active),
            Op::Select32 { d, a, b, p } => {
                let p = self.regs.pred(*p);
                let (a, b) = (self.regs.narrow(*a), self.regs.narrow(*b));
                let mut out = [0; WARP];
                for lane in 0..WARP {
                    out[lane] = if p >> lane & 1 != 0 { a[lane] } else { b[lane] };
                }
                self.regs.put_narrow(*d, active, &out);
            }
            Op::Select64 { d, a, b, p } => {
                let p = self.regs.pred(*p);
                let (a, b) = (self.regs.wide(*a), self.regs.wide(*b));
                let mut out = [0; WARP];
                for lane in 0..WARP {
                    out[lane] = if p >> lane & 1 != 0 { a[lane] } else { b[lane] };
                }
                self.regs.put_wide(
                    Src {
                        slot: *d,
                        kind: crate::program::Kind::W64,
                    },
                    active,
                    &out,
                );
            }
            Op::Carry {
                d,
                a,
                b,
                carry_in,
                carry_out,
                negate,
            } => {
                self.carry(*d, *a, *b, [*carry_in, *carry_out, *negate], active);
            }
            Op::MadCarry {
                d,
                a,
                b,
                c,
                high,
                signed,
                carry_in,
                carry_out,
            } => {
                self.mad_carry(
                    *d,
                    [*a, *b, *c],
                    [*high, *signed, *carry_in, *carry_out],
                    active,
                );
            }
            Op::Pack { d, parts, bits } => {
                let mut out = [0; WARP];
                let mut part = [0; WARP];
                for (n, &src) in parts.iter().enumerate() {
                    self.regs.widen(src, &mut part);
                    for (out, &v) in out.iter_mut().zip(&part) {
                        *out |= (v & (u64::MAX >> (64 - bits))) << ((n as u32 * bits) & 63);
                    }
                }
                self.regs.put_wide(*d, active, &out);
            }
            Op::Unpack { parts, a, bits } => self.unpack(parts, *a, *bits, active),
            Op::Clock { d } => {
                let now = cluster.stats.lane_instructions;
                self.regs.put_uniform(Some(*d), active, now);
            }
            Op::Load(op) => self.load(cluster, op, active)?,
            Op::Store(op) => self.store(cluster, op, active)?,
            Op::Atomic(op) => {
                self.atomic(cluster, op, active)?;
            }
            Op::IsSpace { d, a, space } => {
                let mut wide = [0; WARP];
                self.regs.widen(*a, &mut wide);
                let want = match space {
                    Space::Shared | Space::Cluster => SHARED_WINDOW,
                    Space::Local => LOCAL_WINDOW,
                    Space::Param => PARAM_WINDOW,
                    _ => 0,
                };
                let (rank, anywhere) = (u64::from(cluster.rank), *space != Space::Shared);
                let is =
                    |v: u64| v >> 56 << 56 == want && (anywhere || v >> RANK_SHIFT & 0xff == rank);
                let bits = wide.iter().enumerate();
                let value = bits.fold(0, |m, (lane, &v)| m | u32::from(is(v)) << lane);
                self.regs.put_pred(Some(*d), active, value);
            }
            Op::Branch { target, .. } => {
                return Ok(Flow::Branch {
                    taken: active,
                    target: *target,
                    join: inst.join,
                });
            }
            Op::BranchIndex { index, targets, .. } => {
                let lane = active.trailing_zeros();
                let index_of = |lane| self.regs.lane(*index, lane) as usize;
                let Some(&target) = targets.get(index_of(lane)) else {
                    let reason = format!("index {} of {} targets", index_of(lane), targets.len());
                    return trouble(Some(lane), FaultKind::BadOperand { reason });
                };
                let same =
                    super::memory::lanes(active).filter(|&other| index_of(other) == index_of(lane));
                let taken = same.fold(0, |mask, lane| mask | 1 << lane);
                if taken != mask {
                    // The others would fall through: they execute the instruction again.
                    return Ok(Flow::Split {
                        taken,
                        target,
                        join: inst.join,
                    });
                }
                return Ok(Flow::Branch {
                    taken,
                    target,
                    join: inst.join,
                });
            }
            Op::Exit => return Ok(Flow::Exit(active)),
            Op::Trap => return trouble(None, FaultKind::Trap),
            Op::Bar(op) => return self.barrier(cluster, op, mask, active),
            Op::WarpSync { members } => {
                converge!(self.members(*members, mask, active));
                self.watched(cluster, |warp, watch, _| {
                    watch.warp_sync(warp.index, active)
                });
            }
            Op::Shfl(op) => {
                converge!(self.members(op.members, mask, active));
                self.watched(cluster, |warp, watch, cluster| {
                    warp.observe_shfl(watch, cluster.machine, op, active);
                });
                self.shfl(op, active);
            }
            Op::Vote {
                mode,
                d,
                a,
                members,
            } => {
                converge!(self.members(*members, mask, active));
                self.collective(cluster, &[pred(a.index)], &[*d], active);
                self.vote(*mode, *d, *a, active);
            }
            Op::Match {
                all,
                d,
                p,
                a,
                members,
            } => {
                converge!(self.members(*members, mask, active));
                self.collective(cluster, &[*a], &[*d, p.map(pred)], active);
                self.match_lanes(*all, *d, *p, *a, active);
            }
            Op::Redux {
                mode,
                d,
                a,
                members,
            } => {
                converge!(self.members(*members, mask, active));
                self.collective(cluster, &[*a], &[Some(*d)], active);
                self.redux(*mode, *d, *a, active);
            }
            Op::Elect { d, p, members } => {
                converge!(self.members(*members, mask, active));
                self.collective(cluster, &[], &[*d, p.map(pred)], active);
                self.elect(*d, *p, *members, active);
            }
            Op::ActiveMask { d } => self.regs.put_uniform(Some(*d), active, u64::from(active)),
            Op::Matrix(op) => {
                converge!(self.need_lanes(mask, active, u32::MAX));
                self.watched(cluster, |warp, watch, cluster| {
                    warp.observe_matrix(watch, cluster, op)
                });
                self.matrix(cluster, op)?;
            }
            Op::Mma(op) => {
                converge!(self.need_lanes(mask, active, u32::MAX));
                self.watched(cluster, |warp, watch, _| warp.observe_mma(watch, op));
                self.mma(op);
            }
            Op::Wgmma(op) => {
                converge!(self.need_lanes(mask, active, u32::MAX));
                return self.wgmma(cluster, op, pc);
            }
            Op::WgmmaFence => {
                converge!(self.need_lanes(mask, active, u32::MAX));
                self.warpgroup_step(cluster, pc, [0; 3])?;
                self.watched(cluster, |warp, watch, _| watch.wgmma_fence(warp.index));
            }
            Op::WgmmaCommit => {
                converge!(self.need_lanes(mask, active, u32::MAX));
                self.wgmma_commit(cluster, pc)?;
            }
            Op::WgmmaWait(allowed) => {
                converge!(self.need_lanes(mask, active, u32::MAX));
                return self.wgmma_wait(cluster, *allowed, pc);
            }
            Op::ClusterArrive { aligned, release } => {
                if *aligned {
                    converge!(self.need_warp(mask, active));
                }
                self.cluster_arrive(cluster, *release, active)?;
            }
            Op::ClusterWait { aligned } => {
                if *aligned {
                    converge!(self.need_warp(mask, active));
                } else if active != mask {
                    return Ok(Flow::Alone);
                }
                return self.cluster_wait(cluster, active);
            }
            Op::SetMaxNReg(count, more) => {
                converge!(self.need_lanes(mask, active, u32::MAX));
                return self.setmaxnreg(cluster, *count, *more, pc);
            }
            Op::MovMatrix { d, a } => {
                converge!(self.need_lanes(mask, active, u32::MAX));
                self.watched(cluster, |warp, watch, _| {
                    warp.observe_movmatrix(watch, *d, *a)
                });
                let value = crate::semantics::matrix::movmatrix_trans(self.regs.narrow(*a));
                self.regs.put_narrow(*d, active, &value);
            }
            Op::CpAsync(op) => self.cp_async(cluster, op, active)?,
            Op::CpCommit => self.commit_copies(cluster, active)?,
            Op::CpWait(allowed) => self.wait_copies(cluster, *allowed, active)?,
            Op::Bulk(op) => self.bulk(cluster, op, pc, active)?,
            Op::BulkCommit => self.bulk_commit(cluster, pc, active),
            Op::BulkWait(allowed, read) => self.bulk_wait(cluster, *allowed, *read, active),
            Op::Mbarrier(op) => return self.mbarrier(cluster, op, active),
            Op::Fence { .. } | Op::ProxyFence(_) => {}
            Op::Yield => return Ok(Flow::Yield),
            Op::Nop => {}
        }
        Ok(Flow::Next)
    }

    fn setp(&mut self, op: &SetP, active: u32) {
        let result = match &op.compare {
            Comparison::Narrow(f, a, b) => f(self.regs.narrow(*a), self.regs.narrow(*b)),
            Comparison::Wide(f, a, b) => {
                let (mut wa, mut wb) = ([0; WARP], [0; WARP]);
                self.regs.widen(*a, &mut wa);
                self.regs.widen(*b, &mut wb);
                f(&wa, &wb)
            }
        };
        let (combine, with) = op.combine.unwrap_or((Combine::And, PredSrc::TRUE));
        let with = self.regs.pred(with);
        let combined = |mask: u32| match combine {
            Combine::And => mask & with,
            Combine::Or => mask | with,
            Combine::Xor => mask ^ with,
        };
        self.regs.put_pred(op.p, active, combined(result));
        self.regs.put_pred(op.q, active, combined(!result));
    }

    fn carry(
        &mut self,
        d: Src,
        a: Src,
        b: Src,
        [carry_in, carry_out, negate]: [bool; 3],
        active: u32,
    ) {
        let (mut wa, mut wb, mut out) = ([0; WARP], [0; WARP], [0; WARP]);
        self.regs.widen(a, &mut wa);
        self.regs.widen(b, &mut wb);
        let wide = d.kind == crate::program::Kind::W64;
        let mut flags = 0;
        for lane in 0..WARP {
            let flag = carry_in && self.carry >> lane & 1 != 0;
            let (value, flag) = match (wide, negate) {
                (false, false) => {
                    let sum = wa[lane] + wb[lane] + u64::from(flag);
                    (sum, sum >> 32 != 0)
                }
                (false, true) => {
                    let difference = wa[lane]
                        .wrapping_sub(wb[lane])
                        .wrapping_sub(u64::from(flag));
                    (difference, difference >> 32 != 0)
                }
                (true, false) => {
                    let sum = u128::from(wa[lane]) + u128::from(wb[lane]) + u128::from(flag);
                    (sum as u64, sum >> 64 != 0)
                }
                (true, true) => {
                    let difference = u128::from(wa[lane]).wrapping_sub(u128::from(wb[lane]));
                    let difference = difference.wrapping_sub(u128::from(flag));
                    (difference as u64, difference >> 64 != 0)
                }
            };
            out[lane] = value;
            flags |= u32::from(flag) << lane;
        }
        if carry_out {
            self.carry = self.carry & !active | flags & active;
        }
        self.regs.put_wide(d, active, &out);
    }

    fn mad_carry(
        &mut self,
        d: Src,
        [a, b, c]: [Src; 3],
        [high, signed, carry_in, carry_out]: [bool; 4],
        active: u32,
    ) {
        let (mut wa, mut wb, mut wc, mut out) = ([0; WARP], [0; WARP], [0; WARP], [0; WARP]);
        self.regs.widen(a, &mut wa);
        self.regs.widen(b, &mut wb);
        self.regs.widen(c, &mut wc);
        let bits = if d.kind == crate::program::Kind::W64 {
            64
        } else {
            32
        };
        let extend = |v: u64| {
            if !signed {
                i128::from(v)
            } else if bits == 64 {
                i128::from(v as i64)
            } else {
                i128::from(v as u32 as i32)
            }
        };
        let mut flags = 0;
        for lane in 0..WARP {
            let product = extend(wa[lane]).wrapping_mul(extend(wb[lane]));
            let part =
                if high { product >> bits } else { product } as u128 & (u128::MAX >> (128 - bits));
            let flag = carry_in && self.carry >> lane & 1 != 0;
            let sum = part + u128::from(wc[lane]) + u128::from(flag);
            out[lane] = sum as u64;
            flags |= u32::from(sum >> bits != 0) << lane;
        }
        if carry_out {
            self.carry = self.carry & !active | flags & active;
        }
        self.regs.put_wide(d, active, &out);
    }

    fn unpack(&mut self, parts: &[Dst], a: Src, bits: u32, active: u32) {
        let mut wide = [0; WARP];
        self.regs.widen(a, &mut wide);
        for (n, &dst) in parts.iter().enumerate() {
            let Some(dst) = dst else { continue };
            let shift = (n as u32 * bits) & 63;
            let part = wide.map(|v| v >> shift & (u64::MAX >> (64 - bits)));
            self.regs.put_wide(dst, active, &part);
        }
    }
}

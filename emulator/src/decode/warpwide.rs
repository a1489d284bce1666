//! Barriers, exchange between lanes, matrices and asynchronous copies.

use super::{Decoded, Decoder, Form};
use crate::error::Space;
use crate::parse::tree::Operand;
use crate::program::{
    Address, Bar, BarKind, CpAsync, Kind, Matrix, Mbarrier, MbarrierOp, Mma, MmaFn, Narrow, Op,
    PredSrc, ProxyFence, ReduxMode, Shfl, ShflMode, Slot, Src, VoteMode,
};
use crate::semantics::{Float, mma};

impl Decoder<'_> {
    pub(super) fn sync(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let opcode = form.opcode();
        if opcode.starts_with("mbarrier") || opcode.starts_with("cp.async.mbarrier") {
            return self.mbarrier(form);
        }
        match opcode {
            "bar.warp.sync" => Ok(Op::WarpSync {
                members: self.src(&form.operands[0], 32)?,
            }),
            "barrier.cluster.arrive" => Ok(Op::ClusterArrive {
                aligned: form.has(".aligned"),
                release: !form.has(".relaxed"),
            }),
            "barrier.cluster.wait" => Ok(Op::ClusterWait {
                aligned: form.has(".aligned"),
            }),
            "membar" | "fence" => Ok(Op::Fence {
                beyond_block: !form.has(".cta"),
            }),
            "fence.proxy" | "fence.mbarrier_init" => Ok(Op::ProxyFence(ProxyFence {
                shared: [".async", ".async.shared::cta", ".async.shared::cluster"]
                    .iter()
                    .any(|m| form.has(m)),
                global: form.has(".async") || form.has(".async.global"),
                init: opcode == "fence.mbarrier_init",
            })),
            // Tensor maps that a kernel changes are not followed.
            _ if opcode.starts_with("fence") => Ok(Op::Nop),
            _ => self.bar(form),
        }
    }

    fn bar(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let opcode = form.opcode();
        let aligned = opcode.starts_with("bar.") || form.has(".aligned");
        let kind = match opcode.rsplit('.').next() {
            Some("sync") => BarKind::Sync,
            Some("arrive") => BarKind::Arrive,
            _ if form.has(".popc") => BarKind::Popc,
            _ if form.has(".and") => BarKind::And,
            _ => BarKind::Or,
        };
        let mut operands = form.operands;
        let (mut dst, mut operand) = (None, PredSrc::TRUE);
        if !matches!(kind, BarKind::Sync | BarKind::Arrive) {
            dst = Some(if kind == BarKind::Popc {
                self.dst(&operands[0], 32)?
            } else {
                let slot = self
                    .pred_dst(&operands[0])?
                    .ok_or("a predicate register was expected")?;
                Src {
                    slot,
                    kind: Kind::Pred,
                }
            });
            operand = self.pred_src(&operands[operands.len() - 1])?;
            operands = &operands[1..operands.len() - 1];
        }
        let id = operands.first().ok_or("a barrier was expected")?;
        let id = self.src(id, 32)?;
        let count = operands
            .get(1)
            .map(|count| self.src(count, 32))
            .transpose()?;
        Ok(Op::Bar(Box::new(Bar {
            kind,
            aligned,
            id,
            count,
            operand,
            dst,
        })))
    }

    fn mbarrier(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let op = match form.opcode() {
            "mbarrier.init" => MbarrierOp::Init,
            "mbarrier.inval" => MbarrierOp::Inval,
            "mbarrier.arrive" => MbarrierOp::Arrive,
            "mbarrier.arrive.noComplete" => MbarrierOp::ArriveNoComplete,
            "mbarrier.arrive.expect_tx" => MbarrierOp::ArriveExpectTx,
            "mbarrier.arrive_drop" => MbarrierOp::ArriveDrop,
            "mbarrier.expect_tx" => MbarrierOp::ExpectTx,
            "mbarrier.complete_tx" => MbarrierOp::CompleteTx,
            "mbarrier.test_wait" => MbarrierOp::TestWait,
            "mbarrier.test_wait.parity" => MbarrierOp::TestWaitParity,
            "mbarrier.try_wait" => MbarrierOp::TryWait,
            "mbarrier.try_wait.parity" => MbarrierOp::TryWaitParity,
            "mbarrier.pending_count" => MbarrierOp::PendingCount,
            _ => MbarrierOp::CopyArrive(form.has(".noinc")),
        };
        let (relaxed, space) = (form.has(".relaxed"), form.space());
        if op == MbarrierOp::PendingCount {
            let dst = Some(self.dst(&form.operands[0], 32)?);
            let operand = Some(self.src(&form.operands[1], 64)?);
            return Ok(Op::Mbarrier(Box::new(Mbarrier {
                op,
                relaxed,
                space,
                address: None,
                dst,
                operand,
            })));
        }
        let mut operands = form.operands;
        let mut dst = None;
        let waits = matches!(
            op,
            MbarrierOp::TestWait
                | MbarrierOp::TestWaitParity
                | MbarrierOp::TryWait
                | MbarrierOp::TryWaitParity
        );
        if form.row.operands.starts_with('d') {
            dst = if waits {
                self.pred_dst(&operands[0])?.map(|slot| Src {
                    slot,
                    kind: Kind::Pred,
                })
            } else {
                self.dst_or_sink(&operands[0], 64)?
            };
            operands = &operands[1..];
        }
        let address = Some(self.address(&operands[0], space)?);
        let bits = if matches!(op, MbarrierOp::TestWait | MbarrierOp::TryWait) {
            64
        } else {
            32
        };
        let operand = operands.get(1).map(|o| self.src(o, bits)).transpose()?;
        Ok(Op::Mbarrier(Box::new(Mbarrier {
            op,
            relaxed,
            space,
            address,
            dst,
            operand,
        })))
    }

    pub(super) fn collective(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let members = match form.operands.last() {
            Some(last) if form.opcode() != "activemask" => self.src(last, 32)?,
            _ => self.bits(32, 0),
        };
        match form.opcode() {
            "shfl.sync" => {
                let mode = match form.mods[0] {
                    ".up" => ShflMode::Up,
                    ".down" => ShflMode::Down,
                    ".bfly" => ShflMode::Bfly,
                    _ => ShflMode::Idx,
                };
                let (d, p) = self.pair(&form.operands[0]);
                let (d, p) = (
                    self.dst_or_sink(d, 32)?,
                    p.map_or(Ok(None), |p| self.pred_dst(p))?,
                );
                let a = self.src(&form.operands[1], 32)?;
                let b = self.src(&form.operands[2], 32)?;
                let c = self.src(&form.operands[3], 32)?;
                Ok(Op::Shfl(Box::new(Shfl {
                    mode,
                    d,
                    p,
                    a,
                    b,
                    c,
                    members,
                })))
            }
            "vote.sync" => {
                let mode = match form.mods[0] {
                    ".all" => VoteMode::All,
                    ".any" => VoteMode::Any,
                    ".uni" => VoteMode::Uni,
                    _ => VoteMode::Ballot,
                };
                let d = if mode == VoteMode::Ballot {
                    self.dst_or_sink(&form.operands[0], 32)?
                } else {
                    self.pred_dst(&form.operands[0])?.map(|slot| Src {
                        slot,
                        kind: Kind::Pred,
                    })
                };
                let a = self.pred_src(&form.operands[1])?;
                Ok(Op::Vote {
                    mode,
                    d,
                    a,
                    members,
                })
            }
            "match.any.sync" | "match.all.sync" => {
                let bits = form.ty()?.bits;
                let (d, p) = self.pair(&form.operands[0]);
                let (d, p) = (
                    self.dst_or_sink(d, 32)?,
                    p.map_or(Ok(None), |p| self.pred_dst(p))?,
                );
                let a = self.src(&form.operands[1], bits)?;
                Ok(Op::Match {
                    all: form.opcode() == "match.all.sync",
                    d,
                    p,
                    a,
                    members,
                })
            }
            "redux.sync" => {
                let signed = form.has(".s32");
                let mode = match form.mods[0] {
                    ".and" => ReduxMode::And,
                    ".or" => ReduxMode::Or,
                    ".xor" => ReduxMode::Xor,
                    ".add" => ReduxMode::Add,
                    ".min" if signed => ReduxMode::MinS,
                    ".min" => ReduxMode::MinU,
                    _ if signed => ReduxMode::MaxS,
                    _ => ReduxMode::MaxU,
                };
                let d = self.dst(&form.operands[0], 32)?;
                let a = self.src(&form.operands[1], 32)?;
                Ok(Op::Redux {
                    mode,
                    d,
                    a,
                    members,
                })
            }
            "elect.sync" => {
                let (d, p) = self.pair(&form.operands[0]);
                let (d, p) = (
                    self.dst_or_sink(d, 32)?,
                    p.map_or(Ok(None), |p| self.pred_dst(p))?,
                );
                Ok(Op::Elect { d, p, members })
            }
            _ => Ok(Op::ActiveMask {
                d: self.dst(&form.operands[0], 32)?,
            }),
        }
    }

    fn row(&self, operand: &Operand) -> Decoded<Slot> {
        Ok(self.dst(operand, 32)?.slot)
    }

    /// An mma operand: that many 32-bit registers.
    pub(super) fn fragment(
        &mut self,
        operand: &Operand,
        count: usize,
        written: bool,
    ) -> Decoded<Vec<Slot>> {
        let parts = match operand {
            Operand::Vector(parts) => parts.as_slice(),
            other => std::slice::from_ref(other),
        };
        if parts.len() != count {
            return Err(format!(
                "a matrix operand has {} registers, {count} are needed",
                parts.len()
            ));
        }
        let mut slots = Vec::with_capacity(count);
        for part in parts {
            slots.push(if written {
                self.row(part)?
            } else {
                self.src(part, 32)?.slot
            });
        }
        Ok(slots)
    }

    pub(super) fn matrix(&mut self, form: &Form<'_>) -> Decoded<Op> {
        match form.opcode() {
            "ldmatrix.sync.aligned" | "stmatrix.sync.aligned" => {
                let store = form.opcode().starts_with("st");
                let count = [(".x1", 1), (".x2", 2), (".x4", 4)];
                let count = count
                    .iter()
                    .find(|(m, _)| form.has(m))
                    .map_or(1, |&(_, n)| n);
                let space = form.space();
                let (regs, address) = if store { (1, 0) } else { (0, 1) };
                let regs = self.fragment(&form.operands[regs], count, !store)?;
                let address = self.address(&form.operands[address], space)?;
                Ok(Op::Matrix(Box::new(Matrix {
                    store,
                    transposed: form.has(".trans"),
                    space,
                    address,
                    regs,
                })))
            }
            "movmatrix.sync.aligned" => {
                let d = self.row(&form.operands[0])?;
                let a = self.src(&form.operands[1], 32)?.slot;
                Ok(Op::MovMatrix { d, a })
            }
            _ => self.mma(form),
        }
    }

    fn mma(&mut self, form: &Form<'_>) -> Decoded<Op> {
        let shape = form.mods[0];
        let types = &form.mods[form.mods.len() - 4..];
        let cores = self.numerics.tensor_cores;
        /// Slices as arrays of the lengths that decoding has checked.
        macro_rules! call {
            (|$d:ident, $a:ident, $b:ident, $c:ident| $body:expr) => {
                Box::new(
                    move |d: &mut [Narrow], a: &[Narrow], b: &[Narrow], c: &[Narrow]| {
                        if let (Ok($d), Ok($a), Ok($b), Ok($c)) =
                            (d.try_into(), a.try_into(), b.try_into(), c.try_into())
                        {
                            $body
                        }
                    },
                )
            };
        }
        let fp8 = |name: &str| {
            if name == ".e4m3" {
                Float::E4m3
            } else {
                Float::E5m2
            }
        };
        let half = |name: &str| {
            if name == ".f16" {
                mma::Half::F16
            } else {
                mma::Half::Bf16
            }
        };
        // Registers of d and c, a, b.
        let (f, counts): (MmaFn, [usize; 3]) = match (shape, types[0], types[1]) {
            (".m16n8k16", ".f32", name @ (".f16" | ".bf16")) => {
                let kind = half(name);
                (
                    call!(|d, a, b, c| mma::mma_m16n8k16_f32(cores, kind, d, a, b, c)),
                    [4, 4, 2],
                )
            }
            (".m16n8k8", ".f32", name @ (".f16" | ".bf16")) => {
                let kind = half(name);
                (
                    call!(|d, a, b, c| mma::mma_m16n8k8_f32(cores, kind, d, a, b, c)),
                    [4, 2, 1],
                )
            }
            (".m16n8k16", ".f16", _) => (
                call!(|d, a, b, c| mma::mma_m16n8k16_f16(cores, d, a, b, c)),
                [2, 4, 2],
            ),
            (".m16n8k8", ".f16", _) => (
                call!(|d, a, b, c| mma::mma_m16n8k8_f16(cores, d, a, b, c)),
                [2, 2, 1],
            ),
            (".m16n8k8", _, ".tf32") => (
                call!(|d, a, b, c| mma::mma_m16n8k8_tf32(cores, d, a, b, c)),
                [4, 4, 2],
            ),
            (".m16n8k4", _, ".tf32") => (
                call!(|d, a, b, c| mma::mma_m16n8k4_tf32(cores, d, a, b, c)),
                [4, 2, 1],
            ),
            (".m16n8k32", ".f32", _) => {
                let (at, bt) = (fp8(types[1]), fp8(types[2]));
                (
                    call!(|d, a, b, c| mma::mma_m16n8k32_fp8(cores, at, bt, d, a, b, c)),
                    [4, 4, 2],
                )
            }
            (_, ".s32", _) => {
                let signed = [types[1] == ".s8", types[2] == ".s8"];
                let saturate = form.has(".satfinite");
                if shape == ".m16n8k32" {
                    (
                        call!(|d, a, b, c| mma::mma_m16n8k32_s32(signed, saturate, d, a, b, c)),
                        [4, 4, 2],
                    )
                } else {
                    (
                        call!(|d, a, b, c| mma::mma_m16n8k16_s32(signed, saturate, d, a, b, c)),
                        [4, 2, 1],
                    )
                }
            }
            _ => return Err("this shape and these types are not supported".to_owned()),
        };
        let d = self.fragment(&form.operands[0], counts[0], true)?;
        let a = self.fragment(&form.operands[1], counts[1], false)?;
        let b = self.fragment(&form.operands[2], counts[2], false)?;
        let c = self.fragment(&form.operands[3], counts[0], false)?;
        Ok(Op::Mma(Box::new(Mma { f, d, a, b, c })))
    }

    pub(super) fn asynchronous(&mut self, form: &Form<'_>) -> Decoded<Op> {
        match form.opcode() {
            "cp.async.commit_group" => return Ok(Op::CpCommit),
            "cp.async.wait_all" => return Ok(Op::CpWait(None)),
            "cp.async.wait_group" => {
                let allowed = self.immediate(&form.operands[0])?;
                let allowed =
                    u32::try_from(allowed).map_err(|_| "the number of groups is out of range")?;
                return Ok(Op::CpWait(Some(allowed)));
            }
            _ => {}
        }
        // Without a space, the destination is a generic address: but `.global` is the source's, always there.
        let shared = form.has(".shared") || form.has(".shared::cta");
        let dst_space = if shared {
            Space::Shared
        } else {
            Space::Generic
        };
        let dst: Address = self.address(&form.operands[0], dst_space)?;
        let src = self.address(&form.operands[1], Space::Global)?;
        let bytes = self.immediate(&form.operands[2])?;
        let sizes: &[u64] = if form.has(".cg") { &[16] } else { &[4, 8, 16] };
        if !sizes.contains(&bytes) {
            return Err(format!(
                "a copy of {bytes} bytes; this form copies {sizes:?}"
            ));
        }
        let mut rest = &form.operands[3..];
        if form.has(".L2::cache_hint") {
            rest = rest.split_last().ok_or("a cache policy was expected")?.1;
        }
        let (mut src_bytes, mut ignore) = (None, None);
        match rest {
            [] => {}
            [Operand::Reg(reg) | Operand::NotReg(reg)]
                if self.body.registers[*reg as usize].bits == 1 =>
            {
                ignore = Some(self.pred_src(&rest[0])?);
            }
            [size] => src_bytes = Some(self.src(size, 32)?),
            _ => return Err("too many operands".to_owned()),
        }
        let bytes = bytes as u32;
        Ok(Op::CpAsync(Box::new(CpAsync {
            dst_space,
            src_space: Space::Global,
            dst,
            src,
            bytes,
            src_bytes,
            ignore,
        })))
    }
}

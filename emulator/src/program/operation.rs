//! What the larger operations need: their operands, and which of their kind they are.

use super::{AtomicFn, Dst, MmaFn, Order, PredSrc, Slot, Src};
use crate::error::Space;
use crate::numerics::TensorCores;
use crate::semantics::wgmma;
use crate::tensor_map::ElementType;

/// An address operand: a register (or constant) plus an offset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) base: Src,
    pub(crate) offset: i64,
}

pub(crate) struct Load {
    pub(crate) space: Space,
    pub(crate) address: Address,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub(crate) bytes: u32,
    pub(crate) signed: bool,
    pub(crate) dst: Vec<Dst>,
    pub(crate) order: Order,
}

pub(crate) struct Store {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) bytes: u32,
    pub(crate) src: Vec<Src>,
    pub(crate) order: Order,
}

pub(crate) struct Atomic {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) bytes: u32,
    pub(crate) dst: Dst,
    pub(crate) a: Src,
    pub(crate) b: Src,
    pub(crate) f: AtomicFn,
    pub(crate) order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    And,
    Or,
    Popc,
}

pub(crate) struct Bar {
    pub(crate) kind: BarKind,
    pub(crate) aligned: bool,
    pub(crate) id: Src,
    pub(crate) count: Option<Src>,
    pub(crate) operand: PredSrc,
    pub(crate) dst: Dst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

pub(crate) struct Shfl {
    pub(crate) mode: ShflMode,
    pub(crate) d: Dst,
    pub(crate) p: Option<u32>,
    pub(crate) a: Src,
    pub(crate) b: Src,
    pub(crate) c: Src,
    pub(crate) members: Src,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReduxMode {
    And,
    Or,
    Xor,
    Add,
    MinU,
    MaxU,
    MinS,
    MaxS,
}

pub(crate) struct Matrix {
    pub(crate) store: bool,
    pub(crate) transposed: bool,
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) regs: Vec<Slot>,
}

pub(crate) struct Mma {
    pub(crate) f: MmaFn,
    pub(crate) d: Vec<Slot>,
    pub(crate) a: Vec<Slot>,
    pub(crate) b: Vec<Slot>,
    pub(crate) c: Vec<Slot>,
}

/// A of a `wgmma`.
pub(crate) enum WgmmaA {
    Registers([Slot; 4]),
    /// By its descriptor.
    Shared(Src),
}

/// `wgmma.mma_async`.
pub(crate) struct Wgmma {
    pub(crate) kind: wgmma::Kind,
    pub(crate) cores: TensorCores,
    /// Columns.
    pub(crate) n: usize,
    pub(crate) d: Vec<Slot>,
    pub(crate) a: WgmmaA,
    /// Descriptor of B.
    pub(crate) b: Src,
    /// Whether D is added to.
    pub(crate) scale_d: PredSrc,
}

pub(crate) struct CpAsync {
    pub(crate) dst_space: Space,
    pub(crate) src_space: Space,
    pub(crate) dst: Address,
    pub(crate) src: Address,
    pub(crate) bytes: u32,
    pub(crate) src_bytes: Option<Src>,
    pub(crate) ignore: Option<PredSrc>,
}

/// Which way a bulk copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From global to shared memory.
    Load,
    /// From shared to global memory.
    Store,
    /// From a block's shared memory to that of a block of its cluster.
    Send,
}

/// What a bulk copy moves.
pub(crate) enum Extent {
    /// So many bytes; their address in global memory, if they are there.
    Linear { global: Option<Address>, bytes: Src },
    /// A box of a tensor: the map's generic address, and coordinates of 32 bits.
    Tensor { map: Address, coordinates: Vec<Src> },
}

/// `cp.async.bulk` and `cp.reduce.async.bulk`, with tensor maps or without.
pub(crate) struct Bulk {
    pub(crate) direction: Direction,
    pub(crate) extent: Extent,
    /// In the shared memory of the block: the destination of a load, else the source.
    pub(crate) shared: (Space, Address),
    /// Destination of a send.
    pub(crate) remote: Option<Address>,
    /// Where the bytes are counted that arrive.
    pub(crate) mbarrier: Option<(Space, Address)>,
    /// The blocks of the cluster that a load goes to.
    pub(crate) multicast: Option<Src>,
    /// How elements of a type are updated; none: they are overwritten.
    pub(crate) reduce: Vec<(ElementType, AtomicFn)>,
}

/// What an mbarrier instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MbarrierOp {
    Init,
    Inval,
    Arrive,
    ArriveNoComplete,
    ArriveDrop,
    ExpectTx,
    ArriveExpectTx,
    CompleteTx,
    TestWait,
    TestWaitParity,
    TryWait,
    TryWaitParity,
    PendingCount,
    /// `cp.async.mbarrier.arrive`; true with `.noinc`.
    CopyArrive(bool),
}

pub(crate) struct Mbarrier {
    pub(crate) op: MbarrierOp,
    /// `.relaxed`: orders nothing, but with fences.
    pub(crate) relaxed: bool,
    pub(crate) space: Space,
    pub(crate) address: Option<Address>,
    pub(crate) dst: Dst,
    pub(crate) operand: Option<Src>,
}

impl Mbarrier {
    pub(crate) fn waits(&self) -> bool {
        matches!(
            self.op,
            MbarrierOp::TestWait
                | MbarrierOp::TestWaitParity
                | MbarrierOp::TryWait
                | MbarrierOp::TryWaitParity
        )
    }
}

/// A register that the machine provides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    ClusterId(u8),
    NClusterId(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtaRank,
    ClusterNctaRank,
    /// A predicate.
    IsExplicitCluster,
    LaneId,
    WarpId,
    NWarpId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    SmId,
    NSmId,
    GridId,
    DynamicShared,
    TotalShared,
}

/// A fence between proxies: of accesses to shared and to global memory, and of the making of mbarriers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProxyFence {
    pub(crate) shared: bool,
    pub(crate) global: bool,
    pub(crate) init: bool,
}

//! A decoded entry: instructions with their operands resolved to places in the register file.

mod operation;

use std::fmt;

use crate::error::Space;
use crate::parse::tree::Source;
pub(crate) use operation::*;

/// Lanes of a warp.
pub(crate) const WARP: usize = 32;
/// All lanes.
pub(crate) const ALL: u32 = u32::MAX;

/// One 32-bit register of every lane. A 64-bit register is two rows, seen as 32 `u64`.
#[derive(Debug, Clone, Copy, Hash)]
#[repr(C, align(64))]
pub(crate) struct Row(pub(crate) [u32; WARP]);

/// A 32-bit value of every lane.
pub(crate) type Narrow = [u32; WARP];
/// A 64-bit value of every lane.
pub(crate) type Wide = [u64; WARP];

/// A row of the register file.
pub(crate) type Slot = u32;

/// How a register is stored, and what a write keeps of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One row, of which the low 8 bits are kept.
    W8,
    /// One row, of which the low 16 bits are kept.
    W16,
    /// One row.
    W32,
    /// Two rows.
    W64,
    /// A bit of a predicate mask.
    Pred,
}

/// A readable place: a register or a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Src {
    pub(crate) slot: Slot,
    pub(crate) kind: Kind,
}

/// A writable place; `None` where the operand is `_`.
pub(crate) type Dst = Option<Src>;

/// A predicate operand: a mask and what to xor it with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PredSrc {
    pub(crate) index: u32,
    pub(crate) flip: u32,
}

impl PredSrc {
    /// True in every lane: predicate 0 is all ones.
    pub(crate) const TRUE: PredSrc = PredSrc { index: 0, flip: 0 };
}

pub(crate) type NarrowFn = Box<dyn Fn(&mut Narrow, &Narrow, &Narrow, &Narrow) + Send + Sync>;
pub(crate) type WideFn = Box<dyn Fn(&mut Wide, &Wide, &Wide, &Wide) + Send + Sync>;
pub(crate) type CompareFn = Box<dyn Fn(&Wide, &Wide) -> u32 + Send + Sync>;
pub(crate) type NarrowCompareFn = Box<dyn Fn(&Narrow, &Narrow) -> u32 + Send + Sync>;
/// d, a, b, c registers of an mma.
pub(crate) type MmaFn = Box<dyn Fn(&mut [Narrow], &[Narrow], &[Narrow], &[Narrow]) + Send + Sync>;
/// Old value, operands: new value.
pub(crate) type AtomicFn = Box<dyn Fn(u64, u64, u64) -> u64 + Send + Sync>;

/// Which comparison a `setp` makes.
pub(crate) enum Comparison {
    Narrow(NarrowCompareFn, Slot, Slot),
    Wide(CompareFn, Src, Src),
}

/// How `setp` combines its comparison with its predicate operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Combine {
    And,
    Or,
    Xor,
}

pub(crate) struct SetP {
    pub(crate) compare: Comparison,
    pub(crate) p: Option<u32>,
    pub(crate) q: Option<u32>,
    pub(crate) combine: Option<(Combine, PredSrc)>,
}

/// An instruction's work.
pub(crate) enum Op {
    Narrow {
        f: NarrowFn,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Wide {
        f: WideFn,
        d: Src,
        a: Src,
        b: Src,
        c: Src,
    },
    Mov32 {
        d: Slot,
        a: Slot,
    },
    Mov64 {
        d: Slot,
        a: Slot,
    },
    /// Predicate logic: bit (a | b << 1) of the table.
    Pred {
        table: u8,
        d: u32,
        a: PredSrc,
        b: PredSrc,
    },
    SetP(Box<SetP>),
    Select32 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: PredSrc,
    },
    Select64 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: PredSrc,
    },
    /// `add.cc` and its kin: sums with the carry flag in and out; `negate` for `sub`.
    Carry {
        d: Src,
        a: Src,
        b: Src,
        carry_in: bool,
        carry_out: bool,
        negate: bool,
    },
    /// `mad.lo.cc` and `mad.hi.cc`, `madc`.
    MadCarry {
        d: Src,
        a: Src,
        b: Src,
        c: Src,
        high: bool,
        signed: bool,
        carry_in: bool,
        carry_out: bool,
    },
    /// `mov.b64 d, {a, b}`.
    Pack {
        d: Src,
        parts: Vec<Src>,
        bits: u32,
    },
    /// `mov.b64 {a, b}, d`.
    Unpack {
        parts: Vec<Dst>,
        a: Src,
        bits: u32,
    },
    Clock {
        d: Src,
    },
    Load(Box<Load>),
    Store(Box<Store>),
    Atomic(Box<Atomic>),
    IsSpace {
        d: u32,
        a: Src,
        space: Space,
    },
    Branch {
        target: u32,
        /// `.uni`: all lanes agree.
        uniform: bool,
    },
    BranchIndex {
        index: Src,
        targets: Vec<u32>,
        uniform: bool,
    },
    Exit,
    Trap,
    Bar(Box<Bar>),
    WarpSync {
        members: Src,
    },
    Shfl(Box<Shfl>),
    Vote {
        mode: VoteMode,
        d: Dst,
        a: PredSrc,
        members: Src,
    },
    Match {
        all: bool,
        d: Dst,
        p: Option<u32>,
        a: Src,
        members: Src,
    },
    Redux {
        mode: ReduxMode,
        d: Src,
        a: Src,
        members: Src,
    },
    Elect {
        d: Dst,
        p: Option<u32>,
        members: Src,
    },
    ActiveMask {
        d: Src,
    },
    Matrix(Box<Matrix>),
    Mma(Box<Mma>),
    Wgmma(Box<Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    /// Waits until at most so many groups of the warpgroup are pending.
    WgmmaWait(u32),
    /// `movmatrix`.
    MovMatrix {
        d: Slot,
        a: Slot,
    },
    CpAsync(Box<CpAsync>),
    CpCommit,
    /// Waits until at most so many groups are pending; `None`: for everything, committed or not.
    CpWait(Option<u32>),
    Bulk(Box<Bulk>),
    BulkCommit,
    /// Waits until at most so many bulk groups of the thread are left, or (true) are left to be read.
    BulkWait(u32, bool),
    Mbarrier(Box<Mbarrier>),
    /// `fence`, `membar`: its scope reaches beyond the block, or not.
    Fence {
        beyond_block: bool,
    },
    ProxyFence(ProxyFence),
    /// Arrival at the cluster's barrier; `release`: with all that came before.
    ClusterArrive {
        aligned: bool,
        release: bool,
    },
    ClusterWait {
        aligned: bool,
    },
    /// `setmaxnreg`: to so many registers of a thread, more (true) or fewer than it has.
    SetMaxNReg(u32, bool),
    /// Lets other warps run.
    Yield,
    Nop,
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Op")
    }
}

/// A decoded instruction.
#[derive(Debug)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    pub(crate) guard: PredSrc,
    /// Of a branch: where the paths meet again, or [`NOWHERE`].
    pub(crate) join: u32,
    /// How uninitialised bytes of the sources reach the destination.
    pub(crate) spread: Spread,
}

/// Which bytes of a result are uninitialised if bytes of the operands are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Spread {
    /// All, if any is.
    #[default]
    Mix,
    /// Each bit from its own, if the others leave it a say; the table is that of `lop3`.
    Logic(u8),
    /// Each byte from its own.
    Bytewise,
    /// Bits moved to the left.
    Left,
    /// Bits of so many bytes moved to the right; true: the top bit fills.
    Right(u8, bool),
    /// `bfi`: so many bits of the first operand, placed there in the second.
    Insert { place: u32, len: u32 },
    /// `bfe` of 32 bits.
    Field { signed: bool },
    /// `prmt`: bytes picked by the third operand.
    Permute,
    /// Each half from its own.
    Halves,
    /// The upper half from the first operand, the lower from the second.
    PackHalves,
    /// So many bytes; those above are zero or (true) copies of the top bit.
    Extend(u8, bool),
}

/// How strong an access to memory is. (PTX ISA 8.5, morally strong operations)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Order {
    /// Not weak: relaxed, volatile or atomic.
    pub(crate) strong: bool,
    pub(crate) acquire: bool,
    pub(crate) release: bool,
    /// Whether the scope reaches beyond the block.
    pub(crate) beyond_block: bool,
}

impl Order {
    pub(crate) const WEAK: Order = Order {
        strong: false,
        acquire: false,
        release: false,
        beyond_block: false,
    };
    /// Relaxed, of the device's scope.
    pub(crate) const ATOMIC: Order = Order {
        strong: true,
        beyond_block: true,
        ..Order::WEAK
    };
}

/// No instruction.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// A constant row or pair of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Constant {
    Bits(u64),
    /// The address of a variable of the module or a body, by its place in `Module::all_variables`, plus an offset.
    Variable(usize, u64),
    /// An address in the shared memory of the first block of a cluster, or its generic form; other blocks' have their
    /// rank in bits 24 and up.
    Shared(u64),
}

/// Where an instruction came from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) line: u32,
    pub(crate) range: std::ops::Range<usize>,
    /// The line of source, if the text says.
    pub(crate) source: Option<Source>,
}

/// A decoded entry.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) code: Vec<Inst>,
    pub(crate) origin: Vec<Origin>,
    /// Rows of the register file, constants and special registers included.
    pub(crate) rows: u32,
    pub(crate) preds: u32,
    /// The registers that each instruction other than a matrix product accesses; nothing without those.
    pub(crate) touched: Vec<Vec<Src>>,
    /// Registers that some path reads before it has written them. They share their places with no others.
    pub(crate) undefined: Vec<Src>,
    pub(crate) constants: Vec<(Src, Constant)>,
    pub(crate) specials: Vec<(Src, Special)>,
    pub(crate) static_shared: u64,
    pub(crate) dynamic_align: u64,
    /// Registers that a thread begins with, if the entry's directives say.
    pub(crate) registers: Option<u32>,
    /// Bytes of local memory of a thread.
    pub(crate) local: u64,
}

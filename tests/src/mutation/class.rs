//! The classes of mutations.

use std::fmt;

/// What is done to an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// A barrier of the block, or an arrival at one, is removed. One that votes becomes the thread's own vote.
    Barrier,
    /// A barrier of the block lets half the threads pass.
    BarrierCount,
    /// A barrier of the cluster is removed.
    ClusterBarrier,
    /// A barrier of the warp is removed.
    WarpBarrier,
    /// A vote or an election has always the same result, or is the thread's own.
    Vote,
    /// A shuffle, vote, election or barrier of the warp forgets its last lane.
    MemberMask,
    /// A wait for asynchronous copies or products is removed.
    Wait,
    /// A wait for asynchronous copies or products leaves one more group in flight, or only waits until sources have been read.
    WaitCount,
    /// A commit of asynchronous copies or products is removed.
    Commit,
    /// A fence is removed.
    Fence,
    /// Accesses that a predicate guards always happen.
    Guard,
    /// One of the two conditions of a guard is dropped.
    GuardPart,
    /// A predicate that decides about accesses is inverted.
    GuardInverted,
    /// An asynchronous copy reads all its bytes, whatever its source's size.
    CopySize,
    /// A copy of a box is one element off in one dimension.
    Coordinate,
    /// A copy to all blocks of a cluster leaves one out.
    Multicast,
    /// Phases of an mbarrier take one arrival more, or one less.
    MbarrierInit,
    /// A wait for an mbarrier is skipped, or is one for the other phase.
    MbarrierWait,
    /// An arrival at an mbarrier is removed.
    MbarrierArrive,
    /// An arrival at an mbarrier expects no bytes, or 16 more or less.
    ExpectBytes,
    /// An atomic operation is removed.
    Atomic,
    /// Registers are not asked for, or not given back.
    Registers,
    /// What is hidden from the softmax is not, or what is not is.
    Mask,
    /// An XOR on the way to an address in shared memory is left out.
    Swizzle,
    /// An access to shared memory is off by its own size.
    Offset,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 25] = [
        Self::Barrier,
        Self::BarrierCount,
        Self::ClusterBarrier,
        Self::WarpBarrier,
        Self::Vote,
        Self::MemberMask,
        Self::Wait,
        Self::WaitCount,
        Self::Commit,
        Self::Fence,
        Self::Guard,
        Self::GuardPart,
        Self::GuardInverted,
        Self::CopySize,
        Self::Coordinate,
        Self::Multicast,
        Self::MbarrierInit,
        Self::MbarrierWait,
        Self::MbarrierArrive,
        Self::ExpectBytes,
        Self::Atomic,
        Self::Registers,
        Self::Mask,
        Self::Swizzle,
        Self::Offset,
    ];

    /// Whether it takes away what orders threads, or asynchronous copies.
    pub const fn synchronises(self) -> bool {
        use Class::{
            Barrier, BarrierCount, ClusterBarrier, Commit, ExpectBytes, Fence, MbarrierArrive,
            MbarrierInit, MbarrierWait, Wait, WaitCount, WarpBarrier,
        };
        matches!(
            self,
            Barrier
                | BarrierCount
                | ClusterBarrier
                | Commit
                | ExpectBytes
                | Fence
                | MbarrierArrive
                | MbarrierInit
                | MbarrierWait
                | Wait
                | WaitCount
                | WarpBarrier
        )
    }

    /// Name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::BarrierCount => "barrier-count",
            Self::ClusterBarrier => "cluster-barrier",
            Self::WarpBarrier => "warp-barrier",
            Self::Vote => "vote",
            Self::MemberMask => "member-mask",
            Self::Wait => "wait",
            Self::WaitCount => "wait-count",
            Self::Commit => "commit",
            Self::Fence => "fence",
            Self::Guard => "guard",
            Self::GuardPart => "guard-part",
            Self::GuardInverted => "guard-inverted",
            Self::CopySize => "copy-size",
            Self::Coordinate => "coordinate",
            Self::Multicast => "multicast",
            Self::MbarrierInit => "mbarrier-init",
            Self::MbarrierWait => "mbarrier-wait",
            Self::MbarrierArrive => "mbarrier-arrive",
            Self::ExpectBytes => "expect-bytes",
            Self::Atomic => "atomic",
            Self::Registers => "registers",
            Self::Mask => "mask",
            Self::Swizzle => "swizzle",
            Self::Offset => "offset",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Class {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|class| class.as_str() == text);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("`{text}` is none of {known}")
        })
    }
}

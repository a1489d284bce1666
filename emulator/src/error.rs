//! What can go wrong: in the text, in memory, at launch, and while a kernel runs.

use std::fmt;

use thiserror::Error;

use crate::sanitize::Report;

/// PTX text that is malformed, or that uses something this emulator does not know.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {message}{}", if instruction.is_empty() { String::new() } else { format!(", in `{instruction}`") })]
pub struct ParseError {
    /// Line of the text, from 1.
    pub line: u32,
    /// Column of the line, from 1, in bytes.
    pub column: u32,
    /// What was found and what was expected.
    pub message: String,
    /// The instruction it was found in, or nothing outside of instructions.
    pub instruction: String,
}

/// A device-memory call by the host that could not be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// The device has not that much memory left.
    #[error("cannot allocate {requested} bytes: {used} of {limit} bytes are in use")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes allocated.
        used: u64,
        /// [`Options::memory_limit`](crate::Options::memory_limit).
        limit: u64,
    },
    /// The range is not inside one live allocation.
    #[error("[{address:#x}, {address:#x} + {len}) is not inside an allocation{detail}")]
    OutOfBounds {
        /// First address.
        address: u64,
        /// Bytes.
        len: u64,
        /// The nearest allocation, in words.
        detail: String,
    },
    /// The address was never returned by `allocate`, or was freed before.
    #[error("{address:#x} is not the start of a live allocation")]
    NotAllocated {
        /// The address given.
        address: u64,
    },
}

/// A launch that did not start, or did not end well.
#[derive(Debug, Clone, Error)]
pub enum LaunchError {
    /// The module has no entry of that name.
    #[error("no entry named `{name}`; the module has: {known}")]
    UnknownEntry {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The entry uses an instruction or directive that the emulator does not know.
    #[error(transparent)]
    Decode(#[from] ParseError),
    /// The parameter buffer has the wrong size.
    #[error("the parameter buffer has {got} bytes, the entry takes {expected}")]
    BadParams {
        /// Bytes of all parameters at their natural offsets.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// Grid, block or shared memory that no device would accept, or that the entry forbids.
    #[error("bad launch geometry: {reason}")]
    BadGeometry {
        /// What is wrong.
        reason: String,
    },
    /// The module's variables do not fit into device memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A thread did something that it must not.
    #[error(transparent)]
    Fault(Box<Fault>),
    /// The [checks](crate::Options::sanitize) found something, a fault among it if there was one. The launch went on to
    /// its end, or to the fault.
    #[error("{}", .0.summary())]
    Findings(Box<Report>),
}

/// The first wrong thing that a thread did, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Fault {
    /// What happened.
    pub kind: FaultKind,
    /// The block's index in the grid.
    pub block: [u32; 3],
    /// The thread's index in the block.
    pub thread: [u32; 3],
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// The instruction as written.
    pub instruction: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [bx, by, bz] = self.block;
        let [x, y, z] = self.thread;
        write!(
            f,
            "block ({bx},{by},{bz}) thread ({x},{y},{z}): {} at line {}: {}",
            self.instruction, self.line, self.kind
        )
    }
}

/// A state space, in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Device memory.
    Global,
    /// The block's shared memory.
    Shared,
    /// The shared memory of the cluster's blocks.
    Cluster,
    /// The thread's own memory.
    Local,
    /// The kernel's parameters.
    Param,
    /// Constant memory.
    Const,
    /// An address that names its space by its value.
    Generic,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Space::Global => "global",
            Space::Shared => "shared",
            Space::Cluster => "shared::cluster",
            Space::Local => "local",
            Space::Param => "param",
            Space::Const => "const",
            Space::Generic => "generic",
        })
    }
}

/// One thing that a block waits for when nothing in it can move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiter {
    /// The block's index in the grid, if there are clusters of several.
    pub block: Option<[u32; 3]>,
    /// The warp in the block.
    pub warp: u32,
    /// Which of its lanes.
    pub lanes: u32,
    /// The line it stands at.
    pub line: u32,
    /// The instruction it stands at.
    pub instruction: String,
    /// What it waits for.
    pub reason: String,
}

impl fmt::Display for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some([x, y, z]) = self.block {
            write!(f, "block ({x},{y},{z}) ")?;
        }
        write!(
            f,
            "warp {} lanes {:#010x} at line {} ({}): {}",
            self.warp, self.lanes, self.line, self.instruction, self.reason
        )
    }
}

/// What a thread did wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access that is not inside an object.
    #[error("address {address:#x} is outside {space} memory ({detail})")]
    OutOfBounds {
        /// The state space.
        space: Space,
        /// First byte of the access.
        address: u64,
        /// Bytes of the access.
        size: u32,
        /// The extent of the space, or the nearest allocation.
        detail: String,
    },
    /// An access at an address that is not a multiple of its size.
    #[error("{space} address {address:#x} is not a multiple of {align}")]
    Misaligned {
        /// The state space.
        space: Space,
        /// The address.
        address: u64,
        /// What it must be a multiple of.
        align: u32,
    },
    /// An access through (or close to) a null pointer.
    #[error("null pointer: {space} address {address:#x}")]
    Null {
        /// The state space.
        space: Space,
        /// The address.
        address: u64,
    },
    /// An access to an allocation that was freed.
    #[error("address {address:#x} is in freed memory ({len} bytes at {base:#x})")]
    Freed {
        /// The address.
        address: u64,
        /// Start of the freed allocation.
        base: u64,
        /// Its bytes.
        len: u64,
    },
    /// An access to the shared memory of a block of the cluster that has exited.
    #[error(
        "shared::cluster address {address:#x} is that of block {rank} of the cluster, which has exited"
    )]
    BlockExited {
        /// The address.
        address: u64,
        /// The block's rank in the cluster.
        rank: u32,
    },
    /// A write to constant or parameter memory.
    #[error("write to read-only {space} address {address:#x}")]
    ReadOnly {
        /// The state space.
        space: Space,
        /// The address.
        address: u64,
    },
    /// A warp-wide instruction that not all of the warp's threads execute together.
    #[error("executed by lanes {active:#010x} while lanes {missing:#010x} are elsewhere")]
    Divergent {
        /// The lanes that execute it.
        active: u32,
        /// The lanes that it also needs.
        missing: u32,
    },
    /// A `.sync` instruction whose member mask does not name the executing lane.
    #[error("member mask {mask:#010x} does not name the executing lanes {active:#010x}")]
    BadMemberMask {
        /// The mask given.
        mask: u32,
        /// The lanes that execute it.
        active: u32,
    },
    /// A barrier operand that is out of range, or that disagrees with the others' operand.
    #[error("barrier {barrier}: {reason}")]
    BadBarrier {
        /// The barrier.
        barrier: u32,
        /// What is wrong.
        reason: String,
    },
    /// Nothing in the block can move.
    #[error("deadlock: {}", .waiters.iter().map(|w| w.to_string()).collect::<Vec<_>>().join("; "))]
    Deadlock {
        /// Who waits for what.
        waiters: Vec<Waiter>,
    },
    /// An arrival or a wait at the cluster's barrier that does not follow the other.
    #[error("{reason}")]
    ClusterBarrier {
        /// What is wrong.
        reason: &'static str,
    },
    /// An instruction that the four warps of a warpgroup must execute alike, and do not.
    #[error("{reason}")]
    Warpgroup {
        /// What is wrong.
        reason: String,
    },
    /// An operand with a value that the instruction does not allow.
    #[error("{reason}")]
    BadOperand {
        /// What is wrong.
        reason: String,
    },
    /// An mbarrier used against its rules.
    #[error("mbarrier at {address:#x}: {reason}")]
    Mbarrier {
        /// Shared address of the object.
        address: u64,
        /// What is wrong.
        reason: String,
    },
    /// More instructions than [`Options::max_instructions`](crate::Options::max_instructions).
    #[error("the block executed more than {limit} warp instructions")]
    InstructionLimit {
        /// The limit.
        limit: u64,
    },
    /// The kernel executed `trap`.
    #[error("trap")]
    Trap,
    /// Control left the entry's text, or reached what the emulator cannot carry out.
    #[error("{reason}")]
    Unsupported {
        /// What.
        reason: String,
    },
}

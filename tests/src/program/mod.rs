//! Random small programs: as a tree, as PTX text, and evaluated by plain Rust.
//!
//! A program is valid by construction: every register, and every byte of memory that it reads, was written; accesses
//! are in bounds and aligned; threads exchange data only through barriers, collective instructions or commuting atomic
//! updates; every loop ends. So its results are the same in every order of threads and blocks, and the emulator must
//! leave the very bits that [`evaluate`] computes.
//!
//! The evaluator is a second, independent statement of the PTX manual. It shares nothing with the emulator: integers
//! are `i128`s cut to width, floating-point results are f64 pairs rounded by `rounding`.

mod evaluate;
mod forms;
mod generate;
mod rounding;
mod text;
mod warp;

pub use evaluate::evaluate;
pub use text::render;

/// Words of the input buffer, which nobody writes. A thread's first registers come from one place in its first half on.
pub const INPUT_WORDS: usize = 128;
/// Bytes of each thread's own part of the `own` buffer.
pub const OWN_BYTES: usize = 64;
/// Bytes of each thread's local variable.
pub const LOCAL_BYTES: usize = 32;
/// Bytes of each thread's slot of shared memory.
pub const SLOT_BYTES: usize = 16;
/// Bytes of the buffer of atomically updated cells.
pub const CELL_BYTES: usize = 32;
/// Bytes that each thread leaves of its registers.
pub const DUMP_BYTES: usize = 128;

/// What a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A predicate.
    P,
    /// 16 bits.
    H,
    /// 32 bits.
    R,
    /// 64 bits.
    D,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 4] = [Self::P, Self::H, Self::R, Self::D];

    /// Registers of the class that programs use.
    pub const fn count(self) -> usize {
        match self {
            Self::R => 12,
            _ => 6,
        }
    }

    /// The bits that a register holds.
    pub const fn mask(self) -> u64 {
        match self {
            Self::P => 1,
            Self::H => 0xffff,
            Self::R => 0xffff_ffff,
            Self::D => u64::MAX,
        }
    }

    /// Prefix of its registers' names.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::P => "%p",
            Self::H => "%h",
            Self::R => "%r",
            Self::D => "%d",
        }
    }
}

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg {
    /// Its class.
    pub class: Class,
    /// Its number.
    pub number: usize,
}

/// What an instruction reads.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    /// A register.
    Reg(Reg),
    /// An integer.
    Integer(u64),
    /// Bits of an f32.
    Single(u32),
    /// Bits of an f64.
    Double(u64),
}

/// A predicate register's number, and whether its complement is meant.
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    /// Number of the predicate.
    pub predicate: usize,
    /// Whether it must be false.
    pub negated: bool,
}

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The input buffer.
    Input,
    /// The thread's part of the `own` buffer.
    Own,
    /// The thread's local variable.
    Local,
}

/// What an access moves, by place in `text::WIDTHS`, to or from successive registers.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Place in the table of widths.
    pub width: usize,
    /// Number of the first register; the others follow, around the end.
    pub first: usize,
    /// Number of the 32-bit register that says which element, taken modulo their number.
    pub index: usize,
    /// Which spelling of the instruction.
    pub spelling: usize,
}

/// The lanes of a collective instruction.
#[derive(Clone, Copy, Debug)]
pub enum Lanes {
    /// The whole warp, or all threads of a block that is smaller.
    All,
    /// Those that took a branch, as a ballot before it found: number of the mask's register.
    Ballot(usize),
}

/// A vote, a match, a reduction, a shuffle: number and operands are read as each of them needs.
#[derive(Clone, Copy, Debug)]
pub struct Collective {
    /// Which.
    pub operation: warp::Operation,
    /// Who.
    pub lanes: Lanes,
    /// Number of the destination register.
    pub to: usize,
    /// Numbers of source registers.
    pub from: [usize; 2],
    /// The predicate, for those that take one.
    pub guard: Guard,
}

/// How often a loop's body runs.
#[derive(Clone, Copy, Debug)]
pub enum Trips {
    /// So often, in all threads.
    Fixed(u32),
    /// A 32-bit register's low two bits.
    Register(usize),
}

/// A read of shared memory.
#[derive(Clone, Copy, Debug)]
pub enum SharedRead {
    /// A load of any slot's part.
    Load(Access),
    /// `ldmatrix` of 1, 2 or 4 matrices whose rows are slots.
    Matrix {
        /// How many.
        count: usize,
        /// Transposed.
        transposed: bool,
        /// Number of the register that chooses the row.
        row: usize,
        /// Number of the first destination.
        first: usize,
    },
}

/// How threads fill their slots of shared memory.
#[derive(Clone, Debug)]
pub enum SharedWrite {
    /// By stores.
    Stores(Vec<Access>),
    /// By one asynchronous copy from the input, with other statements before it is waited for.
    Copy {
        /// 4, 8 or 16.
        bytes: usize,
        /// How many of them are read; the rest become zero.
        read: usize,
        /// Register that chooses the source.
        index: usize,
        /// What the thread does meanwhile.
        meanwhile: Vec<Statement>,
    },
}

/// A step of a program.
#[derive(Clone, Debug)]
pub enum Statement {
    /// An instruction on registers, by place in `forms::forms`.
    Compute {
        /// Place in the table.
        form: usize,
        /// Whether it is executed.
        guard: Option<Guard>,
        /// Number of the destination.
        to: usize,
        /// Sources.
        from: Vec<Operand>,
    },
    /// A load.
    Load(Place, Access, Option<Guard>),
    /// A store.
    Store(Place, Access, Option<Guard>),
    /// An atomic update of a cell that has one kind of update only, by place in `text::UPDATES`.
    Update(usize, usize, Option<Guard>),
    /// A branch. With a ballot, its first side may have collective instructions.
    If {
        /// Who takes the first side.
        condition: Guard,
        /// Number of the mask register, and whose ballot it is.
        ballot: Option<(usize, Lanes)>,
        /// The first side.
        then: Vec<Statement>,
        /// The second.
        otherwise: Vec<Statement>,
    },
    /// A loop.
    Loop {
        /// How often.
        trips: Trips,
        /// The condition is at the end: the body runs once more.
        at_end: bool,
        /// The body.
        body: Vec<Statement>,
    },
    /// Leaves the innermost loop.
    Break(Guard),
    /// A branch through a table by a register's low bits; a power of two of cases.
    Switch(usize, Vec<Vec<Statement>>),
    /// Ends the thread.
    Exit(Guard),
    /// A collective instruction.
    Collective(Collective),
    /// A reduction over the block: 0 counts, 1 is `and`, 2 is `or`; the destination's number.
    Reduce(usize, Guard, usize),
    /// Slots are written, a barrier, slots are read, a barrier.
    Exchange {
        /// What is written.
        write: SharedWrite,
        /// What is read.
        reads: Vec<SharedRead>,
        /// Number of the barriers.
        barrier: usize,
    },
    /// A matrix product.
    Matrix(warp::Matrix),
}

/// A program, its geometry and its input.
#[derive(Clone, Debug)]
pub struct Program {
    /// Blocks.
    pub blocks: usize,
    /// Threads of a block: any number up to 32, or a multiple of it.
    pub threads: usize,
    /// Shared memory is dynamic.
    pub dynamic: bool,
    /// The input buffer.
    pub input: Vec<u32>,
    /// What all threads do, together where instructions need that.
    pub body: Vec<Statement>,
    /// What they do after their registers were stored a first time: here they may end one by one.
    pub tail: Vec<Statement>,
}

impl Program {
    /// Bytes of dynamic shared memory that it needs.
    pub fn dynamic_shared(&self) -> u32 {
        match self.dynamic {
            true => (self.threads * SLOT_BYTES) as u32,
            false => 0,
        }
    }
}

/// What a program leaves in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The threads' own parts.
    pub own: Vec<u8>,
    /// The cells.
    pub cells: Vec<u8>,
    /// The threads' registers.
    pub dump: Vec<u8>,
}

impl Memory {
    /// Before the launch.
    pub fn before(program: &Program) -> Self {
        let threads = program.blocks * program.threads;
        let pattern = |n: usize, step: u8| (0..n).map(|at| (at as u8).wrapping_mul(step)).collect();
        Self {
            own: pattern(threads * OWN_BYTES, 37),
            cells: pattern(CELL_BYTES, 91),
            dump: pattern(threads * DUMP_BYTES, 0),
        }
    }
}

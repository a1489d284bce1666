//! What the parser makes: declarations, and statements with registers and variables resolved.

use std::collections::HashMap;
use std::ops::Range;

/// A fundamental type of a register or variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Type {
    /// `pred`, `b32`, `f16x2`...
    pub(crate) name: &'static str,
    /// Bits; 1 for predicates.
    pub(crate) bits: u32,
}

impl Type {
    pub(crate) fn named(name: &str) -> Option<Type> {
        const TYPES: &[(&str, u32)] = &[
            ("pred", 1),
            ("b8", 8),
            ("u8", 8),
            ("s8", 8),
            ("b16", 16),
            ("u16", 16),
            ("s16", 16),
            ("f16", 16),
            ("bf16", 16),
            ("b32", 32),
            ("u32", 32),
            ("s32", 32),
            ("f32", 32),
            ("f16x2", 32),
            ("bf16x2", 32),
            ("b64", 64),
            ("u64", 64),
            ("s64", 64),
            ("f64", 64),
            ("b128", 128),
        ];
        TYPES
            .iter()
            .find(|(n, _)| *n == name)
            .map(|&(name, bits)| Type { name, bits })
    }

    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.bits.div_ceil(8))
    }
}

/// A state space that variables are declared in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VarSpace {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A part of an initialiser: a literal, or a symbol's address plus an offset.
#[derive(Debug, Clone)]
pub(crate) enum Init {
    Bytes(Vec<u8>),
    Address {
        name: String,
        offset: u64,
        bytes: u64,
    },
}

/// A variable: of the module, of an entry's body, or a parameter.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) space: VarSpace,
    pub(crate) size: u64,
    pub(crate) align: u64,
    /// Declared `.extern`, or with an open size.
    pub(crate) external: bool,
    pub(crate) init: Vec<Init>,
}

impl Variable {
    /// Its start and end if it lies behind `end`. Far beyond what any space holds, sums stop growing.
    pub(crate) fn placed_after(&self, end: u64) -> (u64, u64) {
        let start = end.min(1 << 60).next_multiple_of(self.align.max(1));
        (start, start + self.size.min(1 << 60))
    }
}

/// Index into [`Body::registers`].
pub(crate) type RegId = u32;
/// Index into [`Body::labels`].
pub(crate) type LabelId = u32;

/// Which variable a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VarRef {
    /// Of the module.
    Module(usize),
    /// Of the entry's body.
    Body(usize),
    /// A parameter of the entry.
    Param(usize),
}

/// The base of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    None,
    Reg(RegId),
    Var(VarRef),
}

/// An operand of an instruction.
#[derive(Debug, Clone)]
pub(crate) enum Operand {
    Reg(RegId),
    /// `!%p`.
    NotReg(RegId),
    /// A special register, with its component.
    Special(String),
    Int(u64),
    Float32(u32),
    Float64(u64),
    /// A variable as a value: its address.
    Var(VarRef, u64),
    /// `[base+offset]`.
    Address(Base, i64),
    /// `[base+offset, {..}]` and the like.
    Tensor(Base, i64, Vec<Operand>),
    Vector(Vec<Operand>),
    /// `%p|%q`.
    Pair(Box<Operand>, Box<Operand>),
    /// `_`.
    Sink,
    Label(LabelId),
    /// A name that means nothing in the body: a function, say.
    Unknown(String),
}

/// Where an instruction comes from: a line of a source file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    /// Key of [`Tree::files`].
    pub(crate) file: u32,
    pub(crate) line: u32,
    /// File and line of the call, if the code was inlined and the text says where.
    pub(crate) inlined_at: Option<(u32, u32)>,
    /// The last line of another file before it: mostly the caller's.
    pub(crate) after: Option<(u32, u32)>,
}

/// An instruction.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    /// Predicate register and whether it is negated.
    pub(crate) guard: Option<(RegId, bool)>,
    /// Where the opcode with its modifiers stands in the text.
    pub(crate) opcode: Range<usize>,
    pub(crate) operands: Vec<Operand>,
    /// Where the whole instruction stands in the text.
    pub(crate) range: Range<usize>,
    pub(crate) line: u32,
    pub(crate) column: u32,
    /// From the last `.loc`.
    pub(crate) source: Option<Source>,
}

/// A label: the statement it stands before, if it was found.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    pub(crate) name: String,
    pub(crate) target: Option<usize>,
    pub(crate) line: u32,
}

/// An entry's body.
#[derive(Debug, Clone, Default)]
pub(crate) struct Body {
    pub(crate) registers: Vec<Type>,
    pub(crate) labels: Vec<Label>,
    /// `.branchtargets` lists, by label.
    pub(crate) tables: HashMap<LabelId, Vec<LabelId>>,
    pub(crate) variables: Vec<Variable>,
    pub(crate) statements: Vec<Statement>,
}

/// What the directives before a body say of its launches.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bounds {
    pub(crate) maxntid: Option<[u32; 3]>,
    pub(crate) reqntid: Option<[u32; 3]>,
    pub(crate) minnctapersm: Option<u32>,
    pub(crate) maxnreg: Option<u32>,
    pub(crate) reqnctapercluster: Option<[u32; 3]>,
    pub(crate) maxclusterrank: Option<u32>,
    pub(crate) explicitcluster: bool,
}

impl Bounds {
    /// Registers that a thread begins with, if that is known: as many as a multiprocessor's 65536 give each thread of
    /// as many blocks as are asked for.
    pub(crate) fn registers(&self) -> Option<u32> {
        if let Some(most) = self.maxnreg {
            return Some(most.min(256) / 8 * 8);
        }
        let sizes = self.reqntid.or(self.maxntid)?.map(u64::from);
        let threads = sizes.iter().fold(1u64, |a, &b| a.saturating_mul(b));
        let all = threads.saturating_mul(u64::from(self.minnctapersm?)).max(1);
        Some((65536 / all).min(256) as u32 / 8 * 8)
    }
}

/// An entry as parsed.
#[derive(Debug, Clone)]
pub(crate) struct EntryTree {
    pub(crate) name: String,
    pub(crate) params: Vec<Variable>,
    pub(crate) bounds: Bounds,
    pub(crate) body: Body,
}

/// A module as parsed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    pub(crate) target: String,
    /// Source files, by the numbers that `.loc` uses.
    pub(crate) files: HashMap<u32, String>,
    pub(crate) variables: Vec<Variable>,
    pub(crate) entries: Vec<EntryTree>,
}

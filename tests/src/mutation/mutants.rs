//! The mutants of a kernel: its text with one instruction gone, or weaker.
//!
//! Every mutation takes away something that the kernel relies on. What only makes it slower or more careful is not
//! among them, since nothing could notice it: a wait for fewer groups in flight, another barrier's number where all
//! threads of the block use it, the slow one of two right ways. Nor is code that constants make unreachable, such as
//! the unrolled copy of a loop whose few iterations the compiler was kept from counting.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    ops::Range,
};

use super::{
    flow::Flow,
    listing::{Instruction, Listing},
    values::Values,
};

/// What is done to an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// A barrier of the block is removed. One that votes becomes the thread's own vote.
    Barrier,
    /// A barrier of the block lets half the threads pass.
    BarrierCount,
    /// A barrier of the warp is removed.
    WarpBarrier,
    /// A vote has always the same result, or is the thread's own.
    Vote,
    /// A shuffle, vote or barrier of the warp forgets its last lane.
    MemberMask,
    /// A wait for asynchronous copies is removed.
    Wait,
    /// A wait for asynchronous copies leaves one more group in flight.
    WaitCount,
    /// A commit of asynchronous copies is removed.
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
    /// An XOR on the way to an address in shared memory is left out.
    Swizzle,
    /// An access to shared memory is off by its own size.
    Offset,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 15] = [
        Self::Barrier,
        Self::BarrierCount,
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
        Self::Swizzle,
        Self::Offset,
    ];

    /// Whether it takes away what orders threads, or asynchronous copies.
    pub const fn synchronises(self) -> bool {
        use Class::{Barrier, BarrierCount, Commit, Fence, Wait, WaitCount, WarpBarrier};
        matches!(
            self,
            Barrier | BarrierCount | Commit | Fence | Wait | WaitCount | WarpBarrier
        )
    }

    /// Name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::BarrierCount => "barrier-count",
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

/// One change of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// What kind of change.
    pub class: Class,
    /// The line of the instruction, from 1.
    pub line: usize,
    /// Which of the text's mutations of its class it is, from 1, in the order of the text.
    pub ordinal: usize,
    /// The instruction.
    pub before: String,
    /// What stands in its place; nothing, if it is removed.
    pub after: String,
    range: Range<usize>,
}

impl Mutation {
    /// The changed text. Lines keep their numbers.
    pub fn apply(&self, text: &str) -> String {
        self.replace(text, &self.after)
    }

    /// The text with a `trap` before the instruction: it ends every launch that executes it.
    pub fn trap(&self, text: &str) -> String {
        self.replace(text, &format!("trap; {}", &text[self.range.clone()]))
    }

    fn replace(&self, text: &str, new: &str) -> String {
        let (head, tail) = (&text[..self.range.start], &text[self.range.end..]);
        let lost = text[self.range.clone()].matches('\n').count() - new.matches('\n').count();
        [head, new, &"\n".repeat(lost), tail].concat()
    }
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = if self.after.is_empty() {
            "(removed)"
        } else {
            &self.after
        };
        write!(
            f,
            "{} {}, line {}: {} -> {after}",
            self.class, self.ordinal, self.line, self.before
        )
    }
}

/// A kernel's mutants.
#[derive(Clone, Debug)]
pub struct Mutants {
    /// The mutations, in the order of the text.
    pub mutations: Vec<Mutation>,
    /// Instructions that constants make unreachable, and that are therefore not mutated.
    pub unreachable: usize,
}

/// All mutations of a kernel's text.
///
/// # Errors
/// The text is not PTX.
pub fn mutants(text: &str) -> Result<Mutants, String> {
    let listing = Listing::read(text)?;
    let threads = listing.threads().ok_or("no .maxntid")?;
    let (values, flow) = (Values::of(&listing), Flow::of(&listing)?);
    let decided = values.decided(&flow);
    let reachable = flow.reachable(&decided);
    let mut search = Search {
        listing: &listing,
        decided,
        addresses: values.shared_addresses(),
        flow,
        values,
        divided: HashSet::new(),
        threads,
        found: Vec::new(),
        counts: [0; Class::ALL.len()],
    };
    for at in (0..listing.instructions.len()).filter(|at| reachable.contains(at)) {
        search.synchronisation(at);
        search.copies(at);
        search.guards(at);
        search.addresses(at);
    }
    Ok(Mutants {
        mutations: search.found,
        unreachable: listing.instructions.len() - reachable.len(),
    })
}

struct Search<'l, 't> {
    listing: &'l Listing<'t>,
    /// Guards that constants decide.
    decided: HashMap<usize, bool>,
    /// Instructions on the way to an address in shared memory.
    addresses: HashSet<usize>,
    flow: Flow,
    values: Values<'l, 't>,
    /// Instructions that join a guard's two conditions and have been taken apart.
    divided: HashSet<usize>,
    threads: u32,
    found: Vec<Mutation>,
    counts: [usize; Class::ALL.len()],
}

impl<'l, 't> Search<'l, 't> {
    fn add(&mut self, class: Class, instruction: &Instruction<'t>, after: impl Into<String>) {
        let before = &self.listing.text[instruction.range.clone()];
        let ordinal = &mut self.counts[class as usize];
        *ordinal += 1;
        self.found.push(Mutation {
            class,
            line: instruction.line,
            ordinal: *ordinal,
            before: before.split_whitespace().collect::<Vec<_>>().join(" "),
            after: after.into(),
            range: instruction.range.clone(),
        });
    }

    /// Barriers, votes and shuffles.
    fn synchronisation(&mut self, at: usize) {
        let listing = self.listing;
        let i = &listing.instructions[at];
        if i.is("bar.red") {
            self.add(
                Class::Barrier,
                i,
                format!("mov.pred {}, {};", i.operands[0], i.operands[2]),
            );
            self.votes(i);
        } else if i.is("bar.sync") || i.is("barrier.sync") {
            self.add(Class::Barrier, i, "");
            if i.operands.len() == 1 {
                let half = self.threads / 2;
                self.add(
                    Class::BarrierCount,
                    i,
                    format!("{} {}, {half};", i.opcode, i.operands[0]),
                );
            }
        } else if i.is("bar.warp.sync") {
            self.add(Class::WarpBarrier, i, "");
        } else if i.is("fence") || i.is("membar") {
            self.add(Class::Fence, i, "");
        } else if i.is("vote.sync") {
            self.add(
                Class::Vote,
                i,
                format!("mov.pred {}, {};", i.operands[0], i.operands[1]),
            );
            self.votes(i);
        }
        let has_mask = i.is("bar.warp.sync") || i.is("vote.sync") || i.is("shfl.sync");
        if let (true, Some((&"-1", others))) = (has_mask, i.operands.split_last()) {
            let separator = if others.is_empty() { "" } else { ", " };
            let operands = others.join(", ");
            self.add(
                Class::MemberMask,
                i,
                format!("{} {operands}{separator}0x7fffffff;", i.opcode),
            );
        }
    }

    /// A vote that always says the same.
    fn votes(&mut self, i: &Instruction<'t>) {
        for always in [0, -1] {
            self.add(
                Class::Vote,
                i,
                format!("mov.pred {}, {always};", i.operands[0]),
            );
        }
    }

    /// Asynchronous copies, their groups and the waits for them.
    fn copies(&mut self, at: usize) {
        let listing = self.listing;
        let i = &listing.instructions[at];
        if i.is("cp.async.wait_group") || i.is("cp.async.wait_all") {
            self.add(Class::Wait, i, "");
            if let Some(groups) = i.operands.first().and_then(|n| n.parse::<u32>().ok()) {
                self.add(Class::WaitCount, i, format!("{} {};", i.opcode, groups + 1));
            }
        } else if i.is("cp.async.commit_group") {
            self.add(Class::Commit, i, "");
        } else if i.is("cp.async")
            && let [dst, src, bytes, size] = i.operands[..]
            && size != bytes
        {
            self.add(
                Class::CopySize,
                i,
                format!("{} {dst}, {src}, {bytes}, {bytes};", i.opcode),
            );
        }
    }

    /// Predicates that decide whether memory is accessed: an instruction's own, and those of branches past accesses.
    /// A branch with accesses on either side chooses between two ways, one of which may always be right (as the copy
    /// of single elements is), so it is only inverted.
    fn guards(&mut self, at: usize) {
        let listing = self.listing;
        let i = &listing.instructions[at];
        let Some(guard) = i.guard else { return };
        // What constants decide is no guard, but a loop's count that the compiler was not let see.
        if self.decided.contains_key(&at) {
            return;
        }
        let text = &listing.text[i.range.clone()];
        let bare = text[text.find(char::is_whitespace).unwrap_or(0)..].trim_start();
        // What stands there if memory is always accessed, and whether it is accessed where the predicate is true.
        let always = match self.flow.sides(at) {
            Some(sides) => match (self.accesses(&sides.taken), self.accesses(&sides.passed)) {
                (false, false) => return,
                (true, true) => None,
                (true, false) => Some((bare, !guard.negated)),
                (false, true) => Some(("", guard.negated)),
            },
            None if i.accesses_memory() => Some((bare, !guard.negated)),
            None => return,
        };
        if let Some((always, if_true)) = always {
            self.add(Class::Guard, i, always);
            self.parts(guard.predicate, if_true);
        }
        let sign = if guard.negated { "" } else { "!" };
        self.add(
            Class::GuardInverted,
            i,
            format!("@{sign}{} {bare}", guard.predicate),
        );
    }

    /// The two conditions of a guard: both are needed for an access, or either prevents it.
    fn parts(&mut self, predicate: &str, access_if_true: bool) {
        let listing = self.listing;
        let Some(writer) = self.values.writer(predicate) else {
            return;
        };
        let i = &listing.instructions[writer];
        let opcode = if access_if_true {
            "and.pred"
        } else {
            "or.pred"
        };
        if let (true, [to, a, b]) = (i.is(opcode), &i.operands[..])
            && self.divided.insert(writer)
        {
            for part in [a, b] {
                self.add(Class::GuardPart, i, format!("mov.pred {to}, {part};"));
            }
        }
    }

    fn accesses(&self, blocks: &[usize]) -> bool {
        let mut instructions = blocks
            .iter()
            .flat_map(|&block| self.flow.instructions(block));
        instructions.any(|at| self.listing.instructions[at].accesses_memory())
    }

    /// Addresses in shared memory.
    fn addresses(&mut self, at: usize) {
        let listing = self.listing;
        let i = &listing.instructions[at];
        if i.is("xor") && self.addresses.contains(&at) {
            let kind = i.opcode.rsplit('.').next().unwrap_or("b32");
            self.add(
                Class::Swizzle,
                i,
                format!("mov.{kind} {}, {};", i.operands[0], i.operands[1]),
            );
        }
        if let Some((address, bytes)) = i.shared_address() {
            let inside = i.operands[address].trim_matches(['[', ']']);
            let shifted = match inside.split_once('+') {
                Some((base, offset)) => offset
                    .parse::<i64>()
                    .ok()
                    .map(|n| (base, n + i64::from(bytes))),
                None => Some((inside, i64::from(bytes))),
            };
            if let Some((base, offset)) = shifted {
                let mut operands: Vec<String> =
                    i.operands.iter().map(|&operand| operand.into()).collect();
                operands[address] = format!("[{base}+{offset}]");
                self.add(
                    Class::Offset,
                    i,
                    format!("{} {};", i.opcode, operands.join(", ")),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
        .visible .entry e(.param .u64 p)
        .maxntid 128, 1, 1
        {
            mov.u32 %r1, %tid.x;
            xor.b32 %r2, %r1, 32;
            xor.b32 %r3, %r1, -2147483648;
            cp.async.cg.shared.global [%r2], [%rd1], 16, %r4;
            cp.async.commit_group;
            cp.async.wait_group 1;
            bar.sync 0;
            bar.red.or.pred %p1, 0, %p2;
            mov.b32 %r8, 4;
            setp.lt.u32 %p3, %r8, 8;
            @%p3 bra $L1;
            bar.sync 1;
        $L1:
            or.pred %p4, %p5, %p6;
            @%p4 bra $L2;
            st.global.u32 [%rd2], %r3;
        $L2:
            @%p1 bra $L3;
            ld.shared.v2.u32 {%r5, %r6}, [%r1+8];
            bra.uni $L4;
        $L3:
            ld.shared.u32 %r5, [%r1];
        $L4:
            bar.warp.sync -1;
            ret;
        }";

    #[test]
    fn everything_that_can_be_weaker() {
        let found = mutants(TEXT).unwrap();
        // The barrier behind a branch that a constant decides.
        assert_eq!(found.unreachable, 1);
        let lines: Vec<_> = found
            .mutations
            .iter()
            .map(|m| format!("{} | {}", m.class, m.after))
            .collect();
        let expected = [
            "swizzle | mov.b32 %r2, %r1;",
            "copy-size | cp.async.cg.shared.global [%r2], [%rd1], 16, 16;",
            "offset | cp.async.cg.shared.global [%r2+16], [%rd1], 16, %r4;",
            "commit | ",
            "wait | ",
            "wait-count | cp.async.wait_group 2;",
            "barrier | ",
            "barrier-count | bar.sync 0, 64;",
            "barrier | mov.pred %p1, %p2;",
            "vote | mov.pred %p1, 0;",
            "vote | mov.pred %p1, -1;",
            "guard | ",
            "guard-part | mov.pred %p4, %p5;",
            "guard-part | mov.pred %p4, %p6;",
            "guard-inverted | @!%p4 bra $L2;",
            // Memory is accessed on either side, so neither way is the one that must be guarded.
            "guard-inverted | @!%p1 bra $L3;",
            "offset | ld.shared.v2.u32 {%r5, %r6}, [%r1+16];",
            "offset | ld.shared.u32 %r5, [%r1+4];",
            "warp-barrier | ",
            "member-mask | bar.warp.sync 0x7fffffff;",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn only_the_instruction_changes() {
        let found = mutants(TEXT).unwrap().mutations;
        let wait = found.iter().find(|m| m.class == Class::Wait).unwrap();
        assert_eq!(wait.apply(TEXT), TEXT.replace("cp.async.wait_group 1;", ""));
        let trapped = TEXT.replace("cp.async.wait_group 1;", "trap; cp.async.wait_group 1;");
        assert_eq!(wait.trap(TEXT), trapped);
        assert_eq!(TEXT.lines().nth(wait.line - 1).unwrap().trim(), wait.before);
    }
}

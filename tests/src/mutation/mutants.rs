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

pub use super::class::Class;
use super::{
    flow::Flow,
    listing::{Instruction, Listing},
    values::Values,
};

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
    /// Where it is: of two conditions, which is kept; the role in whose code, if it is that of one; four instructions before and four
    /// after; what memory accesses a branch decides about. `producer: mov.b32 %r1, 4; bar.sync 0; [] bra L; ret; guards st.global.u32`
    pub place: String,
    /// What the threads that come here may have passed last: a `copy`, the first group of copies (`queries`) or another (`commit`), a
    /// `wait` for copies, one for all `products` of a warpgroup or only for some (`scores`, under products with values), the `vote` of the
    /// block, or none of them since the `start`. `commit wait`
    pub since: String,
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

    /// Whether it weakens what orders threads, or asynchronous copies: by its class, or since the instruction is one of an mbarrier.
    pub fn synchronises(&self) -> bool {
        self.class.synchronises() || self.before.starts_with("mbarrier")
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
    let role = |opcode| {
        let begin = listing.instructions.iter().position(|i| i.is(opcode));
        begin.map_or_else(HashSet::new, |begin| flow.reachable_from(begin, &decided))
    };
    let roles = ["setmaxnreg.dec", "setmaxnreg.inc"].map(role);
    let mut committed = false;
    let marks = listing.instructions.iter().map(|i| {
        let mark = |opcode, mark| i.is(opcode).then_some(mark);
        let commit = match i.is("cp.async.commit_group") {
            true if std::mem::replace(&mut committed, true) => Some("commit"),
            true => Some("queries"),
            false => None,
        };
        let others = [
            mark("cp.async.cg", "copy"),
            mark("cp.async.wait_group", "wait"),
            mark("bar.red", "vote"),
        ];
        let products = i.is("wgmma.wait_group").then(|| match i.operands[..] {
            ["0"] => "products",
            _ => "scores",
        });
        others.into_iter().flatten().next().or(commit).or(products)
    });
    let marks: Vec<_> = marks.collect();
    let since = flow.since(|at| marks[at]);
    let mut search = Search {
        listing: &listing,
        decided,
        addresses: values.shared_addresses(),
        flow,
        values,
        roles,
        since,
        divided: HashSet::new(),
        threads,
        found: Vec::new(),
        counts: [0; Class::ALL.len()],
    };
    for at in (0..listing.instructions.len()).filter(|at| reachable.contains(at)) {
        search.synchronisation(at);
        search.copies(at);
        search.hopper(at);
        search.guards(at);
        search.addresses(at);
    }
    Ok(Mutants {
        mutations: search.found,
        unreachable: listing.instructions.len() - reachable.len(),
    })
}

/// Instructions on either side of one that [`Mutation::place`] shows.
const CONTEXT: usize = 4;

pub(super) struct Search<'l, 't> {
    pub(super) listing: &'l Listing<'t>,
    /// Guards that constants decide.
    pub(super) decided: HashMap<usize, bool>,
    /// Instructions on the way to an address in shared memory.
    pub(super) addresses: HashSet<usize>,
    pub(super) flow: Flow,
    pub(super) values: Values<'l, 't>,
    /// Instructions of the producers and of the consumers, where a block parts into such: those that give registers back, and those that
    /// ask for more.
    roles: [HashSet<usize>; 2],
    /// [`Mutation::since`] of each instruction.
    since: Vec<String>,
    /// Instructions that join a guard's two conditions and have been taken apart.
    pub(super) divided: HashSet<usize>,
    threads: u32,
    pub(super) found: Vec<Mutation>,
    counts: [usize; Class::ALL.len()],
}

impl<'l, 't> Search<'l, 't> {
    pub(super) fn add(
        &mut self,
        class: Class,
        instruction: &Instruction<'t>,
        after: impl Into<String>,
    ) {
        self.add_range(class, instruction, instruction.range.clone(), after);
    }

    /// The same of a range that begins with the instruction.
    pub(super) fn add_range(
        &mut self,
        class: Class,
        instruction: &Instruction<'t>,
        range: Range<usize>,
        after: impl Into<String>,
    ) {
        let before = &self.listing.text[range.clone()];
        let place = self.place(instruction);
        let since = self.since[self.position(instruction)].clone();
        let ordinal = &mut self.counts[class as usize];
        *ordinal += 1;
        self.found.push(Mutation {
            class,
            line: instruction.line,
            ordinal: *ordinal,
            before: before.split_whitespace().collect::<Vec<_>>().join(" "),
            after: after.into(),
            place,
            since,
            range,
        });
    }

    /// Which instruction it is.
    fn position(&self, i: &Instruction<'t>) -> usize {
        let all = &self.listing.instructions;
        all.partition_point(|other| other.range.start < i.range.start)
    }

    /// [`Mutation::place`]
    pub(super) fn place(&self, i: &Instruction<'t>) -> String {
        let all = &self.listing.instructions;
        let at = self.position(i);
        let role = match (self.roles[0].contains(&at), self.roles[1].contains(&at)) {
            (true, false) => "producer: ",
            (false, true) => "consumer: ",
            _ => "",
        };
        let text = |at: usize| {
            let i = all.get(at)?;
            let words = self.listing.text[i.range.clone()].split_whitespace();
            Some(words.collect::<Vec<_>>().join(" "))
        };
        let before = at.saturating_sub(CONTEXT)..at;
        let after = at + 1..at + 1 + CONTEXT;
        let around: Vec<_> = before
            .filter_map(text)
            .chain(["[]".into()])
            .chain(after.filter_map(text))
            .collect();
        let mut guarded: Vec<_> = match self.flow.sides(at) {
            Some(sides) => {
                let blocks = [sides.taken, sides.passed].concat().into_iter();
                let inside = blocks.flat_map(|block| self.flow.instructions(block));
                let accesses = inside.filter(|&at| all[at].accesses_memory());
                accesses.map(|at| all[at].opcode).collect()
            }
            None => Vec::new(),
        };
        guarded.sort_unstable();
        guarded.dedup();
        let guards = match guarded.is_empty() {
            true => String::new(),
            false => format!(" guards {}", guarded.join(" ")),
        };
        format!("{role}{}{guards}", around.join(" "))
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
            let threads = match i.operands.get(1) {
                None => Some(self.threads),
                Some(count) => count.parse().ok(),
            };
            if let Some(threads) = threads {
                self.add(
                    Class::BarrierCount,
                    i,
                    format!("{} {}, {};", i.opcode, i.operands[0], threads / 2),
                );
            }
        } else if i.is("bar.arrive") {
            self.add(Class::Barrier, i, "");
        } else if i.is("bar.warp.sync") {
            self.add(Class::WarpBarrier, i, "");
        } else if i.is("fence") || i.is("membar") || i.is("wgmma.fence") {
            self.add(Class::Fence, i, "");
        } else if i.is("vote.sync") && self.values.is_read(i.operands[0]) {
            self.add(
                Class::Vote,
                i,
                format!("mov.pred {}, {};", i.operands[0], i.operands[1]),
            );
            self.votes(i);
        }
        let has_mask = ["bar.warp.sync", "vote.sync", "shfl.sync", "elect.sync"]
            .iter()
            .any(|opcode| i.is(opcode));
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
        let waits = [
            "cp.async.wait_group",
            "cp.async.wait_all",
            "cp.async.bulk.wait_group",
            "wgmma.wait_group",
        ];
        let commits = [
            "cp.async.commit_group",
            "cp.async.bulk.commit_group",
            "wgmma.commit_group",
        ];
        if waits.iter().any(|opcode| i.is(opcode)) {
            self.add(Class::Wait, i, "");
            if i.opcode == "cp.async.bulk.wait_group" {
                let after = format!("{}.read {};", i.opcode, i.operands[0]);
                self.add(Class::WaitCount, i, after);
            }
            if let Some(groups) = i.operands.first().and_then(|n| n.parse::<u32>().ok()) {
                self.add(Class::WaitCount, i, format!("{} {};", i.opcode, groups + 1));
            }
        } else if commits.iter().any(|opcode| i.is(opcode)) {
            self.add(Class::Commit, i, "");
        } else if i.is("cp.async")
            && !i.is("cp.async.bulk")
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
    fn what_only_hopper_has() {
        let text = "
        .visible .entry e(.param .u64 p)
        .maxntid 128, 1, 1
        {
            mbarrier.init.shared::cta.b64 [%r1], %r2;
            barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
            setmaxnreg.dec.sync.aligned.u32 24;
            { .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%r1+8], %r3; selp.u32 %r4, 1, 0, p; }
            mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], %r5;
            cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%rd1, {%r6, %r7}], [%r1];
            cp.async.bulk.wait_group 0;
            elect.sync %r8|%p1, -1;
            red.relaxed.cluster.shared::cluster.or.b32 [%r9], %r8;
            and.b32 %r10, %r8, 4;
            setp.eq.b32 %p2, %r10, 0;
            selp.f32 %r11, 0fFF800000, %r12, %p2;
            selp.f32 %r13, 0fFF800000, %r12, %p1;
            ret;
        }";
        let found = mutants(text).unwrap().mutations;
        let lines: Vec<_> = found
            .iter()
            .map(|m| format!("{} | {}", m.class, m.after))
            .collect();
        let wait = "mbarrier.try_wait.parity.shared::cta.b64 p";
        let arrive = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1]";
        let store = "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%rd1, {";
        let expected = [
            "mbarrier-init | { .reg .b32 off; add.s32 off, %r2, 1; mbarrier.init.shared::cta.b64 [%r1], off; }".into(),
            "mbarrier-init | { .reg .b32 off; add.s32 off, %r2, -1; mbarrier.init.shared::cta.b64 [%r1], off; }".into(),
            "offset | mbarrier.init.shared::cta.b64 [%r1+8], %r2;".into(),
            "cluster-barrier | ".into(),
            "registers | ".into(),
            "mbarrier-wait | mov.pred p, -1;".into(),
            format!("mbarrier-wait | {{ .reg .b32 off; add.s32 off, %r3, 1; {wait}, [%r1+8], off; }}"),
            format!("offset | {wait}, [%r1+16], %r3;"),
            "mbarrier-arrive | ".into(),
            "expect-bytes | mbarrier.arrive.shared::cta.b64 _, [%r1];".into(),
            format!("expect-bytes | {{ .reg .b32 off; add.s32 off, %r5, 16; {arrive}, off; }}"),
            format!("expect-bytes | {{ .reg .b32 off; add.s32 off, %r5, -16; {arrive}, off; }}"),
            "offset | mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1+8], %r5;".into(),
            format!("coordinate | {{ .reg .b32 off; add.s32 off, %r6, 1; {store}off, %r7}}], [%r1]; }}"),
            format!("coordinate | {{ .reg .b32 off; add.s32 off, %r7, 1; {store}%r6, off}}], [%r1]; }}"),
            format!("offset | {store}%r6, %r7}}], [%r1+1024];"),
            "wait | ".into(),
            "wait-count | cp.async.bulk.wait_group.read 0;".into(),
            "wait-count | cp.async.bulk.wait_group 1;".into(),
            "member-mask | elect.sync %r8|%p1, 0x7fffffff;".into(),
            "vote | mov.pred %p1, 0;".into(),
            "vote | mov.pred %p1, -1;".into(),
            "atomic | ".into(),
            "offset | red.relaxed.cluster.shared::cluster.or.b32 [%r9+4], %r8;".into(),
            // The last selection is by no bit of a mask.
            "mask | mov.b32 %r11, %r12;".into(),
            "mask | mov.b32 %r11, 0fFF800000;".to_owned(),
        ];
        assert_eq!(lines, expected);
        assert_eq!(
            found[22].place,
            format!(
                "producer: {store}%r6, %r7}}], [%r1]; cp.async.bulk.wait_group 0; elect.sync %r8|%p1, -1; [] and.b32 %r10, %r8, 4; \
                 setp.eq.b32 %p2, %r10, 0; selp.f32 %r11, 0fFF800000, %r12, %p2; selp.f32 %r13, 0fFF800000, %r12, %p1;"
            )
            .replace("producer: ", "producer: mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], %r5; ")
        );
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

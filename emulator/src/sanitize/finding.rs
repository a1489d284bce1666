//! What the checks found, for people and for programs.

use std::fmt;

use crate::error::FaultKind;

/// A rule that a kernel broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Rule {
    /// An access outside of every object.
    OutOfBounds,
    /// An access through a null pointer.
    NullPointer,
    /// An access to freed memory.
    UseAfterFree,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// A write to constant or parameter memory.
    ReadOnly,
    /// A value that was never written is stored.
    UninitializedStore,
    /// A value that was never written is used as an address, or as an operand that steers an instruction.
    UninitializedAddress,
    /// A value that was never written decides what is executed.
    UninitializedBranch,
    /// Part of an output was never written.
    OutputNotWritten,
    /// Two accesses, at least one of them a write, with nothing that orders them.
    Race,
    /// The destination of an asynchronous copy is read before its wait.
    ReadInFlight,
    /// The destination or the source of an asynchronous copy is written before its wait.
    OverwriteInFlight,
    /// A thread ends before its asynchronous copies have.
    ExitInFlight,
    /// An access of the async proxy after one of the generic proxy, without a fence between proxies.
    ProxyFence,
    /// A register of an asynchronous matrix product is accessed before its wait.
    RegisterInFlight,
    /// A matrix product on registers that were accessed since the last `wgmma.fence`.
    WgmmaFence,
    /// A wait for the phase of an mbarrier that has gone on to another one.
    MbarrierPhase,
    /// An instruction that needs a converged warp and has none, or a `.uni` branch that diverges.
    Divergence,
    /// An instruction that a warpgroup must execute as one, and does not.
    Warpgroup,
    /// A member mask that does not fit the lanes that are there.
    MemberMask,
    /// A lane reads the register of a lane that does not take part.
    InactiveLane,
    /// A barrier whose operands are wrong or disagree.
    Barrier,
    /// An mbarrier used against its rules.
    Mbarrier,
    /// Nothing in the block can move.
    Deadlock,
    /// An operand with a value that the instruction does not allow.
    Operand,
    /// The block executes more instructions than the options allow.
    InstructionLimit,
    /// The kernel executed `trap`.
    Trap,
    /// Something that the emulator cannot carry out.
    Unsupported,
}

impl Rule {
    /// A short name for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// What the rule says, and where the PTX ISA manual says it.
    #[must_use]
    pub fn manual(self) -> &'static str {
        self.words().1
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Rule::OutOfBounds => (
                "out-of-bounds",
                "an access must lie inside one object of its state space (PTX ISA, 5.1)",
            ),
            Rule::NullPointer => (
                "null-pointer",
                "an access must lie inside one object of its state space (PTX ISA, 5.1)",
            ),
            Rule::UseAfterFree => (
                "use-after-free",
                "an access must lie inside a live object (PTX ISA, 5.1)",
            ),
            Rule::Misaligned => (
                "misaligned",
                "an address must be a multiple of the access's size, vectors as a whole (PTX ISA, 6.4.1)",
            ),
            Rule::ReadOnly => (
                "read-only",
                "constant and parameter memory is read-only (PTX ISA, 5.1)",
            ),
            Rule::UninitializedStore => (
                "uninitialized-store",
                "registers and memory hold nothing defined until they are written (PTX ISA, 5.1)",
            ),
            Rule::UninitializedAddress => (
                "uninitialized-address",
                "registers and memory hold nothing defined until they are written (PTX ISA, 5.1)",
            ),
            Rule::UninitializedBranch => (
                "uninitialized-branch",
                "registers and memory hold nothing defined until they are written (PTX ISA, 5.1)",
            ),
            Rule::OutputNotWritten => (
                "output-not-written",
                "a kernel writes every element of its outputs",
            ),
            Rule::Race => (
                "race",
                "conflicting accesses must be ordered by a barrier, or by a release and an acquire (PTX ISA, 8.7.1)",
            ),
            Rule::ReadInFlight => (
                "read-in-flight",
                "a copy's bytes are there only after a wait that covers it, in the thread that started it (PTX ISA, \
                 9.7.9.25.3)",
            ),
            Rule::OverwriteInFlight => (
                "overwrite-in-flight",
                "until its wait, a copy may read its source and write its destination at any time (PTX ISA, \
                 9.7.9.25.3)",
            ),
            Rule::ExitInFlight => (
                "exit-in-flight",
                "a copy that nobody waits for may land in memory that already has another use (PTX ISA, 9.7.9.25.3)",
            ),
            Rule::ProxyFence => (
                "proxy-fence",
                "between an access by an instruction and one by a bulk copy or a wgmma, the first one's thread executes \
                 fence.proxy.async (PTX ISA, 8.6, 9.7.13.4)",
            ),
            Rule::RegisterInFlight => (
                "register-in-flight",
                "until a wgmma.wait_group that covers it, the registers of a wgmma.mma_async are its own (PTX ISA, \
                 9.7.15.7)",
            ),
            Rule::WgmmaFence => (
                "wgmma-fence",
                "wgmma.fence orders accesses to registers before a wgmma.mma_async that uses them, and comes before the \
                 first one (PTX ISA, 9.7.15.7)",
            ),
            Rule::MbarrierPhase => (
                "mbarrier-phase",
                "a wait can tell the running phase of an mbarrier and the one before, no others (PTX ISA, 9.7.13.15)",
            ),
            Rule::Divergence => (
                "divergence",
                "all threads of the warp must execute an .aligned instruction together, and agree on a .uni branch \
                 (PTX ISA, 9.7.12, 9.7.13)",
            ),
            Rule::Warpgroup => (
                "warpgroup",
                "all four warps of a warpgroup execute the same wgmma and setmaxnreg instructions, with the same \
                 descriptors (PTX ISA, 9.7.15.1, 9.7.19.5)",
            ),
            Rule::MemberMask => (
                "member-mask",
                "the member mask of a .sync instruction names the executing thread, and only threads that come (PTX \
                 ISA, 9.7.9.6)",
            ),
            Rule::InactiveLane => (
                "inactive-lane",
                "a shuffle from a thread that does not take part gives an undefined value (PTX ISA, 9.7.9.6)",
            ),
            Rule::Barrier => (
                "barrier",
                "threads agree on a barrier's number and thread count, a multiple of 32 (PTX ISA, 9.7.13.1); at a cluster's \
                 barrier, arrivals and waits alternate (9.7.13.3)",
            ),
            Rule::Mbarrier => (
                "mbarrier",
                "an mbarrier object is initialised first and counts no more than it expects (PTX ISA, 9.7.13.15)",
            ),
            Rule::Deadlock => (
                "deadlock",
                "a barrier waits until as many threads have arrived as it expects (PTX ISA, 9.7.13.1)",
            ),
            Rule::Operand => (
                "operand",
                "an operand is in the range that its instruction allows",
            ),
            Rule::InstructionLimit => ("instruction-limit", "a kernel comes to an end"),
            Rule::Trap => ("trap", "`trap` aborts the grid (PTX ISA, 9.7.19.4)"),
            Rule::Unsupported => ("unsupported", "the emulator knows no way to go on"),
        }
    }
}

impl From<&FaultKind> for Rule {
    fn from(kind: &FaultKind) -> Self {
        match kind {
            FaultKind::OutOfBounds { .. } => Rule::OutOfBounds,
            FaultKind::Misaligned { .. } => Rule::Misaligned,
            FaultKind::Null { .. } => Rule::NullPointer,
            FaultKind::Freed { .. } | FaultKind::BlockExited { .. } => Rule::UseAfterFree,
            FaultKind::ReadOnly { .. } => Rule::ReadOnly,
            FaultKind::Divergent { .. } => Rule::Divergence,
            FaultKind::BadMemberMask { .. } => Rule::MemberMask,
            FaultKind::BadBarrier { .. } | FaultKind::ClusterBarrier { .. } => Rule::Barrier,
            FaultKind::Deadlock { .. } => Rule::Deadlock,
            FaultKind::BadOperand { .. } => Rule::Operand,
            FaultKind::Warpgroup { .. } => Rule::Warpgroup,
            FaultKind::Mbarrier { .. } => Rule::Mbarrier,
            FaultKind::InstructionLimit { .. } => Rule::InstructionLimit,
            FaultKind::Trap => Rule::Trap,
            FaultKind::Unsupported { .. } => Rule::Unsupported,
        }
    }
}

/// A place in the program. Line 0 is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Site {
    /// The block's index in the grid.
    pub block: [u32; 3],
    /// The thread's index in the block.
    pub thread: [u32; 3],
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// The instruction as written.
    pub instruction: String,
    /// The lines around it, with their numbers.
    pub context: Vec<(u32, String)>,
    /// The line of Rust, if the PTX carries it (`.loc`), and what is known of its caller: where the call is, or the last
    /// line of another file before it.
    pub source: Vec<String>,
}

impl Site {
    /// Who and where, after `what`, with the lines around it.
    fn write(&self, f: &mut fmt::Formatter<'_>, what: &str) -> fmt::Result {
        writeln!(
            f,
            "  {what}block {} thread {} at line {}: {}",
            triple(self.block),
            triple(self.thread),
            self.line,
            self.instruction
        )?;
        for source in &self.source {
            writeln!(f, "      {source}")?;
        }
        for (line, text) in &self.context {
            let mark = if *line == self.line { '>' } else { ' ' };
            writeln!(f, "    {mark} {line:>6} | {text}")?;
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule that is broken.
    pub rule: Rule,
    /// What happened, in one line.
    pub message: String,
    /// Where.
    pub site: Site,
    /// The other access, if two are needed for it, and what it was.
    pub other: Option<(String, Site)>,
    /// How often it was seen at these places.
    pub count: u64,
}

fn triple([x, y, z]: [u32; 3]) -> String {
    format!("({x},{y},{z})")
}

impl Finding {
    /// One line: rule, who, where, what.
    #[must_use]
    pub fn summary(&self) -> String {
        let Site {
            block,
            thread,
            line,
            instruction,
            ..
        } = &self.site;
        if *line == 0 {
            return format!("{}: {}", self.rule.name(), self.message);
        }
        let other = self.other.as_ref().map(|(what, site)| {
            // The block, too, if it is another one.
            let of = if site.block == *block {
                String::new()
            } else {
                format!("block {} ", triple(site.block))
            };
            format!(
                "; {what} by {of}thread {} at line {}: {}",
                triple(site.thread),
                site.line,
                site.instruction
            )
        });
        format!(
            "{}: block {} thread {}: {instruction} at line {line}: {}{}",
            self.rule.name(),
            triple(*block),
            triple(*thread),
            self.message,
            other.unwrap_or_default()
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.rule.name(), self.message)?;
        if self.site.line != 0 {
            self.site.write(f, "")?;
        }
        if let Some((what, other)) = &self.other {
            other.write(f, &format!("{what} by "))?;
        }
        if self.count > 1 {
            writeln!(f, "  seen {} times at these lines", self.count)?;
        }
        write!(f, "  rule: {}", self.rule.manual())
    }
}

/// All that the checks found in a launch; never empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The findings, in the order in which they were made.
    pub findings: Vec<Finding>,
    /// Further findings that are not listed.
    pub more: u64,
}

impl Report {
    /// One line: how many findings, and the first.
    #[must_use]
    pub fn summary(&self) -> String {
        let first = self.findings.first().map(Finding::summary);
        let all = self.findings.len() as u64 + self.more;
        let findings = if all == 1 { "finding" } else { "findings" };
        format!("{all} {findings}: {}", first.unwrap_or_default())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, finding) in self.findings.iter().enumerate() {
            if n > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "[{}] {finding}", n + 1)?;
        }
        if self.more > 0 {
            write!(f, "\n\n{} more findings are not listed", self.more)?;
        }
        Ok(())
    }
}

//! A kernel broken in one line for each rule of the sanitizer that a kernel can break: the report names the rule, the line,
//! and the other line where there are two.

use flashtile::{
    Device, EmulatorDevice, Error,
    device::emulator::{Finding, Report, Rule},
};
use flashtile_tests::{Case, Tensors, memory, mutation::lines_with};

/// Several full and masked tiles, rows of which the last block has too few, and an output in f32.
const CASE: &str = "fused sm_80 f16 b1 q150 k200 h2/1 d32/32 causal=bottom-right seed=1";

/// The kernel's text, line by line.
struct Kernel {
    lines: Vec<String>,
}

impl Kernel {
    fn new() -> Self {
        let case: Case = CASE.parse().unwrap();
        let text = flashtile::ptx(case.variant()).unwrap();
        Self {
            lines: text.lines().map(str::to_owned).collect(),
        }
    }

    /// Place of the n-th line that begins with this.
    fn nth(&self, instruction: &str, n: usize) -> usize {
        lines_with(&self.lines.join("\n"), instruction)[n]
    }

    /// Declares registers of our own, and puts lines at the end of the block in which queries are loaded. Returns the
    /// number of the last of them as a message gives it.
    fn insert(&mut self, code: &[&str]) -> u32 {
        let at = self.nth("cp.async.commit_group", 0) + 1;
        self.insert_at(at, code)
    }

    fn insert_at(&mut self, at: usize, code: &[&str]) -> u32 {
        let code = code.iter().map(|&line| line.to_owned());
        let last = at + code.len();
        self.lines.splice(at..at, code);
        let declarations = [
            ".reg .pred %zp<4>;",
            ".reg .b32 %zr<8>;",
            ".reg .b64 %zd<4>;",
        ];
        let body = self.lines.iter().position(|line| line == "{").unwrap() + 1;
        let declared = declarations.map(str::to_owned);
        self.lines.splice(body..body, declared);
        (last + declarations.len()) as u32
    }

    /// What the sanitizer says of it.
    fn report(&self) -> Report {
        let case: Case = CASE.parse().unwrap();
        let device = EmulatorDevice::sanitizing();
        // SAFETY: the emulator checks every access.
        unsafe { device.override_ptx(case.variant(), &self.lines.join("\n")) }.unwrap();
        match memory::run(&device, &case, &Tensors::of(&case)) {
            Err(Error::Findings { report, .. }) => *report,
            other => panic!("no findings: {:?}", other.err()),
        }
    }

    /// The finding of this rule.
    #[track_caller]
    fn breaks(&self, rule: Rule) -> Finding {
        let report = self.report();
        let found = report.findings.iter().find(|found| found.rule == rule);
        found
            .unwrap_or_else(|| panic!("{} is not in\n{report}", rule.name()))
            .clone()
    }
}

#[test]
fn whole_kernels_have_none() {
    let case: Case = CASE.parse().unwrap();
    let device = EmulatorDevice::sanitizing();
    memory::run(&device, &case, &Tensors::of(&case)).unwrap();
}

#[test]
fn a_barrier_is_missing() {
    let mut kernel = Kernel::new();
    let at = kernel.nth("bar.sync", 1);
    kernel.lines[at].clear();
    let race = kernel.breaks(Rule::Race);
    let (_, other) = race.other.unwrap();
    let sites = [race.site, other];
    // A matrix is read that a copy has written, or is about to.
    assert!(sites.iter().any(|s| s.instruction.starts_with("ldmatrix")));
    assert!(sites.iter().any(|s| s.instruction.starts_with("cp.async")));
    for site in sites {
        let line = kernel.lines[site.line as usize - 1].replace('\t', " ");
        let words = line.trim().trim_end_matches(';').split_whitespace();
        assert_eq!(site.instruction, words.collect::<Vec<_>>().join(" "));
    }
}

#[test]
fn a_wait_is_missing() {
    let mut kernel = Kernel::new();
    let at = kernel.nth("cp.async.wait_group 1", 0);
    kernel.lines[at].clear();
    let early = kernel.breaks(Rule::ReadInFlight);
    assert!(early.site.instruction.starts_with("ldmatrix"));
    assert!(early.other.unwrap().1.instruction.starts_with("cp.async"));
}

#[test]
fn a_destination_is_written_while_a_copy_is_under_way() {
    let mut kernel = Kernel::new();
    let at = kernel.nth("cp.async.cg", 0);
    let copy = kernel.lines[at].clone();
    let line = kernel.insert_at(at + 1, &[&copy]);
    let twice = kernel.breaks(Rule::OverwriteInFlight);
    assert_eq!(twice.site.line, line);
    assert_eq!(twice.other.unwrap().1.line, line - 1);
}

#[test]
fn a_thread_ends_with_copies_under_way() {
    let mut kernel = Kernel::new();
    let line = kernel.insert(&["ret;"]);
    let found = kernel.breaks(Rule::ExitInFlight);
    assert_eq!(found.site.line, line);
    assert!(found.other.unwrap().1.instruction.starts_with("cp.async"));
}

#[test]
fn an_output_is_not_written() {
    let mut kernel = Kernel::new();
    for at in lines_with(&kernel.lines.join("\n"), "st.global.v4") {
        kernel.lines[at].clear();
    }
    let found = kernel.breaks(Rule::OutputNotWritten);
    assert!(
        found.message.starts_with("out[0, 0, 0, 0]"),
        "{}",
        found.message
    );
}

#[test]
fn a_value_is_used_that_nobody_wrote() {
    for (rule, code) in [
        (
            Rule::UninitializedStore,
            &[
                "mov.b32 %zr1, flashtile_smem;",
                "st.shared.u32 [%zr1+16384], %zr2;",
            ][..],
        ),
        (
            Rule::UninitializedAddress,
            &["cvt.u64.u32 %zd1, %zr2;", "ld.global.u32 %zr1, [%zd1];"],
        ),
        (
            Rule::UninitializedBranch,
            &["setp.eq.u32 %zp1, %zr2, 7;", "@%zp1 bra $ZL;", "$ZL:"],
        ),
    ] {
        let mut kernel = Kernel::new();
        let last = kernel.insert(code);
        let expected = if rule == Rule::UninitializedBranch {
            last - 1
        } else {
            last
        };
        assert_eq!(kernel.breaks(rule).site.line, expected, "{}", rule.name());
    }
}

#[test]
fn what_the_machine_refuses() {
    for (rule, code) in [
        (
            Rule::OutOfBounds,
            &[
                "mov.b32 %zr1, flashtile_smem;",
                "ld.shared.u32 %zr2, [%zr1+262144];",
            ][..],
        ),
        (
            Rule::Misaligned,
            &[
                "mov.b32 %zr1, flashtile_smem;",
                "ld.shared.u32 %zr2, [%zr1+2];",
            ],
        ),
        (
            Rule::NullPointer,
            &["mov.b64 %zd1, 0;", "ld.global.u32 %zr2, [%zd1];"],
        ),
        (
            Rule::Divergence,
            &["setp.lt.u32 %zp1, %tid.x, 5;", "@%zp1 bar.sync 0;"],
        ),
        (
            Rule::MemberMask,
            &[
                "mov.b32 %zr1, 0;",
                "shfl.sync.idx.b32 %zr2, %zr1, 0, 31, 1;",
            ],
        ),
        (Rule::Barrier, &["bar.sync 0, 33;"]),
        (
            Rule::Deadlock,
            &["setp.lt.u32 %zp1, %tid.x, 32;", "@%zp1 bar.sync 1, 64;"],
        ),
        (
            Rule::Mbarrier,
            &[
                "mov.b32 %zr1, flashtile_smem;",
                "mbarrier.arrive.shared.b64 %zd1, [%zr1];",
            ],
        ),
        (
            Rule::Operand,
            &[
                "mov.b32 %zr1, flashtile_smem;",
                "mov.b32 %zr2, 17;",
                "mov.b64 %zd1, 0;",
                "cp.async.cg.shared.global [%zr1], [%zd1], 16, %zr2;",
            ],
        ),
        (Rule::Trap, &["trap;"]),
    ] {
        let mut kernel = Kernel::new();
        let line = kernel.insert(code);
        assert_eq!(kernel.breaks(rule).site.line, line, "{}", rule.name());
    }
}

#[test]
fn lanes_that_do_not_agree() {
    let mut kernel = Kernel::new();
    let line = kernel.insert(&[
        "mov.u32 %zr1, %laneid;",
        "setp.gt.u32 %zp1, %zr1, 15;",
        "@%zp1 bra $ZL;",
        "shfl.sync.idx.b32 %zr2, %zr1, 20, 31, 65535;",
        "$ZL:",
    ]);
    assert_eq!(kernel.breaks(Rule::InactiveLane).site.line, line - 1);
    let mut kernel = Kernel::new();
    let line = kernel.insert(&["setp.lt.u32 %zp1, %tid.x, 5;", "@%zp1 bra.uni $ZL;", "$ZL:"]);
    assert_eq!(kernel.breaks(Rule::Divergence).site.line, line - 1);
}

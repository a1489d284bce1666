//! Tests of single instructions: a few lines of PTX, the same text on a GPU and on the emulator, and
//! every bit of the results compared.

mod arithmetic;
mod convert;
pub mod forms;
mod fragments;
pub mod inputs;
pub mod mma;
mod sync;

use crate::compare::Format;

/// The oldest target that has the instruction, and with it the PTX version of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Ampere.
    Sm80,
    /// Ada.
    Sm89,
    /// Hopper.
    Sm90,
}

impl Target {
    /// Compute capability.
    pub const fn capability(self) -> (u32, u32) {
        match self {
            Self::Sm80 => (8, 0),
            Self::Sm89 => (8, 9),
            Self::Sm90 => (9, 0),
        }
    }

    /// As PTX and ptxas spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm89 => "sm_89",
            Self::Sm90 => "sm_90",
        }
    }

    const fn version(self) -> &'static str {
        match self {
            Self::Sm80 => "7.8",
            Self::Sm89 | Self::Sm90 => "8.4",
        }
    }
}

/// What the PTX manual says of the result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Promise {
    /// Every bit (of a NaN, only that it is one).
    Exact,
    /// An approximation, so many units in the last place off at most. 0: the manual bounds it otherwise.
    Approximate(u32),
    /// Order and rounding of the sums are open.
    Open,
}

/// One instruction, or a few that belong together, over many inputs.
#[derive(Clone, Debug)]
pub struct Test {
    /// The instruction, and what is special about the inputs.
    pub name: String,
    /// Where it runs.
    pub target: Target,
    /// Variables of the entry.
    pub declarations: String,
    /// From the registers `%a0`, `%a1`, ... to `%o0`, `%o1`, ...; 32 bits each. There are scratch registers `%h`
    /// (16 bits), `%r`, `%d` (64 bits) and `%p`; `%r0` is the thread in the block, `%d0` the address of the thread's
    /// own outputs, which hold 0xff bytes.
    pub body: String,
    /// Threads of a block.
    pub block: u32,
    /// Input words of a thread.
    pub ins: usize,
    /// What the output words are.
    pub outs: Vec<Format>,
    /// Words of all threads; a whole number of blocks.
    pub input: Vec<u32>,
    /// What may differ.
    pub promise: Promise,
    /// Whether the emulator has several models of it.
    pub models: bool,
    /// Names of the warps, where each is an experiment of its own.
    pub experiments: Vec<String>,
}

impl Test {
    /// A test whose input is filled up to whole blocks with its own beginning.
    pub fn new(
        name: impl Into<String>,
        target: Target,
        body: impl Into<String>,
        (ins, outs): (usize, Vec<Format>),
        mut input: Vec<u32>,
    ) -> Self {
        let block = 128;
        let whole = input.len().div_ceil(ins).next_multiple_of(block as usize) * ins;
        for at in 0..whole - input.len() {
            input.push(input[at]);
        }
        Self {
            name: name.into(),
            target,
            declarations: String::new(),
            body: body.into(),
            block,
            ins,
            outs,
            input,
            promise: Promise::Exact,
            models: false,
            experiments: Vec::new(),
        }
    }

    /// The same with declarations.
    #[must_use]
    pub fn declare(mut self, declarations: &str) -> Self {
        self.declarations = declarations.into();
        self
    }

    /// The same with another promise.
    #[must_use]
    pub fn promise(mut self, promise: Promise) -> Self {
        self.promise = promise;
        self
    }

    /// Threads in all.
    pub fn threads(&self) -> usize {
        self.input.len() / self.ins
    }

    /// Name of the entry point.
    pub const ENTRY: &'static str = "test";

    /// The module.
    pub fn ptx(&self) -> String {
        header(self.target) + &self.entry(Self::ENTRY)
    }

    /// The entry point, under some name.
    fn entry(&self, name: &str) -> String {
        use std::fmt::Write;
        let (ins, outs) = (self.ins, self.outs.len());
        let mut text = format!(
            ".visible .entry {name}(.param .u64 input, .param .u64 output)\n.maxntid {}, 1, 1\n{{\n{}\n\
             .reg .pred %p<16>;\n.reg .b16 %h<32>;\n.reg .b32 %r<64>;\n.reg .b64 %d<32>;\n.reg .b32 %a<{}>;\n.reg .b32 %o<{}>;\n\
             ld.param.u64 %d1, [input];\nld.param.u64 %d0, [output];\nmov.u32 %r0, %tid.x;\nmov.u32 %r1, %ctaid.x;\n\
             mov.u32 %r2, %ntid.x;\nmad.lo.u32 %r1, %r1, %r2, %r0;\nmul.wide.u32 %d2, %r1, {};\nadd.s64 %d1, %d1, %d2;\n\
             mul.wide.u32 %d2, %r1, {};\nadd.s64 %d0, %d0, %d2;\n",
            self.block,
            self.declarations,
            ins.max(1),
            outs.max(1),
            4 * ins,
            4 * outs,
        );
        // Writing to a String does not fail.
        for i in 0..ins {
            let _ = writeln!(text, "ld.global.u32 %a{i}, [%d1+{}];", 4 * i);
        }
        let _ = writeln!(text, "{}", self.body);
        for i in 0..outs {
            let _ = writeln!(text, "st.global.u32 [%d0+{}], %o{i};", 4 * i);
        }
        text.push_str("ret;\n}\n");
        text
    }
}

fn header(target: Target) -> String {
    format!(
        ".version {}\n.target {}\n.address_size 64\n",
        target.version(),
        target.name()
    )
}

/// One module of all the tests for a target, with entries `test_0`, `test_1`, ...: what an assembler is asked about.
pub fn module(tests: &[Test], target: Target) -> String {
    let of_target = tests
        .iter()
        .filter(|test| test.target == target)
        .enumerate();
    let entry = |(number, test): (usize, &Test)| {
        format!(
            "// {}\n{}",
            test.name,
            test.entry(&format!("{}_{number}", Test::ENTRY))
        )
    };
    of_target.fold(header(target), |text, test| text + &entry(test))
}

/// Every test there is, in the order in which a report is best read.
pub fn all() -> Vec<Test> {
    let mut tests = fragments::tests();
    tests.extend(mma::tests());
    tests.extend(sync::tests());
    tests.extend(convert::tests());
    tests.extend(arithmetic::tests());
    tests
}

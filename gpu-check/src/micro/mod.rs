//! Tests of single instructions: a few lines of PTX, the same text on a GPU and on the emulator, and
//! every bit of the results compared.

mod arithmetic;
mod convert;
pub mod forms;
mod fragments;
pub mod hopper;
pub mod inputs;
pub mod mma;
pub mod sums;
mod sync;

use flashtile_emulator::{TENSOR_MAP_BYTES, TensorMap};

use crate::compare::Format;

/// The oldest target that has the instruction, and with it the PTX version of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Ampere.
    Sm80,
    /// Ada.
    Sm89,
    /// Hopper and later.
    Sm90,
    /// Hopper alone.
    Sm90a,
}

impl Target {
    /// Every target.
    pub const ALL: [Self; 4] = [Self::Sm80, Self::Sm89, Self::Sm90, Self::Sm90a];

    /// Whether a device of this compute capability runs its code.
    pub fn runs_on(self, capability: (u32, u32)) -> bool {
        match self {
            Self::Sm80 => capability >= (8, 0),
            Self::Sm89 => capability >= (8, 9),
            Self::Sm90 => capability >= (9, 0),
            Self::Sm90a => capability == (9, 0),
        }
    }

    /// As PTX and ptxas spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm89 => "sm_89",
            Self::Sm90 => "sm_90",
            Self::Sm90a => "sm_90a",
        }
    }

    const fn version(self) -> &'static str {
        match self {
            Self::Sm80 => "7.8",
            Self::Sm89 | Self::Sm90 => "8.4",
            // That of the kernels.
            Self::Sm90a => "8.0",
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
    /// Order and rounding of the sums are open, or something else that the manual does not say.
    Open,
    /// The emulator does not know: what the device gives is an answer.
    Unknown,
}

/// A test's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// What it reads.
    Input,
    /// What it writes.
    Output,
}

/// Where a tensor map lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is a parameter of the entry.
    Parameter,
    /// In global memory.
    Global,
}

/// A tensor map that a test's entry gets.
#[derive(Clone, Debug)]
pub struct Map {
    /// Its arguments, the address from the beginning of the buffer.
    pub tensor: TensorMap,
    /// What it is a map of.
    pub of: Buffer,
    /// Where it lies.
    pub place: Place,
}

/// How a test's body gets at its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Each thread has words of its own, in registers: from `%a0`, `%a1`, ... to `%o0`, `%o1`, ...; 32 bits each.
    Words,
    /// By itself: `%d1` is the address of the input, `%d0` that of the block's output.
    Memory,
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
    /// Instructions. There are scratch registers `%h` (16 bits), `%r`, `%d` (64 bits) and `%p`; `%r0` is the thread in the block.
    /// With [`Access::Words`], `%d0` is the address of the thread's own outputs. Outputs hold 0xff bytes before.
    pub body: String,
    /// Where inputs and outputs are.
    pub access: Access,
    /// Threads of a block.
    pub block: u32,
    /// Blocks.
    pub grid: u32,
    /// Blocks of a cluster.
    pub cluster: u32,
    /// Launch bounds besides the threads of a block.
    pub bounds: &'static str,
    /// Tensor maps.
    pub maps: Vec<Map>,
    /// Input words of a thread; 0 with [`Access::Memory`].
    pub ins: usize,
    /// What the output words of a thread are. With [`Access::Memory`] the block's output is as long as that of all its threads.
    pub outs: Vec<Format>,
    /// Words of all threads.
    pub input: Vec<u32>,
    /// What may differ.
    pub promise: Promise,
    /// Whether the emulator has several models of it.
    pub models: bool,
    /// Names of the warps or blocks, where each is an experiment of its own.
    pub experiments: Vec<String>,
    /// Threads of an experiment.
    pub experiment_threads: usize,
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
            access: Access::Words,
            block,
            grid: (whole / ins) as u32 / block,
            cluster: 1,
            bounds: "",
            maps: Vec::new(),
            ins,
            outs,
            input,
            promise: Promise::Exact,
            models: false,
            experiments: Vec::new(),
            experiment_threads: 32,
        }
    }

    /// A test whose body reads `input` and writes `words` words for each of its blocks' threads by itself.
    pub fn in_memory(
        name: impl Into<String>,
        target: Target,
        body: impl Into<String>,
        (grid, block): (u32, u32),
        (words, format): (usize, Format),
        input: Vec<u32>,
    ) -> Self {
        Self {
            access: Access::Memory,
            block,
            grid,
            ins: 0,
            input,
            ..Self::new(name, target, body, (1, vec![format; words]), Vec::new())
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
        (self.grid * self.block) as usize
    }

    /// Name of the entry point.
    pub const ENTRY: &'static str = "test";

    /// Instructions that make the generic address of a tensor map, in this register of 64 bits.
    pub fn map_address(place: Place, number: usize, register: &str) -> String {
        match place {
            Place::Parameter => {
                format!(
                    "mov.b64 {register}, map{number};\ncvta.param.u64 {register}, {register};\n"
                )
            }
            Place::Global => format!(
                "ld.param.u64 {register}, [maps];\nadd.s64 {register}, {register}, {};\n",
                number * TENSOR_MAP_BYTES
            ),
        }
    }

    /// A launch's parameters: input, output and the maps in global memory are at these addresses, and these are the maps.
    pub fn params(&self, addresses: [u64; 3], maps: &[[u8; TENSOR_MAP_BYTES]]) -> Vec<u8> {
        let count = if self.maps.is_empty() { 2 } else { 3 };
        let mut params: Vec<u8> = addresses[..count]
            .iter()
            .flat_map(|address| address.to_le_bytes())
            .collect();
        for map in maps {
            params.resize(params.len().next_multiple_of(MAP_ALIGN), 0);
            params.extend(map);
        }
        params
    }

    /// The module.
    pub fn ptx(&self) -> String {
        header(self.target) + &self.entry(Self::ENTRY)
    }

    /// The entry point, under some name.
    fn entry(&self, name: &str) -> String {
        use std::fmt::Write;
        let (ins, outs) = (self.ins, self.outs.len());
        let mut maps = String::new();
        // Writing to a String does not fail.
        for n in 0..self.maps.len() {
            let first = if n == 0 { ", .param .u64 maps" } else { "" };
            let _ = write!(
                maps,
                "{first}, .param .align {MAP_ALIGN} .b8 map{n}[{TENSOR_MAP_BYTES}]"
            );
        }
        let mut text = format!(
            ".visible .entry {name}(.param .u64 input, .param .u64 output{maps})\n.maxntid {}, 1, 1{}\n{{\n{}\n\
             .reg .pred %p<16>;\n.reg .b16 %h<32>;\n.reg .b32 %r<64>;\n.reg .b64 %d<32>;\n.reg .b32 %a<{}>;\n.reg .b32 %o<{}>;\n\
             ld.param.u64 %d1, [input];\nld.param.u64 %d0, [output];\nmov.u32 %r0, %tid.x;\nmov.u32 %r1, %ctaid.x;\n",
            self.block,
            self.bounds,
            self.declarations,
            ins.max(1),
            outs.max(1),
        );
        if self.access == Access::Memory {
            let block_bytes = 4 * outs * self.block as usize;
            let _ = write!(
                text,
                "mul.wide.u32 %d2, %r1, {block_bytes};\nadd.s64 %d0, %d0, %d2;\n{}\nret;\n}}\n",
                self.body
            );
            return text;
        }
        let _ = write!(
            text,
            "mov.u32 %r2, %ntid.x;\nmad.lo.u32 %r1, %r1, %r2, %r0;\nmul.wide.u32 %d2, %r1, {};\nadd.s64 %d1, %d1, %d2;\n\
             mul.wide.u32 %d2, %r1, {};\nadd.s64 %d0, %d0, %d2;\n",
            4 * ins,
            4 * outs,
        );
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

/// What the address of a tensor map among the parameters is a multiple of, as the kernels have it.
const MAP_ALIGN: usize = 64;

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

/// A group of tests: its name, and what makes them.
pub type Group = (&'static str, fn() -> Vec<Test>);

/// The groups, in the order in which a report is best read: what shows most about a tier comes first, and what could make a GPU hang
/// after what could not.
pub const GROUPS: [Group; 11] = [
    ("tma", hopper::tma::tests),
    ("wgmma", hopper::wgmma::tests),
    ("wgmma-sums", hopper::sums::tests),
    ("mma-fragments", fragments::tests),
    ("mma", mma::tests),
    ("warp", sync::tests),
    ("convert", convert::tests),
    ("arithmetic", arithmetic::tests),
    ("cluster", hopper::cluster::tests),
    ("registers", hopper::registers::tests),
    ("pipeline", hopper::pipeline::tests),
];

/// Every test there is.
pub fn all() -> Vec<Test> {
    GROUPS.iter().flat_map(|(_, tests)| tests()).collect()
}

//! The machine: clusters, blocks, warps, and what their instructions do.
//!
//! A worker thread owns one [`Runner`] and runs cluster after cluster in it; mostly a cluster is one block. Its warps take
//! turns: each runs until it waits for something, ends, or has had its share. Within a warp, lanes that stand at the same
//! instruction form a group; `warp` says how groups part and meet.

mod alu;
mod banks;
mod bulk;
mod cluster;
mod collective;
mod copy;
mod matrix;
mod mbarrier;
mod memory;
mod registers;
mod stall;
mod sync;
mod tile;
mod warp;
mod watch;
mod wgmma;

use std::collections::HashMap;

use crate::device::{AsyncTiming, Launch, Options, Schedule};
use crate::error::{FaultKind, Space};
use crate::memory::DeviceMemory;
use crate::module::Module;
use crate::program::{Constant, Inst, Kind, Program, Special, Src, WARP};
use crate::sanitize::Site;
use cluster::Cluster;
pub(crate) use cluster::{RANK_MASK, RANK_SHIFT, Runner};
pub(crate) use memory::Place;

/// First address of the shared window: null and near-null pointers are outside.
pub(crate) const SHARED_BASE: u64 = 0x400;
/// First address of the local window.
pub(crate) const LOCAL_BASE: u64 = 0x400;
/// Generic address of shared address 0.
pub(crate) const SHARED_WINDOW: u64 = 1 << 56;
/// Generic address of local address 0.
pub(crate) const LOCAL_WINDOW: u64 = 2 << 56;
/// Generic address of parameter 0.
pub(crate) const PARAM_WINDOW: u64 = 3 << 56;

/// A thread at an instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who {
    /// Its warp's number in the cluster.
    pub(crate) warp: u32,
    pub(crate) lane: u32,
    pub(crate) pc: u32,
}

impl Who {
    /// The thread's number in its cluster: see [`Machine::block_of`].
    #[inline(always)]
    pub(crate) fn thread(self) -> usize {
        self.warp as usize * WARP + self.lane as usize
    }
}

/// What all blocks of a launch have in common.
pub(crate) struct Machine<'a> {
    program: &'a Program,
    text: &'a str,
    files: &'a HashMap<u32, String>,
    memory: &'a DeviceMemory,
    params: &'a [u8],
    grid: [u32; 3],
    block: [u32; 3],
    /// Blocks of a cluster.
    cluster: [u32; 3],
    /// Whether the launch or the entry asks for clusters.
    explicit_cluster: bool,
    timing: AsyncTiming,
    schedule: Schedule,
    max_instructions: u64,
    count_bank_conflicts: bool,
    sanitize: bool,
    shared_bytes: usize,
    dynamic_shared: u32,
    /// Addresses of the module's variables.
    variables: &'a [u64],
}

impl<'a> Machine<'a> {
    pub(crate) fn new(
        program: &'a Program,
        module: &'a Module,
        memory: &'a DeviceMemory,
        variables: &'a [u64],
        launch: &Launch<'a>,
        cluster: Option<[u32; 3]>,
        options: &Options,
    ) -> Self {
        let static_shared = program
            .static_shared
            .next_multiple_of(program.dynamic_align);
        Machine {
            program,
            text: &module.text,
            files: &module.tree.files,
            memory,
            params: launch.params,
            grid: launch.grid,
            block: launch.block,
            cluster: cluster.unwrap_or([1; 3]),
            explicit_cluster: cluster.is_some(),
            timing: options.async_copies,
            schedule: options.schedule,
            max_instructions: options.max_instructions.unwrap_or(u64::MAX),
            count_bank_conflicts: options.count_bank_conflicts,
            sanitize: options.sanitize,
            shared_bytes: (static_shared + u64::from(launch.dynamic_shared)) as usize,
            dynamic_shared: launch.dynamic_shared,
            variables,
        }
    }

    /// Places and values of the program's constants, in a block of that rank.
    fn constants(&self, rank: u32) -> impl Iterator<Item = (Src, u64)> {
        self.program
            .constants
            .iter()
            .map(move |&(place, constant)| {
                let value = match constant {
                    Constant::Bits(bits) => bits,
                    Constant::Variable(at, offset) => {
                        let address = self.variables.get(at).copied().unwrap_or(0);
                        address.wrapping_add(offset)
                    }
                    Constant::Shared(address) => address + (u64::from(rank) << RANK_SHIFT),
                };
                (place, value)
            })
    }

    /// Threads of a block.
    pub(crate) fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// Warps of a block.
    pub(crate) fn warps(&self) -> u32 {
        self.threads().div_ceil(WARP as u32)
    }

    /// Blocks of a cluster.
    pub(crate) fn cluster_size(&self) -> u32 {
        self.cluster.iter().product()
    }

    /// The index of a block of the cluster that begins at block `first`.
    pub(crate) fn block_index(&self, first: [u32; 3], rank: u32) -> [u32; 3] {
        let offset = thread_index(self.cluster, rank);
        std::array::from_fn(|n| first[n] + offset[n])
    }

    /// Rank of a thread's block. Threads of a cluster are numbered through, with whole warps for every block.
    pub(crate) fn rank_of(&self, thread: usize) -> u32 {
        (thread / WARP) as u32 / self.warps()
    }

    /// The index of a thread's block.
    pub(crate) fn block_of(&self, first: [u32; 3], thread: usize) -> [u32; 3] {
        self.block_index(first, self.rank_of(thread))
    }

    /// The three-dimensional index of a thread in its block.
    pub(crate) fn thread_index(&self, thread: usize) -> [u32; 3] {
        let each = self.warps() as usize * WARP;
        thread_index(self.block, (thread % each) as u32)
    }

    /// The registers that an instruction accesses, if it matters.
    pub(crate) fn touched(&self, pc: u32) -> Option<&[Src]> {
        self.program.touched.get(pc as usize).map(Vec::as_slice)
    }

    pub(crate) fn code(&self) -> &'a [Inst] {
        &self.program.code
    }

    pub(crate) fn program(&self) -> &Program {
        self.program
    }

    /// From a block's shared memory to the next one's.
    pub(crate) fn shared_stride(&self) -> usize {
        self.shared_bytes.next_multiple_of(128)
    }

    /// The bytes of a range of an allocation that were written, a bit each.
    pub(crate) fn global_written(&self, allocation: usize, at: u64, len: usize) -> u32 {
        self.memory
            .get(allocation)
            .map_or(u32::MAX, |a| a.written(at, len))
    }

    pub(crate) fn set_global_written(&self, allocation: usize, at: u64, len: usize, written: u32) {
        if let Some(a) = self.memory.get(allocation) {
            a.set_written(at, len, written);
        }
    }

    /// The space and the address of a byte.
    pub(crate) fn address_of(&self, place: Place) -> (Space, u64) {
        match place {
            Place::Global(allocation, at) => {
                let base = self.memory.get(allocation).map_or(0, |a| a.base);
                (Space::Global, base + at)
            }
            Place::Shared(at) => {
                let (rank, at) = (at / self.shared_stride(), at % self.shared_stride());
                (
                    Space::Shared,
                    ((rank << RANK_SHIFT) + at) as u64 + SHARED_BASE,
                )
            }
            Place::Local(at) => (Space::Local, LOCAL_BASE + at as u64),
            Place::Param(at) => (Space::Param, at as u64),
        }
    }

    /// An instruction with the lines around it; block and thread are left to the caller.
    pub(crate) fn site(&self, pc: u32, context: u32) -> Site {
        let (line, instruction) = self.instruction(pc);
        let first = line.saturating_sub(context).max(1);
        let lines = self.text.lines().skip(first as usize - 1);
        let context = (first..=line + context)
            .zip(lines.map(|l| l.trim_end().replace('\t', "    ")))
            .collect();
        let origin = self.program.origin.get(pc as usize);
        let name = |file: u32, line: u32| {
            let file = self.files.get(&file).map_or("?", String::as_str);
            format!("{file}:{line}")
        };
        let source = origin.and_then(|o| o.source).map_or_else(Vec::new, |s| {
            let call = match (s.inlined_at, s.after) {
                (Some((file, line)), _) => Some(format!("called from {}", name(file, line))),
                (None, Some((file, line))) => Some(format!("after {}", name(file, line))),
                (None, None) => None,
            };
            [Some(name(s.file, s.line)), call]
                .into_iter()
                .flatten()
                .collect()
        });
        Site {
            block: [0; 3],
            thread: [0; 3],
            line,
            instruction,
            context,
            source,
        }
    }

    pub(crate) fn instruction(&self, pc: u32) -> (u32, String) {
        match self.program.origin.get(pc as usize) {
            Some(origin) => {
                let text = self.text.get(origin.range.clone()).unwrap_or_default();
                let text = text
                    .trim_end_matches(';')
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ");
                (origin.line, text)
            }
            None => (0, "the end of the entry".to_owned()),
        }
    }
}

/// A fault before it is known where: the lane, if it is one lane's, and what.
type Trouble = Box<(Option<u32>, FaultKind)>;

fn trouble<T>(lane: Option<u32>, kind: FaultKind) -> Result<T, Trouble> {
    Err(Box::new((lane, kind)))
}

/// A fault of one lane.
fn at(lane: u32) -> impl Fn(FaultKind) -> Trouble {
    move |kind| Box::new((Some(lane), kind))
}

/// The three-dimensional index of a thread.
fn thread_index([x, y, _]: [u32; 3], linear: u32) -> [u32; 3] {
    [linear % x, linear / x % y, linear / x / y]
}

/// A lane's value of a special register, in a block of that index and rank and a warp of that number in the block.
fn special_value(
    machine: &Machine<'_>,
    index: [u32; 3],
    rank: u32,
    warp: u32,
    special: Special,
    lane: u32,
) -> u64 {
    let bit = 1u64 << lane;
    let axis = |of: [u32; 3], n: u8| of[usize::from(n)];
    u64::from(match special {
        Special::Tid(n) => axis(thread_index(machine.block, warp * WARP as u32 + lane), n),
        Special::Ntid(n) => axis(machine.block, n),
        Special::Ctaid(n) => axis(index, n),
        Special::Nctaid(n) => axis(machine.grid, n),
        Special::ClusterId(n) => axis(index, n) / axis(machine.cluster, n),
        Special::NClusterId(n) => axis(machine.grid, n) / axis(machine.cluster, n),
        Special::ClusterCtaid(n) => axis(thread_index(machine.cluster, rank), n),
        Special::ClusterNctaid(n) => axis(machine.cluster, n),
        Special::ClusterCtaRank => rank,
        Special::ClusterNctaRank => machine.cluster_size(),
        Special::IsExplicitCluster => u32::from(machine.explicit_cluster),
        Special::LaneId => lane,
        Special::WarpId => warp,
        Special::NWarpId => machine.warps(),
        Special::LaneMaskEq => bit as u32,
        Special::LaneMaskLe => (bit * 2 - 1) as u32,
        Special::LaneMaskLt => (bit - 1) as u32,
        Special::LaneMaskGe => !((bit - 1) as u32),
        Special::LaneMaskGt => !((bit * 2 - 1) as u32),
        Special::DynamicShared => machine.dynamic_shared,
        Special::TotalShared => machine.shared_bytes as u32,
        Special::SmId | Special::GridId => 0,
        Special::NSmId => 1,
    })
}

/// Keeps what a register of this kind can hold.
fn fit(kind: Kind, value: u64) -> u64 {
    match kind {
        Kind::W8 => value & 0xff,
        Kind::W16 => value & 0xffff,
        Kind::W32 => value & 0xffff_ffff,
        Kind::W64 => value,
        Kind::Pred => value & 1,
    }
}

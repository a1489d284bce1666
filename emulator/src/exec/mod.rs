//! The machine: blocks, warps, and what their instructions do.
//!
//! A worker thread owns one [`Block`] and runs block after block in it. Its warps take turns: each runs until it waits
//! for something, ends, or has had its share. Within a warp, lanes that stand at the same instruction form a group;
//! `warp` says how groups part and meet.

mod alu;
mod banks;
mod collective;
mod copy;
mod matrix;
mod memory;
mod sync;
mod warp;
mod watch;

use std::collections::HashMap;

use crate::device::{AsyncTiming, Launch, Options, Schedule, Stats};
use crate::error::{Fault, FaultKind, Space, Waiter};
use crate::memory::{DeviceMemory, POISON};
use crate::module::Module;
use crate::program::{Constant, Kind, Program, Special, WARP};
use crate::sanitize::{Report, Sanitizer, Site};
pub(crate) use memory::Place;
use sync::Barrier;
use warp::{Turn, Warp};

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

/// Instructions a warp executes before the next one's turn.
const SHARE: u32 = 1 << 14;

/// A thread at an instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who {
    pub(crate) warp: u32,
    pub(crate) lane: u32,
    pub(crate) pc: u32,
}

impl Who {
    /// The thread's number in its block.
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
    timing: AsyncTiming,
    schedule: Schedule,
    max_instructions: u64,
    count_bank_conflicts: bool,
    sanitize: bool,
    shared_bytes: usize,
    dynamic_shared: u32,
    /// Values of the program's constants.
    constants: Vec<u64>,
}

impl<'a> Machine<'a> {
    pub(crate) fn new(
        program: &'a Program,
        module: &'a Module,
        memory: &'a DeviceMemory,
        variables: &[u64],
        launch: &Launch<'a>,
        options: &Options,
    ) -> Self {
        let constants = program
            .constants
            .iter()
            .map(|&(_, constant)| match constant {
                Constant::Bits(bits) => bits,
                Constant::Variable(at, offset) => {
                    variables.get(at).copied().unwrap_or(0).wrapping_add(offset)
                }
            });
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
            timing: options.async_copies,
            schedule: options.schedule,
            max_instructions: options.max_instructions.unwrap_or(u64::MAX),
            count_bank_conflicts: options.count_bank_conflicts,
            sanitize: options.sanitize,
            shared_bytes: (static_shared + u64::from(launch.dynamic_shared)) as usize,
            dynamic_shared: launch.dynamic_shared,
            constants: constants.collect(),
        }
    }

    pub(crate) fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    pub(crate) fn program(&self) -> &Program {
        self.program
    }

    pub(crate) fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// The three-dimensional index of a thread.
    pub(crate) fn thread_index(&self, linear: u32) -> [u32; 3] {
        thread_index(self.block, linear)
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

    /// The space and the address of a byte, counted from the place's space or allocation.
    pub(crate) fn address_of(&self, place: Place, at: usize) -> (Space, u64) {
        match place {
            Place::Global(allocation, _) => {
                let base = self.memory.get(allocation).map_or(0, |a| a.base);
                (Space::Global, base + at as u64)
            }
            Place::Shared(_) => (Space::Shared, SHARED_BASE + at as u64),
            Place::Local(_) => (Space::Local, LOCAL_BASE + at as u64),
            Place::Param(_) => (Space::Param, at as u64),
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

/// What the warps of a block share.
struct Cta<'m, 'a> {
    machine: &'m Machine<'a>,
    index: [u32; 3],
    shared: Vec<u8>,
    barriers: [Barrier; 16],
    /// Lanes that have not exited.
    alive: u32,
    random: u64,
    stats: Stats,
    /// Checks what hardware does not, if the options say so.
    watch: Option<Box<Sanitizer>>,
}

impl Cta<'_, '_> {
    /// The next of a sequence of pseudo-random numbers (splitmix64).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// A block and the storage of its warps, used for one block after the other.
pub(crate) struct Block<'m, 'a> {
    cta: Cta<'m, 'a>,
    warps: Vec<Warp>,
}

/// A fault before it is known where: the lane, if it is one lane's, and what.
type Trouble = Box<(Option<u32>, FaultKind)>;

fn trouble<T>(lane: Option<u32>, kind: FaultKind) -> Result<T, Trouble> {
    Err(Box::new((lane, kind)))
}

impl<'m, 'a> Block<'m, 'a> {
    pub(crate) fn new(machine: &'m Machine<'a>) -> Self {
        let threads = machine.threads();
        let mut warps: Vec<Warp> = (0..threads.div_ceil(WARP as u32))
            .map(|index| Warp::new(machine.program, index, threads))
            .collect();
        for warp in &mut warps {
            for (&(place, _), &value) in machine.program.constants.iter().zip(&machine.constants) {
                warp.regs.broadcast(place, value);
            }
        }
        let cta = Cta {
            machine,
            index: [0; 3],
            shared: vec![POISON; machine.shared_bytes],
            barriers: std::array::from_fn(|_| Barrier::default()),
            alive: 0,
            random: 0,
            stats: Stats::default(),
            watch: machine.sanitize.then(|| Box::new(Sanitizer::new(machine))),
        };
        Block { cta, warps }
    }

    /// Runs the block to its end.
    pub(crate) fn run(&mut self, index: [u32; 3], linear: u64) -> Result<Stats, Fault> {
        let machine = self.cta.machine;
        self.cta.index = index;
        self.cta.shared.fill(POISON);
        self.cta.barriers = std::array::from_fn(|_| Barrier::default());
        self.cta.alive = machine.threads();
        let mut seed = match machine.timing {
            AsyncTiming::Seeded(seed) => seed,
            _ => 0,
        };
        if let Schedule::Seeded {
            seed: of_schedule, ..
        } = machine.schedule
        {
            seed ^= of_schedule.rotate_left(32);
        }
        self.cta.random = seed ^ linear.wrapping_mul(0xd134_2543_de82_ef95);
        self.cta.stats = Stats {
            blocks: 1,
            ..Stats::default()
        };
        for warp in &mut self.warps {
            warp.reset();
            for &(place, special) in &machine.program.specials {
                let (at, threads) = (warp.index, machine.threads());
                warp.regs.set(place, |lane| {
                    special_value(machine, index, at, threads, special, lane)
                });
            }
        }
        if let Some(watch) = &mut self.cta.watch {
            watch.begin_block(index, machine);
        }
        let mut order: Vec<usize> = (0..self.warps.len()).collect();
        let mut running = true;
        while running {
            running = false;
            let mut moved = false;
            if machine.schedule != Schedule::InOrder {
                // Fisher and Yates.
                for n in (1..order.len()).rev() {
                    order.swap(n, self.cta.random() as usize % (n + 1));
                }
            }
            for &at in &order {
                let warp = &mut self.warps[at];
                if warp.alive == 0 {
                    continue;
                }
                running = true;
                let share = match machine.schedule {
                    Schedule::InOrder => SHARE,
                    Schedule::Seeded { share, .. } => {
                        1 + (self.cta.random() % u64::from(share.clamp(1, SHARE))) as u32
                    }
                };
                match warp.turn(&mut self.cta, share) {
                    Ok(Turn::Moved) => moved = true,
                    Ok(Turn::Stuck) => {}
                    Err((pc, lanes, found)) => {
                        let lane = found.0.unwrap_or(lanes.trailing_zeros().min(31));
                        return Err(self.fault(at as u32, lane, pc, found.1));
                    }
                }
            }
            if self.cta.stats.warp_instructions > machine.max_instructions {
                let (pc, lane) = self
                    .warps
                    .iter()
                    .find_map(Warp::stands_at)
                    .unwrap_or((0, 0));
                let kind = FaultKind::InstructionLimit {
                    limit: machine.max_instructions,
                };
                let warp = self.warps.iter().position(|w| w.alive != 0).unwrap_or(0);
                return Err(self.fault(warp as u32, lane, pc, kind));
            }
            if running && !moved {
                return Err(self.deadlock());
            }
        }
        Ok(self.cta.stats)
    }

    fn deadlock(&mut self) -> Fault {
        let mut waiters = Vec::new();
        let mut first = None;
        for warp in &self.warps {
            for (pc, lanes, reason) in warp.waits(&self.cta) {
                first = first.or(Some((warp.index, lanes.trailing_zeros().min(31), pc)));
                let (line, instruction) = self.cta.machine.instruction(pc);
                waiters.push(Waiter {
                    warp: warp.index,
                    lanes,
                    line,
                    instruction,
                    reason,
                });
            }
        }
        let (warp, lane, pc) = first.unwrap_or((0, 0, 0));
        self.fault(warp, lane, pc, FaultKind::Deadlock { waiters })
    }

    /// What the sanitizer found in the blocks that ran.
    pub(crate) fn into_report(self) -> Report {
        self.cta
            .watch
            .map(|watch| watch.into_report())
            .unwrap_or_default()
    }

    fn fault(&mut self, warp: u32, lane: u32, pc: u32, kind: FaultKind) -> Fault {
        let machine = self.cta.machine;
        let (line, instruction) = machine.instruction(pc);
        let thread = thread_index(machine.block, warp * WARP as u32 + lane);
        let fault = Fault {
            kind,
            block: self.cta.index,
            thread,
            line,
            instruction,
        };
        if let Some(watch) = &mut self.cta.watch {
            watch.add_fault(machine, &fault, pc);
        }
        fault
    }
}

/// The three-dimensional index of a thread.
fn thread_index([x, y, _]: [u32; 3], linear: u32) -> [u32; 3] {
    [linear % x, linear / x % y, linear / x / y]
}

fn special_value(
    machine: &Machine<'_>,
    index: [u32; 3],
    warp: u32,
    threads: u32,
    special: Special,
    lane: u32,
) -> u64 {
    let bit = 1u64 << lane;
    u64::from(match special {
        Special::Tid(n) => thread_index(machine.block, warp * WARP as u32 + lane)[usize::from(n)],
        Special::Ntid(n) => machine.block[usize::from(n)],
        Special::Ctaid(n) => index[usize::from(n)],
        Special::Nctaid(n) => machine.grid[usize::from(n)],
        Special::LaneId => lane,
        Special::WarpId => warp,
        Special::NWarpId => threads.div_ceil(WARP as u32),
        Special::LaneMaskEq => bit as u32,
        Special::LaneMaskLe => (bit * 2 - 1) as u32,
        Special::LaneMaskLt => (bit - 1) as u32,
        Special::LaneMaskGe => !((bit - 1) as u32),
        Special::LaneMaskGt => !((bit * 2 - 1) as u32),
        Special::DynamicShared => machine.dynamic_shared,
        Special::TotalShared => machine.shared_bytes as u32,
        Special::SmId | Special::GridId | Special::Zero => 0,
        Special::NSmId | Special::One => 1,
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

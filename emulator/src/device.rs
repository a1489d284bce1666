//! The device: memory, options, and launches.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

use crate::error::{Fault, LaunchError, MemoryError};
use crate::exec;
use crate::geometry::Geometry;
use crate::memory::DeviceMemory;
use crate::module::Module;
use crate::numerics::Numerics;
use crate::parse::tree::{Init, VarSpace};
use crate::sanitize::{Report, Sanitizer};

/// When an asynchronous copy reads its source and writes its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AsyncTiming {
    /// At the wait that covers it; without a wait, never, unless a warp has thousands of copies in flight.
    #[default]
    Late,
    /// When it is issued.
    Early,
    /// At some moment between, drawn from this seed.
    Seeded(u64),
}

/// In which order the warps of a block run. Whatever it is, a correct kernel gives the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schedule {
    /// Each warp in turn, until it waits.
    #[default]
    InOrder,
    /// In rounds, each in an order drawn from the seed; a warp executes at most `share` instructions (at least 1), a
    /// number drawn anew each time, before the next one does. With a share of 1 warps go on instruction by instruction.
    /// Of several groups of lanes of a warp, one drawn from the seed runs.
    Seeded {
        /// What the order is drawn from.
        seed: u64,
        /// Most instructions at a time; 16,384 at the most.
        share: u32,
    },
}

/// In which order the blocks of a grid, or its clusters, start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockOrder {
    /// The first block first.
    #[default]
    Ascending,
    /// The last block first.
    Reversed,
    /// In an order drawn from this seed.
    Seeded(u64),
    /// This block alone, by its linear index, and those of its cluster; the others don't run.
    Only(u64),
}

impl BlockOrder {
    /// The block that starts as the `n`-th of `count`.
    fn nth(self, n: u64, count: u64) -> u64 {
        match self {
            BlockOrder::Ascending => n,
            BlockOrder::Reversed => count - 1 - n,
            BlockOrder::Seeded(seed) => {
                // n -> a n + b modulo count is a permutation if a and count have no common factor.
                let (mut a, b) = (seed | 1, seed >> 32);
                while gcd(a % count, count) != 1 {
                    a = a.wrapping_add(2);
                }
                ((u128::from(n) * u128::from(a % count) + u128::from(b)) % u128::from(count)) as u64
            }
            BlockOrder::Only(block) => block,
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// How an [`Emulator`] behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Host threads that run blocks; all cores by default.
    pub threads: Option<usize>,
    /// When asynchronous copies happen.
    pub async_copies: AsyncTiming,
    /// Bytes of device memory.
    pub memory_limit: u64,
    /// Most warp instructions that one block may execute.
    pub max_instructions: Option<u64>,
    /// Whether to count [`Stats::shared_wavefronts`]; off by default, since it takes time.
    pub count_bank_conflicts: bool,
    /// In which order the warps of a block run.
    pub schedule: Schedule,
    /// In which order blocks start.
    pub block_order: BlockOrder,
    /// Whether to check what hardware does not: races, uninitialised values, asynchronous copies that are still under
    /// way. A launch with findings fails with [`LaunchError::Findings`]. Its blocks run one after the other.
    pub sanitize: bool,
    /// The arithmetic of tensor cores and of approximate functions.
    pub numerics: Numerics,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: None,
            async_copies: AsyncTiming::Late,
            memory_limit: 1 << 30,
            max_instructions: None,
            count_bank_conflicts: false,
            schedule: Schedule::InOrder,
            block_order: BlockOrder::Ascending,
            sanitize: false,
            numerics: Numerics::default(),
        }
    }
}

/// The geometry and the arguments of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster, at most 16; `None` as the entry's `.reqnctapercluster` says, else 1. They divide the grid.
    pub cluster: Option<[u32; 3]>,
    /// Bytes of dynamic shared memory of a block.
    pub dynamic_shared: u32,
    /// The parameters, each at its [offset](crate::Param::offset).
    pub params: &'a [u8],
}

/// What a launch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Instructions executed, counted once for a warp.
    pub warp_instructions: u64,
    /// Instructions executed, counted for every thread that took part.
    pub lane_instructions: u64,
    /// Blocks that ran.
    pub blocks: u64,
    /// Wavefronts of shared memory: how often its banks are accessed, if [`Options::count_bank_conflicts`] asks for it,
    /// else 0.
    ///
    /// The model: shared memory has 32 banks, and successive words of four bytes lie in successive banks. One wavefront
    /// moves at most one word of each bank; any number of lanes may have a part in that word. (CUDA C++ programming
    /// guide, shared memory of compute capability 5.0 and later.) What a warp accesses is taken 128 bytes at a time:
    /// accesses of up to 4 bytes by all 32 lanes at once, of 8 bytes by half warps, of 16 bytes by quarter warps, and
    /// `ldmatrix` and `stmatrix` by matrices, that is by 8 rows of 16 bytes. (The guide does not say this of recent
    /// hardware; it is what is commonly observed.) Each such part takes as many wavefronts as the bank with the most
    /// different words has words.
    ///
    /// `cp.async` is counted when it is issued, as a store of its whole size, zeros included. How hardware groups the
    /// writes of asynchronous copies is not documented. Generic accesses count where they are to shared memory; atomics
    /// and mbarriers do not count.
    pub shared_wavefronts: u64,
    /// What [`shared_wavefronts`](Self::shared_wavefronts) would be without bank conflicts: one wavefront for each part
    /// of a warp with an active lane.
    pub shared_wavefronts_least: u64,
}

impl Stats {
    pub(crate) fn add(self, other: Self) -> Self {
        Self {
            warp_instructions: self.warp_instructions + other.warp_instructions,
            lane_instructions: self.lane_instructions + other.lane_instructions,
            blocks: self.blocks + other.blocks,
            shared_wavefronts: self.shared_wavefronts + other.shared_wavefronts,
            shared_wavefronts_least: self.shared_wavefronts_least + other.shared_wavefronts_least,
        }
    }
}

/// A device: memory, and the means to run kernels on it.
#[derive(Debug)]
pub struct Emulator {
    options: Options,
    memory: RwLock<DeviceMemory>,
    /// Addresses of the variables of the modules that were launched, by the module's number.
    variables: Mutex<HashMap<u64, Vec<u64>>>,
    /// Where blocks run, if not on rayon's own threads.
    pool: Option<rayon::ThreadPool>,
}

/// Most bytes of shared memory a block may have: what an H100 has.
pub(crate) const MAX_SHARED: u64 = 227 * 1024;

impl Default for Emulator {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl Emulator {
    /// A device with nothing in its memory.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let memory = RwLock::new(DeviceMemory::new(options.memory_limit, options.sanitize));
        let pool = options.threads.and_then(|n| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(n.max(1))
                .build()
                .ok()
        });
        Self {
            options,
            memory,
            variables: Mutex::default(),
            pool,
        }
    }

    fn shared_memory(&self) -> RwLockReadGuard<'_, DeviceMemory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive_memory(&self) -> RwLockWriteGuard<'_, DeviceMemory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates memory, filled with 0xff bytes. The address is 256-aligned and never 0.
    ///
    /// # Errors
    ///
    /// [`Options::memory_limit`] would be passed.
    pub fn allocate(&self, bytes: u64) -> Result<u64, MemoryError> {
        self.exclusive_memory().allocate(bytes)
    }

    /// Frees an allocation. Its addresses are not handed out again. Waits for running launches.
    ///
    /// # Errors
    ///
    /// The address is not the start of a live allocation.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        self.exclusive_memory().free(address)
    }

    /// Copies from the host to the device.
    ///
    /// # Errors
    ///
    /// The range is not inside one allocation.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.shared_memory().write(address, bytes)
    }

    /// Copies from the device to the host.
    ///
    /// # Errors
    ///
    /// The range is not inside one allocation.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.shared_memory().read(address, bytes)
    }

    /// Sets `len` bytes.
    ///
    /// # Errors
    ///
    /// The range is not inside one allocation.
    pub fn fill(&self, address: u64, len: u64, byte: u8) -> Result<(), MemoryError> {
        self.shared_memory().fill(address, len, byte)
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Fills a range with 0xff bytes that count as never written, for outputs before a launch.
    ///
    /// # Errors
    ///
    /// The range is not inside one allocation.
    pub fn forget(&self, address: u64, len: u64) -> Result<(), MemoryError> {
        self.shared_memory().forget(address, len)
    }

    /// The first address of a range that neither the host nor a kernel has written, for outputs after a launch. Always
    /// nothing without [`Options::sanitize`].
    ///
    /// # Errors
    ///
    /// The range is not inside one allocation.
    pub fn first_unwritten(&self, address: u64, len: u64) -> Result<Option<u64>, MemoryError> {
        self.shared_memory().first_unwritten(address, len)
    }

    /// Runs an entry over a grid, and returns when all its blocks have ended.
    ///
    /// # Errors
    ///
    /// The launch does not fit the entry, the entry has an instruction that is not known, or a thread did something
    /// that it must not. In the last case, the blocks that already ran have left their results in memory.
    pub fn launch(
        &self,
        module: &Module,
        entry: &str,
        launch: &Launch<'_>,
    ) -> Result<Stats, LaunchError> {
        let at = module
            .find(entry)
            .ok_or_else(|| LaunchError::UnknownEntry {
                name: entry.to_owned(),
                known: module
                    .entries()
                    .map(|e| e.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            })?;
        let about = module.entry_at(at);
        if launch.params.len() != about.params_size {
            return Err(LaunchError::BadParams {
                expected: about.params_size,
                got: launch.params.len(),
            });
        }
        let geometry = Geometry::new(about, module.bounds(at), launch)?;
        let bad = |reason: String| Err(LaunchError::BadGeometry { reason });
        let program = module.program(at, self.options.numerics)?;
        let shared = program
            .static_shared
            .next_multiple_of(program.dynamic_align)
            + u64::from(launch.dynamic_shared);
        if shared > MAX_SHARED {
            return bad(format!(
                "{shared} bytes of shared memory, a block has at most {MAX_SHARED}"
            ));
        }
        let variables = self.module_variables(module)?;
        let memory = self.shared_memory();
        let machine = exec::Machine::new(
            &program,
            module,
            &memory,
            &variables,
            launch,
            geometry.cluster,
            &self.options,
        );
        let mut order = self.options.block_order;
        let mut count = geometry.clusters();
        if let BlockOrder::Only(block) = order {
            let blocks: u64 = launch.grid.map(u64::from).iter().product();
            if block >= blocks {
                return bad(format!("block {block} of a grid of {blocks}"));
            }
            order = BlockOrder::Only(geometry.cluster_of(block));
            count = 1;
        }
        if self.options.sanitize
            && let Err(reason) = Sanitizer::can_watch(&machine)
        {
            return bad(reason);
        }
        let next = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let fault: Mutex<Option<(u64, Fault)>> = Mutex::new(None);
        let report = Mutex::new(Report::default());
        let work = || {
            let mut runner = exec::Runner::new(&machine);
            let mut stats = Stats::default();
            while !stop.load(Relaxed) {
                let turn = next.fetch_add(1, Relaxed);
                if turn >= count {
                    break;
                }
                let linear = order.nth(turn, count);
                match runner.run(geometry.place(linear), linear) {
                    Ok(more) => stats = stats.add(more),
                    Err(found) => {
                        stop.store(true, Relaxed);
                        let mut first = fault.lock().unwrap_or_else(PoisonError::into_inner);
                        // Blocks start in order, so of several faults that of the first block is reported.
                        if first.as_ref().is_none_or(|(at, _)| turn < *at) {
                            *first = Some((turn, found));
                        }
                    }
                }
            }
            if self.options.sanitize {
                *report.lock().unwrap_or_else(PoisonError::into_inner) = runner.into_report();
            }
            stats
        };
        let run = || {
            // The checks follow one thread of events.
            let workers = if self.options.sanitize {
                1
            } else {
                rayon::current_num_threads()
            };
            let workers = workers
                .min(usize::try_from(count).unwrap_or(usize::MAX))
                .max(1);
            if workers == 1 {
                return work();
            }
            (0..workers)
                .into_par_iter()
                .with_max_len(1)
                .map(|_| work())
                .reduce(Stats::default, Stats::add)
        };
        let stats = match &self.pool {
            Some(pool) => pool.install(run),
            None => run(),
        };
        let report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !report.findings.is_empty() {
            return Err(LaunchError::Findings(Box::new(report)));
        }
        match fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, fault)) => Err(LaunchError::Fault(Box::new(fault))),
            None => Ok(stats),
        }
    }

    /// Addresses of the module's `.global` and `.const` variables, which get their memory at its first launch.
    fn module_variables(&self, module: &Module) -> Result<Vec<u64>, LaunchError> {
        let mut known = self
            .variables
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&module.id) {
            return Ok(found.clone());
        }
        let mut addresses = Vec::new();
        let all: Vec<_> = module.all_variables().collect();
        let in_memory = |space| matches!(space, VarSpace::Global | VarSpace::Const);
        if all.iter().any(|v| in_memory(v.space)) {
            let mut memory = self.exclusive_memory();
            for v in &all {
                if !in_memory(v.space) {
                    addresses.push(0);
                    continue;
                }
                let address = memory.allocate(v.size)?;
                // Variables without an initialiser are zero.
                memory.fill(address, v.size, 0)?;
                addresses.push(address);
            }
            for (v, &address) in all.iter().zip(&addresses) {
                if !in_memory(v.space) {
                    continue;
                }
                let mut at = address;
                for part in &v.init {
                    match part {
                        Init::Bytes(bytes) => memory.write(at, bytes)?,
                        Init::Address {
                            name,
                            offset,
                            bytes,
                            ..
                        } => {
                            let target = all
                                .iter()
                                .position(|other| other.name == *name)
                                .map(|n| addresses[n]);
                            let value = target.unwrap_or(0).wrapping_add(*offset).to_le_bytes();
                            memory.write(at, &value[..*bytes as usize])?;
                        }
                    }
                    at += part.bytes();
                }
                if v.space == VarSpace::Const {
                    memory.set_read_only(address);
                }
            }
        } else {
            addresses = vec![0; all.len()];
        }
        known.insert(module.id, addresses.clone());
        Ok(addresses)
    }
}

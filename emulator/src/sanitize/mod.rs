//! The checks that hardware does not make: races, uninitialised bytes, copies in flight.
//!
//! One [`Sanitizer`] watches a launch, whose clusters run one after the other. (Mostly a cluster is one block; where only
//! the order of blocks that ran before matters, "block" means the cluster.) It keeps a shadow of every byte of memory that
//! was touched (`shadow`: who wrote it, who read it since), of every register (`registers`: which bytes nobody has
//! written), what each thread knows of the others (`clock`), and what is in flight (`flight`: `cp.async`; `bulk`;
//! `products`: wgmma). The machine tells it of each access and of each synchronisation, from `exec/watch/`.
//!
//! A finding does not end the launch; only what the machine itself cannot carry out does.

mod bulk;
mod clock;
mod conflict;
mod finding;
mod flight;
mod order;
mod products;
mod proxy;
pub(crate) mod registers;
mod shadow;

use std::collections::HashMap;

use crate::exec::{Machine, Place, Who};
use crate::memory::ones;
use crate::program::Order;
pub(crate) use bulk::BulkEnds;
use bulk::{BulkLoad, BulkStore};
use clock::{Clocks, Knowledge};
pub use finding::{Finding, Report, Rule, Site};
use flight::Flight;
use order::{Mbarrier, Meeting, Named, Release};
use products::{ProductRead, WarpProducts};
use proxy::Proxies;
use registers::RegisterShadow;
use shadow::{Access, BlockCell, Conflict, GlobalShadow, Shadow, Strength};

/// Findings that are kept; beyond, they are counted.
const MOST_FINDINGS: usize = 64;
/// Most threads of a cluster: what each knows of every other takes 4 bytes.
const MOST_THREADS: u32 = 4096;
/// Besides them there are those who stand for what is asynchronous: no more than as many.
const _: () = assert!(2 * MOST_THREADS as usize <= Access::MOST_WHO);
/// Lines of PTX shown before and after an instruction.
const CONTEXT: u32 = 2;

/// Where something is: its allocation, if it is in global memory, and the offset.
type Key = (Option<usize>, u64);

fn key(place: Place) -> Option<Key> {
    match place {
        Place::Shared(at) => Some((None, at as u64)),
        Place::Global(allocation, at) => Some((Some(allocation), at)),
        Place::Local(_) | Place::Param(_) => None,
    }
}

/// Watches a launch.
pub(crate) struct Sanitizer {
    report: Report,
    /// Findings by rule and places, to count repetitions.
    known: HashMap<(Rule, u32, Option<u32>), usize>,
    global: GlobalShadow,
    /// Number of the cluster, from 1, and the indices of the first blocks of all so far.
    block: u32,
    indices: Vec<[u32; 3]>,
    clocks: Clocks,
    shared: Shadow<BlockCell<4>>,
    /// Bytes of shared memory that were written, a bit each.
    shared_written: Vec<u32>,
    /// Of each warp: bytes of local memory that were written, and the registers.
    local_written: Vec<Vec<bool>>,
    pub(crate) registers: Vec<RegisterShadow>,
    flights: Vec<Vec<Flight>>,
    /// Fences between proxies; `None`: nothing in the program uses the async proxy.
    proxies: Option<Proxies>,
    bulk_loads: Vec<BulkLoad>,
    bulk_stores: Vec<BulkStore>,
    /// Products of each warp, and what those of all read.
    products: Vec<WarpProducts>,
    product_reads: Vec<ProductRead>,
    /// Of each block of the cluster.
    barriers: Vec<[Named; 16]>,
    /// The cluster's barrier.
    cluster: Meeting,
    /// Those that are initialised.
    mbarriers: HashMap<Key, Mbarrier>,
    releases: HashMap<Key, Release>,
    /// What each thread had done at its last fence of any scope, and of the device's; and what it has read that a fence
    /// would let it rely on: of its own block, and of others.
    fenced: Vec<[Option<Knowledge>; 2]>,
    unfenced: Vec<[Knowledge; 2]>,
}

impl Sanitizer {
    pub(crate) fn new(machine: &Machine<'_>) -> Self {
        let blocks = machine.cluster_size() as usize;
        let warps = blocks * machine.warps() as usize;
        let threads = warps * 32;
        let program = machine.program();
        let shared = blocks * machine.shared_stride();
        let proxies = Proxies::new(machine, threads);
        let others = proxies.as_ref().map_or(0, Proxies::others);
        Self {
            report: Report::default(),
            known: HashMap::new(),
            global: GlobalShadow::default(),
            block: 0,
            indices: vec![[0; 3]],
            clocks: Clocks::new(threads, others),
            shared: Shadow::new(shared),
            shared_written: vec![0; shared.div_ceil(32) + 1],
            local_written: vec![vec![false; program.local as usize * 32]; warps],
            registers: (0..warps)
                .map(|_| RegisterShadow::new(program.rows, program.preds))
                .collect(),
            flights: (0..warps).map(|_| Vec::new()).collect(),
            proxies,
            bulk_loads: Vec::new(),
            bulk_stores: Vec::new(),
            products: (0..warps)
                .map(|_| WarpProducts::new(program.rows))
                .collect(),
            product_reads: Vec::new(),
            barriers: vec![Default::default(); blocks],
            cluster: Meeting::default(),
            mbarriers: HashMap::new(),
            releases: HashMap::new(),
            fenced: vec![Default::default(); threads],
            unfenced: vec![Default::default(); threads],
        }
    }

    /// Whether it can watch such a launch; an error says what is too much.
    pub(crate) fn can_watch(machine: &Machine<'_>) -> Result<(), String> {
        let instructions = machine.program().code.len();
        if instructions >= Access::MOST_INSTRUCTIONS {
            return Err(format!(
                "an entry of {instructions} instructions is too long to be checked"
            ));
        }
        let threads = machine.cluster_size() * machine.warps() * 32;
        if threads > MOST_THREADS {
            return Err(format!(
                "a cluster of {threads} threads is too large to be checked, at most {MOST_THREADS} are"
            ));
        }
        Ok(())
    }

    pub(crate) fn begin_cluster(&mut self, index: [u32; 3], machine: &Machine<'_>) {
        self.block += 1;
        self.indices.push(index);
        self.clocks.reset();
        self.shared.clear();
        self.shared_written.fill(0);
        for local in &mut self.local_written {
            local.fill(false);
        }
        for registers in &mut self.registers {
            registers.reset(&machine.program().undefined);
        }
        self.flights.iter_mut().for_each(Vec::clear);
        if let Some(proxies) = &mut self.proxies {
            proxies.reset();
        }
        self.bulk_loads.clear();
        self.bulk_stores.clear();
        self.products.iter_mut().for_each(WarpProducts::reset);
        self.product_reads.clear();
        self.barriers.fill_with(Default::default);
        self.cluster = Meeting::default();
        self.mbarriers.clear();
        // Shared addresses mean something else in each block; global ones stay.
        self.releases
            .retain(|(allocation, _), _| allocation.is_some());
        self.fenced.fill(Default::default());
        self.unfenced.fill(Default::default());
    }

    pub(crate) fn into_report(self) -> Report {
        self.report
    }

    /// Adds a finding, or counts it if it is one that is known.
    pub(crate) fn add(
        &mut self,
        machine: &Machine<'_>,
        rule: Rule,
        who: Who,
        message: impl FnOnce() -> String,
    ) {
        self.add_pair(machine, rule, who, None, message);
    }

    /// Adds a finding about an instruction that the same thread executed before.
    fn add_with(
        &mut self,
        machine: &Machine<'_>,
        rule: Rule,
        who: Who,
        pc: u32,
        what: &str,
        message: impl FnOnce() -> String,
    ) {
        let other = Conflict {
            other: Access::new(who.thread(), 1, pc, Strength::Weak),
            wrote: true,
            block: None,
        };
        self.add_pair(machine, rule, who, Some((other, what)), message);
    }

    fn add_pair(
        &mut self,
        machine: &Machine<'_>,
        rule: Rule,
        who: Who,
        other: Option<(Conflict, &str)>,
        message: impl FnOnce() -> String,
    ) {
        let key = (rule, who.pc, other.map(|(c, _)| c.other.pc()));
        if let Some(&at) = self.known.get(&key) {
            self.report.findings[at].count += 1;
            return;
        }
        if self.report.findings.len() >= MOST_FINDINGS {
            self.report.more += 1;
            return;
        }
        self.known.insert(key, self.report.findings.len());
        let first = |cluster: u32| {
            self.indices
                .get(cluster as usize)
                .copied()
                .unwrap_or_default()
        };
        let site = |cluster: u32, thread: usize, pc: u32| Site {
            block: machine.block_of(first(cluster), thread),
            thread: machine.thread_index(thread),
            ..machine.site(pc, CONTEXT)
        };
        let other = other.map(|(conflict, what)| {
            let block = conflict.block.unwrap_or(self.block);
            let (thread, pc) = (self.issuer(conflict.other.thread()), conflict.other.pc());
            (what.to_owned(), site(block, thread, pc))
        });
        let site = site(self.block, who.thread(), who.pc);
        self.report.findings.push(Finding {
            rule,
            message: message(),
            site,
            other,
            count: 1,
        });
    }

    /// Adds the fault that ended the launch.
    pub(crate) fn add_fault(
        &mut self,
        machine: &Machine<'_>,
        fault: &crate::error::Fault,
        pc: u32,
    ) {
        let site = Site {
            block: fault.block,
            thread: fault.thread,
            ..machine.site(pc, CONTEXT)
        };
        self.report.findings.push(Finding {
            rule: Rule::from(&fault.kind),
            message: fault.kind.to_string(),
            site,
            other: None,
            count: 1,
        });
    }

    /// An access to memory that lies inside an object.
    #[inline]
    pub(crate) fn access(
        &mut self,
        machine: &Machine<'_>,
        who: Who,
        place: Place,
        len: usize,
        write: bool,
        order: Order,
    ) {
        let strength = match order {
            Order { strong: false, .. } => Strength::Weak,
            Order {
                beyond_block: false,
                ..
            } => Strength::Block,
            _ => Strength::Device,
        };
        let me = Access::new(
            who.thread(),
            self.clocks.now(who.thread()),
            who.pc,
            strength,
        );
        self.note(machine, who, place, len, write, me);
    }

    /// The bytes of a range that were written, a bit each.
    #[inline]
    pub(crate) fn written(
        &self,
        machine: &Machine<'_>,
        warp: u32,
        place: Place,
        len: usize,
    ) -> u32 {
        match place {
            Place::Shared(at) => {
                let words = u64::from(self.shared_written[at / 32])
                    | u64::from(self.shared_written[at / 32 + 1]) << 32;
                (words >> (at % 32)) as u32 & ones(len)
            }
            Place::Global(allocation, at) => machine.global_written(allocation, at, len),
            Place::Local(at) => {
                let local = &self.local_written[warp as usize][at..at + len];
                local
                    .iter()
                    .enumerate()
                    .fold(0, |mask, (n, &w)| mask | u32::from(w) << n)
            }
            Place::Param(_) => ones(len),
        }
    }

    /// Notes which bytes of a range are written from now on: those whose bit is set; the others are poison.
    #[inline]
    pub(crate) fn set_written(
        &mut self,
        machine: &Machine<'_>,
        warp: u32,
        place: Place,
        len: usize,
        written: u32,
    ) {
        match place {
            Place::Shared(at) => {
                let (word, shift) = (at / 32, at % 32);
                let (mask, bits) = (
                    u64::from(ones(len)) << shift,
                    u64::from(written & ones(len)) << shift,
                );
                for (n, half) in [0, 32].into_iter().enumerate() {
                    let word = &mut self.shared_written[word + n];
                    *word = *word & !((mask >> half) as u32) | (bits >> half) as u32;
                }
            }
            Place::Global(allocation, at) => {
                machine.set_global_written(allocation, at, len, written);
            }
            Place::Local(at) => {
                let local = &mut self.local_written[warp as usize][at..at + len];
                for (n, byte) in local.iter_mut().enumerate() {
                    *byte = written >> n & 1 != 0;
                }
            }
            Place::Param(_) => {}
        }
    }
}

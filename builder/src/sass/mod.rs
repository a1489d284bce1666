//! Machine code as the measure where there is no GPU: what the loops over key tiles execute, by class, and which pipe bounds
//! them.
//!
//! [`Function::parse`] reads nvdisasm's text, [`Graph`] finds loops, [`steady`] the way through them that counts,
//! [`machine`] what it costs. [`MachineCode`] is all of that for one kernel, [`report`] makes the tables, [`listing`] prints a
//! loop instruction by instruction. `docs/builder.md` says how to read them.

pub mod class;
pub mod graph;
pub mod listing;
pub mod machine;
pub mod parse;
pub mod report;
pub mod steady;

pub use class::Class;
pub use graph::Graph;
pub use machine::{Cycles, Machine};
pub use parse::Function;

use crate::spec::EntrySpec;
use steady::SteadyPath;

/// What the machine code of one kernel says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineCode {
    /// Tensor-core products in the whole kernel.
    pub tensor_instructions: u32,
    /// The ways round loops over tiles that do all of a tile's work, the cheapest a tile first: the unmasked one, then those
    /// that mask. If the kernel's tile is not known, all there are.
    pub loops: Vec<LoopCost>,
    /// Ways round loops with products that do only a part of a tile's work: scores without the weighted sum, or some steps
    /// of a product, where its loop was not unrolled.
    pub partial_loops: u32,
}

/// What one iteration of a loop over tiles costs, along its steady path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoopCost {
    /// Address of its first instruction.
    pub address: u32,
    /// Instructions by class, in the order of [`Class::ALL`].
    pub classes: [u32; Class::ALL.len()],
    /// Cycles by pipe.
    pub cycles: Cycles,
    /// Instructions of the asides that don't repeat.
    pub aside: u32,
    /// Asides with a loop in them, such as waits that don't succeed at once.
    pub repeating_asides: u32,
    /// Loops that the path passes.
    pub inner_loops: u32,
    /// Lengths of uninterrupted sequences of warpgroup products.
    pub runs: Vec<u32>,
    /// Multiplications of one warp.
    pub multiplications: u64,
    /// Whole tiles an iteration works through; none if it is no whole number, or if the kernel's tile is not known.
    pub tiles: Option<u64>,
    /// The work of one warp for its 16 rows of a tile of 64 queries and 128 keys; 0 if not known.
    pub unit: u64,
}

impl MachineCode {
    /// Reads the disassembly of a kernel. `Err` says what is not understood.
    pub fn read(text: &str, spec: &EntrySpec) -> Result<Self, String> {
        let function = Function::parse(text, &spec.name)?;
        let paths = sorted_paths(&function, spec)?;
        let products = function.instructions.iter().filter_map(class::Product::of);
        let costs = paths.iter().map(|p| LoopCost::of(&function, p, spec));
        let (loops, partial): (Vec<_>, Vec<_>) =
            costs.partition(|c| c.tiles.is_some() || spec.work.is_none());
        Ok(Self {
            tensor_instructions: u32::try_from(products.count()).unwrap_or(u32::MAX),
            loops,
            partial_loops: u32::try_from(partial.len()).unwrap_or(u32::MAX),
        })
    }

    /// The loop that most tiles go through, which masks nothing.
    pub fn steady(&self) -> Option<&LoopCost> {
        self.loops.first()
    }

    /// The other loops: those with masks.
    pub fn masked(&self) -> &[LoopCost] {
        self.loops.get(1..).unwrap_or_default()
    }
}

/// The steady paths of a kernel in the order of [`MachineCode::loops`].
pub(crate) fn sorted_paths(
    function: &Function,
    spec: &EntrySpec,
) -> Result<Vec<SteadyPath>, String> {
    let graph = Graph::new(function)?;
    let mut paths = steady::find(function, &graph);
    paths.sort_by(|a, b| {
        let partial = |p: &SteadyPath| tiles(p.multiplications, spec).is_none();
        // Instructions a multiplication, compared without division.
        let cost = |a: &SteadyPath, b: &SteadyPath| a.path.len() as u64 * b.multiplications;
        let order = (partial(a), cost(a, b)).cmp(&(partial(b), cost(b, a)));
        // Two copies of the same loop: as they lie in memory.
        order.then_with(|| a.path.cmp(&b.path))
    });
    Ok(paths)
}

/// How many whole tiles so many multiplications are.
fn tiles(multiplications: u64, spec: &EntrySpec) -> Option<u64> {
    let tile = spec.work?.tile();
    (tile > 0 && multiplications.is_multiple_of(tile)).then(|| multiplications / tile)
}

impl LoopCost {
    fn of(function: &Function, path: &SteadyPath, spec: &EntrySpec) -> Self {
        let code = || path.path.iter().map(|i| &function.instructions[*i]);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let repeating = path.asides.iter().filter(|a| a.repeats).count();
        let aside = path.asides.iter().filter(|a| !a.repeats);
        Self {
            address: code().next().map_or(0, |i| i.address),
            classes: machine::by_class(code()),
            cycles: Machine::of(spec.arch).cycles(code()),
            aside: count(aside.map(|a| a.instructions.len()).sum()),
            repeating_asides: count(repeating),
            inner_loops: path.inner_loops,
            runs: steady::runs(function, &path.path),
            multiplications: path.multiplications,
            tiles: tiles(path.multiplications, spec),
            unit: spec.work.map_or(0, |w| w.unit()),
        }
    }

    /// Instructions of one iteration.
    pub fn instructions(&self) -> u32 {
        self.cycles.issue
    }

    /// A count or a number of cycles of one iteration, for a warp's 16 rows of a tile of 64 queries and 128 keys; for the
    /// iteration if the kernel's tile is not known.
    pub fn per_unit(&self, count: u32) -> f64 {
        if self.unit == 0 || self.multiplications == 0 {
            return f64::from(count);
        }
        f64::from(count) * self.unit as f64 / self.multiplications as f64
    }

    /// Whether it issues more than `limit` instructions for 64 queries and 128 keys, without rounding.
    pub fn is_over(&self, limit: u32) -> bool {
        u64::from(self.instructions()) * self.unit > u64::from(limit) * self.multiplications
    }

    /// Whether no two products of a warpgroup are in flight together.
    pub fn is_serialised(&self) -> bool {
        self.runs.len() > 1 && self.runs.iter().all(|r| *r == 1)
    }
}

#[cfg(test)]
mod tests;

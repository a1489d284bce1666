//! Finds the loops over key tiles and the way through them that most iterations take.
//!
//! A *loop over tiles* is a natural loop with tensor-core products in it and no smaller loop with products inside. Its
//! *steady path* is the way once round, from the header back to it, that multiplies most; among equals, the one that issues
//! most asynchronous copies (an iteration fetches a tile for the one that it consumes); among equals, the one with the
//! fewest instructions. So a block behind a forward branch, like the rescaling of the output, is not on the path unless it
//! has to be; it is told apart, as an *aside*. Loops within are passed once: a wait for a barrier that is already there.
//!
//! Where a branch in the loop leads to other products, as for masked and unmasked tiles, each way is a path of its own.

use std::collections::{BTreeMap, BTreeSet};

use super::class::{Class, Product};
use super::graph::{Graph, Loop};
use super::parse::{Function, Instruction};

/// One way round a loop over tiles. Instructions are indices into the function's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteadyPath {
    /// Instructions in the order of their execution.
    pub path: Vec<usize>,
    /// What iterations execute besides, now and then.
    pub asides: Vec<Aside>,
    /// Loops within that the path passes.
    pub inner_loops: u32,
    /// Multiplications of one warp on the path.
    pub multiplications: u64,
}

/// Blocks without products to which the path has a branch and that lead back to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    /// Its instructions, in the order in which they lie in memory.
    pub instructions: Vec<usize>,
    /// Whether there is a loop in it, so that their number says nothing.
    pub repeats: bool,
}

/// What a path is chosen by; more is better, but for instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weight {
    multiplications: u64,
    copies: u32,
    instructions: u32,
}

impl Weight {
    fn of(code: &[Instruction]) -> Self {
        let products = code.iter().filter_map(Product::of);
        let copies = code.iter().filter(|i| i.base() == "LDGSTS").count();
        Self {
            multiplications: products.map(|p| p.multiplications()).sum(),
            copies: u32::try_from(copies).unwrap_or(u32::MAX),
            instructions: u32::try_from(code.len()).unwrap_or(u32::MAX),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            multiplications: self.multiplications + other.multiplications,
            copies: self.copies + other.copies,
            instructions: self.instructions + other.instructions,
        }
    }

    fn is_better_than(self, other: Self) -> bool {
        let key = |w: Self| (w.multiplications, w.copies, u32::MAX - w.instructions);
        key(self) > key(other)
    }
}

/// Every steady path of every loop over tiles, in no particular order.
pub fn find(function: &Function, graph: &Graph) -> Vec<SteadyPath> {
    let blocks = graph.blocks.iter();
    let code = |range: &std::ops::Range<usize>| &function.instructions[range.clone()];
    let weights: Vec<Weight> = blocks.map(|b| Weight::of(code(b))).collect();
    let multiplies = |block: &usize| weights[*block].multiplications > 0;
    let all = graph.loops();
    let over_tiles: Vec<&Loop> = all
        .iter()
        .filter(|l| l.blocks.iter().any(multiplies))
        .collect();
    let is_within = |inner: &Loop, outer: &Loop| {
        inner.header != outer.header && outer.blocks.contains(&inner.header)
    };
    let mut found = Vec::new();
    for tiles in &over_tiles {
        if over_tiles.iter().any(|inner| is_within(inner, tiles)) {
            continue;
        }
        let inner: Vec<&Loop> = all.iter().filter(|l| is_within(l, tiles)).collect();
        let mut banned = BTreeSet::new();
        let mut full = None;
        while let Some((weight, path)) = best(graph, tiles, &weights, &banned) {
            // Ways that multiply less leave something out.
            if *full.get_or_insert(weight.multiplications) != weight.multiplications {
                break;
            }
            let products = path.iter().copied().filter(|b| multiplies(b));
            banned.extend(products);
            let headers = inner.iter().filter(|l| path.contains(&l.header)).count();
            found.push(SteadyPath {
                path: path.iter().flat_map(|b| graph.blocks[*b].clone()).collect(),
                asides: asides(graph, tiles, &inner, &path, &multiplies),
                inner_loops: u32::try_from(headers).unwrap_or(u32::MAX),
                multiplications: weight.multiplications,
            });
            if weight.multiplications == 0 {
                break;
            }
        }
    }
    found.retain(|p| p.multiplications > 0);
    found
}

/// The best way round a loop that avoids some blocks.
fn best(
    graph: &Graph,
    tiles: &Loop,
    weights: &[Weight],
    banned: &BTreeSet<usize>,
) -> Option<(Weight, Vec<usize>)> {
    if banned.contains(&tiles.header) {
        return None;
    }
    let mut known: BTreeMap<usize, (Weight, usize)> = BTreeMap::new();
    known.insert(tiles.header, (weights[tiles.header], tiles.header));
    let mut end: Option<(Weight, usize)> = None;
    for block in graph.sorted(&tiles.blocks) {
        let Some((weight, _)) = known.get(&block).copied() else {
            continue;
        };
        for next in &graph.successors[block] {
            if *next == tiles.header {
                if end.is_none_or(|(e, _)| weight.is_better_than(e)) {
                    end = Some((weight, block));
                }
            } else if tiles.blocks.contains(next)
                && graph.is_forward(block, *next)
                && !banned.contains(next)
            {
                let through = weight.plus(weights[*next]);
                let better = known
                    .get(next)
                    .is_none_or(|(w, _)| through.is_better_than(*w));
                if better {
                    known.insert(*next, (through, block));
                }
            }
        }
    }
    let (weight, mut block) = end?;
    let mut path = vec![block];
    while block != tiles.header {
        block = known.get(&block)?.1;
        path.push(block);
    }
    path.reverse();
    Some((weight, path))
}

/// What the path can branch to and come back from without other products.
fn asides(
    graph: &Graph,
    tiles: &Loop,
    inner: &[&Loop],
    path: &[usize],
    multiplies: &impl Fn(&usize) -> bool,
) -> Vec<Aside> {
    let on_path: BTreeSet<usize> = path.iter().copied().collect();
    let may_be = |block: &usize| {
        tiles.blocks.contains(block) && !on_path.contains(block) && !multiplies(block)
    };
    let predecessors = graph.predecessors();
    let closure = |edges: &[Vec<usize>], forward: bool| {
        let mut reached = BTreeSet::new();
        let mut open = path.to_vec();
        while let Some(block) = open.pop() {
            for next in edges[block].iter().filter(|n| may_be(n)) {
                let (from, to) = if forward {
                    (block, *next)
                } else {
                    (*next, block)
                };
                if graph.is_forward(from, to) && reached.insert(*next) {
                    open.push(*next);
                }
            }
        }
        reached
    };
    let left = closure(&graph.successors, true);
    let returning = closure(&predecessors, false);
    let latches = |block: &usize| graph.successors[*block].contains(&tiles.header);
    let back = |block: &usize| returning.contains(block) || latches(block);
    let mut rest: BTreeSet<usize> = left.into_iter().filter(|b| back(b)).collect();

    // Blocks that hang together are one aside.
    let mut asides = Vec::new();
    while let Some(first) = rest.pop_first() {
        let mut together = BTreeSet::from([first]);
        let mut open = vec![first];
        while let Some(block) = open.pop() {
            for next in graph.successors[block].iter().chain(&predecessors[block]) {
                if rest.remove(next) {
                    together.insert(*next);
                    open.push(*next);
                }
            }
        }
        let code = together.iter().flat_map(|b| graph.blocks[*b].clone());
        asides.push(Aside {
            instructions: code.collect(),
            repeats: inner.iter().any(|l| together.contains(&l.header)),
        });
    }
    asides
}

/// Lengths of the sequences of a warpgroup's products that nothing interrupts: no fence (`WARPGROUP.ARRIVE`) and no wait
/// (`WARPGROUP.DEPBAR`). Products that ptxas serialised are sequences of one.
pub fn runs(function: &Function, path: &[usize]) -> Vec<u32> {
    let (mut runs, mut current) = (Vec::new(), 0);
    for at in path {
        let instruction = &function.instructions[*at];
        if instruction.base() == "WARPGROUP" {
            runs.push(std::mem::take(&mut current));
        } else if Class::of(instruction) == Class::Tensor
            && Product::of(instruction).is_some_and(|p| p.warpgroup)
        {
            current += 1;
        }
    }
    runs.push(current);
    runs.retain(|r| *r > 0);
    runs
}

//! Basic blocks, dominators and natural loops of a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::parse::{Function, Instruction};

/// The control flow of a kernel whose warps are whole.
///
/// `BRA.DIV` and `BRA.CONV` lead a warp whose lanes went separate ways to a replacement of the instruction that follows.
/// Kernels whose warp-wide instructions name all 32 lanes never take them, so they are no edges here.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The instructions of each block, in the order in which they lie in memory.
    pub blocks: Vec<Range<usize>>,
    /// Where each block goes next.
    pub successors: Vec<Vec<usize>>,
    /// Place of each block in reverse postorder; none if it can't be reached.
    place: Vec<Option<usize>>,
    /// The blocks that can be reached, in reverse postorder.
    order: Vec<usize>,
    /// Immediate dominators of the blocks that can be reached; the first block is its own.
    dominator: Vec<usize>,
}

/// A natural loop: all back edges to one header together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    /// The one block through which it is entered.
    pub header: usize,
    /// All its blocks, those of loops within it too.
    pub blocks: BTreeSet<usize>,
}

/// How control leaves an instruction.
enum Flow {
    /// To the next one.
    Next,
    /// To labels, and to the next one if it is conditional.
    Jump { conditional: bool },
    /// To the next one where a guard says so, else nowhere.
    End { conditional: bool },
    /// To where the barrier's `BSSY` says.
    Reconverge,
}

fn flow(instruction: &Instruction) -> Flow {
    let guarded = !matches!(instruction.guard.as_str(), "" | "@PT" | "@UPT");
    match instruction.base() {
        "BRA" if instruction.has("DIV") || instruction.has("CONV") => Flow::Next,
        "BRA" | "BRX" | "BRXU" | "JMP" | "JMX" => {
            // `BRA.U UP0, label` and `BRA !P1, label`: a condition among the operands.
            let is_label = |o: &&str| o.contains("`(");
            let asks = instruction.operand_list().iter().any(|o| !is_label(o));
            let direct = matches!(instruction.base(), "BRA" | "JMP");
            let conditional = guarded || (direct && asks);
            Flow::Jump { conditional }
        }
        "EXIT" | "RET" | "KILL" | "BPT" => Flow::End {
            conditional: guarded,
        },
        "BSYNC" => Flow::Reconverge,
        _ => Flow::Next,
    }
}

impl Graph {
    /// Cuts a kernel into blocks. `Err` names a branch that leads nowhere.
    pub fn new(function: &Function) -> Result<Self, String> {
        let code = &function.instructions;
        let mut starts: BTreeSet<usize> = function.labels.values().copied().collect();
        starts.insert(0);
        for (at, instruction) in code.iter().enumerate() {
            if !matches!(flow(instruction), Flow::Next) {
                starts.insert(at + 1);
            }
        }
        starts.retain(|s| *s < code.len());
        let starts: Vec<usize> = starts.into_iter().collect();
        let ends = starts.iter().skip(1).copied().chain([code.len()]);
        let blocks: Vec<_> = starts.iter().zip(ends).map(|(s, e)| *s..e).collect();
        let block_at: BTreeMap<usize, usize> =
            starts.iter().enumerate().map(|(b, s)| (*s, b)).collect();

        let mut successors = Vec::with_capacity(blocks.len());
        for range in &blocks {
            let mut next = targets(function, range.end - 1)?;
            next.retain(|t| *t < code.len());
            let mut found: Vec<_> = next.iter().filter_map(|t| block_at.get(t)).collect();
            found.dedup();
            successors.push(found.into_iter().copied().collect());
        }
        let mut graph = Self {
            place: vec![None; blocks.len()],
            dominator: vec![0; blocks.len()],
            order: Vec::new(),
            blocks,
            successors,
        };
        graph.sort();
        graph.dominate();
        Ok(graph)
    }

    /// Reverse postorder from the first block.
    fn sort(&mut self) {
        let mut seen = vec![false; self.blocks.len()];
        let mut stack = vec![(0usize, 0usize)];
        seen[0] = true;
        while let Some((block, edge)) = stack.pop() {
            if let Some(next) = self.successors[block].get(edge).copied() {
                stack.push((block, edge + 1));
                if !seen[next] {
                    seen[next] = true;
                    stack.push((next, 0));
                }
            } else {
                self.order.push(block);
            }
        }
        self.order.reverse();
        for (place, block) in self.order.iter().enumerate() {
            self.place[*block] = Some(place);
        }
    }

    /// Immediate dominators, by iteration (Cooper, Harvey, Kennedy: A Simple, Fast Dominance Algorithm).
    fn dominate(&mut self) {
        let mut known: Vec<Option<usize>> = vec![None; self.blocks.len()];
        known[0] = Some(0);
        let predecessors = self.predecessors();
        let mut changed = true;
        while changed {
            changed = false;
            for block in self.order.iter().skip(1).copied() {
                let ready = predecessors[block].iter().filter(|p| known[**p].is_some());
                let meet = ready.copied().reduce(|a, b| self.meet(&known, a, b));
                if known[block] != meet {
                    known[block] = meet;
                    changed = true;
                }
            }
        }
        for (block, dominator) in known.into_iter().enumerate() {
            self.dominator[block] = dominator.unwrap_or(block);
        }
    }

    fn meet(&self, known: &[Option<usize>], mut a: usize, mut b: usize) -> usize {
        while a != b {
            // The one that is later in reverse postorder goes up.
            let later = if self.place[a] > self.place[b] {
                &mut a
            } else {
                &mut b
            };
            *later = known[*later].unwrap_or(0);
        }
        a
    }

    /// Whether every way to `block` goes through `over`.
    pub fn dominates(&self, over: usize, mut block: usize) -> bool {
        loop {
            if block == over {
                return true;
            }
            let up = self.dominator[block];
            if up == block {
                return false;
            }
            block = up;
        }
    }

    /// Where each block can come from, of the blocks that can be reached.
    pub fn predecessors(&self) -> Vec<Vec<usize>> {
        let mut predecessors = vec![Vec::new(); self.blocks.len()];
        for block in &self.order {
            for next in &self.successors[*block] {
                predecessors[*next].push(*block);
            }
        }
        predecessors
    }

    /// Whether an edge goes forward in reverse postorder: without the others there is no cycle.
    pub fn is_forward(&self, from: usize, to: usize) -> bool {
        self.place[from] < self.place[to]
    }

    /// The blocks of a set in an order in which forward edges go forward.
    pub fn sorted(&self, blocks: &BTreeSet<usize>) -> Vec<usize> {
        let mut sorted: Vec<_> = blocks.iter().copied().collect();
        sorted.sort_by_key(|b| self.place[*b]);
        sorted
    }

    /// The natural loops, by header.
    pub fn loops(&self) -> Vec<Loop> {
        let predecessors = self.predecessors();
        let mut loops: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for latch in &self.order {
            for header in &self.successors[*latch] {
                if !self.dominates(*header, *latch) {
                    continue;
                }
                let blocks = loops.entry(*header).or_default();
                blocks.insert(*header);
                let mut open = vec![*latch];
                while let Some(block) = open.pop() {
                    if blocks.insert(block) {
                        open.extend(&predecessors[block]);
                    }
                }
            }
        }
        let loops = loops.into_iter();
        loops
            .map(|(header, blocks)| Loop { header, blocks })
            .collect()
    }
}

/// The instructions that may follow the one at `at`; one past the end stands for the end.
fn targets(function: &Function, at: usize) -> Result<Vec<usize>, String> {
    let instruction = &function.instructions[at];
    let find = |label: &str| {
        let target = function.labels.get(label).copied();
        target.ok_or_else(|| format!("{} leads to {label}, which is nowhere", instruction.opcode))
    };
    let next = at + 1;
    Ok(match flow(instruction) {
        Flow::Next => vec![next],
        Flow::End { conditional: true } => vec![next],
        Flow::End { conditional: false } => Vec::new(),
        Flow::Jump { conditional } => {
            let labels: Result<Vec<_>, _> = instruction.labels().map(find).collect();
            let mut targets = labels?;
            if targets.is_empty() {
                return Err(format!(
                    "{} {} at {:#x} does not say where it leads",
                    instruction.opcode, instruction.operands, instruction.address
                ));
            }
            if conditional {
                targets.insert(0, next);
            }
            targets
        }
        Flow::Reconverge => {
            // Mostly the label is right behind; else it is that of the last BSSY before.
            let barrier = instruction.operands.as_str();
            let before = function.instructions[..at].iter().rev();
            let mut sets =
                before.filter(|i| i.base() == "BSSY" && i.operand_list().first() == Some(&barrier));
            let follows = |i: &Instruction| {
                let mut labels = i.labels();
                labels.any(|l| function.labels.get(l) == Some(&next))
            };
            match sets.clone().any(follows) {
                true => vec![next],
                false => match sets.next().and_then(|i| i.labels().next()) {
                    Some(label) => vec![find(label)?],
                    None => vec![next],
                },
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes instructions as nvdisasm would; a line that ends in ":" is a label.
    fn function(lines: &[&str]) -> Function {
        let mut text = String::from(".text.k:\n");
        let mut address = 0;
        for line in lines {
            if line.ends_with(':') {
                text.push_str(line);
            } else {
                text.push_str(&format!("  /*{address:04x}*/ {line} ;"));
                address += 16;
            }
            text.push('\n');
        }
        Function::parse(&text, "k").unwrap_or_default()
    }

    #[test]
    fn loops_are_found_and_nest() -> Result<(), String> {
        // 0: MOV | 1 (a): MOV, @P0 BRA c | 2 (b): IADD3, @P1 BRA b | 3 (c): @P2 BRA a | 4: EXIT
        let function = function(&[
            "MOV R0, R1",
            "a:",
            "MOV R2, R3",
            "@P0 BRA `(c)",
            "b:",
            "IADD3 R0, R0, R1, RZ",
            "@P1 BRA `(b)",
            "c:",
            "@P2 BRA `(a)",
            "EXIT",
        ]);
        let graph = Graph::new(&function)?;
        let loops = graph.loops();
        let found: Vec<_> = loops
            .iter()
            .map(|l| (l.header, l.blocks.iter().copied().collect::<Vec<_>>()))
            .collect();
        assert_eq!(found, [(1, vec![1, 2, 3]), (2, vec![2])]);
        assert!(graph.dominates(1, 3) && !graph.dominates(2, 3));
        Ok(())
    }

    #[test]
    fn every_kind_of_branch_leads_where_it_should() -> Result<(), String> {
        let function = function(&[
            "BSSY B0, `(join)",
            "@P0 BRA `(left)",
            "BRA.U UP0, `(right)",
            "BRA.DIV ~URZ, `(apart)",
            "@P1 EXIT",
            "left:",
            "BSYNC B0",
            "join:",
            "BRX R2 -0x10 (*\"BRANCH_TARGETS right,end\"*)",
            "right:",
            "CALL.REL.NOINC `(end)",
            "end:",
            "EXIT",
            "apart:",
            "BRA `(left)",
        ]);
        let graph = Graph::new(&function)?;
        let code: Vec<_> = graph.blocks.iter().map(|b| b.start).collect();
        assert_eq!(code, [0, 2, 3, 5, 6, 7, 8, 9]);
        assert_eq!(
            graph.successors,
            [
                vec![1, 3],
                vec![2, 5],
                vec![3],
                vec![4],
                vec![5, 6],
                vec![6],
                vec![],
                vec![3]
            ]
        );
        assert!(graph.place[7].is_none(), "a whole warp does not get there");
        Ok(())
    }

    #[test]
    fn a_barrier_that_is_awaited_elsewhere_leads_to_its_label() -> Result<(), String> {
        let function = function(&[
            "BSSY B1, `(join)",
            "@P0 BRA `(out)",
            "join:",
            "EXIT",
            "out:",
            "MOV R0, R1",
            "BSYNC B1",
            "EXIT",
        ]);
        let graph = Graph::new(&function)?;
        assert_eq!(graph.successors[2], [1]);
        Ok(())
    }

    #[test]
    fn a_branch_to_nowhere_is_an_error() {
        for line in ["BRA `(nowhere)", "BRX R2 -0x10"] {
            assert!(Graph::new(&function(&[line, "EXIT"])).is_err(), "{line}");
        }
    }
}

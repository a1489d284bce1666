//! Control flow: successors of statements, and where the paths of a branch meet again.

use crate::isa::Row;
use crate::parse::tree::{Body, Operand};
use crate::program::NOWHERE;

/// The control flow of an entry, statement by statement.
pub(super) struct Graph {
    /// Successors of each statement. A statement without any ends the thread.
    pub(super) next: Vec<Vec<u32>>,
}

impl Graph {
    pub(super) fn new(body: &Body, forms: &[(&'static Row, Vec<&str>)]) -> Graph {
        let count = body.statements.len() as u32;
        let target = |label: u32| {
            body.labels
                .get(label as usize)
                .and_then(|l| l.target)
                .map(|t| t as u32)
        };
        let next = body
            .statements
            .iter()
            .zip(forms)
            .enumerate()
            .map(|(n, (s, (row, _)))| {
                let mut next = Vec::new();
                let mut falls = s.guard.is_some();
                match row.opcode {
                    "bra" => {
                        if let Some(Operand::Label(label)) = s.operands.first() {
                            next.extend(target(*label));
                        }
                    }
                    "brx.idx" => {
                        if let Some(Operand::Label(table)) = s.operands.get(1) {
                            let labels = body.tables.get(table).map_or(&[][..], Vec::as_slice);
                            next.extend(labels.iter().filter_map(|&label| target(label)));
                        }
                    }
                    "ret" | "exit" | "trap" => {}
                    _ => falls = true,
                }
                if falls {
                    next.push(n as u32 + 1);
                }
                next.retain(|&to| to < count);
                next.sort_unstable();
                next.dedup();
                next
            });
        Graph {
            next: next.collect(),
        }
    }

    /// For every statement with several successors, its immediate post-dominator: the first statement that is on
    /// every path from it to the end, or [`NOWHERE`]. (Lengauer and Tarjan's algorithm, 1979, on the graph reversed:
    /// texts come from anywhere, and simpler ones take the square of their size, or worse.)
    pub(super) fn joins(&self) -> Vec<u32> {
        let count = self.next.len();
        let end = count as u32;
        let mut before = vec![Vec::new(); count + 1];
        for (n, next) in self.next.iter().enumerate() {
            for &to in next {
                before[to as usize].push(n as u32);
            }
            if next.is_empty() {
                before[count].push(n as u32);
            }
        }
        // Statements in the order of a depth-first search from the end, and their parents there, by that order too.
        // Statements that cannot reach the end have no number.
        let mut number = vec![NOWHERE; count + 1];
        let (mut order, mut parent) = (Vec::new(), Vec::new());
        let mut stack = vec![(end, 0)];
        while let Some((node, from)) = stack.pop() {
            if number[node as usize] != NOWHERE {
                continue;
            }
            let at = order.len() as u32;
            number[node as usize] = at;
            order.push(node);
            parent.push(from);
            stack.extend(before[node as usize].iter().map(|&up| (up, at)));
        }
        let dominator = dominators(&parent, |at| {
            let next = match order[at] {
                node if node == end => &[][..],
                node => self.next[node as usize].as_slice(),
            };
            let ends = at > 0 && next.is_empty();
            let next = next.iter().map(|&to| number[to as usize]);
            next.filter(|&to| to != NOWHERE).chain(ends.then_some(0))
        });
        (0..count)
            .map(|n| match number[n] {
                NOWHERE => NOWHERE,
                at if self.next[n].len() > 1 && dominator[at as usize] != 0 => {
                    order[dominator[at as usize] as usize]
                }
                _ => NOWHERE,
            })
            .collect()
    }
}

/// Immediate dominators of the nodes of a graph, numbered as a depth-first search from node 0 finds them, with their
/// parents in the search and their predecessors.
fn dominators<I: Iterator<Item = u32>>(parent: &[u32], before: impl Fn(usize) -> I) -> Vec<u32> {
    let count = parent.len();
    let mut forest = Forest {
        above: vec![NOWHERE; count],
        least: (0..count as u32).collect(),
        semi: (0..count as u32).collect(),
    };
    let mut dominator = vec![0; count];
    // Nodes by their semidominators.
    let mut waiting = vec![Vec::new(); count];
    for at in (1..count).rev() {
        for other in before(at) {
            let least = forest.least_semi(other);
            forest.semi[at] = forest.semi[at].min(forest.semi[least as usize]);
        }
        waiting[forest.semi[at] as usize].push(at as u32);
        forest.above[at] = parent[at];
        for node in std::mem::take(&mut waiting[parent[at] as usize]) {
            let least = forest.least_semi(node);
            let nearer = forest.semi[least as usize] < forest.semi[node as usize];
            dominator[node as usize] = if nearer { least } else { parent[at] };
        }
    }
    for at in 1..count {
        if dominator[at] != forest.semi[at] {
            dominator[at] = dominator[dominator[at] as usize];
        }
    }
    dominator
}

/// The part of the search tree that is linked so far.
struct Forest {
    above: Vec<u32>,
    /// Of the nodes from this one up to where paths are compressed, one with the least semidominator.
    least: Vec<u32>,
    semi: Vec<u32>,
}

impl Forest {
    /// The node with the least semidominator between `node` and the root of its tree, the root left out.
    fn least_semi(&mut self, node: u32) -> u32 {
        // The path to the root's child is compressed from above. A loop: a recursion would be as deep as the text.
        let mut path = vec![node];
        let mut at = node;
        while self.above[at as usize] != NOWHERE {
            at = self.above[at as usize];
            path.push(at);
        }
        let Some(root) = path.pop() else { return node };
        let mut best = None;
        for &node in path.iter().rev() {
            if let Some(best) = best {
                let own = self.least[node as usize];
                if self.semi[best as usize] < self.semi[own as usize] {
                    self.least[node as usize] = best;
                }
                self.above[node as usize] = root;
            }
            best = Some(self.least[node as usize]);
        }
        self.least[node as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the end can be reached from `from` without `without`.
    fn reaches_end(next: &[Vec<u32>], from: usize, without: usize) -> bool {
        let mut seen = vec![false; next.len()];
        let mut stack = vec![from];
        while let Some(n) = stack.pop() {
            if n == without || std::mem::replace(&mut seen[n], true) {
                continue;
            }
            if next[n].is_empty() {
                return true;
            }
            stack.extend(next[n].iter().map(|&to| to as usize));
        }
        false
    }

    /// By the definition: of the statements without which the end is out of reach, the one that is on all paths from
    /// `n` to the others.
    fn join(next: &[Vec<u32>], n: usize) -> u32 {
        let nowhere = next.len();
        if next[n].len() < 2 || !reaches_end(next, n, nowhere) {
            return NOWHERE;
        }
        let on_all = |from: usize| -> Vec<usize> {
            let others = (0..next.len()).filter(|&m| m != from);
            others.filter(|&m| !reaches_end(next, from, m)).collect()
        };
        let all = on_all(n);
        let nearest = all.iter().find(|&&m| on_all(m).len() + 1 == all.len());
        nearest.map_or(NOWHERE, |&m| m as u32)
    }

    #[test]
    fn joins_are_what_the_definition_says() {
        let mut state = 1u64;
        let mut below = |end: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % end
        };
        let mut joined = 0;
        for _ in 0..3000 {
            let count = 2 + below(11);
            let next: Vec<Vec<u32>> = (0..count)
                .map(|_| {
                    let ways = [0, 1, 1, 2, 2, 3][below(6)];
                    let mut next: Vec<u32> = (0..ways).map(|_| below(count) as u32).collect();
                    next.sort_unstable();
                    next.dedup();
                    next
                })
                .collect();
            let expected: Vec<u32> = (0..count).map(|n| join(&next, n)).collect();
            joined += expected.iter().filter(|&&n| n != NOWHERE).count();
            let graph = Graph { next };
            assert_eq!(graph.joins(), expected, "{:?}", graph.next);
        }
        assert!(joined > 1000, "{joined}");
    }
}

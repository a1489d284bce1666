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
    /// every path from it to the end, or [`NOWHERE`]. (Cooper, Harvey and Kennedy's algorithm, on the graph reversed.)
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
        // Postorder of the reversed graph from the end. Statements that cannot reach the end have no order.
        let mut order = vec![NOWHERE; count + 1];
        let mut sequence = Vec::with_capacity(count + 1);
        let mut seen = vec![false; count + 1];
        let mut stack = vec![(end, 0usize)];
        seen[count] = true;
        while let Some((node, at)) = stack.last_mut() {
            match before[*node as usize].get(*at) {
                Some(&up) => {
                    *at += 1;
                    if !seen[up as usize] {
                        seen[up as usize] = true;
                        stack.push((up, 0));
                    }
                }
                None => {
                    order[*node as usize] = sequence.len() as u32;
                    sequence.push(*node);
                    stack.pop();
                }
            }
        }
        let mut dominator = vec![NOWHERE; count + 1];
        dominator[count] = end;
        let mut changed = true;
        while changed {
            changed = false;
            for &node in sequence.iter().rev() {
                if node == end {
                    continue;
                }
                let next = &self.next[node as usize];
                let ways = if next.is_empty() {
                    std::slice::from_ref(&end)
                } else {
                    next.as_slice()
                };
                let mut new = NOWHERE;
                for &way in ways {
                    if dominator[way as usize] == NOWHERE {
                        continue;
                    }
                    new = if new == NOWHERE {
                        way
                    } else {
                        meet(&dominator, &order, new, way)
                    };
                }
                if dominator[node as usize] != new {
                    dominator[node as usize] = new;
                    changed = true;
                }
            }
        }
        let several = |n: usize| self.next[n].len() > 1;
        (0..count)
            .map(|n| {
                if several(n) && dominator[n] != end {
                    dominator[n]
                } else {
                    NOWHERE
                }
            })
            .collect()
    }
}

fn meet(dominator: &[u32], order: &[u32], mut a: u32, mut b: u32) -> u32 {
    while a != b {
        while order[a as usize] < order[b as usize] {
            a = dominator[a as usize];
        }
        while order[b as usize] < order[a as usize] {
            b = dominator[b as usize];
        }
    }
    a
}

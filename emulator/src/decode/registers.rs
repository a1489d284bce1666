//! Places of registers in the register file. Compilers name a new register for every value; a warp's file stays small,
//! and in the processor's cache, if registers that are never live at the same time share a row.

use std::collections::BTreeMap;

use super::flow::Graph;
use super::kind_of;
use crate::isa::Row;
use crate::parse::tree::{Base, Body, Operand, RegId};
use crate::program::{Kind, Src};

pub(super) struct Assignment {
    /// The place of each register.
    pub(super) places: Vec<Src>,
    pub(super) rows: u32,
    pub(super) preds: u32,
}

/// Registers that a statement reads or writes, in any order: (register, whether it is written whole).
fn registers(operand: &Operand, visit: &mut impl FnMut(RegId)) {
    match operand {
        Operand::Reg(reg) | Operand::NotReg(reg) | Operand::Address(Base::Reg(reg), _) => {
            visit(*reg)
        }
        Operand::Vector(parts) => parts.iter().for_each(|part| registers(part, visit)),
        Operand::Tensor(base, parts) => {
            if let Base::Reg(reg) = base {
                visit(*reg);
            }
            parts.iter().for_each(|part| registers(part, visit));
        }
        Operand::Pair(a, b) => {
            registers(a, visit);
            registers(b, visit);
        }
        _ => {}
    }
}

/// Gives every register a place. Each register holds its place over one interval of statements: from the first to the
/// last that names it, stretched over every loop that it is live around.
pub(super) fn assign(
    body: &Body,
    forms: &[(&'static Row, Vec<&str>)],
    graph: &Graph,
) -> Assignment {
    let count = body.registers.len();
    let mut first = vec![u32::MAX; count];
    let mut last = vec![0u32; count];
    // Whether a register is written, without a guard, before anything reads it, in the text's order.
    let mut written_first = vec![false; count];
    for (n, (s, (row, _))) in body.statements.iter().zip(forms).enumerate() {
        let n = n as u32;
        let mut name = |reg: RegId, writes: bool| {
            let at = reg as usize;
            if first[at] == u32::MAX {
                first[at] = n;
                written_first[at] = writes && s.guard.is_none();
            }
            last[at] = n;
        };
        if let Some((reg, _)) = s.guard {
            name(reg, false);
        }
        let writes = |at: usize| {
            row.operands
                .split_ascii_whitespace()
                .nth(at)
                .is_some_and(|o| o.starts_with('d'))
        };
        // Reads come before writes: `add r, r, 1` reads r first.
        for (at, operand) in s.operands.iter().enumerate() {
            if !writes(at) {
                registers(operand, &mut |reg| name(reg, false));
            }
        }
        for (at, operand) in s.operands.iter().enumerate() {
            if writes(at) {
                registers(operand, &mut |reg| name(reg, true));
            }
        }
    }
    // Backward jumps: (target, source). A register whose interval reaches into a loop from before it, or that is read
    // in the loop before it is written there, keeps its place for the whole loop.
    let mut loops: Vec<(u32, u32)> = Vec::new();
    for (n, next) in graph.next.iter().enumerate() {
        loops.extend(
            next.iter()
                .filter(|&&to| to <= n as u32)
                .map(|&to| (to, n as u32)),
        );
    }
    let mut jumps: Vec<(u32, u32)> = Vec::new();
    for (n, next) in graph.next.iter().enumerate() {
        jumps.extend(
            next.iter()
                .filter(|&&to| to > n as u32 + 1)
                .map(|&to| (n as u32, to)),
        );
    }
    loops.sort_unstable();
    loops.dedup();
    for at in 0..count {
        if first[at] == u32::MAX {
            continue;
        }
        let mut changed = true;
        while changed {
            changed = false;
            for &(head, tail) in &loops {
                let (from, to) = (first[at], last[at]);
                let inside = from >= head && to <= tail;
                let apart = to < head || from > tail;
                if apart
                    || from <= head && to >= tail
                    || inside && written_first[at] && straight(&jumps, head, from, to)
                {
                    continue;
                }
                first[at] = from.min(head);
                last[at] = to.max(tail);
                changed = true;
            }
        }
    }
    color(body, &first, &last)
}

/// Whether no jump of the loop leads past a register's first write to a place where it may be read: such a read would
/// see an older iteration's value.
fn straight(jumps: &[(u32, u32)], head: u32, write: u32, last: u32) -> bool {
    let from = jumps.partition_point(|&(n, _)| n < head);
    !jumps[from..]
        .iter()
        .take_while(|&&(n, _)| n < write)
        .any(|&(_, to)| to > write && to <= last)
}

fn color(body: &Body, first: &[u32], last: &[u32]) -> Assignment {
    let mut order: Vec<usize> = (0..body.registers.len()).collect();
    order.sort_unstable_by_key(|&at| first[at]);
    // Free places by width, and places that become free, by the statement after which they do.
    let mut free: [Vec<u32>; 3] = Default::default();
    let mut busy: BTreeMap<u32, Vec<(usize, u32)>> = BTreeMap::new();
    let mut assignment = Assignment {
        places: Vec::new(),
        rows: 0,
        preds: 1,
    };
    assignment.places = body
        .registers
        .iter()
        .map(|&ty| Src {
            slot: 0,
            kind: kind_of(ty),
        })
        .collect();
    for at in order {
        if first[at] == u32::MAX {
            continue;
        }
        while let Some(entry) = busy.first_entry()
            && *entry.key() < first[at]
        {
            for (width, slot) in entry.remove() {
                free[width].push(slot);
            }
        }
        let kind = assignment.places[at].kind;
        let width = match kind {
            Kind::Pred => 0,
            Kind::W64 => 2,
            _ => 1,
        };
        let slot = free[width].pop().unwrap_or_else(|| {
            let next = if width == 0 {
                &mut assignment.preds
            } else {
                &mut assignment.rows
            };
            let slot = *next;
            *next += width.max(1) as u32;
            slot
        });
        assignment.places[at].slot = slot;
        busy.entry(last[at]).or_default().push((width, slot));
    }
    assignment
}

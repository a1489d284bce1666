//! Places of registers in the register file. Compilers name a new register for every value; a warp's file stays small,
//! and in the processor's cache, if registers that are never live at the same time share a row.

use std::collections::BTreeMap;

use super::flow::Graph;
use super::kind_of;
use crate::isa::Row;
use crate::parse::tree::{Base, Body, Operand, RegId, Statement};
use crate::program::{Kind, Src};

/// Steps that sharing places may take. No compiler's text comes near it; a hostile one's registers keep places of their
/// own from there on.
const MOST_STEPS: u64 = 1 << 27;

pub(super) struct Assignment {
    /// The place of each register.
    pub(super) places: Vec<Src>,
    pub(super) rows: u32,
    pub(super) preds: u32,
    /// Registers that some path reads before it has written them.
    pub(super) undefined: Vec<RegId>,
}

/// Registers that a statement reads or writes, in any order: (register, whether it is written whole).
fn registers(operand: &Operand, visit: &mut impl FnMut(RegId)) {
    match operand {
        Operand::Reg(reg) | Operand::NotReg(reg) | Operand::Address(Base::Reg(reg), _) => {
            visit(*reg)
        }
        Operand::Vector(parts) => parts.iter().for_each(|part| registers(part, visit)),
        Operand::Tensor(base, _, parts) => {
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

/// The registers that a statement names.
pub(super) fn named(s: &Statement) -> impl Iterator<Item = RegId> {
    let mut found: Vec<RegId> = s.guard.iter().map(|&(reg, _)| reg).collect();
    for operand in &s.operands {
        registers(operand, &mut |reg| found.push(reg));
    }
    found.into_iter()
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
    for n in 0..body.statements.len() {
        accesses(body, forms, n, &mut |reg, writes| {
            let at = reg as usize;
            if first[at] == u32::MAX {
                first[at] = n as u32;
                written_first[at] = writes && body.statements[n].guard.is_none();
            }
            last[at] = n as u32;
        });
    }
    // What may be read before it is written keeps a place of its own, so that it holds no other register's value.
    let undefined = undefined(body, forms, graph);
    for &reg in &undefined {
        first[reg as usize] = 0;
        last[reg as usize] = body.statements.len() as u32;
    }
    hold_in_flight(body, forms, graph, &mut first, &mut last);
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
    let mut steps = MOST_STEPS;
    for at in 0..count {
        if first[at] == u32::MAX {
            continue;
        }
        let mut changed = true;
        while changed {
            changed = false;
            for &(head, tail) in &loops {
                steps = steps.saturating_sub(1);
                if steps == 0 {
                    (first[at], last[at]) = (0, body.statements.len() as u32);
                    break;
                }
                let (from, to) = (first[at], last[at]);
                let inside = from >= head && to <= tail;
                let apart = to < head || from > tail;
                if apart
                    || from <= head && to >= tail
                    || inside && written_first[at] && straight(&jumps, head, from, to, &mut steps)
                {
                    continue;
                }
                first[at] = from.min(head);
                last[at] = to.max(tail);
                changed = true;
            }
        }
    }
    let mut assignment = color(body, &first, &last);
    assignment.undefined = undefined;
    assignment
}

/// Products that run asynchronously hold their accumulator, and A, until a wait that covers them; and from the last
/// `wgmma.fence` before them, so that no access to another register since counts as one to theirs.
fn hold_in_flight(
    body: &Body,
    forms: &[(&'static Row, Vec<&str>)],
    graph: &Graph,
    first: &mut [u32],
    last: &mut [u32],
) {
    let mut steps = MOST_STEPS;
    // Groups that have been closed since, on the path with the fewest.
    let mut closed = vec![u32::MAX; graph.next.len()];
    let mut fence = 0;
    for (n, s) in body.statements.iter().enumerate() {
        match forms[n].0.opcode {
            "wgmma.mma_async.sync.aligned" => {}
            "wgmma.fence.sync.aligned" => {
                fence = n as u32;
                continue;
            }
            _ => continue,
        }
        let (mut from, mut to) = (fence, n as u32);
        let mut touched = Vec::new();
        let mut stack: Vec<(u32, u32)> = graph.next[n].iter().map(|&next| (next, 0)).collect();
        while let Some((at, mut groups)) = stack.pop() {
            steps = steps.saturating_sub(1);
            if steps == 0 {
                (from, to) = (0, body.statements.len() as u32);
                break;
            }
            if closed[at as usize] <= groups {
                continue;
            }
            closed[at as usize] = groups;
            touched.push(at);
            (from, to) = (from.min(at), to.max(at));
            match forms[at as usize].0.opcode {
                "wgmma.commit_group.sync.aligned" => groups += 1,
                "wgmma.wait_group.sync.aligned" => {
                    let allowed = match body.statements[at as usize].operands.first() {
                        Some(Operand::Int(allowed)) => *allowed,
                        _ => u64::MAX,
                    };
                    if groups > 0 && u64::from(groups) > allowed {
                        continue;
                    }
                }
                _ => {}
            }
            stack.extend(graph.next[at as usize].iter().map(|&next| (next, groups)));
        }
        for at in touched {
            closed[at as usize] = u32::MAX;
        }
        for operand in &s.operands[..2] {
            registers(operand, &mut |reg| {
                let reg = reg as usize;
                first[reg] = first[reg].min(from);
                last[reg] = last[reg].max(to);
            });
        }
    }
}

/// The registers that a statement reads, then (true) those that it writes: `add r, r, 1` reads r first.
fn accesses(
    body: &Body,
    forms: &[(&'static Row, Vec<&str>)],
    n: usize,
    visit: &mut impl FnMut(RegId, bool),
) {
    let s = &body.statements[n];
    if let Some((reg, _)) = s.guard {
        visit(reg, false);
    }
    for pass in [false, true] {
        let spec = forms[n].0.operands.split_ascii_whitespace();
        for (operand, spec) in s.operands.iter().zip(spec) {
            let concerned = match spec {
                // An accumulator: read too, unless it is known to be overwritten.
                "x" => pass || !matches!(s.operands.get(3), Some(Operand::Int(0))),
                _ => spec.starts_with('d') == pass,
            };
            if concerned {
                registers(operand, &mut |reg| visit(reg, pass));
            }
        }
    }
}

/// The registers that are not written on every path to a statement that reads them. A write under a guard does not
/// count. (Forward data flow over basic blocks: a register is defined where all predecessors have it defined.)
fn undefined(body: &Body, forms: &[(&'static Row, Vec<&str>)], graph: &Graph) -> Vec<RegId> {
    let (count, len) = (body.registers.len(), body.statements.len());
    if len == 0 {
        return Vec::new();
    }
    let mut leader = vec![false; len];
    leader[0] = true;
    for (n, next) in graph.next.iter().enumerate() {
        if next.as_slice() != [n as u32 + 1] {
            next.iter().for_each(|&to| leader[to as usize] = true);
            if let Some(after) = leader.get_mut(n + 1) {
                *after = true;
            }
        }
    }
    let starts: Vec<usize> = (0..len).filter(|&n| leader[n]).collect();
    let block_of = |n: u32| starts.partition_point(|&s| s <= n as usize) - 1;
    let end = |block: usize| starts.get(block + 1).copied().unwrap_or(len);
    let words = count.div_ceil(64);
    // A text of many megabytes: keep the host's memory, and give every register its own place.
    if words * starts.len() > 1 << 23 {
        return (0..count as RegId).collect();
    }
    // Registers that are defined at the start of each block; until a path has come there, all are.
    let mut defined = vec![vec![u64::MAX; words]; starts.len()];
    defined[0].fill(0);
    let mut writes = vec![vec![0u64; words]; starts.len()];
    for (block, writes) in writes.iter_mut().enumerate() {
        for n in starts[block]..end(block) {
            if body.statements[n].guard.is_none() {
                accesses(body, forms, n, &mut |reg, write| {
                    writes[reg as usize / 64] |= u64::from(write) << (reg % 64);
                });
            }
        }
    }
    let mut changed = true;
    let mut steps = MOST_STEPS;
    while changed {
        changed = false;
        steps = steps.saturating_sub((words * starts.len()) as u64);
        if steps == 0 {
            return (0..count as RegId).collect();
        }
        for block in 0..starts.len() {
            for &to in &graph.next[end(block) - 1] {
                let to = block_of(to);
                for word in 0..words {
                    let out = defined[block][word] | writes[block][word];
                    let new = defined[to][word] & out;
                    changed |= new != defined[to][word];
                    defined[to][word] = new;
                }
            }
        }
    }
    let mut found = vec![false; count];
    for (block, defined) in defined.iter_mut().enumerate() {
        for n in starts[block]..end(block) {
            let certain = body.statements[n].guard.is_none();
            accesses(body, forms, n, &mut |reg, write| {
                let (word, bit) = (reg as usize / 64, 1 << (reg % 64));
                if write && certain {
                    defined[word] |= bit;
                } else if !write && defined[word] & bit == 0 {
                    found[reg as usize] = true;
                }
            });
        }
    }
    (0..count as RegId)
        .filter(|&reg| found[reg as usize])
        .collect()
}

/// Whether no jump of the loop leads past a register's first write to a place where it may be read: such a read would
/// see an older iteration's value.
fn straight(jumps: &[(u32, u32)], head: u32, write: u32, last: u32, steps: &mut u64) -> bool {
    let begin = jumps.partition_point(|&(n, _)| n < head);
    let end = jumps.partition_point(|&(n, _)| n < write);
    *steps = steps.saturating_sub(end.saturating_sub(begin) as u64);
    !jumps[begin..end.max(begin)]
        .iter()
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
        undefined: Vec::new(),
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

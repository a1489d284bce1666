//! Where the values of registers come from.

use std::collections::{HashMap, HashSet};

use super::{
    flow::Flow,
    listing::{Instruction, Listing, registers},
};

/// The instructions that write each register.
pub struct Values<'l, 't> {
    listing: &'l Listing<'t>,
    writers: HashMap<&'t str, Vec<usize>>,
    read: HashSet<&'t str>,
}

impl<'l, 't> Values<'l, 't> {
    /// The writers of a listing's registers.
    pub fn of(listing: &'l Listing<'t>) -> Self {
        let mut writers: HashMap<_, Vec<_>> = HashMap::new();
        for (at, instruction) in listing.instructions.iter().enumerate() {
            for register in instruction
                .writes()
                .iter()
                .flat_map(|operand| registers(operand))
            {
                writers.entry(register).or_default().push(at);
            }
        }
        let read = listing.instructions.iter().flat_map(|instruction| {
            let operands = instruction.reads().iter();
            let guard = instruction.guard.map(|guard| guard.predicate);
            operands.flat_map(|operand| registers(operand)).chain(guard)
        });
        let read = read.collect();
        Self {
            listing,
            writers,
            read,
        }
    }

    /// Whether any instruction reads a register.
    pub fn is_read(&self, register: &str) -> bool {
        self.read.contains(register)
    }

    /// The only instruction that writes a register.
    pub fn writer(&self, register: &str) -> Option<usize> {
        match self.writers.get(register)?[..] {
            [writer] => Some(writer),
            _ => None,
        }
    }

    /// The instructions whose results become part of an address in shared memory, by whatever arithmetic.
    pub fn shared_addresses(&self) -> HashSet<usize> {
        let instructions = &self.listing.instructions;
        let mut open: Vec<&str> = Vec::new();
        for instruction in instructions {
            for (at, _) in instruction.shared_addresses() {
                open.extend(
                    instruction
                        .operands
                        .get(at)
                        .iter()
                        .flat_map(|operand| registers(operand)),
                );
            }
        }
        let mut found = HashSet::new();
        while let Some(register) = open.pop() {
            for &writer in self.writers.get(register).into_iter().flatten() {
                if !instructions[writer].accesses_memory() && found.insert(writer) {
                    open.extend(
                        instructions[writer]
                            .reads()
                            .iter()
                            .flat_map(|operand| registers(operand)),
                    );
                }
            }
        }
        found
    }

    /// The values of registers that hold the same one whatever the problem: constants, and what is computed from
    /// them. The compiler was kept from seeing some of these. Predicates are 0 or 1. Registers that are written more
    /// than once do not count.
    fn constants(&self) -> HashMap<&'t str, u32> {
        let mut found = HashMap::new();
        let mut grown = true;
        while grown {
            grown = false;
            for (&register, writers) in &self.writers {
                if let [writer] = writers[..]
                    && !found.contains_key(register)
                    && let Some(value) = evaluate(&self.listing.instructions[writer], &found)
                {
                    found.insert(register, value);
                    grown = true;
                }
            }
        }
        found
    }

    /// The guarded instructions for which constants decide whether they are executed, and whether they are. A guard
    /// counts if its value follows from constants alone, or from what stands before it in its block.
    pub fn decided(&self, flow: &Flow) -> HashMap<usize, bool> {
        let constants = self.constants();
        let mut decided = HashMap::new();
        for block in flow.blocks() {
            let mut known = constants.clone();
            for at in block {
                let instruction = &self.listing.instructions[at];
                if let Some(guard) = instruction.guard
                    && let Some(value) = known.get(guard.predicate)
                {
                    decided.insert(at, (*value != 0) != guard.negated);
                }
                let value = evaluate(instruction, &known);
                for register in instruction
                    .writes()
                    .iter()
                    .flat_map(|operand| registers(operand))
                {
                    match value {
                        Some(value) => known.insert(register, value),
                        None => known.remove(register),
                    };
                }
            }
        }
        decided
    }
}

/// What an instruction computes from constants, for the 32-bit integer instructions that loops' counts consist of.
fn evaluate(instruction: &Instruction<'_>, known: &HashMap<&str, u32>) -> Option<u32> {
    let input = |at: usize| -> Option<u32> {
        let operand = *instruction.operands.get(at)?;
        let number = || operand.parse::<i64>().ok().map(|n| n as u32);
        known.get(operand).copied().or_else(number)
    };
    if instruction.guard.is_some() || instruction.operands.len() > 3 {
        return None;
    }
    if instruction.is("mov.b32") || instruction.is("mov.u32") {
        return input(1);
    }
    let (a, b) = (input(1)?, input(2)?);
    let signed = a.cast_signed().cmp(&b.cast_signed());
    let order = if instruction.opcode.ends_with(".s32") {
        signed
    } else {
        a.cmp(&b)
    };
    let mut parts = instruction.opcode.split('.');
    let (opcode, comparison, kind) = (
        parts.next()?,
        parts.next()?,
        parts.next().unwrap_or_default(),
    );
    Some(match (opcode, comparison) {
        ("and", "b32") => a & b,
        ("or", "b32") => a | b,
        ("add", "s32" | "u32") => a.wrapping_add(b),
        ("sub", "s32" | "u32") => a.wrapping_sub(b),
        ("setp", _) if !matches!(kind, "b32" | "s32" | "u32") => return None,
        ("setp", "eq") => order.is_eq().into(),
        ("setp", "ne") => order.is_ne().into(),
        ("setp", "lt") => order.is_lt().into(),
        ("setp", "le") => order.is_le().into(),
        ("setp", "gt") => order.is_gt().into(),
        ("setp", "ge") => order.is_ge().into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let text = ".entry e() {
            mov.u32 %r1, %tid.x; mov.b32 %r2, 4; mov.u32 %r3, %r2; setp.eq.b32 %p1, %r3, 0;
            xor.b32 %r4, %r1, 32; add.s32 %r5, %r4, %r2; ld.shared.u32 %r6, [%r5+8]; xor.b32 %r7, %r6, 1;
            setp.eq.b32 %p2, %r1, %r2; ret; }";
        let listing = Listing::read(text).unwrap();
        let values = Values::of(&listing);
        let mut addresses: Vec<_> = values.shared_addresses().into_iter().collect();
        addresses.sort_unstable();
        assert_eq!(addresses, [0, 1, 4, 5]);
        let constants = values.constants();
        assert_eq!(constants, [("%r2", 4), ("%r3", 4), ("%p1", 0)].into());
    }

    #[test]
    fn guards_that_constants_decide() {
        let text = ".entry e() {
            mov.b32 %r1, 1; mov.u32 %r2, %r1; setp.ne.b32 %p1, %r2, 0;
            @%p1 bra L;
            @!%p1 bra M;
         L: add.s32 %r1, %r1, 1; setp.lt.s32 %p2, %r1, 9;
            @%p2 bra L;
            mov.b32 %r2, 3; add.s32 %r2, %r2, %r3; setp.eq.b32 %p3, %r2, 3;
            @%p3 bra L;
         M: ret; }";
        let listing = Listing::read(text).unwrap();
        let flow = Flow::of(&listing).unwrap();
        // %r1 is written twice: only in the first block is its value known.
        assert_eq!(Values::of(&listing).decided(&flow), [(3, true)].into());
    }
}

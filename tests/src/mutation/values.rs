//! Where the values of registers come from.

use std::collections::{HashMap, HashSet};

use super::listing::{Listing, registers};

/// The instructions that write each register.
pub struct Values<'l, 't> {
    listing: &'l Listing<'t>,
    writers: HashMap<&'t str, Vec<usize>>,
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
        Self { listing, writers }
    }

    /// The instructions whose results become part of an address in shared memory, by whatever arithmetic.
    pub fn shared_addresses(&self) -> HashSet<usize> {
        let instructions = &self.listing.instructions;
        let mut open: Vec<&str> = Vec::new();
        for instruction in instructions {
            if let Some((at, _)) = instruction.shared_address() {
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

    /// The registers that hold the same value whenever they hold one, since only constants go into them. Registers
    /// that are written more than once do not count.
    pub fn constants(&self) -> HashSet<&'t str> {
        let mut found = HashSet::new();
        let mut grown = true;
        while grown {
            grown = false;
            for (register, writers) in &self.writers {
                let [writer] = writers[..] else { continue };
                let instruction = &self.listing.instructions[writer];
                let mut inputs = instruction
                    .reads()
                    .iter()
                    .flat_map(|operand| registers(operand));
                let pure = instruction.guard.is_none()
                    && !instruction.accesses_memory()
                    && !instruction.is("ld.param");
                if pure && inputs.all(|input| found.contains(input)) {
                    grown |= found.insert(*register);
                }
            }
        }
        found
    }
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
        let mut constants: Vec<_> = values.constants().into_iter().collect();
        constants.sort_unstable();
        assert_eq!(constants, ["%p1", "%r2", "%r3"]);
    }
}

//! Mutations of accesses to memory: of what guards them, and of their addresses in shared memory.

use super::{class::Class, listing::Instruction, mutants::Search};

impl<'t> Search<'_, 't> {
    /// Predicates that decide whether memory is accessed: an instruction's own, and those of branches past accesses.
    /// A branch with accesses on either side chooses between two ways, one of which may always be right (as the copy
    /// of single elements is), so it is only inverted.
    pub(super) fn guards(&mut self, at: usize) {
        let listing = self.listing;
        let i = &listing.instructions[at];
        let Some(guard) = i.guard else { return };
        // What constants decide is no guard, but a loop's count that the compiler was not let see.
        if self.decided.contains_key(&at) {
            return;
        }
        let text = &listing.text[i.range.clone()];
        let bare = text[text.find(char::is_whitespace).unwrap_or(0)..].trim_start();
        // What stands there if memory is always accessed, and whether it is accessed where the predicate is true.
        let always = match self.flow.sides(at) {
            Some(sides) => match (self.accesses(&sides.taken), self.accesses(&sides.passed)) {
                (false, false) => return,
                (true, true) => None,
                (true, false) => Some((bare, !guard.negated)),
                (false, true) => Some(("", guard.negated)),
            },
            None if i.accesses_memory() => Some((bare, !guard.negated)),
            None => return,
        };
        if let Some((always, if_true)) = always {
            self.add(Class::Guard, i, always);
            self.parts(i, guard.predicate, if_true);
        }
        let sign = if guard.negated { "" } else { "!" };
        self.add(
            Class::GuardInverted,
            i,
            format!("@{sign}{} {bare}", guard.predicate),
        );
    }

    /// The two conditions of a guard: both are needed for an access, or either prevents it.
    fn parts(&mut self, guarded: &Instruction<'t>, predicate: &str, access_if_true: bool) {
        let listing = self.listing;
        let Some(writer) = self.values.writer(predicate) else {
            return;
        };
        let i = &listing.instructions[writer];
        let opcode = if access_if_true {
            "and.pred"
        } else {
            "or.pred"
        };
        if let (true, [to, a, b]) = (i.is(opcode), &i.operands[..])
            && self.divided.insert(writer)
        {
            for (part, kept) in [(a, "first"), (b, "second")] {
                self.add(Class::GuardPart, i, format!("mov.pred {to}, {part};"));
                let place = format!("keeps the {kept}: {}", self.place(guarded));
                if let Some(added) = self.found.last_mut() {
                    added.place = place;
                }
            }
        }
    }

    fn accesses(&self, blocks: &[usize]) -> bool {
        let mut instructions = blocks
            .iter()
            .flat_map(|&block| self.flow.instructions(block));
        instructions.any(|at| self.listing.instructions[at].accesses_memory())
    }

    /// Addresses in shared memory.
    pub(super) fn addresses(&mut self, at: usize) {
        let listing = self.listing;
        let i = &listing.instructions[at];
        if i.is("xor") && self.addresses.contains(&at) {
            let kind = i.opcode.rsplit('.').next().unwrap_or("b32");
            self.add(
                Class::Swizzle,
                i,
                format!("mov.{kind} {}, {};", i.operands[0], i.operands[1]),
            );
        }
        for (address, bytes) in i.shared_addresses() {
            let inside = i.operands[address].trim_matches(['[', ']']);
            let shifted = match inside.split_once('+') {
                Some((base, offset)) => offset
                    .parse::<i64>()
                    .ok()
                    .map(|n| (base, n + i64::from(bytes))),
                None => Some((inside, i64::from(bytes))),
            };
            if let Some((base, offset)) = shifted {
                self.with_operand(Class::Offset, i, address, &format!("[{base}+{offset}]"));
            }
        }
    }

    /// The instruction with another operand.
    pub(super) fn with_operand(
        &mut self,
        class: Class,
        i: &Instruction<'t>,
        at: usize,
        operand: &str,
    ) {
        let mut operands = i.operands.clone();
        operands[at] = operand;
        self.add(class, i, format!("{} {};", i.opcode, operands.join(", ")));
    }
}

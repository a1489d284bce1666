//! Mutations of the instructions that only the sm_90a tier has: mbarriers, copies of boxes, clusters, registers; and its masks.

use super::{class::Class, listing::Instruction, mutants::Search};

/// Bits of minus infinity.
const MINUS_INFINITY: &str = "0fFF800000";

impl<'t> Search<'_, 't> {
    /// All mutations of an instruction.
    pub(super) fn hopper(&mut self, at: usize) {
        let listing = self.listing;
        let i = &listing.instructions[at];
        if i.is("mbarrier") {
            self.mbarriers(i);
        } else if i.is("cp.async.bulk.tensor") {
            self.boxes(i);
        } else if i.is("barrier.cluster.arrive")
            && let Some(wait) = listing.instructions.get(at + 1)
            && wait.is("barrier.cluster.wait")
        {
            self.add_range(Class::ClusterBarrier, i, i.range.start..wait.range.end, "");
        } else if i.is("elect.sync")
            && let Some((_, elected)) = i.operands[0].split_once('|')
        {
            for always in [0, -1] {
                self.add(Class::Vote, i, format!("mov.pred {elected}, {always};"));
            }
        } else if i.is("red") {
            self.add(Class::Atomic, i, "");
        } else if i.is("setmaxnreg") {
            self.add(Class::Registers, i, "");
        } else if i.is("selp.f32")
            && let [to, a, b, bit] = i.operands[..]
            && (a == MINUS_INFINITY || b == MINUS_INFINITY)
            && self.is_bit(bit)
        {
            let score = if a == MINUS_INFINITY { b } else { a };
            for always in [score, MINUS_INFINITY] {
                self.add(Class::Mask, i, format!("mov.b32 {to}, {always};"));
            }
        }
    }

    /// Whether a predicate is a bit of a word: whether `and` leaves something of it.
    fn is_bit(&self, predicate: &str) -> bool {
        let writer = |register| Some(&self.listing.instructions[self.values.writer(register)?]);
        writer(predicate).is_some_and(|test| {
            test.is("setp")
                && test.operands.get(2) == Some(&"0")
                && writer(test.operands[1]).is_some_and(|bits| bits.is("and.b32"))
        })
    }

    fn mbarriers(&mut self, i: &Instruction<'t>) {
        if i.is("mbarrier.init") {
            for step in [1, -1] {
                self.stepped(Class::MbarrierInit, i, 1, step);
            }
        } else if i.is("mbarrier.try_wait") {
            self.add(
                Class::MbarrierWait,
                i,
                format!("mov.pred {}, -1;", i.operands[0]),
            );
            self.stepped(Class::MbarrierWait, i, 2, 1);
        } else if i.is("mbarrier.arrive") {
            self.add(Class::MbarrierArrive, i, "");
            if i.is("mbarrier.arrive.expect_tx") {
                let opcode = i.opcode.replace(".expect_tx", "");
                let after = format!("{opcode} {}, {};", i.operands[0], i.operands[1]);
                self.add(Class::ExpectBytes, i, after);
                for step in [16, -16] {
                    self.stepped(Class::ExpectBytes, i, 2, step);
                }
            }
        }
    }

    fn boxes(&mut self, i: &Instruction<'t>) {
        let from = usize::from(i.opcode.contains("mbarrier"));
        let source = i.operands[from].trim_matches(['[', ']']);
        if let Some((map, coordinates)) = source.split_once(',') {
            let coordinates: Vec<_> = coordinates
                .trim()
                .trim_matches(['{', '}'])
                .split(',')
                .map(str::trim)
                .collect();
            for dimension in 0..coordinates.len() {
                let mut changed = coordinates.clone();
                changed[dimension] = "off";
                let mut operands = i.operands.clone();
                let source = format!("[{map}, {{{}}}]", changed.join(", "));
                operands[from] = &source;
                let add = format!("add.s32 off, {}, 1;", coordinates[dimension]);
                let after = format!(
                    "{{ .reg .b32 off; {add} {} {}; }}",
                    i.opcode,
                    operands.join(", ")
                );
                self.add(Class::Coordinate, i, after);
            }
        }
        if i.opcode.contains(".multicast::cluster") {
            for block in 0..2 {
                let mut operands = i.operands.clone();
                operands[3] = "blocks";
                let only = format!(".reg .b16 blocks; mov.b16 blocks, {};", 1 << block);
                let after = format!("{{ {only} {} {}; }}", i.opcode, operands.join(", "));
                self.add(Class::Multicast, i, after);
            }
        }
    }

    /// The instruction with a number that is so much larger than it is.
    fn stepped(&mut self, class: Class, i: &Instruction<'t>, at: usize, step: i32) {
        let mut operands = i.operands.clone();
        operands[at] = "off";
        let add = format!("add.s32 off, {}, {step};", i.operands[at]);
        let after = format!(
            "{{ .reg .b32 off; {add} {} {}; }}",
            i.opcode,
            operands.join(", ")
        );
        self.add(class, i, after);
    }
}

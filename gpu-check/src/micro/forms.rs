//! From an instruction and the types of its operands to a test.

use super::{
    Promise, Target, Test,
    inputs::{Kind, Noise, operands},
};
use crate::compare::Format;

/// Random inputs of a test, besides the edges.
const RANDOM: usize = 16 << 10;

/// One form of an instruction.
#[derive(Clone, Debug)]
pub struct Form {
    /// Opcode and modifiers.
    pub instruction: String,
    /// Types of the sources.
    pub ins: Vec<Kind>,
    /// Type of the destination.
    pub out: Kind,
    /// What comes after the sources: immediates.
    pub tail: String,
    /// Oldest target.
    pub target: Target,
    /// What may differ.
    pub promise: Promise,
}

impl Form {
    /// A form for sm_80 that is exact.
    pub fn new(instruction: impl Into<String>, ins: &[Kind], out: Kind) -> Self {
        Self {
            instruction: instruction.into(),
            ins: ins.to_vec(),
            out,
            tail: String::new(),
            target: Target::Sm80,
            promise: Promise::Exact,
        }
    }

    /// The same for a later target.
    #[must_use]
    pub fn target(self, target: Target) -> Self {
        Self { target, ..self }
    }

    /// The same as an approximation.
    #[must_use]
    pub fn approximate(self, ulp: u32) -> Self {
        Self {
            promise: Promise::Approximate(ulp),
            ..self
        }
    }

    /// The same with an immediate after the sources.
    #[must_use]
    pub fn tail(self, tail: impl std::fmt::Display) -> Self {
        Self {
            tail: format!(", {tail}"),
            ..self
        }
    }

    /// The test.
    pub fn test(&self) -> Test {
        let mut body = String::new();
        let mut sources = Vec::new();
        let mut word = 0;
        for (i, kind) in self.ins.iter().enumerate() {
            let (line, operand) = match kind {
                Kind::F32 | Kind::F16x2 | Kind::Bf16x2 | Kind::B32 | Kind::Count => {
                    (String::new(), format!("%a{word}"))
                }
                Kind::F16 | Kind::Bf16 | Kind::B16 => (
                    format!("mov.b32 {{%h{}, %h{}}}, %a{word};\n", 2 * i, 2 * i + 1),
                    format!("%h{}", 2 * i),
                ),
                Kind::B64 => (
                    format!("mov.b64 %d{}, {{%a{word}, %a{}}};\n", 10 + i, word + 1),
                    format!("%d{}", 10 + i),
                ),
                Kind::Pred => (
                    format!("setp.ne.u32 %p{i}, %a{word}, 0;\n"),
                    format!("%p{i}"),
                ),
            };
            body += &line;
            sources.push(operand);
            word += kind.words();
        }
        let (destination, after) = match self.out {
            Kind::F16 | Kind::Bf16 | Kind::B16 => {
                ("%h20", "mov.b16 %h21, 0;\nmov.b32 %o0, {%h20, %h21};")
            }
            Kind::B64 => ("%d20", "mov.b64 {%o0, %o1}, %d20;"),
            Kind::Pred => ("%p10", "selp.b32 %o0, 1, 0, %p10;"),
            _ => ("%o0", ""),
        };
        body += &format!(
            "{} {destination}, {}{};\n{after}",
            self.instruction,
            sources.join(", "),
            self.tail
        );
        let outs = match self.out {
            Kind::F32 => vec![Format::F32],
            Kind::F16 => vec![Format::F16],
            Kind::Bf16 => vec![Format::Bf16],
            Kind::F16x2 => vec![Format::F16x2],
            Kind::Bf16x2 => vec![Format::Bf16x2],
            Kind::B64 => vec![Format::Bits; 2],
            _ => vec![Format::Bits],
        };
        let name = format!("{}{}", self.instruction, self.tail);
        let input = operands(&self.ins, RANDOM, &mut Noise::of(&name));
        Test::new(name, self.target, body, (word, outs), input).promise(self.promise)
    }
}

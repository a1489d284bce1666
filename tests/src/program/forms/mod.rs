//! Instructions on registers: how each is written, and what it means. Text and meaning stand side by side.

mod convert;
mod float;
mod integer;

use std::sync::OnceLock;

use super::Class;

/// What an operand may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A predicate.
    P,
    /// 16 bits, register only.
    X,
    /// 16-bit integer.
    H,
    /// 32-bit integer.
    R,
    /// 64-bit integer.
    D,
    /// f32, or a 32-bit register with its bits.
    F,
    /// f64, or a 64-bit register with its bits.
    G,
    /// An immediate below this.
    Below(u64),
}

impl Kind {
    /// Registers that fit.
    pub fn class(self) -> Class {
        match self {
            Self::P => Class::P,
            Self::X | Self::H => Class::H,
            Self::R | Self::F | Self::Below(_) => Class::R,
            Self::D | Self::G => Class::D,
        }
    }
}

/// Bits of the operands to bits of the result; above the result's width they may be anything.
type Meaning = Box<dyn Fn(&[u64]) -> u64 + Send + Sync>;

/// An instruction, or a few that belong together.
pub struct Form {
    /// The text. `$0` is the destination, `$1` and so on are the sources; `%xp`, `%xq`, `%xh`, `%xr`, `%xs`, `%xd` are
    /// scratch registers.
    pub text: String,
    /// The destination.
    pub to: Class,
    /// The sources.
    pub from: Vec<Kind>,
    /// What it does.
    pub meaning: Meaning,
}

/// Collects forms.
#[derive(Default)]
struct Forms(Vec<Form>);

impl Forms {
    /// An instruction whose operands are just its destination and sources, in order.
    fn plain(
        &mut self,
        opcode: impl Into<String>,
        to: Class,
        from: &[Kind],
        meaning: impl Fn(&[u64]) -> u64 + Send + Sync + 'static,
    ) {
        let operands: Vec<String> = (0..=from.len()).map(|n| format!("${n}")).collect();
        let text = format!("{} {};", opcode.into(), operands.join(", "));
        self.full(text, to, from, meaning);
    }

    /// An instruction with its operands written out.
    fn full(
        &mut self,
        text: impl Into<String>,
        to: Class,
        from: &[Kind],
        meaning: impl Fn(&[u64]) -> u64 + Send + Sync + 'static,
    ) {
        self.0.push(Form {
            text: text.into(),
            to,
            from: from.to_vec(),
            meaning: Box::new(meaning),
        });
    }
}

/// The table.
pub fn forms() -> &'static [Form] {
    static FORMS: OnceLock<Vec<Form>> = OnceLock::new();
    FORMS.get_or_init(|| {
        let mut forms = Forms::default();
        integer::add(&mut forms);
        float::add(&mut forms);
        convert::add(&mut forms);
        forms.0
    })
}

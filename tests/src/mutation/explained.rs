//! The survivors that are known, each with its reason.

use super::{
    campaign::{Campaign, Outcome},
    mutants::{Class, Mutation},
};

/// Mutants that nothing can notice, and why. Texts are patterns, in which `*` stands for anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Names of the kernels.
    pub kernels: &'static str,
    /// The class.
    pub class: Class,
    /// The instruction.
    pub before: &'static str,
    /// What stands in its place.
    pub after: &'static str,
    /// Which of the kernel's mutants of the class, if not any: its [`Mutation::ordinal`].
    pub ordinal: Option<usize>,
    /// Why no result and no rule of the machine depends on it.
    pub reason: &'static str,
}

/// Every explanation. All mutants that one describes survive: one that dies makes it wrong.
pub const EXPLAINED: &[Explanation] = &[
    Explanation {
        kernels: "fused_*",
        class: Class::Vote,
        before: "vote.sync.any.pred *",
        after: "mov.pred *, %*;",
        ordinal: None,
        reason: RESCALING,
    },
    Explanation {
        kernels: "fused_*",
        class: Class::Vote,
        before: "vote.sync.any.pred *",
        after: "mov.pred *, -1;",
        ordinal: None,
        reason: RESCALING,
    },
    empty_group("*_d64*"),
    empty_group("*_d96*"),
    empty_group("*_d128*"),
    empty_group("*_d192*"),
    empty_group("*_d256*"),
    empty_group("*_f32_d32*"),
];

/// The group that `Stream::start` closes where a block has no tile to copy, in kernels whose queries stay in shared memory.
const fn empty_group(kernels: &'static str) -> Explanation {
    Explanation {
        kernels,
        class: Class::Commit,
        before: "cp.async.commit_group;",
        after: "",
        ordinal: Some(2),
        reason: "A group without copies, after which a block without tiles waits for nothing. Kernels whose queries go to \
                 registers need it, and the same code serves all: without it here, ptxas spills registers of \
                 fused_f16_d128.",
    }
}

const RESCALING: &str = "The vote skips a multiplication by 1 where no row of the warp has a new maximum. Lanes that multiply \
     without need, or skip it by themselves, compute the same.";

impl Explanation {
    /// Whether it is about this mutation of this kernel.
    pub fn describes(&self, kernel: &str, mutation: &Mutation) -> bool {
        self.class == mutation.class
            && matches(self.kernels, kernel)
            && self
                .ordinal
                .is_none_or(|ordinal| ordinal == mutation.ordinal)
            && matches(self.before, &mutation.before)
            && matches(self.after, &mutation.after)
    }
}

/// The explanation of a survivor, if there is one.
pub fn explanation(kernel: &str, mutation: &Mutation) -> Option<&'static Explanation> {
    EXPLAINED
        .iter()
        .find(|explanation| explanation.describes(kernel, mutation))
}

/// The explanations that are wrong: they describe mutants that something noticed. If `all` mutants of all kernels were
/// made, also those that describe none.
pub fn wrong(campaign: &Campaign, outcomes: &[Outcome], all: bool) -> Vec<&'static Explanation> {
    let is_wrong = |explanation: &&Explanation| {
        let (mut described, mut killed) = (0, 0);
        for (mutant, outcome) in campaign.mutants.iter().zip(outcomes) {
            if explanation.describes(campaign.variants[mutant.kernel].name, &mutant.mutation) {
                described += 1;
                killed += usize::from(matches!(outcome, Outcome::Killed(_)));
            }
        }
        killed > 0 || (all && described == 0)
    };
    EXPLAINED.iter().filter(is_wrong).collect()
}

/// Whether a text is what a pattern describes.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(text) = text.strip_prefix(head) else {
        return false;
    };
    (0..=text.len()).any(|at| text.is_char_boundary(at) && matches(rest, &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(
            matches("a*", "abc")
                && matches("*c", "abc")
                && matches("a*c", "abc")
                && matches("a*b*c", "abc")
        );
        assert!(matches("*", "") && matches("abc", "abc"));
        assert!(!matches("a*", "bc") && !matches("abc", "ab") && !matches("a*b", "abc"));
    }
}

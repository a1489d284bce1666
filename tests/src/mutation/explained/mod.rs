//! The survivors that are known, each with its reason.

mod serving;
mod sm80;
mod sm90;

use super::{
    campaign::{Campaign, Outcome},
    mutants::{Class, Mutation},
};

/// Mutants that nothing can notice, and why. Texts are patterns, in which `*` stands for anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Names of the kernels: patterns, separated by `|`.
    pub kernels: &'static str,
    /// The class.
    pub class: Class,
    /// The instruction.
    pub before: &'static str,
    /// What stands in its place.
    pub after: &'static str,
    /// Where it stands: a [`Mutation::place`].
    pub place: &'static str,
    /// After what: a [`Mutation::since`].
    pub since: &'static str,
    /// Which of the kernel's mutants of the class, if not any: its [`Mutation::ordinal`].
    pub ordinal: Option<usize>,
    /// Why no result and no rule of the machine depends on it.
    pub reason: &'static str,
}

/// Every explanation. All mutants that one describes survive: one that dies makes it wrong.
pub fn explanations() -> impl Iterator<Item = &'static Explanation> {
    let tiers = [sm80::EXPLAINED, sm90::EXPLAINED, serving::EXPLAINED];
    tiers.into_iter().flatten()
}

/// The mutants of a class with such texts, wherever they stand in such places.
const fn of(
    kernels: &'static str,
    class: Class,
    before: &'static str,
    after: &'static str,
    place: &'static str,
    reason: &'static str,
) -> Explanation {
    Explanation {
        kernels,
        class,
        before,
        after,
        place,
        since: "*",
        ordinal: None,
        reason,
    }
}

/// So, of those that come after this.
const fn of_since(
    since: &'static str,
    kernels: &'static str,
    class: Class,
    before: &'static str,
    after: &'static str,
    place: &'static str,
    reason: &'static str,
) -> Explanation {
    Explanation {
        since,
        ..of(kernels, class, before, after, place, reason)
    }
}

const RESCALING: &str = "The vote skips a multiplication by 1 where no row of the warp has a new maximum. Lanes that multiply \
     without need, or skip it by themselves, compute the same.";

const ORDERED: &str = "The fence before the products with keys has ordered the registers of those with values too: nothing writes them in \
     between.";

const REGISTERS: &str = "An emulated thread has all the registers that it names. That one of a GPU has them only if it asks is seen on a GPU.";

impl Explanation {
    /// Whether it is about this mutation of this kernel.
    pub fn describes(&self, kernel: &str, mutation: &Mutation) -> bool {
        self.class == mutation.class
            && self.kernels.split('|').any(|name| matches(name, kernel))
            && self
                .ordinal
                .is_none_or(|ordinal| ordinal == mutation.ordinal)
            && matches(self.before, &mutation.before)
            && matches(self.after, &mutation.after)
            && matches(self.place, &mutation.place)
            && matches(self.since, &mutation.since)
    }
}

/// The explanation of a survivor, if there is one.
pub fn explanation(kernel: &str, mutation: &Mutation) -> Option<&'static Explanation> {
    explanations().find(|explanation| explanation.describes(kernel, mutation))
}

/// The explanations that are wrong: they describe mutants that something noticed. If `all` mutants of all kernels were
/// made, also those that describe none.
pub fn wrong(campaign: &Campaign, outcomes: &[Outcome], all: bool) -> Vec<&'static Explanation> {
    let is_wrong = |explanation: &&Explanation| {
        let (mut described, mut killed) = (0, 0);
        for (mutant, outcome) in campaign.mutants.iter().zip(outcomes) {
            if explanation.describes(campaign.name(mutant.kernel), &mutant.mutation) {
                described += 1;
                killed += usize::from(matches!(outcome, Outcome::Killed(_)));
            }
        }
        killed > 0 || (all && described == 0)
    };
    explanations().filter(is_wrong).collect()
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

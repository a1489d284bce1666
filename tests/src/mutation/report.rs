//! What a campaign found, for people and for programs.

use std::fmt;

use serde_json::{Value, json};

use super::{
    campaign::{Campaign, Outcome},
    explained::{Explanation, explanation, explanations},
    judge::Cause,
    mutants::{Class, Mutation},
};

/// The counts of one class.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    killed: [usize; Cause::ALL.len()],
    survived: usize,
}

impl Row {
    fn mutants(&self) -> usize {
        self.killed.iter().sum::<usize>() + self.survived
    }
}

/// A campaign with its outcomes.
pub struct Report<'c> {
    campaign: &'c Campaign,
    outcomes: &'c [Outcome],
    rows: [Row; Class::ALL.len()],
}

impl<'c> Report<'c> {
    /// Counts the outcomes of a campaign's mutants.
    pub fn new(campaign: &'c Campaign, outcomes: &'c [Outcome]) -> Self {
        let mut rows = [Row::default(); Class::ALL.len()];
        for (mutant, outcome) in campaign.mutants.iter().zip(outcomes) {
            let row = &mut rows[mutant.mutation.class as usize];
            match outcome {
                Outcome::Killed(death) => row.killed[death.cause as usize] += 1,
                Outcome::Survived { .. } => row.survived += 1,
            }
        }
        Self {
            campaign,
            outcomes,
            rows,
        }
    }

    fn total(&self) -> Row {
        let mut total = Row::default();
        for row in &self.rows {
            total.survived += row.survived;
            for (sum, count) in total.killed.iter_mut().zip(row.killed) {
                *sum += count;
            }
        }
        total
    }

    /// The survivors: kernel, mutation, whether it was executed.
    pub fn survivors(&self) -> impl Iterator<Item = (&'static str, &'c Mutation, bool)> {
        let pairs = self.campaign.mutants.iter().zip(self.outcomes);
        pairs.filter_map(|(mutant, outcome)| match outcome {
            Outcome::Survived { executed } => {
                let name = self.campaign.name(mutant.kernel);
                Some((name, &mutant.mutation, !executed.is_empty()))
            }
            Outcome::Killed(_) => None,
        })
    }

    /// The survivors without an explanation.
    pub fn unexplained(&self) -> impl Iterator<Item = (&'static str, &'c Mutation, bool)> {
        self.survivors()
            .filter(|(name, mutation, _)| explanation(name, mutation).is_none())
    }

    /// Everything, as one JSON object.
    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            let killed = Cause::ALL
                .map(|cause| (cause.as_str().to_owned(), json!(row.killed[cause as usize])));
            let killed: serde_json::Map<_, _> = killed.into_iter().collect();
            json!({ "mutants": row.mutants(), "killed": killed, "survived": row.survived })
        };
        let classes: serde_json::Map<_, _> = Class::ALL
            .map(|class| (class.as_str().to_owned(), row(&self.rows[class as usize])))
            .into_iter()
            .collect();
        let pairs = self.campaign.mutants.iter().zip(self.outcomes);
        let mutants: Vec<_> = pairs
            .map(|(mutant, outcome)| {
                let (kernel, change) = (self.campaign.name(mutant.kernel), &mutant.mutation);
                let fate = match outcome {
                    Outcome::Killed(death) => json!({
                        "killed": death.cause.as_str(), "problem": death.problem, "detail": death.detail,
                    }),
                    Outcome::Survived { executed } => json!({ "survived": true, "executed": executed }),
                };
                json!({
                    "variant": kernel, "class": change.class.as_str(), "ordinal": change.ordinal, "line": change.line,
                    "before": change.before, "after": change.after, "place": change.place, "since": change.since, "outcome": fate,
                })
            })
            .collect();
        let unreachable = self.campaign.unreachable;
        json!({ "unreachable": unreachable, "total": row(&self.total()), "classes": classes, "mutants": mutants })
    }
}

/// The table of classes, the kill rate and the survivors.
impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:15}{:>9}", "class", "mutants")?;
        for cause in Cause::ALL {
            write!(f, "{:>9}", cause.as_str())?;
        }
        writeln!(f, "{:>10}", "survivors")?;
        let total = self.total();
        let named = Class::ALL
            .iter()
            .map(|class| (class.as_str(), &self.rows[*class as usize]));
        for (name, row) in named.chain([("all", &total)]) {
            write!(f, "{name:15}{:>9}", row.mutants())?;
            for killed in row.killed {
                write!(f, "{killed:>9}")?;
            }
            writeln!(f, "{:>10}", row.survived)?;
        }
        let (mutants, killed) = (total.mutants(), total.mutants() - total.survived);
        let rate = 100.0 * killed as f64 / mutants.max(1) as f64;
        writeln!(f, "killed: {killed} of {mutants}, {rate:.2} %")?;
        let unreachable = self.campaign.unreachable;
        writeln!(
            f,
            "not mutated: {unreachable} instructions that constants make unreachable"
        )?;
        for explanation in explanations() {
            let survivors = self.survivors();
            let count = survivors
                .filter(|(name, mutation, _)| explanation.describes(name, mutation))
                .count();
            let Explanation {
                kernels,
                class,
                before,
                after,
                reason,
                ..
            } = explanation;
            if count > 0 {
                writeln!(
                    f,
                    "explained: {count} of {kernels}: {class}: {before} -> {after}\n  {reason}"
                )?;
            }
        }
        for (name, mutation, executed) in self.unexplained() {
            let never = if executed { "" } else { " (never executed)" };
            writeln!(f, "survivor: {name}: {mutation}{never}")?;
        }
        Ok(())
    }
}

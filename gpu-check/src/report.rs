//! Micro-tests, run and judged.

use serde::Serialize;

use crate::{
    compare::{Comparison, Relation, compare},
    machine::{Emulated, Machine},
    micro::{Access, Promise, Test},
};

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every bit is the same.
    Identical,
    /// The same but for bits of NaN.
    NanBitsDiffer,
    /// Differs, as the manual allows.
    Allowed,
    /// Nobody knows better.
    Answered,
    /// Differs where the manual does not allow it: a mistake of the emulator, or of our reading.
    Different,
    /// The device or the emulator refused.
    Failed,
    /// The device is older than the instruction.
    Skipped,
}

/// A model of the tensor cores, and how far it is from the device.
#[derive(Clone, Debug, Serialize)]
pub struct ModelFit {
    /// The model.
    pub model: String,
    /// Words that differ; bits of NaN do not count.
    pub differing: usize,
    /// Largest distance.
    pub max_ulp: u32,
}

/// One experiment's sum.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The question.
    pub experiment: String,
    /// The device's first output word.
    pub device: String,
    /// Whether all of its words are the same, as they should be.
    pub uniform: bool,
    /// Each model's first output word.
    pub models: Vec<String>,
}

/// A test's result.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The test.
    pub name: String,
    /// Oldest target.
    pub target: &'static str,
    /// Judgement.
    pub verdict: Verdict,
    /// Threads, each with inputs of its own.
    pub inputs: usize,
    /// Against the first model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// Every model, where the test depends on it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelFit>,
    /// Answers to questions, where the test asks any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Answer>,
    /// All that the device gave, of a test that reads and writes memory by itself, where it is not what the emulator gives.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<String>,
    /// Why it failed, or was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Words of an answer in its line.
const SHOWN: usize = 8;

/// Words of a device that are kept.
const KEPT: usize = 16 << 10;

impl Outcome {
    fn of(test: &Test, verdict: Verdict) -> Self {
        Self {
            name: test.name.clone(),
            target: test.target.name(),
            verdict,
            inputs: test.threads(),
            comparison: None,
            models: Vec::new(),
            answers: Vec::new(),
            words: Vec::new(),
            error: None,
        }
    }

    /// One line for people; nothing for a test of which there is nothing to say.
    pub fn line(&self) -> Option<String> {
        let found = self.comparison.as_ref();
        let differs = found.map_or(String::new(), |c| {
            let mut text = format!("{} of {} words differ", c.differing, c.words);
            if c.nan_bits > 0 {
                text += &format!(", {} of them NaN", c.nan_bits);
            }
            if c.max_ulp > 0 || c.by_ulp[0] > 0 {
                text += &format!(
                    ", at most {} ulp (0, 1, 2, more: {:?})",
                    c.max_ulp, c.by_ulp
                );
            }
            if c.incomparable > 0 {
                text += &format!(", {} not comparable", c.incomparable);
            }
            text
        });
        let word = match self.verdict {
            Verdict::Identical => return None,
            Verdict::Skipped => {
                return Some(format!("skipped    {} (needs {})", self.name, self.target));
            }
            Verdict::Failed => {
                let error = self.error.as_deref().unwrap_or_default();
                return Some(format!("FAILED     {}: {error}", self.name));
            }
            Verdict::Answered => {
                let words = self.words.iter().take(SHOWN).cloned().collect::<Vec<_>>();
                let words = words.join(" ");
                let answer = self.error.as_deref().unwrap_or(&words);
                return Some(format!("answered   {}: {answer}", self.name));
            }
            Verdict::NanBitsDiffer => "NaN bits  ",
            Verdict::Allowed => "allowed   ",
            Verdict::Different => "DIFFERENT ",
        };
        let mut text = format!("{word} {}: {differs}", self.name);
        for model in &self.models {
            text += &format!(
                "\n             {}: {} differ, at most {} ulp",
                model.model, model.differing, model.max_ulp
            );
        }
        let first = found.and_then(|c| c.samples.first());
        if let (Verdict::Different, Some(sample)) = (self.verdict, first) {
            text += &format!(
                "\n             first: thread {}, word {}, input {}: {} there, {} here",
                sample.thread,
                sample.word,
                sample.input.join(" "),
                sample.device,
                sample.emulator
            );
        }
        Some(text)
    }
}

/// Runs a test on a device and on the models, and compares.
pub fn judge(device: &dyn Machine, models: &[Emulated], test: &Test) -> Outcome {
    if !test.target.runs_on(device.capability()) {
        return Outcome::of(test, Verdict::Skipped);
    }
    let failed = |who: String, error: String| Outcome {
        error: Some(format!("{who}: {error}")),
        ..Outcome::of(test, Verdict::Failed)
    };
    let given = match device.run(test) {
        Ok(given) => given,
        Err(error) if test.promise == Promise::Unknown => {
            return Outcome {
                error: Some(error),
                ..Outcome::of(test, Verdict::Answered)
            };
        }
        Err(error) => return failed(device.name(), error),
    };
    let hex = |word: &u32| format!("{word:08x}");
    let kept = |given: &[u32]| given.iter().take(KEPT).map(hex).collect();
    if test.promise == Promise::Unknown {
        return Outcome {
            words: kept(&given),
            ..Outcome::of(test, Verdict::Answered)
        };
    }
    let tried = if test.models {
        models
    } else {
        &models[..models.len().min(1)]
    };
    let mut outputs = Vec::new();
    for model in tried {
        match model.run(test) {
            Ok(output) => outputs.push(output),
            Err(error) => return failed(model.name(), error),
        }
    }
    let comparisons: Vec<_> = outputs
        .iter()
        .map(|output| compare(&test.outs, &test.input, test.ins, &given, output))
        .collect();
    let Some(first) = comparisons.first() else {
        return failed("emulator".into(), "no model".into());
    };
    let verdict = match test.promise {
        _ if first.differing == 0 => Verdict::Identical,
        _ if first.differing == first.nan_bits => Verdict::NanBitsDiffer,
        Promise::Open | Promise::Unknown => Verdict::Allowed,
        Promise::Approximate(0) if first.incomparable == 0 => Verdict::Allowed,
        Promise::Approximate(ulp) if first.incomparable == 0 && first.max_ulp <= ulp => {
            Verdict::Allowed
        }
        _ => Verdict::Different,
    };
    let mut outcome = Outcome::of(test, verdict);
    if test.models {
        let fit = |(model, c): (&Emulated, &Comparison)| ModelFit {
            model: model.name(),
            differing: c.differing - c.nan_bits,
            max_ulp: c.max_ulp,
        };
        outcome.models = tried.iter().zip(&comparisons).map(fit).collect();
    }
    let each = test.experiment_threads * test.outs.len();
    let first_word = |output: &[u32], at: usize| output.get(at * each).map_or(String::new(), hex);
    outcome.answers = (test.experiments.iter().enumerate())
        .map(|(at, experiment)| {
            let words = given.get(at * each..(at + 1) * each).unwrap_or_default();
            Answer {
                experiment: experiment.clone(),
                device: first_word(&given, at),
                uniform: words
                    .iter()
                    .all(|&word| test.outs[0].relate(word, words[0]) == Relation::Same),
                models: outputs
                    .iter()
                    .map(|output| first_word(output, at))
                    .collect(),
            }
        })
        .collect();
    if test.access == Access::Memory && matches!(verdict, Verdict::Different | Verdict::Allowed) {
        outcome.words = kept(&given);
    }
    outcome.comparison = comparisons.into_iter().next();
    outcome
}

//! Cases of every kind of kernel, for whoever runs them all.

use std::{fmt, str::FromStr};

use flashtile::{
    Algorithm, Arch, ArchChoice, Device, DeviceInfo, Error, Operation, ScoreModKind,
    device::emulator::Report,
};

use crate::{
    case::Case,
    data::Tensors,
    judge::judge,
    memory,
    serving::{self, Built, MergeCase, ServingCase},
    shrink::Simplify,
    sweep,
};

/// A case of whatever kind. What its line begins with says which: `serving`, `merge`, or else it is one of dense tensors.
#[derive(Clone, Debug, PartialEq)]
pub enum AnyCase {
    /// Dense tensors.
    Dense(Case),
    /// A problem of inference engines.
    Serving(ServingCase),
    /// Partial results made one.
    Merge(MergeCase),
}

/// What is wrong with a case.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// In words.
    pub reason: String,
    /// What the sanitizer found.
    pub findings: Option<Box<Report>>,
}

/// Every kernel through every class of cases, or the quick sweep: names of kernels with cases of theirs.
pub fn sweep(quick: bool) -> Vec<(&'static str, AnyCase)> {
    let dense = match quick {
        true => sweep::quick(),
        false => sweep::full(),
    };
    let dense = dense.into_iter();
    let mut all: Vec<_> = dense
        .map(|case| (case.variant().name, AnyCase::Dense(case)))
        .collect();
    let serving = serving::sweep::select(quick);
    all.extend(serving.map(|(name, case)| (name, AnyCase::Serving(case))));
    for kernel in flashtile::kernels() {
        if let Operation::Merge(variant) = kernel.operation {
            let cases = MergeCase::of_variant(variant).into_iter();
            all.extend(cases.map(|case| (variant.entry.name, AnyCase::Merge(case))));
        }
    }
    all
}

impl AnyCase {
    /// Bytes that running and judging the case takes, roughly; `None` past 64 bits. To be asked before anything is made of a case that a
    /// user typed.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Self::Dense(case) => case.bytes(),
            Self::Serving(case) => case.bytes(),
            Self::Merge(case) => case.bytes(),
        }
    }

    /// Refuses a case that is no problem, or for which such a device has no kernel.
    ///
    /// # Errors
    /// What planning says.
    pub fn plan(&self, device: &DeviceInfo) -> flashtile::Result<()> {
        match self {
            Self::Dense(case) => case.problem().plan(device).map(|_| ()),
            Self::Serving(case) => Built::of(case).problem.plan(device).map(|_| ()),
            Self::Merge(case) => case.problem().plan(device).map(|_| ()),
        }
    }

    /// The tier of kernels that the case asks for.
    pub fn arch(&self) -> Arch {
        let choice = match self {
            Self::Dense(case) => case.arch,
            Self::Serving(case) => case.arch,
            Self::Merge(_) => ArchChoice::Sm80,
        };
        match choice {
            ArchChoice::Sm90a => Arch::Sm90a,
            ArchChoice::Auto | ArchChoice::Sm80 => Arch::Sm80,
        }
    }

    /// Whether plain Rust on the CPU computes it.
    pub fn has_reference(&self) -> bool {
        match self {
            Self::Dense(_) => true,
            Self::Serving(case) => !case.hostile,
            Self::Merge(_) => false,
        }
    }

    /// Whether the case is one of those that are enough where there is one implementation of all kernels.
    pub fn is_of_reference(&self) -> bool {
        match self {
            Self::Dense(case) => {
                case.algorithm == Algorithm::Fused
                    && (case.softcap.is_some() || case.variant().score_mod == ScoreModKind::None)
            }
            _ => self.has_reference(),
        }
    }

    /// Runs the case on a device, or by plain Rust on the CPU, and judges the result.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn attempt(&self, device: Option<&dyn Device>) -> Result<(), Wrong> {
        let judged = match self {
            Self::Dense(case) => {
                let tensors = Tensors::of(case);
                let results = match device {
                    None => memory::run_on_cpu(case, &tensors),
                    Some(device) => memory::run(device, case, &tensors),
                };
                results.map(|results| judge(case, &tensors, &results))
            }
            Self::Serving(case) => serving::attempt(device, case),
            Self::Merge(case) => match device {
                Some(device) => case.attempt(device),
                None => Ok(Err(format!("{case}\n  nothing merges on the CPU"))),
            },
        };
        match judged {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(Wrong {
                reason,
                findings: None,
            }),
            Err(error) => Err(Wrong {
                reason: format!("{self}\n  {error}"),
                findings: match error {
                    Error::Findings { report, .. } => Some(report),
                    _ => None,
                },
            }),
        }
    }
}

impl fmt::Display for AnyCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense(case) => case.fmt(f),
            Self::Serving(case) => case.fmt(f),
            Self::Merge(case) => case.fmt(f),
        }
    }
}

impl FromStr for AnyCase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_whitespace().next() {
            Some(ServingCase::WORD) => text.parse().map(Self::Serving),
            Some(MergeCase::WORD) => text.parse().map(Self::Merge),
            _ => text.parse().map(Self::Dense),
        }
    }
}

impl Simplify for AnyCase {
    fn simpler(&self) -> Vec<Self> {
        match self {
            Self::Dense(case) => case.simpler().into_iter().map(Self::Dense).collect(),
            Self::Serving(case) => case.simpler().into_iter().map(Self::Serving).collect(),
            Self::Merge(_) => Vec::new(),
        }
    }

    fn has_kernel(&self) -> bool {
        match self {
            Self::Dense(case) => case.has_kernel(),
            Self::Serving(case) => case.has_kernel(),
            Self::Merge(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that computes attention and has no case is one that nobody verifies.
    #[test]
    fn both_sweeps_have_every_kernel() {
        for quick in [false, true] {
            let cases = sweep(quick);
            for kernel in flashtile::kernels() {
                let attends = matches!(
                    kernel.operation,
                    Operation::Attention(_) | Operation::Serving(_) | Operation::Merge(_)
                );
                let has = cases.iter().any(|(name, _)| *name == kernel.entry.name);
                assert_eq!(has, attends, "{}", kernel.entry.name);
            }
        }
    }

    #[test]
    fn a_line_says_of_which_kind_it_is() {
        for line in [
            "fused f16 b1 q37 k70 h2/1 d32/32 seed=7",
            "serving f16 h1x1 d8/8 lengths=1:3 seed=7",
            "merge f16 b1 q1 h1 d8 parts=2 seed=7",
        ] {
            let case: AnyCase = line.parse().unwrap();
            assert_eq!(case.to_string(), line);
            let device = flashtile::EmulatorDevice::sanitizing();
            assert!(case.plan(device.info()).is_ok());
            assert!(case.attempt(Some(&device)).is_ok());
            assert_eq!(case.attempt(None).is_ok(), case.has_reference());
        }
    }
}

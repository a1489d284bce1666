//! Whether anything notices a mutant.

use std::sync::OnceLock;

use flashtile::{
    DeviceInfo, Plan, Variant,
    device::emulator::{Options, tensor_map},
    reference::{ErrorBound, Reference},
};
use flashtile_emulator::{Emulator, FaultKind, Launch, LaunchError, Module, Rule};

use super::{
    place::{Images, Left, Place},
    problems::{Problem, problems},
};
use crate::data::Tensors;

/// What noticed a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The emulator does not accept the text: the mutation was no PTX, which says nothing of the suite.
    Refused,
    /// The emulator: an access, a barrier or an operand that is not allowed, or a deadlock.
    Fault,
    /// The emulator: far more instructions than the kernel needs, without an end or in this problem.
    Hang,
    /// The sanitizer.
    Finding,
    /// Bytes that belong to no output, or to an input, were written.
    Stray,
    /// A result past its bound, or NaN.
    Wrong,
    /// A result with other bits than the kernel's, within its bound.
    Bits,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::Fault,
        Self::Hang,
        Self::Finding,
        Self::Stray,
        Self::Wrong,
        Self::Bits,
    ];

    /// Heading in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Fault => "fault",
            Self::Hang => "hang",
            Self::Finding => "finding",
            Self::Stray => "stray",
            Self::Wrong => "wrong",
            Self::Bits => "bits",
        }
    }
}

/// How a mutant was noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// What noticed it.
    pub cause: Cause,
    /// The problem at which, by its position.
    pub problem: usize,
    /// What was said.
    pub detail: String,
}

/// A problem with its tensors, its plan and what the unchanged kernel makes of it.
struct Prepared {
    problem: Problem,
    tensors: Tensors,
    images: Images,
    plan: Plan,
    expected: Left,
    /// Its warp instructions.
    instructions: u64,
    bound: OnceLock<(Reference, ErrorBound)>,
}

/// An unchanged kernel and its problems.
pub struct Subject {
    /// Which kernel.
    pub variant: &'static Variant,
    /// Its text.
    pub ptx: String,
    problems: Vec<Prepared>,
    /// Warp instructions of its longest problem.
    instructions: u64,
}

/// Instructions of a mutant for each of the unchanged kernel's, before it counts as hanging.
const PATIENCE: u64 = 3;

impl Subject {
    /// Runs the unchanged kernel over its problems.
    ///
    /// # Errors
    /// Whatever is wrong with the kernel.
    pub fn new(variant: &'static Variant, options: &Options) -> Result<Self, String> {
        let ptx = flashtile::ptx(variant).map_err(|error| error.to_string())?;
        let prepared: Result<Vec<_>, _> = problems(variant)
            .into_iter()
            .map(|problem| Prepared::new(variant, problem))
            .collect();
        let mut subject = Self {
            variant,
            ptx,
            problems: prepared?,
            instructions: 0,
        };
        let module = Module::parse(&subject.ptx).map_err(|error| error.to_string())?;
        let unlimited = Options {
            max_instructions: None,
            ..options.clone()
        };
        let mut bench = Bench::with_options(&subject, unlimited)?;
        let mut left = Vec::new();
        for at in 0..subject.problems.len() {
            let found = bench.run(&module, at).map_err(|death| {
                format!(
                    "the unchanged {} on `{}`: {}",
                    variant.name, subject.problems[at].problem.case, death.detail
                )
            })?;
            left.push((found, bench.last));
        }
        let instructions = left.iter().map(|(_, instructions)| *instructions).max();
        for (problem, ((found, inputs_changed), instructions)) in
            subject.problems.iter_mut().zip(left)
        {
            if inputs_changed {
                return Err(format!("the unchanged {} writes its inputs", variant.name));
            }
            problem.expected = found;
            problem.instructions = instructions;
        }
        subject.instructions = instructions.unwrap_or_default();
        Ok(subject)
    }

    /// The problems, as text.
    pub fn problem(&self, at: usize) -> String {
        let problem = &self.problems[at].problem;
        let lse = if problem.lse { "" } else { " (without lse)" };
        format!("{}{lse}", problem.case)
    }
}

impl Prepared {
    fn new(variant: &'static Variant, problem: Problem) -> Result<Self, String> {
        let case = &problem.case;
        let fail = |reason: String| format!("{case}: {reason}");
        // Of several kernels that are wide enough the host picks the narrowest. The others are right too.
        let plan = case
            .problem()
            .lse(problem.lse)
            .plan_variant(&DeviceInfo::emulator(), variant);
        let plan = plan.map_err(|error| fail(error.to_string()))?;
        let tensors = problem.tensors();
        let images = Images::of(&problem, &tensors);
        Ok(Self {
            problem,
            tensors,
            images,
            plan,
            expected: Left::default(),
            instructions: 0,
            bound: OnceLock::new(),
        })
    }

    /// What is wrong with a result that has other bits than the kernel's.
    fn judge(&self, left: &Left) -> (Cause, String) {
        let out = match self.images.tensors[3].values(&left.out) {
            Ok(out) => out,
            Err(at) => {
                return (
                    Cause::Stray,
                    format!("element {at} of out's buffer is no output"),
                );
            }
        };
        if !self.problem.lse && left.lse != self.images.lse {
            return (Cause::Stray, "a log-sum-exp that nobody wanted".into());
        }
        let case = &self.problem.case;
        let (reference, bound) = self.bound.get_or_init(|| {
            (
                crate::oracle(case, &self.tensors),
                crate::bound(case, &self.tensors),
            )
        });
        let lse: Vec<f32> = left
            .lse
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&word| f32::from_le_bytes(word))
            .collect();
        let wanted = if self.problem.lse {
            &reference.lse[..]
        } else {
            &[]
        };
        let found = [
            ("out", largest(&out, &reference.out), bound.max_abs),
            (
                "out's mean square",
                root_mean_square(&out, &reference.out),
                bound.rms,
            ),
            ("lse", largest(&lse, wanted), bound.lse_max_abs),
        ];
        match found.iter().find(|(_, error, bound)| error > bound) {
            Some((what, error, bound)) => (
                Cause::Wrong,
                format!("{what} is off by {error:.3e}, bound {bound:.3e}"),
            ),
            None => (Cause::Bits, "other bits, within the bounds".into()),
        }
    }
}

/// What noticed a mutant whose launch failed.
fn cause(error: &LaunchError) -> Cause {
    let of_rule = |rule: Rule| match rule {
        Rule::InstructionLimit => Cause::Hang,
        Rule::Race
        | Rule::ReadInFlight
        | Rule::OverwriteInFlight
        | Rule::ExitInFlight
        | Rule::InactiveLane
        | Rule::UninitializedStore
        | Rule::UninitializedAddress
        | Rule::UninitializedBranch => Cause::Finding,
        _ => Cause::Fault,
    };
    match error {
        LaunchError::Fault(fault) if matches!(fault.kind, FaultKind::InstructionLimit { .. }) => {
            Cause::Hang
        }
        LaunchError::Fault(_) => Cause::Fault,
        // A launch ends with its first fault: whatever else was found came before.
        LaunchError::Findings(report) => report
            .findings
            .first()
            .map_or(Cause::Finding, |finding| of_rule(finding.rule)),
        _ => Cause::Refused,
    }
}

/// Errors of a result; infinite where one side is NaN or infinite and the other is not the same.
fn errors(result: &[f32], reference: &[f64]) -> impl Iterator<Item = f64> {
    result.iter().zip(reference).map(|(&x, &r)| {
        let x = f64::from(x);
        match () {
            () if x == r || (x.is_nan() && r.is_nan()) => 0.0,
            () if x.is_finite() && r.is_finite() => (x - r).abs(),
            () => f64::INFINITY,
        }
    })
}

fn largest(result: &[f32], reference: &[f64]) -> f64 {
    errors(result, reference).fold(0.0, f64::max)
}

fn root_mean_square(result: &[f32], reference: &[f64]) -> f64 {
    let squares: f64 = errors(result, reference).map(|error| error * error).sum();
    (squares / result.len().max(1) as f64).sqrt()
}

/// A device with a subject's problems in its memory, for one mutant after another.
pub struct Bench<'s> {
    subject: &'s Subject,
    emulator: Emulator,
    places: Vec<Place>,
    /// Warp instructions of the last launch.
    last: u64,
}

impl<'s> Bench<'s> {
    /// A device that runs one block at a time and gives up on mutants that hang.
    ///
    /// # Errors
    /// The device has too little memory.
    pub fn new(subject: &'s Subject, options: &Options) -> Result<Self, String> {
        let limit = Some(PATIENCE * subject.instructions);
        Self::with_options(
            subject,
            Options {
                max_instructions: limit,
                ..options.clone()
            },
        )
    }

    fn with_options(subject: &'s Subject, options: Options) -> Result<Self, String> {
        let emulator = Emulator::new(Options {
            threads: Some(1),
            ..options
        });
        let places: Result<Vec<_>, _> = subject
            .problems
            .iter()
            .map(|problem| Place::of(&emulator, &problem.images))
            .collect();
        let places = places?;
        Ok(Self {
            subject,
            emulator,
            places,
            last: 0,
        })
    }

    /// Runs a text over the problems, in order, until something notices it: the machine or the results.
    pub fn notices(&mut self, ptx: &str) -> Option<Death> {
        self.first(ptx, Self::notices_at)
    }

    /// Runs a text over the problems, in order, until the machine refuses a launch. Nobody looks at results.
    pub fn refuses(&mut self, ptx: &str) -> Option<Death> {
        self.first(ptx, |bench, module, at| bench.run(module, at).err())
    }

    fn first(
        &mut self,
        ptx: &str,
        judge: impl Fn(&mut Self, &Module, usize) -> Option<Death>,
    ) -> Option<Death> {
        let module = match Module::parse(ptx)
            .and_then(|module| module.decode(self.subject.variant.name).map(|()| module))
        {
            Ok(module) => module,
            Err(error) => {
                return Some(Death {
                    cause: Cause::Refused,
                    problem: 0,
                    detail: error.to_string(),
                });
            }
        };
        (0..self.places.len()).find_map(|at| judge(self, &module, at))
    }

    fn notices_at(&mut self, module: &Module, at: usize) -> Option<Death> {
        let (left, inputs_changed) = match self.run(module, at) {
            Ok(found) => found,
            Err(death) => return Some(death),
        };
        let problem = &self.subject.problems[at];
        let (last, meant) = (self.last, problem.instructions);
        let (cause, detail) = match () {
            () if inputs_changed => (Cause::Stray, "an input was written".into()),
            // What is computed a second time for nothing is at least half as much again.
            () if 2 * last > 3 * meant => (
                Cause::Hang,
                format!("{last} warp instructions instead of {meant}"),
            ),
            () if left == problem.expected => return None,
            () => problem.judge(&left),
        };
        Some(Death {
            cause,
            problem: at,
            detail,
        })
    }

    /// What a text leaves in memory, and whether it changed an input.
    fn run(&mut self, module: &Module, at: usize) -> Result<(Left, bool), Death> {
        let (problem, place) = (&self.subject.problems[at], &mut self.places[at]);
        let death = |cause, detail| Death {
            cause,
            problem: at,
            detail,
        };
        let refused = |error: &dyn std::fmt::Display| death(Cause::Refused, error.to_string());
        place
            .prepare(&self.emulator, &problem.images)
            .map_err(|error| refused(&error))?;
        let prepared = problem.plan.prepare_with(&place.pointers, tensor_map);
        let prepared = prepared.map_err(|error| refused(&error))?;
        let config = &prepared.config;
        let launch = Launch {
            grid: config.grid,
            block: config.block,
            cluster: Some([config.cluster, 1, 1]),
            dynamic_shared: config.shared_bytes,
            params: prepared.params.as_bytes(),
        };
        let launched = self
            .emulator
            .launch(module, self.subject.variant.name, &launch);
        let stats = launched.map_err(|error| death(cause(&error), error.to_string()))?;
        self.last = stats.warp_instructions;
        place
            .collect(&self.emulator, &problem.images)
            .map_err(|error| refused(&error))
    }
}

//! Whether anything notices a mutant.

use std::collections::HashMap;

use flashtile::{Operation, device::emulator::Options};
use flashtile_emulator::{Emulator, FaultKind, Launch, LaunchError, Module, Rule};

use super::{
    place::Place,
    work::{Left, Step, Work, works},
};

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

/// A problem, and what the unchanged kernel makes of it.
struct Problem {
    work: Box<dyn Work>,
    expected: Left,
    /// Its warp instructions.
    instructions: u64,
}

/// An unchanged kernel and its problems.
pub struct Subject {
    /// Which kernel.
    pub kernel: Operation,
    /// Its text.
    pub ptx: String,
    problems: Vec<Problem>,
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
    pub fn new(kernel: Operation, options: &Options) -> Result<Self, String> {
        let ptx = flashtile::ptx(kernel.entry()).map_err(|error| error.to_string())?;
        let works = works(&kernel)?.into_iter();
        let mut subject = Self {
            kernel,
            ptx,
            problems: works
                .map(|work| Problem {
                    work,
                    expected: Left::default(),
                    instructions: 0,
                })
                .collect(),
            instructions: 0,
        };
        let name = subject.name();
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
                    "the unchanged {name} on `{}`: {}",
                    subject.problem(at),
                    death.detail
                )
            })?;
            left.push((found, bench.last));
        }
        let instructions = left.iter().map(|(_, instructions)| *instructions).max();
        for (problem, ((found, inputs_changed), instructions)) in
            subject.problems.iter_mut().zip(left)
        {
            if inputs_changed {
                return Err(format!("the unchanged {name} writes its inputs"));
            }
            problem.expected = found;
            problem.instructions = instructions;
        }
        subject.instructions = instructions.unwrap_or_default();
        Ok(subject)
    }

    /// The kernel's name.
    pub fn name(&self) -> &'static str {
        self.kernel.entry().name
    }

    /// Positions of its problems.
    pub fn problems(&self) -> std::ops::Range<usize> {
        0..self.problems.len()
    }

    /// A problem, as text.
    pub fn problem(&self, at: usize) -> String {
        self.problems[at].work.text()
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

/// A device with a subject's problems in its memory, for one mutant after another.
pub struct Bench<'s> {
    subject: &'s Subject,
    emulator: Emulator,
    places: Vec<(Place, Vec<Step>)>,
    /// Other kernels that problems need, as they are.
    others: HashMap<&'static str, Module>,
    /// Warp instructions of the last problem.
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
        let (mut places, mut others) = (Vec::new(), HashMap::new());
        for Problem { work, .. } in &subject.problems {
            let place = Place::of(&emulator, work.images())?;
            let steps = work.launches(&place.addresses)?;
            for kernel in steps.iter().map(|step| step.kernel) {
                if kernel.name != subject.name() && !others.contains_key(kernel.name) {
                    let ptx = flashtile::ptx(kernel).map_err(|error| error.to_string())?;
                    let module = Module::parse(&ptx).map_err(|error| error.to_string())?;
                    others.insert(kernel.name, module);
                }
            }
            places.push((place, steps));
        }
        Ok(Self {
            subject,
            emulator,
            places,
            others,
            last: 0,
        })
    }

    /// Runs a text over the problems, in order, until something notices it: the machine or the results.
    pub fn notices(&mut self, ptx: &str) -> Option<Death> {
        let all = self.subject.problems();
        self.notices_on(ptx, all)
    }

    /// So, over some problems.
    pub fn notices_on(
        &mut self,
        ptx: &str,
        problems: impl IntoIterator<Item = usize>,
    ) -> Option<Death> {
        let judge = |bench: &mut Self, module: &_, at| {
            let noticed = bench.notices_at(module, at);
            noticed.unwrap_or_else(Some)
        };
        self.first(ptx, problems, judge)
    }

    /// Runs a text over some problems, in order, until the machine refuses a launch. Nobody looks at results.
    pub fn refuses_on(
        &mut self,
        ptx: &str,
        problems: impl IntoIterator<Item = usize>,
    ) -> Option<Death> {
        self.first(ptx, problems, |bench, module, at| {
            bench.run(module, at).err()
        })
    }

    /// So, over all of them.
    pub fn refuses(&mut self, ptx: &str) -> Option<Death> {
        let all = self.subject.problems();
        self.refuses_on(ptx, all)
    }

    /// Runs a text over some problems, in order, until the machine refuses a launch; if it refuses none, results count.
    pub fn refuses_or_notices_on(
        &mut self,
        ptx: &str,
        problems: impl IntoIterator<Item = usize>,
    ) -> Option<Death> {
        let mut noticed = None;
        let refused = self.first(ptx, problems, |bench, module, at| {
            let death = bench.notices_at(module, at);
            death.map(|death| noticed = noticed.take().or(death)).err()
        });
        refused.or(noticed)
    }

    /// The problems in which a text is refused: with a `trap` before an instruction, those that execute it.
    pub fn refused(&mut self, ptx: &str) -> Vec<usize> {
        let mut refused = Vec::new();
        let all = self.subject.problems();
        let error = self.first(ptx, all, |bench, module, at| {
            refused.extend(bench.run(module, at).is_err().then_some(at));
            None
        });
        // A text that is none is refused everywhere.
        error.map_or(refused, |_| self.subject.problems().collect())
    }

    fn first(
        &mut self,
        ptx: &str,
        problems: impl IntoIterator<Item = usize>,
        mut judge: impl FnMut(&mut Self, &Module, usize) -> Option<Death>,
    ) -> Option<Death> {
        let module = match Module::parse(ptx)
            .and_then(|module| module.decode(self.subject.name()).map(|()| module))
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
        let mut problems = problems.into_iter();
        problems.find_map(|at| judge(self, &module, at))
    }

    /// What is wrong with what a text leaves. An error is the machine's.
    fn notices_at(&mut self, module: &Module, at: usize) -> Result<Option<Death>, Death> {
        let (left, inputs_changed) = self.run(module, at)?;
        let problem = &self.subject.problems[at];
        let (last, meant) = (self.last, problem.instructions);
        let noticed = match () {
            () if inputs_changed => Some((Cause::Stray, "an input was written".into())),
            // What is computed a second time for nothing is at least half as much again.
            () if 2 * last > 3 * meant => Some((
                Cause::Hang,
                format!("{last} warp instructions instead of {meant}"),
            )),
            () if left == problem.expected => None,
            () => problem.work.judge(&left),
        };
        Ok(noticed.map(|(cause, detail)| Death {
            cause,
            problem: at,
            detail,
        }))
    }

    /// What a text leaves in memory, and whether it changed an input.
    fn run(&mut self, module: &Module, at: usize) -> Result<(Left, bool), Death> {
        let images = self.subject.problems[at].work.images();
        let (place, steps) = &mut self.places[at];
        let death = |cause, detail| Death {
            cause,
            problem: at,
            detail,
        };
        let refused = |error: &dyn std::fmt::Display| death(Cause::Refused, error.to_string());
        place
            .prepare(&self.emulator, images)
            .map_err(|error| refused(&error))?;
        self.last = 0;
        for step in steps {
            let config = &step.config;
            let launch = Launch {
                grid: config.grid,
                block: config.block,
                cluster: Some([config.cluster, 1, 1]),
                dynamic_shared: config.shared_bytes,
                params: &step.params,
            };
            let module = self.others.get(step.kernel.name).unwrap_or(module);
            let launched = self.emulator.launch(module, step.kernel.name, &launch);
            let stats = launched.map_err(|error| death(cause(&error), error.to_string()))?;
            self.last += stats.warp_instructions;
        }
        place
            .collect(&self.emulator, images)
            .map_err(|error| refused(&error))
    }
}

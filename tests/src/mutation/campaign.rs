//! All mutants of some kernels, judged on all of the host's cores.

use std::sync::{
    Mutex, OnceLock, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use flashtile::{Operation, device::emulator::Options};
use flashtile_emulator::{AsyncTiming, Schedule};

use super::{
    judge::{Bench, Death, Subject},
    mutants::{Mutation, mutants},
};
use crate::data::Random;

/// One mutant of one kernel.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// The kernel's position among those of the campaign.
    pub kernel: usize,
    /// What is changed.
    pub mutation: Mutation,
}

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Something noticed it.
    Killed(Death),
    /// Nothing did.
    Survived {
        /// The problems that execute the instruction.
        executed: Vec<usize>,
    },
}

/// Kernels, their mutants, and how they are run.
pub struct Campaign {
    /// The kernels.
    pub kernels: Vec<Operation>,
    /// The mutants, those of one kernel next to each other.
    pub mutants: Vec<Mutant>,
    /// Instructions of the kernels that are never reached, whatever the problem.
    pub unreachable: usize,
    /// How the emulator is to run them.
    pub options: Options,
    subjects: Vec<OnceLock<Result<Subject, String>>>,
}

/// Mutants that a worker takes at a time.
const CHUNK: usize = 16;

/// Problems that every mutant is tried on, before it is found out which ones execute what is mutated.
const EAGER: usize = 16;

impl Campaign {
    /// All mutants of these kernels.
    ///
    /// # Errors
    /// A kernel's text that cannot be read.
    pub fn new(kernels: Vec<Operation>, options: Options) -> Result<Self, String> {
        let (mut all, mut unreachable) = (Vec::new(), 0);
        for (kernel, operation) in kernels.iter().enumerate() {
            let entry = operation.entry();
            let ptx = flashtile::ptx(entry).map_err(|error| error.to_string())?;
            let found = mutants(&ptx).map_err(|error| format!("{}: {error}", entry.name))?;
            unreachable += found.unreachable;
            let mutants = found.mutations.into_iter();
            all.extend(mutants.map(|mutation| Mutant { kernel, mutation }));
        }
        let subjects = kernels.iter().map(|_| OnceLock::new()).collect();
        Ok(Self {
            kernels,
            mutants: all,
            unreachable,
            options,
            subjects,
        })
    }

    /// Keeps the mutants that `keep` picks.
    #[must_use]
    pub fn filter(mut self, keep: impl Fn(&Mutant) -> bool) -> Self {
        self.mutants.retain(keep);
        self
    }

    /// Keeps at most so many mutants, drawn from a seed.
    #[must_use]
    pub fn sample(mut self, count: usize, seed: u64) -> Self {
        let mut kept = Random::new(seed).permutation(self.mutants.len());
        kept.truncate(count);
        kept.sort_unstable();
        self.mutants = kept
            .into_iter()
            .map(|at| self.mutants[at].clone())
            .collect();
        self
    }

    /// Judges every mutant, on so many threads, and tells `progress` of each.
    ///
    /// # Errors
    /// A kernel that is wrong as it is.
    pub fn run(
        &self,
        threads: usize,
        progress: impl Fn(&Outcome) + Sync,
    ) -> Result<Vec<Outcome>, String> {
        let outcomes = Mutex::new(vec![None; self.mutants.len()]);
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), String> {
            let mut benches = None;
            loop {
                let begin = next.fetch_add(CHUNK, Relaxed);
                let chunk = self.mutants.iter().enumerate().skip(begin).take(CHUNK);
                if chunk.len() == 0 {
                    return Ok(());
                }
                for (at, mutant) in chunk {
                    let outcome = self.judge(mutant, &mut benches)?;
                    progress(&outcome);
                    let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                    outcomes[at] = Some(outcome);
                }
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| match worker.join() {
                    Ok(done) => done,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
        })?;
        let outcomes = outcomes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        outcomes
            .into_iter()
            .map(|outcome| outcome.ok_or_else(|| "a mutant was left out".into()))
            .collect()
    }

    /// The unchanged kernel, prepared once.
    fn subject(&self, kernel: usize) -> Result<&Subject, String> {
        let subject =
            self.subjects[kernel].get_or_init(|| Subject::new(self.kernels[kernel], &self.options));
        subject.as_ref().map_err(Clone::clone)
    }

    /// A kernel's name.
    pub fn name(&self, kernel: usize) -> &'static str {
        self.kernels[kernel].entry().name
    }

    /// The text of a kernel's problem.
    pub fn problem(&self, kernel: usize, at: usize) -> String {
        self.subject(kernel)
            .map_or_else(|error| error, |subject| subject.problem(at))
    }

    /// Judges one mutant. `benches` are the worker's, of whatever kernel it had before.
    fn judge<'c>(
        &'c self,
        mutant: &Mutant,
        benches: &mut Option<Benches<'c>>,
    ) -> Result<Outcome, String> {
        let benches = match benches {
            Some(benches) if benches.kernel == mutant.kernel => benches,
            other => other.insert(Benches::new(self, mutant.kernel)?),
        };
        let mutation = &mutant.mutation;
        let text = mutation.apply(&benches.subject.ptx);
        // What synchronises must be missed by the sanitizer itself, even where a result is wrong too. For everything
        // else the results come first, since they cost less.
        let synchronises = mutation.synchronises() && self.options.sanitize;
        let eager = 0..EAGER.min(benches.subject.problems().len());
        let death = match synchronises {
            true => benches.sanitizer()?.refuses_on(&text, eager.clone()),
            false => benches.late.notices_on(&text, eager.clone()),
        };
        if let Some(death) = death {
            return Ok(Outcome::Killed(death));
        }
        // To all others the instruction makes no difference.
        let executing = benches.late.refused(&mutation.trap(&benches.subject.ptx));
        let rest = executing.iter().copied().filter(|at| !eager.contains(at));
        let death = match synchronises {
            true => benches
                .sanitizer()?
                .refuses_or_notices_on(&text, executing.iter().copied()),
            false => benches.late.notices_on(&text, rest),
        };
        // When copies land may decide what is executed.
        let death = match death {
            None => benches.early()?.notices(&text),
            found => found,
        };
        // So may the order in which warps run: a producer that is behind its consumers never waits for them.
        let death = match death {
            None if synchronises => benches.unordered()?.refuses(&text),
            found => found,
        };
        let death = match death {
            None if self.options.sanitize && !synchronises => benches
                .sanitizer()?
                .refuses_on(&text, executing.iter().copied()),
            found => found,
        };
        Ok(match death {
            Some(death) => Outcome::Killed(death),
            None => Outcome::Survived {
                executed: executing,
            },
        })
    }
}

/// A worker's devices, with one kernel's problems in their memory.
struct Benches<'c> {
    kernel: usize,
    subject: &'c Subject,
    options: &'c Options,
    /// Asynchronous copies land as late as they may.
    late: Bench<'c>,
    /// They land at once. Few mutants need it.
    early: Option<Bench<'c>>,
    /// As the options ask for: with the sanitizer, whose timing is the late one.
    sanitizer: Option<Bench<'c>>,
    /// So, and warps take turns in another order, after few instructions each.
    unordered: Option<Bench<'c>>,
}

impl<'c> Benches<'c> {
    fn new(campaign: &'c Campaign, kernel: usize) -> Result<Self, String> {
        let (subject, options) = (campaign.subject(kernel)?, &campaign.options);
        let plain = Options {
            sanitize: false,
            ..options.clone()
        };
        let late = Bench::new(subject, &plain)?;
        Ok(Self {
            kernel,
            subject,
            options,
            late,
            early: None,
            sanitizer: None,
            unordered: None,
        })
    }

    fn sanitizer(&mut self) -> Result<&mut Bench<'c>, String> {
        Ok(match &mut self.sanitizer {
            Some(bench) => bench,
            none => none.insert(Bench::new(self.subject, self.options)?),
        })
    }

    fn unordered(&mut self) -> Result<&mut Bench<'c>, String> {
        Ok(match &mut self.unordered {
            Some(bench) => bench,
            none => {
                let options = Options {
                    schedule: Schedule::Seeded { seed: 1, share: 40 },
                    ..self.options.clone()
                };
                none.insert(Bench::new(self.subject, &options)?)
            }
        })
    }

    fn early(&mut self) -> Result<&mut Bench<'c>, String> {
        Ok(match &mut self.early {
            Some(bench) => bench,
            none => {
                let options = Options {
                    async_copies: AsyncTiming::Early,
                    sanitize: false,
                    ..self.options.clone()
                };
                none.insert(Bench::new(self.subject, &options)?)
            }
        })
    }
}

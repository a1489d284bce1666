//! Do the tests of caches notice what is taken away from the kernels? Each mutant of each kernel, against the generated cases.

use flashtile::{
    Device, EmulatorDevice,
    cache::{CacheVariant, CacheWork, cache_variants},
    device::emulator::Options,
};
use flashtile_tests::{
    cache::{BlocksCase, Prepared, blocks_case, case},
    generate::runner,
    mutation::every_mutant_is_noticed,
};
use proptest::{strategy::Strategy, strategy::ValueTree, test_runner::TestRunner};

/// Cases of each kind that a mutant must pass unnoticed to survive.
const CASES: usize = 400;

/// Most instructions of a launch: many times what any case takes. A mutant may loop for ever.
const PATIENCE: u64 = 1 << 20;

enum Problem {
    Rows(Box<Prepared>),
    Blocks(BlocksCase),
}

/// The cases for a kernel.
fn problems(variant: &CacheVariant) -> Vec<Problem> {
    let mut runner = runner(1, 1020, 0);
    let rows = |runner: &mut TestRunner, hostile, rotary| -> Vec<Problem> {
        let strategy = case(hostile, rotary);
        let mut next = || strategy.new_tree(runner).unwrap().current();
        let cases = (0..CASES).map(|_| next());
        let of_type = cases.filter(|case| {
            let narrow = variant.kv.is_some();
            variant.dtype.is_none_or(|it| it == case.dtype) && case.narrow.is_some() == narrow
        });
        of_type
            .map(|case| Problem::Rows(Box::new(Prepared::new(case))))
            .collect()
    };
    match variant.work {
        CacheWork::Append => {
            let mut all = rows(&mut runner, true, true);
            all.extend(rows(&mut runner, false, true));
            all.extend(rows(&mut runner, true, false));
            all
        }
        CacheWork::Gather => {
            let mut all = rows(&mut runner, true, false);
            all.extend(rows(&mut runner, false, false));
            all
        }
        CacheWork::CopyBlocks => {
            let strategy = blocks_case();
            let mut next = || strategy.new_tree(&mut runner).unwrap().current();
            (0..2 * CASES).map(|_| Problem::Blocks(next())).collect()
        }
    }
}

/// Whether one of the problems notices.
fn notices(variant: &'static CacheVariant, ptx: &str, problems: &[Problem]) -> bool {
    let device = EmulatorDevice::with_options(Options {
        sanitize: true,
        max_instructions: Some(PATIENCE),
        ..Options::default()
    });
    // SAFETY: the emulator checks every access.
    unsafe { device.override_ptx(variant, ptx) }.unwrap();
    problems.iter().any(|problem| {
        let outcome = match (problem, variant.work) {
            (Problem::Blocks(case), _) => case.check(&device),
            (Problem::Rows(case), CacheWork::Gather) => case.gathers(&device),
            (Problem::Rows(case), _) => case.appends(&device),
        };
        outcome.is_err()
    })
}

/// Why mutants survive that compute the same: what their places contain, digits left out. Each explains one mutant of a kernel.
const EXPLAINED: [(&str, &str); 2] = [
    (
        "setp.lt.u %p, %rd, ; mov.b %r, ; [] mov.b {tmp, %r}, %rd; ",
        "the search for a token's sequence begins although there is one sequence alone: it looks at where that starts, and stays with it",
    ),
    (
        "setp.lt.u %p, %r, ; [] add.s %rd, %rd, ; ld.global.u %rs, [%rd]; ",
        "of a unit with one pair, the element behind the first one's is read: it exists, being a second one, and is not used",
    ),
];

fn campaign(work: CacheWork) {
    for variant in cache_variants().iter().filter(|it| it.work == work) {
        let problems = problems(variant);
        every_mutant_is_noticed(variant, &EXPLAINED, |ptx| notices(variant, ptx, &problems));
    }
}

#[test]
fn append() {
    campaign(CacheWork::Append);
}

#[test]
fn gather() {
    campaign(CacheWork::Gather);
}

#[test]
fn copy_blocks() {
    campaign(CacheWork::CopyBlocks);
}

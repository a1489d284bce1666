//! Do the tests of checked mode notice what is taken away from the kernel? Each mutant of it, against the generated cases.

use flashtile::{
    Device, EmulatorDevice,
    checked::CHECK,
    device::emulator::{Options, Schedule},
};
use flashtile_tests::{
    cache,
    checked::{Problem, first_of_replays},
    generate::runner,
    mutation::every_mutant_is_noticed,
    serving::{Axes, case},
};
use proptest::{strategy::Strategy, strategy::ValueTree};

/// Cases of each kind that a mutant must pass unnoticed to survive.
const CASES: usize = 300;

/// Most instructions of a launch: many times what any case takes. A mutant may loop for ever.
const PATIENCE: u64 = 1 << 20;

fn problems() -> Vec<Problem> {
    let mut runner = runner(1, 1040, 0);
    let mut all = Vec::new();
    let lengths = case(Axes::SMALL);
    let rows = cache::case(true, false);
    for _ in 0..CASES {
        let case = lengths.new_tree(&mut runner).unwrap().current();
        all.push(Problem::lengths(&case));
        let case = rows.new_tree(&mut runner).unwrap().current();
        all.push(Problem::rows(&case));
    }
    all.extend(Problem::long_and_wrong());
    all
}

/// Orders of warps: a block's warps must wait for each other, which shows only if some are far ahead.
const SCHEDULES: [Schedule; 5] = [
    Schedule::InOrder,
    Schedule::Seeded {
        seed: 1,
        share: 400,
    },
    Schedule::Seeded {
        seed: 2,
        share: 400,
    },
    Schedule::Seeded {
        seed: 3,
        share: 400,
    },
    Schedule::Seeded { seed: 4, share: 20 },
];

/// Whether one of the problems notices, or replays do.
fn notices(ptx: &str, problems: &[Problem]) -> bool {
    SCHEDULES.into_iter().any(|schedule| {
        let device = EmulatorDevice::with_options(Options {
            sanitize: true,
            max_instructions: Some(PATIENCE),
            schedule,
            ..Options::default()
        });
        // SAFETY: the emulator checks every access.
        unsafe { device.override_ptx(&CHECK, ptx) }.unwrap();
        let disagrees = |problem: &Problem| {
            let some = match problem {
                Problem::Lengths(problem, _) => {
                    let batch = problem.batch as i32;
                    vec![None, Some(-1), Some(0), Some(batch), Some(batch + 1)]
                }
                Problem::Rows(..) => vec![None],
            };
            some.into_iter()
                .any(|n| problem.agrees(&device, n).is_err())
        };
        first_of_replays(&device).is_err() || problems.iter().any(disagrees)
    })
}

/// Why mutants survive that compute the same: what their places contain, digits left out. Each explains one mutant.
const EXPLAINED: [(&str, &str); 3] = [
    (
        "setp.eq.b %p, %r, ; [] bra.uni $L__BB_; ld.param.b %r, [check_metadata_sm_param_+]; ",
        "all threads look at a sequence's lengths, not one alone: they find the same",
    ),
    (
        "setp.eq.b %p, %r, ; [] bra.uni $L__BB_; ld.param.b %r, [check_metadata_sm_param_+]; ",
        "all threads but that one do",
    ),
    (
        "setp.ne.b %p, %rd, ; [] bra.uni $L__BB_; red.relaxed.gpu.global.max.u [%rd], %rd; bar.sync ; ",
        "a thread that has found nothing says so: nothing is the least there is",
    ),
];

#[test]
fn check() {
    let problems = problems();
    every_mutant_is_noticed(&CHECK, &EXPLAINED, |ptx| notices(ptx, &problems));
}

//! A suite is only as good as what it rejects: kernels with one instruction gone, or weaker.
//!
//! Here are all mutants of the smallest kernel of each algorithm, and a sample of the others'. All of them:
//! `cargo run --release -p flashtile-tests --bin mutate`.

use flashtile::device::emulator::Options;
use flashtile_emulator::AsyncTiming;
use flashtile_tests::mutation::{
    campaign::{Campaign, Outcome},
    explained,
    judge::{Bench, Subject},
    kernels,
    mutants::Class,
    report::Report,
};

const SMALLEST: [&str; 3] = [
    "fused_f16_d32_sm80",
    "two_pass_f16_d32_sm80",
    "three_pass_f16_d32_sm80",
];

/// What the names of kernels of inference engines begin with.
const SERVING: [&str; 4] = ["serving_", "decode_", "mla_", "merge_"];

/// Mutants of the samples of each tier, and what they are drawn from.
const SAMPLES: [(&str, usize, u64); 2] = [("_sm80", 300, 1), ("16_d128_sm90a", 200, 1)];

fn sanitizing() -> Options {
    Options {
        sanitize: true,
        ..Options::default()
    }
}

fn campaign(pick: impl Fn(&str) -> bool) -> Campaign {
    let picked = kernels().filter(|kernel| pick(kernel.entry().name));
    Campaign::new(picked.collect(), sanitizing()).unwrap()
}

/// Requires that every mutant is noticed, or is known to be as good as the kernel.
fn check(campaign: &Campaign) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let outcomes = campaign.run(threads, |_| {}).unwrap();
    let report = Report::new(campaign, &outcomes);
    println!("{report}");
    let wrong = explained::wrong(campaign, &outcomes, false);
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(report.unexplained().count(), 0, "{report}");
}

#[test]
fn every_mutant_of_the_smallest_kernels_is_noticed() {
    let campaign = campaign(|name| SMALLEST.contains(&name));
    for class in Class::ALL {
        let count = campaign
            .mutants
            .iter()
            .filter(|m| m.mutation.class == class)
            .count();
        let only_hopper = [
            Class::Fence,
            Class::ClusterBarrier,
            Class::Coordinate,
            Class::Multicast,
            Class::MbarrierInit,
            Class::MbarrierWait,
            Class::MbarrierArrive,
            Class::ExpectBytes,
            Class::Atomic,
            Class::Registers,
            Class::Mask,
        ];
        assert_eq!(count == 0, only_hopper.contains(&class), "{class}");
    }
    check(&campaign);
}

#[test]
fn a_sample_of_all_mutants_is_noticed() {
    for (kernels, count, seed) in SAMPLES {
        let dense = |name: &str| !SERVING.iter().any(|kind| name.starts_with(kind));
        check(&campaign(|name| dense(name) && name.ends_with(kernels)).sample(count, seed));
    }
}

/// What orders threads and copies, in a kernel of inference engines of each kind.
#[test]
fn synchronisation_of_serving_kernels_is_noticed() {
    for name in [
        "serving_bf16_d64_sm80",
        "decode_bf16_e4m3_d64_sm80",
        "mla_bf16_m16_sm80",
    ] {
        let all = campaign(|it| it == name);
        let some = all.filter(|mutant| mutant.mutation.class.synchronises());
        assert!(!some.mutants.is_empty());
        check(&some);
    }
    check(&campaign(|name| name == "merge_bf16_sm80"));
}

/// Of the sm_90a tier, a sample of those that are to be noticed: what survives takes longest to judge.
#[test]
fn a_sample_of_a_serving_kernel_on_hopper_is_noticed() {
    let name = "serving_bf16_d64_sm90a";
    let all = campaign(|it| it == name);
    let some = all
        .filter(|mutant| explained::explanation(name, &mutant.mutation).is_none())
        .sample(60, 1);
    assert!(!some.mutants.is_empty());
    check(&some);
}

/// The judge's own control: it must let the unchanged text pass, or all of its verdicts say nothing.
#[test]
fn the_unchanged_kernels_are_not_noticed() {
    for name in SMALLEST {
        let kernel = kernels().find(|kernel| kernel.entry().name == name);
        let subject = Subject::new(kernel.unwrap(), &sanitizing()).unwrap();
        let early = Options {
            async_copies: AsyncTiming::Early,
            ..Options::default()
        };
        for options in [Options::default(), early, sanitizing()] {
            let mut bench = Bench::new(&subject, &options).unwrap();
            assert_eq!(bench.notices(&subject.ptx), None, "{name}");
        }
    }
}

/// The instruction of a mutant that dies is executed, so a `trap` in its place is noticed too.
#[test]
fn a_trap_shows_what_is_executed() {
    let campaign = campaign(|name| name == SMALLEST[0]).sample(20, 2);
    let subject = Subject::new(campaign.kernels[0], &campaign.options).unwrap();
    let outcomes = campaign.run(1, |_| {}).unwrap();
    let mut bench = Bench::new(&subject, &campaign.options).unwrap();
    for (mutant, outcome) in campaign.mutants.iter().zip(outcomes) {
        if matches!(outcome, Outcome::Killed(_)) {
            let death = bench.notices(&mutant.mutation.trap(&subject.ptx));
            assert!(
                death.is_some_and(|death| death.detail.contains("trap")),
                "{}",
                mutant.mutation
            );
        }
    }
}

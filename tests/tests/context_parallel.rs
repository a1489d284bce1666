//! Attention over several ranks, each an emulator of its own with its sanitizer on.

use std::{cell::RefCell, collections::BTreeMap};

use flashtile::{
    CausalAlignment, DType, DeviceInfo, Outputs, Problem, Shape, Stream,
    parallel::{Circulation, ContextParallel, Sharding, Shards, Streams},
};
use flashtile_tests::{
    assert_near, assert_same_bits,
    ranks::{Deferred, Devices, First, ParallelCase, Split, keys_case, lend, parallel_case, ranks},
    serving::{Built, bound, for_all},
};

const BOTH: [Circulation; 2] = [Circulation::Ring, Circulation::AllGather];

/// Runs all ranks, and puts their results together.
fn run(
    case: &ParallelCase,
    built: &Built,
    circulation: Circulation,
    devices: &Devices,
) -> Result<Outputs, String> {
    let results = ranks(devices, |_, device, exchange| {
        let streams = Streams::one(Stream::DEFAULT);
        case.run_context(built, circulation, device, &exchange, streams)
    });
    whole(case, built, results)
}

fn whole(
    case: &ParallelCase,
    built: &Built,
    results: Vec<flashtile::Result<Outputs>>,
) -> Result<Outputs, String> {
    let results: Result<Vec<_>, _> = results.into_iter().collect();
    let results = results.map_err(|error| format!("{case:?}\n  {:?}\n  {error}", case.shards()))?;
    Ok(case.assemble(built, &results))
}

/// Requires equal bits of outputs and log-sum-exps.
fn same(what: &str, a: &Outputs, b: &Outputs) -> Result<(), String> {
    if let Some(at) = a.out.iter().zip(&b.out).position(|(x, y)| x != y) {
        return Err(format!("{what}: byte {at} of out differs"));
    }
    let lse = |outputs: &Outputs| outputs.lse.clone().unwrap_or_default();
    assert_same_bits(what, &lse(a), &lse(b))
}

/// Whatever is split how: the result is the whole's, around a ring and gathered.
#[test]
fn split_queries_and_keys() {
    for_all(32, parallel_case(5), |case| {
        let Some(devices) = lend(case.world) else {
            return Ok(());
        };
        let built = Built::of(&case.whole);
        let mut results = Vec::new();
        for circulation in BOTH {
            let gathered = circulation == Circulation::AllGather;
            if gathered && case.splits[1] == Split::Striped && case.world > 1 {
                continue;
            }
            let found = run(case, &built, circulation, &devices)?;
            case.judge(&built, &found)
                .map_err(|reason| format!("{circulation:?}: {reason}"))?;
            results.push(found);
        }
        if let [ring, gathered] = &results[..] {
            let limit = bound(&case.whole, &built);
            let lse = |outputs: &Outputs| outputs.lse.clone().unwrap_or_default();
            let what = format!("{case:?}: gathered");
            assert_near(&what, &lse(ring), &lse(gathered), 2.0 * limit.lse_max_abs)?;
        }
        Ok(())
    });
}

/// Every rank has the same bits, and they are the whole's result.
#[test]
fn keys_alone_are_split() {
    for_all(24, parallel_case(5), |case| {
        let mut case = case.clone();
        // The queries are not split.
        if case.splits[1] == Split::Striped
            && (case.whole.causal.is_some() || case.whole.window != Default::default())
        {
            let [queries, _] = case.whole.lengths[0];
            case.whole
                .lengths
                .iter_mut()
                .for_each(|it| it[0] = queries.min(1));
        }
        let Some(devices) = lend(case.world) else {
            return Ok(());
        };
        let built = Built::of(&case.whole);
        let results = ranks(&devices, |_, device, exchange| {
            case.run_keys(&built, device, &exchange)
        });
        let results: Result<Vec<_>, _> = results.into_iter().collect();
        let results = results.map_err(|error| format!("{case:?}\n  {error}"))?;
        for (rank, other) in results.iter().enumerate() {
            same(&format!("{case:?}: rank {rank}"), &results[0], other)?;
        }
        let one = ParallelCase {
            world: 1,
            splits: [Split::Contiguous; 2],
            ..case.clone()
        };
        let found = one.assemble(&built, &results[..1]);
        case.judge(&built, &found)
    });
}

/// The same over caches: lengths of their own, pages, sinks, 8-bit keys.
#[test]
fn caches_are_split() {
    for_all(24, keys_case(5), |case| {
        let Some(devices) = lend(case.world) else {
            return Ok(());
        };
        let built = Built::of(&case.whole);
        let results = ranks(&devices, |_, device, exchange| {
            case.run(&built, device, &exchange)
        });
        let results: Result<Vec<_>, _> = results.into_iter().collect();
        let results = results.map_err(|error| format!("{case:?}\n  {error}"))?;
        for (rank, other) in results.iter().enumerate() {
            same(&format!("{case:?}: rank {rank}"), &results[0], other)?;
        }
        let untouched = built.check_untouched(&results[0]);
        untouched.map_err(|what| format!("{case:?}: {what} was written, which is no query's"))?;
        case.judge(&built, &results[0])
    });
}

/// Streams that run as late as they may, one or the other, and several launches in a row.
#[test]
fn streams_wait_for_each_other() {
    for_all(10, parallel_case(4), |case| {
        let Some(devices) = lend(case.world) else {
            return Ok(());
        };
        let built = Built::of(&case.whole);
        for circulation in BOTH {
            let gathered = circulation == Circulation::AllGather;
            if gathered && case.splits[1] == Split::Striped && case.world > 1 {
                continue;
            }
            let expected = run(case, &built, circulation, &devices)?;
            for first in [First::Compute, First::Exchange] {
                let results = ranks(&devices, |_, device, exchange| {
                    let rank = Deferred::new(device, exchange, first);
                    let [compute, exchange] = Deferred::streams();
                    let streams = Streams { compute, exchange };
                    case.run_context(&built, circulation, &rank, &rank, streams)
                });
                let found = whole(case, &built, results)?;
                same(
                    &format!("{case:?}: {circulation:?} {first:?}"),
                    &found,
                    &expected,
                )?;
            }
        }
        Ok(())
    });
}

/// Which rank has the queries changes no bit, as long as the same ranks have the same keys; nor does a second run.
#[test]
fn who_has_the_queries_does_not_matter() {
    for_all(8, parallel_case(4), |case| {
        let Some(devices) = lend(case.world) else {
            return Ok(());
        };
        let case = ParallelCase {
            splits: [Split::Contiguous, Split::Zigzag],
            ..case.clone()
        };
        let built = Built::of(&case.whole);
        let [queries, _] = case.whole.lengths_of(0);
        let mut results = Vec::new();
        // Each rank in turn has all of them, the first twice.
        for holder in (0..case.world).chain([0]) {
            let tokens: Vec<_> = (0..case.world)
                .map(|rank| if rank == holder { queries } else { 0 })
                .collect();
            let shards = Shards::contiguous(&tokens).map_err(|error| error.to_string())?;
            let found = ranks(&devices, |_, device, exchange| {
                let streams = Streams::one(Stream::DEFAULT);
                let [_, keys] = case.shards();
                let shards = [shards.clone(), keys];
                case.run_shards(
                    &built,
                    shards,
                    Circulation::Ring,
                    device,
                    &exchange,
                    streams,
                )
            });
            let found: flashtile::Result<Vec<_>> = found.into_iter().collect();
            let found = found.map_err(|error| format!("{case:?}\n  {error}"))?;
            results.push(found[holder].clone());
        }
        for other in &results[1..] {
            same(&format!("{case:?}: another rank"), &results[0], other)?;
        }
        Ok(())
    });
}

/// What the generated cases are worth: bands of every kind, keys that nobody needs, ranks without tokens.
#[test]
fn generated_cases_reach_everything() {
    let mut seen = BTreeMap::new();
    let strategy = parallel_case(5);
    let counts = RefCell::new(&mut seen);
    let device = DeviceInfo::emulator();
    for_all(400, strategy, |case| {
        let mut counts = counts.borrow_mut();
        let mut count = |what: &'static str, is: bool| {
            *counts.entry(what).or_insert(0u32) += u32::from(is);
        };
        let shards = case.shards();
        let empty = |shards: &Shards| (0..case.world).any(|rank| shards.tokens(rank) == 0);
        count("several ranks", case.world > 1);
        count("a rank without queries", empty(&shards[0]));
        count("a rank without keys", empty(&shards[1]));
        count("several sequences", case.whole.lengths.len() > 1);
        let masked = case.whole.causal.is_some();
        for (split, what) in [
            (Split::Contiguous, "contiguous keys under a causal mask"),
            (Split::Zigzag, "zigzag keys under a causal mask"),
            (Split::Striped, "striped keys under a causal mask"),
        ] {
            count(what, masked && case.splits[1] == split && case.world > 1);
        }
        let plan = |rank: usize| case.context(rank, Circulation::Ring).plan(&device, rank);
        let plans: flashtile::Result<Vec<_>> = (0..case.world).map(plan).collect();
        let plans = plans.map_err(|error| format!("{case:?}: {error}"))?;
        let steps = plans[0].steps();
        if plans.iter().any(|plan| plan.steps() != steps) {
            return Err(format!("{case:?}: ranks take different numbers of steps"));
        }
        count("keys that are not sent", steps < case.world);
        let most = 2
            * case.world
            * if case.splits == [Split::Zigzag; 2] {
                2
            } else {
                1
            };
        count(
            "pieces that are left out",
            plans.iter().any(|plan| plan.launches() < most),
        );
        count("a window", case.whole.window.left.is_some());
        Ok(())
    });
    assert!(seen.values().all(|&count| count > 10), "{seen:?}");
}

/// A causal mask, shared out zigzag: every rank has the same work; around a ring as much as one device has in all.
#[test]
fn zigzag_balances_causal_masks() {
    let device = DeviceInfo::emulator();
    for world in 1..=8 {
        let total = 2 * world * 64;
        let work = |sharding: Sharding| -> Vec<usize> {
            let shards = Shards::even(sharding, world, total).unwrap();
            let ranks = (0..world).map(|rank| {
                let tokens = shards.tokens(rank);
                let shape = Shape {
                    batch: 1,
                    seqlen_q: tokens,
                    seqlen_k: tokens,
                    heads_q: 2,
                    heads_kv: 1,
                    head_dim_qk: 64,
                    head_dim_v: 64,
                };
                let problem =
                    Problem::contiguous(DType::Bf16, shape).causal(CausalAlignment::BottomRight);
                let parallel = ContextParallel::new(
                    problem,
                    shards.clone(),
                    shards.clone(),
                    Circulation::Ring,
                );
                parallel.plan(&device, rank).unwrap().launches()
            });
            ranks.collect()
        };
        // Of 2 world chunks, each sees those before it and itself.
        assert_eq!(work(Sharding::Zigzag), vec![2 * world + 1; world]);
        assert_eq!(work(Sharding::Contiguous), (1..=world).collect::<Vec<_>>());
        assert_eq!(work(Sharding::Striped), vec![world; world]);
    }
}

//! One plan, many launches: what a launch does follows the device's memory, and the library looks at none of it.

use std::cell::Cell;

use flashtile::{
    CausalAlignment, DType, Device, DeviceInfo, EmulatorDevice, Error, TensorLayout,
    checked::CHECK,
    serving::{CacheLayout, PageTable, ServingProblem},
};
use flashtile_tests::{
    checked::Problem,
    generate::factor,
    serving::{
        Axes, Built, Cache, Launch, Queries, ServingCase, case, devices, for_all, try_launch,
    },
    wrapped::Wrapped,
};
use flashtile_verify::data::Random;

/// With other lengths, starts, pages and ranges in the device's memory, a launch of the same plan with the same addresses gives what a new
/// plan with new buffers gives, and calls nothing but launches.
#[test]
fn numbers_are_those_of_the_launch() {
    let shorter = Cell::new(0);
    for axes in [Axes::DECODE, Axes::SMALL] {
        for_all(100, case(axes), |case| {
            // Cases whose lengths are on the device.
            let case = &ServingCase {
                queries: match case.queries {
                    Queries::Dense => Queries::DenseUsed,
                    other => other,
                },
                cache: match case.cache {
                    Cache::Dense => Cache::DenseUsed,
                    other => other,
                },
                ..case.clone()
            };
            let planned = Built::of(case);
            let mut replayed = planned.clone();
            let mut random = Random::new(case.seed ^ 0x4e9);
            let [_, q_used, k_starts, k_used, table, ranges] = &mut replayed.numbers;
            for used in [q_used, k_used] {
                for n in used {
                    *n = random.below(*n as usize + 1) as i32;
                }
            }
            // Of pages, starts say only how long sequences are.
            if let Cache::PagedStarts(_) = case.cache {
                let lengths: Vec<i32> = k_starts.array_windows().map(|[a, b]| b - a).collect();
                let mut next = 0;
                for (start, length) in k_starts[1..].iter_mut().zip(lengths) {
                    next += random.below(length as usize + 1) as i32;
                    *start = next;
                }
            }
            // Other pages, where each has one.
            let blocks = planned.problem.k.shape[0] as i32;
            for entry in table {
                if (0..blocks).contains(entry) {
                    *entry = (*entry + 1) % blocks;
                }
            }
            for pair in ranges.chunks_exact_mut(2) {
                pair[1] -= 1;
            }
            // The pages that are now somebody's may hold anything; they must hold numbers.
            for (layout, at) in [(planned.problem.k, 1), (planned.problem.v, 2)] {
                let bytes = planned.problem.kv_dtype.bytes() as usize;
                let is_tensor = at == 1 || !planned.problem.latent;
                if planned.problem.pages.is_some() && is_tensor {
                    let span = layout.span().unwrap_or(0) * bytes;
                    let finite = (0..span).map(|i| {
                        if i % bytes == bytes - 1 {
                            0x30
                        } else {
                            i as u8
                        }
                    });
                    replayed.tensors[at] = finite.collect();
                }
            }
            let planned = Built {
                tensors: replayed.tensors.clone(),
                ..planned
            };
            if planned.numbers != replayed.numbers {
                shorter.set(shorter.get() + 1);
            }
            for device in devices() {
                let device = Wrapped::new(device);
                let outcome = || {
                    let of = |built: &Built| try_launch(&device, &built.problem, &built.inputs());
                    let expected = [of(&planned)?, of(&replayed)?];
                    let mut launch = Launch::new(&device, &planned.problem, &planned.inputs())?;
                    let plan = planned.problem.plan(device.info())?;
                    let kernels: Vec<_> = match plan.is_empty() {
                        true => vec![],
                        false => plan.kernels().map(|kernel| kernel.name).collect(),
                    };
                    for (built, expected) in [&planned, &replayed, &planned].into_iter().zip([
                        &expected[0],
                        &expected[1],
                        &expected[0],
                    ]) {
                        launch.set_numbers(&built.inputs())?;
                        device.calls();
                        launch.run()?;
                        let calls = device.calls();
                        if calls != kernels {
                            return Ok(Some(format!("{calls:?} instead of {kernels:?}")));
                        }
                        // Bits: gaps are NaN.
                        let found = launch.outputs()?;
                        let lse = |outputs: &flashtile::Outputs| {
                            let all = outputs.lse.iter().flatten();
                            all.map(|x| x.to_bits()).collect::<Vec<_>>()
                        };
                        if found.out != expected.out || lse(&found) != lse(expected) {
                            return Ok(Some(format!("other outputs with {:?}", built.numbers)));
                        }
                    }
                    Ok(None)
                };
                let wrong: Result<Option<String>, Error> = outcome();
                if let Some(wrong) = wrong.map_err(|error| format!("{case:?}: {error}"))? {
                    return Err(format!("{case:?}: {wrong}"));
                }
            }
            Ok(())
        });
    }
    assert!(
        f64::from(shorter.get()) > 50.0 * factor().min(1.0),
        "{shorter:?}"
    );
}

/// In checked mode a launch looks at the report besides, without waiting.
#[test]
fn checked_launches_do_not_wait() {
    let emulator = EmulatorDevice::sanitizing();
    let q = TensorLayout::contiguous([2, 1, 1, 8]);
    let cache = CacheLayout::contiguous([4, 4, 1, 8]);
    let problem = ServingProblem::new(DType::F16, 2, q, cache, cache)
        .pages(PageTable::contiguous(2))
        .k_used(8);
    let numbers = [
        vec![],
        vec![],
        vec![],
        vec![8, 3],
        vec![0, 1, 2, -1],
        vec![],
    ];
    let outer = Wrapped::new(&emulator);
    let problem = Problem::Lengths(Box::new(problem), numbers);
    assert_eq!(problem.agrees(&outer, None), Ok(None));
    let calls = outer.calls();
    let launch = calls.iter().position(|&call| call == CHECK.name).unwrap();
    // What the launch itself asks: how many offences were taken and delivered. Before that, buffers; after it, the test waits.
    assert_eq!(calls[launch - 2..launch], ["read_pinned"; 2]);
    assert_eq!(calls[launch - 3], "write");
    assert_eq!(calls[launch + 1], "synchronize");
}

/// More, or longer, than was planned is refused before anything is replayed.
#[test]
fn what_was_not_planned_is_refused() {
    let q = TensorLayout::contiguous([8, 1, 4, 64]);
    let cache = CacheLayout::contiguous([100, 16, 2, 64]);
    let problem = ServingProblem::new(DType::Bf16, 8, q, cache, cache)
        .pages(PageTable::contiguous(10))
        .k_used(150)
        .causal(CausalAlignment::BottomRight);
    let plan = problem.plan(&DeviceInfo::emulator()).unwrap();
    for sound in [[8, 1, 150], [0, 0, 0], [3, 1, 20]] {
        plan.check_replay(sound[0], sound[1], sound[2]).unwrap();
    }
    for (wrong, text) in [
        (
            [9, 1, 150],
            "sequences: expected at most 8 sequences, for which the launch was planned, found 9",
        ),
        (
            [8, 2, 150],
            "longest_q: expected at most 1 queries of a sequence, for which the launch was planned, found 2",
        ),
        (
            [8, 1, 151],
            "longest_k: expected at most 150 keys of a sequence, for which the launch was planned, found 151",
        ),
    ] {
        let error = plan.check_replay(wrong[0], wrong[1], wrong[2]).unwrap_err();
        assert_eq!(error.to_string(), text);
    }
}

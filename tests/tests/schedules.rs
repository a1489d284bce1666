//! What a result may not depend on: the order in which warps and blocks run, and whether others run at all.
//!
//! A GPU promises none of it. Here every order can be had, and each must give the same bits.

use std::{cell::RefCell, collections::BTreeSet};

use flashtile::{
    Arch, CausalAlignment, Device, EmulatorDevice, Variant,
    device::emulator::{BlockOrder, Options, Schedule},
};
use flashtile_abi::variants;
use flashtile_emulator::AsyncTiming;
use flashtile_tests::{
    Case, Results, Tensors, assert_same_bits,
    data::rebuild,
    generate::{Axes, for_each_variant},
    judge,
    parallel::{cores, in_order},
    run,
};

fn emulator(
    schedule: Schedule,
    block_order: BlockOrder,
    async_copies: AsyncTiming,
) -> EmulatorDevice {
    EmulatorDevice::with_options(Options {
        schedule,
        block_order,
        async_copies,
        ..Options::default()
    })
}

fn same(what: &str, found: &Results, expected: &Results) -> Result<(), String> {
    assert_same_bits(&format!("{what}: out"), &found.out, &expected.out)?;
    assert_same_bits(&format!("{what}: lse"), &found.lse, &expected.lse)
}

/// Generated problems of every variant, on the emulator as it is and as these are.
fn same_everywhere(cases: u32, others: &[EmulatorDevice]) {
    let ordinary = EmulatorDevice::new();
    for_each_variant(cases, Axes::ALL, |case| {
        let tensors = Tensors::of(case);
        let expected = run(&ordinary, case, &tensors)?;
        for device in others {
            let found = run(device, case, &tensors)?;
            let options = device.emulator().options();
            let order = (options.schedule, options.block_order, options.async_copies);
            same(&format!("{case}\n  {order:?}"), &found, &expected)?;
        }
        Ok(())
    });
}

/// Warps in any order, each for one instruction or for many at a time.
#[test]
fn warps_may_run_in_any_order() {
    let seeded = |seed, share| {
        let schedule = Schedule::Seeded { seed, share };
        emulator(schedule, BlockOrder::Ascending, AsyncTiming::Late)
    };
    same_everywhere(
        1,
        &[
            seeded(1, 1),
            seeded(2, 13),
            seeded(3, 200),
            seeded(4, 16_384),
        ],
    );
}

/// Blocks in any order; with them, warps and copies too.
#[test]
fn blocks_may_run_in_any_order() {
    let shuffled = Schedule::Seeded { seed: 5, share: 40 };
    same_everywhere(
        1,
        &[
            emulator(Schedule::InOrder, BlockOrder::Reversed, AsyncTiming::Late),
            emulator(Schedule::InOrder, BlockOrder::Seeded(6), AsyncTiming::Late),
            emulator(shuffled, BlockOrder::Reversed, AsyncTiming::Early),
            emulator(shuffled, BlockOrder::Seeded(7), AsyncTiming::Seeded(8)),
        ],
    );
}

/// Each block alone writes its own rows, as it does among the others, and no two write the same.
#[test]
fn blocks_do_not_need_each_other() {
    let workers = vec![(); cores()];
    let mut failures = Vec::new();
    in_order(
        &workers,
        variants(),
        |(), variant| alone(variant),
        |_, outcome| {
            failures.extend(outcome.err());
            std::ops::ControlFlow::Continue(())
        },
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn alone(variant: &Variant) -> Result<(), String> {
    let (block_m, block_n) = (variant.tile.block_m as usize, variant.tile.block_n as usize);
    let case = Case::of_variant(variant, block_m + 3, block_n + 5);
    let mut cases = vec![case.heads(2, 1).causal(CausalAlignment::TopLeft)];
    if variant.arch == Arch::Sm90a {
        // Several pieces of work a block; blocks in pairs, where the kernel has any.
        cases.push(case.heads(3, 3).causal(CausalAlignment::TopLeft));
        cases.push(case.heads(3, 3));
    }
    cases.iter().try_for_each(blocks_alone)
}

fn blocks_alone(case: &Case) -> Result<(), String> {
    let plan = case.plan().map_err(|error| format!("{case}: {error}"))?;
    let tensors = Tensors::of(case);
    let together = run(&EmulatorDevice::new(), case, &tensors)?;

    let mut merged = Results {
        out: vec![f32::NAN; together.out.len()],
        lse: vec![f32::NAN; together.lse.len()],
    };
    let config = plan.config();
    for block in (0..config.grid[0]).step_by(config.cluster as usize) {
        // With it the other block of its pair runs.
        let only = BlockOrder::Only(block.into());
        let device = emulator(Schedule::InOrder, only, AsyncTiming::Late);
        let found = run(&device, case, &tensors)?;
        for (all, own) in [(&mut merged.out, &found.out), (&mut merged.lse, &found.lse)] {
            // What the block has not written is NaN still.
            for (x, &own) in all.iter_mut().zip(own).filter(|(_, own)| !own.is_nan()) {
                if !x.is_nan() {
                    return Err(format!("{case}: block {block} writes what another one has"));
                }
                *x = own;
            }
        }
    }
    same(&format!("{case}: blocks by themselves"), &merged, &together)
}

/// Kernels of the sm_90a tier share out their work among the multiprocessors. However many there are, which blocks work in pairs, and
/// in what order the work is done: the bits are the same.
#[test]
fn the_number_of_multiprocessors_does_not_matter() {
    let ordinary = EmulatorDevice::new();
    let others = [1, 2, 3, 132].map(|count| EmulatorDevice::new().multiprocessors(count));
    let shared_out = RefCell::new(BTreeSet::new());
    let check = |case: &Case| {
        if case.plan().is_ok_and(|plan| plan.schedule().is_none()) {
            return Ok(());
        }
        let note = |device: &EmulatorDevice| {
            let plan = case.problem().plan(device.info());
            let schedule = plan.ok().and_then(|plan| plan.schedule().copied());
            let shared = schedule.map(|s| (s.cluster, s.rounds.min(3)));
            shared_out.borrow_mut().insert(shared);
        };
        note(&ordinary);
        let tensors = Tensors::of(case);
        let expected = run(&ordinary, case, &tensors)?;
        for device in &others {
            note(device);
            let found = run(device, case, &tensors)?;
            let count = device.info().multiprocessors;
            same(&format!("{case}\n  on {count}"), &found, &expected)?;
        }
        Ok(())
    };
    for_each_variant(1, Axes::ALL, check);
    // Every kernel with pairs of blocks.
    for variant in variants()
        .iter()
        .filter(|variant| variant.arch == Arch::Sm90a)
    {
        let (block_m, block_n) = (variant.tile.block_m as usize, variant.tile.block_n as usize);
        let case = Case::of_variant(variant, block_m + 3, block_n + 5).heads(3, 3);
        check(&case).unwrap();
    }
    for cluster in [1, 2] {
        for rounds in 1..=3 {
            let reached = Some((cluster, rounds));
            assert!(shared_out.borrow().contains(&reached), "{reached:?}");
        }
    }
}

/// Heads that share the rows of a tile are computed as they are one by one: without a mask with the same arithmetic, bit for bit.
#[test]
fn heads_that_share_tiles_are_computed_as_if_they_did_not() {
    let device = EmulatorDevice::new();
    for variant in variants()
        .iter()
        .filter(|variant| variant.arch == Arch::Sm90a)
    {
        let (block_m, block_n) = (variant.tile.block_m as usize, variant.tile.block_n as usize);
        let shared = Case::of_variant(variant, block_m / 4 + 5, 2 * block_n + 9).heads(8, 2);
        let apart = shared.heads(8, 8);
        let pack = |case: &Case| case.plan().unwrap().schedule().unwrap().pack;
        assert_eq!((pack(&shared), pack(&apart)), (2, 0));
        let tensors = Tensors::of(&shared);
        let ([_, k, v, _], [_, all_k, all_v, _]) = (shared.shapes(), apart.shapes());
        let pick = |b: usize, s: usize, h: usize| [b, s, h / 4];
        let all = Tensors {
            q: tensors.q.clone(),
            k: rebuild(&tensors.k, k, all_k, pick),
            v: rebuild(&tensors.v, v, all_v, pick),
            scales: tensors.scales.clone(),
        };
        let a = run(&device, &shared, &tensors).unwrap();
        same(
            &shared.to_string(),
            &run(&device, &apart, &all).unwrap(),
            &a,
        )
        .unwrap();
        judge(&shared, &tensors, &a).unwrap();

        let shared = shared.causal(CausalAlignment::BottomRight);
        let apart = apart.causal(CausalAlignment::BottomRight);
        let a = run(&device, &shared, &tensors).unwrap();
        let b = run(&device, &apart, &all).unwrap();
        judge(&shared, &tensors, &a).unwrap();
        judge(&apart, &all, &b).unwrap();
    }
}

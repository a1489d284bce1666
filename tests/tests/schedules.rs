//! What a result may not depend on: the order in which warps and blocks run, and whether others run at all.
//!
//! A GPU promises none of it. Here every order can be had, and each must give the same bits.

use flashtile::{
    CausalAlignment, EmulatorDevice, Variant,
    device::emulator::{BlockOrder, Options, Schedule},
};
use flashtile_abi::variants;
use flashtile_emulator::AsyncTiming;
use flashtile_tests::{
    Case, Results, Tensors, assert_same_bits,
    generate::{Axes, for_each_variant},
    parallel::{cores, in_order},
    run, sizes,
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
    let tile = &variant.tile;
    let (block_m, block_n) = (tile.block_m as usize, tile.block_n as usize);
    let shape = sizes(block_m + 3, block_n + 5, [2, 1], tile.head_dim_qk as usize);
    let mut case = Case::new(tile.dtype, shape)
        .algorithm(variant.algorithm)
        .causal(CausalAlignment::TopLeft);
    case.shape.head_dim_v = tile.head_dim_v as usize;
    if variant.score_mod == flashtile::ScoreModKind::Softcap {
        case.softcap = Some(3.0);
    }
    let tensors = Tensors::of(&case);
    let together = run(&EmulatorDevice::new(), &case, &tensors)?;

    let blocks = shape.seqlen_q.div_ceil(block_m) * shape.heads_q;
    let mut merged = Results {
        out: vec![f32::NAN; together.out.len()],
        lse: vec![f32::NAN; together.lse.len()],
    };
    for block in 0..blocks as u64 {
        let device = emulator(
            Schedule::InOrder,
            BlockOrder::Only(block),
            AsyncTiming::Late,
        );
        let found = run(&device, &case, &tensors)?;
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

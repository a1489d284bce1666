//! A failure is of use if it is small and can be repeated: broken kernels, and what is printed of them.

use std::{panic::catch_unwind, time::Duration};

use flashtile::{Algorithm, DType, Device, EmulatorDevice};
use flashtile_tests::{
    Case, Tensors, check,
    generate::{Axes, case, for_all},
    judge,
    mutation::{lines_with, without_line},
    run,
    shrink::shrink,
    sizes,
};

/// Repeats the case in `FLASHTILE_TEST_CASE`, as `flashtile verify --case` does.
#[test]
fn repeat() {
    let Ok(text) = std::env::var("FLASHTILE_TEST_CASE") else {
        return;
    };
    let case: Case = text.parse().expect("a case's text");
    check(&case).unwrap();
}

/// What is printed is what is read.
#[test]
fn cases_survive_printing() {
    for_all(300, case(Axes::ALL), |case| {
        let text = case.to_string();
        let read: Case = text.parse()?;
        match read == *case {
            true => Ok(()),
            false => Err(format!("{text} reads as {read}")),
        }
    });
}

/// A kernel that does not wait for its copies: of a large case that fails, what is left is small, and its
/// line fails again.
#[test]
fn a_broken_kernel_fails_in_a_small_case() {
    // The fused kernel would notice the NaN of stale memory, and compute again.
    let mut large =
        Case::new(DType::F16, sizes(300, 400, [6, 2], 64)).algorithm(Algorithm::TwoPass);
    large.shape.batch = 2;
    large.placements[3].pad = 3;
    large.seed = 5;
    let variant = large.variant();
    let ptx = flashtile::ptx(variant).unwrap();
    let waits = lines_with(&ptx, "cp.async.wait");
    let broken = without_line(&ptx, *waits.last().unwrap());
    let device = EmulatorDevice::new();
    // SAFETY: the emulator checks every access.
    unsafe { device.override_ptx(variant, &broken) }.unwrap();
    let failure = |case: &Case| {
        let tensors = Tensors::of(case);
        let results = run(&device, case, &tensors);
        results
            .and_then(|results| judge(case, &tensors, &results))
            .err()
    };

    let reason = failure(&large).expect("a kernel without a wait is wrong");
    let limit = Duration::from_secs(60);
    let (smallest, _) = shrink(large, reason, limit, failure);
    let again: Case = smallest.to_string().parse().unwrap();
    assert!(failure(&again).is_some(), "{again}");
    let s = again.shape;
    assert_eq!(
        (s.batch, s.heads_q, s.heads_kv, s.seqlen_q),
        (1, 1, 1, 1),
        "{again}"
    );
    assert!(s.seqlen_k <= 2 * variant.tile.block_n as usize, "{again}");
    assert_eq!(again.placements, Case::new(DType::F16, s).placements);
}

#[test]
fn a_failing_property_prints_how_to_repeat_it() {
    let failing = || {
        for_all(200, case(Axes::ALL), |case| {
            match case.shape.seqlen_k > 64 {
                true => Err("too many keys".into()),
                false => Ok(()),
            }
        });
    };
    let panic = catch_unwind(failing).expect_err("the property fails");
    let message = panic.downcast_ref::<String>().expect("a message");
    let test = std::thread::current()
        .name()
        .filter(|name| *name != "main")
        .unwrap_or("")
        .to_owned();
    let case = "b1 q1 k65 h1/1 d1/1 seed=0' cargo test --release -p flashtile-tests";
    assert!(message.contains(&format!("{case} {test}")), "{message}");
}

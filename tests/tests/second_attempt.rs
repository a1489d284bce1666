//! The fused kernel computes a block again, with care, where large scores or overflowing sums have spoilt
//! it. That must stay rare: an attempt that is wrong in other ways (stale shared memory is NaN on the
//! emulator) could hide behind a second one that is right.

use flashtile::{Algorithm, CausalAlignment, Device, EmulatorDevice, ScoreModKind, Variant};
use flashtile_abi::variants;
use flashtile_tests::{
    Case, Distribution, Tensors, judge,
    mutation::{lines_with, trap_before_second_attempt, without_line},
    run, sizes,
};

/// Full and masked tiles, several of each, for a fused variant.
fn cases(variant: &Variant) -> [Case; 2] {
    let tile = &variant.tile;
    let (block_m, block_n) = (tile.block_m as usize, tile.block_n as usize);
    let shape = sizes(
        block_m + 1,
        5 * block_n + 3,
        [1, 1],
        tile.head_dim_qk as usize,
    );
    let mut case = Case::new(tile.dtype, shape).algorithm(variant.algorithm);
    case.shape.head_dim_v = tile.head_dim_v as usize;
    case.softcap = (variant.score_mod == ScoreModKind::Softcap).then_some(20.0);
    [case, case.causal(CausalAlignment::BottomRight)]
}

fn fused() -> impl Iterator<Item = &'static Variant> {
    variants()
        .iter()
        .filter(|variant| variant.algorithm == Algorithm::Fused)
}

/// What is wrong with a case under this text, if anything.
fn failure(case: &Case, tensors: &Tensors, ptx: &str) -> Option<String> {
    let device = EmulatorDevice::new();
    // SAFETY: the emulator checks every access.
    unsafe { device.override_ptx(case.variant(), ptx) }.unwrap();
    match run(&device, case, tensors) {
        Ok(results) => judge(case, tensors, &results).err(),
        Err(error) => Some(error),
    }
}

#[test]
fn ordinary_inputs_are_computed_once() {
    for variant in fused() {
        let ptx = trap_before_second_attempt(&flashtile::ptx(variant).unwrap());
        for case in cases(variant) {
            assert_eq!(case.variant().name, variant.name);
            assert_eq!(failure(&case, &Tensors::of(&case), &ptx), None);
        }
    }
}

#[test]
fn large_scores_are_computed_twice() {
    for variant in fused() {
        let ptx = flashtile::ptx(variant).unwrap();
        let [case, _] = cases(variant);
        let case = match case.softcap {
            Some(_) => case.softcap(1e5).scale(1e3),
            None => case.scale(1e4),
        };
        let tensors = Tensors::of(&case.data(Distribution::Normal, 3));
        assert_eq!(failure(&case, &tensors, &ptx), None);
        let trapped = failure(&case, &tensors, &trap_before_second_attempt(&ptx));
        assert!(
            trapped.is_some_and(|error| error.contains("trap")),
            "{}",
            variant.name
        );
    }
}

/// Where the unmasked loop is wrong, the second attempt must not make it right unseen.
#[test]
fn no_wait_or_barrier_of_the_loops_is_hidden() {
    for name in [
        "fused_bf16_d64_sm80",
        "fused_f16_d192x128_sm80",
        "fused_bf16_d256_sm80",
    ] {
        let variant = flashtile::kernel(name).unwrap();
        let ptx = trap_before_second_attempt(&flashtile::ptx(variant).unwrap());
        let lines = ["cp.async.wait", "bar.sync"].map(|instruction| lines_with(&ptx, instruction));
        for removed in lines.concat() {
            let text = without_line(&ptx, removed);
            // A negated query waits for its copy before all others do.
            let found = cases(variant).iter().any(|case| {
                let case = case.scale(-0.3).data(Distribution::Peaked, 1);
                failure(&case, &Tensors::of(&case), &text).is_some()
            });
            assert!(found, "{name} without line {}", removed + 1);
        }
    }
}

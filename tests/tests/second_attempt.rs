//! Fused kernels compute again, with care, what large scores or overflowing sums have spoilt: the sm_80 tier a block of rows, the
//! sm_90a tier a piece of work among those that a block has. That must stay rare: an attempt that is wrong in other ways (stale
//! shared memory is NaN on the emulator) could hide behind a second one that is right.

use flashtile::{
    Algorithm, Arch, CausalAlignment, DType, Device, EmulatorDevice, ScaleLayout, Scales,
    ScoreModKind, Variant,
};
use flashtile_abi::variants;
use flashtile_tests::{
    Case, Distribution, Results, Tensors, assert_same_bits,
    data::{rebuild, row},
    judge,
    mutation::{lines_with, trap_before_second_attempt, without_line},
    run,
};

/// Full and masked tiles, several of each, for a fused variant; in the sm_90a tier also several pieces of work for each block, in
/// pairs if the variant has any, and heads that share tiles.
fn cases(variant: &Variant) -> Vec<Case> {
    let (block_m, block_n) = (variant.tile.block_m as usize, variant.tile.block_n as usize);
    let mut case = Case::of_variant(variant, block_m + 1, 5 * block_n + 3);
    case.softcap = case.softcap.map(|_| 20.0);
    let mut cases = vec![case, case.causal(CausalAlignment::BottomRight)];
    if variant.arch == Arch::Sm90a {
        let mut short = case;
        short.shape.seqlen_k = 2 * block_n + 3;
        cases.push(short.heads(5, 5));
        short.shape.seqlen_q = block_m / 4 + 5;
        cases.push(short.heads(4, 1));
    }
    cases
}

/// Whether scores can be so large that they spoil anything: those of 16-bit and 8-bit elements that are capped are small, or take
/// care at once.
fn can_be_spoilt(variant: &Variant) -> bool {
    variant.score_mod == ScoreModKind::None || variant.tile.dtype == DType::F32
}

/// The case with scores so large that everything is spoilt, if it can be.
fn large(case: &Case) -> Case {
    let case = match case.softcap {
        Some(_) if case.dtype == DType::E4m3 => case.softcap(256.0).scale(1e3),
        Some(_) => case.softcap(1e5).scale(1e3),
        None => case.scale(1e4),
    };
    case.data(Distribution::Normal, 3)
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
        let trapping = trap_before_second_attempt(&ptx);
        // A causal mask leaves blocks without whole tiles, which take care at once.
        let cases = cases(variant).into_iter();
        for case in cases.filter(|case| case.causal.is_none()) {
            let case = large(&case);
            let tensors = Tensors::of(&case);
            assert_eq!(failure(&case, &tensors, &ptx), None);
            let trapped = failure(&case, &tensors, &trapping);
            assert_eq!(
                trapped.is_some_and(|error| error.contains("trap")),
                can_be_spoilt(variant),
                "{case}"
            );
        }
    }
}

/// The rows of one head.
fn of_head(case: &Case, results: &Results, head: usize) -> Results {
    let mut one = case.shapes()[3];
    one[2] = 1;
    let rows = case.shape.seqlen_q;
    Results {
        out: rebuild(&results.out, case.shapes()[3], one, |b, s, _| [b, s, head]),
        lse: results.lse[head * rows..][..rows].to_vec(),
    }
}

/// Of the pieces of work that a block has, only those are done again that are spoilt. The others keep their bits.
#[test]
fn spoilt_pieces_among_others() {
    for variant in variants()
        .iter()
        .filter(|variant| variant.arch == Arch::Sm90a && can_be_spoilt(variant))
    {
        let ptx = trap_before_second_attempt(&flashtile::ptx(variant).unwrap());
        let (block_m, block_n) = (variant.tile.block_m as usize, variant.tile.block_n as usize);
        // Two tiles of rows a head: four blocks have ten pieces, or two pairs have five.
        let mut case = Case::of_variant(variant, block_m + 1, 2 * block_n + 3).heads(5, 5);
        if case.dtype == DType::E4m3 {
            case.scales = Scales::all(ScaleLayout::PerHead);
        }
        let plan = case.plan().unwrap();
        let (schedule, pairs) = (plan.schedule().unwrap(), variant.tile.head_dim_qk >= 128);
        assert_eq!((schedule.cluster == 2, schedule.pack), (pairs, 0));
        assert!(schedule.rounds > 2);

        let device = EmulatorDevice::new();
        let ordinary = Tensors::of(&case);
        let expected = run(&device, &case, &ordinary).unwrap();
        let work = device.last_stats().unwrap().warp_instructions;
        assert_eq!(failure(&case, &ordinary, &ptx), None);
        for spoilt in [&[0][..], &[3], &[1, 4], &[0, 1, 2, 3, 4]] {
            let mut tensors = ordinary.clone();
            // Of the first tile's rows only: in a pair, the other block does its part again for want of an order to leave it out.
            // Elements of 8 bits are not large enough for that, but scales are, which are whole heads'.
            for &head in spoilt.iter().filter(|_| case.dtype == DType::E4m3) {
                tensors.scales[0][head] *= 1e4;
            }
            for (s, &head) in (0..3).flat_map(|s| spoilt.iter().map(move |head| (s, head))) {
                for q in &mut tensors.q[row(case.shapes()[0], 0, s, head)] {
                    *q = flashtile::element::round(case.dtype, *q * 1e4);
                }
            }
            let found = run(&device, &case, &tensors).unwrap();
            let again = device.last_stats().unwrap().warp_instructions - work;
            judge(&case, &tensors, &found).unwrap();
            let trapped = failure(&case, &tensors, &ptx).unwrap_or_default();
            assert!(trapped.contains("trap"), "{case}: {trapped}");
            for head in (0..5).filter(|head| !spoilt.contains(head)) {
                let (a, b) = (
                    of_head(&case, &found, head),
                    of_head(&case, &expected, head),
                );
                let what = format!("{case}, head {head}, where {spoilt:?} are spoilt");
                assert_same_bits(&what, &a.out, &b.out).unwrap();
                assert_same_bits(&what, &a.lse, &b.lse).unwrap();
            }
            // Care costs less than twice as much as speed.
            let share = work * spoilt.len() as u64 / 5;
            assert!(
                again > 0 && again < 2 * share,
                "{case}: {again} more than {work}"
            );
        }
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
        let variant = variants().iter().find(|variant| variant.name == name);
        let variant = variant.unwrap();
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

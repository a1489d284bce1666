//! Generated problems of all kinds against the oracle.

use flashtile::{Algorithm, CausalAlignment, DType};
use flashtile_tests::{
    Case, Distribution, Placement, Tensors, check, devices,
    generate::{Axes, case, for_all},
    judge, run, sizes,
};

#[test]
fn fused() {
    let axes = Axes {
        algorithms: &[Algorithm::Fused],
        ..Axes::ALL
    };
    for_all(1200, case(axes), check);
}

#[test]
fn two_pass() {
    let axes = Axes {
        algorithms: &[Algorithm::TwoPass],
        ..Axes::ALL
    };
    for_all(400, case(axes), check);
}

#[test]
fn three_pass() {
    let axes = Axes {
        algorithms: &[Algorithm::ThreePass],
        ..Axes::ALL
    };
    for_all(400, case(axes), check);
}

/// Each way to organise the softmax against the oracle, and against the three-pass kernel within the
/// sum of what both may be off by.
#[test]
fn algorithms_agree() {
    let axes = Axes {
        head_dim: 128,
        algorithms: &[Algorithm::ThreePass],
        ..Axes::ALL
    };
    for_all(150, case(axes), |ladder| {
        let tensors = Tensors::of(ladder);
        let bound = flashtile_tests::bound(ladder, &tensors);
        for device in devices() {
            let expected = run(&**device, ladder, &tensors)?;
            judge(ladder, &tensors, &expected)?;
            for algorithm in [Algorithm::Fused, Algorithm::TwoPass] {
                let other = ladder.algorithm(algorithm);
                let found = run(&**device, &other, &tensors)?;
                judge(&other, &tensors, &found)?;
                let near = flashtile_tests::assert_near;
                near(
                    &format!("out of {other}"),
                    &found.out,
                    &expected.out,
                    2.0 * bound.max_abs,
                )?;
                near(
                    &format!("lse of {other}"),
                    &found.lse,
                    &expected.lse,
                    2.0 * bound.lse_max_abs,
                )?;
            }
        }
        Ok(())
    });
}

/// Lengths one less, equal to, and one more than every tile edge, each against each.
#[test]
fn tile_edges() {
    for dtype in [DType::F16, DType::F32] {
        let tile = Case::new(dtype, sizes(1, 1, [1, 1], 32)).variant().tile;
        let around = |block: u32| [1, block - 1, block, block + 1].map(|n| n as usize);
        for seqlen_q in around(tile.block_m) {
            for seqlen_k in around(tile.block_n) {
                let case = Case::new(dtype, sizes(seqlen_q, seqlen_k, [1, 1], 32));
                check(&case.causal(CausalAlignment::BottomRight)).unwrap();
                check(&case.data(Distribution::Normal, 1)).unwrap();
            }
        }
    }
}

/// Every pair of placements that decides between 16-byte copies and single elements.
#[test]
fn alignment_of_each_tensor() {
    let odd = Placement {
        offset: 1,
        ..Placement::default()
    };
    let padded = Placement {
        pad: 1,
        ..Placement::default()
    };
    for dtype in [DType::F16, DType::Bf16, DType::F32] {
        for which in 0..4 {
            for placement in [odd, padded] {
                let mut case = Case::new(dtype, sizes(9, 21, [2, 1], 40));
                case.placements[which] = placement;
                check(&case).unwrap();
            }
        }
    }
}

/// Repeats the case in `FLASHTILE_TEST_CASE`.
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

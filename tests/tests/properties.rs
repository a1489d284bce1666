//! Generated problems of all kinds against the oracle.

use std::collections::BTreeMap;

use flashtile::{Algorithm, CausalAlignment, DType, ScaleLayout, Scales};
use flashtile_tests::{
    Distribution, Tensors, check, devices_for,
    generate::{Axes, case, for_all},
    judge, run,
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
        for (_, device) in devices_for(ladder) {
            let expected = run(device, ladder, &tensors)?;
            judge(ladder, &tensors, &expected)?;
            for algorithm in [Algorithm::Fused, Algorithm::TwoPass] {
                let other = ladder.algorithm(algorithm);
                let found = run(device, &other, &tensors)?;
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

/// An axis that the generator never moves along tests nothing.
#[test]
fn generated_cases_reach_everything() {
    let seen = std::cell::RefCell::new(BTreeMap::<String, bool>::new());
    for_all(4000, case(Axes::ALL), |case| {
        let s = &case.shape;
        let tile = case.variant().tile;
        let mut seen = seen.borrow_mut();
        let mut note = |what: &str, is: bool| *seen.entry(what.to_owned()).or_default() |= is;
        for variant in flashtile_abi::variants() {
            note(variant.name, variant.name == case.variant().name);
        }
        for data in Distribution::ALL {
            note(data.as_str(), data == case.data);
        }
        let window = (case.window.left.is_some(), case.window.right.is_some());
        note("no mask", case.causal.is_none() && window == (false, false));
        note(
            "bottom-right",
            case.causal == Some(CausalAlignment::BottomRight),
        );
        note("top-left", case.causal == Some(CausalAlignment::TopLeft));
        note("causal window", case.causal.is_some() && window.0);
        note(
            "left window",
            case.causal.is_none() && window == (true, false),
        );
        note(
            "right window",
            case.causal.is_none() && window == (false, true),
        );
        note(
            "two-sided window",
            case.causal.is_none() && window == (true, true),
        );
        note(
            "window of one",
            case.window.left == Some(0) && case.window.right == Some(0),
        );
        note("negative scale", case.scale.is_some_and(|x| x < 0.0));
        note("scale 0", case.scale == Some(0.0));
        note("softcap", case.softcap.is_some());
        note(
            "f32 out of 16 bits",
            case.dtype != DType::F32 && case.out_element() == DType::F32,
        );
        note(
            "f16 out of 8 bits",
            case.dtype == DType::E4m3 && case.out_element() == DType::F16,
        );
        let Scales { q, k, v } = case.scales;
        for (tensor, layout) in [("q", q), ("k", k), ("v", v)] {
            note(
                &format!("{tensor} scaled"),
                layout == ScaleLayout::PerTensor,
            );
            note(
                &format!("{tensor} scaled by head"),
                layout == ScaleLayout::PerHead,
            );
            let several = |rows: u32, seqlen: usize| seqlen > rows as usize;
            let seqlen = if tensor == "q" {
                s.seqlen_q
            } else {
                s.seqlen_k
            };
            note(
                &format!("{tensor} scaled by block"),
                matches!(layout, ScaleLayout::PerBlock { rows } if several(rows, seqlen)),
            );
        }
        note(
            "odd ratio of heads",
            s.heads_q / s.heads_kv > 1 && !(s.heads_q / s.heads_kv).is_multiple_of(2),
        );
        note("odd head_dim", !s.head_dim_qk.is_multiple_of(2));
        note("wider values", s.head_dim_v > s.head_dim_qk);
        note("narrower values", s.head_dim_v < s.head_dim_qk);
        note("no keys", s.seqlen_k == 0);
        note("more queries", s.seqlen_q > s.seqlen_k);
        for (name, length, block) in [
            ("q", s.seqlen_q, tile.block_m),
            ("k", s.seqlen_k, tile.block_n),
        ] {
            let rest = length % block as usize;
            note(&format!("{name} whole tiles"), rest == 0 && length > 0);
            note(&format!("{name} one more"), rest == 1 && length > 1);
            note(&format!("{name} one less"), rest + 1 == block as usize);
        }
        for placement in &case.placements {
            note("heads first", placement.heads_first);
            note("padded", placement.pad > 0);
            note("off", !placement.offset.is_multiple_of(8));
            note("backwards", placement.backwards);
            note("broadcast", placement.broadcast);
        }
        Ok(())
    });
    let seen = seen.into_inner();
    let missed: Vec<_> = seen.iter().filter(|(_, reached)| !**reached).collect();
    assert!(missed.is_empty(), "{missed:?}");
}

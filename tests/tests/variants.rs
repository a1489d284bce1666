//! Every kernel there is, by construction: a variant that no case reaches fails here.

use flashtile::{CausalAlignment, DType, ScoreModKind, Variant};
use flashtile_abi::variants;
use flashtile_tests::{Case, check, sizes};

/// Cases that plan to this variant: its widest dimensions and its narrowest ones.
fn cases(variant: &Variant) -> Vec<Case> {
    let tile = &variant.tile;
    let (widest_qk, widest_v) = (tile.head_dim_qk as usize, tile.head_dim_v as usize);
    let caps: &[Option<f32>] = match variant.score_mod {
        ScoreModKind::None => &[None],
        ScoreModKind::Softcap => &[Some(3.0)],
        ScoreModKind::OptionalSoftcap => &[None, Some(3.0)],
    };
    let (block_m, block_n) = (tile.block_m as usize, tile.block_n as usize);
    let mut cases = Vec::new();
    for (seed, &softcap) in caps.iter().enumerate() {
        // Two query blocks, one of a single row; the last key tile is short.
        let shape = sizes(block_m + 1, 2 * block_n + 3, [1, 1], widest_qk);
        let mut case = Case::new(tile.dtype, shape).algorithm(variant.algorithm);
        case.shape.head_dim_v = widest_v;
        case.softcap = softcap;
        case.seed = seed as u64;
        cases.push(case);
        // A masked and an unmasked tile; nothing is a multiple of 16 bytes.
        let mut narrow = case.causal(CausalAlignment::BottomRight);
        narrow.shape.seqlen_q = 19;
        narrow.seed += 2;
        if let Some((qk, v)) = narrowest(&narrow, variant) {
            (narrow.shape.head_dim_qk, narrow.shape.head_dim_v) = (qk, v);
            cases.push(narrow);
        }
    }
    cases
}

/// The smallest head dimensions for which the variant is chosen.
fn narrowest(case: &Case, variant: &Variant) -> Option<(usize, usize)> {
    let plans = |qk: usize, v: usize| {
        let mut case = *case;
        (case.shape.head_dim_qk, case.shape.head_dim_v) = (qk, v);
        case.variant().name == variant.name
    };
    let (widest_qk, widest_v) = (variant.tile.head_dim_qk, variant.tile.head_dim_v);
    (1..=widest_qk as usize)
        .flat_map(|qk| [(qk, 1), (qk, (widest_v as usize).min(qk))])
        .find(|&(qk, v)| plans(qk, v))
}

/// The variants of an element type, all of whose cases are run.
fn check_all(dtype: DType) {
    let mut failures = Vec::new();
    for variant in variants().iter().filter(|v| v.tile.dtype == dtype) {
        let cases = cases(variant);
        let reached = cases.iter().any(|c| c.variant().name == variant.name);
        if !reached {
            failures.push(format!("no case plans to {}", variant.name));
        }
        for case in cases {
            assert_eq!(case.variant().name, variant.name, "{case}");
            failures.extend(check(&case).err());
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_f16_variant() {
    check_all(DType::F16);
}

#[test]
fn every_bf16_variant() {
    check_all(DType::Bf16);
}

#[test]
fn every_f32_variant() {
    check_all(DType::F32);
}

/// The three tests above cover the list only as long as there are no other element types.
#[test]
fn no_variant_is_forgotten() {
    let covered = [DType::F16, DType::Bf16, DType::F32];
    for variant in variants() {
        assert!(covered.contains(&variant.tile.dtype), "{}", variant.name);
    }
}

//! Tensors captured from a model (all-MiniLM-L6-v2), with results computed elsewhere in f64.

use std::path::Path;

use flashtile::{Algorithm, ArchChoice, CausalAlignment};
use flashtile_tests::{assert_near, bound, devices_for, golden, judge, oracle, run};

/// What f32 can tell of numbers of this size: the rounding of the scale (which moves scores) and of
/// the expected numbers themselves.
fn f32_rounding(lse: &[f32], v: &[f32]) -> f64 {
    let largest = |values: &[f32]| values.iter().fold(1.0, |max: f32, x| max.max(x.abs()));
    4.0 * 2f64.powi(-24) * f64::from(largest(lse)) * f64::from(largest(v))
}

/// Every algorithm and tier, with a causal mask and without, against the file of expected results.
fn check_sample(path: &Path) {
    let (case, tensors) = golden::read_sample(path);
    let expected = golden::read_expected(&golden::expected_path(path));
    let bottom_right = case.causal(CausalAlignment::BottomRight);
    for (case, (out, lse)) in [(case, &expected.full), (bottom_right, &expected.causal)] {
        let rounding = f32_rounding(lse, &tensors.v);
        let reference = oracle(&case, &tensors);
        let to_f32 = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<_>>();
        assert_near("the oracle's out", &to_f32(&reference.out), out, rounding).unwrap();
        assert_near("the oracle's lse", &to_f32(&reference.lse), lse, rounding).unwrap();
        let kinds = Algorithm::ALL
            .map(|algorithm| (algorithm, ArchChoice::Sm80))
            .into_iter()
            .chain([(Algorithm::Fused, ArchChoice::Sm90a)]);
        for (algorithm, arch) in kinds {
            let case = case.algorithm(algorithm).arch(arch);
            let limit = bound(&case, &tensors);
            for (_, device) in devices_for(&case) {
                let results = run(device, &case, &tensors).unwrap();
                judge(&case, &tensors, &results).unwrap();
                let name = format!("{}: {case}", path.display());
                assert_near(&name, &results.out, out, limit.max_abs + rounding).unwrap();
                assert_near(&name, &results.lse, lse, limit.lse_max_abs + rounding).unwrap();
            }
        }
    }
}

#[test]
fn the_repositorys_sample() {
    check_sample(&golden::sample());
}

#[test]
fn larger_samples_where_there_are_any() {
    let folder = golden::data_folder();
    for layer in ["minilm-layer0", "minilm-layer5"] {
        let path = folder.join(layer).with_extension("safetensors");
        if path.exists() {
            check_sample(&path);
        } else {
            println!("skipped: there is no {}", path.display());
        }
    }
}

/// The first rows of a causal result do not know how many follow: those of the repository's sample are
/// those of the text it was cut from, whose results were computed by another program.
#[test]
fn the_repositorys_sample_begins_a_larger_one() {
    let path = golden::data_folder().join("minilm-layer0.safetensors");
    if !path.exists() {
        println!("skipped: there is no {}", path.display());
        return;
    }
    let (small, tensors) = golden::read_sample(&golden::sample());
    let small_expected = golden::read_expected(&golden::expected_path(&golden::sample()));
    let (large, _) = golden::read_sample(&path);
    let expected = golden::read_expected(&golden::expected_path(&path));
    let rounding = f32_rounding(&small_expected.causal.1, &tensors.v);

    let out = &expected.causal.0[..small_expected.causal.0.len()];
    assert_near("out", &small_expected.causal.0, out, rounding).unwrap();
    let rows = expected.causal.1.chunks(large.shape.seqlen_q);
    let lse: Vec<f32> = rows
        .flat_map(|row| row[..small.shape.seqlen_q].to_vec())
        .collect();
    assert_near("lse", &small_expected.causal.1, &lse, rounding).unwrap();
}

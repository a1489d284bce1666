//! 8-bit tensors and their scales.

mod common;

use common::*;
use flashtile::{DType, element};
use half::bf16;
use safetensors::Dtype;

const DEVICES: [&str; 2] = ["cpu", "emulator"];

/// An F8_E4M3 tensor of one number.
fn filled(name: &'static str, shape: &[usize], number: f32) -> Tensor {
    let mut tensor = tensor(name, Dtype::F8_E4M3, shape);
    tensor.data = element::encode(DType::E4m3, &vec![number; tensor.data.len()]);
    tensor
}

fn bf16s(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<2>();
    let numbers = words.iter().map(|&word| bf16::from_le_bytes(word));
    numbers.map(bf16::to_f32).collect()
}

/// Scales of every shape for q, k and v.
fn scales(name: &'static str, seqlen: usize, heads: usize, kind: usize) -> Option<Tensor> {
    let shape = match kind {
        0 => return None,
        1 => vec![],
        2 => vec![1],
        3 => vec![2, heads],
        _ => vec![2, heads, seqlen.div_ceil(128)],
    };
    let count = shape.iter().product::<usize>();
    let numbers: Vec<f32> = (0..count).map(|n| 0.5 + n as f32 / 8.0).collect();
    Some(f32_tensor(name, &shape, &numbers))
}

#[test]
fn every_kind_of_scales_and_of_output_passes_the_check() {
    let (q, k, v) = ([2, 19, 4, 32], [2, 270, 2, 32], [2, 270, 2, 48]);
    let outputs = [
        (&[][..], Dtype::BF16),
        (&["--out-dtype", "bf16"], Dtype::BF16),
        (&["--out-dtype", "f16"], Dtype::F16),
        (&["--out-dtype", "f32", "--causal"], Dtype::F32),
        (&["--softcap", "2.5", "--window", "100,7"], Dtype::BF16),
    ];
    for (kind, (options, dtype)) in outputs.into_iter().enumerate() {
        let mut tensors = qkv(Dtype::F8_E4M3, &q, &k, &v);
        // Each tensor has each kind once.
        tensors.extend(scales("q_scale", 19, 4, kind));
        tensors.extend(scales("k_scale", 270, 2, (kind + 1) % 5));
        tensors.extend(scales("v_scale", 270, 2, (kind + 3) % 5));
        let bench = Bench::new(&encode(&tensors));
        for device in DEVICES {
            let all = [&["--device", device, "--check", "--json"], options].concat();
            let found = json(&succeeds(&bench.attend(&all)));
            assert_eq!(found["ok"], true, "{options:?}: {found}");
            assert_eq!(bench.out("out").0, dtype);
            assert_eq!(bench.out("out").1, [2, 19, 4, 48]);
            assert_eq!(bench.out("lse").0, Dtype::F32);
            if device == "emulator" {
                let name = found["variant"].as_str().unwrap();
                assert!(name.starts_with("fused_e4m3_"), "{name}");
            }
        }
    }
}

/// Equal scores, values of 1: the output is the mean of the scales that the keys' values have.
#[test]
fn values_have_the_scales_of_their_blocks() {
    for (option, blocks, mean) in [
        (
            &[][..],
            &[1.0, 2.0, 8.0][..],
            (128.0 + 256.0 + 44.0 * 8.0) / 300.0,
        ),
        (
            &["--scale-block", "128"],
            &[1.0, 2.0, 8.0],
            (128.0 + 256.0 + 44.0 * 8.0) / 300.0,
        ),
        (
            &["--scale-block", "256"],
            &[1.0, 2.0],
            (256.0 + 88.0) / 300.0,
        ),
        (&["--scale-block", "512"], &[0.75], 0.75),
    ] {
        let mut tensors = vec![
            filled("q", &[1, 3, 2, 16], 0.0),
            filled("k", &[1, 300, 2, 16], 1.0),
            filled("v", &[1, 300, 2, 16], 1.0),
        ];
        // The second head has three times the scales.
        let both: Vec<f32> = [1.0, 3.0]
            .iter()
            .flat_map(|head| blocks.iter().map(move |x| x * head))
            .collect();
        tensors.push(f32_tensor("v_scale", &[1, 2, blocks.len()], &both));
        let bench = Bench::new(&encode(&tensors));
        for device in DEVICES {
            succeeds(&bench.attend(&[&["--device", device], option].concat()));
            let out = bf16s(&bench.out("out").2);
            for (at, x) in out.iter().enumerate() {
                let expected = mean * [1.0, 3.0][at / 16 % 2];
                // Half a unit in the last place of bf16, and the probabilities' sum.
                let error = (x - expected).abs() / expected;
                assert!(error < 1.1 / 256.0, "{device} {option:?}: {x} {expected}");
            }
        }
    }
}

/// One key: lse is its score.
#[test]
fn scores_have_the_scales_of_query_and_key() {
    let mut tensors = vec![
        filled("q", &[1, 300, 2, 16], 1.0),
        filled("k", &[1, 1, 1, 16], -0.5),
        filled("v", &[1, 1, 1, 16], 1.0),
    ];
    let of_rows = [1.0, 2.0, 0.5, 3.0, 0.25, 4.0];
    tensors.push(f32_tensor("q_scale", &[1, 2, 3], &of_rows));
    tensors.push(f32_tensor("k_scale", &[], &[1.5]));
    let bench = Bench::new(&encode(&tensors));
    for device in DEVICES {
        succeeds(&bench.attend(&["--device", device, "--scale", "0.125"]));
        let lse = f32s(&bench.out("lse").2);
        assert_eq!(lse.len(), 600);
        for (at, x) in lse.iter().enumerate() {
            let (head, row) = (at / 300, at % 300);
            // 16 products of -1/2, times 1/8 and the scales.
            let expected = -1.5 * of_rows[3 * head + row / 128];
            assert!((x - expected).abs() < 1e-5, "{device}: {x} {expected}");
        }
    }
}

#[test]
fn scales_that_do_not_fit_are_named() {
    let (q, k, v) = ([2, 5, 4, 16], [2, 300, 2, 16], [2, 300, 2, 32]);
    let with = |tensor: Tensor| {
        let mut tensors = qkv(Dtype::F8_E4M3, &q, &k, &v);
        tensors.push(tensor);
        Bench::new(&encode(&tensors))
    };
    let ones = |name, shape: &[usize]| f32_tensor(name, shape, &vec![1.0; shape.iter().product()]);
    for (name, shape, words) in [
        (
            "q_scale",
            &[2][..],
            &["[1] (a scale for the tensor)", "found shape [2]"][..],
        ),
        ("q_scale", &[0], &["found shape [0]"]),
        (
            "q_scale",
            &[2, 2],
            &["[2, 4] (a scale for each head)", "found shape [2, 2]"],
        ),
        (
            "k_scale",
            &[2, 4],
            &["[2, 2] (a scale for each head)", "found shape [2, 4]"],
        ),
        (
            "v_scale",
            &[2, 2, 2],
            &[
                "[2, 2, 3] (a scale for each block of 128 rows)",
                "found shape [2, 2, 2]",
            ],
        ),
        (
            "v_scale",
            &[2, 2, 3, 1],
            &["[batch, heads, blocks]", "found shape [2, 2, 3, 1]"],
        ),
    ] {
        let expected = format!("{name}: expected shape");
        let words = [&[expected.as_str()], words].concat();
        for device in DEVICES {
            with(ones(name, shape)).refuses(&["--device", device], &words);
        }
    }
    let blocks = with(ones("k_scale", &[2, 2, 3]));
    blocks.refuses(
        &["--scale-block", "256"],
        &[
            "k_scale: expected",
            "[2, 2, 2] (a scale for each block of 256 rows)",
        ],
    );
    for rows in ["0", "64", "200", "4294967295"] {
        blocks.refuses(
            &["--scale-block", rows],
            &["k_scale: expected blocks of a power of two of rows, at least 128"],
        );
    }
    for rows in ["-1", "many", "4294967296", ""] {
        blocks.refuses(&["--scale-block", rows], &["--scale-block"]);
    }
    with(ones("k_scale", &[2, 2])).refuses(
        &["--scale-block", "128"],
        &["--scale-block: expected a tensor", "found none"],
    );
    let half = tensor("v_scale", Dtype::F16, &[1]);
    with(half).refuses(&[], &["v_scale: expected F32, found F16"]);
}

#[test]
fn scales_that_are_no_factors_are_named_with_their_place() {
    for bad in [0.0, -0.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let mut tensors = qkv(
            Dtype::F8_E4M3,
            &[2, 5, 4, 16],
            &[2, 7, 2, 16],
            &[2, 7, 2, 16],
        );
        tensors.push(f32_tensor("k_scale", &[2, 2], &[1.0, 1.0, bad, 1.0]));
        let bench = Bench::new(&encode(&tensors));
        let word = format!("k_scale: expected positive finite numbers, found {bad} at [1, 0]");
        for device in DEVICES {
            bench.refuses(&["--device", device], &[&word]);
        }
    }
}

#[test]
fn what_only_eight_bit_tensors_have() {
    let (q, k, v) = ([1, 5, 2, 16], [1, 7, 1, 16], [1, 7, 1, 16]);
    let mut mixed = qkv(Dtype::F8_E4M3, &q, &k, &v);
    mixed[2] = tensor("v", Dtype::BF16, &v);
    let expected = ["v: expected F8_E4M3, the dtype of q, found BF16"];
    Bench::new(&encode(&mixed)).refuses(&[], &expected);

    for (dtype, name) in [
        (Dtype::F16, "f16"),
        (Dtype::BF16, "bf16"),
        (Dtype::F32, "f32"),
    ] {
        let mut scaled = qkv(dtype, &q, &k, &v);
        let bench = Bench::new(&encode(&scaled));
        for out in ["f16", "bf16"].into_iter().filter(|out| *out != name) {
            bench.refuses(&["--out-dtype", out], &["out_dtype: expected"]);
        }
        succeeds(&bench.attend(&["--out-dtype", name]));
        scaled.push(f32_tensor("q_scale", &[1], &[2.0]));
        let expected = format!("q_scale: expected no scales, since the inputs are {name}");
        Bench::new(&encode(&scaled)).refuses(&[], &[&expected]);
    }
}

/// There is one tier, one algorithm, and rows of whole 16 bytes: who asks for something else is told what is missing.
#[test]
fn kernels_that_there_are_not() {
    let rows = |dim: usize| {
        let (q, k) = ([1, 5, 2, dim], [1, 7, 1, dim]);
        Bench::new(&encode(&qkv(Dtype::F8_E4M3, &q, &k, &k)))
    };
    for (dim, options, words) in [
        (
            16,
            &["--arch", "sm_80"][..],
            &["no kernel", "sm_80", "e4m3"][..],
        ),
        (
            16,
            &["--algorithm", "two-pass"],
            &["no kernel", "two-pass", "e4m3"],
        ),
        (
            33,
            &[],
            &["q: expected strides", "found a stride of 66 bytes"],
        ),
        (
            272,
            &[],
            &[
                "no kernel",
                "sm_90a",
                "e4m3",
                "head_dim_qk 272 with head_dim_v 272 is beyond the widest, 256",
            ],
        ),
    ] {
        let bench = rows(dim);
        let output = bench.attend(&[&["--device", "emulator"], options].concat());
        fails(&output, 3, words);
        assert!(bench.others().is_empty());
        // The reference takes any.
        succeeds(&bench.attend(&[&["--device", "cpu", "--check"], options].concat()));
    }
}

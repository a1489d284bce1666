//! Files with what inference engines have: lengths, pages, what is added to scores.

mod common;

use common::*;
use safetensors::Dtype;

/// An I32 tensor of these numbers.
fn ints(name: &'static str, shape: &[usize], numbers: &[i32]) -> Tensor {
    Tensor {
        name,
        dtype: Dtype::I32,
        shape: shape.to_vec(),
        data: numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// A BOOL tensor in which every `step`th is false.
fn bools(name: &'static str, shape: &[usize], step: usize) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor {
        name,
        dtype: Dtype::BOOL,
        shape: shape.to_vec(),
        data: (0..count).map(|n| u8::from(n % step != 0)).collect(),
    }
}

/// Three sequences that follow each other, one of them without queries.
fn varlen(dtype: Dtype) -> Vec<Tensor> {
    let mut tensors = qkv(dtype, &[12, 6, 40], &[70, 2, 40], &[70, 2, 24]);
    tensors.push(ints("cu_seqlens_q", &[4], &[0, 5, 5, 12]));
    tensors.push(ints("cu_seqlens_k", &[4], &[0, 9, 20, 70]));
    tensors
}

/// Two sequences of one query, in pages of three rows.
fn paged(q: Dtype, kv: Dtype) -> Vec<Tensor> {
    let mut tensors = vec![
        tensor("q", q, &[2, 1, 8, 64]),
        tensor("k", kv, &[9, 3, 2, 64]),
        tensor("v", kv, &[9, 3, 2, 64]),
    ];
    let table = [4, 0, 8, -1, 2, 7, 1, 3];
    tensors.push(ints("block_table", &[2, 4], &table));
    tensors.push(ints("seqlens_k", &[2], &[7, 11]));
    tensors
}

fn passes(tensors: &[Tensor], options: &[&str], kernel: &str) -> Bench {
    let bench = Bench::new(&encode(tensors));
    let devices: [&[&str]; 2] = [
        &["--device", "cpu"],
        &["--device", "emulator", "--sanitize"],
    ];
    for (device, variant) in devices.into_iter().zip(["reference", kernel]) {
        let all = [device, &["--check", "--json"], options].concat();
        let found = json(&succeeds(&bench.attend(&all)));
        assert_eq!(found["ok"], true, "{options:?}: {found}");
        let name = found["variant"].as_str().unwrap();
        assert!(name.starts_with(variant), "{name}");
    }
    bench
}

#[test]
fn sequences_that_follow_each_other() {
    for (dtype, kernel) in [
        (Dtype::F16, "serving_f16_d64"),
        (Dtype::BF16, "serving_bf16_d64"),
    ] {
        for options in [
            &[][..],
            &["--causal"],
            &["--causal", "top-left", "--softcap", "3"],
            &["--window", "4,2", "--out-dtype", "f32"],
        ] {
            let bench = passes(&varlen(dtype), options, kernel);
            assert_eq!(bench.out("out").1, [12, 6, 24]);
            assert_eq!(bench.out("lse").1, [6, 12]);
        }
    }
}

#[test]
fn pages() {
    let bench = passes(
        &paged(Dtype::F16, Dtype::F16),
        &["--causal"],
        "decode_f16_d64",
    );
    assert_eq!(bench.out("out").1, [2, 1, 8, 64]);
    assert_eq!(bench.out("lse").1, [2, 8, 1]);
}

#[test]
fn short_keys_and_values_with_every_number_of_scales() {
    let shapes: [&[usize]; 4] = [&[], &[1], &[2], &[2, 2]];
    for shape in shapes {
        let numbers: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|n| 0.5 + n as f32)
            .collect();
        let mut tensors = paged(Dtype::BF16, Dtype::F8_E4M3);
        tensors.push(f32_tensor("k_scale", shape, &numbers));
        tensors.push(f32_tensor("v_scale", shape, &numbers));
        passes(&tensors, &[], "decode_bf16_e4m3_d64");
    }
    passes(
        &paged(Dtype::F16, Dtype::F8_E4M3),
        &[],
        "decode_f16_e4m3_d64",
    );
}

#[test]
fn what_is_added_to_scores_and_hides_keys() {
    let dense = || {
        qkv(
            Dtype::F16,
            &[2, 20, 4, 32],
            &[2, 30, 2, 32],
            &[2, 30, 2, 32],
        )
    };
    let extras: [fn() -> Tensor; 8] = [
        || f32_tensor("alibi", &[4], &[0.5, 0.25, 0.125, 0.0625]),
        || {
            f32_tensor(
                "alibi",
                &[2, 4],
                &[0.5, 0.25, 0.125, 0.1, 0.3, 0.2, 0.0, 1.0],
            )
        },
        || f32_tensor("sink", &[4], &[0.0, 1.0, -1.0, f32::NEG_INFINITY]),
        || tensor("bias", Dtype::F32, &[1, 4, 20, 30]),
        || tensor("bias", Dtype::F16, &[2, 1, 1, 30]),
        || bools("mask", &[2, 1, 20, 30], 3),
        || ints("seqlens_k", &[2], &[30, 0]),
        || ints("prefix_ranges", &[2, 1, 2], &[12, 25, 3, 2]),
    ];
    for extra in extras {
        let mut tensors = dense();
        tensors.push(extra());
        passes(&tensors, &["--causal"], "serving_f16_d64");
    }
    let mut all = dense();
    all.extend([extras[1](), extras[2](), extras[3](), extras[5]()]);
    passes(&all, &["--softcap", "2"], "serving_f16_d64");
}

/// Lengths that say nothing change nothing.
#[test]
fn whole_lengths_are_as_none() {
    let dense = qkv(Dtype::F32, &[2, 5, 2, 16], &[2, 9, 2, 16], &[2, 9, 2, 16]);
    let mut with_lengths = qkv(Dtype::F32, &[2, 5, 2, 16], &[2, 9, 2, 16], &[2, 9, 2, 16]);
    with_lengths.push(ints("seqlens_k", &[2], &[9, 9]));
    let outs = [dense, with_lengths].map(|tensors| {
        let bench = Bench::new(&encode(&tensors));
        succeeds(&bench.attend(&["--causal"]));
        f32s(&bench.out("out").2)
    });
    for (a, b) in outs[0].iter().zip(&outs[1]) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
}

/// Any number of sequences without rows, with or without keys.
#[test]
fn nothing_to_compute() {
    let many = i32::MAX as usize;
    let shapes: [[[usize; 4]; 3]; 2] = [
        [[many, 0, 2, 8], [many, 0, 1, 8], [many, 0, 1, 8]],
        [[0, 3, 2, 8], [0, 5, 1, 8], [0, 5, 1, 8]],
    ];
    for [q, k, v] in shapes {
        let mut tensors = qkv(Dtype::F16, &q, &k, &v);
        tensors.push(f32_tensor("alibi", &[2], &[0.5, 0.25]));
        let bench = Bench::new(&encode(&tensors));
        for device in ["cpu", "emulator"] {
            let found = json(&succeeds(
                &bench.attend(&["--device", device, "--check", "--json"]),
            ));
            assert_eq!(found["ok"], true);
            assert_eq!(bench.out("out").1, q);
        }
    }
}

/// A small file may ask for a large output.
#[test]
fn outputs_larger_than_memory() {
    let mut tensors = qkv(
        Dtype::F16,
        &[1, 1 << 14, 64, 1],
        &[1, 1, 1, 1],
        &[1, 1, 1, 1 << 18],
    );
    tensors.push(ints("seqlens_k", &[1], &[1]));
    let bench = Bench::new(&encode(&tensors));
    bench.refuses(&[], &["q, k, v: expected sizes that fit in the"]);
}

#[test]
fn bad_tensors() {
    let with = |extra: Tensor| {
        let mut tensors = qkv(Dtype::F16, &[2, 5, 4, 16], &[2, 7, 2, 16], &[2, 7, 2, 16]);
        tensors.push(extra);
        Bench::new(&encode(&tensors))
    };
    let refused: [(Tensor, &[&str]); 10] = [
        (
            tensor("alibi", Dtype::F16, &[4]),
            &["alibi: expected F32, found F16"],
        ),
        (
            f32_tensor("alibi", &[3], &[1.0; 3]),
            &["alibi: expected shape [4]"],
        ),
        (
            f32_tensor("alibi", &[4], &[f32::NAN; 4]),
            &["alibi: expected finite"],
        ),
        (
            f32_tensor("sink", &[4], &[f32::INFINITY; 4]),
            &["sink: expected"],
        ),
        (
            ints("seqlens_k", &[3], &[1, 2, 3]),
            &["seqlens_k: expected shape [2]"],
        ),
        (
            ints("seqlens_k", &[2], &[1, 8]),
            &["seqlens_k: expected 0 to 7 tokens"],
        ),
        (
            tensor("bias", Dtype::BF16, &[1, 1, 1, 1]),
            &["bias: expected F32 or f16"],
        ),
        (
            tensor("bias", Dtype::F32, &[2, 4, 5, 6]),
            &["bias: expected a shape that broadcasts"],
        ),
        (
            tensor("mask", Dtype::U8, &[2, 4, 5, 7]),
            &["mask: expected BOOL"],
        ),
        (
            ints("cu_seqlens_q", &[3], &[0, 2, 5]),
            &["q: expected 3 dimensions [total_q, heads_q, head_dim_qk]"],
        ),
    ];
    for (extra, words) in refused {
        with(extra).refuses(&[], words);
    }
}

#[test]
fn bad_numbers() {
    let starts: [(&[i32], &str); 4] = [
        (&[0, 7, 5, 12], "never decrease"),
        (&[1, 5, 5, 12], "0 at first"),
        (&[0, 5, 5, 13], "at most 12 tokens"),
        (&[0, -5, 5, 12], "never decrease"),
    ];
    for (numbers, words) in starts {
        let mut tensors = varlen(Dtype::F16);
        tensors[3] = ints("cu_seqlens_q", &[4], numbers);
        Bench::new(&encode(&tensors)).refuses(&[], &["cu_seqlens_q: expected", words]);
    }
    for (entry, lengths) in [(9, [7, 11]), (-1, [7, 11]), (0, [7, 13])] {
        let mut tensors = paged(Dtype::F16, Dtype::F16);
        tensors[3] = ints("block_table", &[2, 4], &[4, 0, 8, -1, 2, entry, 1, 3]);
        tensors[4] = ints("seqlens_k", &[2], &lengths);
        let name = match entry {
            0 => "seqlens_k: expected",
            _ => "block_table: expected",
        };
        Bench::new(&encode(&tensors)).refuses(&[], &[name]);
    }
    let mut scales = paged(Dtype::F16, Dtype::F8_E4M3);
    scales.push(f32_tensor("k_scale", &[1], &[0.0]));
    scales.push(f32_tensor("v_scale", &[1], &[1.0]));
    Bench::new(&encode(&scales)).refuses(&[], &["k_scale: expected positive finite"]);
    scales.pop();
    Bench::new(&encode(&scales)).refuses(&[], &["v_scale: expected as many"]);
}

#[test]
fn options_of_dense_problems() {
    let bench = Bench::new(&encode(&varlen(Dtype::F16)));
    bench.refuses(
        &["--scale-block", "128"],
        &["--scale-block: expected a file without"],
    );
    let options = ["--algorithm", "three-pass"];
    let output = bench.attend(&options);
    fails(&output, 3, &["no kernel for", "with f16 elements"]);
    let bfloats = Bench::new(&encode(&varlen(Dtype::BF16)));
    fails(&bfloats.attend(&options), 3, &["with bf16 elements"]);
    let narrow = Bench::new(&encode(&paged(Dtype::F16, Dtype::F8_E4M3)));
    fails(
        &narrow.attend(&["--arch", "sm_90a", "--device", "emulator"]),
        3,
        &["on sm_90a", "f16 queries and e4m3 keys"],
    );
}

/// The sm_90a tier has the many queries of Hopper, and any where it is asked for.
#[test]
fn tiers() {
    passes(
        &varlen(Dtype::BF16),
        &["--arch", "sm_90a"],
        "serving_bf16_d64_sm90a",
    );
    passes(
        &varlen(Dtype::BF16),
        &["--arch", "sm_80"],
        "serving_bf16_d64_sm80",
    );
}

/// Values that are elements of keys.
#[test]
fn latent() {
    let mut tensors = paged(Dtype::BF16, Dtype::BF16);
    tensors[0] = tensor("q", Dtype::BF16, &[2, 1, 24, 576]);
    tensors[1] = tensor("k", Dtype::BF16, &[9, 3, 1, 576]);
    tensors.remove(2);
    passes(&tensors, &["--latent", "512"], "mla_bf16_m64_sm90a");
    for arch in ["sm_80", "sm_90a"] {
        let kernel = format!("mla_bf16_m64_{}", arch.replace('_', ""));
        passes(&tensors, &["--latent", "512", "--arch", arch], &kernel);
    }
    let dense = [
        tensor("q", Dtype::F16, &[1, 3, 4, 40]),
        tensor("k", Dtype::F16, &[1, 9, 2, 40]),
    ];
    passes(&dense, &["--latent", "30"], "decode_f16_d64_sm80");
    let bench = Bench::new(&encode(&dense));
    bench.refuses(&[], &["v: expected a tensor, or --latent"]);
    for wrong in ["41", "0"] {
        bench.refuses(&["--latent", wrong], &["v: expected a head_dim of at"]);
    }
    let bench = Bench::new(&encode(&varlen(Dtype::F16)));
    bench.refuses(
        &["--latent", "24"],
        &["--latent: expected a file without v"],
    );
}

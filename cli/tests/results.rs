//! What the command computes and prints.

mod common;

use common::*;
use half::f16;
use safetensors::Dtype;
use serde_json::Value;

#[test]
fn equal_scores_average_the_values() {
    for device in ["cpu", "emulator"] {
        let mut tensors = qkv(Dtype::F16, &[1, 2, 2, 8], &[1, 4, 1, 8], &[1, 4, 1, 3]);
        tensors[0].data.fill(0);
        let values: Vec<f32> = (0..12).map(|x| (x / 3) as f32).collect();
        tensors[2].data = values
            .iter()
            .flat_map(|&x| f16::from_f32(x).to_le_bytes())
            .collect();
        let bench = Bench::new(&encode(&tensors));
        succeeds(&bench.attend(&["--device", device]));
        let (dtype, shape, bytes) = bench.out("out");
        assert_eq!((dtype, shape), (Dtype::F16, vec![1, 2, 2, 3]));
        assert_eq!(bytes, f16::from_f32(1.5).to_le_bytes().repeat(12));
        let (dtype, shape, bytes) = bench.out("lse");
        assert_eq!((dtype, shape), (Dtype::F32, vec![1, 2, 2]));
        assert!(
            f32s(&bytes)
                .iter()
                .all(|lse| (lse - 4f32.ln()).abs() < 1e-6)
        );
        // The first query sees one key only, from the top left; the last two, from the bottom right.
        succeeds(&bench.attend(&["--device", device, "--causal", "top-left"]));
        let lse = f32s(&bench.out("lse").2);
        assert!(
            lse[0].abs() < 1e-6 && (lse[1] - 2f32.ln()).abs() < 1e-6,
            "{lse:?}"
        );
        succeeds(&bench.attend(&["--device", device, "--window", "0,-1", "--out-dtype", "f32"]));
        let (dtype, _, bytes) = bench.out("out");
        assert_eq!(dtype, Dtype::F32);
        assert_eq!(f32s(&bytes)[..3], [2.5; 3], "{device}");
    }
}

#[test]
fn every_option_passes_the_check() {
    let shapes = ([2, 19, 4, 24], [2, 35, 2, 24], [2, 35, 2, 40]);
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
        let bench = Bench::new(&encode(&qkv(dtype, &shapes.0, &shapes.1, &shapes.2)));
        for device in ["cpu", "emulator"] {
            for options in [
                &["--algorithm", "fused"][..],
                &["--algorithm", "two-pass", "--causal"],
                &[
                    "--algorithm",
                    "three-pass",
                    "--causal",
                    "top-left",
                    "--window",
                    "5,0",
                ],
                &["--window", "3,-1", "--scale", "-0.5", "--arch", "sm_80"],
                &["--softcap", "2.5", "--out-dtype", "f32"],
            ] {
                let all = [&["--device", device, "--check", "--json"], options].concat();
                let found = json(&succeeds(&bench.attend(&all)));
                assert_eq!(found["ok"], true, "{options:?}: {found}");
                assert_eq!(found["device"], device);
            }
        }
    }
}

#[test]
fn one_json_object_with_the_keys_of_the_contract() {
    let bench = Bench::new(&small());
    let found = json(&succeeds(
        &bench.attend(&["--device", "emulator", "--json"]),
    ));
    let keys =
        |found: &Value| -> Vec<String> { found.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(keys(&found), ["arch", "device", "seconds", "variant"]);
    assert_eq!(found["variant"], "fused_f16_d64_sm90a");
    assert_eq!(found["arch"], "sm_90a");
    let found = json(&succeeds(&bench.attend(&["--json", "--check"])));
    let expected = [
        "arch",
        "bound",
        "device",
        "max_abs_error",
        "ok",
        "rms_error",
        "seconds",
        "variant",
    ];
    assert_eq!(keys(&found), expected);
    for number in ["bound", "max_abs_error", "rms_error", "seconds"] {
        assert!(found[number].is_f64(), "{found}");
    }
}

/// Each tier computes it, `auto` takes the better one that can, and says why if it is the other.
#[test]
fn tiers() {
    let rows = |dim: usize| {
        let shapes = ([2, 19, 4, dim], [2, 35, 2, dim], [2, 35, 2, 40]);
        Bench::new(&encode(&qkv(Dtype::F16, &shapes.0, &shapes.1, &shapes.2)))
    };
    let run = |bench: &Bench, options: &[&str]| {
        let all = [&["--device", "emulator", "--check", "--json"], options].concat();
        let found = json(&succeeds(&bench.attend(&all)));
        assert_eq!(found["ok"], true, "{options:?}: {found}");
        let text = |key: &str| found[key].as_str().map(str::to_owned);
        (
            text("arch").unwrap(),
            text("variant").unwrap(),
            text("fallback"),
        )
    };
    let (aligned, odd) = (rows(24), rows(33));
    let of = |arch: &str, variant: &str| (arch.to_owned(), variant.to_owned(), None);
    let hopper = of("sm_90a", "fused_f16_d64_sm90a");
    let ampere = of("sm_80", "fused_f16_d64_sm80");
    for options in [
        &[][..],
        &["--sanitize"],
        &["--causal"],
        &["--out-dtype", "f32"],
    ] {
        let with = |arch: &'static str| [&["--arch", arch][..], options].concat();
        assert_eq!(run(&aligned, options), hopper);
        assert_eq!(run(&aligned, &with("auto")), hopper);
        assert_eq!(run(&aligned, &with("sm_90a")), hopper);
        assert_eq!(run(&aligned, &with("sm_80")), ampere);
        // Who asks for the other tier has not fallen back to it.
        assert_eq!(run(&odd, &with("sm_80")), ampere);
        let (arch, variant, fallback) = run(&odd, options);
        assert_eq!((arch, variant), (ampere.0.clone(), ampere.1.clone()));
        let reason = fallback.expect("a reason");
        assert!(reason.starts_with("q: expected strides"), "{reason}");
        assert!(reason.ends_with("found a stride of 5016 bytes"), "{reason}");
    }
    // People are told, too; a tier that has no such kernel is no reason.
    let told = succeeds(&odd.attend(&["--device", "emulator"]));
    assert!(told.contains("\nnot sm_90a: q: expected strides"), "{told}");
    let (_, _, fallback) = run(&odd, &["--algorithm", "two-pass"]);
    assert_eq!(fallback, None);
    // Wider than the other tier has any.
    let (arch, variant, _) = run(&rows(512), &[]);
    assert_eq!((&*arch, &*variant), ("sm_90a", "fused_f16_d512_sm90a"));
}

#[test]
fn a_summary_in_one_line() {
    let bench = Bench::new(&small());
    let input = bench.input.to_str().unwrap();
    let text = succeeds(&run(&["attend", input, "--device", "cpu"]));
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.contains("cpu") && text.contains("head_dim 16/8"),
        "{text}"
    );
    assert!(bench.others().is_empty());
    // The alignment may be left out before the file.
    succeeds(&run(&["attend", "--device", "cpu", "--causal", input]));
}

#[test]
fn nothing_to_compute() {
    for (q, k) in [(0, 7), (5, 0), (0, 0)] {
        let tensors = qkv(Dtype::F16, &[1, q, 2, 16], &[1, k, 1, 16], &[1, k, 1, 8]);
        let bench = Bench::new(&encode(&tensors));
        for device in ["cpu", "emulator"] {
            succeeds(&bench.attend(&["--device", device, "--check"]));
            let (_, shape, bytes) = bench.out("out");
            assert_eq!(shape, [1, q, 2, 8]);
            assert!(bytes.iter().all(|&byte| byte == 0));
            let lse = f32s(&bench.out("lse").2);
            assert!(lse.len() == 2 * q && lse.iter().all(|&x| x == f32::NEG_INFINITY));
        }
    }
    // No elements, but astronomical dimensions.
    let huge = 1 << 60;
    let tensors = qkv(
        Dtype::F16,
        &[huge, 0, 1, 8],
        &[huge, 0, 1, 8],
        &[huge, 0, 1, 8],
    );
    let bench = Bench::new(&encode(&tensors));
    succeeds(&bench.attend(&["--check"]));
    assert_eq!(bench.out("out").1, [huge, 0, 1, 8]);
}

#[test]
fn other_tensors_are_ignored() {
    let mut tensors = qkv(Dtype::F16, &[1, 2, 1, 8], &[1, 2, 1, 8], &[1, 2, 1, 8]);
    tensors.push(tensor("out_causal", Dtype::I64, &[3]));
    succeeds(&Bench::new(&encode(&tensors)).attend(&[]));
}

#[test]
fn kernels_are_listed() {
    let found = json(&succeeds(&run(&["kernels", "--json"])));
    let kernels = found["kernels"].as_array().unwrap();
    let table = succeeds(&run(&["kernels"]));
    assert_eq!(table.lines().count(), kernels.len() + 1);
    for arch in ["sm_80", "sm_90a"] {
        assert!(
            kernels.iter().any(|kernel| kernel["arch"] == arch),
            "{arch}"
        );
        assert!(table.contains(&format!(" {arch} ")), "{table}");
    }
    for kernel in kernels {
        assert!(table.contains(kernel["name"].as_str().unwrap()));
        assert!(
            kernel["threads"].as_u64().is_some_and(|n| n >= 32),
            "{kernel}"
        );
        assert!(kernel["shared_bytes"].as_u64().is_some(), "{kernel}");
    }
}

#[test]
fn the_doctor_is_always_in() {
    let text = succeeds(&run(&["doctor"]));
    for word in [
        "emulator",
        "driver",
        "archive",
        "toolchain",
        "ptxas",
        "works",
    ] {
        assert!(text.contains(word), "{text}");
    }
    let found = json(&succeeds(&run(&["doctor", "--json"])));
    let of = |arch: &str| found["kernels_by_arch"][arch].as_u64().unwrap();
    assert_eq!(found["kernels"], of("sm_80") + of("sm_90a"));
    assert!(of("sm_80") > 0 && of("sm_90a") > 0, "{found}");
    assert!(
        text.contains(&format!("{} sm_80, {} sm_90a", of("sm_80"), of("sm_90a"))),
        "{text}"
    );
    assert_eq!(
        found["gpus"].as_array().unwrap().is_empty(),
        found["no_gpu_because"].is_string()
    );
}

#[test]
fn a_sweep_passes_on_the_cpu_and_runs_kernels_on_the_emulator() {
    let found = json(&succeeds(&run(&[
        "verify", "--quick", "--device", "cpu", "--json",
    ])));
    assert_eq!(found["failed"], 0);
    assert!(found["passed"].as_u64().is_some_and(|n| n > 100), "{found}");
    let text = succeeds(&run(&[
        "verify",
        "--quick",
        "--device",
        "emulator",
        "--filter",
        "fused_bf16_d64_softcap",
    ]));
    assert!(text.contains(" passed, 0 failed"), "{text}");
}

/// Problems of inference engines are verified as others are.
#[test]
fn serving_kernels_are_verified() {
    let count = |args: &[&str]| {
        let args = [&["verify", "--sanitize", "--json"], args].concat();
        let found = json(&succeeds(&run(&args)));
        assert_eq!(found["failed"], 0, "{found}");
        found["passed"].as_u64().unwrap()
    };
    assert!(count(&["--filter", "decode_f16_d64_sm80"]) > 20);
    assert!(count(&["--filter", "merge_"]) > 50);
    assert!(
        count(&[
            "--only",
            "serving",
            "--quick",
            "--filter",
            "serving_f16_d64"
        ]) > 2
    );
    let serving = "serving sm_80 bf16 kv=e4m3/head h2x4 d65/40 lengths=3:70,0:5 queries=packed-used cache=pages3 order=chunked \
                   causal=bottom-right alibi=head sink mask=bit:b--k splits=keys64 seed=7";
    let merge = "merge bf16 b2 q3 h3 d70 parts=3 out-dtype=f32 sink seed=1";
    let hostile = "serving f16 h1x2 d64/64 lengths=2:90,1:30 cache=pages16 hostile seed=5";
    for line in [serving, merge, hostile] {
        assert_eq!(count(&["--case", line]), 1, "{line}");
    }
    let text = succeeds(&run(&["verify", "--device", "cpu", "--case", serving]));
    assert!(text.starts_with("cpu: 1 passed, 0 failed"), "{text}");
}

#[test]
fn one_case_is_what_its_line_says() {
    let line = "two-pass bf16 b2 q37 k70 h6/2 d40/24 causal=top-left window=5,-1 q=heads-first+3@1 data=1e4 poison seed=7";
    let hopper = "fused sm_90a bf16 b2 q37 k70 h6/2 d33/24 causal=top-left q=heads-first+7@8 k=seqlen-first+7@0 poison seed=7";
    let text = succeeds(&run(&["verify", "--sanitize", "--case", hopper]));
    assert!(
        text.starts_with("emulator, sanitized: 1 passed, 0 failed"),
        "{text}"
    );
    let unaligned = hopper.replace("+7@0", "+6@0");
    fails(
        &run(&["verify", "--case", &unaligned]),
        2,
        &["k: expected strides"],
    );
    for device in ["cpu", "emulator"] {
        let found = json(&succeeds(&run(&[
            "verify", "--device", device, "--json", "--case", line,
        ])));
        assert_eq!((&found["passed"], &found["failed"]), (&1.into(), &0.into()));
        assert_eq!(found["device"], device);
    }
    let text = succeeds(&run(&["verify", "--sanitize", "--case", line]));
    assert!(
        text.starts_with("emulator, sanitized: 1 passed, 0 failed"),
        "{text}"
    );
}

#[test]
fn auto_takes_the_gpu_or_else_the_emulator() {
    let bench = Bench::new(&small());
    let auto = json(&succeeds(
        &bench.attend(&["--device", "auto", "--check", "--json"]),
    ));
    let cuda = bench.attend(&["--device", "cuda", "--check", "--json"]);
    match cuda.status.code() {
        Some(0) => assert_eq!(auto["device"], "cuda:0"),
        _ => {
            fails(&cuda, 3, &["no device"]);
            assert_eq!(auto["device"], "emulator");
        }
    }
}

/// A kernel without its barriers: the findings are told, the status is 1, and nothing is written.
#[test]
fn attend_tells_what_the_sanitizer_finds() {
    let bench = Bench::new(&small());
    let variant = "fused_f16_d32_sm80";
    let folder = bench.path("ptx");
    succeeds(&run(&[
        "kernels",
        "--filter",
        variant,
        "--emit",
        folder.to_str().unwrap(),
    ]));
    let file = folder.join(format!("{variant}.ptx"));
    let whole = [
        "--device",
        "emulator",
        "--sanitize",
        "--json",
        "--ptx",
        file.to_str().unwrap(),
    ];
    let report = json(&succeeds(&bench.attend(&whole)));
    assert_eq!(report["findings"], serde_json::json!([]));

    std::fs::remove_file(bench.path("out.safetensors")).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let broken = text.lines().filter(|line| !line.contains("bar.sync"));
    std::fs::write(
        &file,
        broken.flat_map(|line| [line, "\n"]).collect::<String>(),
    )
    .unwrap();
    let output = bench.attend(&whole);
    assert_eq!(output.status.code(), Some(1));
    assert!(!bench.path("out.safetensors").exists());
    let report = json(std::str::from_utf8(&output.stdout).unwrap());
    let first = &report["findings"][0];
    assert_eq!(
        (&report["ok"], &first["rule"]),
        (&false.into(), &"race".into())
    );
    for line in [&first["site"]["line"], &first["other"]["line"]] {
        assert!(line.as_u64().is_some_and(|line| line > 1), "{first}");
    }
    let people = bench.attend(
        &whole[..3]
            .iter()
            .chain(&whole[4..])
            .copied()
            .collect::<Vec<_>>(),
    );
    let told = String::from_utf8(people.stdout).unwrap();
    assert!(
        told.starts_with("[1] race: ") && told.contains("rule: "),
        "{told}"
    );
}

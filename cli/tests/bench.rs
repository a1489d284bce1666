//! `flashtile bench` on the emulator: what it writes, what it says, what it refuses.

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{fails, flashtile, succeeds};
use serde_json::Value;
use tempfile::TempDir;

/// One small cell of each mask.
const SMALL: [&str; 6] = [
    "--quick",
    "--device",
    "emulator",
    "--seqlen",
    "64",
    "--seconds-per-cell=0.001",
];

fn bench(folder: &Path, options: &[&str]) -> std::process::Output {
    let mut command = flashtile();
    command.arg("bench").args(SMALL).args(options);
    command.arg("--out").arg(folder).output().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn lines(folder: &Path) -> Vec<BTreeMap<String, String>> {
    csv::Reader::from_path(folder.join("results.csv"))
        .unwrap()
        .deserialize()
        .map(Result::unwrap)
        .collect()
}

fn results(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("results.json")).unwrap()).unwrap()
}

#[test]
fn everything_is_in_one_folder() {
    let folder = TempDir::new().unwrap();
    // It is made, and what is there already is replaced.
    let out = folder.path().join("new").join("results");
    fs::create_dir_all(&out).unwrap();
    fs::write(out.join("results.csv"), "of yesterday").unwrap();
    let output = bench(
        &out,
        &[
            "--dtype", "f16,bf16", "--window", "16,0", "--heads", "mha,gqa2",
        ],
    );
    let said = succeeds(&output);
    assert_eq!(
        names(&out),
        [
            "error-bf16-gqa2.svg",
            "error-bf16-mha.svg",
            "error-f16-gqa2.svg",
            "error-f16-mha.svg",
            "results.csv",
            "results.json",
            "summary.md",
            "time-bf16-gqa2.svg",
            "time-bf16-mha.svg",
            "time-f16-gqa2.svg",
            "time-f16-mha.svg",
        ]
    );
    // Every combination, once.
    let rows = lines(&out);
    let cell = |row: &BTreeMap<String, String>| {
        ["dtype", "heads", "mask"]
            .map(|column| row[column].clone())
            .join(" ")
    };
    let mut cells: Vec<_> = rows.iter().map(cell).collect();
    cells.sort();
    cells.dedup();
    assert_eq!((rows.len(), cells.len()), (12, 12), "{cells:?}");
    for row in &rows {
        assert_eq!(
            (&*row["implementation"], &*row["state"]),
            ("flashtile", "ok")
        );
        assert_eq!((&*row["clock"], &*row["arch"]), ("wall", "sm_90a"));
        // What the emulator takes says nothing about a GPU.
        assert_eq!((&*row["tflops"], &*row["percent_of_peak"]), ("", ""));
        assert!(row["median_us"].parse::<f64>().unwrap() > 0.0, "{row:?}");
        let window = match &*row["mask"] {
            "window" => ("16", "0"),
            _ => ("", ""),
        };
        assert_eq!((&*row["window_left"], &*row["window_right"]), window);
    }
    let results = results(&out);
    assert_eq!(results["rows"].as_array().unwrap().len(), 12);
    assert_eq!(results["machine"]["kind"], "emulator");
    assert_eq!(results["not_run"], Value::Array(Vec::new()));
    for name in names(&out).iter().filter(|name| name.ends_with(".svg")) {
        let svg = fs::read_to_string(out.join(name)).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        assert!(document.root_element().has_tag_name("svg"), "{name}");
        let says = |text: &str| {
            let mut nodes = document.descendants();
            nodes.any(|node| node.text().is_some_and(|found| found.contains(text)))
        };
        assert!(says("head_dim 64, causal") && says("flashtile"), "{name}");
    }
    let summary = fs::read_to_string(out.join("summary.md")).unwrap();
    assert!(said.ends_with(&summary), "{said}");
    assert!(said.contains("| bf16 gqa2 d64 window 16, 0 |"), "{said}");
    assert!(said.contains("nothing about a GPU"), "{said}");
}

#[test]
fn json_is_that_of_the_file() {
    let folder = TempDir::new().unwrap();
    let said = succeeds(&bench(
        folder.path(),
        &["--json", "--mask", "causal,causal"],
    ));
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said, results(folder.path()));
    // Twice the same is once.
    assert_eq!(said["rows"].as_array().unwrap().len(), 1);
    assert_eq!(said["rows"][0]["mask"], "causal");
    assert!(said["kernels"][said["rows"][0]["variant"].as_str().unwrap()].is_string());
}

#[test]
fn sizes_are_those_asked_for() {
    let folder = TempDir::new().unwrap();
    let options = [
        "--head-dim",
        "32/24",
        "--hidden",
        "96",
        "--tokens",
        "130",
        "--mask",
        "full",
    ];
    succeeds(&bench(folder.path(), &options));
    let row = &lines(folder.path())[0];
    let sizes = [
        "batch",
        "seqlen_q",
        "seqlen_k",
        "heads_q",
        "heads_kv",
        "head_dim_qk",
        "head_dim_v",
    ];
    assert_eq!(
        sizes.map(|column| &*row[column]),
        ["2", "64", "64", "3", "3", "32", "24"]
    );
    // 2 batches, 3 heads, 64 by 64 pairs, 2 operations for 32 and 24 elements.
    assert_eq!(
        row["gflop"].parse(),
        Ok(2.0 * 3.0 * 64.0 * 64.0 * 2.0 * 56.0 / 1e9)
    );
}

#[test]
fn without_torch_there_are_no_peers() {
    let folder = TempDir::new().unwrap();
    let options = ["--peers", "--python", "/no/such/python", "--mask", "full"];
    let said = succeeds(&bench(folder.path(), &options));
    assert!(said.contains("peers: none (/no/such/python: "), "{said}");
    let names = names(folder.path());
    assert!(names.contains(&"peers.py".into()) && names.contains(&"peers.log".into()));
    assert_eq!(lines(folder.path()).len(), 1);
}

/// Whatever Python there is must understand the program, and say what is missing if it has no torch.
#[test]
fn the_program_says_what_is_missing() {
    let folder = TempDir::new().unwrap();
    let options = ["--peers", "torch-flash,flashinfer", "--mask", "full"];
    let said = succeeds(&bench(folder.path(), &options));
    let python = &results(folder.path())["python"];
    let missing = python["missing"].as_str().unwrap_or_default();
    let understood = missing.contains("No such file")
        || missing.contains("torch")
        || !python["torch"].as_str().unwrap().is_empty();
    assert!(understood, "{said}");
}

#[test]
fn a_budget_leaves_cells_out() {
    let folder = TempDir::new().unwrap();
    let said = succeeds(&bench(folder.path(), &["--budget", "0.000001"]));
    assert!(said.contains("not run: 1 cells"), "{said}");
    assert_eq!(lines(folder.path()).len(), 1);
    let not_run = &results(folder.path())["not_run"];
    assert_eq!(not_run[0], "bf16 b2 q64 k64 h2/2 d64/64 causal");
}

#[test]
fn bad_options() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("none");
    let cases: [(&[&str], &[&str]); 16] = [
        (&["--dtype", "f64"], &["--dtype", "f64", "bf16"]),
        (&["--head-dim", "0"], &["--head-dim", "0"]),
        (&["--head-dim", "513"], &["q", "head_dim", "513"]),
        (&["--head-dim", "64/"], &["--head-dim", "QK/V"]),
        (&["--seqlen", "0"], &["--seqlen", "0"]),
        (&["--seqlen", "64,x"], &["--seqlen", "x"]),
        (&["--seqlen", "99999999999"], &["--seqlen", "memory"]),
        (&["--heads", "mqa"], &["--heads", "mqa", "gqaN"]),
        (&["--mask", "sliding"], &["--mask", "sliding"]),
        (&["--mask", "window"], &["--mask", "--window", "none"]),
        (&["--window", "1"], &["--window", "LEFT,RIGHT"]),
        (
            &["--seconds-per-cell", "0"],
            &["--seconds-per-cell", "positive"],
        ),
        (&["--budget", "NaN"], &["--budget", "positive"]),
        (
            &["--peers", "fastest"],
            &["--peers", "fastest", "torch-cudnn"],
        ),
        (&["--tokens", "0"], &["--tokens", "0"]),
        (&["surplus"], &["surplus"]),
    ];
    for (options, words) in cases {
        let mut command = flashtile();
        command.args(["bench", "--quick", "--device", "emulator"]);
        let output = command
            .args(options)
            .arg("--out")
            .arg(&out)
            .output()
            .unwrap();
        fails(&output, 2, words);
    }
    let reference = ["bench", "--device", "cpu", "--out"];
    let output = flashtile().args(reference).arg(&out).output().unwrap();
    fails(&output, 2, &["--device", "cpu", "emulator"]);
    // Nothing was written.
    assert!(!out.exists());

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    fails(&bench(&file, &[]), 2, &["file", "a folder"]);
    fails(&bench(&file.join("below"), &[]), 2, &["below", "a folder"]);
    // A folder where a result should be.
    fs::create_dir_all(out.join("results.csv")).unwrap();
    fails(&bench(&out, &[]), 2, &["results.csv", "a folder"]);
}

#[test]
fn no_such_device_or_kernel() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("none");
    let run = |options: &[&str]| {
        let mut command = flashtile();
        command.arg("bench").args(options);
        command.arg("--out").arg(&out).output().unwrap()
    };
    fails(&run(&["--device", "cuda:4096"]), 3, &["no device"]);
    let hopper = ["--device", "emulator", "--arch", "sm_90a", "--dtype", "f32"];
    fails(&run(&hopper), 3, &["no kernel", "sm_90a", "f32"]);
    assert!(!out.exists());
}

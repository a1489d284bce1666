//! The command from outside: what it does where there is no GPU, with programs that fail or hang, and, over the
//! stand-in for the driver, what it does on a GPU.

#![cfg(unix)]

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use common::stand_in;

fn check() -> Command {
    Command::new(env!("CARGO_BIN_EXE_flashtile-gpu-check"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn script(path: &Path, body: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A packed folder whose programs are scripts.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    script(
        &at("flashtile"),
        "echo \"flashtile $1\"\n[ \"$1\" != attend ] || exit 1",
    );
    script(
        &at("flashtile-gpu-check"),
        "echo \"checks $1\"\n[ \"$1\" != gpu ] || exit 3",
    );
    script(
        &at("suite/quick"),
        "echo \"on $FLASHTILE_TEST_DEVICE\"; echo unseen >&2",
    );
    // A process of its own that would hold up whoever waits for the output to end.
    script(&at("suite/slow"), "echo begun\nsleep 600 & sleep 600");
    fs::write(at("build.json"), r#"{"commit": "c0ffee"}"#).unwrap();
    folder
}

fn run(folder: &Path, results: &Path, args: &[&str]) -> Output {
    let mut command = check();
    command
        .arg("run")
        .arg("--folder")
        .arg(folder)
        .arg("--results")
        .arg(results)
        .args(args);
    command.output().unwrap()
}

#[test]
fn failures_and_hangs_do_not_end_the_run() {
    let (folder, results) = (folder(), tempfile::tempdir().unwrap());
    let start = Instant::now();
    let output = run(
        folder.path(),
        results.path(),
        &[
            "--device",
            "emulator",
            "--steps",
            "attend,suite,doctor",
            "--budget",
            "4",
        ],
    );
    assert!(start.elapsed() < Duration::from_secs(60));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let read = |name: &str| fs::read_to_string(results.path().join(name)).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&read("summary.json")).unwrap();
    assert_eq!(summary["build"]["commit"], "c0ffee");
    assert_eq!(summary["verdict"], "failed: attend, suite-slow");
    let states: Vec<_> = (summary["steps"].as_array().unwrap().iter())
        .map(|step| {
            (
                step["name"].as_str().unwrap(),
                step["state"].as_str().unwrap(),
                step["last_line"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(states[0], ("doctor", "passed", "flashtile doctor"));
    assert_eq!(
        states[1],
        ("attend", "FAILED with status 1", "flashtile attend")
    );
    assert_eq!(states[2].0, "suite-quick");
    assert_eq!((states[3].0, states[3].2), ("suite-slow", "begun"));
    assert!(states[3].1.starts_with("STOPPED after"), "{}", states[3].1);
    assert_eq!(states.len(), 4);
    let log = read("log.txt");
    assert!(
        log.contains("on emulator\n") && log.contains("unseen\n"),
        "{log}"
    );
    assert!(read("summary.txt").contains("commit   c0ffee"));
    let mut files: Vec<_> = fs::read_dir(results.path())
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    files.sort();
    assert_eq!(files, ["log.txt", "summary.json", "summary.txt"]);
}

#[test]
fn a_step_without_time_is_no_success() {
    let (folder, results) = (folder(), tempfile::tempdir().unwrap());
    let output = run(
        folder.path(),
        results.path(),
        &["--device", "emulator", "--steps", "doctor", "--budget", "0"],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("not run: no time left"));
}

#[test]
fn without_a_gpu_it_says_so() {
    let (folder, results) = (folder(), tempfile::tempdir().unwrap());
    let output = run(folder.path(), results.path(), &[]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let summary = fs::read_to_string(results.path().join("summary.txt")).unwrap();
    assert!(
        summary.starts_with("no GPU: nothing was checked\n"),
        "{summary}"
    );
    assert!(
        summary.contains("suite-slow") && summary.contains("not run: no GPU"),
        "{summary}"
    );
    // The real probe, too: no machine has so many GPUs.
    let output = check()
        .args(["gpu", "--device", "cuda:4096"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
}

#[test]
fn bad_input() {
    let (folder, results) = (folder(), tempfile::tempdir().unwrap());
    for args in [&["--steps", "micro,nonsense"][..], &["--budget", "soon"]] {
        let output = run(folder.path(), results.path(), args);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    }
    let output = check().args(["micro", "--device", "tpu"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let output = check()
        .args(["micro", "--device", "emulator", "--filter", "no such test"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let output = check()
        .args(["micro", "--device", "emulator", "--group", "tpu"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("wgmma-sums"), "{}", text(&output));
}

#[test]
fn over_the_stand_in_every_kernel_and_instruction_takes_the_drivers_way() {
    let (driver, results) = (stand_in(), tempfile::tempdir().unwrap());
    let with_driver = |args: &[&str]| {
        let output = check()
            .env("LD_LIBRARY_PATH", driver.path())
            .args(args)
            .output()
            .unwrap();
        (output.status.code(), text(&output))
    };
    let (status, said) = with_driver(&["gpu"]);
    assert_eq!(
        (status, said.trim()),
        (
            Some(0),
            "stand-in (PTX emulator), compute capability 9.0, driver for CUDA 13.0"
        )
    );

    let out = results.path().join("micro.jsonl").display().to_string();
    let (status, said) = with_driver(&["micro", "--filter", "sync", "--out", &out]);
    assert_eq!(status, Some(0), "{said}");
    let lines = fs::read_to_string(&out).unwrap();
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["device"], "stand-in (PTX emulator)");
    assert!(
        lines
            .lines()
            .skip(1)
            .all(|line| line.contains("\"verdict\":\"identical\""))
    );

    let (status, said) = with_driver(&[
        "repeat",
        "--quick",
        "--launches",
        "2",
        "--filter",
        "fused_f16_d64",
    ]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("0 of 16512 elements differ"), "{said}");

    let (status, said) = with_driver(&["dense", "--divisor", "4096"]);
    assert_eq!(status, Some(0), "{said}");
}

/// Tensor maps, in parameters and in memory, and clusters go the driver's way too; so do whole kernels of 8-bit elements.
#[test]
fn over_the_stand_in_hopper_takes_the_drivers_way() {
    let (driver, results) = (stand_in(), tempfile::tempdir().unwrap());
    let with_driver = |args: &[&str]| {
        let mut command = check();
        command.env("LD_LIBRARY_PATH", driver.path()).args(args);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        text(&output)
    };
    for group in ["tma", "cluster", "registers", "pipeline"] {
        let said = with_driver(&["micro", "--group", group]);
        assert!(said.contains(" 0 DIFFERENT, 0 failed, 0 skipped"), "{said}");
    }
    let out = results.path().join("maps.json");
    let said = with_driver(&["maps", "--out", out.to_str().unwrap()]);
    assert!(
        said.ends_with("19 tensor maps, 19 with the same bytes or refused\n"),
        "{said}"
    );
    let maps: serde_json::Value = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert_eq!(maps["maps"][0]["device"], maps["maps"][0]["emulator"]);

    let small = ["repeat", "--quick", "--launches", "2", "--filter"];
    let said = with_driver(&[&small[..], &["e4m3_d64_sm90a"]].concat());
    assert!(said.contains(" 0 not; 0 kernels skipped"), "{said}");
    assert!(said.contains("emulator (fast): 0 of "), "{said}");
}

/// On a GPU without the tier its tests and kernels are left out, which is no failure.
#[test]
fn what_an_older_gpu_lacks_is_left_out() {
    let driver = stand_in();
    for (args, says) in [
        (&["micro", "--group", "pipeline"][..], "0 failed, 6 skipped"),
        (
            &["repeat", "--filter", "e4m3_d64_sm90a"],
            "0 problems: 0 with equal bits, 0 not; 1 kernels skipped",
        ),
        (&["maps"], "tensor maps"),
    ] {
        let mut command = check();
        command
            .env("LD_LIBRARY_PATH", driver.path())
            .env("FLASHTILE_STAND_IN_CAPABILITY", "8.0")
            .args(args);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert!(text(&output).contains(says), "{}", text(&output));
    }
}

/// A fault costs a process its GPU. The tests after it run in another.
#[test]
fn after_a_fault_a_new_process_goes_on() {
    let (driver, results) = (stand_in(), tempfile::tempdir().unwrap());
    let out = results.path().join("micro.jsonl");
    let mut command = check();
    command
        .env("LD_LIBRARY_PATH", driver.path())
        .env("FLASHTILE_STAND_IN_FAULT", "bar.red.or.pred %p1, 0, %p0");
    command
        .args(["micro", "--filter", "bar.", "--out"])
        .arg(&out);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    assert!(
        said.contains("the device is lost; a new process goes on"),
        "{said}"
    );
    assert!(said.contains("9 tests: 8 identical, 0 differ in bits of NaN, 0 differ as allowed, 0 answered, 0 DIFFERENT, 1 failed, 0 skipped"), "{said}");
    assert_eq!(fs::read_to_string(&out).unwrap().lines().count(), 10);
}

//! What is written, and what is left behind when it can't be.

mod common;

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::*;
use safetensors::Dtype;

/// `attend` with an output that can't be written.
fn unwritable(bench: &Bench, output: &str, words: &[&str]) {
    let input = bench.input.to_str().unwrap();
    let result = run(&["attend", input, "--device", "cpu", "-o", output]);
    fails(&result, 2, words);
}

#[test]
fn paths_that_cannot_be_written() {
    let bench = Bench::new(&small());
    let text = |name: &str| bench.path(name).to_str().unwrap().to_owned();
    unwritable(&bench, &text("none/out"), &["none/out", "No such file"]);
    unwritable(
        &bench,
        &text("in.safetensors/out"),
        &["in.safetensors/out", "expected a file"],
    );
    unwritable(&bench, &text(""), &["folder"]);
    unwritable(&bench, "/", &["folder"]);
    unwritable(&bench, &text("new/"), &["new/", "folder"]);
    unwritable(&bench, "/dev/full", &["/dev/full", "device"]);
    unwritable(&bench, "/proc/out", &["/proc/out"]);
    unwritable(
        &bench,
        &text("in.safetensors"),
        &["in.safetensors", "other than the input"],
    );
    unwritable(&bench, &text("./in.safetensors"), &["other than the input"]);
    assert!(bench.others().is_empty(), "{:?}", bench.others());
    assert_eq!(fs::read(&bench.input).unwrap(), small());
    fs::create_dir(bench.path("folder")).unwrap();
    unwritable(&bench, &text("folder"), &["folder"]);
    let existing = bench.path("read-only");
    fs::write(&existing, "kept").unwrap();
    let mut permissions = fs::metadata(&existing).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&existing, permissions).unwrap();
    unwritable(&bench, &text("read-only"), &["read-only file"]);
    assert_eq!(fs::read(&existing).unwrap(), b"kept");
}

#[test]
fn an_existing_file_is_replaced_only_by_a_whole_one() {
    let bench = Bench::new(&small());
    let out = bench.path("out.safetensors");
    fs::write(&out, "old").unwrap();
    let bad = bench.attend(&["--scale", "nan"]);
    fails(&bad, 2, &["scale"]);
    assert_eq!(fs::read(&out).unwrap(), b"old");
    succeeds(&bench.attend(&[]));
    assert_eq!(bench.out("out").1, [1, 5, 2, 8]);
    assert_eq!(bench.others(), ["out.safetensors"]);
}

#[test]
#[cfg(unix)]
fn a_symbolic_link_is_followed() {
    let bench = Bench::new(&small());
    let real = bench.path("real");
    fs::write(&real, "old").unwrap();
    std::os::unix::fs::symlink(&real, bench.path("out.safetensors")).unwrap();
    succeeds(&bench.attend(&[]));
    let link = fs::symlink_metadata(bench.path("out.safetensors")).unwrap();
    assert!(link.is_symlink());
    assert_eq!(read(&real, "lse").1, [1, 2, 5]);
}

/// A limit on the size of files stands for a disk that fills up.
#[test]
#[cfg(unix)]
fn a_full_disk() {
    let shape = [1, 200, 1, 64];
    let bench = Bench::new(&encode(&qkv(Dtype::F16, &shape, &shape, &shape)));
    let script = r#"trap '' XFSZ; ulimit -f 4; exec "$0" "$@""#;
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_flashtile"), "attend"])
        .arg(&bench.input)
        .args(["--device", "cpu", "-o"])
        .arg(bench.path("out.safetensors"))
        .output()
        .unwrap();
    fails(
        &output,
        2,
        &["out.safetensors", "expected a file that can be written"],
    );
    assert!(bench.others().is_empty(), "{:?}", bench.others());
}

#[test]
#[cfg(unix)]
fn an_interrupt_leaves_nothing_behind() {
    // Half a teraflop: long enough on any CPU.
    let shape = [1, 1 << 15, 4, 32];
    let bench = Bench::new(&encode(&qkv(Dtype::F16, &shape, &shape, &shape)));
    let mut child = flashtile()
        .arg("attend")
        .arg(&bench.input)
        .args(["--device", "cpu", "-o"])
        .arg(bench.path("out.safetensors"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while bench.others().is_empty() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "no temporary file"
        );
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        thread::sleep(Duration::from_millis(5));
    }
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(bench.others().is_empty(), "{:?}", bench.others());
}

#[test]
fn a_reader_that_goes_away() {
    for args in [&["kernels"][..], &["doctor"], &["--help"]] {
        let mut child = flashtile()
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && stderr.is_empty(),
            "{args:?}: {stderr}"
        );
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_standard_output_that_is_full() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = flashtile().arg("kernels").stdout(full).output().unwrap();
    fails(&output, 2, &["standard output"]);
}

#[test]
fn emitted_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("a/b");
    let text = target.to_str().unwrap();
    succeeds(&run(&[
        "kernels",
        "--emit",
        text,
        "--filter",
        "fused_f16_d64",
    ]));
    // What was emitted runs, whichever tier it is of.
    let bench = Bench::new(&encode(&qkv(
        Dtype::F16,
        &[1, 3, 1, 64],
        &[1, 4, 1, 64],
        &[1, 4, 1, 64],
    )));
    for variant in ["fused_f16_d64_sm80", "fused_f16_d64_sm90a"] {
        let file = target.join(format!("{variant}.ptx"));
        let ptx = fs::read_to_string(&file).unwrap();
        assert!(ptx.contains(&format!(".entry {variant}(")));
        let file = file.to_str().unwrap();
        let options = ["--device", "emulator", "--ptx", file, "--check", "--json"];
        let found = succeeds(&bench.attend(&options));
        assert!(found.contains(&format!("\"{variant}\"")), "{found}");
    }
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    fails(
        &run(&["kernels", "--emit", file.to_str().unwrap()]),
        2,
        &["expected a folder"],
    );
}

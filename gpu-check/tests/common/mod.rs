//! The stand-in for the driver.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod door;

use std::{env, fs, process::Command};

/// A folder with the stand-in under the driver's name.
pub fn stand_in() -> tempfile::TempDir {
    // target/PROFILE/deps/NAME-HASH; examples lie beside deps.
    let program = env::current_exe().unwrap();
    let library = program
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples/libcuda.so");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(&library, folder.path().join("libcuda.so.1")).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; `cargo test` builds it, with --test it takes --examples",
            library.display()
        )
    });
    folder
}

/// The same without one of its functions, as an older driver is: under the function's name there is another one.
pub fn stand_in_without(function: &str) -> tempfile::TempDir {
    let folder = stand_in();
    let library = folder.path().join("libcuda.so.1");
    let mut bytes = fs::read(&library).unwrap();
    let name = format!("\0{function}\0").into_bytes();
    let places: Vec<_> = (0..bytes.len())
        .filter(|&at| bytes[at..].starts_with(&name))
        .collect();
    assert!(!places.is_empty(), "there is no {function}");
    for at in places {
        bytes[at + 1] = b'x';
    }
    fs::write(&library, bytes).unwrap();
    folder
}

/// Runs an ignored test of this program in a process that finds the stand-in.
pub fn in_a_process_with_the_stand_in(test: &str) {
    with_the_stand_in_and(test, &[]);
}

/// The same, with variables of its environment.
pub fn with_the_stand_in_and(test: &str, variables: &[(&str, &str)]) {
    with_driver(test, &stand_in(), variables);
}

/// The same with the driver of this folder.
pub fn with_driver(test: &str, folder: &tempfile::TempDir, variables: &[(&str, &str)]) {
    let program = env::current_exe().unwrap();
    let mut command = Command::new(&program);
    command
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder.path())
        .envs(variables.iter().copied());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

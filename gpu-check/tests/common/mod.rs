//! The stand-in for the driver.

use std::{env, fs};

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

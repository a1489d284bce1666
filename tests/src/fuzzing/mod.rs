//! What the fuzz targets of `fuzz/` assert. Each function takes any bytes and panics if a promise is broken.
//!
//! They are here, and not in `fuzz/`, so that `cargo test` replays the committed corpus without libFuzzer
//! (`tests/tests/corpus.rs`).

mod files;
mod problems;
mod programs;
mod ptx;

pub use files::safetensors;
pub use problems::plan;
pub use programs::{check, emulator};
pub use ptx::ptx_parse;

use flashtile_emulator::Options;

/// How the emulator behaves under the fuzzers.
fn options() -> Options {
    Options {
        // Nothing that they run comes near it.
        max_instructions: Some(50_000_000),
        sanitize: true,
        ..Options::default()
    }
}

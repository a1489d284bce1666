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

use flashtile::Problem;
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

/// Multiply-adds of a problem, masks not counted; `None` on overflow.
fn work(problem: &Problem) -> Option<u128> {
    let s = problem.shape();
    let sizes = [
        s.batch,
        s.heads_q,
        s.seqlen_q,
        s.seqlen_k.max(1),
        s.head_dim_qk + s.head_dim_v,
    ];
    sizes
        .iter()
        .try_fold(1u128, |work, &n| work.checked_mul(n as u128))
}

//! Embeds the archive of kernels, after making sure that it is of these very sources.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let folder = |name| env::var_os(name).map(PathBuf::from);
    let (Some(host), Some(out)) = (folder("CARGO_MANIFEST_DIR"), folder("OUT_DIR")) else {
        eprintln!("error: a build script needs CARGO_MANIFEST_DIR and OUT_DIR");
        return ExitCode::FAILURE;
    };
    match flashtile_builder::embed(&host, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

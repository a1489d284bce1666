//! The `flashtile` command.
//!
//! Exit status: 0 right, 1 wrong result, 2 bad input, 3 no such device or variant, 130 interrupted.
//! Every error is one line on stderr.

mod args;
mod attend;
mod bench;
mod doctor;
mod findings;
mod interrupt;
mod kernels;
mod output;
mod progress;
mod serve;
mod target;
mod verify;

use std::process::ExitCode;

use args::Command;
use failure::Outcome;
// The modules that the library half holds, under the names that the others use.
use flashtile_cli::{failure, input, memory};

fn main() -> ExitCode {
    interrupt::install();
    let outcome = match args::parse(std::env::args_os()) {
        Ok(Some(Command::Attend(args))) => attend::run(&args),
        Ok(Some(Command::Kernels(args))) => kernels::run(&args),
        Ok(Some(Command::Doctor(args))) => doctor::run(&args),
        Ok(Some(Command::Bench(args))) => bench::run(&args),
        Ok(Some(Command::Verify(args))) => verify::run(&args),
        // Help or version, printed already.
        Ok(None) => Ok(Outcome::Right),
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(Outcome::Right) => ExitCode::SUCCESS,
        Ok(Outcome::Wrong) => ExitCode::from(1),
        // Whoever closed our stdout has read what they wanted.
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            output::error_line(&failure.to_string());
            ExitCode::from(failure.exit_status())
        }
    }
}

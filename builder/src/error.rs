//! What can go wrong, each with what to do about it.

use std::path::{Path, PathBuf};

use crate::check::Problem;

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no PTX, or no archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}: {source}")]
    Spawn {
        /// Which one.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// No compiler on this machine can compile for nvptx64-nvidia-cuda.
    #[error(
        "no rustc here has the sources of core, which the kernels need ({tried})\n\
         install them with one of:\n{}",
        crate::toolchain::INSTALL
    )]
    NoToolchain {
        /// What was looked at, and what each lacks.
        tried: String,
    },
    /// The compiler named by the environment is unfit.
    #[error(
        "FLASHTILE_RUSTC={}: {why}\n\
         name another, or unset it and install one of:\n{}",
        path.display(),
        crate::toolchain::INSTALL
    )]
    BadToolchain {
        /// The value of the variable.
        path: PathBuf,
        /// What it lacks.
        why: String,
    },
    /// rustc rejected the kernels.
    #[error("the kernels do not compile for {arch}:\n{stderr}")]
    Compile {
        /// Target.
        arch: String,
        /// What the compiler wrote.
        stderr: String,
    },
    /// The compiler's PTX is not what this crate knows how to finish.
    #[error("PTX, line {line}: {what}")]
    Ptx {
        /// Line of the compiler's output, from 1; 0 for the whole.
        line: usize,
        /// What was expected or found.
        what: String,
    },
    /// The PTX has what it must not have.
    #[error("the PTX is rejected:\n{}", list(.0))]
    Rejected(Vec<Problem>),
    /// ptxas rejected the PTX or a limit was passed.
    #[error("ptxas {entry}: {what}")]
    Ptxas {
        /// Entry point.
        entry: String,
        /// What it wrote.
        what: String,
    },
    /// The machine code is not what this crate knows how to read.
    #[error("machine code of {entry}: {what}")]
    Sass {
        /// Entry point.
        entry: String,
        /// What was expected or found.
        what: String,
    },
    /// The archive is older than the kernels and can't be rebuilt here.
    #[error(
        "the archive of kernels is stale: the sources of kernels/ and abi/ have changed since it was built, \
         and it cannot be rebuilt here: {why}"
    )]
    Stale {
        /// Why not.
        why: Box<Error>,
    },
    /// The archive or its manifest is damaged.
    #[error("{what}")]
    Archive {
        /// What is wrong with it.
        what: String,
    },
}

impl Error {
    /// For `map_err` on the operations of `std::fs`.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// For `map_err` on starting a program.
    pub(crate) fn spawn(program: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let program = program.as_ref().display().to_string();
        move |source| Self::Spawn { program, source }
    }

    pub(crate) fn ptx(line: usize, what: impl Into<String>) -> Self {
        Self::Ptx {
            line,
            what: what.into(),
        }
    }

    pub(crate) fn sass(entry: &str, what: impl Into<String>) -> Self {
        Self::Sass {
            entry: entry.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn archive(what: impl Into<String>) -> Self {
        Self::Archive { what: what.into() }
    }
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(|p| format!("  {p}")).collect();
    lines.join("\n")
}

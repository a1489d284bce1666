//! How a command ends.

use std::io;

use flashtile::ErrorClass;

/// A command that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit status 0.
    Right,
    /// Exit status 1: a result is past its bound.
    Wrong,
}

/// A command that did not.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something given is wrong.
    #[error("{0}")]
    Input(String),
    /// What the library says.
    #[error(transparent)]
    Library(#[from] flashtile::Error),
    /// Standard output can't be written.
    #[error("standard output: {0}")]
    Stdout(io::Error),
}

/// Result of a step of a command.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// Bad input: what, what was expected, what was found.
    pub fn bad(
        what: impl std::fmt::Display,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::Input(format!("{what}: expected {expected}, found {found}"))
    }

    /// The process's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Input(_) | Self::Stdout(_) => 2,
            Self::Library(error) => match error.class() {
                ErrorClass::BadInput | ErrorClass::OutOfMemory => 2,
                ErrorClass::NoDevice | ErrorClass::NoVariant | ErrorClass::Driver => 3,
                // A kernel that does what it must not gives no right result.
                ErrorClass::Fault => 1,
            },
        }
    }

    /// Whether the reader of standard output has gone.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

//! What can go wrong, and whose fault it is.

use flashtile_abi::{Algorithm, Arch, DType};

/// Why a problem could not be planned, launched or answered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument contradicts the others or breaks a rule of its own.
    #[error("{argument}: expected {expected}, found {found}")]
    BadInput {
        /// The argument, as the library spells it: `q`, `k`, `v`, `out`, `lse`, `scale`, ...
        argument: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The problem is sound, but no kernel computes it.
    #[error("no kernel for {algorithm} attention on {arch} with {dtype} elements: {missing}",
        algorithm = algorithm.as_str(), arch = arch.as_str(), dtype = dtype.as_str())]
    NoVariant {
        /// Algorithm asked for.
        algorithm: Algorithm,
        /// Target asked for or chosen.
        arch: Arch,
        /// Element type of q, k and v.
        dtype: DType,
        /// Which requirement nothing meets.
        missing: String,
    },
    /// There is no such device, or it is too old.
    #[error("no device: {reason}")]
    NoDevice {
        /// What was looked for and not found.
        reason: String,
    },
    /// The archive of kernels has no such PTX, or cannot be read.
    #[error("the archive of kernels has no `{variant}`: {reason}")]
    Archive {
        /// Name of the kernel.
        variant: String,
        /// What the archive's reader says.
        reason: String,
    },
    /// A kernel was started and did something that it must not, or its module cannot be loaded.
    #[error("fault in {context}: {reason}")]
    Fault {
        /// The kernel or the call.
        context: String,
        /// What the device says.
        reason: String,
    },
    /// The emulator's sanitizer found something. Nothing of the launch can be trusted.
    #[cfg(feature = "emulator")]
    #[error("findings in {context}: {}", .report.summary())]
    Findings {
        /// The kernel.
        context: String,
        /// All of them.
        report: Box<crate::device::emulator::Report>,
    },
    /// A call of the device's driver failed.
    #[error("{call} failed: {reason}")]
    Driver {
        /// The call.
        call: &'static str,
        /// The driver's name for the error, and its description.
        reason: String,
    },
    /// An exchange between ranks failed: here, or with a peer.
    #[error("{call} between ranks failed: {reason}")]
    Exchange {
        /// The call.
        call: &'static str,
        /// What is known of it.
        reason: String,
    },
    /// The device has too little memory left.
    #[error("out of device memory: {requested} bytes do not fit ({reason})")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// What the device says.
        reason: String,
    },
}

/// Kind of an [`Error`], for exit statuses and retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The caller's arguments are wrong.
    BadInput,
    /// There is no such device.
    NoDevice,
    /// There is a device, but no kernel for the problem.
    NoVariant,
    /// A kernel misbehaved.
    Fault,
    /// The driver refused, or an exchange between ranks failed.
    Driver,
    /// Device memory is exhausted.
    OutOfMemory,
}

impl Error {
    /// What kind of error it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::BadInput { .. } => ErrorClass::BadInput,
            Self::NoVariant { .. } | Self::Archive { .. } => ErrorClass::NoVariant,
            Self::NoDevice { .. } => ErrorClass::NoDevice,
            Self::Fault { .. } => ErrorClass::Fault,
            #[cfg(feature = "emulator")]
            Self::Findings { .. } => ErrorClass::Fault,
            Self::Driver { .. } | Self::Exchange { .. } => ErrorClass::Driver,
            Self::OutOfMemory { .. } => ErrorClass::OutOfMemory,
        }
    }

    pub(crate) fn bad(
        argument: &'static str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::BadInput {
            argument,
            expected: expected.into(),
            found: found.into(),
        }
    }
}

/// Result of the library's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

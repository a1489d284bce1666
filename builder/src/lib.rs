//! Rust kernels to PTX: compiles the kernel crate with rustc's own NVPTX backend, adds what Rust can't
//! say, rejects what must not be in a kernel, has ptxas prove the rest, and packs the archive that the
//! flashtile crate embeds.
//!
//! - [`Builder`] is the way from a crate to PTX.
//! - [`Workspace`] is the way to the archive: built, checked, or made sure to be fresh.
//! - [`sass`] measures the machine code, [`limits`] says what no kernel may pass.
//! - [`embed`] is the whole of the flashtile crate's build script.

pub mod archive;
pub mod builder;
pub mod check;
pub mod compile;
pub mod disassemble;
pub mod error;
pub mod finish;
pub mod limits;
pub mod ptx;
pub mod ptxas;
pub mod sass;
pub mod sources;
pub mod spec;
pub mod toolchain;
pub mod workspace;

mod embed;
mod parallel;

pub use archive::Archive;
pub use builder::{Build, Builder, Kernel};
pub use embed::embed;
pub use error::{Error, Result};
pub use flashtile_abi::Arch;
pub use ptxas::{Facts, Ptxas};
pub use toolchain::Toolchain;
pub use workspace::{Freshness, Workspace};

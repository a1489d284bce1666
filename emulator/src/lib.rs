//! Runs PTX text on the CPU, warp by warp.
//!
//! An [`Emulator`] is a device: memory, and a way to launch the entries of a [`Module`] over a grid. It does what the
//! PTX manual says and nothing kinder: memory that was never written holds poison, asynchronous copies land as late as
//! they may, and the first access that is out of bounds, misaligned or null, barrier that not all threads reach, or
//! instruction that needs a converged warp and has none, ends the launch with a [`Fault`] that names the block, the
//! thread, the line and the instruction.
//!
//! ```
//! use flashtile_emulator::{Emulator, Launch, Module, Options};
//!
//! let module = Module::parse(
//!     ".version 7.8
//!      .target sm_80
//!      .address_size 64
//!      .visible .entry twice(.param .u64 data)
//!      {
//!          .reg .b32 %r<3>;
//!          .reg .b64 %rd<4>;
//!          ld.param.u64 %rd1, [data];
//!          mov.u32 %r1, %tid.x;
//!          mul.wide.u32 %rd2, %r1, 4;
//!          add.s64 %rd3, %rd1, %rd2;
//!          ld.global.u32 %r2, [%rd3];
//!          shl.b32 %r2, %r2, 1;
//!          st.global.u32 [%rd3], %r2;
//!          ret;
//!      }",
//! )?;
//! let device = Emulator::new(Options::default());
//! let data = device.allocate(4 * 64)?;
//! device.write(data, &[3, 0, 0, 0].repeat(64))?;
//! let launch = Launch { grid: [1, 1, 1], block: [64, 1, 1], cluster: None, dynamic_shared: 0, params: &data.to_le_bytes() };
//! device.launch(&module, "twice", &launch)?;
//! let mut out = [0; 4];
//! device.read(data + 4 * 63, &mut out)?;
//! assert_eq!(u32::from_le_bytes(out), 6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Addresses
//!
//! Device allocations are 256-aligned, never overlap, are never reused, and have unallocated gaps between them. Shared
//! memory starts at address 0x400 of its window, as on hardware, so a null shared pointer is out of bounds. A generic
//! address below 2^56 is a global one; shared, local and parameter memory appear at windows above that.

mod decode;
mod device;
mod error;
mod exec;
mod geometry;
pub mod isa;
mod memory;
mod module;
mod numerics;
mod parse;
mod program;
mod sanitize;
pub mod semantics;
mod tensor_map;

pub use device::{AsyncTiming, BlockOrder, Emulator, Launch, Options, Schedule, Stats};
pub use error::{Fault, FaultKind, LaunchError, MemoryError, ParseError, Space, Waiter};
pub use module::{Entry, Module, Param};
pub use numerics::{Numerics, TensorCores, UnknownTensorCores};
pub use sanitize::{Finding, Report, Rule, Site};
pub use tensor_map::{
    ElementType, L2Promotion, OobFill, Swizzle, TENSOR_MAP_BYTES, TensorMap, TensorMapError,
};

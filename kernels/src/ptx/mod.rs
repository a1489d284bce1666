//! PTX instructions, one function each, no policy. Nowhere else is there `asm!` or an LLVM intrinsic.
//!
//! Whatever several threads execute together (barriers, shuffles, mma) is an LLVM intrinsic: those are
//! convergent, so the compiler neither duplicates them nor moves them under a condition. `ldmatrix` is
//! `asm!` because its intrinsic wants an address-space pointer that Rust does not have; keep it in
//! straight-line code beside an mma, whose intrinsic pins the block.
//!
//! Shared addresses are the 32-bit offsets of the shared window, global ones 64-bit.

pub mod atomic;
pub mod cluster;
pub mod copy;
pub mod math;
pub mod mbarrier;
pub mod mma;
pub mod special;
pub mod sync;
pub mod tma;
pub mod wgmma;

//! flashtile's kernels: device code for `nvptx64-nvidia-cuda`, compiled to PTX by flashtile-builder.
//!
//! Layers, each knowing only the ones before it: [`ptx`] (instructions), [`element`] and [`tile`]
//! (fragments, register and shared tiles, copies), [`attention`] (masks, softmax, kernels over dense tensors), [`serving`] (kernels
//! for inference engines), [`cache`] (rows and blocks in and out of caches), [`check`] (numbers on the device that kernels follow).
#![no_std]
#![feature(
    abi_ptx,
    abi_unadjusted,
    asm_experimental_arch,
    link_llvm_intrinsics,
    stdarch_nvptx
)]
#![allow(internal_features, improper_ctypes)]
// Iterators over arrays live in memory; indices that are constant after unrolling, in registers.
#![allow(clippy::needless_range_loop)]
#![cfg_attr(not(target_arch = "nvptx64"), allow(unused))]

pub mod attention;
pub mod cache;
pub mod check;
pub mod element;
pub mod ptx;
pub mod serving;
pub mod tile;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The builder rejects PTX in which a panic is reachable.
    loop {}
}

//! Special registers and symbols.

use core::arch::asm;
use core::arch::nvptx;

/// `%tid.x`
#[inline(always)]
pub fn thread_idx() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_thread_idx_x() as u32 }
}

/// `%ctaid.x`
#[inline(always)]
pub fn block_idx() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_block_idx_x() as u32 }
}

/// `%nctaid.x`
#[inline(always)]
pub fn grid_size() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_grid_dim_x() as u32 }
}

/// Shared address of the block's dynamic shared memory, which the builder declares (aligned to 1024).
#[inline(always)]
pub fn shared_base() -> u32 {
    let address: u32;
    // SAFETY: takes an address, touches no memory.
    unsafe {
        asm!("mov.u32 {}, flashtile_smem;", out(reg32) address, options(pure, nomem, nostack, preserves_flags));
    }
    address
}

/// `value`, of which the compiler knows nothing: keeps a cold loop rolled.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    let out: u32;
    // SAFETY: a register move.
    unsafe {
        asm!("mov.u32 {}, {};", out(reg32) out, in(reg32) value, options(nomem, nostack, preserves_flags));
    }
    out
}

/// As [`opaque`]: keeps the compiler from deriving the value in another way.
#[inline(always)]
pub fn opaque_u64(value: u64) -> u64 {
    let out: u64;
    // SAFETY: a register move.
    unsafe {
        asm!("mov.u64 {}, {};", out(reg64) out, in(reg64) value, options(nomem, nostack, preserves_flags));
    }
    out
}

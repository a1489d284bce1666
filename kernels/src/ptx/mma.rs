//! Tensor-core products of one warp and the fragment loads that feed them.
//!
//! Fragments (g = lane / 4, t = lane % 4): an accumulator holds rows g and g + 8, columns 2t and
//! 2t + 1, as [(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)]. Manual: section 9.7.14.5.

use core::arch::asm;

#[repr(C)]
struct Accum(f32, f32, f32, f32);

unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.mma.m16n8k16.row.col.bf16"]
    fn mma_bf16(
        a0: u32,
        a1: u32,
        a2: u32,
        a3: u32,
        b0: u32,
        b1: u32,
        c0: f32,
        c1: f32,
        c2: f32,
        c3: f32,
    ) -> Accum;
    #[link_name = "llvm.nvvm.mma.m16n8k8.row.col.tf32"]
    fn mma_tf32(
        a0: u32,
        a1: u32,
        a2: u32,
        a3: u32,
        b0: u32,
        b1: u32,
        c0: f32,
        c1: f32,
        c2: f32,
        c3: f32,
    ) -> Accum;
}

/// `mma.sync.m16n8k16 f32.bf16.bf16.f32`: a * b + c.
#[inline(always)]
pub fn m16n8k16_bf16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    // SAFETY: all lanes of the warp execute it (the callers' control flow is uniform).
    let d = unsafe { mma_bf16(a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]) };
    [d.0, d.1, d.2, d.3]
}

/// `mma.sync.m16n8k16 f32.f16.f16.f32`: a * b + c.
///
/// `asm!`, because the intrinsic takes vectors of f16, which Rust can't pass. Not `pure`, so that it
/// stays where it is: beside the shuffles of the softmax, in blocks that can't be duplicated.
#[inline(always)]
pub fn m16n8k16_f16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    let mut d = c;
    let [d0, d1, d2, d3] = &mut d;
    // SAFETY: uniform control flow as above.
    unsafe {
        asm!(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{d0}, {d1}, {d2}, {d3}}}, \
             {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {{{d0}, {d1}, {d2}, {d3}}};",
            d0 = inout(reg32) *d0, d1 = inout(reg32) *d1, d2 = inout(reg32) *d2, d3 = inout(reg32) *d3,
            a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
            b0 = in(reg32) b[0], b1 = in(reg32) b[1],
            options(nomem, nostack, preserves_flags)
        );
    }
    d
}

/// `mma.sync.m16n8k8 f32.tf32.tf32.f32`: a * b + c.
#[inline(always)]
pub fn m16n8k8_tf32(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    // SAFETY: uniform control flow as above.
    let d = unsafe { mma_tf32(a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]) };
    [d.0, d.1, d.2, d.3]
}

/// `ldmatrix.sync.aligned.m8n8.x4.shared.b16`: four 8x8 matrices; lane 8j + i names row i of matrix j.
#[inline(always)]
pub fn ldmatrix_x4(address: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the callers pass 16-byte aligned addresses of rows inside the block's shared memory.
    unsafe {
        asm!(
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) address,
            options(readonly, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

/// `ldmatrix...trans`: as [`ldmatrix_x4`], each matrix transposed.
#[inline(always)]
pub fn ldmatrix_x4_trans(address: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: as for `ldmatrix_x4`.
    unsafe {
        asm!(
            "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) address,
            options(readonly, nostack, preserves_flags)
        );
    }
    [a, b, c, d]
}

/// `stmatrix.sync.aligned.m8n8.x4.shared.b16`: the inverse of [`ldmatrix_x4`].
#[inline(always)]
pub fn stmatrix_x4(address: u32, rows: [u32; 4]) {
    // SAFETY: as for `ldmatrix_x4`.
    unsafe {
        asm!(
            "stmatrix.sync.aligned.m8n8.x4.shared.b16 [{}], {{{}, {}, {}, {}}};",
            in(reg32) address, in(reg32) rows[0], in(reg32) rows[1], in(reg32) rows[2], in(reg32) rows[3],
            options(nostack, preserves_flags)
        );
    }
}

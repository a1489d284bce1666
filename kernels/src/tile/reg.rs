//! Accumulator tiles in registers.

use crate::ptx::wgmma::{Descriptor, Wgmma};

/// One warp's accumulators: `M_FRAGS` x `N_FRAGS` fragments of 16 rows and 8 columns.
///
/// Indices must be constants after unrolling, or the tile leaves the registers.
pub trait AccumTile: Copy {
    /// Fragments of 16 rows.
    const M_FRAGS: usize;
    /// Fragments of 8 columns.
    const N_FRAGS: usize;
    /// All zeros.
    const ZERO: Self;
    /// The fragment in row `m`, column `n`.
    fn frag(&self, m: usize, n: usize) -> &[f32; 4];
    /// As [`frag`](Self::frag), to change it.
    fn frag_mut(&mut self, m: usize, n: usize) -> &mut [f32; 4];
}

/// The accumulator tile of `M` x `N` fragments.
#[derive(Clone, Copy)]
pub struct RegTile<const M: usize, const N: usize>([[[f32; 4]; N]; M]);

impl<const M: usize, const N: usize> AccumTile for RegTile<M, N> {
    const M_FRAGS: usize = M;
    const N_FRAGS: usize = N;
    const ZERO: Self = Self([[[0.0; 4]; N]; M]);

    #[inline(always)]
    fn frag(&self, m: usize, n: usize) -> &[f32; 4] {
        &self.0[m][n]
    }

    #[inline(always)]
    fn frag_mut(&mut self, m: usize, n: usize) -> &mut [f32; 4] {
        &mut self.0[m][n]
    }
}

/// Most 16-row fragments a warp may own.
pub const MAX_M_FRAGS: usize = 2;

/// One value for each query row that a lane shares in: rows g and g + 8 of every fragment.
pub type RowVec = [[f32; 2]; MAX_M_FRAGS];

impl<T, const N: usize> Wgmma<T> for RegTile<1, N>
where
    [[f32; 4]; N]: Wgmma<T>,
{
    #[inline(always)]
    unsafe fn mm_ss(&mut self, a: Descriptor, b: Descriptor) {
        // SAFETY: the caller's promise. So below.
        unsafe { self.0[0].mm_ss(a, b) }
    }

    #[inline(always)]
    unsafe fn mma_ss(&mut self, a: Descriptor, b: Descriptor) {
        // SAFETY: as above.
        unsafe { self.0[0].mma_ss(a, b) }
    }

    #[inline(always)]
    unsafe fn mm_rs(&mut self, a: [u32; 4], b: Descriptor) {
        // SAFETY: as above.
        unsafe { self.0[0].mm_rs(a, b) }
    }

    #[inline(always)]
    unsafe fn mma_rs(&mut self, a: [u32; 4], b: Descriptor) {
        // SAFETY: as above.
        unsafe { self.0[0].mma_rs(a, b) }
    }

    #[inline(always)]
    unsafe fn mma_rs_if(&mut self, a: [u32; 4], b: Descriptor, keep: bool) {
        // SAFETY: as above.
        unsafe { self.0[0].mma_rs_if(a, b, keep) }
    }
}

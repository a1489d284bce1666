//! 16-bit elements: probabilities are left operands as they are, values are read as they lie.

use super::config::{Arithmetic, Config, ConfigExt, Launch};
use super::consumer::Rows;
use super::scheduler::Work;
use crate::attention::mask::Masking;
use crate::attention::softmax::{self, Care, Growth, RowStats};
use crate::element::{self, Element};
use crate::ptx::wgmma::{self, Descriptor, Wgmma};
use crate::tile::reg::AccumTile;
use flashtile_abi::{DType, HopperParams};

/// How far (in powers of two) a row's maximum may grow before its sums are rescaled. 0: whenever it grows. Probabilities are then
/// up to 2^8, which 16-bit types hold as well as 1. (FlashAttention-4's kernels for Blackwell do so.)
const RESCALE_ABOVE: f32 = 8.0;

/// A 16-bit element type on Hopper.
pub trait HopperElement: Element<FragA = [u32; 4]> {
    /// Its name among the operands of products.
    type Operand;
}

impl HopperElement for element::F16 {
    type Operand = wgmma::F16;
}

impl HopperElement for element::Bf16 {
    type Operand = wgmma::Bf16;
}

/// Arithmetic of a 16-bit type; `STEPS` steps of 16 keys in a tile.
pub struct Half<E, const STEPS: usize>(E);

impl<C, E, const STEPS: usize> Arithmetic<C> for Half<E, STEPS>
where
    E: HopperElement,
    C: Config<Scores: Wgmma<E::Operand>, Output: Wgmma<E::Operand>>,
{
    const DTYPE: DType = E::DTYPE;
    const OVERLAP: bool = true;
    const CAREFUL_FACTOR: f32 = E::CAREFUL_FACTOR;
    const SLACK: f32 = RESCALE_ABOVE;
    type Probabilities = [[u32; 4]; STEPS];
    type Sums = C::Output;
    type Scales = ();

    const START: C::Output = <C::Output as AccumTile>::ZERO;
    const NONE: [[u32; 4]; STEPS] = [[0; 4]; STEPS];
    const EXPONENT_OFFSET: f32 = 0.0;

    #[inline(always)]
    fn scales(_: &HopperParams, _: &Rows, _: &Work) {}

    #[inline(always)]
    unsafe fn mm_qk(q: Descriptor, k: Descriptor) -> C::Scores {
        // SAFETY: the caller's promise.
        unsafe { mm_qk::<C, E::Operand>(q, k) }
    }

    #[inline(always)]
    fn descale(_: &C::Params, _: &mut C::Scores, (): (), _: i32) {}

    #[inline(always)]
    fn absorb<M: Masking>(
        params: &C::Params,
        stats: &mut RowStats,
        scores: &mut C::Scores,
        (): (),
        _: i32,
        care: Care,
    ) -> Growth {
        stats.absorb_lazily(scores, params.exponent_scale(), M::exponents(care))
    }

    // The accumulators of two neighbouring 8-key fragments are the A fragment of 16 keys.
    #[inline(always)]
    fn pack(scores: &C::Scores) -> [[u32; 4]; STEPS] {
        const { assert!(STEPS == C::TILE.block_n as usize / 16) };
        let mut packed = [[0; 4]; STEPS];
        for step in 0..STEPS {
            packed[step] = E::frag_p(scores, 0, step);
        }
        packed
    }

    #[inline(always)]
    unsafe fn mma_pv(
        _: &C::Params,
        out: &mut C::Output,
        p: &[[u32; 4]; STEPS],
        v: Descriptor,
        (): (),
        _: i32,
    ) {
        if !C::OVERLAPS {
            wgmma::fence();
        }
        for step in 0..STEPS {
            let v = v.advance(1, C::V.across_step(step as u32));
            // SAFETY: the caller's promise.
            unsafe { Wgmma::<E::Operand>::mma_rs(out, p[step], v) };
        }
        if !C::OVERLAPS {
            wgmma::commit_group();
            wgmma::wait_group::<0>();
        }
    }

    #[inline(always)]
    fn collect(_: &C::Params, _: &mut C::Output, (): (), _: i32, _: bool) {}

    #[inline(always)]
    fn settle<M: Masking>(
        params: &C::Params,
        stats: &mut RowStats,
        out: &mut C::Output,
        growth: Growth,
        care: Care,
    ) {
        let (scale, exponents) = (params.exponent_scale(), M::exponents(care));
        if let Some(factor) = stats.settle::<C::Output, _>(growth, scale, exponents) {
            softmax::scale_rows(out, &factor);
        }
    }

    #[inline(always)]
    fn finish(out: C::Output) -> C::Output {
        out
    }

    #[inline(always)]
    fn out_factor(_: &HopperParams, _: &Work) -> f32 {
        1.0
    }

    #[inline(always)]
    fn max_scale(exponent_scale: f32) -> f32 {
        exponent_scale
    }

    #[inline(always)]
    fn pack_out(out: &C::Output, n: usize, _: u32) -> [u32; 4] {
        E::frag_p(out, 0, n)
    }
}

/// Q * K^T of any operand type, in flight.
///
/// # Safety
/// As for [`Arithmetic::mm_qk`].
#[inline(always)]
pub unsafe fn mm_qk<C: Config<Scores: Wgmma<T>>, T>(q: Descriptor, k: Descriptor) -> C::Scores {
    let mut scores = <C::Scores as AccumTile>::ZERO;
    // SAFETY: the caller's promise.
    unsafe {
        Wgmma::<T>::mm_ss(&mut scores, q, k);
        for step in 1..C::Q.row_bytes / 32 {
            let q = q.advance(1, C::Q.along_step(step));
            Wgmma::<T>::mma_ss(&mut scores, q, k.advance(1, C::K.along_step(step)));
        }
    }
    scores
}

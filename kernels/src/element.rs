//! Element types: how q, k and v meet the tensor cores.

use crate::ptx::{copy, math, mma};
use crate::tile::reg::AccumTile;
use crate::tile::smem::{FragmentView, SmemTile};
use flashtile_abi::DType;

/// An element type of q, k and v.
///
/// One step of a product takes 32 bytes of each row of A and B: 16 elements of 16 bits (m16n8k16) or
/// 8 of 32 bits (m16n8k8). In both, `ldmatrix` delivers the same 16-byte pieces to the same lanes.
pub trait Element: Copy {
    /// Its name on both sides of a launch.
    const DTYPE: DType;
    /// Keys consumed by one step of P * V.
    const KEYS_PER_STEP: usize;
    /// Steps of Q * K^T after which the tensor core's sum is added to the running one by an ordinary
    /// f32 addition. Tensor cores truncate when they accumulate; f32 inputs can't afford that over
    /// long sums (Ootomo and Yokota, arXiv:2203.03341).
    const STEPS_PER_SUM: usize;
    /// What probabilities are multiplied by in a block that takes care, so that the sum of 2^30 values of
    /// any size stays finite: a power of two. 1 where values are too small to overflow f32 (f16; its
    /// probabilities have no room for the factor either).
    const CAREFUL_FACTOR: f32;
    /// Left operand of a step, in registers.
    type FragA: Copy;
    /// Right operand of a step for 8 columns, in registers.
    type FragB: Copy;
    /// Where a lane finds its right operands in a V tile.
    type VView: Copy;

    /// Left operand from what `ldmatrix` delivers.
    fn frag_a(raw: [u32; 4]) -> Self::FragA;
    /// Right operand from what `ldmatrix` delivers.
    fn frag_b(raw: [u32; 2]) -> Self::FragB;
    /// a * b + c.
    fn mma(a: Self::FragA, b: Self::FragB, c: [f32; 4]) -> [f32; 4];
    /// The accumulators of P, `step`'s keys of fragment row `m`, as a left operand.
    fn frag_p<S: AccumTile>(p: &S, m: usize, step: usize) -> Self::FragA;
    /// This lane's view of a V tile.
    fn v_view(tile: SmemTile, lane: u32) -> Self::VView;
    /// Right operands for `step`'s keys and the 16 columns from `column`.
    fn load_v(view: &Self::VView, step: usize, column: usize) -> [Self::FragB; 2];
    /// An output element pair, as it is stored: one word for 16-bit types, two for f32.
    fn store_pair(dst: u32, lo: f32, hi: f32);
}

/// An element by itself, in global memory.
pub trait Scalar {
    /// Bytes of one.
    const BYTES: u32;
    /// Reads one.
    ///
    /// # Safety
    /// `src` is a readable global address, aligned to the element.
    unsafe fn load(src: u64) -> f32;
    /// Rounds and writes one.
    ///
    /// # Safety
    /// `dst` is a writable global address, aligned to the element.
    unsafe fn store(dst: u64, value: f32);
    /// Rounds and writes four.
    ///
    /// # Safety
    /// `dst` is a writable global address, aligned to four elements.
    unsafe fn store_four(dst: u64, values: [f32; 4]);
}

macro_rules! half_scalar {
    ($name:ident, $pack:path, $widen:path) => {
        impl Scalar for $name {
            const BYTES: u32 = 2;

            #[inline(always)]
            unsafe fn load(src: u64) -> f32 {
                // SAFETY: the caller's promise. So below.
                $widen(unsafe { copy::ld_global_u16(src) })
            }

            #[inline(always)]
            unsafe fn store(dst: u64, value: f32) {
                // SAFETY: as above.
                unsafe { copy::st_global_u16(dst, $pack(value, 0.0) as u16) }
            }

            #[inline(always)]
            unsafe fn store_four(dst: u64, x: [f32; 4]) {
                // SAFETY: as above.
                unsafe { copy::st_global_v2(dst, [$pack(x[0], x[1]), $pack(x[2], x[3])]) }
            }
        }
    };
}
half_scalar!(F16, math::pack_f16x2, math::f16_to_f32);
half_scalar!(Bf16, math::pack_bf16x2, bf16_to_f32);

/// The number is the high half of the f32.
#[inline(always)]
fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

impl Scalar for F32 {
    const BYTES: u32 = 4;

    #[inline(always)]
    unsafe fn load(src: u64) -> f32 {
        // SAFETY: the caller's promise. So below.
        f32::from_bits(unsafe { copy::ld_global_u32(src) })
    }

    #[inline(always)]
    unsafe fn store(dst: u64, value: f32) {
        // SAFETY: as above.
        unsafe { copy::st_global_u32(dst, value.to_bits()) }
    }

    #[inline(always)]
    unsafe fn store_four(dst: u64, x: [f32; 4]) {
        // SAFETY: as above.
        unsafe { copy::st_global_v4(dst, x.map(f32::to_bits)) }
    }
}

macro_rules! half_element {
    ($(#[$doc:meta])* $name:ident, $careful_factor:expr, $mma:path, $pack:path) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $name;

        impl Element for $name {
            const DTYPE: DType = DType::$name;
            const KEYS_PER_STEP: usize = 16;
            const STEPS_PER_SUM: usize = usize::MAX;
            const CAREFUL_FACTOR: f32 = $careful_factor;
            type FragA = [u32; 4];
            type FragB = [u32; 2];
            type VView = FragmentView;

            #[inline(always)]
            fn frag_a(raw: [u32; 4]) -> [u32; 4] {
                raw
            }

            #[inline(always)]
            fn frag_b(raw: [u32; 2]) -> [u32; 2] {
                raw
            }

            #[inline(always)]
            fn mma(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
                $mma(a, b, c)
            }

            // The accumulators of two neighbouring 8-key fragments are the A fragment of 16 keys.
            #[inline(always)]
            fn frag_p<S: AccumTile>(p: &S, m: usize, step: usize) -> [u32; 4] {
                let (left, right) = (p.frag(m, 2 * step), p.frag(m, 2 * step + 1));
                [
                    $pack(left[0], left[1]),
                    $pack(left[2], left[3]),
                    $pack(right[0], right[1]),
                    $pack(right[2], right[3]),
                ]
            }

            #[inline(always)]
            fn v_view(tile: SmemTile, lane: u32) -> FragmentView {
                tile.rows_then_chunks(lane)
            }

            #[inline(always)]
            fn load_v(view: &FragmentView, step: usize, column: usize) -> [[u32; 2]; 2] {
                let r = mma::ldmatrix_x4_trans(view.address(16 * step as u32, column as u32 / 8));
                [[r[0], r[1]], [r[2], r[3]]]
            }

            #[inline(always)]
            fn store_pair(dst: u32, lo: f32, hi: f32) {
                // SAFETY: the caller's address is inside the output's staging rows, 4-byte aligned.
                unsafe { copy::st_shared_u32(dst, $pack(lo, hi)) }
            }
        }
    };
}

half_element!(
    /// IEEE half precision.
    F16,
    1.0,
    mma::m16n8k16_f16,
    math::pack_f16x2
);
half_element!(
    /// bfloat16.
    Bf16,
    1.0 / (1u32 << 30) as f32,
    mma::m16n8k16_bf16,
    math::pack_bf16x2
);

/// IEEE single precision: each operand is the sum of two tf32 numbers, each product the sum of three
/// tf32 products (the fourth is below f32's precision). tf32 keeps f32's range, which f16 and bf16
/// terms would lose or need a third term for, and leaves FMA's rate far behind.
#[derive(Clone, Copy)]
pub struct F32;

/// x = hi + lo, both tf32, up to a relative 2^-22.
#[inline(always)]
fn split(x: u32) -> (u32, u32) {
    /// tf32's largest finite number: what lies above must not round to infinity.
    const MAX: f32 = f32::from_bits(0x7f7f_e000);
    let x = f32::from_bits(x);
    let hi = math::round_tf32(math::max(math::min(x, MAX), -MAX));
    let lo = math::round_tf32(x - hi);
    (hi.to_bits(), lo.to_bits())
}

/// N registers of 32-bit elements, split in two.
#[derive(Clone, Copy)]
pub struct Split<const N: usize> {
    hi: [u32; N],
    lo: [u32; N],
}

impl<const N: usize> Split<N> {
    #[inline(always)]
    fn new(raw: [u32; N]) -> Self {
        let (mut hi, mut lo) = ([0; N], [0; N]);
        for i in 0..N {
            (hi[i], lo[i]) = split(raw[i]);
        }
        Self { hi, lo }
    }
}

impl Element for F32 {
    const DTYPE: DType = DType::F32;
    const KEYS_PER_STEP: usize = 8;
    const STEPS_PER_SUM: usize = 4;
    const CAREFUL_FACTOR: f32 = 1.0 / (1u32 << 30) as f32;
    type FragA = Split<4>;
    type FragB = Split<2>;
    type VView = [FragmentView; 2];

    #[inline(always)]
    fn frag_a(raw: [u32; 4]) -> Split<4> {
        Split::new(raw)
    }

    #[inline(always)]
    fn frag_b(raw: [u32; 2]) -> Split<2> {
        Split::new(raw)
    }

    // Small terms first.
    #[inline(always)]
    fn mma(a: Split<4>, b: Split<2>, c: [f32; 4]) -> [f32; 4] {
        let c = mma::m16n8k8_tf32(a.lo, b.hi, c);
        let c = mma::m16n8k8_tf32(a.hi, b.lo, c);
        mma::m16n8k8_tf32(a.hi, b.hi, c)
    }

    // An accumulator lane holds keys 2t and 2t + 1, an A fragment lane columns t and t + 4. Any
    // permutation of the keys will do if V follows it: column t is key 2t, column t + 4 key 2t + 1.
    #[inline(always)]
    fn frag_p<S: AccumTile>(p: &S, m: usize, step: usize) -> Split<4> {
        let c = p.frag(m, step);
        Split::new([
            c[0].to_bits(),
            c[2].to_bits(),
            c[1].to_bits(),
            c[3].to_bits(),
        ])
    }

    #[inline(always)]
    fn v_view(tile: SmemTile, lane: u32) -> [FragmentView; 2] {
        let (g, t) = (lane / 4, lane % 4);
        [tile.word(2 * t, g), tile.word(2 * t + 1, g)]
    }

    #[inline(always)]
    fn load_v(view: &[FragmentView; 2], step: usize, column: usize) -> [Split<2>; 2] {
        let word = |key: usize, column: usize| {
            // SAFETY: inside the V tile, 4-byte aligned.
            unsafe { copy::ld_shared_u32(view[key].address(8 * step as u32, column as u32 / 4)) }
        };
        [
            Split::new([word(0, column), word(1, column)]),
            Split::new([word(0, column + 8), word(1, column + 8)]),
        ]
    }

    #[inline(always)]
    fn store_pair(dst: u32, lo: f32, hi: f32) {
        // SAFETY: the caller's address is inside the output's staging rows, 8-byte aligned.
        unsafe { copy::st_shared_v2(dst, [lo.to_bits(), hi.to_bits()]) }
    }
}

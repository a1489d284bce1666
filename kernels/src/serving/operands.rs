//! Keys and values as operands of 16-bit products: as they are, or widened from 8 bits on their way from shared memory.

use crate::attention::sm80::config::{Config, ConfigExt};
use crate::attention::sm80::epilogue::pair_column;
use crate::attention::sm80::pass::{mma_pv, mma_qk};
use crate::attention::sm80::query::{QueryFrags, Reading};
use crate::element::{Bf16, Element, F16};
use crate::ptx::{copy, math, mma};
use crate::tile::reg::{AccumTile, MAX_M_FRAGS};
use crate::tile::smem::{FragmentView, SmemTile};
use flashtile_abi::DType;

/// An element type of keys and values in shared memory, under products of `C`.
pub trait Cached<C: Config> {
    /// Its name on both sides of a launch.
    const DTYPE: DType;
    /// What an operand must be multiplied by to be the element: a power of two, left to the factors that scores and outputs have anyway.
    const FACTOR: f32;
    /// The lane's view of its warp's rows of the Q tile.
    fn query_view(tile: SmemTile, lane: u32) -> FragmentView;
    /// Q * K^T of one warp.
    fn scores(query: FragmentView, lane: u32, q: &C::Query, k: SmemTile) -> C::Scores;
    /// O += P * V of one warp.
    fn weigh(out: &mut C::Output, p: &C::Scores, v: SmemTile, lane: u32);
    /// Brings the accumulators into pairs of neighbouring columns.
    fn pair_up(out: &mut C::Output);
    /// First of the two columns that a lane has of fragment `n`, paired up.
    fn pair_column(n: usize, lane: u32) -> u32;
}

/// The queries' own type.
pub struct Same;

impl<C: Config> Cached<C> for Same {
    const DTYPE: DType = C::Element::DTYPE;
    const FACTOR: f32 = 1.0;

    #[inline(always)]
    fn query_view(tile: SmemTile, lane: u32) -> FragmentView {
        tile.rows_then_chunks(lane)
    }

    #[inline(always)]
    fn scores(query: FragmentView, lane: u32, q: &C::Query, k: SmemTile) -> C::Scores {
        mma_qk::<C>(query, lane, q, k)
    }

    #[inline(always)]
    fn weigh(out: &mut C::Output, p: &C::Scores, v: SmemTile, lane: u32) {
        mma_pv::<C>(out, p, v, lane);
    }

    #[inline(always)]
    fn pair_up(_: &mut C::Output) {}

    #[inline(always)]
    fn pair_column(n: usize, lane: u32) -> u32 {
        pair_column(n, lane)
    }
}

/// e4m3 (OCP FP8): 4 exponent and 3 fraction bits, bias 7, no infinities. NaN counts as 480.
///
/// `ldmatrix` moves pairs of bytes as if they were elements, so a lane gets four neighbouring elements of a key where products want two
/// and two, and for values two neighbouring columns of two keys. The order of a sum does not matter, so queries follow the keys
/// ([`Fours`]); the columns of the output come out permuted, and are named accordingly at the end.
pub struct E4m3;

/// How four e4m3 elements become 16-bit ones.
pub trait Widen: Element<FragA = [u32; 4], FragB = [u32; 2]> {
    /// As [`Cached::FACTOR`].
    const FACTOR: f32;
    /// Two elements, in the high bytes of the halves.
    fn widen(high_bytes: u32) -> u32;
}

impl Widen for F16 {
    // f16's exponents have a bias of 15.
    const FACTOR: f32 = 256.0;

    #[inline(always)]
    fn widen(x: u32) -> u32 {
        (x & 0x8000_8000) | ((x >> 1) & 0x3f80_3f80)
    }
}

impl Widen for Bf16 {
    const FACTOR: f32 = 1.0;

    // bf16's exponents have a bias of 127: products of elements 2^-120 as large would be too small for f32.
    #[inline(always)]
    fn widen(x: u32) -> u32 {
        const TWO_TO_120: u32 = 0x7b80_7b80;
        const MINUS_ZERO: u32 = 0x8000_8000;
        let small = (x & 0x8000_8000) | ((x >> 4) & 0x07f0_07f0);
        math::fma_bf16x2(small, TWO_TO_120, MINUS_ZERO)
    }
}

/// The four neighbouring elements of a word, two and two.
#[inline(always)]
fn neighbours<E: Widen>(word: u32) -> [u32; 2] {
    [
        E::widen(math::permute_bytes::<0x1404>(word, 0)),
        E::widen(math::permute_bytes::<0x3424>(word, 0)),
    ]
}

/// Two columns of two keys: the even column's elements, and the odd one's.
#[inline(always)]
fn columns<E: Widen>(word: u32) -> [u32; 2] {
    [
        E::widen(math::permute_bytes::<0x2404>(word, 0)),
        E::widen(math::permute_bytes::<0x3414>(word, 0)),
    ]
}

impl<C: Config<Element: Widen>> Cached<C> for E4m3 {
    const DTYPE: DType = DType::E4m3;
    const FACTOR: f32 = <C::Element as Widen>::FACTOR;

    #[inline(always)]
    fn query_view(tile: SmemTile, lane: u32) -> FragmentView {
        tile.eighths(lane)
    }

    #[inline(always)]
    fn scores(query: FragmentView, lane: u32, q: &C::Query, k: SmemTile) -> C::Scores {
        let q = q.in_tile(query);
        let view = k.chunks_then_rows(lane);
        let mut scores = C::Scores::ZERO;
        for chunks in 0..C::QK_STEPS / 2 {
            let mut a = [[q.frag(0, 0); MAX_M_FRAGS]; 2];
            for m in 0..C::Scores::M_FRAGS {
                for step in 0..2 {
                    a[step][m] = q.frag(m, 2 * chunks + step);
                }
            }
            for n in 0..C::Scores::N_FRAGS / 2 {
                // 8 keys of a chunk, of the next; 8 more keys of them.
                let raw = view.ldmatrix(16 * n as u32, 2 * chunks as u32);
                for i in 0..2 {
                    for step in 0..2 {
                        let b = neighbours::<C::Element>(raw[2 * i + step]);
                        for m in 0..C::Scores::M_FRAGS {
                            let frag = scores.frag_mut(m, 2 * n + i);
                            *frag = C::Element::mma(a[step][m], b, *frag);
                        }
                    }
                }
            }
        }
        scores
    }

    #[inline(always)]
    fn weigh(out: &mut C::Output, p: &C::Scores, v: SmemTile, lane: u32) {
        let view = v.rows_then_chunks(lane);
        for step in 0..C::PV_STEPS {
            let mut a = [C::Element::frag_p(p, 0, step); MAX_M_FRAGS];
            for m in 1..C::Output::M_FRAGS {
                a[m] = C::Element::frag_p(p, m, step);
            }
            for n in 0..C::Output::N_FRAGS / 4 {
                // 8 keys of a chunk, 8 more; of the next chunk.
                let raw = mma::ldmatrix_x4_trans(view.address(16 * step as u32, 2 * n as u32));
                for chunk in 0..2 {
                    let first = columns::<C::Element>(raw[2 * chunk]);
                    let second = columns::<C::Element>(raw[2 * chunk + 1]);
                    for odd in 0..2 {
                        let b = [first[odd], second[odd]];
                        for m in 0..C::Output::M_FRAGS {
                            let frag = out.frag_mut(m, 4 * n + 2 * chunk + odd);
                            *frag = C::Element::mma(a[m], b, *frag);
                        }
                    }
                }
            }
        }
    }

    // Of 16 columns, fragment 2j has the even ones and fragment 2j + 1 the odd ones: between them a lane has four neighbours.
    #[inline(always)]
    fn pair_up(out: &mut C::Output) {
        for m in 0..C::Output::M_FRAGS {
            for j in 0..C::Output::N_FRAGS / 2 {
                let (even, odd) = (*out.frag(m, 2 * j), *out.frag(m, 2 * j + 1));
                *out.frag_mut(m, 2 * j) = [even[0], odd[0], even[2], odd[2]];
                *out.frag_mut(m, 2 * j + 1) = [even[1], odd[1], even[3], odd[3]];
            }
        }
    }

    #[inline(always)]
    fn pair_column(n: usize, lane: u32) -> u32 {
        let (j, second) = (n as u32 / 2, n as u32 % 2);
        16 * j + 4 * (lane % 4) + 2 * second
    }
}

/// How queries are read for products with e4m3 keys: of a step's 16 elements a lane's first two stand where products want columns `2t` and
/// `2t + 1`, the other two where they want `2t + 8` and `2t + 9`.
#[derive(Clone, Copy)]
pub struct Fours;

impl<E: Widen> Reading<E> for Fours {
    /// From the lane's view of its 8 bytes of 32.
    #[inline(always)]
    fn frag(view: &FragmentView, m: usize, step: usize) -> [u32; 4] {
        let row = |row: usize| {
            let address = view.address((16 * m + row) as u32, 2 * step as u32);
            // SAFETY: inside the Q tile, 8-byte aligned.
            unsafe { copy::ld_shared_v2(address) }
        };
        let (g, h) = (row(0), row(8));
        [g[0], h[0], g[1], h[1]]
    }
}

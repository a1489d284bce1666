//! The three kernels, one for each way to organise the softmax.

use super::config::{Config, ConfigExt};
use super::epilogue::{store_lse, store_out};
use super::pass::{Fused, Max, MaxSum, Pass, Sum, WeightedSum};
use super::pipeline::{Block, Stream, load_query, receive_query};
use super::query::QueryFrags;
use crate::attention::score_mod::ScoreMod;
use crate::attention::softmax::{self, RowStats};
use crate::element::Element;
use crate::ptx::sync;
use crate::tile::reg::AccumTile;
use flashtile_abi::params::flags;
use flashtile_abi::{Algorithm, AttentionParams, ScoreModKind};

/// A kernel: one block's work, in the shape of one instance.
pub trait Kernel<C: Config> {
    /// Its name on both sides of a launch.
    const ALGORITHM: Algorithm;
    /// CTA barriers in its code. The builder counts those in the PTX: the compiler must neither
    /// duplicate nor drop any.
    const BARRIERS: u32;
    /// Runs the block.
    fn run(params: &AttentionParams);
}

/// FlashAttention-2's forward pass.
pub struct FusedKernel;

/// The 2-pass online softmax.
pub struct TwoPassKernel;

/// The 3-pass safe softmax.
pub struct ThreePassKernel;

impl<C: Config> Kernel<C> for FusedKernel {
    const ALGORITHM: Algorithm = Algorithm::Fused;
    // The last is the vote.
    const BARRIERS: u32 = C::QUERY_BARRIERS + Stream::BARRIERS + 1;

    #[inline(always)]
    fn run(params: &AttentionParams) {
        let () = C::CONSISTENT;
        let mut block = Block::new::<C>(params);
        // Scores with a wide cap are the business of the loop body with masks.
        if matches!(C::ScoreMod::KIND, ScoreModKind::Softcap) && block.has(flags::WIDE_CAP) {
            block.take_care();
        }
        let stream = Stream::new::<C>(&block);
        let mut pass = Fused::<C>::START;

        load_query::<C>(&block);
        stream.start::<C, Fused<C>>(&block);
        let q = receive_query::<C>(&block);
        loop {
            stream.run(&block, &q, &mut pass);
            // Scores that are not finite or very large spoil the fast exponents, and sums of values can
            // overflow. Both are rare (f16 inputs can hardly do it): the block is computed twice then.
            if block.is_careful()
                || !sync::cta_any(softmax::is_spoilt(
                    &pass.stats,
                    &pass.out,
                    params.exponent_scale,
                ))
            {
                break;
            }
            block.take_care();
            pass = Fused::<C>::START;
            // It has tiles: without any, it would have been careful at once.
            stream.restart::<C, Fused<C>>(&block);
        }

        let inverse_sum = softmax::normalise::<C::Output>(&mut pass.stats.sum);
        softmax::scale_rows(&mut pass.out, &inverse_sum);
        let factor = if block.is_careful() {
            C::Element::CAREFUL_FACTOR
        } else {
            1.0
        };
        store_lse::<C>(&block, &pass.stats, factor);
        store_out::<C>(&block, &pass.out, false);
    }
}

/// A later pass of the same block: its first copy may overwrite the stage that other warps still read.
#[inline(always)]
fn next_pass<C: Config, P: Pass<C>>(block: &Block, stream: &Stream, q: &C::Query, pass: &mut P) {
    sync::cta_sync();
    if block.range.begin < block.range.end {
        stream.restart::<C, P>(block);
    }
    stream.run(block, q, pass);
}

/// Barriers of [`next_pass`].
const NEXT_PASS_BARRIERS: u32 = 1 + Stream::BARRIERS;

/// The last pass of the ladder's kernels, and the result.
#[inline(always)]
fn finish<C: Config>(block: &Block, stream: &Stream, q: &C::Query, mut stats: RowStats) {
    let inverse_sum = softmax::normalise::<C::Output>(&mut stats.sum);
    let mut pass = WeightedSum::<C> {
        max: stats.max,
        inverse_sum,
        out: C::Output::ZERO,
    };
    next_pass::<C, _>(block, stream, q, &mut pass);
    store_lse::<C>(block, &stats, 1.0);
    // Queries that go to registers were read before the barriers between the passes.
    store_out::<C>(block, &pass.out, C::Query::IN_REGISTERS);
}

impl<C: Config> Kernel<C> for TwoPassKernel {
    const ALGORITHM: Algorithm = Algorithm::TwoPass;
    const BARRIERS: u32 = C::QUERY_BARRIERS + Stream::BARRIERS + NEXT_PASS_BARRIERS;

    #[inline(always)]
    fn run(params: &AttentionParams) {
        let () = C::CONSISTENT;
        let block = Block::new::<C>(params);
        let stream = Stream::new::<C>(&block);
        let mut pass = MaxSum {
            stats: RowStats::EMPTY,
        };

        load_query::<C>(&block);
        stream.start::<C, MaxSum>(&block);
        let q = receive_query::<C>(&block);
        stream.run::<C, _>(&block, &q, &mut pass);
        finish::<C>(&block, &stream, &q, pass.stats);
    }
}

impl<C: Config> Kernel<C> for ThreePassKernel {
    const ALGORITHM: Algorithm = Algorithm::ThreePass;
    const BARRIERS: u32 = C::QUERY_BARRIERS + Stream::BARRIERS + 2 * NEXT_PASS_BARRIERS;

    #[inline(always)]
    fn run(params: &AttentionParams) {
        let () = C::CONSISTENT;
        let block = Block::new::<C>(params);
        let stream = Stream::new::<C>(&block);
        let mut max = Max {
            max: RowStats::EMPTY.max,
        };

        load_query::<C>(&block);
        stream.start::<C, Max>(&block);
        let q = receive_query::<C>(&block);
        stream.run::<C, _>(&block, &q, &mut max);
        let mut sum = Sum {
            stats: RowStats {
                max: max.max,
                ..RowStats::EMPTY
            },
        };
        next_pass::<C, _>(&block, &stream, &q, &mut sum);
        finish::<C>(&block, &stream, &q, sum.stats);
    }
}

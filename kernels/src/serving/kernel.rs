//! The kernel: one block's work.

use super::config::{ServingConfig, ServingExt};
use super::finish;
use super::latent;
use super::operands::Cached;
use super::place::Place;
use super::scores::modify;
use super::stream::{Consumer, QUERY_BARRIERS, Stream, Tiles, load_query_rows, receive_query};
use crate::attention::mask::Masking;
use crate::attention::softmax::{self, Care, RowStats};
use crate::element::Element;
use crate::ptx::sync;
use crate::tile::reg::AccumTile;
use flashtile_abi::ServingParams;
use flashtile_abi::serving::flags;

/// One warp's state: FlashAttention-2's online softmax (arXiv:2307.08691, algorithm 1), over the warp's part of the keys.
pub struct State<C: ServingConfig> {
    /// Row statistics.
    pub stats: RowStats,
    /// Sum of probability * value, relative to the current maxima.
    pub out: C::Output,
}

impl<C: ServingConfig> State<C> {
    /// Before the first tile.
    pub const START: Self = Self {
        stats: RowStats::EMPTY,
        out: C::Output::ZERO,
    };
}

impl<C: ServingConfig> Consumer<C> for State<C> {
    #[inline(always)]
    fn tile<M: Masking>(&mut self, place: &Place<'_>, q: &C::Query, n_begin: i32, tiles: &Tiles) {
        let (keys, n_begin) = if C::LATENT {
            latent::own_keys::<C>(place, tiles.k, n_begin)
        } else {
            (tiles.k, n_begin)
        };
        let mut scores = C::Cached::scores(place.query_view::<C>(), place.lane, q, keys);
        if M::MASKS && place.has(flags::MODIFIED) {
            modify::<C>(&mut scores, place, n_begin);
        }
        M::apply(&mut scores, place, n_begin);
        let exponents = M::exponents(Care {
            careful: place.is_careful(),
            factor: C::Element::CAREFUL_FACTOR,
            slack: 0.0,
            polynomials: 0,
            apart: false,
        });
        let scale = place.exponent_scale();
        let correction = if C::LATENT {
            latent::absorb::<C, _>(&mut self.stats, &mut scores, place, exponents)
        } else {
            self.stats.absorb(&mut scores, scale, exponents)
        };
        // After the first tiles most maxima stay: no row of the warp needs the multiplication by 1.
        let mut grew = false;
        for m in 0..C::Output::M_FRAGS {
            grew |= correction[m][0] != 1.0 || correction[m][1] != 1.0;
        }
        if sync::warp_any(grew) {
            softmax::scale_rows(&mut self.out, &correction);
        }
        if C::LATENT {
            latent::weigh::<C>(&mut self.out, place, tiles.v);
        } else {
            C::Cached::weigh(&mut self.out, &scores, tiles.v, place.lane);
        }
    }
}

/// CTA barriers in the kernel's code. The last is the vote.
pub const fn barriers<C: ServingConfig>() -> u32 {
    // The loop over tiles has two bodies.
    let in_tiles = if C::LATENT {
        2 * latent::TILE_BARRIERS
    } else {
        0
    };
    QUERY_BARRIERS + Stream::barriers::<C>() + in_tiles + finish::barriers::<C>() + 1
}

/// Runs the block.
#[inline(always)]
pub fn run<C: ServingConfig>(params: &ServingParams) {
    let () = C::FITS;
    let mut place = Place::new::<C>(params);
    if !place.has_rows() {
        return;
    }
    // Scores that something is done to are the business of the loop body with masks.
    if place.has(flags::MODIFIED) {
        place.take_care();
    }
    let stream = Stream::new::<C>(&place);
    let mut state = State::<C>::START;

    load_query_rows::<C>(&place);
    let mut ahead = stream.start::<C>(&place);
    let q = receive_query::<C>(&place);
    loop {
        stream.run::<C, _>(&place, ahead, &q, &mut state);
        // As in the dense kernels: what spoils the fast exponents is rare, and the block is computed twice then.
        if place.is_careful()
            || !sync::cta_any(softmax::is_spoilt(
                &state.stats,
                &state.out,
                place.exponent_scale(),
            ))
        {
            break;
        }
        place.take_care();
        state = State::<C>::START;
        ahead = stream.start::<C>(&place);
    }
    finish::finish::<C>(&place, state);
}

//! The kernel: one block's work.

use super::config::{self, HopperServing};
use super::producer::Producer;
use crate::attention::mask::Masking;
use crate::attention::sm80::config::Config;
use crate::attention::sm90::config::{Arithmetic, ConfigExt as _};
use crate::attention::sm90::consumer::{self, Consumer, Task};
use crate::attention::sm90::pipeline::{Cursor, Ring};
use crate::attention::softmax::{self, Care};
use crate::ptx::{mbarrier, special, sync};
use crate::serving::config::ServingExt;
use crate::serving::finish;
use crate::serving::kernel::State;
use crate::serving::place::Place;
use crate::serving::scores::modify;
use flashtile_abi::ServingParams;
use flashtile_abi::hopper::WARPGROUP;
use flashtile_abi::serving::flags;

/// Registers of a thread of the producer, and of one that computes: three warpgroups have 512 a thread between them. (FlashAttention-3's numbers
/// for the same roles)
const PRODUCER_REGISTERS: u32 = 40;
const CONSUMER_REGISTERS: u32 = 232;

/// The block's rows and keys, as the consumers' tiles need them.
struct Serving<'a, C: HopperServing> {
    place: &'a Place<'a>,
    care: Care,
    instance: core::marker::PhantomData<C>,
}

impl<C: HopperServing> Task<C::Engine> for Serving<'_, C> {
    #[inline(always)]
    fn params(&self) -> &ServingParams {
        self.place.params
    }

    #[inline(always)]
    fn cluster(&self) -> u32 {
        1
    }

    #[inline(always)]
    fn care(&self) -> Care {
        self.care
    }

    #[inline(always)]
    fn scales(&self) {}

    #[inline(always)]
    fn prepare<M: Masking>(&self, scores: &mut <C as Config>::Scores, n_begin: i32) {
        let place = self.place.in_tile();
        if M::MASKS && place.has(flags::MODIFIED) {
            modify::<C>(scores, &place, n_begin);
        }
        M::apply(scores, &place, n_begin);
    }
}

/// CTA barriers in the kernel's code: the start, and each role's vote.
pub const fn barriers<C: HopperServing>() -> u32 {
    1 + 2 + consumer::barriers::<C::Engine>() + finish::barriers::<C>()
}

/// Runs the block.
#[inline(always)]
pub fn run<C: HopperServing>(params: &ServingParams) {
    const { config::check::<C>() };
    let () = C::FITS;
    let place = Place::new::<C>(params);
    if !place.has_rows() {
        return;
    }
    if place.thread == 0 {
        let readers = 4 * C::Engine::CONSUMERS;
        // SAFETY: this thread alone, before the block meets.
        unsafe {
            Ring::q::<C::Engine>(place.smem).init(WARPGROUP, 1);
            Ring::k::<C::Engine>(place.smem).init(WARPGROUP, readers);
            if !C::LATENT {
                Ring::v::<C::Engine>(place.smem).init(WARPGROUP, readers);
            }
        }
        mbarrier::fence_init();
    }
    sync::cta_sync();
    let warpgroup = sync::broadcast(place.thread / WARPGROUP);
    if warpgroup == 0 {
        sync::registers_dec::<PRODUCER_REGISTERS>();
        produce::<C>(place);
    } else {
        sync::registers_inc::<CONSUMER_REGISTERS>();
        consume::<C>(place.of_thread(place.thread - WARPGROUP), warpgroup - 1);
    }
}

/// The producer's role.
#[inline(always)]
fn produce<C: HopperServing>(place: Place<'_>) {
    let mut producer = Producer::new::<C>(&place);
    let mut careful = starts_careful(&place);
    loop {
        producer.run::<C>(&place);
        if !sync::cta_any(false) || careful {
            break;
        }
        careful = true;
    }
}

/// Whether the first attempt takes care already: scores that something is done to are the business of the loop body with masks.
#[inline(always)]
fn starts_careful(place: &Place<'_>) -> bool {
    place.has(flags::MODIFIED) || place.is_careful()
}

/// A consumer's role.
#[inline(always)]
fn consume<C: HopperServing>(place: Place<'_>, warpgroup: u32) {
    let mut consumer = Consumer::new::<C::Engine>(warpgroup, place.thread);
    consumer.begin::<C::Engine>();
    Ring::q::<C::Engine>(place.smem).wait(Cursor::START);
    let mut careful = starts_careful(&place);
    let mut state;
    // As in the dense kernels: what spoils the fast exponents is rare, and the block is computed twice then.
    loop {
        state = State::<C>::START;
        if place.range.begin < place.range.end {
            let task = Serving::<C> {
                place: &place,
                care: Care {
                    careful,
                    factor: C::Arithmetic::CAREFUL_FACTOR,
                    slack: C::Arithmetic::SLACK,
                    polynomials: C::Engine::POLYNOMIALS,
                    apart: true,
                },
                instance: core::marker::PhantomData,
            };
            let range = place.range_of(careful);
            (state.stats, state.out) = consumer.run::<C::Engine, _>(&task, range, None);
        }
        let spoilt =
            !careful && softmax::is_spoilt(&state.stats, &state.out, place.exponent_scale());
        // The vote is also where all are done with the queries, whose room the output passes through.
        if !sync::cta_any(spoilt) || careful {
            break;
        }
        careful = true;
    }
    consumer.end::<C::Engine>();
    // What only the end needs to know of the place has not been in registers all the while.
    let mut place = Place::new::<C>(place.params).of_thread(special::opaque(place.thread));
    if careful {
        place.take_care();
    }
    finish::finish::<C>(&place, state);
}

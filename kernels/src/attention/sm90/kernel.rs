//! The wiring of a block: shared memory, roles.

use super::config::{Config, ConfigExt, Launched};
use super::consumer::{self, Place};
use super::epilogue;
use super::pipeline::Ring;
use super::producer;
use super::scheduler::{self, Scheduler};
use super::transpose;
use crate::ptx::{cluster, mbarrier, special, sync};
use flashtile_abi::hopper::{TRANSPOSERS, WARPGROUP};
use flashtile_abi::{Algorithm, HopperParams};

/// FlashAttention-3's forward pass.
pub struct FusedKernel;

impl FusedKernel {
    /// Its name on both sides of a launch.
    pub const ALGORITHM: Algorithm = Algorithm::Fused;

    /// CTA barriers in its code. The builder counts those in the PTX: the compiler must neither duplicate nor drop any.
    pub const fn barriers<C: Config>() -> u32 {
        consumer::barriers::<C>() + epilogue::barriers::<C>()
    }

    /// Runs the block.
    #[inline(always)]
    pub fn run<C: Launched>(params: &HopperParams) {
        let () = C::CONSISTENT;
        let smem = special::shared_base();
        let thread = special::thread_idx();
        let warpgroup = sync::broadcast(thread / WARPGROUP);

        if thread == 0 {
            let cluster = params.schedule.cluster;
            // SAFETY: this thread alone, before the cluster meets.
            unsafe {
                Ring::q::<C>(smem).init(1, C::Q_READERS);
                Ring::k::<C>(smem).init(1, 4 * C::CONSUMERS * cluster);
                Ring::v::<C>(smem).init(1, C::V_READERS * cluster);
                if C::TRANSPOSES {
                    Ring::vt::<C>(smem).init(TRANSPOSERS, 4 * C::CONSUMERS);
                }
            }
            mbarrier::fence_init();
        }
        scheduler::clear_spoilt::<C>();
        cluster::sync();

        let scheduler = Scheduler::new(params);
        if warpgroup == 0 {
            give_registers::<C>();
            // The copies of a block are one thread's work; the other warps lend their registers, or transpose values.
            let warp = sync::broadcast(thread / 32);
            if warp == 0 {
                producer::produce::<C>(params, smem, scheduler);
            } else if C::TRANSPOSES {
                transpose::transpose::<C>(params, warp - 1, scheduler);
            }
        } else {
            take_registers::<C>();
            let place = Place {
                params,
                consumer: warpgroup - 1,
                thread,
            };
            consumer::consume::<C>(place, scheduler);
        }
    }
}

/// The producer needs few registers, so the consumers have the rest: of the 65,536 of a multiprocessor, a block of three warpgroups
/// begins with 168 a thread, one of four with 128. (FlashAttention-3's numbers)
#[inline(always)]
fn give_registers<C: Config>() {
    match C::CONSUMERS {
        2 => sync::registers_dec::<24>(),
        _ => sync::registers_dec::<32>(),
    }
}

/// The other side of [`give_registers`].
#[inline(always)]
fn take_registers<C: Config>() {
    match C::CONSUMERS {
        2 => sync::registers_inc::<240>(),
        _ => sync::registers_inc::<160>(),
    }
}

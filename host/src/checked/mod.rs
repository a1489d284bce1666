//! Checks of numbers that only the device has: lengths, starts, pages, ranges and slots that an engine writes there itself, or that a
//! captured graph finds on a later replay.
//!
//! Kernels stay inside of their tensors whatever such numbers are; what they compute is then something, and nobody says so. In *checked mode*
//! ([`ServingPlan::launch_checked`](crate::serving::ServingPlan::launch_checked), [`AppendPlan::launch_checked`](crate::cache::AppendPlan::launch_checked),
//! [`GatherPlan::launch_checked`](crate::cache::GatherPlan::launch_checked)) a small kernel goes before, which looks for the rules that
//! [`ServingProblem::check_metadata`](crate::serving::ServingProblem::check_metadata) and [`Place::rows`](crate::cache::Place::rows) check on the
//! host. It leaves the first number that breaks one in a [`MetadataReport`], where the next checked launch finds it, without waiting: so the
//! error is that of an earlier launch, or of an earlier replay. [`MetadataReport::finish`] waits for the device, and tells at once.
//!
//! ```no_run
//! # #[cfg(feature = "cuda")] {
//! use flashtile::{CudaDevice, Error, Stream};
//! use flashtile::checked::{Checks, MetadataReport};
//! # fn plan() -> (flashtile::serving::ServingPlan, flashtile::serving::ServingPointers) { unimplemented!() }
//!
//! let device = CudaDevice::new(0)?;
//! let report = MetadataReport::new(&device)?; // Once: allocates, and loads the kernel.
//! let (plan, pointers) = plan();
//! for _ in 0..100 {
//!     // SAFETY: the addresses are those of the problem's tensors, alive until the device is done.
//!     unsafe { plan.launch_checked(&device, Stream::DEFAULT, &pointers, &Checks::new(&report))? };
//! }
//! report.finish()?;
//! # }
//! # Ok::<(), flashtile::Error>(())
//! ```

mod offence;
mod report;

pub use flashtile_abi::{
    CheckParams, CheckVariant,
    check::{CHECK, CheckReport, CheckState},
};
pub(crate) use offence::Broken;
pub use report::{Checks, MetadataReport};

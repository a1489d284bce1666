//! Exact attention on GPUs. Kernels are written in Rust, shipped as PTX and launched from Rust; no
//! part of CUDA is needed to build or, without a GPU, to run.
//!
//! Describe a [`Problem`], let [`Problem::plan`] check it and choose a kernel, then
//! [`Plan::launch`] it on a [`Device`] with the addresses of your tensors. For tensors in the
//! host's memory, [`attention`] does it all.
//!
//! ```
//! # #[cfg(feature = "emulator")] {
//! use flashtile::{DType, Error, EmulatorDevice, Inputs, Problem, Shape, attention};
//!
//! let shape = Shape { batch: 1, seqlen_q: 2, seqlen_k: 3, heads_q: 1, heads_kv: 1, head_dim_qk: 8, head_dim_v: 8 };
//! let problem = Problem::contiguous(DType::F16, shape).lse(true);
//! // All scores are 0, so each output is the mean of the values: 1.
//! let (q, k, v) = ([0u8; 2 * 2 * 8], [0u8; 3 * 2 * 8], [0x00, 0x3c].repeat(3 * 8));
//! let outputs = attention(&EmulatorDevice::new(), &problem, &Inputs { q: &q, k: &k, v: &v, ..Inputs::default() })?;
//! assert_eq!(outputs.out, [0x00, 0x3c].repeat(2 * 8));
//! assert!((outputs.lse.unwrap()[0] - 3f32.ln()).abs() < 1e-6);
//! # }
//! # Ok::<(), flashtile::Error>(())
//! ```
//!
//! An engine brings its own context, stream and memory, whatever library made them:
//!
//! ```no_run
//! # #[cfg(feature = "cuda")] {
//! use flashtile::{CudaDevice, DType, Device, Error, Plan, Pointers, Problem, Shape, Stream};
//!
//! # fn tensors() -> [u64; 4] { [0; 4] }
//! # let cu_stream = std::ptr::null_mut();
//! // SAFETY: the current context outlives the device.
//! let device = unsafe { CudaDevice::from_current_context()? };
//! let shape = Shape { batch: 4, seqlen_q: 512, seqlen_k: 512, heads_q: 32, heads_kv: 8, head_dim_qk: 128, head_dim_v: 128 };
//! let plan: Plan = Problem::contiguous(DType::Bf16, shape).plan(device.info())?;
//! device.load(plan.variant())?; // Once, before the first launch or a graph capture.
//! let [q, k, v, out] = tensors(); // CUdeviceptr
//! let pointers = Pointers { q, k, v, out, ..Pointers::default() };
//! // SAFETY: the tensors are allocated in that context with these layouts, and live until the stream is done.
//! unsafe { plan.launch(&device, Stream::from_raw(cu_stream), &pointers)? };
//! # }
//! # Ok::<(), flashtile::Error>(())
//! ```

mod archive;
pub mod cache;
pub mod checked;
pub mod cpu;
pub mod device;
pub mod element;
mod error;
mod extent;
pub mod front;
mod kernels;
mod layout;
pub mod parallel;
mod plan;
mod problem;
pub mod reference;
mod run;
mod scales;
pub mod serving;

#[cfg(feature = "cuda")]
pub use device::cuda::CudaDevice;
#[cfg(feature = "emulator")]
pub use device::emulator::EmulatorDevice;
pub use device::{
    Device, DeviceBuffer, DeviceInfo, DeviceKind, LaunchConfig, PinnedMemory, Stream, TensorMapSpec,
};
pub use error::{Error, ErrorClass, Result};
pub use flashtile_abi::{
    Algorithm, Arch, AttentionParams, DType, Entry, HopperParams, MergeParams, MergeVariant,
    Operation, ScaleView, Schedule, ScoreModKind, ServingParams, ServingVariant, Sharing,
    TensorMap, Variant, variants,
};
pub use kernels::{Kernel, kernel, kernels, ptx};
pub use layout::TensorLayout;
pub use plan::{KernelParams, Obstacle, Plan, Pointers, Prepared};
pub use problem::{ArchChoice, CausalAlignment, OutDType, Problem, Shape, Window};
pub use run::{Inputs, Outputs, attention};
pub use scales::{ScaleLayout, Scales};

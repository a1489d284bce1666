//! Front door for [cudarc](https://docs.rs/cudarc): its slices, views and streams.
//!
//! Feature `cudarc`. The driver is opened at run time, by cudarc as by this library, and no CUDA version and no linking is forced on other
//! crates that use cudarc, candle among them.
//!
//! A decoding step over a cache in pages:
//!
//! ```no_run
//! use cudarc::driver::CudaContext;
//! use flashtile::front::cudarc::{ServingSlices, launch};
//! use flashtile::serving::{CacheLayout, PageTable, ServingProblem};
//! use flashtile::{CausalAlignment, CudaDevice, DType, Device, TensorLayout};
//! use half::bf16;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (batch, pages, entries) = (4, 1000, 64);
//! let context = CudaContext::new(0)?;
//! let stream = context.new_stream()?;
//! let device = CudaDevice::new(0)?; // The same primary context.
//!
//! let cache = CacheLayout::contiguous([pages, 16, 8, 128]);
//! let problem = ServingProblem::new(DType::Bf16, batch, TensorLayout::contiguous([batch, 1, 32, 128]), cache, cache)
//!     .pages(PageTable::contiguous(entries))
//!     .k_used(entries * 16)
//!     .causal(CausalAlignment::BottomRight);
//! let plan = problem.plan(device.info())?;
//! for kernel in plan.kernels() {
//!     device.load(kernel)?; // Once: before a graph capture.
//! }
//!
//! let q = stream.alloc_zeros::<bf16>(batch * 32 * 128)?;
//! let k = stream.alloc_zeros::<bf16>(pages * 16 * 8 * 128)?;
//! let v = stream.alloc_zeros::<bf16>(pages * 16 * 8 * 128)?;
//! let table = stream.alloc_zeros::<i32>(batch * entries)?;
//! let lengths = stream.clone_htod(&[17i32, 3, 800, 0])?;
//! let mut out = stream.alloc_zeros::<bf16>(batch * 32 * 128)?;
//! let mut workspace = stream.alloc_zeros::<u8>(plan.workspace_bytes())?;
//! let slices = ServingSlices {
//!     table: Some((&table).into()),
//!     k_used: Some((&lengths).into()),
//!     workspace: Some((&mut workspace).into()),
//!     ..ServingSlices::new(&q, &k, &v, &mut out)
//! };
//! launch(&plan, &device, &stream, slices)?;
//! # Ok(())
//! # }
//! ```

use cudarc::driver::{
    self, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, SyncOnDrop,
};

use super::{DeviceSlice, Element, ElementType, LaunchSlices, Queue};
use crate::{
    device::{Device, Stream, cuda::CudaDevice},
    error::{Error, Result},
};

/// Slices for a [`Plan`](crate::Plan).
pub type AttentionSlices<'a> = super::AttentionSlices<Input<'a>, Output<'a>>;
/// Slices for a [`ServingPlan`](crate::serving::ServingPlan).
pub type ServingSlices<'a> = super::ServingSlices<Input<'a>, Output<'a>>;
/// Slices for a [`MergePlan`](crate::serving::MergePlan).
pub type MergeSlices<'a> = super::MergeSlices<Input<'a>, Output<'a>>;
/// Slices for an [`AppendPlan`](crate::cache::AppendPlan).
pub type AppendSlices<'a> = super::AppendSlices<Input<'a>, Output<'a>>;
/// Slices for a [`GatherPlan`](crate::cache::GatherPlan).
pub type GatherSlices<'a> = super::GatherSlices<Input<'a>, Output<'a>>;
/// Slices for a [`CopyPlan`](crate::cache::CopyPlan).
pub type CopySlices<'a> = super::CopySlices<Input<'a>, Output<'a>>;

/// Checks the slices and enqueues a plan's kernels on a stream, after earlier uses of the slices and before later ones, as cudarc
/// orders them. Works on a stream that is being captured if the kernels are loaded ([`Device::load`]) and the slices' events are not
/// from outside of the capture (cudarc's `disable_event_tracking`).
///
/// The device is that of the stream's context: [`CudaDevice::new`] with the context's ordinal.
///
/// # Errors
/// As [`LaunchSlices::launch_slices`].
pub fn launch<'a, P: LaunchSlices>(
    plan: &P,
    device: &CudaDevice,
    stream: &CudaStream,
    slices: P::Slices<Input<'a>, Output<'a>>,
) -> Result<()> {
    // SAFETY: the slices are borrowed, those that are written exclusively; cudarc frees and reuses their memory in an order with the
    // launch that it records when the guards of `locate` are dropped. The stream is borrowed.
    unsafe { plan.launch_slices(device, stream, slices) }
}

impl Queue for CudaStream {
    type Device = CudaDevice;
    type Use<'a> = SyncOnDrop<'a>;

    fn check(&self, device: &CudaDevice) -> Result<()> {
        match self.context().cu_ctx().cast() == device.raw_context() {
            true => Ok(()),
            false => Err(Error::bad(
                "stream",
                format!("a stream of the context of {}", device.info().name),
                "a stream of another context",
            )),
        }
    }

    fn enqueue(
        &self,
        device: &CudaDevice,
        launch: &mut dyn FnMut(&dyn Device, Stream) -> Result<()>,
    ) -> Result<()> {
        launch(device, Stream::from_raw(self.cu_stream().cast()))
    }
}

/// A slice or a view that is read.
#[derive(Clone, Copy)]
pub struct Input<'a>(&'a dyn Readable);

/// A slice or a view that is written.
pub struct Output<'a>(&'a mut dyn Writable);

/// What slices and views of all elements have in common.
trait Memory {
    fn element(&self) -> ElementType;
    fn bytes(&self) -> usize;
    fn context(&self) -> driver::sys::CUcontext;
}

trait Readable: Memory {
    fn read<'a>(&'a self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>);
}

trait Writable: Memory {
    fn write<'a>(&'a mut self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>);
}

macro_rules! memory {
    ($($type:ty),*) => {
        $(
            impl<T: Element> Memory for $type {
                fn element(&self) -> ElementType {
                    T::TYPE
                }

                fn bytes(&self) -> usize {
                    driver::DeviceSlice::num_bytes(self)
                }

                fn context(&self) -> driver::sys::CUcontext {
                    driver::DeviceSlice::stream(self).context().cu_ctx()
                }
            }

            impl<T: Element> Readable for $type {
                fn read<'a>(&'a self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
                    self.device_ptr(stream)
                }
            }
        )*
    };
}

memory!(CudaSlice<T>, CudaView<'_, T>, CudaViewMut<'_, T>);

macro_rules! writable {
    ($($type:ty),*) => {
        $(
            impl<T: Element> Writable for $type {
                fn write<'a>(&'a mut self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
                    self.device_ptr_mut(stream)
                }
            }
        )*
    };
}

writable!(CudaSlice<T>, CudaViewMut<'_, T>);

impl<'a, T: Element> From<&'a CudaSlice<T>> for Input<'a> {
    fn from(slice: &'a CudaSlice<T>) -> Self {
        Self(slice)
    }
}

impl<'a, T: Element> From<&'a CudaView<'a, T>> for Input<'a> {
    fn from(view: &'a CudaView<'a, T>) -> Self {
        Self(view)
    }
}

impl<'a, T: Element> From<&'a CudaViewMut<'a, T>> for Input<'a> {
    fn from(view: &'a CudaViewMut<'a, T>) -> Self {
        Self(view)
    }
}

impl<'a, T: Element> From<&'a mut CudaSlice<T>> for Output<'a> {
    fn from(slice: &'a mut CudaSlice<T>) -> Self {
        Self(slice)
    }
}

impl<'a, 'b: 'a, T: Element> From<&'a mut CudaViewMut<'b, T>> for Output<'a> {
    fn from(view: &'a mut CudaViewMut<'b, T>) -> Self {
        Self(view)
    }
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes of {}",
            self.0.bytes(),
            self.0.element().as_str()
        )
    }
}

impl std::fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes of {}",
            self.0.bytes(),
            self.0.element().as_str()
        )
    }
}

impl DeviceSlice<CudaStream> for Input<'_> {
    fn element(&self) -> ElementType {
        self.0.element()
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn is_near(&self, stream: &CudaStream) -> bool {
        self.0.context() == stream.context().cu_ctx()
    }

    fn locate<'a>(&'a mut self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        self.0.read(stream)
    }
}

impl DeviceSlice<CudaStream> for Output<'_> {
    fn element(&self) -> ElementType {
        self.0.element()
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn is_near(&self, stream: &CudaStream) -> bool {
        self.0.context() == stream.context().cu_ctx()
    }

    fn locate<'a>(&'a mut self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        self.0.write(stream)
    }
}

//! Front door for [cust](https://docs.rs/cust) 0.3: its streams and buffers, and launches that go through it.
//!
//! Feature `cust`. Unlike all else in this crate it needs a CUDA installation to build (cust's build script looks in `/usr/local/cuda`,
//! `/opt/cuda` and `$CUDA_LIBRARY_PATH`, and panics if there is none), and links programs with `libcuda`, so that they do not start
//! without a driver.
//!
//! cust knows no f16 and bf16 of current versions of `half`: such buffers are `u16`, the elements' bits, or of a type with
//! [`Element`] and cust's `DeviceCopy`.
//!
//! ```no_run
//! use cust::memory::DeviceBuffer;
//! use cust::stream::{Stream, StreamFlags};
//! use flashtile::front::cust::{CustDevice, ServingSlices, launch};
//! use flashtile::serving::{CacheLayout, PageTable, ServingProblem};
//! use flashtile::{CausalAlignment, DType, TensorLayout};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (batch, pages, entries) = (4, 1000, 64);
//! let device = CustDevice::new(cust::quick_init()?)?;
//! let stream = Stream::new(StreamFlags::DEFAULT, None)?;
//!
//! let cache = CacheLayout::contiguous([pages, 16, 8, 128]);
//! let problem = ServingProblem::new(DType::Bf16, batch, TensorLayout::contiguous([batch, 1, 32, 128]), cache, cache)
//!     .pages(PageTable::contiguous(entries))
//!     .k_used(entries * 16)
//!     .causal(CausalAlignment::BottomRight);
//! let plan = problem.plan(device.info())?;
//! for kernel in plan.kernels() {
//!     device.load(kernel)?;
//! }
//!
//! let q = DeviceBuffer::from_slice(&vec![0u16; batch * 32 * 128])?;
//! let k = DeviceBuffer::from_slice(&vec![0u16; pages * 16 * 8 * 128])?;
//! let v = DeviceBuffer::from_slice(&vec![0u16; pages * 16 * 8 * 128])?;
//! let table = DeviceBuffer::from_slice(&vec![0i32; batch * entries])?;
//! let lengths = DeviceBuffer::from_slice(&[17i32, 3, 800, 0])?;
//! let mut out = DeviceBuffer::from_slice(&vec![0u16; batch * 32 * 128])?;
//! let mut workspace = DeviceBuffer::from_slice(&vec![0u8; plan.workspace_bytes()])?;
//! let slices = ServingSlices {
//!     table: Some((&table).into()),
//!     k_used: Some((&lengths).into()),
//!     workspace: Some((&mut workspace).into()),
//!     ..ServingSlices::new(&q, &k, &v, &mut out)
//! };
//! // SAFETY: nothing else uses the buffers, which live until the stream is done.
//! unsafe { launch(&plan, &device, &stream, slices)? };
//! stream.synchronize()?;
//! # Ok(())
//! # }
//! ```

use std::{
    collections::HashMap,
    ffi::c_void,
    marker::PhantomData,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cust::{
    context::{Context, CurrentContext},
    error::{CudaError, CudaResult},
    function::{BlockSize, Function, GridSize},
    memory::{DeviceBuffer, DeviceCopy, DeviceSlice as CustSlice},
    module::Module,
    sys,
};
use flashtile_abi::{Entry, TensorMap};

use super::{DeviceSlice, Element, ElementType, LaunchSlices, Queue};
use crate::{
    device::{Device, DeviceInfo, LaunchConfig, Stream, TensorMapSpec, cuda::CudaDevice},
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

/// Checks the slices and enqueues a plan's kernels on a stream, with cust's own launch. (A launch in clusters, which cust has none of, goes
/// to the driver directly: some dense plans on Hopper.) Makes the device's context the thread's, as cust's `CurrentContext` does.
///
/// # Errors
/// As [`LaunchSlices::launch_slices`].
///
/// # Safety
/// As [`LaunchSlices::launch_slices`]: like all launches of cust's, it returns before the kernels have finished, and cust keeps no account
/// of who uses a buffer. Buffers and stream are of the device's context.
pub unsafe fn launch<'a, P: LaunchSlices>(
    plan: &P,
    device: &CustDevice,
    stream: &cust::stream::Stream,
    slices: P::Slices<Input<'a>, Output<'a>>,
) -> Result<()> {
    // SAFETY: the caller's.
    unsafe { plan.launch_slices(device, stream, slices) }
}

/// A GPU in a context of cust's, and the kernels that cust has loaded in it.
#[derive(Debug)]
pub struct CustDevice {
    // In the order in which they must go.
    loaded: Mutex<HashMap<&'static str, Loaded>>,
    device: CudaDevice,
    context: Context,
}

/// A kernel that is ready to launch.
#[derive(Debug)]
struct Loaded {
    function: Function<'static>,
    /// What the function is of; dropped after it.
    _module: Box<Module>,
}

impl CustDevice {
    /// The GPU of a context, which is kept.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a driver, [`Error::Driver`] if it refuses the context.
    pub fn new(context: Context) -> Result<Self> {
        // SAFETY: the context is alive and stays so: it is kept beside the device, and dropped after it.
        let device = unsafe { CudaDevice::from_raw_context(context.as_raw().cast())? };
        Ok(Self {
            loaded: Mutex::default(),
            device,
            context,
        })
    }

    /// What plans have to know.
    pub fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    /// The context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Loads a kernel, so that launches of it need not. Makes the context the thread's.
    ///
    /// # Errors
    /// As [`Device::load`].
    pub fn load(&self, kernel: &'static Entry) -> Result<()> {
        self.make_current()?;
        self.with(kernel, |_| Ok(()))
    }

    fn make_current(&self) -> Result<()> {
        done(
            "cuCtxSetCurrent",
            CurrentContext::set_current(&self.context),
        )
    }

    fn state(&self) -> MutexGuard<'_, HashMap<&'static str, Loaded>> {
        // Every update is a single insertion, so the map is whole even after a panic.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a function with a kernel, loaded at the first use. The context is the thread's.
    fn with<R>(
        &self,
        kernel: &'static Entry,
        call: impl FnOnce(&Function<'static>) -> Result<R>,
    ) -> Result<R> {
        let mut state = self.state();
        if let Some(loaded) = state.get(kernel.name) {
            return call(&loaded.function);
        }
        let ptx = crate::kernels::ptx(kernel)?;
        let module = match Module::from_ptx(&ptx, &[]) {
            Ok(module) => Box::new(module),
            // cust has no log of the compiler's; the library's own attempt has.
            Err(error) => {
                self.device.load(kernel)?;
                return done("cuModuleLoadDataEx", Err(error));
            }
        };
        let function = done("cuModuleGetFunction", module.get_function(kernel.name))?;
        // SAFETY: the function refers to its module by the driver's handle alone, which is good as long as the module: it is kept beside the
        // function and dropped after it, and nobody gets the function for longer than the lock is held.
        let function = unsafe { std::mem::transmute::<Function<'_>, Function<'static>>(function) };
        // SAFETY: the function is of a loaded module; the driver checks the value. cust has no such call.
        let code = unsafe {
            sys::cuFuncSetAttribute(
                function.to_raw(),
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                kernel.shared_bytes as i32,
            )
        };
        if code != sys::cudaError_enum::CUDA_SUCCESS {
            return Err(Error::Driver {
                call: "cuFuncSetAttribute",
                reason: format!("{code:?}"),
            });
        }
        let loaded = Loaded {
            function,
            _module: module,
        };
        call(&state.entry(kernel.name).or_insert(loaded).function)
    }
}

impl Drop for CustDevice {
    fn drop(&mut self) {
        // Modules must not be unloaded under a running kernel, nor from another context.
        let _ = self.device.synchronize();
        let _ = self.make_current();
    }
}

/// cust's result as this library's.
fn done<T>(call: &'static str, result: CudaResult<T>) -> Result<T> {
    result.map_err(|error| match error {
        CudaError::OutOfMemory => Error::OutOfMemory {
            requested: 0,
            reason: error.to_string(),
        },
        error => Error::Driver {
            call,
            reason: format!("{error:?} ({error})"),
        },
    })
}

impl Queue for cust::stream::Stream {
    type Device = CustDevice;
    type Use<'a> = ();

    fn check(&self, device: &CustDevice) -> Result<()> {
        // cust does not say which context a stream is of; the driver refuses a launch on another one's.
        device.make_current()
    }

    fn enqueue(
        &self,
        device: &CustDevice,
        launch: &mut dyn FnMut(&dyn Device, Stream) -> Result<()>,
    ) -> Result<()> {
        let through = Through {
            device,
            stream: self,
        };
        launch(&through, Stream::from_raw(self.as_inner().cast()))
    }
}

/// The device as plans see it: launches go through cust, on one stream.
#[derive(Debug)]
struct Through<'a> {
    device: &'a CustDevice,
    stream: &'a cust::stream::Stream,
}

impl Through<'_> {
    fn own(&self) -> &CudaDevice {
        &self.device.device
    }
}

impl Device for Through<'_> {
    fn info(&self) -> &DeviceInfo {
        self.own().info()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.own().allocate(bytes)
    }

    unsafe fn free(&self, address: u64) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.own().free(address) }
    }

    unsafe fn write(&self, address: u64, source: &[u8]) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.own().write(address, source) }
    }

    unsafe fn read(&self, address: u64, destination: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.own().read(address, destination) }
    }

    unsafe fn fill(&self, address: u64, bytes: usize, value: u8) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.own().fill(address, bytes, value) }
    }

    fn load(&self, kernel: &'static Entry) -> Result<()> {
        self.device.load(kernel)
    }

    unsafe fn override_ptx(&self, kernel: &'static Entry, ptx: &str) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.own().override_ptx(kernel, ptx) }
    }

    unsafe fn launch(
        &self,
        kernel: &'static Entry,
        config: &LaunchConfig,
        params: &[u8],
        stream: Stream,
    ) -> Result<()> {
        if config.cluster > 1 {
            // SAFETY: the caller's.
            return unsafe { self.own().launch(kernel, config, params, stream) };
        }
        let [x, y, z] = config.grid;
        let grid = GridSize::xyz(x, y, z);
        let [x, y, z] = config.block;
        let block = BlockSize::xyz(x, y, z);
        // One parameter, passed by value: the driver reads as many bytes as the entry point declares.
        let arguments = [params.as_ptr().cast_mut().cast::<c_void>()];
        self.device.with(kernel, |function| {
            // SAFETY: the caller vouches that `params` is the entry point's whole parameter block and for the addresses in it; the function
            // is of the stream's context.
            let launched = unsafe {
                self.stream
                    .launch(function, grid, block, config.shared_bytes, &arguments)
            };
            done("cuLaunchKernel", launched)
        })
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        self.own().tensor_map(spec)
    }

    unsafe fn order(&self, before: Stream, after: Stream) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.own().order(before, after) }
    }

    fn synchronize(&self) -> Result<()> {
        self.own().synchronize()
    }
}

/// Memory of one of cust's buffers.
#[derive(Clone, Copy, Debug)]
struct Memory {
    address: u64,
    bytes: usize,
    element: ElementType,
}

impl Memory {
    fn of<T: Element + DeviceCopy>(slice: &CustSlice<T>) -> Self {
        Self {
            address: slice.as_device_ptr().as_raw(),
            bytes: slice.len() * size_of::<T>(),
            element: T::TYPE,
        }
    }
}

/// A buffer or a part of one that is read.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(Memory, PhantomData<&'a ()>);

/// A buffer or a part of one that is written.
#[derive(Debug)]
pub struct Output<'a>(Memory, PhantomData<&'a mut ()>);

impl<'a, T: Element + DeviceCopy> From<&'a DeviceBuffer<T>> for Input<'a> {
    fn from(buffer: &'a DeviceBuffer<T>) -> Self {
        Self(Memory::of(buffer), PhantomData)
    }
}

impl<'a, T: Element + DeviceCopy> From<&'a CustSlice<T>> for Input<'a> {
    fn from(slice: &'a CustSlice<T>) -> Self {
        Self(Memory::of(slice), PhantomData)
    }
}

impl<'a, T: Element + DeviceCopy> From<&'a mut DeviceBuffer<T>> for Output<'a> {
    fn from(buffer: &'a mut DeviceBuffer<T>) -> Self {
        Self(Memory::of(buffer), PhantomData)
    }
}

impl<'a, T: Element + DeviceCopy> From<&'a mut CustSlice<T>> for Output<'a> {
    fn from(slice: &'a mut CustSlice<T>) -> Self {
        Self(Memory::of(slice), PhantomData)
    }
}

macro_rules! device_slice {
    ($($type:ident),*) => {
        $(
            impl DeviceSlice<cust::stream::Stream> for $type<'_> {
                fn element(&self) -> ElementType {
                    self.0.element
                }

                fn bytes(&self) -> usize {
                    self.0.bytes
                }

                fn is_near(&self, _: &cust::stream::Stream) -> bool {
                    // cust does not say.
                    true
                }

                fn locate<'a>(&'a mut self, _: &'a cust::stream::Stream) -> (u64, ()) {
                    (self.0.address, ())
                }
            }
        )*
    };
}

device_slice!(Input, Output);

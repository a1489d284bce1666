//! NVIDIA GPUs, through the driver API.

mod driver;
mod raw;
mod timing;

use std::{
    collections::HashMap,
    ffi::{CString, c_char, c_int, c_uint, c_void},
    ptr::null_mut,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use flashtile_abi::{DType, Entry, TensorMap};

use self::driver::{Driver, Handle, LaunchAttribute, LaunchAttributes, Ordinal, codes};
pub use self::raw::{RawModule, TensorMapArguments};
pub use self::timing::{Event, Graph, OwnedStream};
use super::{Device, DeviceInfo, DeviceKind, LaunchConfig, PinnedMemory, Stream, TensorMapSpec};
use crate::error::{Error, Result};

/// Bytes of the compiler's complaints that are kept.
const LOG_BYTES: usize = 8192;

/// A GPU. Every call makes the device's context the thread's for its duration and restores the one
/// before, so that other libraries in the process notice nothing.
///
/// Kernels are compiled by the driver when they are first used or [loaded](Device::load), once a device.
pub struct CudaDevice {
    driver: &'static Driver,
    info: DeviceInfo,
    context: Context,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    modules: HashMap<&'static str, Loaded>,
    overrides: HashMap<&'static str, String>,
    /// By which streams wait for each other; null until they do.
    order: OrderEvent,
}

/// An event, or null.
struct OrderEvent(Handle);

impl Default for OrderEvent {
    fn default() -> Self {
        Self(null_mut())
    }
}

/// A kernel that is ready to launch.
#[derive(Clone, Copy)]
struct Loaded {
    module: Handle,
    function: Handle,
}

/// A context, and whether it has to be released.
struct Context {
    handle: Handle,
    primary_of: Option<Ordinal>,
}

// SAFETY: the driver API may be called from any thread with any handle, and the raw handles are
// only ever passed to it. Mutable state is behind a mutex.
unsafe impl Send for CudaDevice {}
// SAFETY: as above; every method takes &self and locks what it changes.
unsafe impl Sync for CudaDevice {}

impl std::fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaDevice")
            .field("info", &self.info)
            .field("context", &self.context.handle)
            .field("owned", &self.context.primary_of.is_some())
            .finish_non_exhaustive()
    }
}

/// Makes a context the thread's as long as it lives.
pub(crate) struct Pushed(&'static Driver);

impl Drop for Pushed {
    fn drop(&mut self) {
        let mut context = null_mut();
        // SAFETY: the context on top is the one that was pushed: nobody else runs on this thread
        // in between, and every push is undone in reverse order.
        let _ = unsafe { self.0.context_pop(&raw mut context) };
    }
}

/// The GPUs of this machine, by number.
///
/// # Errors
/// [`Error::NoDevice`] without a driver, or if it knows no GPU.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    let driver = Driver::get()?;
    (0..count(driver)?)
        .map(|ordinal| info(driver, find(driver, ordinal)?))
        .collect()
}

/// The newest CUDA version that the driver supports, major and minor.
///
/// # Errors
/// [`Error::NoDevice`] without a driver.
pub fn driver_version() -> Result<(u32, u32)> {
    let mut version = 0;
    // SAFETY: writes one int.
    unsafe { Driver::get()?.version(&raw mut version)? };
    let version = u32::try_from(version).unwrap_or(0);
    // 13.1 is 13010.
    Ok((version / 1000, version % 1000 / 10))
}

/// The place of a number of mapped memory.
fn pinned_word(memory: PinnedMemory, word: usize) -> *mut u64 {
    std::ptr::with_exposed_provenance_mut(memory.host + 8 * word)
}

fn count(driver: &Driver) -> Result<c_int> {
    let mut count = 0;
    // SAFETY: writes one int.
    unsafe { driver.device_count(&raw mut count)? };
    Ok(count)
}

fn find(driver: &Driver, ordinal: c_int) -> Result<Ordinal> {
    let mut device = 0;
    // SAFETY: writes one device; the ordinal is checked by the driver.
    unsafe { driver.device_get(&raw mut device, ordinal)? };
    Ok(device)
}

/// Text that the driver writes into a buffer of so many bytes.
fn text(write: impl FnOnce(*mut c_char, c_int) -> Result<()>) -> Result<String> {
    let mut buffer = [0u8; 256];
    write(buffer.as_mut_ptr().cast(), buffer.len() as c_int)?;
    let end = buffer.iter().position(|&byte| byte == 0);
    let text = &buffer[..end.unwrap_or(buffer.len())];
    Ok(String::from_utf8_lossy(text).into_owned())
}

fn attribute(driver: &Driver, device: Ordinal, attribute: c_int) -> Result<u32> {
    let mut value = 0;
    // SAFETY: writes one int; attribute and device are checked by the driver.
    unsafe { driver.device_attribute(&raw mut value, attribute, device)? };
    Ok(u32::try_from(value).unwrap_or(0))
}

fn info(driver: &Driver, device: Ordinal) -> Result<DeviceInfo> {
    let attribute = |which| attribute(driver, device, which);
    // SAFETY: writes at most `len` bytes, a terminating 0 among them.
    let name = text(|name, len| unsafe { driver.device_name(name, len, device) })?;
    let mut total_memory = 0;
    // SAFETY: writes one size.
    unsafe { driver.device_memory(&raw mut total_memory, device)? };
    Ok(DeviceInfo {
        kind: DeviceKind::Cuda,
        name,
        compute_capability: (
            attribute(codes::ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(codes::ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(codes::ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_per_block: attribute(codes::ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        total_memory: total_memory as u64,
        driver_lacks: driver.lacks_for_hopper(),
    })
}

impl CudaDevice {
    /// The GPU of that number, in its primary context (the one that the CUDA runtime, candle,
    /// cudarc and PyTorch use). The context is retained until the device is dropped.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a driver or without such a GPU.
    pub fn new(ordinal: u32) -> Result<Self> {
        let driver = Driver::get()?;
        let count = count(driver)?;
        let index = c_int::try_from(ordinal).ok().filter(|&index| index < count);
        let device = find(
            driver,
            index.ok_or_else(|| Error::NoDevice {
                reason: format!("there is no GPU {ordinal}: the driver knows {count}"),
            })?,
        )?;
        let info = info(driver, device)?;
        let mut handle = null_mut();
        // SAFETY: writes one handle; released when the context is dropped.
        unsafe { driver.primary_retain(&raw mut handle, device)? };
        Ok(Self {
            driver,
            info,
            context: Context {
                handle,
                primary_of: Some(device),
            },
            state: Mutex::default(),
        })
    }

    /// The GPU and the context that are current on this thread, borrowed: dropping the device leaves the
    /// context alone.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a driver or without a current context.
    ///
    /// # Safety
    /// The context must outlive the device.
    pub unsafe fn from_current_context() -> Result<Self> {
        let driver = Driver::get()?;
        let mut handle = null_mut();
        // SAFETY: writes one handle.
        unsafe { driver.context_current(&raw mut handle)? };
        if handle.is_null() {
            return Err(Error::NoDevice {
                reason: "no CUDA context is current on this thread".into(),
            });
        }
        // SAFETY: the handle is that of the current context; the caller keeps it alive.
        unsafe { Self::from_raw_context(handle) }
    }

    /// A context of the caller's (`CUcontext`), borrowed: dropping the device leaves it alone.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a driver, [`Error::Driver`] if the driver refuses the context.
    ///
    /// # Safety
    /// `context` must be a live context that outlives the device.
    pub unsafe fn from_raw_context(context: *mut c_void) -> Result<Self> {
        let driver = Driver::get()?;
        // SAFETY: the caller vouches for the context; the guard undoes the push.
        unsafe { driver.context_push(context)? };
        let pushed = Pushed(driver);
        let mut device = 0;
        // SAFETY: writes one device; a context is current.
        unsafe { driver.context_device(&raw mut device)? };
        drop(pushed);
        Ok(Self {
            driver,
            info: info(driver, device)?,
            context: Context {
                handle: context,
                primary_of: None,
            },
            state: Mutex::default(),
        })
    }

    /// Whether a stream is one of this device's context. The default stream is.
    ///
    /// # Errors
    /// What the driver says, of what is no stream.
    pub fn owns(&self, stream: Stream) -> Result<bool> {
        let _pushed = self.push()?;
        let mut context = null_mut();
        // SAFETY: writes one handle; the driver refuses what is no stream. Of the default stream it is the current context.
        unsafe {
            self.driver
                .stream_context(stream.as_raw(), &raw mut context)?;
        }
        Ok(context == self.context.handle)
    }

    /// The device, as the driver knows it.
    pub(crate) fn ordinal(&self) -> Result<Ordinal> {
        let _pushed = self.push()?;
        let mut device = 0;
        // SAFETY: writes one device; a context is current.
        unsafe { self.driver.context_device(&raw mut device)? };
        Ok(device)
    }

    /// Bytes of the GPU's L2 cache.
    ///
    /// # Errors
    /// What the driver says.
    pub fn l2_bytes(&self) -> Result<usize> {
        let bytes = attribute(self.driver, self.ordinal()?, codes::ATTRIBUTE_L2_CACHE_SIZE)?;
        Ok(bytes as usize)
    }

    /// The GPU's place on the PCI bus, by which other tools know it whatever the numbering: `0000:17:00.0`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn pci_bus_id(&self) -> Result<String> {
        let device = self.ordinal()?;
        // SAFETY: writes at most `len` bytes, a terminating 0 among them.
        text(|name, len| unsafe { self.driver.device_bus_id(name, len, device) })
    }

    /// The context (`CUcontext`), still this device's or its lender's.
    pub fn raw_context(&self) -> *mut c_void {
        self.context.handle
    }

    /// Makes the device's context the thread's, until what it returns is dropped.
    pub(crate) fn push(&self) -> Result<Pushed> {
        // SAFETY: the context is alive: retained by this device, or vouched for at its creation.
        unsafe { self.driver.context_push(self.context.handle)? };
        Ok(Pushed(self.driver))
    }

    /// Waits for the default stream, in which fills and small copies may still be under way when the
    /// driver returns: a kernel in a non-blocking stream would not wait for them. The device's context
    /// must be current.
    fn finish_default_stream(&self) -> Result<()> {
        // SAFETY: a null handle is the default stream of the current context.
        unsafe { self.driver.stream_synchronize(null_mut()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every update of the state is a single insertion, so it is whole even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel, compiled at the first use. The device's context must be current.
    fn loaded(&self, kernel: &'static Entry) -> Result<Loaded> {
        let mut state = self.state();
        if let Some(&loaded) = state.modules.get(kernel.name) {
            return Ok(loaded);
        }
        let module = match state.overrides.get(kernel.name) {
            Some(ptx) => self.compile(kernel.name, ptx)?,
            None => self.compile(kernel.name, &crate::kernels::ptx(kernel)?)?,
        };
        let function = self.function(module, kernel.name, kernel.shared_bytes);
        let function = function.inspect_err(|_| {
            // SAFETY: the module was just loaded in this context, and nothing of it is in use.
            let _ = unsafe { self.driver.module_unload(module) };
        })?;
        let loaded = Loaded { module, function };
        state.modules.insert(kernel.name, loaded);
        Ok(loaded)
    }

    /// Compiles PTX text; `name` is for messages. The device's context must be current.
    fn compile(&self, name: &str, ptx: &str) -> Result<Handle> {
        let fault = |reason: String| Error::Fault {
            context: format!("loading {name}"),
            reason,
        };
        let image =
            CString::new(ptx).map_err(|_| fault("the PTX text contains a 0 byte".into()))?;
        let mut log = vec![0u8; LOG_BYTES];
        let mut names = [
            codes::JIT_ERROR_LOG_BUFFER,
            codes::JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values = [
            log.as_mut_ptr().cast::<c_void>(),
            // The API passes the number in the pointer.
            std::ptr::without_provenance_mut(LOG_BYTES),
        ];
        let mut module = null_mut();
        // SAFETY: the image is text that ends with 0; names and values have two entries, of which
        // the first value is a buffer of as many bytes as the second says; a context is current.
        let result = unsafe {
            self.driver.module_load(
                &raw mut module,
                image.as_ptr().cast(),
                names.len() as c_uint,
                names.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        match result {
            Ok(()) => Ok(module),
            Err(error @ (Error::OutOfMemory { .. } | Error::NoDevice { .. })) => Err(error),
            Err(error) => {
                let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
                let log = String::from_utf8_lossy(&log[..end]);
                Err(fault(format!("{error}; the compiler says: {}", log.trim())))
            }
        }
    }

    /// An entry point of a loaded module, ready for so much dynamic shared memory. The device's context
    /// must be current.
    fn function(&self, module: Handle, entry: &str, shared_bytes: u32) -> Result<Handle> {
        let fault = |reason: String| Error::Fault {
            context: format!("loading {entry}"),
            reason,
        };
        let name = CString::new(entry).map_err(|error| fault(error.to_string()))?;
        let mut function = null_mut();
        // SAFETY: the module is loaded, the name ends with 0; writes one handle.
        unsafe {
            self.driver
                .module_function(&raw mut function, module, name.as_ptr())
        }
        .map_err(|error| fault(format!("its entry point cannot be had: {error}")))?;
        // SAFETY: the function is of a loaded module; the value is checked by the driver.
        unsafe {
            self.driver.function_set(
                function,
                codes::FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared_bytes as c_int,
            )?;
        }
        Ok(function)
    }

    /// Enqueues a function with its parameters, one of the two ways that the driver knows.
    ///
    /// # Safety
    /// A context is current that the function and the stream belong to. `kernel_params` or `extra` is what the driver
    /// expects there, for as long as the call; the other is null. What the kernel does with it is sound.
    unsafe fn enqueue(
        &self,
        function: Handle,
        config: &LaunchConfig,
        stream: Stream,
        kernel_params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> Result<()> {
        if config.cluster > 1 {
            let cluster = LaunchAttribute {
                id: codes::LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                padding: 0,
                value: std::array::from_fn(|n| match n {
                    0 => config.cluster,
                    1 | 2 => 1,
                    _ => 0,
                }),
            };
            let attributes = LaunchAttributes {
                grid: config.grid,
                block: config.block,
                shared_bytes: config.shared_bytes,
                stream: stream.as_raw(),
                attributes: &raw const cluster,
                count: 1,
            };
            // SAFETY: the caller's; the attributes live as long as the call.
            return unsafe {
                self.driver.launch_kernel_with(
                    &raw const attributes,
                    function,
                    kernel_params,
                    extra,
                )
            };
        }
        let [grid_x, grid_y, grid_z] = config.grid;
        let [block_x, block_y, block_z] = config.block;
        // SAFETY: the caller's.
        unsafe {
            self.driver.launch_kernel(
                function,
                grid_x,
                grid_y,
                grid_z,
                block_x,
                block_y,
                block_z,
                config.shared_bytes,
                stream.as_raw(),
                kernel_params,
                extra,
            )
        }
    }
}

impl Device for CudaDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let _pushed = self.push()?;
        let mut address = 0;
        // SAFETY: writes one address.
        match unsafe { self.driver.memory_allocate(&raw mut address, bytes) } {
            Ok(()) => Ok(address),
            Err(Error::OutOfMemory { reason, .. }) => Err(Error::OutOfMemory {
                requested: bytes as u64,
                reason,
            }),
            Err(error) => Err(error),
        }
    }

    unsafe fn free(&self, address: u64) -> Result<()> {
        let _pushed = self.push()?;
        // SAFETY: the caller vouches for the address.
        unsafe { self.driver.memory_free(address) }
    }

    unsafe fn write(&self, address: u64, source: &[u8]) -> Result<()> {
        let _pushed = self.push()?;
        // SAFETY: the source is a slice; the caller vouches for the destination.
        unsafe {
            self.driver
                .memory_write(address, source.as_ptr().cast(), source.len())?;
        }
        self.finish_default_stream()
    }

    unsafe fn read(&self, address: u64, destination: &mut [u8]) -> Result<()> {
        let _pushed = self.push()?;
        // SAFETY: a context is current. Copies wait for the default stream only, kernels may run
        // in others.
        unsafe { self.driver.context_synchronize()? };
        // SAFETY: the destination is a slice; the caller vouches for the source.
        unsafe {
            self.driver
                .memory_read(destination.as_mut_ptr().cast(), address, destination.len())
        }
    }

    unsafe fn fill(&self, address: u64, bytes: usize, value: u8) -> Result<()> {
        let _pushed = self.push()?;
        // SAFETY: the caller vouches for the range.
        unsafe { self.driver.memory_fill(address, value, bytes)? };
        self.finish_default_stream()
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<PinnedMemory> {
        let _pushed = self.push()?;
        let mut host = null_mut();
        // SAFETY: writes one pointer.
        unsafe {
            self.driver
                .host_allocate(&raw mut host, bytes, codes::HOST_MAPPED)?;
        }
        let mut address = 0;
        // SAFETY: the memory was just allocated as mapped; writes one address.
        let found = unsafe { self.driver.host_address(&raw mut address, host, 0) };
        found.inspect_err(|_| {
            // SAFETY: the memory was just allocated, and nobody else knows of it.
            let _ = unsafe { self.driver.host_free(host) };
        })?;
        Ok(PinnedMemory {
            address,
            host: host.expose_provenance(),
        })
    }

    unsafe fn free_pinned(&self, memory: PinnedMemory) -> Result<()> {
        let _pushed = self.push()?;
        let host = std::ptr::with_exposed_provenance_mut(memory.host);
        // SAFETY: the caller vouches for the memory.
        unsafe { self.driver.host_free(host) }
    }

    unsafe fn read_pinned(&self, memory: PinnedMemory, word: usize) -> Result<u64> {
        // SAFETY: the caller vouches that the memory is alive and has the number, which the driver aligned; all accesses of the host
        // are atomic.
        let number = unsafe { AtomicU64::from_ptr(pinned_word(memory, word)) };
        Ok(number.load(Ordering::Acquire))
    }

    unsafe fn write_pinned(&self, memory: PinnedMemory, word: usize, value: u64) -> Result<()> {
        // SAFETY: as in `read_pinned`.
        let number = unsafe { AtomicU64::from_ptr(pinned_word(memory, word)) };
        number.store(value, Ordering::Release);
        Ok(())
    }

    fn load(&self, kernel: &'static Entry) -> Result<()> {
        let _pushed = self.push()?;
        self.loaded(kernel).map(drop)
    }

    unsafe fn override_ptx(&self, kernel: &'static Entry, ptx: &str) -> Result<()> {
        let mut state = self.state();
        super::check_override(kernel, state.modules.contains_key(kernel.name))?;
        state.overrides.insert(kernel.name, ptx.into());
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: &'static Entry,
        config: &LaunchConfig,
        params: &[u8],
        stream: Stream,
    ) -> Result<()> {
        let _pushed = self.push()?;
        let loaded = self.loaded(kernel)?;
        // One parameter, passed by value: the driver reads as many bytes as the entry point declares.
        let mut kernel_params = [params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the function belongs to this context; the caller vouches that `params` is the
        // entry point's whole parameter block, for the addresses in it, and for the stream.
        unsafe {
            let kernel_params = kernel_params.as_mut_ptr();
            self.enqueue(loaded.function, config, stream, kernel_params, null_mut())
        }
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        self.encode_tensor_map(&TensorMapArguments {
            element: match spec.dtype {
                DType::F16 => codes::TENSOR_MAP_FLOAT16,
                DType::Bf16 => codes::TENSOR_MAP_BFLOAT16,
                DType::F32 => codes::TENSOR_MAP_FLOAT32,
                // The engine moves bytes; it has no type of its own for these.
                DType::E4m3 => codes::TENSOR_MAP_UINT8,
            },
            address: spec.address,
            dims: &spec.dims,
            strides: &spec.strides,
            extents: &spec.extents,
            steps: &[1; 5],
            // CU_TENSOR_MAP_SWIZZLE_32B, _64B, _128B.
            swizzle: match spec.swizzle {
                128 => 3,
                64 => 2,
                _ => 1,
            },
            promotion: codes::TENSOR_MAP_L2_PROMOTION_128B,
            fill: codes::TENSOR_MAP_NONE,
        })
    }

    fn synchronize(&self) -> Result<()> {
        let _pushed = self.push()?;
        // SAFETY: a context is current.
        unsafe { self.driver.context_synchronize() }
    }

    unsafe fn order(&self, before: Stream, after: Stream) -> Result<()> {
        if before == after {
            return Ok(());
        }
        let _pushed = self.push()?;
        // Locked until both calls are made. A wait is for what the event had recorded at the call, so one event serves for all.
        let mut state = self.state();
        let event = &mut state.order.0;
        if event.is_null() {
            // SAFETY: writes one handle; destroyed with the device.
            unsafe {
                self.driver
                    .event_create(&raw mut *event, codes::EVENT_DISABLE_TIMING)?;
            }
        }
        // SAFETY: the event is alive, and the caller vouches for the streams; 0 is the only flag that there is.
        unsafe {
            self.driver.event_record(*event, before.as_raw())?;
            self.driver.stream_wait(after.as_raw(), *event, 0)
        }
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        if let Ok(_pushed) = self.push() {
            // SAFETY: a context is current. Modules must not be unloaded under a running kernel.
            let _ = unsafe { self.driver.context_synchronize() };
            for loaded in self.state().modules.values() {
                // SAFETY: the module was loaded in this context, once, and no kernel runs.
                let _ = unsafe { self.driver.module_unload(loaded.module) };
            }
            let event = self.state().order.0;
            if !event.is_null() {
                // SAFETY: the event is the device's own.
                let _ = unsafe { self.driver.event_destroy(event) };
            }
        }
        if let Some(device) = self.context.primary_of {
            // SAFETY: undoes the retain in `new`.
            let _ = unsafe { self.driver.primary_release(device) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorClass;

    /// Passes with and without a GPU: what matters is that nothing panics without one.
    #[test]
    fn a_missing_gpu_is_an_error_that_says_why() {
        match CudaDevice::new(4096) {
            Ok(device) => panic!("{device:?}"),
            Err(error) => {
                assert_eq!(error.class(), ErrorClass::NoDevice);
                println!("{error}");
            }
        }
    }
}

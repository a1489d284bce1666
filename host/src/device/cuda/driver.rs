//! The part of NVIDIA's driver API that is needed, from the library that is there at run time.
//!
//! A table of our own, and not cudarc's `sys`: that one exists in three versions (loaded, linked
//! dynamically, linked statically), of which any crate in the graph may choose one for all, two
//! of them refuse to start without a driver; and its result type is an enum, which must not hold the
//! codes of drivers newer than itself.

use std::{
    ffi::{CStr, c_char, c_float, c_int, c_uint, c_ulonglong, c_void},
    sync::OnceLock,
};

use libloading::Library;

use crate::error::{Error, Result};

/// `CUcontext`, `CUmodule`, `CUfunction`, `CUstream`, `CUevent`, `CUgraph`, `CUgraphExec`: opaque.
pub(super) type Handle = *mut c_void;
/// `CUdevice`.
pub(super) type Ordinal = c_int;
/// `CUdeviceptr`.
pub(super) type Address = u64;

/// `cuGetErrorName` and `cuGetErrorString`.
type ErrorText = unsafe extern "system" fn(c_int, *mut *const c_char) -> c_int;

/// Numbers of the API, as in `cuda.h`.
pub(super) mod codes {
    use std::ffi::{c_int, c_uint};
    pub const OUT_OF_MEMORY: c_int = 2;
    pub const NO_DEVICE: c_int = 100;
    /// Codes of a kernel that did something wrong; the context is lost after most of them.
    pub const FAULTS: [c_int; 11] = [
        214, // ECC_UNCORRECTABLE
        700, // ILLEGAL_ADDRESS
        702, // LAUNCH_TIMEOUT
        710, // ASSERT
        714, // HARDWARE_STACK_ERROR
        715, // ILLEGAL_INSTRUCTION
        716, // MISALIGNED_ADDRESS
        717, // INVALID_ADDRESS_SPACE
        718, // INVALID_PC
        719, // LAUNCH_FAILED
        721, // CONTAINED
    ];
    pub const ATTRIBUTE_MULTIPROCESSOR_COUNT: c_int = 16;
    pub const ATTRIBUTE_L2_CACHE_SIZE: c_int = 38;
    pub const ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: c_int = 75;
    pub const ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: c_int = 76;
    pub const ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: c_int = 97;
    pub const FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
    /// `CU_LAUNCH_PARAM_END`, `CU_LAUNCH_PARAM_BUFFER_POINTER`, `CU_LAUNCH_PARAM_BUFFER_SIZE`: what
    /// stands in pointers of `extra`.
    pub const LAUNCH_PARAM_END: usize = 0;
    pub const LAUNCH_PARAM_BUFFER_POINTER: usize = 1;
    pub const LAUNCH_PARAM_BUFFER_SIZE: usize = 2;
    /// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`: every context may reach it, the device at an address of its own.
    pub const HOST_MAPPED: c_uint = 1 | 2;
    /// `CU_STREAM_NON_BLOCKING`: does not wait for the default stream.
    pub const STREAM_NON_BLOCKING: c_uint = 1;
    /// `CU_EVENT_DISABLE_TIMING`.
    pub const EVENT_DISABLE_TIMING: c_uint = 2;
    /// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: what other threads do is no part of it.
    pub const CAPTURE_MODE_THREAD_LOCAL: c_int = 1;
    /// `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`: x, y, z.
    pub const LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION: c_uint = 4;
    /// `CU_TENSOR_MAP_DATA_TYPE_*`.
    pub const TENSOR_MAP_UINT8: c_int = 0;
    pub const TENSOR_MAP_FLOAT16: c_int = 6;
    pub const TENSOR_MAP_FLOAT32: c_int = 7;
    pub const TENSOR_MAP_BFLOAT16: c_int = 9;
    /// `CU_TENSOR_MAP_INTERLEAVE_NONE`, `CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE`.
    pub const TENSOR_MAP_NONE: c_int = 0;
    /// `CU_TENSOR_MAP_L2_PROMOTION_L2_128B`.
    pub const TENSOR_MAP_L2_PROMOTION_128B: c_int = 2;
    pub const JIT_ERROR_LOG_BUFFER: c_int = 5;
    pub const JIT_ERROR_LOG_BUFFER_SIZE_BYTES: c_int = 6;
}

macro_rules! driver {
    (
        always { $($(#[$doc:meta])* $name:ident = $symbol:literal ($($argument:ident: $type:ty),*);)* }
        newer {
            $($(#[$newer_doc:meta])* $newer:ident = $newer_symbol:literal since $since:literal
                ($($newer_argument:ident: $newer_type:ty),*);)*
        }
    ) => {
        /// The driver's functions.
        pub(super) struct Driver {
            $($name: unsafe extern "system" fn($($type),*) -> c_int,)*
            $($newer: Option<unsafe extern "system" fn($($newer_type),*) -> c_int>,)*
            /// Names an error.
            error_name: ErrorText,
            /// Describes an error.
            error_text: ErrorText,
            /// Keeps the functions above loaded.
            _library: Library,
        }

        impl Driver {
            fn from_library(library: Library) -> Result<Self, String> {
                $(
                    // SAFETY: the symbol is a function of NVIDIA's driver API, whose documented
                    // C signature is the one given; it is called only while `_library` lives.
                    let $name = unsafe {
                        *library
                            .get::<unsafe extern "system" fn($($type),*) -> c_int>($symbol)
                            .map_err(|error| format!("the driver is too old: {error}"))?
                    };
                )*
                $(
                    // SAFETY: as above.
                    let $newer = unsafe {
                        library
                            .get::<unsafe extern "system" fn($($newer_type),*) -> c_int>(concat!($newer_symbol, "\0").as_bytes())
                            .ok()
                            .map(|function| *function)
                    };
                )*
                let error_text = |symbol: &[u8]| {
                    // SAFETY: as above.
                    let found = unsafe { library.get::<ErrorText>(symbol) };
                    found.map(|function| *function).map_err(|error| format!("the driver is too old: {error}"))
                };
                Ok(Self {
                    $($name,)*
                    $($newer,)*
                    error_name: error_text(b"cuGetErrorName\0")?,
                    error_text: error_text(b"cuGetErrorString\0")?,
                    _library: library,
                })
            }

            $(
                $(#[$doc])*
                ///
                /// # Safety
                /// As the driver API documents it for this function.
                // The launch takes what cuLaunchKernel takes.
                #[allow(clippy::too_many_arguments)]
                pub unsafe fn $name(&self, $($argument: $type),*) -> Result<()> {
                    // SAFETY: the caller keeps the function's contract.
                    let code = unsafe { (self.$name)($($argument),*) };
                    self.check(stringify!($name), code)
                }
            )*

            $(
                $(#[$newer_doc])*
                ///
                /// # Errors
                /// Also if the driver is older than the function.
                ///
                /// # Safety
                /// As the driver API documents it for this function.
                #[allow(clippy::too_many_arguments)]
                pub unsafe fn $newer(&self, $($newer_argument: $newer_type),*) -> Result<()> {
                    let call = stringify!($newer);
                    let Some(function) = self.$newer else {
                        let reason = concat!("the driver is too old: ", $newer_symbol, " comes with CUDA ", $since);
                        return Err(Error::Driver { call, reason: reason.into() });
                    };
                    // SAFETY: the caller keeps the function's contract.
                    let code = unsafe { function($($newer_argument),*) };
                    self.check(call, code)
                }
            )*

            /// The newer functions that this driver does not have: the field's name, and the driver's name with the CUDA version that
            /// brings it.
            pub fn lacking(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
                let all = [$((
                    self.$newer.is_none(),
                    stringify!($newer),
                    concat!($newer_symbol, ", which comes with CUDA ", $since),
                )),*];
                all.into_iter().filter(|(lacks, ..)| *lacks).map(|(_, name, text)| (name, text))
            }
        }
    };
}

driver! {
    always {
        /// Initialises the driver.
        init = b"cuInit\0" (flags: c_uint);
        /// Tells the CUDA version that the driver supports.
        version = b"cuDriverGetVersion\0" (version: *mut c_int);
        /// Counts devices.
        device_count = b"cuDeviceGetCount\0" (count: *mut c_int);
        /// Finds a device.
        device_get = b"cuDeviceGet\0" (device: *mut Ordinal, ordinal: c_int);
        /// Names a device.
        device_name = b"cuDeviceGetName\0" (name: *mut c_char, len: c_int, device: Ordinal);
        /// Reads an attribute.
        device_attribute = b"cuDeviceGetAttribute\0" (value: *mut c_int, attribute: c_int, device: Ordinal);
        /// Reads the size of a device's memory.
        device_memory = b"cuDeviceTotalMem_v2\0" (bytes: *mut usize, device: Ordinal);
        /// Names a device's place on the PCI bus.
        device_bus_id = b"cuDeviceGetPCIBusId\0" (name: *mut c_char, len: c_int, device: Ordinal);
        /// Retains a primary context.
        primary_retain = b"cuDevicePrimaryCtxRetain\0" (context: *mut Handle, device: Ordinal);
        /// Releases a primary context.
        primary_release = b"cuDevicePrimaryCtxRelease_v2\0" (device: Ordinal);
        /// Finds the calling thread's context.
        context_current = b"cuCtxGetCurrent\0" (context: *mut Handle);
        /// Finds the device of the calling thread's context.
        context_device = b"cuCtxGetDevice\0" (device: *mut Ordinal);
        /// Makes a context the calling thread's.
        context_push = b"cuCtxPushCurrent_v2\0" (context: Handle);
        /// Undoes a push.
        context_pop = b"cuCtxPopCurrent_v2\0" (context: *mut Handle);
        /// Waits for all work of the calling thread's context.
        context_synchronize = b"cuCtxSynchronize\0" ();
        /// Creates a stream.
        stream_create = b"cuStreamCreate\0" (stream: *mut Handle, flags: c_uint);
        /// Destroys a stream, once its work is done.
        stream_destroy = b"cuStreamDestroy_v2\0" (stream: Handle);
        /// Finds a stream's context.
        stream_context = b"cuStreamGetCtx\0" (stream: Handle, context: *mut Handle);
        /// Makes a stream's later work wait for an event.
        stream_wait = b"cuStreamWaitEvent\0" (stream: Handle, event: Handle, flags: c_uint);
        /// Makes a stream take down its work instead of doing it.
        stream_capture = b"cuStreamBeginCapture_v2\0" (stream: Handle, mode: c_int);
        /// Hands out what was taken down.
        stream_captured = b"cuStreamEndCapture\0" (stream: Handle, graph: *mut Handle);
        /// Enqueues a graph.
        graph_launch = b"cuGraphLaunch\0" (executable: Handle, stream: Handle);
        /// Destroys a graph.
        graph_destroy = b"cuGraphDestroy\0" (graph: Handle);
        /// Destroys a graph that was made ready.
        graph_executable_destroy = b"cuGraphExecDestroy\0" (executable: Handle);
        /// Creates an event.
        event_create = b"cuEventCreate\0" (event: *mut Handle, flags: c_uint);
        /// Enqueues an event.
        event_record = b"cuEventRecord\0" (event: Handle, stream: Handle);
        /// Waits for an event.
        event_synchronize = b"cuEventSynchronize\0" (event: Handle);
        /// Tells the milliseconds between two events.
        event_elapsed = b"cuEventElapsedTime\0" (milliseconds: *mut c_float, start: Handle, end: Handle);
        /// Destroys an event.
        event_destroy = b"cuEventDestroy_v2\0" (event: Handle);
        /// Waits for a stream.
        stream_synchronize = b"cuStreamSynchronize\0" (stream: Handle);
        /// Loads a module.
        module_load = b"cuModuleLoadDataEx\0" (
            module: *mut Handle, image: *const c_void, options: c_uint, names: *mut c_int, values: *mut *mut c_void
        );
        /// Unloads a module.
        module_unload = b"cuModuleUnload\0" (module: Handle);
        /// Finds an entry point.
        module_function = b"cuModuleGetFunction\0" (function: *mut Handle, module: Handle, name: *const c_char);
        /// Sets an attribute of a function.
        function_set = b"cuFuncSetAttribute\0" (function: Handle, attribute: c_int, value: c_int);
        /// Allocates.
        memory_allocate = b"cuMemAlloc_v2\0" (address: *mut Address, bytes: usize);
        /// Frees.
        memory_free = b"cuMemFree_v2\0" (address: Address);
        /// Copies to the device.
        memory_write = b"cuMemcpyHtoD_v2\0" (address: Address, source: *const c_void, bytes: usize);
        /// Copies from the device.
        memory_read = b"cuMemcpyDtoH_v2\0" (destination: *mut c_void, address: Address, bytes: usize);
        /// Enqueues a copy within the device.
        memory_copy = b"cuMemcpyDtoDAsync_v2\0" (destination: Address, source: Address, bytes: usize, stream: Handle);
        /// Allocates memory of the host.
        host_allocate = b"cuMemHostAlloc\0" (memory: *mut *mut c_void, bytes: usize, flags: c_uint);
        /// Tells the address by which the device reaches memory of the host.
        host_address = b"cuMemHostGetDevicePointer_v2\0" (address: *mut Address, memory: *mut c_void, flags: c_uint);
        /// Frees memory of the host.
        host_free = b"cuMemFreeHost\0" (memory: *mut c_void);
        /// Sets bytes.
        memory_fill = b"cuMemsetD8_v2\0" (address: Address, value: u8, bytes: usize);
        /// Launches.
        launch_kernel = b"cuLaunchKernel\0" (
            function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
            block_z: c_uint, shared_bytes: c_uint, stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void
        );
    }
    newer {
        /// Makes a graph ready to run.
        graph_instantiate = "cuGraphInstantiateWithFlags" since "11.4" (
            executable: *mut Handle, graph: Handle, flags: c_ulonglong
        );
        /// Launches with attributes.
        launch_kernel_with = "cuLaunchKernelEx" since "11.8" (
            config: *const LaunchAttributes, function: Handle, params: *mut *mut c_void, extra: *mut *mut c_void
        );
        /// Writes a tensor map.
        tensor_map_encode = "cuTensorMapEncodeTiled" since "12.0" (
            map: *mut AlignedMap, element: c_int, rank: c_uint, address: *mut c_void, dims: *const u64,
            strides: *const u64, extents: *const u32, steps: *const u32, interleave: c_int, swizzle: c_int,
            promotion: c_int, fill: c_int
        );
    }
}

impl Driver {
    /// What this driver lacks of what launches of the sm_90a tier call, if anything.
    pub fn lacks_for_hopper(&self) -> Option<&'static str> {
        let needed = ["tensor_map_encode", "launch_kernel_with"];
        let mut lacking = self.lacking().filter(|(name, _)| needed.contains(name));
        lacking.next().map(|(_, text)| text)
    }
}

/// `CUtensorMap`: 128 bytes, aligned as the newest driver wants them.
#[repr(C, align(128))]
pub(super) struct AlignedMap(pub [u64; 16]);

/// `CUlaunchConfig`.
#[repr(C)]
pub(super) struct LaunchAttributes {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared_bytes: c_uint,
    pub stream: Handle,
    pub attributes: *const LaunchAttribute,
    pub count: c_uint,
}

/// `CUlaunchAttribute`: a number, and a value of 64 bytes.
#[repr(C)]
pub(super) struct LaunchAttribute {
    pub id: c_uint,
    pub padding: c_uint,
    pub value: [u32; 16],
}

/// Where the driver may be.
const LIBRARIES: &[&str] = if cfg!(windows) {
    &["nvcuda.dll"]
} else {
    &["libcuda.so.1", "libcuda.so"]
};

impl Driver {
    /// The driver of this machine, opened and initialised once for the process.
    pub fn get() -> Result<&'static Self> {
        static DRIVER: OnceLock<Result<Driver>> = OnceLock::new();
        DRIVER
            .get_or_init(Self::open)
            .as_ref()
            .map_err(Clone::clone)
    }

    fn open() -> Result<Self> {
        let no_device = |reason: String| Error::NoDevice { reason };
        let mut failures = Vec::new();
        for name in LIBRARIES {
            // SAFETY: the name is that of NVIDIA's driver, whose initialisers may run in any
            // thread at any time; that is what CUDA programs do when they start.
            match unsafe { Library::new(*name) } {
                Ok(library) => {
                    let driver = Self::from_library(library).map_err(no_device)?;
                    // SAFETY: cuInit may be called at any time; 0 is the only flag.
                    unsafe { driver.init(0) }.map_err(|error| match error {
                        Error::NoDevice { reason } => no_device(reason),
                        other => no_device(other.to_string()),
                    })?;
                    return Ok(driver);
                }
                Err(error) => failures.push(match std::error::Error::source(&error) {
                    // The loader's own words, which name the file.
                    Some(source) => source.to_string(),
                    None => format!("{name}: {error}"),
                }),
            }
        }
        Err(no_device(format!(
            "NVIDIA's driver is not installed ({})",
            failures.join("; ")
        )))
    }

    /// A return code as an error: name and description as the driver gives them.
    fn check(&self, call: &'static str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let text = |function: ErrorText| {
            let mut text = std::ptr::null();
            // SAFETY: the function takes any code, and writes one pointer.
            let known = unsafe { function(code, &raw mut text) } == 0 && !text.is_null();
            if !known {
                return None;
            }
            // SAFETY: on success it is a string that ends with 0 and lives as long as the driver.
            let text = unsafe { CStr::from_ptr(text) };
            Some(text.to_string_lossy().into_owned())
        };
        let name = text(self.error_name).unwrap_or_else(|| format!("error {code}"));
        let reason = match text(self.error_text) {
            Some(text) => format!("{name} ({text})"),
            None => name,
        };
        Err(match code {
            codes::OUT_OF_MEMORY => Error::OutOfMemory {
                requested: 0,
                reason,
            },
            codes::NO_DEVICE => Error::NoDevice { reason },
            code if codes::FAULTS.contains(&code) => Error::Fault {
                context: format!("a kernel before {call}"),
                reason,
            },
            _ => Error::Driver { call, reason },
        })
    }
}

//! `libcuda.so` without a GPU: the part of NVIDIA's driver API that flashtile calls, and what cudarc and cust call of it in the tests of
//! their front doors, over the emulator.
//!
//! It is there to rehearse. Put it where the loader looks (`LD_LIBRARY_PATH`), and everything that would run on a GPU
//! runs its whole way: the driver table, contexts, modules, launches, the suite, the benches (whose times then mean
//! nothing). It is written from `cuda.h`, not from the code that calls it, and strict where a driver may be lenient:
//! calls without a context fail, as do pops without a push, and after a fault every call gives that fault's code again.
//!
//! | variable | what it changes |
//! |---|---|
//! | `FLASHTILE_STAND_IN_FAULT` | launches from modules whose text contains it fault |
//! | `FLASHTILE_STAND_IN_HANG` | launches from modules whose text contains it never end |
//! | `FLASHTILE_STAND_IN_GRAPHS` | `no`: there are no graphs |
//! | `FLASHTILE_STAND_IN_CAPABILITY` | the GPU's compute capability, 9.0 without it: `8.0` |
//! | `FLASHTILE_STAND_IN_CUDA` | the driver's version, 13.0 without it: `11.8` |
//! | `FLASHTILE_STAND_IN_CALLS` | a file, to which every call is added that is made while a stream is taking down its work |
//! | `FLASHTILE_STAND_IN_LAUNCHES` | `none`: launches do nothing, so that time spent is the caller's |

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering::Relaxed},
    },
};

use flashtile_emulator::{Emulator, Module, Options};

/// `CUresult`.
type Status = c_int;

const SUCCESS: Status = 0;
const INVALID_VALUE: Status = 1;
const OUT_OF_MEMORY: Status = 2;
const NOT_INITIALIZED: Status = 3;
const INVALID_DEVICE: Status = 101;
const INVALID_CONTEXT: Status = 201;
const NO_BINARY_FOR_GPU: Status = 209;
const INVALID_PTX: Status = 218;
const INVALID_HANDLE: Status = 400;
const NOT_FOUND: Status = 500;
const ILLEGAL_ADDRESS: Status = 700;
const LAUNCH_OUT_OF_RESOURCES: Status = 701;
const NOT_SUPPORTED: Status = 801;
const STREAM_CAPTURE_UNSUPPORTED: Status = 900;

/// The one device's primary context.
const CONTEXT: usize = 0xc0;
const MEMORY: u64 = 8 << 30;
const SHARED_DEFAULT: u32 = 48 << 10;
const SHARED_OPTIN: c_int = 227 << 10;

static EMULATOR: LazyLock<Emulator> = LazyLock::new(|| {
    Emulator::new(Options {
        memory_limit: MEMORY,
        ..Options::default()
    })
});
static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);
/// A code that every call gives from now on.
static STICKY: AtomicI32 = AtomicI32::new(SUCCESS);

thread_local! {
    static STACK: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
struct State {
    initialised: bool,
    retained: u32,
    next: usize,
    modules: HashMap<usize, Loaded>,
    functions: HashMap<usize, Function>,
}

#[derive(Clone)]
struct Loaded {
    module: std::sync::Arc<Module>,
    faulty: bool,
    hangs: bool,
}

#[derive(Clone)]
struct Function {
    module: usize,
    entry: String,
    most_shared: u32,
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a call that needs no context may do.
fn initialised(call: impl FnOnce(&mut State) -> Result<(), Status>) -> Status {
    let mut state = state();
    if !state.initialised {
        return NOT_INITIALIZED;
    }
    call(&mut state).err().unwrap_or(SUCCESS)
}

/// What a call may do that needs the thread's context.
fn current(call: impl FnOnce(&mut State) -> Result<(), Status>) -> Status {
    let sticky = STICKY.load(Relaxed);
    if sticky != SUCCESS {
        return sticky;
    }
    if STACK.with_borrow(|stack| stack.last() != Some(&CONTEXT)) {
        return INVALID_CONTEXT;
    }
    initialised(|state| {
        if state.retained > 0 {
            call(state)
        } else {
            Err(INVALID_CONTEXT)
        }
    })
}

/// Writes a result.
///
/// # Safety
/// `at` is null or good for one `T`.
unsafe fn put<T>(at: *mut T, value: T) -> Result<(), Status> {
    if at.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, so good for a `T`.
    unsafe { at.write(value) };
    Ok(())
}

/// Writes text and its 0.
///
/// # Safety
/// `at` is null or good for `len` bytes.
unsafe fn put_text(at: *mut c_char, len: c_int, text: &CStr) -> Result<(), Status> {
    let bytes = text.to_bytes_with_nul();
    if at.is_null() || len < bytes.len() as c_int {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, so good for `len` bytes, as many as the text or more.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), at, bytes.len()) };
    Ok(())
}

fn check(device: c_int) -> Result<(), Status> {
    if device == 0 {
        Ok(())
    } else {
        Err(INVALID_DEVICE)
    }
}

macro_rules! api {
    ($($name:ident($($argument:ident: $type:ty),*) $body:block)*) => {
        $(
            /// # Safety
            /// As the driver API documents it.
            #[unsafe(no_mangle)]
            pub unsafe extern "system" fn $name($($argument: $type),*) -> Status {
                crate::calls::note(stringify!($name));
                $body
            }
        )*
    };
}

/// A variable of the environment that says a version.
fn version(variable: &str, otherwise: (c_int, c_int)) -> (c_int, c_int) {
    let text = std::env::var(variable).unwrap_or_default();
    let parsed = text
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.unwrap_or(otherwise)
}

fn capability() -> (c_int, c_int) {
    version("FLASHTILE_STAND_IN_CAPABILITY", (9, 0))
}

// Next to this file, but not further examples.
#[path = "cuda/calls.rs"]
mod calls;
#[path = "cuda/host_memory.rs"]
mod host_memory;
#[path = "cuda/launch.rs"]
mod launch;
#[path = "cuda/others.rs"]
mod others;
#[path = "cuda/tensor_map.rs"]
mod tensor_map;
#[path = "cuda/timing.rs"]
mod timing;

api! {
    cuInit(flags: c_uint) {
        state().initialised = true;
        if flags == 0 { SUCCESS } else { INVALID_VALUE }
    }

    cuDriverGetVersion(version: *mut c_int) {
        let (major, minor) = self::version("FLASHTILE_STAND_IN_CUDA", (13, 0));
        // SAFETY: the caller's pointer is good for one int. It is the same below, for each result.
        unsafe { put(version, 1000 * major + 10 * minor) }.err().unwrap_or(SUCCESS)
    }

    cuGetErrorName(code: Status, text: *mut *const c_char) {
        let name = match code {
            SUCCESS => c"CUDA_SUCCESS",
            INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
            OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
            INVALID_DEVICE => c"CUDA_ERROR_INVALID_DEVICE",
            INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
            NO_BINARY_FOR_GPU => c"CUDA_ERROR_NO_BINARY_FOR_GPU",
            INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
            INVALID_HANDLE => c"CUDA_ERROR_INVALID_HANDLE",
            NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
            ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
            LAUNCH_OUT_OF_RESOURCES => c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
            NOT_SUPPORTED => c"CUDA_ERROR_NOT_SUPPORTED",
            STREAM_CAPTURE_UNSUPPORTED => c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
            _ => return INVALID_VALUE,
        };
        // SAFETY: the text is static; for the pointer see cuDriverGetVersion.
        unsafe { put(text, name.as_ptr()) }.err().unwrap_or(SUCCESS)
    }

    cuGetErrorString(_code: Status, text: *mut *const c_char) {
        // SAFETY: as above.
        unsafe { put(text, c"by the stand-in for the driver".as_ptr()) }.err().unwrap_or(SUCCESS)
    }

    cuDeviceGetCount(count: *mut c_int) {
        // SAFETY: see cuDriverGetVersion.
        initialised(|_| unsafe { put(count, 1) })
    }

    cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        initialised(|_| {
            check(ordinal)?;
            // SAFETY: see cuDriverGetVersion.
            unsafe { put(device, 0) }
        })
    }

    cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) {
        // SAFETY: the caller's buffer has `len` bytes.
        initialised(|_| check(device).and_then(|()| unsafe { put_text(name, len, c"stand-in (PTX emulator)") }))
    }

    cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) {
        initialised(|_| {
            check(device)?;
            let known = match attribute {
                16 => 132,          // MULTIPROCESSOR_COUNT
                38 => 1 << 20,      // L2_CACHE_SIZE
                75 => capability().0, // COMPUTE_CAPABILITY_MAJOR
                76 => capability().1, // COMPUTE_CAPABILITY_MINOR
                97 => SHARED_OPTIN, // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
                115 => 0,           // MEMORY_POOLS_SUPPORTED
                _ => return Err(INVALID_VALUE),
            };
            // SAFETY: see cuDriverGetVersion.
            unsafe { put(value, known) }
        })
    }

    cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        initialised(|_| {
            check(device)?;
            // SAFETY: see cuDriverGetVersion.
            unsafe { put(bytes, MEMORY as usize) }
        })
    }

    cuDeviceGetPCIBusId(name: *mut c_char, len: c_int, device: c_int) {
        // SAFETY: the caller's buffer has `len` bytes.
        initialised(|_| check(device).and_then(|()| unsafe { put_text(name, len, c"0000:00:00.0") }))
    }

    cuDevicePrimaryCtxRetain(context: *mut *mut c_void, device: c_int) {
        initialised(|state| {
            check(device)?;
            state.retained += 1;
            // SAFETY: see cuDriverGetVersion.
            unsafe { put(context, CONTEXT as *mut c_void) }
        })
    }

    cuDevicePrimaryCtxRelease_v2(device: c_int) {
        initialised(|state| {
            check(device)?;
            state.retained = state.retained.checked_sub(1).ok_or(INVALID_CONTEXT)?;
            Ok(())
        })
    }

    cuCtxGetCurrent(context: *mut *mut c_void) {
        let top = STACK.with_borrow(|stack| stack.last().copied().unwrap_or(0));
        // SAFETY: see cuDriverGetVersion.
        initialised(|_| unsafe { put(context, top as *mut c_void) })
    }

    cuCtxGetDevice(device: *mut c_int) {
        // SAFETY: see cuDriverGetVersion.
        current(|_| unsafe { put(device, 0) })
    }

    cuCtxPushCurrent_v2(context: *mut c_void) {
        initialised(|_| {
            if context as usize != CONTEXT {
                return Err(INVALID_CONTEXT);
            }
            STACK.with_borrow_mut(|stack| stack.push(CONTEXT));
            Ok(())
        })
    }

    cuCtxPopCurrent_v2(context: *mut *mut c_void) {
        let top = STACK.with_borrow_mut(Vec::pop);
        // SAFETY: see cuDriverGetVersion.
        initialised(|_| unsafe { put(context, top.ok_or(INVALID_CONTEXT)? as *mut c_void) })
    }

    cuCtxSynchronize() {
        current(|_| timing::may_wait())
    }

    cuModuleLoadDataEx(
        module: *mut *mut c_void, image: *const c_void, count: c_uint, names: *mut c_int, values: *mut *mut c_void
    ) {
        current(|state| {
            if image.is_null() {
                return Err(INVALID_VALUE);
            }
            // SAFETY: PTX text ends with 0.
            let text = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
            // Code for an architecture alone runs on no other.
            if text.contains(".target sm_90a") && capability() != (9, 0) {
                return Err(NO_BINARY_FOR_GPU);
            }
            let parsed = Module::parse(&text).and_then(|module| {
                let names: Vec<_> = module.entries().map(|entry| entry.name.clone()).collect();
                names.iter().try_for_each(|name| module.decode(name)).map(|()| module)
            });
            match parsed {
                Ok(parsed) => {
                    state.next += 16;
                    let planted = |name| std::env::var(name).is_ok_and(|planted| text.contains(&planted));
                    let (faulty, hangs) = (planted("FLASHTILE_STAND_IN_FAULT"), planted("FLASHTILE_STAND_IN_HANG"));
                    state.modules.insert(state.next, Loaded { module: parsed.into(), faulty, hangs });
                    // SAFETY: see cuDriverGetVersion.
                    unsafe { put(module, state.next as *mut c_void) }
                }
                Err(error) => {
                    // SAFETY: names and values have `count` entries, as the caller promises.
                    unsafe { complain(count, names, values, &error.to_string()) };
                    Err(INVALID_PTX)
                }
            }
        })
    }

    cuModuleUnload(module: *mut c_void) {
        current(|state| {
            state.functions.retain(|_, function| function.module != module as usize);
            state.modules.remove(&(module as usize)).map(drop).ok_or(INVALID_HANDLE)
        })
    }

    cuModuleGetFunction(function: *mut *mut c_void, module: *mut c_void, name: *const c_char) {
        current(|state| {
            let found = state.modules.get(&(module as usize)).ok_or(INVALID_HANDLE)?;
            // SAFETY: the name is a string that ends with 0.
            let entry = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
            found.module.entry(&entry).ok_or(NOT_FOUND)?;
            state.next += 16;
            let most_shared = SHARED_DEFAULT;
            state.functions.insert(state.next, Function { module: module as usize, entry, most_shared });
            // SAFETY: see cuDriverGetVersion.
            unsafe { put(function, state.next as *mut c_void) }
        })
    }

    cuFuncSetAttribute(function: *mut c_void, attribute: c_int, value: c_int) {
        current(|state| {
            let function = state.functions.get_mut(&(function as usize)).ok_or(INVALID_HANDLE)?;
            // 8: MAX_DYNAMIC_SHARED_SIZE_BYTES.
            if attribute != 8 || !(0..=SHARED_OPTIN).contains(&value) {
                return Err(INVALID_VALUE);
            }
            function.most_shared = value as u32;
            Ok(())
        })
    }

    cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        current(|_| {
            if bytes == 0 {
                return Err(INVALID_VALUE);
            }
            let found = EMULATOR.allocate(bytes as u64).map_err(|_| OUT_OF_MEMORY)?;
            // SAFETY: see cuDriverGetVersion.
            unsafe { put(address, found) }
        })
    }

    cuMemFree_v2(address: u64) {
        current(|_| EMULATOR.free(address).map_err(|_| INVALID_VALUE))
    }

    cuMemcpyHtoD_v2(address: u64, source: *const c_void, bytes: usize) {
        current(|_| {
            // SAFETY: the caller's source has so many bytes.
            let source = unsafe { std::slice::from_raw_parts(source.cast(), bytes) };
            EMULATOR.write(address, source).map_err(|_| INVALID_VALUE)
        })
    }

    cuMemcpyDtoH_v2(destination: *mut c_void, address: u64, bytes: usize) {
        current(|_| {
            // SAFETY: the caller's destination has so many bytes.
            let destination = unsafe { std::slice::from_raw_parts_mut(destination.cast(), bytes) };
            EMULATOR.read(address, destination).map_err(|_| INVALID_VALUE)
        })
    }

    cuMemsetD8_v2(address: u64, value: u8, bytes: usize) {
        current(|_| EMULATOR.fill(address, bytes as u64, value).map_err(|_| INVALID_VALUE))
    }
}

/// Writes the compiler's words where the caller wants them.
///
/// # Safety
/// `names` and `values` have `count` entries; the log's buffer is as large as its size says.
unsafe fn complain(count: c_uint, names: *mut c_int, values: *mut *mut c_void, text: &str) {
    let (mut buffer, mut size) = (std::ptr::null_mut(), 0);
    for i in 0..count as usize {
        // SAFETY: i is below count.
        let (name, value) = unsafe { (*names.add(i), *values.add(i)) };
        match name {
            5 => buffer = value.cast::<u8>(), // ERROR_LOG_BUFFER
            6 => size = value as usize,       // ERROR_LOG_BUFFER_SIZE_BYTES
            _ => {}
        }
    }
    if buffer.is_null() || size == 0 {
        return;
    }
    let len = text.len().min(size - 1);
    // SAFETY: the buffer has `size` bytes, more than `len`.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), buffer, len);
        buffer.add(len).write(0);
    }
}

//! Launches. Work is done when it is enqueued, unless its stream is taking it down.

use std::ffi::{c_uint, c_void};

use flashtile_emulator::{Launch, LaunchError, Module};

use super::{
    EMULATOR, ILLEGAL_ADDRESS, INVALID_HANDLE, INVALID_VALUE, LAUNCH_OUT_OF_RESOURCES, NOT_FOUND,
    NOT_SUPPORTED, STICKY, SUCCESS, Status, capability, current, host_memory, timing,
};
use std::sync::{LazyLock, atomic::Ordering::Relaxed};

static NO_LAUNCHES: LazyLock<bool> = LazyLock::new(|| {
    std::env::var("FLASHTILE_STAND_IN_LAUNCHES").is_ok_and(|value| value == "none")
});

/// `CUlaunchConfig`.
#[repr(C)]
pub struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared_bytes: c_uint,
    stream: *mut c_void,
    attributes: *const Attribute,
    count: c_uint,
}

/// `CUlaunchAttribute`: `CUlaunchAttributeID`, padding up to 8 bytes, `CUlaunchAttributeValue` of 64 bytes.
#[repr(C)]
pub struct Attribute {
    id: c_uint,
    padding: [u8; 4],
    value: [c_uint; 16],
}

/// `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`.
const CLUSTER_DIMENSION: c_uint = 4;

/// What both launches do.
///
/// # Safety
/// As the driver API documents it for `cuLaunchKernel`.
unsafe fn launch(
    function: *mut c_void,
    config: &Config,
    cluster: Option<[c_uint; 3]>,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Status {
    let mut launched = None;
    let status = current(|state| {
        let function = state
            .functions
            .get(&(function as usize))
            .ok_or(INVALID_HANDLE)?
            .clone();
        let loaded = state
            .modules
            .get(&function.module)
            .ok_or(INVALID_HANDLE)?
            .clone();
        if config.shared_bytes > function.most_shared {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller passes parameters in one of the two ways that the API has.
        let params = unsafe { parameters(&loaded.module, &function.entry, params, extra) }?;
        let work = timing::Work {
            loaded,
            function,
            grid: config.grid,
            block: config.block,
            cluster,
            shared_bytes: config.shared_bytes,
            params,
        };
        if !timing::takes_down(config.stream, &work)? {
            launched = Some(work);
        }
        Ok(())
    });
    // The state is free while the kernel runs.
    launched.as_ref().map_or(status, perform)
}

api! {
    cuLaunchKernel(
        function: *mut c_void, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared_bytes: c_uint, stream: *mut c_void, params: *mut *mut c_void, extra: *mut *mut c_void
    ) {
        let config = Config {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            shared_bytes,
            stream,
            attributes: std::ptr::null(),
            count: 0,
        };
        // SAFETY: the caller's.
        unsafe { launch(function, &config, None, params, extra) }
    }

    cuLaunchKernelEx(
        config: *const Config, function: *mut c_void, params: *mut *mut c_void, extra: *mut *mut c_void
    ) {
        // SAFETY: null, or good for a `CUlaunchConfig`.
        let Some(config) = (unsafe { config.as_ref() }) else {
            return INVALID_VALUE;
        };
        let mut cluster = None;
        for n in 0..config.count as usize {
            // SAFETY: there are `count` attributes.
            let attribute = unsafe { &*config.attributes.add(n) };
            if attribute.id != CLUSTER_DIMENSION {
                return NOT_SUPPORTED;
            }
            let [x, y, z, ..] = attribute.value;
            // Blocks of a cluster that every GPU has are 8.
            let fits = [x, y, z].iter().zip(config.grid).all(|(&n, grid)| n > 0 && grid % n == 0);
            if !fits || x * y * z > 8 || capability() < (9, 0) {
                return INVALID_VALUE;
            }
            cluster = Some([x, y, z]);
        }
        // SAFETY: the caller's.
        unsafe { launch(function, config, cluster, params, extra) }
    }
}

/// Runs a kernel.
pub fn perform(work: &timing::Work) -> Status {
    if work.loaded.faulty {
        STICKY.store(ILLEGAL_ADDRESS, Relaxed);
        return SUCCESS;
    }
    if work.loaded.hangs {
        loop {
            std::thread::sleep(std::time::Duration::from_secs(60));
        }
    }
    let launch = Launch {
        grid: work.grid,
        block: work.block,
        cluster: work.cluster,
        dynamic_shared: work.shared_bytes,
        params: &work.params,
    };
    if *NO_LAUNCHES {
        return SUCCESS;
    }
    host_memory::before_a_kernel();
    let outcome = EMULATOR.launch(&work.loaded.module, &work.function.entry, &launch);
    host_memory::after_a_kernel();
    match outcome {
        Ok(_) => SUCCESS,
        Err(LaunchError::BadGeometry { .. }) => INVALID_VALUE,
        Err(LaunchError::BadParams { .. }) => LAUNCH_OUT_OF_RESOURCES,
        Err(error) => {
            // A GPU says so only later: the launch itself succeeds.
            eprintln!("{}: {error}", work.function.entry);
            STICKY.store(ILLEGAL_ADDRESS, Relaxed);
            SUCCESS
        }
    }
}

/// A launch's parameters, each at its offset.
///
/// # Safety
/// `params` has a pointer for each parameter, or `extra` names a buffer and its size.
unsafe fn parameters(
    module: &Module,
    entry: &str,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Result<Vec<u8>, Status> {
    let entry = module.entry(entry).ok_or(NOT_FOUND)?;
    if params.is_null() == extra.is_null() {
        return Err(INVALID_VALUE);
    }
    let mut bytes = vec![0; entry.params_size];
    if !params.is_null() {
        for (i, param) in entry.params.iter().enumerate() {
            // SAFETY: there is a pointer for each parameter, to as many bytes as it has.
            let source =
                unsafe { std::slice::from_raw_parts((*params.add(i)).cast::<u8>(), param.size) };
            bytes[param.offset..][..param.size].copy_from_slice(source);
        }
        return Ok(bytes);
    }
    let (mut buffer, mut size) = (std::ptr::null::<u8>(), None);
    let mut at = 0;
    loop {
        // SAFETY: names and values alternate until the end's name.
        let name = unsafe { *extra.add(at) } as usize;
        if name == 0 {
            break;
        }
        // SAFETY: as above.
        let value = unsafe { *extra.add(at + 1) };
        match name {
            1 => buffer = value.cast(),
            // SAFETY: the size is behind a pointer.
            2 => size = Some(unsafe { *value.cast::<usize>() }),
            _ => return Err(INVALID_VALUE),
        }
        at += 2;
    }
    if buffer.is_null() || size != Some(bytes.len()) {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the buffer has the size that was just compared.
    let source = unsafe { std::slice::from_raw_parts(buffer, bytes.len()) };
    bytes.copy_from_slice(source);
    Ok(bytes)
}

//! Memory of the host that kernels reach: the emulator's, with a copy for the host. Both are made the same before and after each kernel,
//! which is as soon as anybody can tell.

use std::{
    collections::HashMap,
    ffi::{c_uint, c_void},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use super::{EMULATOR, INVALID_VALUE, OUT_OF_MEMORY, Status, current, put};

/// By address on the host: address on the device, and 8-byte numbers.
static BLOCKS: LazyLock<Mutex<HashMap<usize, (u64, usize)>>> = LazyLock::new(Mutex::default);

fn blocks() -> MutexGuard<'static, HashMap<usize, (u64, usize)>> {
    BLOCKS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pointer(host: usize, word: usize) -> *mut u64 {
    std::ptr::with_exposed_provenance_mut::<u64>(host).wrapping_add(word)
}

/// What the host wrote, to the device.
pub fn before_a_kernel() {
    for (&host, &(address, words)) in blocks().iter() {
        for word in 0..words {
            // SAFETY: the block has so many numbers, until it is freed.
            let value = unsafe { pointer(host, word).read_volatile() };
            let _ = EMULATOR.write(address + 8 * word as u64, &value.to_le_bytes());
        }
    }
}

/// What a kernel wrote, to the host.
pub fn after_a_kernel() {
    for (&host, &(address, words)) in blocks().iter() {
        for word in 0..words {
            let mut bytes = [0; 8];
            if EMULATOR.read(address + 8 * word as u64, &mut bytes).is_ok() {
                // SAFETY: the block has so many numbers, until it is freed.
                unsafe { pointer(host, word).write_volatile(u64::from_le_bytes(bytes)) };
            }
        }
    }
}

api! {
    cuMemHostAlloc(memory: *mut *mut c_void, bytes: usize, flags: c_uint) {
        current(|_| {
            // 1: PORTABLE, 2: DEVICEMAP, 4: WRITECOMBINED.
            if bytes == 0 || flags > 7 {
                return Err(INVALID_VALUE);
            }
            let words = bytes.div_ceil(8);
            let address = EMULATOR.allocate(8 * words as u64).map_err(|_| OUT_OF_MEMORY)?;
            let host = Box::leak(vec![0u64; words].into_boxed_slice()).as_mut_ptr();
            blocks().insert(host.expose_provenance(), (address, words));
            // SAFETY: the caller's pointer is good for one pointer.
            unsafe { put(memory, host.cast()) }
        })
    }

    cuMemHostGetDevicePointer_v2(address: *mut u64, memory: *mut c_void, flags: c_uint) {
        current(|_| {
            let (found, _) = *blocks().get(&memory.addr()).ok_or(INVALID_VALUE)?;
            if flags != 0 {
                return Err(INVALID_VALUE);
            }
            // SAFETY: the caller's pointer is good for one address.
            unsafe { put(address, found) }
        })
    }

    cuMemFreeHost(memory: *mut c_void) {
        current(|_| {
            let (address, words) = blocks().remove(&memory.addr()).ok_or(INVALID_VALUE)?;
            // SAFETY: cuMemHostAlloc leaked a slice of so many numbers there, and nobody has freed it.
            drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(memory.cast::<u64>(), words)) });
            EMULATOR.free(address).map_err(|_| INVALID_VALUE)
        })
    }
}

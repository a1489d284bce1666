//! What other libraries call (cudarc, cust) and flashtile does not. Work is done when it is enqueued.

use std::ffi::{c_int, c_uint, c_void};

use super::{
    CONTEXT, EMULATOR, INVALID_CONTEXT, INVALID_VALUE, STACK, SUCCESS, Status, check, current,
    initialised, put, timing,
};

api! {
    cuCtxSetCurrent(context: *mut c_void) {
        initialised(|_| {
            if !context.is_null() && context as usize != CONTEXT {
                return Err(INVALID_CONTEXT);
            }
            STACK.with_borrow_mut(|stack| {
                stack.pop();
                if !context.is_null() {
                    stack.push(CONTEXT);
                }
            });
            Ok(())
        })
    }

    cuDevicePrimaryCtxSetFlags_v2(device: c_int, _flags: c_uint) {
        initialised(|_| check(device))
    }

    cuStreamCreateWithPriority(stream: *mut *mut c_void, flags: c_uint, _priority: c_int) {
        // SAFETY: the caller's.
        unsafe { timing::cuStreamCreate(stream, flags) }
    }

    cuStreamWaitEvent(stream: *mut c_void, event: *mut c_void, flags: c_uint) {
        current(|_| {
            timing::may_work(stream)?;
            timing::is_event(event)?;
            if flags == 0 { Ok(()) } else { Err(INVALID_VALUE) }
        })
    }

    cuMemsetD8Async(address: u64, value: u8, bytes: usize, stream: *mut c_void) {
        current(|_| {
            timing::may_work(stream)?;
            EMULATOR.fill(address, bytes as u64, value).map_err(|_| INVALID_VALUE)
        })
    }

    cuMemcpyHtoDAsync_v2(address: u64, source: *const c_void, bytes: usize, stream: *mut c_void) {
        let status = current(|_| timing::may_work(stream));
        match status {
            // SAFETY: the caller's.
            SUCCESS => unsafe { super::cuMemcpyHtoD_v2(address, source, bytes) },
            refused => refused,
        }
    }

    cuMemcpyDtoHAsync_v2(destination: *mut c_void, address: u64, bytes: usize, stream: *mut c_void) {
        let status = current(|_| timing::may_work(stream));
        match status {
            // SAFETY: the caller's.
            SUCCESS => unsafe { super::cuMemcpyDtoH_v2(destination, address, bytes) },
            refused => refused,
        }
    }

    cuStreamIsCapturing(stream: *mut c_void, status: *mut c_int) {
        current(|_| {
            let taking = timing::may_work(stream).is_err();
            // SAFETY: the caller's pointer is good for one int.
            unsafe { put(status, c_int::from(taking)) }
        })
    }
}

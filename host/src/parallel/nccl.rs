//! An exchange over NVIDIA's NCCL, through cudarc's bindings. The library is opened at run time.

use std::{
    env::consts::{DLL_PREFIX, DLL_SUFFIX},
    ffi::{CStr, c_int, c_void},
    ptr::null_mut,
};

use cudarc::nccl::{
    Id,
    result::{self, NcclError, NcclStatus},
    sys::{self, ncclComm_t, ncclDataType_t, ncclResult_t},
};

use super::exchange::{DeviceRange, Exchange};
use crate::{
    device::{Stream, cuda::CudaDevice},
    error::{Error, Result},
};

/// A rank of an NCCL communicator, on its GPU.
///
/// Ranks are processes or threads, each with a device of its own: one makes an [`NcclExchange::id`] and gives it to the others, and all
/// call [`NcclExchange::new`]. Drop it when its work is done: what is under way then is given up, on this rank and, sooner or later, its
/// peers.
#[derive(Debug)]
pub struct NcclExchange<'d> {
    device: &'d CudaDevice,
    comm: ncclComm_t,
    rank: usize,
    world: usize,
    is_owned: bool,
}

// SAFETY: NCCL takes a communicator from any thread, one at a time, with the device's context current, which every call sees to.
unsafe impl Send for NcclExchange<'_> {}

impl<'d> NcclExchange<'d> {
    /// What ranks find each other by: made once, and sent to all by the engine's own means (`Id::internal` has its bytes).
    ///
    /// # Errors
    /// [`Error::NoDevice`] without NCCL; [`Error::Exchange`] with NCCL's own words.
    pub fn id() -> Result<Id> {
        is_there()?;
        Id::new().map_err(|error| failed("ncclGetUniqueId", &error))
    }

    /// Rank `rank` of `world`. Waits until all ranks have called it.
    ///
    /// # Errors
    /// [`Error::BadInput`] for a rank that is none; [`Error::NoDevice`] without NCCL; [`Error::Exchange`] with NCCL's own words.
    pub fn new(device: &'d CudaDevice, id: Id, rank: usize, world: usize) -> Result<Self> {
        let number = |n: usize| c_int::try_from(n).ok();
        let (Some(count), Some(index)) = (number(world), number(rank).filter(|_| rank < world))
        else {
            return Err(Error::bad(
                "rank",
                format!("a rank below the number of ranks, {world}, that fits in 31 bits"),
                rank.to_string(),
            ));
        };
        is_there()?;
        let _current = device.push()?;
        let mut comm = null_mut();
        let id = sys::ncclUniqueId {
            internal: *id.internal(),
        };
        // SAFETY: writes one handle; the device's context is current.
        let made = unsafe { result::comm_init_rank(&raw mut comm, count, id, index) };
        made.map_err(|error| failed("ncclCommInitRank", &error))?;
        // From here on it is aborted when dropped.
        let exchange = Self {
            device,
            comm,
            rank,
            world,
            is_owned: true,
        };
        exchange.check_device()?;
        Ok(exchange)
    }

    /// A communicator of the caller's (`ncclComm_t`), borrowed: dropping the exchange leaves it alone.
    ///
    /// # Errors
    /// [`Error::BadInput`] if it is one of another device; as [`NcclExchange::new`].
    ///
    /// # Safety
    /// It is a live communicator that outlives the exchange, and nobody uses it at the same time in another thread.
    pub unsafe fn from_raw(device: &'d CudaDevice, comm: *mut c_void) -> Result<Self> {
        is_there()?;
        let comm: ncclComm_t = comm.cast();
        let _current = device.push()?;
        // SAFETY: the caller vouches for the communicator, here and below.
        let world = unsafe { result::comm_count(comm) };
        let world = world.map_err(|error| failed("ncclCommCount", &error))?;
        // SAFETY: as above.
        let rank = unsafe { result::comm_user_rank(comm) };
        let rank = rank.map_err(|error| failed("ncclCommUserRank", &error))?;
        let exchange = Self {
            device,
            comm,
            rank: usize::try_from(rank).unwrap_or(0),
            world: usize::try_from(world).unwrap_or(0),
            is_owned: false,
        };
        exchange.check_device()?;
        Ok(exchange)
    }

    /// Refuses a communicator of another device.
    fn check_device(&self) -> Result<()> {
        // SAFETY: the communicator is alive.
        let found = unsafe { result::comm_cu_device(self.comm) };
        let found = found.map_err(|error| failed("ncclCommCuDevice", &error))?;
        let expected = self.device.ordinal()?;
        match found == expected {
            true => Ok(()),
            false => Err(Error::bad(
                "comm",
                format!("a communicator of GPU {expected}, as the device"),
                format!("one of GPU {found}"),
            )),
        }
    }

    /// Refuses a stream of another context.
    fn check_stream(&self, stream: Stream) -> Result<()> {
        match self.device.owns(stream)? {
            true => Ok(()),
            false => Err(Error::bad(
                "stream",
                "a stream of the exchange's device",
                "a stream of another context",
            )),
        }
    }

    fn peer(&self, argument: &'static str, rank: usize) -> Result<c_int> {
        let number = c_int::try_from(rank).ok().filter(|_| rank < self.world);
        number.ok_or_else(|| {
            Error::bad(
                argument,
                format!("a rank below {}", self.world),
                rank.to_string(),
            )
        })
    }
}

/// NCCL's elements: bytes.
const BYTE: ncclDataType_t = ncclDataType_t::ncclUint8;

/// As the headers of NCCL are installed, or its loader is told: cudarc looks for this name, and panics without it.
fn is_there() -> Result<()> {
    let name = format!("{DLL_PREFIX}nccl{DLL_SUFFIX}");
    // SAFETY: the name is that of NVIDIA's library, whose initialisers may run in any thread at any time.
    let library = unsafe { libloading::Library::new(&name) };
    // Point-to-point calls came in 2.7, the last of those that are made here.
    let found = library.and_then(|library| {
        // SAFETY: it is only looked for.
        let symbol = unsafe { library.get::<*const c_void>(b"ncclSend\0") };
        symbol.map(drop)
    });
    found.map_err(|error| Error::NoDevice {
        reason: format!(
            "NCCL is not installed as {name}, or is older than 2.7 ({})",
            std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string)
        ),
    })
}

/// NCCL's error in its own words.
fn failed(call: &'static str, error: &NcclError) -> Error {
    // SAFETY: takes any code.
    let text = unsafe { sys::ncclGetErrorString(error.0) };
    let reason = match text.is_null() {
        true => format!("{:?}", error.0),
        // SAFETY: NCCL's strings end with 0 and live as long as the library.
        false => unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned(),
    };
    Error::Exchange { call, reason }
}

fn made(call: &'static str, result: std::result::Result<NcclStatus, NcclError>) -> Result<()> {
    result.map(drop).map_err(|error| failed(call, &error))
}

impl Exchange for NcclExchange<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    unsafe fn all_gather(
        &self,
        send: DeviceRange,
        receive: &dyn Fn(usize) -> DeviceRange,
        stream: Stream,
    ) -> Result<()> {
        self.check_stream(stream)?;
        let own = receive(self.rank);
        if own.bytes != send.bytes {
            return Err(Error::bad(
                "receive",
                format!("room for this rank's {} bytes", send.bytes),
                format!("{} bytes", own.bytes),
            ));
        }
        let _current = self.device.push()?;
        let stream: sys::cudaStream_t = stream.as_raw().cast();
        let source = send.address as *const c_void;
        let first = receive(0).address;
        let follows = |rank: usize| {
            let range = receive(rank);
            range.bytes == send.bytes && range.address == first + (rank * send.bytes) as u64
        };
        if (0..self.world).all(follows) {
            if send.bytes == 0 {
                return Ok(());
            }
            // SAFETY: the caller vouches for ranges and stream; the communicator is alive, and its device's context current.
            let gathered = unsafe {
                let room = first as *mut c_void;
                result::all_gather(source, room, send.bytes, BYTE, self.comm, stream)
            };
            return made("ncclAllGather", gathered);
        }
        // Of lengths or places of their own: from each rank to all.
        self.group(&mut || {
            for rank in 0..self.world {
                let room = receive(rank);
                if room.bytes > 0 {
                    // SAFETY: as above. What other ranks send is not looked at here.
                    let sent = unsafe {
                        result::broadcast(
                            source,
                            room.address as *mut c_void,
                            room.bytes,
                            BYTE,
                            rank as c_int,
                            self.comm,
                            stream,
                        )
                    };
                    made("ncclBroadcast", sent)?;
                }
            }
            Ok(())
        })
    }

    unsafe fn send_receive(
        &self,
        send: DeviceRange,
        to: usize,
        receive: DeviceRange,
        from: usize,
        stream: Stream,
    ) -> Result<()> {
        self.check_stream(stream)?;
        let (to, from) = (self.peer("to", to)?, self.peer("from", from)?);
        let _current = self.device.push()?;
        let stream: sys::cudaStream_t = stream.as_raw().cast();
        // Both at once: a rank that sent first would wait for one that does the same.
        self.group(&mut || {
            if send.bytes > 0 {
                let source = send.address as *const c_void;
                // SAFETY: the caller vouches for ranges and stream; the communicator is alive, and its device's context current.
                let sent = unsafe { result::send(source, send.bytes, BYTE, to, self.comm, stream) };
                made("ncclSend", sent)?;
            }
            if receive.bytes > 0 {
                let room = receive.address as *mut c_void;
                // SAFETY: as above.
                let received =
                    unsafe { result::recv(room, receive.bytes, BYTE, from, self.comm, stream) };
                made("ncclRecv", received)?;
            }
            Ok(())
        })
    }

    fn group(&self, calls: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let _current = self.device.push()?;
        made("ncclGroupStart", result::group_start())?;
        let called = calls();
        // A group that was begun is ended, whatever became of the calls.
        let ended = made("ncclGroupEnd", result::group_end());
        called.and(ended)
    }

    fn check(&self) -> Result<()> {
        let _current = self.device.push()?;
        let mut found = ncclResult_t::ncclSuccess;
        // SAFETY: writes one code; the communicator is alive.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.comm, &raw mut found) };
        made("ncclCommGetAsyncError", asked.result())?;
        made("an exchange", found.result())
    }
}

impl Drop for NcclExchange<'_> {
    fn drop(&mut self) {
        if !self.is_owned {
            return;
        }
        if let Ok(_current) = self.device.push() {
            // SAFETY: the communicator is this value's own. Aborting, unlike destroying, waits for no peer.
            let _ = unsafe { result::comm_abort(self.comm) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorClass;

    /// Passes with and without NCCL: what matters is that nothing panics without it.
    #[test]
    fn a_missing_library_is_an_error_that_says_why() {
        if let Err(error) = NcclExchange::id() {
            println!("{error}");
            assert!(matches!(
                error.class(),
                ErrorClass::NoDevice | ErrorClass::Driver
            ));
        }
    }
}

//! Streams, events and graphs. Work is done when it is enqueued, unless its stream is taking it down.

use std::{
    collections::HashMap,
    ffi::{c_float, c_int, c_uint, c_ulonglong, c_void},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Instant,
};

use super::{
    CONTEXT, EMULATOR, Function, INVALID_HANDLE, INVALID_VALUE, Loaded, NOT_SUPPORTED,
    STREAM_CAPTURE_UNSUPPORTED, SUCCESS, Status, calls, current, put,
};

/// A kernel with all that its launch takes.
#[derive(Clone)]
pub struct Work {
    pub loaded: Loaded,
    pub function: Function,
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub cluster: Option<[c_uint; 3]>,
    pub shared_bytes: c_uint,
    pub params: Vec<u8>,
}

#[derive(Default)]
struct Timing {
    next: usize,
    /// What a stream has taken down, if it is taking down.
    streams: HashMap<usize, Option<Vec<Work>>>,
    events: HashMap<usize, Option<Instant>>,
    graphs: HashMap<usize, Vec<Work>>,
    executables: HashMap<usize, Vec<Work>>,
}

static TIMING: LazyLock<Mutex<Timing>> = LazyLock::new(Mutex::default);

fn timing() -> MutexGuard<'static, Timing> {
    TIMING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Timing {
    fn handle(&mut self) -> usize {
        self.next += 16;
        // Apart from the handles of modules and functions.
        0x7000_0000 + self.next
    }

    fn stream(&mut self, stream: *mut c_void) -> Result<&mut Option<Vec<Work>>, Status> {
        self.streams
            .get_mut(&(stream as usize))
            .ok_or(INVALID_HANDLE)
    }
}

/// Whether the stream exists, and takes the work down instead of doing it. The default stream always exists.
pub fn takes_down(stream: *mut c_void, work: &Work) -> Result<bool, Status> {
    if stream.is_null() {
        return Ok(false);
    }
    let mut timing = timing();
    let taken = timing.stream(stream)?;
    if let Some(taken) = taken {
        taken.push(work.clone());
    }
    Ok(taken.is_some())
}

/// Refuses to wait while a stream takes down its work.
pub fn may_wait() -> Result<(), Status> {
    match timing().streams.values().any(Option::is_some) {
        true => Err(STREAM_CAPTURE_UNSUPPORTED),
        false => Ok(()),
    }
}

/// Refuses work that cannot be taken down, on a stream that takes down, and on one that does not exist.
pub fn may_work(stream: *mut c_void) -> Result<(), Status> {
    if stream.is_null() {
        return Ok(());
    }
    match timing().stream(stream)? {
        Some(_) => Err(STREAM_CAPTURE_UNSUPPORTED),
        None => Ok(()),
    }
}

/// Refuses what is no event.
pub fn is_event(event: *mut c_void) -> Result<(), Status> {
    let known = timing().events.contains_key(&(event as usize));
    known.then_some(()).ok_or(INVALID_HANDLE)
}

api! {
    cuStreamCreate(stream: *mut *mut c_void, flags: c_uint) {
        current(|_| {
            // 1: NON_BLOCKING.
            if flags > 1 {
                return Err(INVALID_VALUE);
            }
            let mut timing = timing();
            let handle = timing.handle();
            timing.streams.insert(handle, None);
            // SAFETY: the caller's pointer is good for one handle. It is the same below, for each result.
            unsafe { put(stream, handle as *mut c_void) }
        })
    }

    cuStreamDestroy_v2(stream: *mut c_void) {
        current(|_| {
            let taken = timing().streams.remove(&(stream as usize)).ok_or(INVALID_HANDLE)?;
            calls::TAKING.fetch_sub(u32::from(taken.is_some()), Relaxed);
            Ok(())
        })
    }

    cuStreamSynchronize(stream: *mut c_void) {
        current(|_| {
            may_wait()?;
            match stream.is_null() {
                true => Ok(()),
                false => timing().stream(stream).map(drop),
            }
        })
    }

    cuStreamGetCtx(stream: *mut c_void, context: *mut *mut c_void) {
        current(|_| {
            if !stream.is_null() {
                timing().stream(stream)?;
            }
            // SAFETY: see cuStreamCreate.
            unsafe { put(context, CONTEXT as *mut c_void) }
        })
    }

    cuStreamBeginCapture_v2(stream: *mut c_void, mode: c_int) {
        current(|_| {
            if std::env::var("FLASHTILE_STAND_IN_GRAPHS").is_ok_and(|value| value == "no") {
                return Err(NOT_SUPPORTED);
            }
            let mut timing = timing();
            let taken = timing.stream(stream)?;
            if taken.is_some() || !(0..=2).contains(&mode) {
                return Err(INVALID_VALUE);
            }
            *taken = Some(Vec::new());
            calls::TAKING.fetch_add(1, Relaxed);
            Ok(())
        })
    }

    cuStreamEndCapture(stream: *mut c_void, graph: *mut *mut c_void) {
        current(|_| {
            let mut timing = timing();
            let taken = timing.stream(stream)?.take().ok_or(INVALID_VALUE)?;
            calls::TAKING.fetch_sub(1, Relaxed);
            let handle = timing.handle();
            timing.graphs.insert(handle, taken);
            // SAFETY: see cuStreamCreate.
            unsafe { put(graph, handle as *mut c_void) }
        })
    }

    cuGraphInstantiateWithFlags(executable: *mut *mut c_void, graph: *mut c_void, flags: c_ulonglong) {
        current(|_| {
            let mut timing = timing();
            let work = timing.graphs.get(&(graph as usize)).ok_or(INVALID_HANDLE)?.clone();
            // 1: AUTO_FREE_ON_LAUNCH, of what a graph allocates: nothing here.
            if flags & !1 != 0 {
                return Err(INVALID_VALUE);
            }
            let handle = timing.handle();
            timing.executables.insert(handle, work);
            // SAFETY: see cuStreamCreate.
            unsafe { put(executable, handle as *mut c_void) }
        })
    }

    cuGraphLaunch(executable: *mut c_void, stream: *mut c_void) {
        let mut work = Vec::new();
        let status = current(|_| {
            let mut timing = timing();
            timing.stream(stream)?;
            work.clone_from(timing.executables.get(&(executable as usize)).ok_or(INVALID_HANDLE)?);
            Ok(())
        });
        let done = work.iter().map(super::launch::perform).find(|&status| status != SUCCESS);
        done.unwrap_or(status)
    }

    cuGraphDestroy(graph: *mut c_void) {
        current(|_| timing().graphs.remove(&(graph as usize)).map(drop).ok_or(INVALID_HANDLE))
    }

    cuGraphExecDestroy(executable: *mut c_void) {
        current(|_| timing().executables.remove(&(executable as usize)).map(drop).ok_or(INVALID_HANDLE))
    }

    cuEventCreate(event: *mut *mut c_void, flags: c_uint) {
        current(|_| {
            // 2: DISABLE_TIMING, which nobody has to notice.
            if flags & !2 != 0 {
                return Err(INVALID_VALUE);
            }
            let mut timing = timing();
            let handle = timing.handle();
            timing.events.insert(handle, None);
            // SAFETY: see cuStreamCreate.
            unsafe { put(event, handle as *mut c_void) }
        })
    }

    cuEventRecord(event: *mut c_void, stream: *mut c_void) {
        current(|_| {
            let mut timing = timing();
            if !stream.is_null() {
                timing.stream(stream)?;
            }
            *timing.events.get_mut(&(event as usize)).ok_or(INVALID_HANDLE)? = Some(Instant::now());
            Ok(())
        })
    }

    cuEventSynchronize(event: *mut c_void) {
        current(|_| timing().events.get(&(event as usize)).map(drop).ok_or(INVALID_HANDLE))
    }

    cuEventElapsedTime(milliseconds: *mut c_float, start: *mut c_void, end: *mut c_void) {
        current(|_| {
            let timing = timing();
            let at = |event: *mut c_void| timing.events.get(&(event as usize)).copied().flatten();
            let (start, end) = (at(start).ok_or(INVALID_HANDLE)?, at(end).ok_or(INVALID_HANDLE)?);
            let elapsed = end.saturating_duration_since(start).as_secs_f32() * 1e3;
            // SAFETY: see cuStreamCreate.
            unsafe { put(milliseconds, elapsed) }
        })
    }

    cuEventDestroy_v2(event: *mut c_void) {
        current(|_| timing().events.remove(&(event as usize)).map(drop).ok_or(INVALID_HANDLE))
    }

    cuMemcpyDtoDAsync_v2(destination: u64, source: u64, bytes: usize, stream: *mut c_void) {
        current(|_| {
            timing().stream(stream)?;
            let mut copied = vec![0; bytes];
            let moved = EMULATOR.read(source, &mut copied);
            moved.and_then(|()| EMULATOR.write(destination, &copied)).map_err(|_| INVALID_VALUE)
        })
    }
}

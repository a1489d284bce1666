//! Streams, events and graphs of this library's own: what it takes to time a launch on a GPU.

use std::{ffi::c_void, ptr::null_mut};

use super::{CudaDevice, Stream, codes, driver::Handle};
use crate::error::Result;

/// A stream of its own, which waits for no other. Destroyed on drop, when its work is done.
#[derive(Debug)]
pub struct OwnedStream<'d> {
    device: &'d CudaDevice,
    handle: Handle,
}

/// A point in a stream's work, and when it was reached.
#[derive(Debug)]
pub struct Event<'d> {
    device: &'d CudaDevice,
    handle: Handle,
}

/// Launches that were taken down once, to be enqueued as one.
#[derive(Debug)]
pub struct Graph<'d> {
    device: &'d CudaDevice,
    executable: Handle,
}

impl CudaDevice {
    /// A new stream, which does not wait for the default stream.
    ///
    /// # Errors
    /// What the driver says.
    pub fn stream(&self) -> Result<OwnedStream<'_>> {
        let _pushed = self.push()?;
        let mut handle = null_mut();
        // SAFETY: writes one handle; destroyed on drop.
        unsafe {
            self.driver
                .stream_create(&raw mut handle, codes::STREAM_NON_BLOCKING)?;
        }
        Ok(OwnedStream {
            device: self,
            handle,
        })
    }

    /// A new event.
    ///
    /// # Errors
    /// What the driver says.
    pub fn event(&self) -> Result<Event<'_>> {
        let _pushed = self.push()?;
        let mut handle = null_mut();
        // SAFETY: writes one handle; destroyed on drop. 0: events that tell the time.
        unsafe { self.driver.event_create(&raw mut handle, 0)? };
        Ok(Event {
            device: self,
            handle,
        })
    }
}

impl<'d> OwnedStream<'d> {
    /// The stream, to launch on.
    pub fn stream(&self) -> Stream {
        Stream::from_raw(self.handle.cast::<c_void>())
    }

    /// Waits for the stream's work.
    ///
    /// # Errors
    /// A fault of a kernel before.
    pub fn synchronize(&self) -> Result<()> {
        let _pushed = self.device.push()?;
        // SAFETY: the stream is alive.
        unsafe { self.device.driver.stream_synchronize(self.handle) }
    }

    /// Enqueues an event.
    ///
    /// # Errors
    /// What the driver says: among it that the event is of another device.
    pub fn record(&self, event: &Event<'d>) -> Result<()> {
        let _pushed = self.device.push()?;
        // SAFETY: both are alive.
        unsafe { self.device.driver.event_record(event.handle, self.handle) }
    }

    /// Enqueues a copy within the device's memory.
    ///
    /// # Errors
    /// What the driver says of the addresses.
    ///
    /// # Safety
    /// Both ranges are allocated on this device until the copy is done, do not overlap, and nothing else
    /// writes the source or accesses the destination meanwhile.
    pub unsafe fn copy(&self, destination: u64, source: u64, bytes: usize) -> Result<()> {
        let _pushed = self.device.push()?;
        // SAFETY: the caller vouches for the ranges; the stream is alive.
        unsafe {
            self.device
                .driver
                .memory_copy(destination, source, bytes, self.handle)
        }
    }

    /// Takes down what `enqueue` launches on this stream, without doing it. `enqueue` must not wait, allocate or load
    /// kernels ([`Device::load`](crate::Device::load) them before).
    ///
    /// # Errors
    /// What `enqueue` says, and what the driver says of it: some calls cannot be taken down.
    pub fn capture(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Graph<'d>> {
        let driver = self.device.driver;
        let _pushed = self.device.push()?;
        // SAFETY: the stream is alive, and only this thread ends what it begins here.
        unsafe { driver.stream_capture(self.handle, codes::CAPTURE_MODE_THREAD_LOCAL)? };
        let enqueued = enqueue();
        let mut graph = null_mut();
        // SAFETY: the stream has been taking down since the call above; writes one handle.
        let captured = unsafe { driver.stream_captured(self.handle, &raw mut graph) };
        let mut executable = null_mut();
        let made = enqueued.and(captured).and_then(|()| {
            // SAFETY: the graph was just handed out; writes one handle.
            unsafe { driver.graph_instantiate(&raw mut executable, graph, 0) }
        });
        if !graph.is_null() {
            // SAFETY: the graph is this function's own; what was made from it does not need it.
            let _ = unsafe { driver.graph_destroy(graph) };
        }
        made?;
        Ok(Graph {
            device: self.device,
            executable,
        })
    }

    /// Enqueues a graph.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// Everything that the launches in it were promised when they were taken down holds now, until they are done:
    /// their memory is still allocated, and nobody else uses it.
    pub unsafe fn launch(&self, graph: &Graph<'d>) -> Result<()> {
        let _pushed = self.device.push()?;
        // SAFETY: both are alive; the caller vouches for what the graph does.
        unsafe {
            self.device
                .driver
                .graph_launch(graph.executable, self.handle)
        }
    }
}

impl Event<'_> {
    /// Waits until the event is reached.
    ///
    /// # Errors
    /// A fault of a kernel before.
    pub fn synchronize(&self) -> Result<()> {
        let _pushed = self.device.push()?;
        // SAFETY: the event is alive.
        unsafe { self.device.driver.event_synchronize(self.handle) }
    }

    /// Seconds from another event to this one; both must be reached.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver) for an event that was never recorded or is not reached yet.
    pub fn seconds_since(&self, start: &Self) -> Result<f64> {
        let _pushed = self.device.push()?;
        let mut milliseconds = 0.0;
        // SAFETY: both are alive; writes one number.
        unsafe {
            self.device
                .driver
                .event_elapsed(&raw mut milliseconds, start.handle, self.handle)?;
        }
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for OwnedStream<'_> {
    fn drop(&mut self) {
        if let Ok(_pushed) = self.device.push() {
            // SAFETY: the stream is this value's own. The driver frees it when its work is done.
            let _ = unsafe { self.device.driver.stream_destroy(self.handle) };
        }
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        if let Ok(_pushed) = self.device.push() {
            // SAFETY: the event is this value's own.
            let _ = unsafe { self.device.driver.event_destroy(self.handle) };
        }
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        if let Ok(_pushed) = self.device.push() {
            // SAFETY: the graph is this value's own. The driver frees it when it is done.
            let _ = unsafe { self.device.driver.graph_executable_destroy(self.executable) };
        }
    }
}

//! What ranks tell each other.

use crate::{device::Stream, error::Result};

/// Bytes in a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceRange {
    /// Where they begin.
    pub address: u64,
    /// How many.
    pub bytes: usize,
}

/// Moves bytes between the memories of several devices, of which each belongs to one *rank*, `0..world`. `NcclExchange` (feature
/// `nccl`) is NVIDIA's library for that; an engine that has a communicator of its own implements the trait over it.
///
/// All ranks call the same methods in the same order, on streams of their own devices. A call enqueues its work on the stream and
/// returns; what it moves is there when the stream comes to it. Ranges of 0 bytes move nothing, and may have any address.
pub trait Exchange: std::fmt::Debug {
    /// This rank.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn world(&self) -> usize;

    /// Gives all ranks what each has: rank `r`'s bytes arrive at `receive(r)` on every rank, this one included. Ranks may have different
    /// lengths, which all know: `receive(r)` is as long everywhere as rank `r`'s `send`. `receive(rank())` may be `send` itself.
    ///
    /// # Errors
    /// [`Error::Exchange`](crate::Error::Exchange): lengths that contradict each other, a peer that is gone.
    ///
    /// # Safety
    /// All ranges are allocated on this rank's device until the stream has come past the call, nothing else writes what is sent or
    /// accesses what is received meanwhile, and received ranges overlap no others. `stream` is a live stream of the device.
    unsafe fn all_gather(
        &self,
        send: DeviceRange,
        receive: &dyn Fn(usize) -> DeviceRange,
        stream: Stream,
    ) -> Result<()>;

    /// Sends bytes to rank `to` while it receives others from rank `from`: a step around a ring.
    ///
    /// # Errors
    /// As [`Exchange::all_gather`].
    ///
    /// # Safety
    /// As [`Exchange::all_gather`].
    unsafe fn send_receive(
        &self,
        send: DeviceRange,
        to: usize,
        receive: DeviceRange,
        from: usize,
        stream: Stream,
    ) -> Result<()>;

    /// Makes the calls that `calls` makes, on one stream, as one if that is faster.
    ///
    /// # Errors
    /// The calls' own.
    fn group(&self, calls: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        calls()
    }

    /// Reports what has gone wrong since the last call, as far as it is known: work that is enqueued fails later than its call, and
    /// without a peer never ends. Launches ask before they enqueue anything.
    ///
    /// # Errors
    /// [`Error::Exchange`](crate::Error::Exchange).
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

//! Whether all ranks plan the same.

use sha2::{Digest, Sha256};

use super::exchange::{DeviceRange, Exchange};
use crate::{
    device::{Device, DeviceBuffer, Stream},
    error::{Error, Result},
};

/// Bytes of a digest.
const BYTES: usize = 32;

/// Gathers a digest of `text` from all ranks, and refuses others than this rank's.
///
/// # Errors
/// [`Error::BadInput`] that names the first rank whose digest differs; the exchange's and the device's own errors.
///
/// # Safety
/// `stream` is a live stream of the device, which is this rank's in the exchange.
pub(super) unsafe fn agree(
    device: &dyn Device,
    exchange: &dyn Exchange,
    stream: Stream,
    text: &str,
) -> Result<()> {
    let digest: [u8; BYTES] = Sha256::digest(text).into();
    let own = DeviceBuffer::from_bytes(device, &digest)?;
    let all = DeviceBuffer::zeroed(device, BYTES * exchange.world())?;
    let range = |address, at: usize| DeviceRange {
        address: address + (at * BYTES) as u64,
        bytes: BYTES,
    };
    let receive = |rank| range(all.address(), rank);
    // SAFETY: both buffers are as long as that, and nobody else's; they are freed when the device is idle.
    unsafe { exchange.all_gather(range(own.address(), 0), &receive, stream)? };
    device.synchronize()?;
    let found = all.to_vec()?;
    let (found, _) = found.as_chunks::<BYTES>();
    // All ranks see that two of them differ.
    match found.iter().position(|other| *other != digest) {
        Some(rank) => Err(Error::bad(
            "exchange",
            "ranks that plan the same problem over the same shards",
            format!(
                "another one on rank {rank} than on rank {}",
                exchange.rank()
            ),
        )),
        None => Ok(()),
    }
}

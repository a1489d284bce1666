//! Device memory that frees itself.

use super::Device;
use crate::error::{Error, Result};

/// Device memory owned by the host: freed on drop. All accesses are checked against its length.
#[derive(Debug)]
pub struct DeviceBuffer<'d> {
    device: &'d dyn Device,
    address: u64,
    bytes: usize,
}

impl<'d> DeviceBuffer<'d> {
    /// Allocates bytes and sets them to zero. An empty buffer allocates nothing and has address 0.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn zeroed(device: &'d dyn Device, bytes: usize) -> Result<Self> {
        let buffer = Self::uninitialized(device, bytes)?;
        if bytes > 0 {
            // SAFETY: the range was just allocated on this device, and nobody else knows of it.
            unsafe { device.fill(buffer.address, bytes, 0)? };
        }
        Ok(buffer)
    }

    /// Allocates bytes with undefined contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn uninitialized(device: &'d dyn Device, bytes: usize) -> Result<Self> {
        let address = if bytes == 0 {
            0
        } else {
            device.allocate(bytes)?
        };
        Ok(Self {
            device,
            address,
            bytes,
        })
    }

    /// Allocates memory that holds these bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn from_bytes(device: &'d dyn Device, source: &[u8]) -> Result<Self> {
        let mut buffer = Self::uninitialized(device, source.len())?;
        buffer.write(source)?;
        Ok(buffer)
    }

    /// Address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Overwrites the first bytes, once the device has finished all work.
    ///
    /// # Errors
    /// [`Error::BadInput`] if the source is longer than the buffer.
    pub fn write(&mut self, source: &[u8]) -> Result<()> {
        self.check("source", source.len())?;
        if source.is_empty() {
            return Ok(());
        }
        self.device.synchronize()?;
        // SAFETY: the buffer is allocated on this device and long enough, and no kernel runs.
        unsafe { self.device.write(self.address, source) }
    }

    /// Reads the first bytes, once the device has finished all work.
    ///
    /// # Errors
    /// [`Error::BadInput`] if the destination is longer than the buffer; a fault of a kernel before.
    pub fn read(&self, destination: &mut [u8]) -> Result<()> {
        self.check("destination", destination.len())?;
        if destination.is_empty() {
            return Ok(());
        }
        // SAFETY: the buffer is allocated on this device and long enough.
        unsafe { self.device.read(self.address, destination) }
    }

    /// All bytes.
    ///
    /// # Errors
    /// A fault of a kernel before.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.bytes];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn check(&self, argument: &'static str, len: usize) -> Result<()> {
        if len <= self.bytes {
            return Ok(());
        }
        Err(Error::bad(
            argument,
            format!("at most {} bytes, the buffer's length", self.bytes),
            format!("{len} bytes"),
        ))
    }
}

impl Drop for DeviceBuffer<'_> {
    fn drop(&mut self) {
        if self.address == 0 {
            return;
        }
        // Work that still uses the memory must end first; if that fails the device is lost anyway.
        let _ = self.device.synchronize();
        // SAFETY: the address came from this device's `allocate`, and the device is idle.
        let _ = unsafe { self.device.free(self.address) };
    }
}

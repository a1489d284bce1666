//! A few numbers in memory of the host that kernels write.

use super::Device;
use crate::error::Result;

/// Memory that kernels reach by `address` and the host without waiting for them: [`Device::allocate_pinned`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedMemory {
    /// Address on the device.
    pub address: u64,
    /// What the device knows it by on the host.
    pub host: usize,
}

/// Such memory, owned: so many 8-byte numbers, freed on drop.
#[derive(Debug)]
pub(crate) struct PinnedWords<'d> {
    device: &'d dyn Device,
    memory: PinnedMemory,
    words: usize,
}

impl<'d> PinnedWords<'d> {
    /// Zeros.
    pub fn new(device: &'d dyn Device, words: usize) -> Result<Self> {
        let memory = device.allocate_pinned(words * 8)?;
        let it = Self {
            device,
            memory,
            words,
        };
        for word in 0..words {
            it.set(word, 0)?;
        }
        Ok(it)
    }

    /// Address on the device.
    pub fn address(&self) -> u64 {
        self.memory.address
    }

    /// A number as it is now.
    pub fn get(&self, word: usize) -> Result<u64> {
        assert!(word < self.words);
        // SAFETY: the memory is this device's, alive, and has the number.
        unsafe { self.device.read_pinned(self.memory, word) }
    }

    /// Sets a number.
    pub fn set(&self, word: usize, value: u64) -> Result<()> {
        assert!(word < self.words);
        // SAFETY: as above.
        unsafe { self.device.write_pinned(self.memory, word, value) }
    }
}

impl Drop for PinnedWords<'_> {
    fn drop(&mut self) {
        // Kernels that still write must end first; if that fails the device is lost anyway.
        let _ = self.device.synchronize();
        // SAFETY: the memory came from this device's `allocate_pinned`, and the device is idle.
        let _ = unsafe { self.device.free_pinned(self.memory) };
    }
}

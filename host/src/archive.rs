//! The kernels that this crate carries: PTX, packed, with what a launch must know about each.
//!
//! The build script (`flashtile_builder::embed`) makes the table and verifies the archive.

use std::fmt;
use std::io::Read;
use std::ops::Range;

use sha2::{Digest, Sha256};

/// One kernel of the archive.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kernel {
    /// Entry point, which is also the variant's name.
    pub name: &'static str,
    /// Target it is compiled for: "sm_80", "sm_90a".
    pub arch: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that a multiprocessor can hold.
    pub min_blocks: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Size of the parameters in bytes.
    pub params_bytes: u32,
    /// Registers of a thread, by ptxas, if it had a look at this PTX.
    pub registers: Option<u32>,
    /// How many remarks on performance ptxas had.
    pub notes: usize,
    /// Size of the PTX in bytes.
    pub ptx_bytes: usize,
    /// SHA-256 of the PTX.
    pub ptx_sha256: [u8; 32],
    /// Where it is in [`PACKED`].
    packed: Range<usize>,
}

/// The embedded archive is damaged: the program's own file or memory is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the embedded PTX of {kernel} is damaged")]
pub struct DamagedArchive {
    /// Which kernel.
    pub kernel: &'static str,
}

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.bin"));

static KERNELS: &[Kernel] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Every kernel, in the order of `flashtile_abi::variants()`.
pub fn kernels() -> &'static [Kernel] {
    KERNELS
}

/// The kernel of this name.
pub fn kernel(name: &str) -> Option<&'static Kernel> {
    KERNELS.iter().find(|k| k.name == name)
}

impl Kernel {
    /// Unpacks the PTX, a module with this one entry, and verifies its hash.
    pub fn ptx(&self) -> Result<String, DamagedArchive> {
        self.unpack(PACKED)
    }

    fn unpack(&self, archive: &[u8]) -> Result<String, DamagedArchive> {
        let damaged = || DamagedArchive { kernel: self.name };
        let stream = archive.get(self.packed.clone()).ok_or_else(damaged)?;
        let mut text = String::with_capacity(self.ptx_bytes);
        brotli_decompressor::Decompressor::new(stream, 1 << 16)
            .take(self.ptx_bytes as u64 + 1)
            .read_to_string(&mut text)
            .map_err(|_| damaged())?;
        if Sha256::digest(text.as_bytes())[..] == self.ptx_sha256 {
            Ok(text)
        } else {
            Err(damaged())
        }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("name", &self.name)
            .field("arch", &self.arch)
            .field("threads", &self.threads)
            .field("shared_bytes", &self.shared_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_unpacks_and_has_its_entry() {
        for kernel in kernels() {
            let ptx = kernel.ptx();
            let entry = format!(".visible .entry {}(", kernel.name);
            assert!(ptx.is_ok_and(|p| p.contains(&entry)), "{}", kernel.name);
        }
    }

    #[test]
    fn the_archive_has_every_variant_and_no_other() {
        let names: Vec<_> = kernels().iter().map(|k| k.name).collect();
        let variants: Vec<_> = flashtile_abi::variants().iter().map(|v| v.name).collect();
        assert_eq!(names, variants);
        assert!(kernel("no such kernel").is_none());
    }

    #[test]
    fn damage_is_an_error() {
        if let Some(kernel) = kernels().first() {
            let mut archive = PACKED.to_vec();
            if let Some(byte) = archive.get_mut(kernel.packed.start + kernel.packed.len() / 2) {
                *byte ^= 0x55;
            }
            let error = DamagedArchive {
                kernel: kernel.name,
            };
            assert_eq!(kernel.unpack(&archive), Err(error.clone()));
            assert_eq!(kernel.unpack(&[]), Err(error));
        }
    }
}

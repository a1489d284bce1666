//! The PTX that this library carries, packed.
//!
//! The build script (`flashtile_builder::embed`) verifies the archive and makes the table, so there
//! is nothing to parse here. What a launch must know of a kernel is in its [`flashtile_abi::Entry`];
//! the build script has compared the two.

use std::io::Read;
use std::ops::Range;

use sha2::{Digest, Sha256};

/// One kernel of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Entry point, which is also the variant's name.
    pub name: &'static str,
    /// Registers of a thread, if ptxas has seen this very PTX.
    pub registers: Option<u32>,
    /// How many remarks ptxas had on its performance.
    pub notes: usize,
    /// Size of the PTX.
    pub ptx_bytes: usize,
    /// SHA-256 of the PTX.
    pub ptx_sha256: [u8; 32],
    /// Where its brotli stream is in [`PACKED`].
    packed: Range<usize>,
}

/// The embedded archive is damaged: the program's own file or memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its embedded PTX is damaged")]
pub(crate) struct Damaged;

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.bin"));

static ENTRIES: &[Entry] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The kernel of this name.
pub(crate) fn entry(name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|e| e.name == name)
}

impl Entry {
    /// Unpacks the PTX, a module with this one entry, and verifies its hash.
    pub(crate) fn ptx(&self) -> Result<String, Damaged> {
        self.unpack(PACKED)
    }

    fn unpack(&self, archive: &[u8]) -> Result<String, Damaged> {
        let stream = archive.get(self.packed.clone()).ok_or(Damaged)?;
        let mut text = String::with_capacity(self.ptx_bytes);
        // One byte more than expected, to see a stream that is too long.
        brotli_decompressor::Decompressor::new(stream, 1 << 16)
            .take(self.ptx_bytes as u64 + 1)
            .read_to_string(&mut text)
            .map_err(|_| Damaged)?;
        let hash = Sha256::digest(text.as_bytes());
        if hash.as_slice() == self.ptx_sha256 {
            Ok(text)
        } else {
            Err(Damaged)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_unpacks_and_has_its_entry() {
        for operation in flashtile_abi::operations() {
            let name = operation.entry().name;
            let ptx = entry(name).map(Entry::ptx);
            let line = format!(".visible .entry {name}(");
            assert!(
                matches!(ptx, Some(Ok(text)) if text.contains(&line)),
                "{name}"
            );
        }
        assert_eq!(ENTRIES.len(), flashtile_abi::operations().count());
        assert_eq!(entry("no such kernel"), None);
    }

    #[test]
    fn damage_is_an_error() {
        for entry in ENTRIES.iter().take(1) {
            let mut archive = PACKED.to_vec();
            archive[entry.packed.start + entry.packed.len() / 2] ^= 0x55;
            assert_eq!(entry.unpack(&archive), Err(Damaged));
            assert_eq!(entry.unpack(&[]), Err(Damaged));
        }
    }
}

//! The kernels that are shipped, and their PTX.

use flashtile_abi::{Entry, Operation, operations};

use crate::{
    archive,
    error::{Error, Result},
};

/// One kernel of the archive.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Kernel {
    /// How it is launched.
    pub entry: &'static Entry,
    /// What it computes.
    pub operation: Operation,
    /// Registers of a thread according to ptxas, if the archive was made where there was one.
    pub registers: Option<u32>,
    /// How many remarks ptxas had on its performance.
    pub notes: usize,
    /// Bytes of its PTX.
    pub ptx_bytes: usize,
    /// SHA-256 of its PTX.
    pub ptx_sha256: [u8; 32],
}

/// Every kernel there is, with the facts of its machine code.
pub fn kernels() -> impl Iterator<Item = Kernel> {
    operations().filter_map(|operation| {
        let entry = operation.entry();
        let packed = archive::entry(entry.name)?;
        Some(Kernel {
            entry,
            operation,
            registers: packed.registers,
            notes: packed.notes,
            ptx_bytes: packed.ptx_bytes,
            ptx_sha256: packed.ptx_sha256,
        })
    })
}

/// The kernel of that name.
pub fn kernel(name: &str) -> Option<Operation> {
    operations().find(|operation| operation.entry().name == name)
}

/// The PTX text of a kernel, from the archive inside this library.
///
/// # Errors
/// [`Error::Archive`] if the archive has none, or is damaged.
pub fn ptx(kernel: &Entry) -> Result<String> {
    let missing = |reason: String| Error::Archive {
        variant: kernel.name.into(),
        reason,
    };
    let packed = archive::entry(kernel.name)
        .ok_or_else(|| missing("this library was built with other kernels".into()))?;
    packed.ptx().map_err(|error| missing(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_is_listed_with_its_facts() {
        assert!(kernels().map(|kernel| kernel.operation).eq(operations()));
        for listed in kernels() {
            assert_eq!(kernel(listed.entry.name), Some(listed.operation));
            assert_eq!(ptx(listed.entry).unwrap().len(), listed.ptx_bytes);
        }
        assert_eq!(kernel("no such kernel"), None);
    }
}

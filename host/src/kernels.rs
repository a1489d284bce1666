//! The kernels that are shipped, and their PTX.

use flashtile_abi::{Variant, variants};

use crate::{
    archive,
    error::{Error, Result},
};

/// One kernel of the archive.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Kernel {
    /// What it computes and how it is launched; its dynamic shared memory is
    /// [`Variant::shared_bytes`].
    pub variant: &'static Variant,
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
    variants().iter().filter_map(|variant| {
        let packed = archive::entry(variant.name)?;
        Some(Kernel {
            variant,
            registers: packed.registers,
            notes: packed.notes,
            ptx_bytes: packed.ptx_bytes,
            ptx_sha256: packed.ptx_sha256,
        })
    })
}

/// The kernel of that name.
pub fn kernel(name: &str) -> Option<&'static Variant> {
    variants().iter().find(|variant| variant.name == name)
}

/// The PTX text of a kernel, from the archive inside this library.
///
/// # Errors
/// [`Error::Archive`] if the archive has none, or is damaged.
pub fn ptx(variant: &Variant) -> Result<String> {
    let missing = |reason: String| Error::Archive {
        variant: variant.name.into(),
        reason,
    };
    let packed = archive::entry(variant.name)
        .ok_or_else(|| missing("this library was built with other kernels".into()))?;
    packed.ptx().map_err(|error| missing(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_is_listed_with_its_facts() {
        assert!(kernels().map(|kernel| kernel.variant).eq(variants()));
        for listed in kernels() {
            assert_eq!(kernel(listed.variant.name), Some(listed.variant));
            assert_eq!(ptx(listed.variant).unwrap().len(), listed.ptx_bytes);
        }
        assert_eq!(kernel("no such kernel"), None);
    }
}

//! The kernels that are shipped, and their PTX.

use flashtile_abi::{Variant, variants};

use crate::error::{Error, Result};

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
    std::iter::empty()
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
    Err(Error::Archive {
        variant: variant.name.into(),
        reason: "this library was built without an archive of kernels".into(),
    })
}

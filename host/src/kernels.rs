//! The kernels that are shipped, and their PTX.

use std::borrow::Cow;

use flashtile_abi::{Variant, variants};

use crate::error::{Error, Result};

/// One kernel of the archive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kernel {
    /// What it computes and how it is launched.
    pub variant: &'static Variant,
    /// Registers per thread that ptxas gave it, if the archive's builder had ptxas.
    pub registers: Option<u32>,
    /// Static shared memory in bytes. Dynamic shared memory is in [`Variant::shared_bytes`].
    pub static_shared_bytes: u32,
    /// Whether the archive has its PTX.
    pub present: bool,
}

/// Every kernel there is, with the facts of its machine code.
pub fn kernels() -> impl Iterator<Item = Kernel> {
    variants().iter().map(|variant| Kernel {
        variant,
        registers: None,
        static_shared_bytes: 0,
        present: false,
    })
}

/// The kernel of that name.
pub fn kernel(name: &str) -> Option<&'static Variant> {
    variants().iter().find(|variant| variant.name == name)
}

/// The PTX text of a kernel, from the archive inside this library.
///
/// # Errors
/// [`Error::Archive`] if the archive has none.
pub fn ptx(variant: &Variant) -> Result<Cow<'static, str>> {
    Err(Error::Archive {
        variant: variant.name.into(),
        reason: "this library was built without an archive of kernels".into(),
    })
}

//! The entry point, [`flashtile_abi::check::CHECK`], and nothing else.

use flashtile_abi::CheckParams;

/// CTA barriers in the kernel's source, for the builder to compare with the PTX.
#[used]
#[unsafe(export_name = "check_metadata_sm80__barriers")]
pub static BARRIERS: u32 = super::BARRIERS;

/// The kernel.
///
/// # Safety
/// The parameters describe memory of the device, as [`CheckParams`] says.
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn check_metadata_sm80(params: CheckParams) {
    super::run(&params);
}

//! The entry points, one for each variant in [`flashtile_abi::for_each_cache_variant!`], and nothing else.

use core::arch::asm;

use super::{append, blocks, gather};
use crate::element;
use flashtile_abi::{BlocksParams, RowsParams};

macro_rules! kernel {
    (Append $name:ident $dtype:ident) => {
        entry!($name, RowsParams, |params| {
            append::run::<element::$dtype, false>(params)
        });
    };
    (Append $name:ident $dtype:ident E4m3) => {
        entry!($name, RowsParams, |params| {
            append::run::<element::$dtype, true>(params)
        });
    };
    (Gather $name:ident) => {
        entry!($name, RowsParams, |params| gather::run(params));
    };
    (Gather $name:ident $dtype:ident E4m3) => {
        entry!($name, RowsParams, |params| {
            gather::run_narrow::<element::$dtype>(params)
        });
    };
    (CopyBlocks $name:ident) => {
        entry!($name, BlocksParams, |params| {
            let address: u64;
            // SAFETY: takes the address of the entry's only parameter.
            unsafe {
                asm!(
                    concat!("mov.b64 {}, ", stringify!($name), "_param_0;"),
                    out(reg64) address, options(pure, nomem, nostack)
                );
            }
            blocks::run(params, address)
        });
    };
}

macro_rules! entry {
    ($name:ident, $params:ty, |$it:ident| $run:expr) => {
        mod $name {
            use super::*;

            /// CTA barriers in the kernel's source, for the builder to compare with the PTX.
            #[used]
            #[unsafe(export_name = concat!(stringify!($name), "__barriers"))]
            pub static BARRIERS: u32 = 0;

            /// The kernel.
            ///
            /// # Safety
            /// The parameters describe memory of the device, as their type says.
            #[unsafe(no_mangle)]
            pub unsafe extern "ptx-kernel" fn $name(params: $params) {
                let $it = &params;
                $run;
            }
        }
    };
}

macro_rules! instances {
    ($(($name:ident $work:ident $($dtype:ident)*))*) => { $(
        kernel! { $work $name $($dtype)* }
    )* };
}

flashtile_abi::for_each_cache_variant!(instances);

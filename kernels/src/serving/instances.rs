//! The entry points, one for each variant in [`flashtile_abi::for_each_serving_variant!`] and
//! [`flashtile_abi::for_each_merge_variant!`], and nothing else.

use super::config::{Crew, Keys, Rows, ServingConfig, ServingExt};
use super::{kernel, merge};
use crate::attention::score_mod;
use crate::attention::sm80::config::Config;
use crate::attention::sm80::query::{InRegisters, InSharedMemory};
use crate::element::{self, Element};
use crate::tile::reg::RegTile;
use flashtile_abi::{DType, MergeParams, ServingParams, Sharing, TileShape};

/// Queries stay in registers where there are registers to spare.
macro_rules! query {
    (Keys $element:ty, 64) => { InRegisters<$element, 1, 4> };
    (Keys $element:ty, 128) => { InRegisters<$element, 1, 8> };
    ($sharing:ident $element:ty, $dqk:literal) => { InSharedMemory };
}

macro_rules! instances {
    ($(($name:ident $sharing:ident $dtype:ident $dqk:tt $dv:tt))*) => { $(
        mod $name {
            use super::*;

            const TILE: TileShape = TileShape::serving(Sharing::$sharing, DType::$dtype, $dqk, $dv);

            struct Instance;

            impl Config for Instance {
                type Element = element::$dtype;
                type ScoreMod = score_mod::None;
                type Scores = RegTile<{ TILE.m_frags() as usize }, { TILE.warp_keys() as usize / 8 }>;
                type Output = RegTile<{ TILE.m_frags() as usize }, { TILE.head_dim_v as usize / 8 }>;
                type Query = query!($sharing element::$dtype, $dqk);
                const TILE: TileShape = TILE;
            }

            impl ServingConfig for Instance {
                type Crew = $sharing;
            }

            // The row of the list means the same here as to the host.
            const _: () = {
                let () = Instance::FITS;
                assert!(matches!(<element::$dtype as Element>::DTYPE, DType::$dtype));
                assert!(matches!(<$sharing as Crew>::SHARING, Sharing::$sharing));
            };

            /// CTA barriers in the kernel's source, for the builder to compare with the PTX.
            #[used]
            #[unsafe(export_name = concat!(stringify!($name), "__barriers"))]
            pub static BARRIERS: u32 = kernel::barriers::<Instance>();

            /// The kernel.
            ///
            /// # Safety
            /// The parameters describe memory of the device, as [`ServingParams`] says.
            #[unsafe(no_mangle)]
            pub unsafe extern "ptx-kernel" fn $name(params: ServingParams) {
                kernel::run::<Instance>(&params);
            }
        }
    )* };
}
flashtile_abi::for_each_serving_variant!(instances);

macro_rules! merges {
    ($(($name:ident $dtype:ident))*) => { $(
        mod $name {
            use super::*;

            const _: () = assert!(matches!(<element::$dtype as Element>::DTYPE, DType::$dtype));

            /// CTA barriers in the kernel's source, for the builder to compare with the PTX.
            #[used]
            #[unsafe(export_name = concat!(stringify!($name), "__barriers"))]
            pub static BARRIERS: u32 = merge::BARRIERS;

            /// The kernel.
            ///
            /// # Safety
            /// The parameters describe memory of the device, as [`MergeParams`] says.
            #[unsafe(no_mangle)]
            pub unsafe extern "ptx-kernel" fn $name(params: MergeParams) {
                merge::run::<element::$dtype>(&params);
            }
        }
    )* };
}
flashtile_abi::for_each_merge_variant!(merges);

//! The entry points, one for each variant in [`flashtile_abi::for_each_serving_variant!`],
//! [`flashtile_abi::for_each_latent_variant!`] and [`flashtile_abi::for_each_merge_variant!`], and nothing else.

use super::config::{Columns, Crew, Keys, Rows, ServingConfig, ServingExt};
use super::operands::{Cached, E4m3, Fours, Same};
use super::{kernel, merge};
use crate::attention::score_mod;
use crate::attention::sm80::config::Config;
use crate::attention::sm80::query::{InRegisters, InSharedMemory, Ldmatrix};
use crate::element::{self, Element};
use crate::tile::reg::RegTile;
use flashtile_abi::{DType, MergeParams, ServingParams, Sharing, TileShape};

/// Queries stay in registers where there are registers to spare.
macro_rules! query {
    (Keys E4m3 $element:ty, 64) => { InRegisters<$element, Fours, 1, 4> };
    (Keys E4m3 $element:ty, 128) => { InRegisters<$element, Fours, 1, 8> };
    ($sharing:ident E4m3 $element:ty, $dqk:literal) => { InSharedMemory<Fours> };
    (Keys $kv:ident $element:ty, 64) => { InRegisters<$element, Ldmatrix, 1, 4> };
    (Keys $kv:ident $element:ty, 128) => { InRegisters<$element, Ldmatrix, 1, 8> };
    ($sharing:ident $kv:ident $element:ty, $dqk:literal) => { InSharedMemory<Ldmatrix> };
}

/// How keys and values of a type become operands.
macro_rules! cached {
    (E4m3) => {
        E4m3
    };
    ($same:ident) => {
        Same
    };
}

macro_rules! instance {
    ($name:ident, $sharing:ident, $dtype:ident, $cached:ty, $query:ty, $tile:expr) => {
        mod $name {
            use super::*;

            const TILE: TileShape = $tile;

            struct Instance;

            impl Config for Instance {
                type Element = element::$dtype;
                type ScoreMod = score_mod::None;
                type Scores =
                    RegTile<{ TILE.m_frags() as usize }, { TILE.warp_keys() as usize / 8 }>;
                type Output =
                    RegTile<{ TILE.m_frags() as usize }, { TILE.warp_columns() as usize / 8 }>;
                type Query = $query;
                const TILE: TileShape = TILE;
            }

            impl ServingConfig for Instance {
                type Cached = $cached;
                type Crew = $sharing;
            }

            // The row of the list means the same here as to the host.
            const _: () = {
                let () = Instance::FITS;
                assert!(matches!(<element::$dtype as Element>::DTYPE, DType::$dtype));
                assert!(<$cached as Cached<Instance>>::DTYPE as u32 == TILE.kv_dtype as u32);
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
    };
}

macro_rules! instances {
    ($(($name:ident $sharing:ident $dtype:ident $kv:ident $dqk:tt $dv:tt))*) => { $(
        instance! {
            $name, $sharing, $dtype, cached!($kv), query!($sharing $kv element::$dtype, $dqk),
            TileShape::serving(Sharing::$sharing, DType::$dtype, DType::$kv, $dqk, $dv)
        }
    )* };
}
flashtile_abi::for_each_serving_variant!(instances);

macro_rules! latent_instances {
    ($(($name:ident $dtype:ident $rows:literal))*) => { $(
        instance! { $name, Columns, $dtype, Same, InSharedMemory<Ldmatrix>, TileShape::latent(DType::$dtype, $rows) }
    )* };
}
flashtile_abi::for_each_latent_variant!(latent_instances);

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

//! The entry points, one for each variant in [`flashtile_abi::for_each_serving_hopper_variant!`] and
//! [`flashtile_abi::for_each_latent_hopper_variant!`], and nothing else.

use super::config::HopperServing;
use super::kernel;
use crate::attention::score_mod;
use crate::attention::sm80::config::Config;
use crate::attention::sm80::query::{InSharedMemory, Ldmatrix};
use crate::attention::sm90::config as engine;
use crate::attention::sm90::half::Half;
use crate::element;
use crate::serving::config::{ColumnsProducer, Crew, RowsProducer, ServingConfig};
use crate::serving::operands::Same;
use crate::tile::reg::RegTile;
use flashtile_abi::{DType, ServingParams, Sharing, TileShape};

macro_rules! instance {
    ($name:ident, $sharing:ident, $crew:ty, $dtype:ident, $tile:expr) => {
        mod $name {
            use super::*;

            const TILE: TileShape = $tile;

            struct Instance;

            struct Engine;

            impl engine::Config for Engine {
                type Params = ServingParams;
                type Arithmetic = Half<element::$dtype, { TILE.block_n as usize / 16 }>;
                type ScoreMod = score_mod::None;
                type Scores = RegTile<1, { TILE.block_n as usize / 8 }>;
                type Output = RegTile<1, { TILE.warp_columns() as usize / 8 }>;
                const TILE: TileShape = TILE;
            }

            impl Config for Instance {
                type Element = element::$dtype;
                type ScoreMod = score_mod::None;
                type Scores = <Engine as engine::Config>::Scores;
                type Output = <Engine as engine::Config>::Output;
                type Query = InSharedMemory<Ldmatrix>;
                const TILE: TileShape = TILE;
            }

            impl ServingConfig for Instance {
                type Cached = Same;
                type Crew = $crew;
            }

            impl HopperServing for Instance {
                type Arithmetic = <Engine as engine::Config>::Arithmetic;
                type Engine = Engine;
            }

            // The row of the list means the same here as to the host.
            const _: () = assert!(matches!(<$crew as Crew>::SHARING, Sharing::$sharing));

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
    ($(($name:ident $dtype:ident $dqk:literal $dv:literal))*) => { $(
        instance! { $name, Rows, RowsProducer, $dtype, TileShape::serving_sm90(DType::$dtype, $dqk, $dv) }
    )* };
}
flashtile_abi::for_each_serving_hopper_variant!(instances);

macro_rules! latent_instances {
    ($(($name:ident $dtype:ident))*) => { $(
        instance! { $name, Columns, ColumnsProducer, $dtype, TileShape::latent_sm90(DType::$dtype) }
    )* };
}
flashtile_abi::for_each_latent_hopper_variant!(latent_instances);

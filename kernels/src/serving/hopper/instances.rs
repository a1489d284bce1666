//! The entry points, one for each variant in [`flashtile_abi::for_each_serving_hopper_variant!`], and nothing else.

use super::config::HopperServing;
use super::kernel;
use crate::attention::score_mod;
use crate::attention::sm80::config::Config;
use crate::attention::sm80::query::{InSharedMemory, Ldmatrix};
use crate::attention::sm90::config as engine;
use crate::attention::sm90::half::Half;
use crate::element;
use crate::serving::config::{Producer, ServingConfig};
use crate::serving::operands::Same;
use crate::tile::reg::RegTile;
use flashtile_abi::{DType, ServingParams, TileShape};

macro_rules! instances {
    ($(($name:ident $dtype:ident $dqk:literal $dv:literal))*) => { $(
        mod $name {
            use super::*;

            const TILE: TileShape = TileShape::serving_sm90(DType::$dtype, $dqk, $dv);

            struct Instance;

            struct Engine;

            impl engine::Config for Engine {
                type Params = ServingParams;
                type Arithmetic = Half<element::$dtype, { TILE.block_n as usize / 16 }>;
                type ScoreMod = score_mod::None;
                type Scores = RegTile<1, { TILE.block_n as usize / 8 }>;
                type Output = RegTile<1, { TILE.head_dim_v as usize / 8 }>;
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
                type Crew = Producer;
            }

            impl HopperServing for Instance {
                type Arithmetic = <Engine as engine::Config>::Arithmetic;
                type Engine = Engine;
            }

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

flashtile_abi::for_each_serving_hopper_variant!(instances);

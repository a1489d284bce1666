//! The entry points of the tier, one for each of its variants in [`flashtile_abi::for_each_hopper_variant!`], and nothing else.

use super::config::{Arithmetic, Config, ConfigExt, Launched};
use super::kernel::FusedKernel;
use super::{fp8, half};
use crate::attention::score_mod::{self, ScoreMod};
use crate::element;
use crate::tile::reg::RegTile;
use core::arch::asm;
use flashtile_abi::{Algorithm, DType, HopperParams, ScoreModKind, TileShape};

/// Arithmetic of an element type, for a tile of so many keys and columns of values.
macro_rules! arithmetic {
    (E4m3 $dv:literal) => { fp8::E4m3<RegTile<1, { if $dv > 128 { 16 } else { $dv / 8 } }>, { TILE.block_n as usize / 32 }> };
    ($dtype:ident $dv:literal) => { half::Half<element::$dtype, { TILE.block_n as usize / 16 }> };
}

macro_rules! instances {
    ($(($name:ident $algorithm:ident $dtype:ident $dqk:tt $dv:tt $score_mod:ident))*) => { $(
        mod $name {
            use super::*;

            const TILE: TileShape = TileShape::sm90(DType::$dtype, $dqk, $dv);

            struct Instance;

            impl Config for Instance {
                type Params = HopperParams;
                type Arithmetic = arithmetic!($dtype $dv);
                type ScoreMod = score_mod::$score_mod;
                type Scores = RegTile<1, { TILE.block_n as usize / 8 }>;
                type Output = RegTile<1, { (TILE.head_dim_v / TILE.v_splits) as usize / 8 }>;
                const TILE: TileShape = TILE;
            }

            impl Launched for Instance {
                #[inline(always)]
                fn params_address() -> u64 {
                    let address: u64;
                    // SAFETY: takes the address of the entry's only parameter.
                    unsafe {
                        asm!(
                            concat!("mov.b64 {0}, ", stringify!($name), "_param_0; cvta.param.u64 {0}, {0};"),
                            out(reg64) address, options(nomem, nostack)
                        );
                    }
                    address
                }
            }

            // The row of the list means the same here as to the host.
            const _: () = {
                let () = Instance::CONSISTENT;
                assert!(matches!(<arithmetic!($dtype $dv) as Arithmetic<Instance>>::DTYPE, DType::$dtype));
                assert!(matches!(<score_mod::$score_mod as ScoreMod>::KIND, ScoreModKind::$score_mod));
                assert!(matches!(FusedKernel::ALGORITHM, Algorithm::$algorithm));
            };

            /// CTA barriers in the kernel's source, for the builder to compare with the PTX.
            #[used]
            #[unsafe(export_name = concat!(stringify!($name), "__barriers"))]
            pub static BARRIERS: u32 = FusedKernel::barriers::<Instance>();

            /// The kernel.
            ///
            /// # Safety
            /// The parameters describe memory of the device, as [`HopperParams`] says.
            #[unsafe(no_mangle)]
            pub unsafe extern "ptx-kernel" fn $name(params: HopperParams) {
                FusedKernel::run::<Instance>(&params);
            }
        }
    )* };
}

flashtile_abi::for_each_hopper_variant!(instances);

//! The entry points, one for each variant in [`flashtile_abi::for_each_variant!`], and nothing else.

use super::config::{Config, ConfigExt};
use super::kernel::{FusedKernel, Kernel, ThreePassKernel, TwoPassKernel};
use super::query::{InRegisters, InSharedMemory, Ldmatrix};
use crate::attention::score_mod::{self, ScoreMod};
use crate::element::{self, Element};
use crate::tile::reg::RegTile;
use flashtile_abi::{Algorithm, AttentionParams, DType, ScoreModKind, TileShape};

/// Names of [`Algorithm`] to kernels.
macro_rules! kernel {
    (Fused) => {
        FusedKernel
    };
    (TwoPass) => {
        TwoPassKernel
    };
    (ThreePass) => {
        ThreePassKernel
    };
}

/// Queries stay in registers where there are registers to spare.
macro_rules! query {
    ($element:ty, F32 $dqk:literal) => { InSharedMemory<Ldmatrix> };
    ($element:ty, $dtype:ident 32) => { InRegisters<$element, Ldmatrix, { TILE.m_frags() as usize }, 2> };
    ($element:ty, $dtype:ident $dqk:literal) => { InSharedMemory<Ldmatrix> };
}

macro_rules! instances {
    ($(($name:ident $algorithm:ident $dtype:ident $dqk:tt $dv:tt $score_mod:ident))*) => { $(
        mod $name {
            use super::*;

            const TILE: TileShape = TileShape::sm80(DType::$dtype, $dqk, $dv, ScoreModKind::$score_mod);

            struct Instance;

            impl Config for Instance {
                type Element = element::$dtype;
                type ScoreMod = score_mod::$score_mod;
                type Scores = RegTile<{ TILE.m_frags() as usize }, { TILE.block_n as usize / 8 }>;
                type Output = RegTile<{ TILE.m_frags() as usize }, { TILE.head_dim_v as usize / 8 }>;
                type Query = query!(element::$dtype, $dtype $dqk);
                const TILE: TileShape = TILE;
            }

            // The row of the list means the same here as to the host.
            const _: () = {
                let () = Instance::CONSISTENT;
                assert!(matches!(<element::$dtype as Element>::DTYPE, DType::$dtype));
                assert!(matches!(<score_mod::$score_mod as ScoreMod>::KIND, ScoreModKind::$score_mod));
                assert!(matches!(<kernel!($algorithm) as Kernel<Instance>>::ALGORITHM, Algorithm::$algorithm));
            };

            /// CTA barriers in the kernel's source, for the builder to compare with the PTX.
            #[used]
            #[unsafe(export_name = concat!(stringify!($name), "__barriers"))]
            pub static BARRIERS: u32 = <kernel!($algorithm) as Kernel<Instance>>::BARRIERS;

            /// The kernel.
            ///
            /// # Safety
            /// The parameters describe memory of the device, as [`AttentionParams`] says.
            #[unsafe(no_mangle)]
            pub unsafe extern "ptx-kernel" fn $name(params: AttentionParams) {
                <kernel!($algorithm) as Kernel<Instance>>::run(&params);
            }
        }
    )* };
}

flashtile_abi::for_each_variant!(instances);

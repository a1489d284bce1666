//! The kernels that exist. [`for_each_variant!`](crate::for_each_variant) is the only list: kernels/
//! makes its entry points from it, the builder checks the PTX against it, the host picks from it.

use core::ops::Deref;

use crate::tile::{DType, TileShape};

/// How the softmax is organised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// One pass over the keys with a running maximum and a rescaled output (FlashAttention-2,
    /// arXiv:2307.08691, algorithm 1).
    Fused,
    /// Two passes: maximum and sum together (online softmax, arXiv:1805.02867, algorithm 3), then the
    /// weighted sum.
    TwoPass,
    /// Three passes: maximum; sum; weighted sum. Scores are recomputed in each (safe softmax,
    /// arXiv:1805.02867, algorithm 2).
    ThreePass,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 3] = [Self::Fused, Self::TwoPass, Self::ThreePass];

    /// Name as on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fused => "fused",
            Self::TwoPass => "two-pass",
            Self::ThreePass => "three-pass",
        }
    }
}

/// Code generation target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// mma.sync, ldmatrix, cp.async: every GPU since Ampere.
    Sm80,
    /// wgmma, TMA, mbarrier: Hopper only.
    Sm90a,
}

impl Arch {
    /// Every target.
    pub const ALL: [Self; 2] = [Self::Sm80, Self::Sm90a];

    /// Name as the compilers spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm90a => "sm_90a",
        }
    }
}

/// What a kernel can do to a score before the softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScoreModKind {
    /// Nothing: such a kernel can't cap.
    None,
    /// tanh cap, always.
    Softcap,
    /// tanh cap if the parameters ask for it.
    OptionalSoftcap,
}

/// What every kernel has, whatever it computes: all that a launch needs to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of the entry point in the PTX.
    pub name: &'static str,
    /// Target it is compiled for.
    pub arch: Arch,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks per multiprocessor it is compiled for.
    pub min_blocks: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
}

/// A kernel of attention over dense tensors. Its [`Entry`] is what it dereferences to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The entry point.
    pub entry: Entry,
    /// How the softmax is organised.
    pub algorithm: Algorithm,
    /// Whether it caps scores.
    pub score_mod: ScoreModKind,
    /// Tile shape, dtype and padded head dimensions included.
    pub tile: TileShape,
}

impl Deref for Variant {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Variant {
    /// A variant of the sm_80 tier.
    pub const fn sm80(
        name: &'static str,
        algorithm: Algorithm,
        dtype: DType,
        head_dim_qk: u32,
        head_dim_v: u32,
        score_mod: ScoreModKind,
    ) -> Self {
        let tile = TileShape::sm80(dtype, head_dim_qk, head_dim_v, score_mod);
        let entry = Entry {
            name,
            arch: Arch::Sm80,
            threads: tile.threads(),
            min_blocks: tile.min_blocks,
            shared_bytes: tile.shared().bytes,
        };
        Self {
            entry,
            algorithm,
            score_mod,
            tile,
        }
    }

    /// A variant of the sm_90a tier.
    pub const fn sm90(
        name: &'static str,
        algorithm: Algorithm,
        dtype: DType,
        head_dim_qk: u32,
        head_dim_v: u32,
        score_mod: ScoreModKind,
    ) -> Self {
        let tile = TileShape::sm90(dtype, head_dim_qk, head_dim_v);
        let entry = Entry {
            name,
            arch: Arch::Sm90a,
            threads: tile.threads() + crate::hopper::WARPGROUP,
            min_blocks: tile.min_blocks,
            shared_bytes: tile.hopper_plan().bytes,
        };
        Self {
            entry,
            algorithm,
            score_mod,
            tile,
        }
    }
}

/// Calls `$callback! { $($context)* [ (name Algorithm DType head_dim_qk head_dim_v ScoreMod) ... ] }`.
///
/// `ScoreMod` is a variant of [`ScoreModKind`] and, in kernels/, the strategy type of that name.
#[macro_export]
macro_rules! for_each_variant {
    ($callback:ident) => {
        $callback! {
            (fused_f16_d32_sm80 Fused F16 32 32 None)
            (fused_f16_d64_sm80 Fused F16 64 64 None)
            (fused_f16_d96_sm80 Fused F16 96 96 None)
            (fused_f16_d128_sm80 Fused F16 128 128 None)
            (fused_f16_d192x128_sm80 Fused F16 192 128 None)
            (fused_f16_d192_sm80 Fused F16 192 192 None)
            (fused_f16_d256_sm80 Fused F16 256 256 None)
            (fused_bf16_d32_sm80 Fused Bf16 32 32 None)
            (fused_bf16_d64_sm80 Fused Bf16 64 64 None)
            (fused_bf16_d96_sm80 Fused Bf16 96 96 None)
            (fused_bf16_d128_sm80 Fused Bf16 128 128 None)
            (fused_bf16_d192x128_sm80 Fused Bf16 192 128 None)
            (fused_bf16_d192_sm80 Fused Bf16 192 192 None)
            (fused_bf16_d256_sm80 Fused Bf16 256 256 None)
            (fused_f32_d32_sm80 Fused F32 32 32 None)
            (fused_f32_d64_sm80 Fused F32 64 64 None)
            (fused_f32_d128_sm80 Fused F32 128 128 None)
            (fused_f32_d256_sm80 Fused F32 256 256 None)
            (fused_f16_d32_softcap_sm80 Fused F16 32 32 Softcap)
            (fused_f16_d64_softcap_sm80 Fused F16 64 64 Softcap)
            (fused_f16_d96_softcap_sm80 Fused F16 96 96 Softcap)
            (fused_f16_d128_softcap_sm80 Fused F16 128 128 Softcap)
            (fused_f16_d192_softcap_sm80 Fused F16 192 192 Softcap)
            (fused_f16_d256_softcap_sm80 Fused F16 256 256 Softcap)
            (fused_bf16_d32_softcap_sm80 Fused Bf16 32 32 Softcap)
            (fused_bf16_d64_softcap_sm80 Fused Bf16 64 64 Softcap)
            (fused_bf16_d96_softcap_sm80 Fused Bf16 96 96 Softcap)
            (fused_bf16_d128_softcap_sm80 Fused Bf16 128 128 Softcap)
            (fused_bf16_d192_softcap_sm80 Fused Bf16 192 192 Softcap)
            (fused_bf16_d256_softcap_sm80 Fused Bf16 256 256 Softcap)
            (fused_f32_d32_softcap_sm80 Fused F32 32 32 Softcap)
            (fused_f32_d64_softcap_sm80 Fused F32 64 64 Softcap)
            (fused_f32_d128_softcap_sm80 Fused F32 128 128 Softcap)
            (fused_f32_d256_softcap_sm80 Fused F32 256 256 Softcap)
            (two_pass_f16_d32_sm80 TwoPass F16 32 32 OptionalSoftcap)
            (two_pass_f16_d64_sm80 TwoPass F16 64 64 OptionalSoftcap)
            (two_pass_f16_d128_sm80 TwoPass F16 128 128 OptionalSoftcap)
            (two_pass_f16_d256_sm80 TwoPass F16 256 256 OptionalSoftcap)
            (two_pass_bf16_d32_sm80 TwoPass Bf16 32 32 OptionalSoftcap)
            (two_pass_bf16_d64_sm80 TwoPass Bf16 64 64 OptionalSoftcap)
            (two_pass_bf16_d128_sm80 TwoPass Bf16 128 128 OptionalSoftcap)
            (two_pass_bf16_d256_sm80 TwoPass Bf16 256 256 OptionalSoftcap)
            (two_pass_f32_d32_sm80 TwoPass F32 32 32 OptionalSoftcap)
            (two_pass_f32_d64_sm80 TwoPass F32 64 64 OptionalSoftcap)
            (two_pass_f32_d128_sm80 TwoPass F32 128 128 OptionalSoftcap)
            (two_pass_f32_d256_sm80 TwoPass F32 256 256 OptionalSoftcap)
            (three_pass_f16_d32_sm80 ThreePass F16 32 32 OptionalSoftcap)
            (three_pass_f16_d64_sm80 ThreePass F16 64 64 OptionalSoftcap)
            (three_pass_f16_d128_sm80 ThreePass F16 128 128 OptionalSoftcap)
            (three_pass_f16_d256_sm80 ThreePass F16 256 256 OptionalSoftcap)
            (three_pass_bf16_d32_sm80 ThreePass Bf16 32 32 OptionalSoftcap)
            (three_pass_bf16_d64_sm80 ThreePass Bf16 64 64 OptionalSoftcap)
            (three_pass_bf16_d128_sm80 ThreePass Bf16 128 128 OptionalSoftcap)
            (three_pass_bf16_d256_sm80 ThreePass Bf16 256 256 OptionalSoftcap)
            (three_pass_f32_d32_sm80 ThreePass F32 32 32 OptionalSoftcap)
            (three_pass_f32_d64_sm80 ThreePass F32 64 64 OptionalSoftcap)
            (three_pass_f32_d128_sm80 ThreePass F32 128 128 OptionalSoftcap)
            (three_pass_f32_d256_sm80 ThreePass F32 256 256 OptionalSoftcap)
        }
    };
}

/// As [`for_each_variant!`](crate::for_each_variant), for the sm_90a tier.
#[macro_export]
macro_rules! for_each_hopper_variant {
    ($callback:ident) => {
        $callback! {
            (fused_f16_d64_sm90a Fused F16 64 64 None)
            (fused_f16_d96_sm90a Fused F16 96 96 None)
            (fused_f16_d128_sm90a Fused F16 128 128 None)
            (fused_f16_d192x128_sm90a Fused F16 192 128 None)
            (fused_f16_d192_sm90a Fused F16 192 192 None)
            (fused_f16_d256_sm90a Fused F16 256 256 None)
            (fused_f16_d64x256_sm90a Fused F16 64 256 None)
            (fused_f16_d64x512_sm90a Fused F16 64 512 None)
            (fused_f16_d512_sm90a Fused F16 512 512 None)
            (fused_f16_d64_softcap_sm90a Fused F16 64 64 Softcap)
            (fused_f16_d96_softcap_sm90a Fused F16 96 96 Softcap)
            (fused_f16_d128_softcap_sm90a Fused F16 128 128 Softcap)
            (fused_f16_d192x128_softcap_sm90a Fused F16 192 128 Softcap)
            (fused_f16_d192_softcap_sm90a Fused F16 192 192 Softcap)
            (fused_f16_d256_softcap_sm90a Fused F16 256 256 Softcap)
            (fused_f16_d64x256_softcap_sm90a Fused F16 64 256 Softcap)
            (fused_f16_d64x512_softcap_sm90a Fused F16 64 512 Softcap)
            (fused_f16_d512_softcap_sm90a Fused F16 512 512 Softcap)
            (fused_bf16_d64_sm90a Fused Bf16 64 64 None)
            (fused_bf16_d96_sm90a Fused Bf16 96 96 None)
            (fused_bf16_d128_sm90a Fused Bf16 128 128 None)
            (fused_bf16_d192x128_sm90a Fused Bf16 192 128 None)
            (fused_bf16_d192_sm90a Fused Bf16 192 192 None)
            (fused_bf16_d256_sm90a Fused Bf16 256 256 None)
            (fused_bf16_d64x256_sm90a Fused Bf16 64 256 None)
            (fused_bf16_d64x512_sm90a Fused Bf16 64 512 None)
            (fused_bf16_d512_sm90a Fused Bf16 512 512 None)
            (fused_bf16_d64_softcap_sm90a Fused Bf16 64 64 Softcap)
            (fused_bf16_d96_softcap_sm90a Fused Bf16 96 96 Softcap)
            (fused_bf16_d128_softcap_sm90a Fused Bf16 128 128 Softcap)
            (fused_bf16_d192x128_softcap_sm90a Fused Bf16 192 128 Softcap)
            (fused_bf16_d192_softcap_sm90a Fused Bf16 192 192 Softcap)
            (fused_bf16_d256_softcap_sm90a Fused Bf16 256 256 Softcap)
            (fused_bf16_d64x256_softcap_sm90a Fused Bf16 64 256 Softcap)
            (fused_bf16_d64x512_softcap_sm90a Fused Bf16 64 512 Softcap)
            (fused_bf16_d512_softcap_sm90a Fused Bf16 512 512 Softcap)
            (fused_e4m3_d64_sm90a Fused E4m3 64 64 None)
            (fused_e4m3_d128_sm90a Fused E4m3 128 128 None)
            (fused_e4m3_d256_sm90a Fused E4m3 256 256 None)
            (fused_e4m3_d64_softcap_sm90a Fused E4m3 64 64 Softcap)
            (fused_e4m3_d128_softcap_sm90a Fused E4m3 128 128 Softcap)
            (fused_e4m3_d256_softcap_sm90a Fused E4m3 256 256 Softcap)
        }
    };
}

macro_rules! table {
    ($table:ident $tier:ident $(($name:ident $algorithm:ident $dtype:ident $dqk:literal $dv:literal $score_mod:ident))*) => {
        const $table: &[Variant] = &[$(Variant::$tier(
            stringify!($name),
            Algorithm::$algorithm,
            DType::$dtype,
            $dqk,
            $dv,
            ScoreModKind::$score_mod,
        )),*];
    };
}
macro_rules! sm80_table {
    ($($rows:tt)*) => { table! { SM80 sm80 $($rows)* } };
}
macro_rules! sm90_table {
    ($($rows:tt)*) => { table! { SM90 sm90 $($rows)* } };
}
for_each_variant!(sm80_table);
for_each_hopper_variant!(sm90_table);

const VARIANTS: &[Variant] = &{
    let mut all = [SM80[0]; SM80.len() + SM90.len()];
    let mut n = 0;
    while n < all.len() {
        all[n] = if n < SM80.len() {
            SM80[n]
        } else {
            SM90[n - SM80.len()]
        };
        n += 1;
    }
    all
};

/// Every kernel of attention over dense tensors.
pub const fn variants() -> &'static [Variant] {
    VARIANTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_its_variant_is() {
        for variant in variants() {
            let algorithm = variant.algorithm.as_str().replace('-', "_");
            let (qk, v) = (variant.tile.head_dim_qk, variant.tile.head_dim_v);
            let dim = if qk == v {
                format!("d{qk}")
            } else {
                format!("d{qk}x{v}")
            };
            let cap = if variant.score_mod == ScoreModKind::Softcap {
                "_softcap"
            } else {
                ""
            };
            let dtype = variant.tile.dtype.as_str();
            let arch = variant.arch.as_str().replace('_', "");
            assert_eq!(
                variant.name,
                format!("{algorithm}_{dtype}_{dim}{cap}_{arch}")
            );
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = variants().iter().map(|v| v.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), variants().len());
    }
}

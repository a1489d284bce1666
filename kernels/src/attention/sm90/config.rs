//! What distinguishes one instance of the kernel from another.

use super::consumer::Rows;
use super::scheduler::Work;
use crate::attention::mask::Masking;
use crate::attention::score_mod::ScoreMod;
use crate::attention::softmax::{Care, Growth, RowStats};
use crate::ptx::wgmma::Descriptor;
use crate::tile::operand::OperandTile;
use crate::tile::reg::AccumTile;
use flashtile_abi::hopper::{HopperPlan, TRANSPOSERS, WARPGROUP, WARPGROUP_ROWS};
use flashtile_abi::{DType, HopperParams, ScoreModKind, TileShape};

/// One instance: types and shapes, all known at compile time.
pub trait Config: Sized {
    /// What its launches are told.
    type Params: Launch;
    /// How elements meet the tensor cores.
    type Arithmetic: Arithmetic<Self>;
    /// What happens to scores before the softmax.
    type ScoreMod: ScoreMod;
    /// One warpgroup's scores of one K tile.
    type Scores: AccumTile;
    /// One warpgroup's output.
    type Output: AccumTile;
    /// The tile shape, as the host knows it.
    const TILE: TileShape;
}

/// An instance of the kernel over dense tensors.
pub trait Launched: Config<Params = HopperParams> {
    /// Generic address of the parameters, where the launch put them: a reference to them may be one to a copy, which the copy
    /// engine cannot read tensor maps from. Taken anew each time.
    fn params_address() -> u64;
}

/// The parameters of a launch.
pub trait Launch {
    /// Factor from score to the exponent of two.
    fn exponent_scale(&self) -> f32;
}

impl Launch for HopperParams {
    #[inline(always)]
    fn exponent_scale(&self) -> f32 {
        self.attention.exponent_scale
    }
}

/// What depends on the element type between Q * K^T and the output.
pub trait Arithmetic<C: Config> {
    /// Its name on both sides of a launch.
    const DTYPE: DType;
    /// Whether products with values can be made under the softmax of the next tile ([`ConfigExt::OVERLAPS`]).
    const OVERLAP: bool;
    /// What probabilities are multiplied by in a piece of work that takes care ([`Care::factor`]).
    const CAREFUL_FACTOR: f32;
    /// [`Care::slack`], in a piece of work that takes none.
    const SLACK: f32;
    /// One warpgroup's probabilities of one tile: left operands.
    type Probabilities: Copy;
    /// Sums of probability * value, as they grow.
    type Sums;
    /// What a lane keeps of the elements' scales through a piece of work.
    type Scales: Copy;

    /// Before the first tile.
    const START: Self::Sums;
    /// Of no tile.
    const NONE: Self::Probabilities;
    /// What exponents are larger by than elsewhere.
    const EXPONENT_OFFSET: f32;

    /// For the rows of a piece of work.
    fn scales(params: &HopperParams, rows: &Rows, work: &Work) -> Self::Scales;
    /// Q * K^T, in flight.
    ///
    /// # Safety
    /// Both tiles stay as they are until a wait.
    unsafe fn mm_qk(q: Descriptor, k: Descriptor) -> C::Scores;
    /// Makes scores what they are meant to be, before they are capped. The tile begins with key `n_begin`; so below.
    fn descale(params: &C::Params, scores: &mut C::Scores, scales: Self::Scales, n_begin: i32);
    /// Turns scores into probabilities. Scores that are capped were descaled.
    fn absorb<M: Masking>(
        params: &C::Params,
        stats: &mut RowStats,
        scores: &mut C::Scores,
        scales: Self::Scales,
        n_begin: i32,
        care: Care,
    ) -> Growth;
    /// Rounds probabilities.
    fn pack(scores: &C::Scores) -> Self::Probabilities;
    /// Sums += P * V, in flight; made and taken in at once where nothing overlaps.
    ///
    /// # Safety
    /// The tile stays as it is until a wait.
    unsafe fn mma_pv(
        params: &C::Params,
        sums: &mut Self::Sums,
        p: &Self::Probabilities,
        v: Descriptor,
        scales: Self::Scales,
        n_begin: i32,
    );
    /// After the wait: takes in what was made. `last`: no more products follow.
    fn collect(
        params: &C::Params,
        sums: &mut Self::Sums,
        scales: Self::Scales,
        n_begin: i32,
        last: bool,
    );
    /// Brings sums to new references ([`RowStats::settle`]).
    fn settle<M: Masking>(
        params: &C::Params,
        stats: &mut RowStats,
        sums: &mut Self::Sums,
        growth: Growth,
        care: Care,
    );
    /// The output that the sums, normalised and multiplied by [`out_factor`](Self::out_factor), are.
    fn finish(sums: Self::Sums) -> C::Output;
    /// See [`finish`](Self::finish).
    fn out_factor(params: &HopperParams, work: &Work) -> f32;
    /// What maxima of [`RowStats`] are multiplied by to be exponents of two.
    fn max_scale(exponent_scale: f32) -> f32;
    /// Fragments 2 n and 2 n + 1 of the output's columns as 16-bit elements, in the order of `stmatrix`.
    fn pack_out(out: &C::Output, n: usize, flags: u32) -> [u32; 4];
}

/// Generic addresses of the launch's tensor maps.
#[derive(Clone, Copy)]
pub struct Maps {
    /// Queries.
    pub q: u64,
    /// Keys.
    pub k: u64,
    /// Values.
    pub v: u64,
    /// Output.
    pub out: u64,
}

impl Maps {
    /// Those of the instance's launch.
    #[inline(always)]
    pub fn of<C: Launched>() -> Self {
        let params = C::params_address();
        let at = |offset: usize| params + offset as u64;
        Self {
            q: at(core::mem::offset_of!(HopperParams, q_map)),
            k: at(core::mem::offset_of!(HopperParams, k_map)),
            v: at(core::mem::offset_of!(HopperParams, v_map)),
            out: at(core::mem::offset_of!(HopperParams, out_map)),
        }
    }
}

/// Compile-time facts that follow from a [`Config`].
pub trait ConfigExt: Config {
    /// Where things lie in shared memory.
    const PLAN: HopperPlan = Self::TILE.hopper_plan();
    /// Warpgroups that compute.
    const CONSUMERS: u32 = Self::TILE.consumers();
    /// Threads of a block.
    const THREADS: u32 = (Self::CONSUMERS + 1) * WARPGROUP;
    /// One warpgroup's queries.
    const Q: OperandTile = OperandTile {
        rows: WARPGROUP_ROWS,
        row_bytes: Self::TILE.head_dim_qk * Self::TILE.dtype.bytes(),
    };
    /// A tile of keys.
    const K: OperandTile = OperandTile {
        rows: Self::TILE.block_n,
        row_bytes: Self::TILE.head_dim_qk * Self::TILE.dtype.bytes(),
    };
    /// A tile of values: of a latent tile, one of keys without its last blocks of columns.
    const V: OperandTile = OperandTile {
        rows: Self::TILE.block_n,
        row_bytes: Self::TILE.head_dim_v * Self::TILE.dtype.bytes(),
    };
    /// A tile of transposed values.
    const VT: OperandTile = OperandTile {
        rows: Self::TILE.head_dim_v,
        row_bytes: Self::TILE.block_n * Self::TILE.dtype.bytes(),
    };
    /// Whether values are transposed on the way: products of 8-bit elements take both operands contiguous along the sum.
    const TRANSPOSES: bool = Self::TILE.dtype.bytes() == 1;
    /// Whether products with values are made under the softmax of the next tile. Where keys are values, a slot is in use from the first
    /// product to the last, and a tile that computed with two of them would leave none to copy to.
    const OVERLAPS: bool = Self::Arithmetic::OVERLAP && !Self::TILE.latent;
    /// One warpgroup's output.
    const OUT: OperandTile = OperandTile {
        rows: WARPGROUP_ROWS,
        row_bytes: Self::TILE.head_dim_v / Self::TILE.v_splits * 2,
    };
    /// Bytes of one warpgroup's queries.
    const Q_BYTES: u32 = Self::Q.rows * Self::Q.row_bytes;
    /// Whether the output passes through the queries' room.
    const OUT_OVER_Q: bool = Self::PLAN.out == Self::PLAN.q;
    /// Arrivals that say that the queries have been read: of every warp, or of the threads that store the output, where it passes through
    /// their room.
    const Q_READERS: u32 = if Self::OUT_OVER_Q {
        Self::CONSUMERS
    } else {
        4 * Self::CONSUMERS
    };
    /// Whether warpgroups take turns with the tensor cores, one computing exponentials while another multiplies.
    const PING_PONG: bool = Self::TILE.head_dim_v <= 128 && Self::TILE.v_splits == 1;
    /// Warps that read a V tile as it was copied.
    const V_READERS: u32 = if Self::TRANSPOSES {
        TRANSPOSERS
    } else {
        4 * Self::CONSUMERS
    };
    /// [`Care::polynomials`]. Where the special-function units have less to do than the tensor cores: none. A cap takes two of their
    /// results a score besides the exponential, 8-bit products half the time, a head_dim of 64 a quarter of that of 256. From the counts of
    /// instructions (docs/kernels-sm90.md).
    const POLYNOMIALS: usize = {
        let scores_of_row = Self::TILE.block_n as usize / 4;
        match Self::ScoreMod::KIND {
            ScoreModKind::None => match Self::TILE.head_dim_qk {
                64 => 1,
                128 if Self::TRANSPOSES => scores_of_row / 16,
                _ => 0,
            },
            _ => scores_of_row * 3 / 4,
        }
    };
    /// The types agree with the tile shape; forced by every instance.
    const CONSISTENT: () = {
        let tile = Self::TILE;
        assert!(Self::Scores::M_FRAGS == 1 && Self::Output::M_FRAGS == 1);
        assert!(Self::Scores::N_FRAGS == tile.block_n as usize / 8);
        assert!(Self::Output::N_FRAGS == (tile.head_dim_v / tile.v_splits) as usize / 8);
        assert!(matches!(
            (tile.dtype, Self::Arithmetic::DTYPE),
            (DType::F16, DType::F16) | (DType::Bf16, DType::Bf16) | (DType::E4m3, DType::E4m3)
        ));
        assert!(tile.block_m == WARPGROUP_ROWS * Self::CONSUMERS / tile.v_splits);
        assert!(Self::V.blocks().is_multiple_of(tile.v_splits));
        // Blocks of columns of keys are those of values.
        assert!(!tile.latent || Self::V.block_bytes() == Self::K.block_bytes());
    };
}

impl<C: Config> ConfigExt for C {}

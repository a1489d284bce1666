//! What distinguishes one instance of the kernel from another.

use crate::attention::score_mod::ScoreMod;
use crate::element::{self, Element};
use crate::ptx::wgmma::{self, Wgmma};
use crate::tile::operand::OperandTile;
use crate::tile::reg::AccumTile;
use flashtile_abi::hopper::{HopperPlan, WARPGROUP, WARPGROUP_ROWS};
use flashtile_abi::{HopperParams, TileShape};

/// A 16-bit element type on Hopper.
pub trait HopperElement: Element<FragA = [u32; 4]> {
    /// Its name among the operands of products.
    type Operand;
}

impl HopperElement for element::F16 {
    type Operand = wgmma::F16;
}

impl HopperElement for element::Bf16 {
    type Operand = wgmma::Bf16;
}

/// One instance: types and shapes, all known at compile time.
pub trait Config {
    /// Element type of q, k, v and (unless f32 is asked for) out.
    type Element: HopperElement;
    /// What happens to scores before the softmax.
    type ScoreMod: ScoreMod;
    /// One warpgroup's scores of one K tile.
    type Scores: AccumTile + Wgmma<<Self::Element as HopperElement>::Operand>;
    /// One warpgroup's output.
    type Output: AccumTile + Wgmma<<Self::Element as HopperElement>::Operand>;
    /// One warpgroup's probabilities of one tile, in the element type.
    type Probabilities: Probabilities;
    /// The tile shape, as the host knows it.
    const TILE: TileShape;
    /// Generic address of the parameters, where the launch put them: a reference to them may be one to a copy, which the copy
    /// engine cannot read tensor maps from. Taken anew each time.
    fn params_address() -> u64;
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
    pub fn of<C: Config>() -> Self {
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

/// Probabilities in registers: the left operands of P * V.
pub trait Probabilities: Copy {
    /// Steps of 16 keys.
    const STEPS: usize;
    /// The operand of a step.
    fn step(&self, step: usize) -> [u32; 4];
    /// From the accumulators of the scores.
    fn pack<E: HopperElement, S: AccumTile>(scores: &S) -> Self;
}

/// `STEPS` left operands.
#[derive(Clone, Copy)]
pub struct Packed<const STEPS: usize>([[u32; 4]; STEPS]);

impl<const STEPS: usize> Probabilities for Packed<STEPS> {
    const STEPS: usize = STEPS;

    #[inline(always)]
    fn step(&self, step: usize) -> [u32; 4] {
        self.0[step]
    }

    #[inline(always)]
    fn pack<E: HopperElement, S: AccumTile>(scores: &S) -> Self {
        let mut packed = [[0; 4]; STEPS];
        for step in 0..STEPS {
            packed[step] = E::frag_p(scores, 0, step);
        }
        Self(packed)
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
    /// A tile of values.
    const V: OperandTile = OperandTile {
        rows: Self::TILE.block_n,
        row_bytes: Self::TILE.head_dim_v * Self::TILE.dtype.bytes(),
    };
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
    /// The types agree with the tile shape; forced by every instance.
    const CONSISTENT: () = {
        let tile = Self::TILE;
        assert!(Self::Scores::M_FRAGS == 1 && Self::Output::M_FRAGS == 1);
        assert!(Self::Scores::N_FRAGS == tile.block_n as usize / 8);
        assert!(Self::Output::N_FRAGS == (tile.head_dim_v / tile.v_splits) as usize / 8);
        assert!(Self::Probabilities::STEPS == tile.block_n as usize / 16);
        assert!(tile.block_m == WARPGROUP_ROWS * Self::CONSUMERS / tile.v_splits);
        assert!(Self::V.blocks().is_multiple_of(tile.v_splits));
    };
}

impl<C: Config> ConfigExt for C {}

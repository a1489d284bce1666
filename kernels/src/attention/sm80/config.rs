//! What distinguishes one instance of a kernel from another.

use super::query::QueryFrags;
use crate::attention::score_mod::ScoreMod;
use crate::element::Element;
use crate::tile::load::LoadShape;
use crate::tile::reg::{AccumTile, MAX_M_FRAGS};
use flashtile_abi::{DType, TileShape};

/// One instance: types and shapes, all known at compile time.
pub trait Config {
    /// Element type of q, k, v and (unless f32 is asked for) out.
    type Element: Element;
    /// What happens to scores before the softmax.
    type ScoreMod: ScoreMod;
    /// One warp's scores of one K tile.
    type Scores: AccumTile;
    /// One warp's output.
    type Output: AccumTile;
    /// How one warp holds its queries.
    type Query: QueryFrags<Self::Element>;
    /// The tile shape, as the host knows it.
    const TILE: TileShape;
}

/// Compile-time facts that follow from a [`Config`].
pub trait ConfigExt: Config {
    /// Bytes of a row of Q and K in shared memory.
    const QK_ROW_BYTES: u32 = Self::TILE.head_dim_qk * Self::TILE.dtype.bytes();
    /// Bytes of a row of V (and of the staged output) in shared memory.
    const V_ROW_BYTES: u32 = Self::TILE.head_dim_v * Self::TILE.dtype.bytes();
    /// Query rows that one warp owns.
    const WARP_ROWS: u32 = 16 * Self::TILE.m_frags();
    /// Steps of 32 bytes in one of the sums that make up Q * K^T.
    const QK_STEPS: usize = {
        let steps = (Self::QK_ROW_BYTES / 32) as usize;
        if steps < Self::Element::STEPS_PER_SUM {
            steps
        } else {
            Self::Element::STEPS_PER_SUM
        }
    };
    /// Sums that make up Q * K^T.
    const QK_SUMS: u32 = Self::QK_ROW_BYTES / 32 / Self::QK_STEPS as u32;
    /// Steps of keys in P * V.
    const PV_STEPS: usize = Self::TILE.weighed_keys() as usize / Self::Element::KEYS_PER_STEP;
    /// Copy of the Q tile.
    const Q_LOAD: LoadShape = load_shape(Self::TILE, Self::TILE.block_m, Self::QK_ROW_BYTES);
    /// Copy of a K tile.
    const K_LOAD: LoadShape = load_shape(Self::TILE, Self::TILE.block_n, Self::QK_ROW_BYTES);
    /// Copy of a V tile.
    const V_LOAD: LoadShape = load_shape(Self::TILE, Self::TILE.block_n, Self::V_ROW_BYTES);
    /// Whether a warp looks first if its output needs rescaling. (f32's kernel at head_dim 256 spills if it
    /// does; its time goes into products anyway.)
    const SKIP_RESCALE: bool = !matches!(Self::TILE.dtype, DType::F32);
    /// Barriers of [`receive_query`](super::pipeline::receive_query).
    const QUERY_BARRIERS: u32 = Self::Query::IN_REGISTERS as u32;
    /// The types agree with the tile shape; forced by every instance.
    const CONSISTENT: () = {
        assert!(Self::TILE.m_frags() as usize <= MAX_M_FRAGS);
        assert!(Self::Scores::M_FRAGS == Self::TILE.m_frags() as usize);
        assert!(Self::Scores::N_FRAGS == Self::TILE.warp_keys() as usize / 8);
        assert!(Self::Output::M_FRAGS == Self::TILE.m_frags() as usize);
        assert!(Self::Output::N_FRAGS == Self::TILE.warp_columns() as usize / 8);
        assert!(Self::QK_SUMS * Self::QK_STEPS as u32 * 32 == Self::QK_ROW_BYTES);
        assert!(
            Self::PV_STEPS * Self::Element::KEYS_PER_STEP == Self::TILE.weighed_keys() as usize
        );
    };
}

impl<C: Config> ConfigExt for C {}

const fn load_shape(tile: TileShape, rows: u32, row_bytes: u32) -> LoadShape {
    LoadShape {
        rows,
        row_bytes,
        element: tile.dtype.bytes(),
        threads: tile.threads(),
    }
}

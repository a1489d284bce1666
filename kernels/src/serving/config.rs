//! What distinguishes one instance from another.

use super::operands::Cached;
use super::place::Place;
use crate::attention::sm80::config::{Config, ConfigExt};
use crate::element::Scalar;
use crate::ptx::sync;
use crate::tile::gather::MAX_ROW_STEPS;
use crate::tile::load::LoadShape;
use flashtile_abi::Sharing;
use flashtile_abi::hopper::WARPGROUP;

/// The threads that copy a tile of keys together, and wait for it together.
pub trait Crew {
    /// How warps share the work.
    const SHARING: Sharing;
    /// Whether a warpgroup copies for the others (sm_90a).
    const IS_PRODUCER: bool = false;
    /// CTA barriers in [`sync`](Self::sync).
    const BARRIERS: u32;
    /// All threads of the crew, and what they wrote.
    fn sync();
    /// Thread of the crew.
    fn thread(place: &Place<'_>) -> u32;
    /// The part of a tile of keys that the crew copies.
    fn part(place: &Place<'_>) -> u32;
}

/// Each warp has its rows; all threads copy.
pub struct Rows;

/// Each warp has its keys, and copies them itself: warps don't wait for each other.
pub struct Keys;

/// Each warp has its columns of the output, and its keys for the scores; all threads copy.
pub struct Columns;

/// Each warp has its rows; a warpgroup of its own copies, and tells the others through rings (sm_90a).
pub struct RowsProducer;

/// As [`RowsProducer`], and warpgroups have their columns of the output.
pub struct ColumnsProducer;

macro_rules! producer {
    ($crew:ident $sharing:ident) => {
        impl Crew for $crew {
            const SHARING: Sharing = Sharing::$sharing;
            const IS_PRODUCER: bool = true;
            const BARRIERS: u32 = 0;

            #[inline(always)]
            fn sync() {}

            #[inline(always)]
            fn thread(place: &Place<'_>) -> u32 {
                place.thread
            }

            #[inline(always)]
            fn part(_: &Place<'_>) -> u32 {
                0
            }
        }
    };
}
producer!(RowsProducer Rows);
producer!(ColumnsProducer Columns);

macro_rules! whole_block {
    ($crew:ident) => {
        impl Crew for $crew {
            const SHARING: Sharing = Sharing::$crew;
            const BARRIERS: u32 = 1;

            #[inline(always)]
            fn sync() {
                sync::cta_sync();
            }

            #[inline(always)]
            fn thread(place: &Place<'_>) -> u32 {
                place.thread
            }

            #[inline(always)]
            fn part(_: &Place<'_>) -> u32 {
                0
            }
        }
    };
}
whole_block!(Rows);
whole_block!(Columns);

impl Crew for Keys {
    const SHARING: Sharing = Sharing::Keys;
    const BARRIERS: u32 = 0;

    #[inline(always)]
    fn sync() {
        sync::warp_sync();
    }

    #[inline(always)]
    fn thread(place: &Place<'_>) -> u32 {
        place.lane
    }

    #[inline(always)]
    fn part(place: &Place<'_>) -> u32 {
        place.warp
    }
}

/// One instance.
pub trait ServingConfig: Config<Element: Scalar> + Sized {
    /// What keys and values are.
    type Cached: Cached<Self>;
    /// How warps share the work.
    type Crew: Crew;
}

/// Compile-time facts that follow from a [`ServingConfig`].
pub trait ServingExt: ServingConfig + ConfigExt {
    /// Keys of a tile that a crew copies.
    const PART_KEYS: u32 = part_keys::<Self>();
    /// Bytes of a row of K in shared memory.
    const K_ROW_BYTES: u32 = Self::TILE.head_dim_qk * Self::TILE.kv_dtype.bytes();
    /// Bytes of a row of V in shared memory.
    const CACHED_V_ROW_BYTES: u32 = Self::TILE.head_dim_v * Self::TILE.kv_dtype.bytes();
    /// Copy of a crew's part of a K tile.
    const K_PART: LoadShape = part_shape::<Self>(Self::K_ROW_BYTES);
    /// Copy of a crew's part of a V tile.
    const V_PART: LoadShape = part_shape::<Self>(Self::CACHED_V_ROW_BYTES);
    /// Warps that share rows have a part of the keys each, and of all columns their part's sums.
    const JOINS: bool = matches!(<Self::Crew as Crew>::SHARING, Sharing::Keys);
    /// Values are columns of keys.
    const LATENT: bool = matches!(<Self::Crew as Crew>::SHARING, Sharing::Columns);
    /// Warps that share rows and columns have the sums of their parts of the keys, which make the rows'.
    const ADDS_PARTS: bool = Self::LATENT && Self::TILE.key_splits > 1;
    /// The types agree with the tile shape; forced by every instance.
    const FITS: () = {
        let () = Self::CONSISTENT;
        let few = Self::K_PART.row_steps() as usize <= MAX_ROW_STEPS;
        assert!(few || <Self::Crew as Crew>::IS_PRODUCER);
        assert!(Self::K_PART.is_whole() && Self::V_PART.is_whole());
        // One thread has the same rows of both.
        assert!(Self::K_PART.row_steps() == Self::V_PART.row_steps());
        assert!(Self::TILE.latent == Self::LATENT);
        assert!(match <Self::Crew as Crew>::SHARING {
            Sharing::Rows => Self::TILE.key_splits == 1,
            Sharing::Keys => Self::TILE.key_splits == Self::TILE.warps,
            Sharing::Columns => Self::TILE.warps.is_multiple_of(Self::TILE.key_splits),
        });
    };
}

impl<C: ServingConfig> ServingExt for C {}

const fn part_keys<C: ServingConfig>() -> u32 {
    match <C::Crew as Crew>::SHARING {
        Sharing::Rows | Sharing::Columns => C::TILE.block_n,
        Sharing::Keys => C::TILE.warp_keys(),
    }
}

const fn part_shape<C: ServingConfig>(row_bytes: u32) -> LoadShape {
    LoadShape {
        rows: part_keys::<C>(),
        row_bytes,
        element: C::TILE.kv_dtype.bytes(),
        threads: match <C::Crew as Crew>::SHARING {
            _ if <C::Crew as Crew>::IS_PRODUCER => WARPGROUP,
            Sharing::Rows | Sharing::Columns => C::TILE.threads(),
            Sharing::Keys => 32,
        },
    }
}

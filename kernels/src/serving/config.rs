//! What distinguishes one instance from another.

use super::place::Place;
use crate::attention::sm80::config::{Config, ConfigExt};
use crate::element::Scalar;
use crate::ptx::sync;
use crate::tile::gather::MAX_ROW_STEPS;
use crate::tile::load::LoadShape;
use flashtile_abi::Sharing;

/// The threads that copy a tile of keys together, and wait for it together.
pub trait Crew {
    /// How warps share the work.
    const SHARING: Sharing;
    /// CTA barriers in [`sync`](Self::sync).
    const BARRIERS: u32;
    /// All threads of the crew, and what they wrote.
    fn sync();
    /// Thread of the crew.
    fn thread(place: &Place<'_>) -> u32;
    /// The crew's part of a tile of keys.
    fn part(place: &Place<'_>) -> u32;
}

/// Each warp has its rows; all threads copy.
pub struct Rows;

/// Each warp has its keys, and copies them itself: warps don't wait for each other.
pub struct Keys;

impl Crew for Rows {
    const SHARING: Sharing = Sharing::Rows;
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
pub trait ServingConfig: Config<Element: Scalar> {
    /// How warps share the work.
    type Crew: Crew;
}

/// Compile-time facts that follow from a [`ServingConfig`].
pub trait ServingExt: ServingConfig + ConfigExt + Sized {
    /// Keys of a crew's part of a tile.
    const PART_KEYS: u32 = Self::TILE.warp_keys();
    /// Copy of a crew's part of a K tile.
    const K_PART: LoadShape = part_shape::<Self>(Self::QK_ROW_BYTES);
    /// Copy of a crew's part of a V tile.
    const V_PART: LoadShape = part_shape::<Self>(Self::V_ROW_BYTES);
    /// Rows that a warp owns are the block's alone, or those of all its warps.
    const WARPS_SHARE_ROWS: bool = matches!(<Self::Crew as Crew>::SHARING, Sharing::Keys);
    /// The types agree with the tile shape; forced by every instance.
    const FITS: () = {
        let () = Self::CONSISTENT;
        assert!(Self::K_PART.row_steps() as usize <= MAX_ROW_STEPS);
        // One thread has the same rows of both.
        assert!(Self::K_PART.row_steps() == Self::V_PART.row_steps());
        assert!(
            Self::TILE.key_splits
                == if Self::WARPS_SHARE_ROWS {
                    Self::TILE.warps
                } else {
                    1
                }
        );
    };
}

impl<C: ServingConfig> ServingExt for C {}

const fn part_shape<C: ServingConfig>(row_bytes: u32) -> LoadShape {
    LoadShape {
        rows: C::TILE.warp_keys(),
        row_bytes,
        element: C::TILE.dtype.bytes(),
        threads: match <C::Crew as Crew>::SHARING {
            Sharing::Rows => C::TILE.threads(),
            Sharing::Keys => 32,
        },
    }
}

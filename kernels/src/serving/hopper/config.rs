//! What distinguishes one instance from another.

use crate::attention::sm80::config::Config;
use crate::attention::sm90::config::{self as engine, Arithmetic, Launch};
use crate::element::Element;
use crate::serving::config::ServingConfig;
use flashtile_abi::ServingParams;

/// One instance: a serving kernel, and the engine that makes its products.
pub trait HopperServing: ServingConfig {
    /// Arithmetic of the engine.
    type Arithmetic: Arithmetic<Self::Engine, Scales = ()>;
    /// Tiles, rings and products of the sm_90a tier.
    type Engine: engine::Config<
            Params = ServingParams,
            Arithmetic = Self::Arithmetic,
            Scores = <Self as Config>::Scores,
            Output = <Self as Config>::Output,
        >;
}

impl Launch for ServingParams {
    #[inline(always)]
    fn exponent_scale(&self) -> f32 {
        self.exponent_scale
    }
}

/// Both sides of an instance mean the same; forced by every instance.
pub const fn check<C: HopperServing>() {
    use engine::{Config as _, ConfigExt as _};
    let () = C::Engine::CONSISTENT;
    let (ours, engine) = (<C as Config>::TILE, C::Engine::TILE);
    assert!(ours.block_m == engine.block_m && ours.block_n == engine.block_n);
    assert!(ours.head_dim_qk == engine.head_dim_qk && ours.head_dim_v == engine.head_dim_v);
    assert!(<C as Config>::Element::DTYPE as u32 == engine.dtype as u32);
    assert!(!C::Engine::TRANSPOSES);
    // Warps of different warpgroups may share rows: those of one have 16 each, as if each computed alone.
    assert!(ours.key_splits == 1 && ours.m_frags() == 1);
    assert!(ours.latent == engine.latent && ours.v_splits == engine.v_splits);
    assert!(ours.latent || ours.v_splits == 1);
}

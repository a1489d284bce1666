//! What happens to a score between Q * K^T and the softmax.

use crate::ptx::math;
use crate::tile::reg::AccumTile;
use flashtile_abi::{AttentionParams, ScoreModKind};

/// A function of single scores.
pub trait ScoreMod {
    /// Its name on both sides of a launch.
    const KIND: ScoreModKind;
    /// Applies it to every score of a tile. `relative`: capped scores are good to a few units in their own last place; else to a few in
    /// that of the cap, which probabilities of 16 bits and less cannot tell if the cap is at most [`flashtile_abi::params::WIDEST_QUICK_CAP`].
    fn apply<S: AccumTile>(scores: &mut S, params: &AttentionParams, relative: bool);
}

/// Scores as they are.
pub struct None;

/// tanh(score * cap_scale); `exponent_scale` holds the cap.
pub struct Softcap;

/// [`Softcap`] if the parameters ask for it, else [`None`]: for kernels whose speed is not the point.
pub struct OptionalSoftcap;

impl ScoreMod for None {
    const KIND: ScoreModKind = ScoreModKind::None;

    #[inline(always)]
    fn apply<S: AccumTile>(_: &mut S, _: &AttentionParams, _: bool) {}
}

impl ScoreMod for Softcap {
    const KIND: ScoreModKind = ScoreModKind::Softcap;

    #[inline(always)]
    fn apply<S: AccumTile>(scores: &mut S, params: &AttentionParams, relative: bool) {
        // One branch for all.
        if relative {
            replace(scores, |score| tanh(score * params.cap_scale));
        } else {
            replace(scores, |score| quick_tanh(score, params.cap_scale));
        }
    }
}

/// Replaces every score of a tile.
#[inline(always)]
pub fn replace<S: AccumTile>(scores: &mut S, f: impl Fn(f32) -> f32) {
    for m in 0..S::M_FRAGS {
        for n in 0..S::N_FRAGS {
            for score in scores.frag_mut(m, n) {
                *score = f(*score);
            }
        }
    }
}

impl ScoreMod for OptionalSoftcap {
    const KIND: ScoreModKind = ScoreModKind::OptionalSoftcap;

    #[inline(always)]
    fn apply<S: AccumTile>(scores: &mut S, params: &AttentionParams, relative: bool) {
        if params.cap_scale != 0.0 {
            Softcap::apply(scores, params, relative);
        }
    }
}

/// tanh(x) to a few units in f32's last place, where `tanh.approx.f32` has 11 bits: an error of the
/// score is multiplied by the cap (often 50) and then by the probability.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    // Near 0, where the form below cancels: x + x^3 p(x^2), p fitted on |x| <= 0.6 (relative 1e-8).
    const P: [f32; 5] = [
        -0.333_333_3,
        0.133_329_24,
        -0.053_875_137,
        0.021_116_208,
        -0.006_276_380_3,
    ];
    let u = x * x;
    let mut p = P[4];
    for i in (0..4).rev() {
        p = math::fma(p, u, P[i]);
    }
    let near = math::fma(x * u, p, x);
    // Elsewhere: 1 - 2 / (1 + e^2|x|). e^2|x| = inf gives 1.
    let magnitude = f32::from_bits(x.to_bits() & 0x7fff_ffff);
    let e = math::ex2(magnitude * (2.0 * core::f32::consts::LOG2_E));
    let far = math::fma(-2.0, math::rcp_approx(1.0 + e), 1.0);
    let far = f32::from_bits(far.to_bits() | (x.to_bits() & 0x8000_0000));
    if magnitude < 0.6 { near } else { far }
}

/// tanh(x * scale) to 6 * 2^-23, absolute: 1 - 2 / (1 + e^2x), which cancels near 0. e^2x = inf gives 1, e^2x = 0 gives -1.
#[inline(always)]
fn quick_tanh(x: f32, scale: f32) -> f32 {
    let e = math::ex2(x * (scale * (2.0 * core::f32::consts::LOG2_E)));
    math::fma(-2.0, math::rcp_approx(1.0 + e), 1.0)
}

//! Attention kernels. A kernel is wiring; what both tiers share is here: [`mask`] says which keys, [`softmax`] keeps the
//! row statistics, [`score_mod`] changes scores. [`sm80`] and [`sm90`] hold the tiers, each with its entry points.

pub mod mask;
pub mod score_mod;
pub mod sm80;
pub mod sm90;
pub mod softmax;

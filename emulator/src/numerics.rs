//! Which hardware's arithmetic a launch has.

use std::fmt;
use std::str::FromStr;

/// The arithmetic of what PTX leaves open. Every choice is a function of the operands alone: two runs give the same
/// bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Numerics {
    /// How `mma` adds products.
    pub tensor_cores: TensorCores,
    /// With a seed, `ex2.approx`, `rcp.approx`, `lg2.approx` and `tanh.approx` of f32 are off by as much as the manual
    /// allows, in a direction and by an amount that seed, function and operand decide
    /// ([`semantics::special::perturb`](crate::semantics::special::perturb)). Without one, they are the nearest f32.
    pub perturb: Option<u64>,
}

impl fmt::Display for Numerics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.tensor_cores)?;
        match self.perturb {
            Some(seed) => write!(f, ", perturbed with seed {seed}"),
            None => Ok(()),
        }
    }
}

/// How `mma` adds products of floating-point numbers. Integer products are exact in all of them.
///
/// The models of hardware are those of MMA-Sim (Xie and others, arXiv 2511.10909), which its authors checked against
/// hardware bit for bit. They are written down in [`semantics::mma::fused`](crate::semantics::mma::fused).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TensorCores {
    /// One fused multiply-add in f32 after the other, rounded to nearest: more accurate than hardware.
    #[default]
    Fast,
    /// An A100's; 8-bit formats, which it has not, as on Ada.
    Ampere,
    /// An H100's.
    Hopper,
}

impl TensorCores {
    /// All of them.
    pub const ALL: [TensorCores; 3] = [TensorCores::Fast, TensorCores::Ampere, TensorCores::Hopper];

    /// Its name, which [`FromStr`] takes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            TensorCores::Fast => "fast",
            TensorCores::Ampere => "ampere",
            TensorCores::Hopper => "hopper",
        }
    }
}

impl fmt::Display for TensorCores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// There are no such tensor cores.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no numerics model; there are `fast`, `ampere` and `hopper`")]
pub struct UnknownTensorCores(String);

impl FromStr for TensorCores {
    type Err = UnknownTensorCores;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        TensorCores::ALL
            .into_iter()
            .find(|cores| cores.name() == name)
            .ok_or_else(|| UnknownTensorCores(name.to_owned()))
    }
}

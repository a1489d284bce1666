//! From a problem to a plan: checks, the choice of a kernel, the parameters.

mod band;
mod choose;
mod hopper;
mod launch;
mod scales;
#[cfg(test)]
mod tests;
mod validate;

use flashtile_abi::{
    Arch, AttentionParams, Band, DType, LseView, Schedule, TensorView, Variant,
    params::flags::{NEGATE_Q, OUT_F16, OUT_F32, WIDE_CAP},
};

use crate::{
    device::{DeviceInfo, LaunchConfig},
    error::{Error, Result},
    layout::TensorLayout,
    problem::{ArchChoice, Problem, Shape},
};

pub(crate) use band::{band, band_of};
pub(crate) use choose::supports;
pub use hopper::Obstacle;
pub(crate) use launch::check_pointer;
pub use launch::{KernelParams, Pointers, Prepared};
pub(crate) use validate::{MAX_GRID, check_cap, check_out_dtype, check_scale};

/// Checks a problem without regard to devices and kernels, and returns its sizes.
pub(crate) fn check(problem: &Problem) -> Result<Shape> {
    validate::softmax(problem)?;
    validate::check_shapes(problem)
}

/// What a launch will do, decided once and reusable for every launch of the same problem on
/// devices of the same kind: the kernel, its grid, and its parameters save the addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    problem: Problem,
    chosen: Chosen,
    /// What is launched if an address is none that the chosen kernel takes.
    other: Option<Chosen>,
    /// Why the sm_90a tier was not chosen.
    obstacle: Option<Obstacle>,
}

/// A kernel, and how it is launched.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Chosen {
    variant: &'static Variant,
    config: LaunchConfig,
    params: AttentionParams,
    /// Of the sm_90a tier.
    schedule: Schedule,
}

impl Problem {
    /// Checks the problem and decides how to compute it on such a device. Touches no device.
    ///
    /// # Errors
    /// [`Error::BadInput`] names the argument that is wrong; [`Error::NoVariant`] what no kernel
    /// has; [`Error::NoDevice`] a device that cannot run the kernels.
    pub fn plan(&self, device: &DeviceInfo) -> Result<Plan> {
        let shape = validate::check_shapes(self)?;
        let softmax = validate::softmax(self)?;
        let choose = |arch| choose::choose(self, softmax.capped, device, arch);
        let launched = |variant| Chosen::new(self, &shape, &softmax, variant, device);
        let of_arch = |arch| launched(choose(arch)?);
        let obstacle = hopper::obstacle(self);
        let plan = |chosen, other, obstacle| Plan {
            problem: *self,
            chosen,
            other,
            obstacle,
        };
        match self.arch {
            ArchChoice::Sm80 => Ok(plan(of_arch(Arch::Sm80)?, None, None)),
            ArchChoice::Sm90a => {
                // A kernel that does not exist is the better reason.
                let variant = choose(Arch::Sm90a)?;
                match obstacle {
                    Some(obstacle) => Err(obstacle.error()),
                    None => Ok(plan(launched(variant)?, None, None)),
                }
            }
            ArchChoice::Auto => match (choose(Arch::Sm90a), obstacle) {
                (Ok(variant), None) => Ok(plan(launched(variant)?, of_arch(Arch::Sm80).ok(), None)),
                (hopper, obstacle) => {
                    let both =
                        |error| choose::name_both(error, self, softmax.capped, device, obstacle);
                    let chosen = of_arch(Arch::Sm80).map_err(both)?;
                    let obstacle = match hopper {
                        Ok(_) => obstacle,
                        Err(_) => choose::driver_obstacle(self, softmax.capped, device),
                    };
                    Ok(plan(chosen, None, obstacle))
                }
            },
        }
    }

    /// As [`Problem::plan`], with this kernel and no other.
    ///
    /// # Errors
    /// As [`Problem::plan`]; [`Error::NoVariant`] if the kernel does not compute the problem.
    pub fn plan_variant(&self, device: &DeviceInfo, variant: &'static Variant) -> Result<Plan> {
        let shape = validate::check_shapes(self)?;
        let softmax = validate::softmax(self)?;
        choose::computes(self, softmax.capped, device, variant)?;
        if variant.arch == Arch::Sm90a
            && let Some(obstacle) = hopper::obstacle(self)
        {
            return Err(obstacle.error());
        }
        Ok(Plan {
            problem: *self,
            chosen: Chosen::new(self, &shape, &softmax, variant, device)?,
            other: None,
            obstacle: None,
        })
    }
}

impl Chosen {
    fn new(
        problem: &Problem,
        shape: &Shape,
        softmax: &validate::Softmax,
        variant: &'static Variant,
        device: &DeviceInfo,
    ) -> Result<Self> {
        let schedule = match variant.arch {
            Arch::Sm80 => Schedule::default(),
            Arch::Sm90a => hopper::schedule(problem, shape, variant, device)?,
        };
        // Rows of a head, or of the heads that share tiles.
        let rows = (shape.seqlen_q as u64) << schedule.pack;
        let m_blocks = rows.div_ceil(u64::from(variant.tile.block_m));
        let blocks = match variant.arch {
            Arch::Sm80 => validate::grid_blocks(shape, m_blocks)?,
            Arch::Sm90a => hopper::blocks(&schedule, device),
        };

        let element = problem.dtype.bytes();
        let mut flags = 0;
        if softmax.negate_q {
            flags |= NEGATE_Q;
        }
        if softmax.wide_cap && problem.dtype != DType::F32 {
            flags |= WIDE_CAP;
        }
        match (problem.dtype, problem.out_element()) {
            (_, DType::F32) => flags |= OUT_F32,
            (DType::E4m3, DType::F16) => flags |= OUT_F16,
            _ => {}
        }
        let count = |argument, n: usize| {
            u32::try_from(n)
                .map_err(|_| Error::bad(argument, "fewer than 2^32 heads", n.to_string()))
        };
        let params = AttentionParams {
            q: view(&problem.q, element),
            k: view(&problem.k, element),
            v: view(&problem.v, element),
            out: view(&problem.out, problem.out_element().bytes()),
            lse: lse_view(shape.heads_q, shape.seqlen_q),
            band: band(problem),
            seqlen_q: shape.seqlen_q as i32,
            m_blocks: m_blocks as u32,
            heads_q: count("q", shape.heads_q)?,
            q_per_kv: count("q", shape.heads_q / shape.heads_kv)?,
            head_dim_qk: shape.head_dim_qk as u32,
            head_dim_v: shape.head_dim_v as u32,
            exponent_scale: softmax.exponent_scale,
            cap_scale: softmax.cap_scale,
            flags,
        };
        Ok(Self {
            variant,
            config: LaunchConfig {
                grid: [blocks, 1, 1],
                block: [variant.threads, 1, 1],
                shared_bytes: variant.shared_bytes,
                cluster: schedule.cluster.max(1),
            },
            params,
            schedule,
        })
    }
}

/// Byte strides of log-sum-exps [batch, heads, rows]. Where they overflow, the log-sum-exp was refused, if it is wanted at all.
pub(crate) fn lse_view(heads: usize, rows: usize) -> LseView {
    let head_stride = rows as i64 * 4;
    LseView {
        ptr: 0,
        batch_stride: head_stride.wrapping_mul(heads as i64),
        head_stride,
    }
}

/// Byte strides of a checked layout; 0 for a dimension that never steps.
pub(crate) fn view(layout: &TensorLayout, element_bytes: u32) -> TensorView {
    let stride = |dim: usize| {
        if layout.shape[dim] > 1 {
            layout.strides[dim].wrapping_mul(i64::from(element_bytes))
        } else {
            0
        }
    };
    TensorView {
        ptr: 0,
        batch_stride: stride(0),
        row_stride: stride(1),
        head_stride: stride(2),
    }
}

impl Plan {
    /// The problem.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The kernel. Another one may be launched if an address is none that it takes ([`Plan::prepare`]).
    pub fn variant(&self) -> &'static Variant {
        self.chosen.variant
    }

    /// The same for queries and keys that lie elsewhere in longer sequences: `band` is what their masks amount to there. A problem
    /// without causal mask and window has a schedule of its own, and keeps its band.
    pub(crate) fn with_band(mut self, band: Band) -> Self {
        debug_assert!(self.problem.is_masked());
        for chosen in std::iter::once(&mut self.chosen).chain(&mut self.other) {
            chosen.params.band = band;
        }
        self
    }

    /// The same for log-sum-exps that are some rows of a tensor [batch, heads_q, rows].
    pub(crate) fn with_lse_rows(mut self, rows: usize) -> Self {
        let heads = self.problem.q.shape[2];
        for chosen in std::iter::once(&mut self.chosen).chain(&mut self.other) {
            chosen.params.lse = lse_view(heads, rows);
        }
        self
    }

    /// Why the kernel is not of the sm_90a tier, although device and problem have one, and nobody asked for another: how a tensor lies
    /// in memory, or a driver that is too old.
    pub fn obstacle(&self) -> Option<&Obstacle> {
        self.obstacle.as_ref()
    }

    /// Grid, block, cluster and dynamic shared memory.
    pub fn config(&self) -> &LaunchConfig {
        &self.chosen.config
    }

    /// Whether there is nothing to compute (no queries or no batch): [`Plan::launch`] then
    /// returns without touching the device.
    pub fn is_empty(&self) -> bool {
        self.chosen.config.grid[0] == 0
    }

    /// Bytes of scratch memory a launch needs, aligned to 256. 0 for every kernel there is so far.
    pub fn workspace_bytes(&self) -> usize {
        0
    }

    /// The kernel's parameters, with addresses 0 and no alignment flags.
    pub fn template(&self) -> &AttentionParams {
        &self.chosen.params
    }

    /// How the blocks of a kernel of the sm_90a tier share its work.
    pub fn schedule(&self) -> Option<&Schedule> {
        (self.chosen.variant.arch == Arch::Sm90a).then_some(&self.chosen.schedule)
    }
}

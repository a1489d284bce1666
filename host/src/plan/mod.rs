//! From a problem to a launch: checks, the choice of a kernel, the parameters.

mod band;
mod choose;
mod hopper;
mod scales;
#[cfg(test)]
mod tests;
mod validate;

use flashtile_abi::{
    Arch, AttentionParams, Band, DType, HopperParams, LseView, Schedule, TensorMap, TensorView,
    Variant,
    params::flags::{
        K_ALIGNED, NEGATE_Q, OUT_ALIGNED, OUT_F16, OUT_F32, Q_ALIGNED, V_ALIGNED, WIDE_CAP,
    },
};

use crate::{
    device::{Device, DeviceInfo, LaunchConfig, Stream, TensorMapSpec},
    error::{Error, Result},
    layout::TensorLayout,
    problem::{ArchChoice, Problem, Shape},
};

pub(crate) use band::{band, band_of};
pub(crate) use choose::supports;
pub use hopper::Obstacle;
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

/// A launch in full.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prepared {
    /// The kernel.
    pub variant: &'static Variant,
    /// Grid, block, cluster and dynamic shared memory.
    pub config: LaunchConfig,
    /// The kernel's only parameter.
    pub params: KernelParams,
}

/// What a kernel is passed by value.
#[derive(Clone, Copy, Debug, PartialEq)]
// A launch has one, on the stack.
#[expect(clippy::large_enum_variant)]
pub enum KernelParams {
    /// Of the sm_80 tier.
    Sm80(AttentionParams),
    /// Of the sm_90a tier.
    Sm90a(HopperParams),
}

impl KernelParams {
    /// The bytes a launch passes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sm80(params) => params.as_bytes(),
            Self::Sm90a(params) => params.as_bytes(),
        }
    }
}

/// Device addresses of one launch. Each is the address of element [0, 0, 0, 0] (which is not the
/// lowest one if strides are negative). A tensor without elements may have address 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pointers {
    /// Queries.
    pub q: u64,
    /// Keys.
    pub k: u64,
    /// Values.
    pub v: u64,
    /// Output.
    pub out: u64,
    /// Log-sum-exp [batch, heads_q, seqlen_q], contiguous f32. Needed exactly if the problem wants it.
    pub lse: Option<u64>,
    /// Scales of q: contiguous f32, positive and finite, as many as [`Problem::scales`] says ([`ScaleLayout::shape`]). 0 exactly
    /// if there are none.
    ///
    /// [`ScaleLayout::shape`]: crate::ScaleLayout::shape
    pub q_scale: u64,
    /// Scales of k, as those of q.
    pub k_scale: u64,
    /// Scales of v, as those of q.
    pub v_scale: u64,
    /// At least [`Plan::workspace_bytes`] bytes; 0 if that is 0.
    pub workspace: u64,
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

    /// The parameters of the kernel that is launched for these addresses ([`Plan::variant_for`]), but for the scales and what the copy
    /// engine is told.
    ///
    /// # Errors
    /// [`Error::BadInput`] for an address that is 0 although the tensor has elements, is not a
    /// multiple of the element's size, or from which the tensor would leave the address space; for one that no kernel takes which the
    /// problem may have.
    pub fn params(&self, pointers: &Pointers) -> Result<AttentionParams> {
        scales::views(&self.problem, pointers)?;
        self.params_of(self.chosen_for(pointers)?, pointers)
    }

    /// Everything that a launch passes to the device, for these addresses. Where the chosen kernel is of the sm_90a tier, and an
    /// address is none that the copy engine takes, it is the sm_80 kernel's launch, unless the problem asks for the tier.
    ///
    /// # Errors
    /// As [`Plan::params`]; what the device says of the tensors.
    pub fn prepare(&self, device: &dyn Device, pointers: &Pointers) -> Result<Prepared> {
        self.prepare_with(pointers, |spec| device.tensor_map(spec))
    }

    /// As [`Plan::prepare`], with tensor maps from elsewhere.
    ///
    /// # Errors
    /// As [`Plan::prepare`], and what `tensor_map` says.
    pub fn prepare_with(
        &self,
        pointers: &Pointers,
        tensor_map: impl Fn(&TensorMapSpec) -> Result<TensorMap>,
    ) -> Result<Prepared> {
        let chosen = self.chosen_for(pointers)?;
        let params = self.params_of(chosen, pointers)?;
        let [q_scale, k_scale, v_scale] = scales::views(&self.problem, pointers)?;
        let params = match chosen.variant.arch {
            Arch::Sm80 => KernelParams::Sm80(params),
            Arch::Sm90a => {
                let (problem, schedule) = (&self.problem, chosen.schedule);
                let specs = hopper::tensor_maps(problem, chosen.variant, &schedule, pointers);
                let [q_map, k_map, v_map, out_map] = specs.map(|spec| tensor_map(&spec));
                KernelParams::Sm90a(HopperParams {
                    q_map: q_map?,
                    k_map: k_map?,
                    v_map: v_map?,
                    out_map: out_map?,
                    q_scale,
                    k_scale,
                    v_scale,
                    attention: params,
                    schedule,
                })
            }
        };
        Ok(Prepared {
            variant: chosen.variant,
            config: chosen.config,
            params,
        })
    }

    /// The kernel that is launched for these addresses.
    ///
    /// # Errors
    /// As [`Plan::prepare`], of the addresses' alignment.
    pub fn variant_for(&self, pointers: &Pointers) -> Result<&'static Variant> {
        Ok(self.chosen_for(pointers)?.variant)
    }

    fn chosen_for(&self, pointers: &Pointers) -> Result<&Chosen> {
        let obstacle = match self.chosen.variant.arch {
            Arch::Sm80 => None,
            Arch::Sm90a => hopper::address_obstacle(&self.problem, pointers),
        };
        match obstacle {
            None => Ok(&self.chosen),
            Some(obstacle) => self.other.as_ref().ok_or_else(|| match self.problem.arch {
                ArchChoice::Auto => obstacle.error_of_the_only_tier(),
                ArchChoice::Sm80 | ArchChoice::Sm90a => obstacle.error(),
            }),
        }
    }

    /// How the blocks of a kernel of the sm_90a tier share its work.
    pub fn schedule(&self) -> Option<&Schedule> {
        (self.chosen.variant.arch == Arch::Sm90a).then_some(&self.chosen.schedule)
    }

    fn params_of(&self, chosen: &Chosen, pointers: &Pointers) -> Result<AttentionParams> {
        let problem = &self.problem;
        let element = problem.dtype.bytes();
        let out_element = problem.out_element().bytes();
        let mut params = chosen.params;
        let tensors = [
            (
                "q",
                &problem.q,
                element,
                pointers.q,
                &mut params.q,
                Q_ALIGNED,
            ),
            (
                "k",
                &problem.k,
                element,
                pointers.k,
                &mut params.k,
                K_ALIGNED,
            ),
            (
                "v",
                &problem.v,
                element,
                pointers.v,
                &mut params.v,
                V_ALIGNED,
            ),
            (
                "out",
                &problem.out,
                out_element,
                pointers.out,
                &mut params.out,
                OUT_ALIGNED,
            ),
        ];
        for (argument, layout, bytes, ptr, view, aligned) in tensors {
            let (low, high) = layout.offsets().unwrap_or_default();
            check_pointer(argument, layout.is_empty(), ptr, bytes, low, high)?;
            view.ptr = ptr;
            let numbers = [
                ptr,
                view.batch_stride as u64,
                view.row_stride as u64,
                view.head_stride as u64,
            ];
            if numbers.iter().all(|x| x.is_multiple_of(16)) {
                params.flags |= aligned;
            }
        }
        match (problem.lse, pointers.lse) {
            (true, Some(ptr)) => {
                let elements = problem.lse_shape().iter().product::<usize>() as i64;
                check_pointer("lse", elements == 0, ptr, 4, 0, (elements - 1).max(0))?;
                params.lse.ptr = ptr;
            }
            (true, None) => {
                return Err(Error::bad(
                    "lse",
                    "an address, since the problem wants it",
                    "none",
                ));
            }
            (false, Some(ptr)) => {
                return Err(Error::bad(
                    "lse",
                    "no address, since the problem does not want it",
                    format!("{ptr:#x}"),
                ));
            }
            (false, None) => {}
        }
        Ok(params)
    }

    /// Enqueues the kernel on a stream. Does not allocate and does not wait, so that the call can
    /// be captured in a CUDA graph (call [`Device::load`] beforehand: the first launch of a kernel
    /// loads its module).
    ///
    /// # Errors
    /// As [`Plan::params`], and whatever the device says. A kernel's own faults may surface only
    /// at a later call, as always on a GPU.
    ///
    /// # Safety
    /// Every address must be that of device memory which holds the tensor's whole extent, stays
    /// allocated until the kernel has finished, and is neither written (q, k, v and their scales) nor accessed at all
    /// (out, lse) by anything else meanwhile; out and lse overlap no other tensor. `stream` must
    /// be a live stream of the device. The `EmulatorDevice` checks all
    /// accesses itself and needs none of this.
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        pointers: &Pointers,
    ) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let Prepared {
            variant,
            config,
            params,
        } = self.prepare(device, pointers)?;
        let tracks = device.tracks_writes();
        if tracks {
            self.each_output(pointers, |address, bytes, _| {
                // SAFETY: the caller vouches for the outputs' memory.
                unsafe { device.forget(address, bytes) }
            })?;
        }
        // SAFETY: the caller vouches for the addresses and the stream; the parameters are those of
        // the variant's entry point, and the plan's geometry keeps the kernel within the tensors.
        unsafe { device.launch(variant, &config, params.as_bytes(), stream)? };
        if tracks {
            self.each_output(pointers, |address, bytes, element| {
                match device.first_unwritten(address, bytes)? {
                    None => Ok(()),
                    Some(at) => {
                        let message =
                            format!("{} was never written", element(at.saturating_sub(address)));
                        Err(device.unwritten(variant, message))
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Calls `f` with every contiguous range of the outputs: address, bytes, and what names the
    /// element at a byte of it.
    fn each_output(
        &self,
        pointers: &Pointers,
        mut f: impl FnMut(u64, usize, &dyn Fn(u64) -> String) -> Result<()>,
    ) -> Result<()> {
        let problem = &self.problem;
        let layout = &problem.out;
        let bytes = i64::from(problem.out_element().bytes());
        let [batch, rows, heads, dim] = layout.shape;
        let [of_batch, of_row, of_head, _] = layout.strides;
        for (b, i, h) in
            (0..batch).flat_map(|b| (0..rows).flat_map(move |i| (0..heads).map(move |h| (b, i, h))))
        {
            let offset = b as i64 * of_batch + i as i64 * of_row + h as i64 * of_head;
            let address = pointers.out.wrapping_add_signed(offset * bytes);
            let name = |at: u64| format!("out[{b}, {i}, {h}, {}]", at / bytes as u64);
            f(address, dim * bytes as usize, &name)?;
        }
        if let Some(lse) = pointers.lse {
            let [batch, heads, rows] = problem.lse_shape();
            let strides = &self.chosen.params.lse;
            for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
                let offset = b as i64 * strides.batch_stride + h as i64 * strides.head_stride;
                let name = |at: u64| format!("lse[{b}, {h}, {}]", at / 4);
                f(lse.wrapping_add_signed(offset), rows * 4, &name)?;
            }
        }
        Ok(())
    }
}

/// Refuses an address from which a tensor cannot start.
pub(crate) fn check_pointer(
    argument: &'static str,
    is_empty: bool,
    ptr: u64,
    element_bytes: u32,
    low: i64,
    high: i64,
) -> Result<()> {
    if is_empty {
        return Ok(());
    }
    if ptr == 0 {
        return Err(Error::bad(argument, "a device address", "a null pointer"));
    }
    if !ptr.is_multiple_of(u64::from(element_bytes)) {
        return Err(Error::bad(
            argument,
            format!("an address that is a multiple of {element_bytes}"),
            format!("{ptr:#x}"),
        ));
    }
    let bytes = i128::from(element_bytes);
    let first = i128::from(ptr) + i128::from(low) * bytes;
    let end = i128::from(ptr) + (i128::from(high) + 1) * bytes;
    if first < 0 || end > i128::from(u64::MAX) {
        return Err(Error::bad(
            argument,
            "a tensor inside the 64-bit address space",
            format!("address {ptr:#x}, offsets {low} to {high} elements"),
        ));
    }
    Ok(())
}

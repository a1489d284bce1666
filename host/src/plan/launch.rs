//! From a plan and addresses to a launch.

use flashtile_abi::{
    Arch, AttentionParams, HopperParams, TensorMap, Variant,
    params::flags::{K_ALIGNED, OUT_ALIGNED, Q_ALIGNED, V_ALIGNED},
};

use super::{Chosen, Plan, hopper, scales};
use crate::{
    device::{Device, LaunchConfig, Stream, TensorMapSpec},
    error::{Error, Result},
    problem::ArchChoice,
};

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
    /// Scales of q: contiguous f32, positive and finite, as many as [`Problem::scales`](crate::Problem::scales) says ([`ScaleLayout::shape`]). 0 exactly
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

impl Plan {
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

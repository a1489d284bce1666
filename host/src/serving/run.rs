//! Attention over tensors in the host's memory, on a device.

use super::{
    inputs::ServingInputs,
    layout::CacheLayout,
    merge::{download, upload},
    plan::ServingPlan,
    pointers::ServingPointers,
    problem::ServingProblem,
};
use crate::{
    device::{Device, DeviceBuffer, Stream},
    error::Result,
    layout::TensorLayout,
    run::{Outputs, bytes_of, origin},
};

/// Computes attention on a device: checks everything, uploads, runs, downloads, and frees what it allocated. Rows of out and
/// log-sum-exp that belong to no query that counts are zero.
///
/// # Errors
/// Whatever [`ServingProblem::plan`], [`ServingProblem::check_metadata`] and [`ServingPlan::launch`] refuse, [`Error::BadInput`](crate::Error::BadInput) for
/// slices that are too short, and the device's own errors.
pub fn attention(
    device: &dyn Device,
    problem: &ServingProblem,
    inputs: &ServingInputs<'_>,
) -> Result<Outputs> {
    let plan = problem.plan(device.info())?;
    inputs.check(problem)?;
    let lse_bytes = 4 * problem.lse_shape().iter().product::<usize>();
    let out_bytes = bytes_of("out", &problem.out, problem.out_element().bytes())?;
    let mut outputs = Outputs {
        out: vec![0; out_bytes],
        lse: None,
    };
    let uploaded = Uploaded::new(device, problem, inputs)?;
    let out = DeviceBuffer::zeroed(device, out_bytes)?;
    let lse = match problem.lse {
        true => Some(DeviceBuffer::zeroed(device, lse_bytes)?),
        false => None,
    };
    let workspace = DeviceBuffer::uninitialized(device, plan.workspace_bytes())?;
    let pointers = ServingPointers {
        out: origin(&out, &problem.out, problem.out_element().bytes()),
        lse: lse.as_ref().map(DeviceBuffer::address),
        workspace: workspace.address(),
        ..uploaded.pointers(problem)
    };
    let rows = Rows {
        problem,
        inputs,
        pointers: &pointers,
    };
    let tracks = device.tracks_writes() && !plan.is_empty();
    if tracks {
        // SAFETY: the outputs were just allocated on this device, and no kernel runs.
        rows.each(|address, bytes, _| unsafe { device.forget(address, bytes) })?;
    }
    // SAFETY: every buffer is allocated on this device, holds its tensor's whole extent (inputs were checked, the others sized by it),
    // and is only read again after the device is idle.
    unsafe { plan.launch(device, Stream::DEFAULT, &pointers)? };
    device.synchronize()?;
    if tracks {
        rows.check_written(device, &plan)?;
    }
    out.read(&mut outputs.out)?;
    outputs.lse = lse.map(|lse| download(&lse)).transpose()?;
    Ok(outputs)
}

/// Inputs in device memory.
struct Uploaded<'d> {
    q: DeviceBuffer<'d>,
    k: DeviceBuffer<'d>,
    v: DeviceBuffer<'d>,
    q_starts: DeviceBuffer<'d>,
    q_used: DeviceBuffer<'d>,
    k_starts: DeviceBuffer<'d>,
    k_used: DeviceBuffer<'d>,
    table: DeviceBuffer<'d>,
    k_scale: DeviceBuffer<'d>,
    v_scale: DeviceBuffer<'d>,
    alibi: DeviceBuffer<'d>,
    sink: DeviceBuffer<'d>,
    bias: DeviceBuffer<'d>,
    mask: DeviceBuffer<'d>,
    ranges: DeviceBuffer<'d>,
}

impl<'d> Uploaded<'d> {
    /// Each as long as its tensor and no longer. The inputs have passed their checks.
    fn new(
        device: &'d dyn Device,
        problem: &ServingProblem,
        inputs: &ServingInputs<'_>,
    ) -> Result<Self> {
        let element = problem.dtype.bytes();
        let tensor = |argument, layout: &TensorLayout, bytes: &[u8], element| {
            DeviceBuffer::from_bytes(device, &bytes[..bytes_of(argument, layout, element)?])
        };
        let cache = |layout: &CacheLayout, bytes: &[u8]| {
            let span = layout.span().unwrap_or(0) * problem.kv_dtype.bytes() as usize;
            DeviceBuffer::from_bytes(device, &bytes[..span])
        };
        let empty = || DeviceBuffer::uninitialized(device, 0);
        let entries = problem
            .pages
            .and_then(|pages| pages.span(problem.batch))
            .unwrap_or(0);
        Ok(Self {
            q: tensor("q", &problem.q, inputs.q, element)?,
            k: cache(&problem.k, inputs.k)?,
            v: match problem.latent {
                true => empty()?,
                false => cache(&problem.v, inputs.v)?,
            },
            q_starts: upload(device, inputs.q_starts)?,
            q_used: upload(device, inputs.q_used)?,
            k_starts: upload(device, inputs.k_starts)?,
            k_used: upload(device, inputs.k_used)?,
            table: upload(device, &inputs.table[..entries])?,
            k_scale: upload(device, inputs.k_scale)?,
            v_scale: upload(device, inputs.v_scale)?,
            alibi: upload(device, inputs.alibi)?,
            sink: upload(device, inputs.sink)?,
            bias: match &problem.bias {
                Some(bias) => {
                    let bytes = problem.bias_element(bias.element).bytes();
                    tensor("bias", &bias.tensor(), inputs.bias, bytes)?
                }
                None => empty()?,
            },
            mask: match &problem.mask {
                Some(mask) => {
                    let bytes = mask.element_bytes();
                    tensor("mask", &mask.tensor(), inputs.mask, bytes)?
                }
                None => empty()?,
            },
            ranges: upload(device, inputs.ranges)?,
        })
    }

    /// Where they are; no outputs.
    fn pointers(&self, problem: &ServingProblem) -> ServingPointers {
        let element = problem.dtype.bytes();
        let cache = |buffer: &DeviceBuffer<'_>, layout: &CacheLayout| {
            let (low, _) = layout.offsets().unwrap_or_default();
            let first = (low as u64).wrapping_mul(u64::from(problem.kv_dtype.bytes()));
            buffer.address().wrapping_sub(first)
        };
        let maybe = |buffer: &DeviceBuffer<'_>, layout: Option<(TensorLayout, u32)>| {
            layout.map_or(0, |(layout, bytes)| origin(buffer, &layout, bytes))
        };
        let table = problem.pages.map(|pages| (pages.tensor(problem.batch), 4));
        let bias = problem.bias.map(|bias| {
            let bytes = problem.bias_element(bias.element).bytes();
            (bias.tensor(), bytes)
        });
        let mask = problem
            .mask
            .map(|mask| (mask.tensor(), mask.element_bytes()));
        ServingPointers {
            q: origin(&self.q, &problem.q, element),
            k: cache(&self.k, &problem.k),
            v: match problem.latent {
                true => 0,
                false => cache(&self.v, &problem.v),
            },
            q_starts: self.q_starts.address(),
            q_used: self.q_used.address(),
            k_starts: self.k_starts.address(),
            k_used: self.k_used.address(),
            table: maybe(&self.table, table),
            k_scale: self.k_scale.address(),
            v_scale: self.v_scale.address(),
            alibi: self.alibi.address(),
            sink: self.sink.address(),
            bias: maybe(&self.bias, bias),
            mask: maybe(&self.mask, mask),
            ranges: self.ranges.address(),
            ..ServingPointers::default()
        }
    }
}

/// Rows of the outputs that belong to queries that count.
struct Rows<'a> {
    problem: &'a ServingProblem,
    inputs: &'a ServingInputs<'a>,
    pointers: &'a ServingPointers,
}

impl Rows<'_> {
    /// Calls `f` with every contiguous range of them: address, bytes, and a name.
    fn each(&self, mut f: impl FnMut(u64, usize, &dyn Fn() -> String) -> Result<()>) -> Result<()> {
        let problem = self.problem;
        let bytes = problem.out_element().bytes() as usize;
        let [_, rows, heads, dim] = problem.out.shape;
        let [of_block, of_row, of_head, _] = problem.out.strides;
        for b in 0..problem.batch {
            let (first, count) = problem.q_rows(self.inputs, b);
            let block = match problem.q_lengths.starts {
                true => 0,
                false => b,
            };
            for i in first..first + count {
                for h in 0..heads {
                    let offset = block as i64 * of_block + i as i64 * of_row + h as i64 * of_head;
                    let offset = offset.wrapping_mul(bytes as i64);
                    let address = self.pointers.out.wrapping_add_signed(offset);
                    f(address, dim * bytes, &|| format!("out[{block}, {i}, {h}]"))?;
                    if let Some(lse) = self.pointers.lse {
                        let at = (block * heads + h) * rows + i;
                        let address = lse + 4 * at as u64;
                        f(address, 4, &|| format!("lse[{block}, {h}, {i}]"))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Refuses a launch that left some of them unwritten.
    fn check_written(&self, device: &dyn Device, plan: &ServingPlan) -> Result<()> {
        self.each(
            |address, bytes, name| match device.first_unwritten(address, bytes)? {
                None => Ok(()),
                Some(_) => {
                    let message = format!("{} was never written", name());
                    Err(device.unwritten(plan.variant(), message))
                }
            },
        )
    }
}

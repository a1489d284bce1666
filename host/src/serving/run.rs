//! Attention over tensors in the host's memory, on a device.

use super::{
    inputs::ServingInputs,
    merge::{download, upload},
    plan::ServingPlan,
    pointers::ServingPointers,
    problem::ServingProblem,
};
use crate::{
    device::{Device, DeviceBuffer, Stream},
    error::Result,
    extent::Extent,
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
        let has = problem.extents();
        let upload_bytes = |argument, extent: Option<Extent>, bytes| match extent {
            Some(extent) => DeviceBuffer::from_bytes(device, extent.of(argument, bytes)?),
            None => DeviceBuffer::uninitialized(device, 0),
        };
        let entries = has.table.map_or(0, |table| table.bytes() / 4);
        Ok(Self {
            q: upload_bytes("q", Some(has.q), inputs.q)?,
            k: upload_bytes("k", Some(has.k), inputs.k)?,
            v: upload_bytes("v", has.v, inputs.v)?,
            q_starts: upload(device, inputs.q_starts)?,
            q_used: upload(device, inputs.q_used)?,
            k_starts: upload(device, inputs.k_starts)?,
            k_used: upload(device, inputs.k_used)?,
            table: upload(device, &inputs.table[..entries])?,
            k_scale: upload(device, inputs.k_scale)?,
            v_scale: upload(device, inputs.v_scale)?,
            alibi: upload(device, inputs.alibi)?,
            sink: upload(device, inputs.sink)?,
            bias: upload_bytes("bias", has.bias, inputs.bias)?,
            mask: upload_bytes("mask", has.mask, inputs.mask)?,
            ranges: upload(device, inputs.ranges)?,
        })
    }

    /// Where they are; no outputs.
    fn pointers(&self, problem: &ServingProblem) -> ServingPointers {
        let has = problem.extents();
        let maybe = |buffer: &DeviceBuffer<'_>, extent: Option<Extent>| {
            extent.map_or(0, |extent| extent.origin(buffer.address()))
        };
        ServingPointers {
            q: has.q.origin(self.q.address()),
            k: has.k.origin(self.k.address()),
            v: maybe(&self.v, has.v),
            q_starts: self.q_starts.address(),
            q_used: self.q_used.address(),
            k_starts: self.k_starts.address(),
            k_used: self.k_used.address(),
            table: maybe(&self.table, has.table),
            k_scale: self.k_scale.address(),
            v_scale: self.v_scale.address(),
            alibi: self.alibi.address(),
            sink: self.sink.address(),
            bias: maybe(&self.bias, has.bias),
            mask: maybe(&self.mask, has.mask),
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

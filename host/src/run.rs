//! Attention over tensors in the host's memory.

use crate::{
    device::{Device, DeviceBuffer, Stream},
    error::{Error, Result},
    layout::TensorLayout,
    plan::Pointers,
    problem::Problem,
};

/// The inputs in the host's memory: little-endian elements of the problem's dtype.
///
/// Each slice of elements starts at the tensor's lowest one (which is element [0, 0, 0, 0] unless strides
/// are negative) and holds at least [`TensorLayout::span`] elements. Scales are as many as [`Problem::scales`] says, in the
/// order of [`ScaleLayout::shape`](crate::ScaleLayout::shape), positive and finite; none by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inputs<'a> {
    /// Queries.
    pub q: &'a [u8],
    /// Keys.
    pub k: &'a [u8],
    /// Values.
    pub v: &'a [u8],
    /// Scales of q.
    pub q_scale: &'a [f32],
    /// Scales of k.
    pub k_scale: &'a [f32],
    /// Scales of v.
    pub v_scale: &'a [f32],
}

/// The outputs in the host's memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    /// Output in the problem's layout and output dtype, little-endian, from the lowest element to
    /// the highest. Gaps between elements are zero.
    pub out: Vec<u8>,
    /// Log-sum-exp [batch, heads_q, seqlen_q], if the problem wants it.
    pub lse: Option<Vec<f32>>,
}

impl Inputs<'_> {
    /// The scales of q, k and v.
    pub(crate) fn scales(&self) -> [&[f32]; 3] {
        [self.q_scale, self.k_scale, self.v_scale]
    }

    /// Refuses slices that are shorter than the tensors, and scales that are not what they must be.
    pub(crate) fn check(&self, problem: &Problem) -> Result<()> {
        let tensors = [
            ("q", &problem.q, self.q),
            ("k", &problem.k, self.k),
            ("v", &problem.v, self.v),
        ];
        for (argument, layout, bytes) in tensors {
            let wanted = bytes_of(argument, layout, problem.dtype.bytes())?;
            if bytes.len() < wanted {
                return Err(Error::bad(
                    argument,
                    format!("at least {wanted} bytes for shape {:?}", layout.shape),
                    format!("{} bytes", bytes.len()),
                ));
            }
        }
        for (scaled, scales) in problem.scaled().iter().zip(self.scales()) {
            scaled.check(scales)?;
        }
        Ok(())
    }
}

/// Bytes of the smallest buffer that holds a tensor.
pub(crate) fn bytes_of(
    argument: &'static str,
    layout: &TensorLayout,
    element_bytes: u32,
) -> Result<usize> {
    layout
        .span()
        .and_then(|n| n.checked_mul(element_bytes as usize))
        .ok_or_else(|| {
            Error::bad(
                argument,
                "a tensor that fits in memory",
                format!("shape {:?}, strides {:?}", layout.shape, layout.strides),
            )
        })
}

/// Computes attention on a device: uploads, runs, downloads, and frees what it allocated.
///
/// # Errors
/// Whatever [`Problem::plan`] and [`Plan::launch`](crate::Plan::launch) refuse,
/// [`Error::BadInput`] for slices that are too short, and the device's own errors.
pub fn attention(device: &dyn Device, problem: &Problem, inputs: &Inputs<'_>) -> Result<Outputs> {
    let plan = problem.plan(device.info())?;
    inputs.check(problem)?;
    let out_bytes = problem.out_element().bytes();
    let element = problem.dtype.bytes();
    let upload = |argument, layout, bytes: &[u8]| {
        // As long as the tensor and no longer, which is what the check above allows to slice.
        DeviceBuffer::from_bytes(device, &bytes[..bytes_of(argument, layout, element)?])
    };
    let q = upload("q", &problem.q, inputs.q)?;
    let k = upload("k", &problem.k, inputs.k)?;
    let v = upload("v", &problem.v, inputs.v)?;
    let out = DeviceBuffer::zeroed(device, bytes_of("out", &problem.out, out_bytes)?)?;
    let lse = match problem.lse {
        true => Some(DeviceBuffer::zeroed(
            device,
            problem.lse_shape().iter().product::<usize>() * 4,
        )?),
        false => None,
    };
    let workspace = DeviceBuffer::uninitialized(device, plan.workspace_bytes())?;
    let upload = |scales: &[f32]| {
        let bytes: Vec<u8> = scales.iter().flat_map(|x| x.to_le_bytes()).collect();
        DeviceBuffer::from_bytes(device, &bytes)
    };
    let q_scale = upload(inputs.q_scale)?;
    let k_scale = upload(inputs.k_scale)?;
    let v_scale = upload(inputs.v_scale)?;

    let pointers = Pointers {
        q: origin(&q, &problem.q, element),
        k: origin(&k, &problem.k, element),
        v: origin(&v, &problem.v, element),
        out: origin(&out, &problem.out, out_bytes),
        lse: lse.as_ref().map(DeviceBuffer::address),
        q_scale: q_scale.address(),
        k_scale: k_scale.address(),
        v_scale: v_scale.address(),
        workspace: workspace.address(),
    };
    // SAFETY: every buffer is allocated on this device, holds its tensor's whole extent (inputs
    // were checked, the others sized by it), and is only read again after the device is idle.
    unsafe { plan.launch(device, Stream::DEFAULT, &pointers)? };
    device.synchronize()?;

    let lse = match &lse {
        Some(buffer) => {
            let bytes = buffer.to_vec()?;
            let (words, _) = bytes.as_chunks::<4>();
            Some(words.iter().map(|&word| f32::from_le_bytes(word)).collect())
        }
        None => None,
    };
    Ok(Outputs {
        out: out.to_vec()?,
        lse,
    })
}

/// Address of element [0, 0, 0, 0] of a tensor whose lowest element starts the buffer.
pub(crate) fn origin(buffer: &DeviceBuffer<'_>, layout: &TensorLayout, element_bytes: u32) -> u64 {
    let (low, _) = layout.offsets().unwrap_or_default();
    buffer
        .address()
        .wrapping_sub((low as u64).wrapping_mul(u64::from(element_bytes)))
}

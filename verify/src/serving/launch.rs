//! Launches that trust nothing: outputs begin as [`GAP`], every buffer ends with its tensor, and numbers on the device are not checked.

use flashtile::{
    Device, DeviceBuffer, Outputs, Result, Stream, TensorLayout,
    serving::{ServingInputs, ServingPointers, ServingProblem},
};

use super::build::GAP;

/// Launches a problem on inputs that are sound.
///
/// # Errors
/// The library's.
pub fn launch(
    device: &dyn Device,
    problem: &ServingProblem,
    inputs: &ServingInputs<'_>,
) -> Result<Outputs> {
    problem.check_metadata(inputs)?;
    try_launch(device, problem, inputs)
}

/// Launches a problem on inputs whose numbers may be anything.
///
/// # Errors
/// The library's.
pub fn try_launch(
    device: &dyn Device,
    problem: &ServingProblem,
    inputs: &ServingInputs<'_>,
) -> Result<Outputs> {
    let plan = problem.plan(device.info())?;
    let bytes = |bytes: &[u8]| DeviceBuffer::from_bytes(device, bytes);
    let ints = |numbers: &[i32]| {
        let all: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        DeviceBuffer::from_bytes(device, &all)
    };
    let floats = |numbers: &[f32]| {
        let all: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        DeviceBuffer::from_bytes(device, &all)
    };
    let tensors = [inputs.q, inputs.k, inputs.v, inputs.bias, inputs.mask].map(bytes);
    let [q, k, v, bias, mask] = tensors;
    let (q, k, v, bias, mask) = (q?, k?, v?, bias?, mask?);
    let numbers = [
        inputs.q_starts,
        inputs.q_used,
        inputs.k_starts,
        inputs.k_used,
        inputs.table,
        inputs.ranges,
    ];
    let [q_starts, q_used, k_starts, k_used, table, ranges] = numbers.map(ints);
    let (q_starts, q_used, k_starts, k_used) = (q_starts?, q_used?, k_starts?, k_used?);
    let (table, ranges) = (table?, ranges?);
    let (alibi, sink) = (floats(inputs.alibi)?, floats(inputs.sink)?);
    let (k_scale, v_scale) = (floats(inputs.k_scale)?, floats(inputs.v_scale)?);
    let span = |layout: &TensorLayout| layout.span().unwrap_or(0);
    let width = problem.out_element().bytes() as usize;
    let out = bytes(&vec![GAP; span(&problem.out) * width])?;
    let lse_bytes = 4 * problem.lse_shape().iter().product::<usize>();
    let lse = problem
        .lse
        .then(|| bytes(&vec![GAP; lse_bytes]))
        .transpose()?;
    let workspace = DeviceBuffer::uninitialized(device, plan.workspace_bytes())?;
    let pointers = ServingPointers {
        q: q.address(),
        k: k.address(),
        v: v.address(),
        out: out.address(),
        lse: lse.as_ref().map(DeviceBuffer::address),
        q_starts: q_starts.address(),
        q_used: q_used.address(),
        k_starts: k_starts.address(),
        k_used: k_used.address(),
        table: table.address(),
        k_scale: k_scale.address(),
        v_scale: v_scale.address(),
        alibi: alibi.address(),
        sink: sink.address(),
        bias: bias.address(),
        mask: mask.address(),
        ranges: ranges.address(),
        workspace: workspace.address(),
    };
    // SAFETY: every buffer is allocated on this device, holds its tensor's whole extent, which starts at its lowest element (generated
    // layouts have no negative strides), and is only read again after the device is idle. The kernels keep within them whatever the
    // numbers are, and the emulator sees it if they do not.
    unsafe { plan.launch(device, Stream::DEFAULT, &pointers)? };
    device.synchronize()?;
    let lse = lse.map(|lse| lse.to_vec()).transpose()?.map(|bytes| {
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().map(|&word| f32::from_le_bytes(word)).collect()
    });
    Ok(Outputs {
        out: out.to_vec()?,
        lse,
    })
}

//! Launches that trust nothing: outputs begin as [`GAP`], every buffer ends with its tensor, and numbers on the device are not checked.

use std::cell::OnceCell;

use flashtile::{
    Device, DeviceBuffer, DeviceKind, EmulatorDevice, Outputs, Result, Stream, TensorLayout,
    serving::{ServingInputs, ServingPointers, ServingProblem},
};

use super::build::GAP;
use crate::device::emulators;

/// Why a launch was not to be had.
pub type Failure = flashtile::Error;

thread_local! {
    static EMULATORS: OnceCell<&'static [EmulatorDevice]> = const { OnceCell::new() };
}

/// The suite's emulators, but with their sanitizer on, and each GPU: as the environment wants them.
pub fn devices() -> Vec<&'static dyn Device> {
    let all = crate::devices().iter().map(|device| &**device);
    let (emulated, gpus): (Vec<_>, Vec<_>) =
        all.partition(|device| device.info().kind == DeviceKind::Emulator);
    let sanitizing = match emulated.is_empty() {
        true => &[][..],
        false => EMULATORS.with(|cell| *cell.get_or_init(|| Vec::leak(emulators(true)))),
    };
    let sanitizing = sanitizing.iter().map(|device| device as &dyn Device);
    sanitizing.chain(gpus).collect()
}

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

//! Launches that trust nothing: outputs begin as [`GAP`], every buffer ends with its tensor, and numbers on the device are not checked.

use flashtile::{
    Device, DeviceBuffer, Outputs, Result, Stream, TensorLayout,
    serving::{ServingInputs, ServingPlan, ServingPointers, ServingProblem},
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
    let launch = Launch::new(device, problem, inputs)?;
    launch.run()?;
    launch.outputs()
}

/// A plan, and the buffers of its launches.
pub struct Launch<'d> {
    device: &'d dyn Device,
    plan: ServingPlan,
    /// Starts and lengths of queries, of keys; table; ranges.
    numbers: [DeviceBuffer<'d>; 6],
    out: DeviceBuffer<'d>,
    lse: Option<DeviceBuffer<'d>>,
    pointers: ServingPointers,
    /// What nobody looks at again.
    _inputs: Vec<DeviceBuffer<'d>>,
}

impl<'d> Launch<'d> {
    /// Plans and uploads. Every buffer ends with its tensor.
    ///
    /// # Errors
    /// The library's.
    pub fn new(
        device: &'d dyn Device,
        problem: &ServingProblem,
        inputs: &ServingInputs<'_>,
    ) -> Result<Self> {
        let plan = problem.plan(device.info())?;
        let bytes = |bytes: &[u8]| DeviceBuffer::from_bytes(device, bytes);
        let floats = |numbers: &[f32]| {
            let all: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            DeviceBuffer::from_bytes(device, &all)
        };
        let mut uploaded = Vec::new();
        for tensor in [inputs.q, inputs.k, inputs.v, inputs.bias, inputs.mask] {
            uploaded.push(bytes(tensor)?);
        }
        for numbers in [inputs.alibi, inputs.sink, inputs.k_scale, inputs.v_scale] {
            uploaded.push(floats(numbers)?);
        }
        let [q, k, v, bias, mask, alibi, sink, k_scale, v_scale] =
            std::array::from_fn(|at| uploaded[at].address());
        let mut numbers = [const { None }; 6];
        for (buffer, numbers) in numbers.iter_mut().zip(kinds(inputs)) {
            *buffer = Some(bytes(&words(numbers))?);
        }
        let numbers = numbers.map(|buffer| buffer.expect("just set"));
        let [q_starts, q_used, k_starts, k_used, table, ranges] =
            std::array::from_fn(|at| numbers[at].address());
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
            q,
            k,
            v,
            out: out.address(),
            lse: lse.as_ref().map(DeviceBuffer::address),
            q_starts,
            q_used,
            k_starts,
            k_used,
            table,
            k_scale,
            v_scale,
            alibi,
            sink,
            bias,
            mask,
            ranges,
            workspace: workspace.address(),
        };
        uploaded.push(workspace);
        Ok(Self {
            device,
            plan,
            numbers,
            out,
            lse,
            pointers,
            _inputs: uploaded,
        })
    }

    /// Puts the inputs' numbers into the device's memory, and nothing else of them; outputs begin anew.
    ///
    /// # Errors
    /// The library's.
    pub fn set_numbers(&mut self, inputs: &ServingInputs<'_>) -> Result<()> {
        for (buffer, numbers) in self.numbers.iter_mut().zip(kinds(inputs)) {
            buffer.write(&words(numbers))?;
        }
        let fresh = |buffer: &mut DeviceBuffer<'_>| buffer.write(&vec![GAP; buffer.len()]);
        fresh(&mut self.out)?;
        self.lse.as_mut().map_or(Ok(()), fresh)
    }

    /// Launches.
    ///
    /// # Errors
    /// The library's.
    pub fn run(&self) -> Result<()> {
        // SAFETY: every buffer is allocated on this device, holds its tensor's whole extent, which starts at its lowest element (generated
        // layouts have no negative strides), and is only read again after the device is idle. The kernels keep within them whatever the
        // numbers are, and the emulator sees it if they do not.
        unsafe {
            self.plan
                .launch(self.device, Stream::DEFAULT, &self.pointers)
        }
    }

    /// The outputs, once the device is idle.
    ///
    /// # Errors
    /// The library's.
    pub fn outputs(&self) -> Result<Outputs> {
        self.device.synchronize()?;
        let lse = self.lse.as_ref().map(DeviceBuffer::to_vec).transpose()?;
        let lse = lse.map(|bytes| {
            let (words, _) = bytes.as_chunks::<4>();
            words.iter().map(|&word| f32::from_le_bytes(word)).collect()
        });
        Ok(Outputs {
            out: self.out.to_vec()?,
            lse,
        })
    }
}

/// Numbers that say where sequences are.
fn kinds<'a>(inputs: &ServingInputs<'a>) -> [&'a [i32]; 6] {
    [
        inputs.q_starts,
        inputs.q_used,
        inputs.k_starts,
        inputs.k_used,
        inputs.table,
        inputs.ranges,
    ]
}

fn words(numbers: &[i32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

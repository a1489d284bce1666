//! Which kernel computes a task.

use flashtile::{
    Device, DeviceInfo, Error, ErrorClass, Plan, Pointers, Result, Stream,
    serving::{ServingPlan, ServingPointers},
};

use crate::problem::Task;

/// A kernel and its grid.
#[derive(Debug)]
#[expect(clippy::large_enum_variant)] // A launch has one, on the stack.
pub(crate) enum Planned {
    /// Of equally long sequences: on Hopper, this has kernels of its own.
    Dense(Plan),
    Serving(ServingPlan),
}

impl Planned {
    /// Few queries are better split over blocks by their keys, which serving kernels do. What one kind has no kernel for, the other may.
    pub fn new(task: &Task, info: &DeviceInfo) -> Result<Self> {
        let problem = &task.problem;
        let dense = || {
            let dense = task
                .dense()
                .map(|problem| problem.plan(info).map(Self::Dense));
            dense.unwrap_or_else(|| problem.plan(info).map(Self::Serving))
        };
        let serving = || problem.plan(info).map(Self::Serving);
        let group = problem.q.shape[2] / problem.k.shape[2].max(1);
        let few = problem.q_lengths.longest.saturating_mul(group) <= FEW_ROWS;
        match few {
            true => serving().or_else(|error| other(error, dense)),
            false => dense().or_else(|error| other(error, serving)),
        }
    }

    /// Bytes of scratch memory that a launch needs.
    pub fn workspace_bytes(&self) -> usize {
        match self {
            Self::Dense(plan) => plan.workspace_bytes(),
            Self::Serving(plan) => plan.workspace_bytes(),
        }
    }

    /// Enqueues it.
    ///
    /// # Safety
    /// That of [`ServingPlan::launch`].
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        pointers: &ServingPointers,
    ) -> Result<()> {
        match self {
            // SAFETY: the caller's.
            Self::Serving(plan) => unsafe { plan.launch(device, stream, pointers) },
            Self::Dense(plan) => {
                let pointers = Pointers {
                    q: pointers.q,
                    k: pointers.k,
                    v: pointers.v,
                    out: pointers.out,
                    lse: pointers.lse,
                    workspace: pointers.workspace,
                    ..Pointers::default()
                };
                // SAFETY: the caller's.
                unsafe { plan.launch(device, stream, &pointers) }
            }
        }
    }
}

/// Rows of queries for one key/value head that count as few.
const FEW_ROWS: usize = 16;

/// If there is no kernel, what others have; the first error if they have none.
fn other(error: Error, others: impl FnOnce() -> Result<Planned>) -> Result<Planned> {
    match error.class() {
        ErrorClass::NoVariant => others().map_err(|_| error),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Layout};
    use flashtile::{
        DeviceBuffer, EmulatorDevice, Inputs, Outputs,
        reference::compare,
        serving::{ServingInputs, attention_cpu},
    };

    use super::*;
    use crate::attention::Attention;

    /// [batch, seqlen, heads, head_dim] of q and k, of which v is a half.
    fn task(dtype: DType, q: [usize; 4], k: [usize; 4], attention: &Attention) -> Task {
        let mut v = k;
        v[3] /= 2;
        let layouts = [q, k, v].map(|shape| Layout::contiguous(shape.as_slice()));
        Task::new(attention, [dtype; 3], layouts.each_ref(), None, true).unwrap()
    }

    /// Numbers in [-1, 1) as elements.
    fn numbers(seed: u32, dtype: flashtile::DType, count: usize) -> Vec<u8> {
        let number = |i: usize| {
            let mixed = (i as u32).wrapping_mul(0x9e37_79b1) ^ seed.wrapping_mul(0x85eb_ca6b);
            let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x2c1b_3c6d);
            (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        flashtile::element::encode(dtype, &(0..count).map(number).collect::<Vec<_>>())
    }

    /// Few queries go to the kernels that split keys, many to those of equally long sequences, and what one kind lacks to the other.
    #[test]
    fn every_task_has_a_kernel() {
        let info = DeviceInfo::emulator();
        let plain = Attention::new(0.1);
        let sinks = candle_core::Tensor::zeros(8, DType::F32, &candle_core::Device::Cpu).unwrap();
        let with_sinks = plain.clone().sink(&sinks);
        let kind = |dtype, q, k, attention: &Attention| {
            Planned::new(&task(dtype, q, k, attention), &info).map(|planned| match planned {
                Planned::Dense(_) => "dense",
                Planned::Serving(_) => "serving",
            })
        };
        let k = [2, 300, 2, 64];
        assert_eq!(kind(DType::F16, [2, 4, 8, 64], k, &plain), Ok("serving"));
        assert_eq!(kind(DType::BF16, [2, 5, 8, 64], k, &plain), Ok("dense"));
        assert_eq!(kind(DType::F32, [2, 1, 8, 64], k, &plain), Ok("dense"));
        assert_eq!(
            kind(DType::F16, [2, 100, 8, 64], k, &with_sinks),
            Ok("serving")
        );
        assert_eq!(
            kind(DType::F16, [2, 1, 8, 512], [2, 300, 2, 512], &plain),
            Ok("dense")
        );
        let error = kind(DType::F32, [2, 1, 8, 64], k, &with_sinks).unwrap_err();
        assert_eq!(error.class(), ErrorClass::NoVariant);
    }

    /// What is launched is what was described: both kinds of kernels, on the emulator, and the CPU give one result.
    #[test]
    fn all_ways_agree() {
        let device = EmulatorDevice::sanitizing();
        for (dtype, q, k, window, softcap) in [
            (
                DType::F16,
                [2, 3, 4, 32],
                [2, 150, 2, 32],
                (Some(20), Some(0)),
                None,
            ),
            (
                DType::BF16,
                [1, 70, 2, 40],
                [1, 90, 1, 40],
                (Some(30), Some(5)),
                Some(4.0),
            ),
            (
                DType::F32,
                [1, 9, 2, 16],
                [1, 33, 2, 16],
                (None, None),
                None,
            ),
        ] {
            let mut attention = Attention::new(0.4).window(window.0, window.1);
            attention.softcap = softcap;
            let task = task(dtype, q, k, &attention);
            let dense = task.dense().unwrap();
            let data = [(1, &dense.q), (2, &dense.k), (3, &dense.v)]
                .map(|(seed, layout)| numbers(seed, dense.dtype, layout.span().unwrap()));
            let [q, k, v] = data.each_ref().map(Vec::as_slice);
            let inputs = Inputs {
                q,
                k,
                v,
                ..Inputs::default()
            };
            let serving_inputs = ServingInputs {
                q,
                k,
                v,
                ..ServingInputs::default()
            };
            let judge = |way, outputs: &Outputs| {
                let comparison = compare(&dense, &inputs, outputs).unwrap();
                assert!(comparison.ok, "{way}, {dtype:?}: {comparison:?}");
            };
            judge(
                "serving on the CPU",
                &attention_cpu(&task.problem, &serving_inputs).unwrap(),
            );
            judge(
                "dense on the CPU",
                &flashtile::cpu::attention(&dense, &inputs).unwrap(),
            );

            let planned = Planned::new(&task, device.info()).unwrap();
            let [q, k, v] = data
                .each_ref()
                .map(|x| DeviceBuffer::from_bytes(&device, x).unwrap());
            let out_bytes = task.out.elem_count() * dense.out_element().bytes() as usize;
            let out = DeviceBuffer::uninitialized(&device, out_bytes).unwrap();
            let lse = DeviceBuffer::uninitialized(&device, 4 * task.lse.elem_count()).unwrap();
            let workspace =
                DeviceBuffer::uninitialized(&device, planned.workspace_bytes()).unwrap();
            let pointers = ServingPointers {
                q: q.address(),
                k: k.address(),
                v: v.address(),
                out: out.address(),
                lse: Some(lse.address()),
                workspace: workspace.address(),
                ..ServingPointers::default()
            };
            // SAFETY: the buffers are the device's, as long as the tensors, and outlive the launch.
            unsafe { planned.launch(&device, Stream::DEFAULT, &pointers).unwrap() };
            device.synchronize().unwrap();
            let bytes = lse.to_vec().unwrap();
            let (words, _) = bytes.as_chunks::<4>();
            judge(
                "emulator",
                &Outputs {
                    out: out.to_vec().unwrap(),
                    lse: Some(words.iter().map(|&word| f32::from_le_bytes(word)).collect()),
                },
            );
        }
    }
}

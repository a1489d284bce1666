//! What the benchmarks share: inputs, and one run's bookkeeping.

use flashtile::{
    DType, Device, DeviceBuffer, Plan, Pointers, Problem, Result, Shape, TensorLayout,
};

/// Reproducible 16-bit or f32 values in [-1, 1).
pub fn values(dtype: DType, count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f32> = (0..count)
        .map(|_| {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let bits = (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32;
            bits / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    flashtile::element::encode(dtype, &values)
}

/// Tensors of one problem on one device, and the plan that computes it.
pub struct Workload<'d> {
    device: &'d dyn Device,
    plan: Plan,
    buffers: [DeviceBuffer<'d>; 4],
}

impl<'d> Workload<'d> {
    /// Plans a problem with contiguous tensors and uploads random ones.
    ///
    /// # Errors
    /// What planning or the device says.
    pub fn new(device: &'d dyn Device, problem: &Problem) -> Result<Self> {
        let plan = problem.plan(device.info())?;
        let upload = |layout: &TensorLayout, seed: u64| {
            let count = layout.elements().unwrap_or(0);
            DeviceBuffer::from_bytes(device, &values(problem.dtype, count, seed))
        };
        let buffers = [
            upload(&problem.q, 1)?,
            upload(&problem.k, 2)?,
            upload(&problem.v, 3)?,
            upload(&problem.out, 4)?,
        ];
        Ok(Self {
            device,
            plan,
            buffers,
        })
    }

    /// Enqueues one launch.
    ///
    /// # Errors
    /// What the device says.
    pub fn launch(&self) -> Result<()> {
        let [q, k, v, out] = &self.buffers;
        let pointers = Pointers {
            q: q.address(),
            k: k.address(),
            v: v.address(),
            out: out.address(),
            ..Pointers::default()
        };
        // SAFETY: the buffers have the sizes of the problem's contiguous tensors and live in self,
        // whose users synchronise the device before they drop it.
        unsafe {
            self.plan
                .launch(self.device, flashtile::Stream::DEFAULT, &pointers)
        }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// Floating-point operations of a forward pass as FlashAttention counts them: 2 for each
/// multiplication and addition of both products, half of it under a causal mask.
pub fn forward_flops(shape: &Shape, causal: bool) -> f64 {
    let pairs =
        shape.batch as f64 * shape.heads_q as f64 * shape.seqlen_q as f64 * shape.seqlen_k as f64;
    let flops = 2.0 * pairs * (shape.head_dim_qk + shape.head_dim_v) as f64;
    if causal { flops / 2.0 } else { flops }
}

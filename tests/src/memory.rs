//! Tensors in a device's memory, as a case or a problem places them.

use flashtile::{
    DType, Device, DeviceBuffer, Error, Pointers, Problem, Result, Stream, TensorLayout, element,
};

use crate::{case::Case, data::Tensors};

/// Byte of everything that belongs to no tensor. As an element it is a NaN in every type, so a kernel
/// that reads one where it counts cannot hide it.
const GAP: u8 = 0xff;

/// What a launch left in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// Output [batch, seqlen_q, heads_q, head_dim_v], without gaps; exact.
    pub out: Vec<f32>,
    /// Log-sum-exp [batch, heads_q, seqlen_q]; empty if the problem does not want it.
    pub lse: Vec<f32>,
}

/// One tensor's buffer on the host.
struct Image {
    layout: TensorLayout,
    dtype: DType,
    /// Elements before the lowest one.
    offset: usize,
    bytes: Vec<u8>,
}

impl Image {
    fn new(layout: TensorLayout, offset: usize, dtype: DType) -> Self {
        let span = layout.span().expect("a test's layout is small");
        // The buffer ends with the last element: beyond it the emulator sees every access.
        let elements = if span == 0 { 0 } else { offset + span };
        Self {
            layout,
            dtype,
            offset,
            bytes: vec![GAP; elements * dtype.bytes() as usize],
        }
    }

    /// Positions of all elements, in the order of the shape.
    fn positions(&self) -> impl Iterator<Item = usize> {
        let [batch, seqlen, heads, dim] = self.layout.shape;
        let rows = (0..batch)
            .flat_map(move |b| (0..seqlen).flat_map(move |s| (0..heads).map(move |h| [b, s, h])));
        let (layout, offset) = (self.layout, self.offset);
        rows.flat_map(move |[b, s, h]| {
            let begin = offset + layout.index([b, s, h, 0]);
            begin..begin + dim
        })
    }

    fn fill(&mut self, values: &[f32]) {
        let positions: Vec<usize> = self.positions().collect();
        assert_eq!(positions.len(), values.len());
        for (at, &value) in positions.into_iter().zip(values) {
            element::write(self.dtype, &mut self.bytes, at, value);
        }
    }

    /// Address of element [0, 0, 0, 0].
    fn origin(&self, buffer: &DeviceBuffer<'_>) -> u64 {
        if self.layout.is_empty() {
            return 0;
        }
        let elements = self.offset + self.layout.index([0; 4]);
        buffer.address() + elements as u64 * u64::from(self.dtype.bytes())
    }
}

/// Runs a case on a device, on these tensors.
///
/// # Errors
/// Whatever the library says, and [`Error::Fault`] if the kernel wrote outside of the output.
pub fn run(device: &dyn Device, case: &Case, tensors: &Tensors) -> Result<Results> {
    let offsets = case.placements.map(|placement| placement.offset);
    run_problem(device, &case.problem(), offsets, tensors)
}

/// Runs a problem on a device, on these tensors, each behind so many unused elements.
///
/// # Errors
/// As [`run`].
pub fn run_problem(
    device: &dyn Device,
    problem: &Problem,
    offsets: [usize; 4],
    tensors: &Tensors,
) -> Result<Results> {
    let plan = problem.plan(device.info())?;
    let layouts = [problem.q, problem.k, problem.v, problem.out];
    let out = problem.out_element();
    let dtypes = [problem.dtype, problem.dtype, problem.dtype, out];
    let mut images: [Image; 4] =
        std::array::from_fn(|i| Image::new(layouts[i], offsets[i], dtypes[i]));
    for (image, values) in images.iter_mut().zip([&tensors.q, &tensors.k, &tensors.v]) {
        image.fill(values);
    }

    let mut buffers = Vec::new();
    for image in &images {
        buffers.push(DeviceBuffer::from_bytes(device, &image.bytes)?);
    }
    let lse_count: usize = match problem.lse {
        true => problem.lse_shape().iter().product(),
        false => 0,
    };
    let lse = DeviceBuffer::from_bytes(device, &vec![GAP; lse_count * 4])?;
    let workspace = DeviceBuffer::uninitialized(device, plan.workspace_bytes())?;
    let [q, k, v, out] = std::array::from_fn(|i| images[i].origin(&buffers[i]));
    let pointers = Pointers {
        q,
        k,
        v,
        out,
        lse: problem.lse.then_some(lse.address()),
        workspace: workspace.address(),
    };
    // SAFETY: each buffer is allocated on this device and sized for its tensor by its layout, nothing
    // else knows of them, and they are read when the device is idle.
    unsafe { plan.launch(device, Stream::DEFAULT, &pointers)? };
    device.synchronize()?;

    images[3].bytes = buffers[3].to_vec()?;
    let image = &images[3];
    let mut is_gap = vec![true; image.bytes.len() / image.dtype.bytes() as usize];
    let mut values = Vec::with_capacity(is_gap.len());
    for at in image.positions() {
        is_gap[at] = false;
        values.push(element::read(image.dtype, &image.bytes, at));
    }
    let width = image.dtype.bytes() as usize;
    for (at, bytes) in image.bytes.chunks(width).enumerate() {
        if is_gap[at] && bytes.iter().any(|&byte| byte != GAP) {
            return Err(Error::Fault {
                context: plan.variant().name.into(),
                reason: format!("element {at} of out's buffer is no output, but was written"),
            });
        }
    }
    let (words, _) = lse.to_vec().map(|bytes| {
        let (words, rest) = bytes.as_chunks::<4>();
        (words.to_vec(), rest.len())
    })?;
    Ok(Results {
        out: values,
        lse: words.into_iter().map(f32::from_le_bytes).collect(),
    })
}

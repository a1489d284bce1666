//! Tensors in a device's memory, as a case places them.

use flashtile::{
    DType, Device, DeviceBuffer, Error, Pointers, Result, Stream, TensorLayout, element,
};

use crate::{
    case::{Case, Placement},
    data::Tensors,
};

/// Byte of everything that belongs to no tensor. As an element it is a NaN in every type, so a kernel
/// that reads one where it counts cannot hide it.
const GAP: u8 = 0xff;

/// What a launch left in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// Output [batch, seqlen_q, heads_q, head_dim_v], without gaps; exact.
    pub out: Vec<f32>,
    /// Log-sum-exp [batch, heads_q, seqlen_q].
    pub lse: Vec<f32>,
}

/// One tensor's buffer on the host.
pub(crate) struct Image {
    layout: TensorLayout,
    dtype: DType,
    /// Elements before the lowest one.
    offset: usize,
    /// The whole buffer.
    pub(crate) bytes: Vec<u8>,
}

/// The buffers of q, k, v and out, the last one without its elements.
pub(crate) fn images(case: &Case, tensors: &Tensors) -> [Image; 4] {
    let shapes = case.shapes();
    let dtypes = [case.dtype, case.dtype, case.dtype, case.out_element()];
    let mut images: [Image; 4] =
        std::array::from_fn(|i| Image::new(&case.placements[i], shapes[i], dtypes[i]));
    for (image, values) in images.iter_mut().zip([&tensors.q, &tensors.k, &tensors.v]) {
        image.fill(values);
    }
    images
}

/// An empty buffer for a log-sum-exp of so many numbers.
pub(crate) fn lse_image(count: usize) -> Vec<u8> {
    vec![GAP; count * 4]
}

impl Image {
    fn new(placement: &Placement, shape: [usize; 4], dtype: DType) -> Self {
        let layout = placement.layout(shape);
        let span = layout.span().expect("a test's layout is small");
        // The buffer ends with the last element: beyond it the emulator sees every access.
        let elements = if span == 0 {
            0
        } else {
            placement.offset + span
        };
        Self {
            layout,
            dtype,
            offset: placement.offset,
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

    /// Address of element [0, 0, 0, 0] of a buffer at `address`.
    pub(crate) fn origin(&self, address: u64) -> u64 {
        if self.layout.is_empty() {
            return 0;
        }
        let elements = self.offset + self.layout.index([0; 4]);
        address + elements as u64 * u64::from(self.dtype.bytes())
    }

    /// The elements of a buffer like this one, in the order of the shape; or the first element that is written
    /// although it belongs to no row.
    pub(crate) fn values(&self, bytes: &[u8]) -> std::result::Result<Vec<f32>, usize> {
        let width = self.dtype.bytes() as usize;
        let mut is_gap = vec![true; bytes.len() / width];
        let mut values = Vec::with_capacity(is_gap.len());
        for at in self.positions() {
            is_gap[at] = false;
            values.push(element::read(self.dtype, bytes, at));
        }
        let mut elements = bytes.chunks(width).zip(is_gap);
        match elements.position(|(bytes, gap)| gap && bytes.iter().any(|&byte| byte != GAP)) {
            Some(at) => Err(at),
            None => Ok(values),
        }
    }
}

/// Runs a case on a device, on these tensors.
///
/// # Errors
/// Whatever the library says, and [`Error::Fault`] if the kernel wrote outside of the output.
pub fn run(device: &dyn Device, case: &Case, tensors: &Tensors) -> Result<Results> {
    let images = images(case, tensors);
    let problem = case.problem();
    let plan = problem.plan(device.info())?;
    let mut buffers = Vec::new();
    for image in &images {
        buffers.push(DeviceBuffer::from_bytes(device, &image.bytes)?);
    }
    let lse_count: usize = problem.lse_shape().iter().product();
    let lse = DeviceBuffer::from_bytes(device, &lse_image(lse_count))?;
    let workspace = DeviceBuffer::uninitialized(device, plan.workspace_bytes())?;
    let [q, k, v, out] = std::array::from_fn(|i| images[i].origin(buffers[i].address()));
    let pointers = Pointers {
        q,
        k,
        v,
        out,
        lse: Some(lse.address()),
        workspace: workspace.address(),
    };
    // SAFETY: each buffer is allocated on this device and sized for its tensor by its layout, nothing
    // else knows of them, and they are read when the device is idle.
    unsafe { plan.launch(device, Stream::DEFAULT, &pointers)? };
    device.synchronize()?;

    let values = images[3].values(&buffers[3].to_vec()?);
    let out = values.map_err(|at| Error::Fault {
        context: plan.variant().name.into(),
        reason: format!("element {at} of out's buffer is no output, but was written"),
    })?;
    let (words, _) = lse.to_vec().map(|bytes| {
        let (words, rest) = bytes.as_chunks::<4>();
        (words.to_vec(), rest.len())
    })?;
    Ok(Results {
        out,
        lse: words.into_iter().map(f32::from_le_bytes).collect(),
    })
}

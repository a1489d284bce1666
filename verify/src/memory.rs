//! Tensors in a device's memory, as a case places them.

use flashtile::{
    DType, Device, DeviceBuffer, Error, Inputs, Pointers, Problem, Result, Stream, TensorLayout,
    element, reference::visible,
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
struct Image {
    layout: TensorLayout,
    dtype: DType,
    /// Elements before the lowest one.
    offset: usize,
    bytes: Vec<u8>,
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

    /// Overwrites whole rows of every batch and head with what is not finite.
    fn poison(&mut self, rows: &[bool]) {
        let [batch, _, heads, dim] = self.layout.shape;
        let mut poison = [f32::INFINITY, f32::NAN, f32::NEG_INFINITY]
            .into_iter()
            .cycle();
        for s in (0..rows.len()).filter(|&s| rows[s]) {
            for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
                let begin = self.offset + self.layout.index([b, s, h, 0]);
                for (at, value) in (begin..begin + dim).zip(&mut poison) {
                    element::write(self.dtype, &mut self.bytes, at, value);
                }
            }
        }
    }

    /// Bytes from the tensor's lowest element on.
    fn tensor(&self) -> &[u8] {
        let skipped = self.offset * self.dtype.bytes() as usize;
        self.bytes.get(skipped..).unwrap_or_default()
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

/// q, k, v and out in memory, as a case places them.
fn images(case: &Case, tensors: &Tensors) -> Result<[Image; 4]> {
    let shapes = case.shapes();
    let dtypes = [case.dtype, case.dtype, case.dtype, case.out_element()];
    let mut images: [Image; 4] =
        std::array::from_fn(|i| Image::new(&case.placements[i], shapes[i], dtypes[i]));
    for (image, values) in images.iter_mut().zip([&tensors.q, &tensors.k, &tensors.v]) {
        image.fill(values);
    }
    if case.poison {
        let mut unseen = unseen_keys(&case.problem());
        images[1].poison(&unseen);
        // A value meets a probability of 0 wherever its tile is read, and 0 * inf is NaN.
        let block_n = case.planned()?.tile.block_n as usize;
        for tile in unseen.chunks_mut(block_n) {
            let unread = tile.iter().all(|&key| key);
            tile.fill(unread);
        }
        images[2].poison(&unseen);
    }
    Ok(images)
}

/// For each key, whether no query sees it.
pub fn unseen_keys(problem: &Problem) -> Vec<bool> {
    let queries = 0..problem.q.shape[1];
    let seen = |key| queries.clone().any(|query| visible(problem, query, key));
    (0..problem.k.shape[1]).map(|key| !seen(key)).collect()
}

/// Runs a case on these tensors by plain Rust on the CPU ([`flashtile::cpu`]).
///
/// # Errors
/// Whatever the library says.
pub fn run_on_cpu(case: &Case, tensors: &Tensors) -> Result<Results> {
    let images = images(case, tensors)?;
    let inputs = Inputs {
        q: images[0].tensor(),
        k: images[1].tensor(),
        v: images[2].tensor(),
    };
    let problem = case.problem();
    let outputs = flashtile::cpu::attention(&problem, &inputs)?;
    Ok(Results {
        out: element::gather(case.out_element(), &outputs.out, &problem.out)?,
        lse: outputs.lse.unwrap_or_default(),
    })
}

/// Runs a case on a device, on these tensors.
///
/// # Errors
/// Whatever the library says, and [`Error::Fault`] if the kernel wrote outside of the output.
pub fn run(device: &dyn Device, case: &Case, tensors: &Tensors) -> Result<Results> {
    let mut images = images(case, tensors)?;
    let problem = case.problem();
    let plan = problem.plan(device.info())?;
    let mut buffers = Vec::new();
    for image in &images {
        buffers.push(DeviceBuffer::from_bytes(device, &image.bytes)?);
    }
    let lse_count: usize = problem.lse_shape().iter().product();
    let lse = DeviceBuffer::from_bytes(device, &vec![GAP; lse_count * 4])?;
    let workspace = DeviceBuffer::uninitialized(device, plan.workspace_bytes())?;
    let [q, k, v, out] = std::array::from_fn(|i| images[i].origin(&buffers[i]));
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

//! Tensors in a device's memory, as a case or a problem places them.

use std::ops::Range;

use flashtile::{
    DType, Device, DeviceBuffer, Error, Inputs, Pointers, Problem, Result, Stream, TensorLayout,
    element, reference::visible,
};

use crate::{case::Case, data::Tensors};

/// Byte of everything that belongs to no tensor. As an element it is a NaN in every type, so a kernel
/// that reads one where it counts cannot hide it.
const GAP: u8 = 0xff;

/// Where a buffer's scales begin: at a multiple of 4 bytes, and of no more.
const SCALES_AT: usize = 4;

/// What a launch left in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// Output [batch, seqlen_q, heads_q, head_dim_v], without gaps; exact.
    pub out: Vec<f32>,
    /// Log-sum-exp [batch, heads_q, seqlen_q]; empty if the problem does not want it.
    pub lse: Vec<f32>,
}

/// One tensor's buffer on the host.
#[derive(Clone, Debug)]
pub struct Image {
    layout: TensorLayout,
    dtype: DType,
    /// Elements before the lowest one.
    offset: usize,
    /// The whole buffer.
    pub bytes: Vec<u8>,
}

impl Image {
    /// A buffer without its elements. It ends with the last one: beyond it the emulator sees every access.
    fn new(layout: TensorLayout, offset: usize, dtype: DType) -> Self {
        let span = layout.span().unwrap_or_default();
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

    /// Overwrites whole rows of every batch and head with what is not finite.
    fn poison(&mut self, rows: &[bool]) {
        let [batch, _, heads, dim] = self.layout.shape;
        let mut poison = match self.dtype {
            // Which has no infinities.
            DType::E4m3 => [f32::NAN; 3],
            _ => [f32::INFINITY, f32::NAN, f32::NEG_INFINITY],
        }
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

    /// The elements of the buffer that belong to no row.
    fn gaps(&self) -> Vec<Range<usize>> {
        let count = self.bytes.len() / self.dtype.bytes() as usize;
        let mut is_gap = vec![true; count];
        self.positions().for_each(|at| is_gap[at] = false);
        let runs = is_gap.chunk_by(|a, b| a == b).scan(0, |end, run| {
            let begin = *end;
            *end += run.len();
            Some((run[0], begin..*end))
        });
        runs.filter(|(gap, _)| *gap)
            .map(|(_, range)| range)
            .collect()
    }

    /// Address of element [0, 0, 0, 0] of a buffer at `address`.
    pub fn origin(&self, address: u64) -> u64 {
        if self.layout.is_empty() {
            return 0;
        }
        let elements = self.offset + self.layout.index([0; 4]);
        address + elements as u64 * u64::from(self.dtype.bytes())
    }

    /// The elements of a buffer like this one, in the order of the shape.
    ///
    /// # Errors
    /// The first element that was written although it belongs to no row.
    pub fn values(&self, bytes: &[u8]) -> std::result::Result<Vec<f32>, usize> {
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

/// A buffer that holds scales, if there are any, and ends with them, behind one that is nobody's.
pub fn scale_image(scales: &[f32]) -> Vec<u8> {
    let bytes = scales.iter().flat_map(|x| x.to_le_bytes());
    match scales.is_empty() {
        true => Vec::new(),
        false => [GAP; SCALES_AT].into_iter().chain(bytes).collect(),
    }
}

/// Address of the first scale of a buffer at `address`; 0 if there are none.
pub fn scale_origin(scales: &[f32], address: u64) -> u64 {
    match scales.is_empty() {
        true => 0,
        false => address + SCALES_AT as u64,
    }
}

/// An empty buffer for a log-sum-exp of so many numbers.
pub fn lse_image(count: usize) -> Vec<u8> {
    vec![GAP; count * 4]
}

/// The buffers of q, k, v and out as a case places them, the last one without its elements.
pub fn images(case: &Case, tensors: &Tensors) -> [Image; 4] {
    let offsets = case.placements.map(|placement| placement.offset);
    let problem = case.problem();
    let mut images = images_of(&problem, offsets, tensors);
    if case.poison
        && let Ok(variant) = case.planned()
    {
        let mut unseen = unseen_keys(&problem);
        images[1].poison(&unseen);
        // A value meets a probability of 0 wherever its tile is read, and 0 * inf is NaN.
        for tile in unseen.chunks_mut(variant.tile.block_n as usize) {
            let unread = tile.iter().all(|&key| key);
            tile.fill(unread);
        }
        images[2].poison(&unseen);
    }
    images
}

/// The buffers of a problem's tensors, each behind so many unused elements.
fn images_of(problem: &Problem, offsets: [usize; 4], tensors: &Tensors) -> [Image; 4] {
    let layouts = [problem.q, problem.k, problem.v, problem.out];
    let out = problem.out_element();
    let dtypes = [problem.dtype, problem.dtype, problem.dtype, out];
    let mut images: [Image; 4] =
        std::array::from_fn(|i| Image::new(layouts[i], offsets[i], dtypes[i]));
    for (image, values) in images.iter_mut().zip([&tensors.q, &tensors.k, &tensors.v]) {
        image.fill(values);
    }
    images
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
    let images = images(case, tensors);
    let inputs = Inputs {
        q: images[0].tensor(),
        k: images[1].tensor(),
        v: images[2].tensor(),
        q_scale: &tensors.scales[0],
        k_scale: &tensors.scales[1],
        v_scale: &tensors.scales[2],
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
    let images = || images(case, tensors);
    launch(device, &case.problem(), images, &tensors.scales)
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
    let images = || images_of(problem, offsets, tensors);
    launch(device, problem, images, &tensors.scales)
}

/// Runs a problem on buffers that are made when it is known to be sound.
fn launch(
    device: &dyn Device,
    problem: &Problem,
    images: impl FnOnce() -> [Image; 4],
    scales: &[Vec<f32>; 3],
) -> Result<Results> {
    let plan = problem.plan(device.info())?;
    let images = images();
    let mut buffers = Vec::new();
    for image in &images {
        buffers.push(DeviceBuffer::from_bytes(device, &image.bytes)?);
    }
    if device.tracks_writes() {
        // What lies between a tensor's rows is nobody's: using it is a finding.
        for (image, buffer) in images.iter().zip(&buffers).take(3) {
            let width = image.dtype.bytes() as usize;
            for gap in image.gaps() {
                let address = buffer.address() + (gap.start * width) as u64;
                // SAFETY: a gap lies inside its buffer, and nothing runs yet.
                unsafe { device.forget(address, gap.len() * width)? };
            }
        }
    }
    let lse_count: usize = match problem.lse {
        true => problem.lse_shape().iter().product(),
        false => 0,
    };
    let lse = DeviceBuffer::from_bytes(device, &lse_image(lse_count))?;
    let mut scale_buffers = Vec::new();
    for scales in scales {
        scale_buffers.push(DeviceBuffer::from_bytes(device, &scale_image(scales))?);
    }
    let [q_scale, k_scale, v_scale] =
        std::array::from_fn(|i| scale_origin(&scales[i], scale_buffers[i].address()));
    let workspace = DeviceBuffer::uninitialized(device, plan.workspace_bytes())?;
    let [q, k, v, out] = std::array::from_fn(|i| images[i].origin(buffers[i].address()));
    let pointers = Pointers {
        q,
        k,
        v,
        out,
        lse: problem.lse.then_some(lse.address()),
        q_scale,
        k_scale,
        v_scale,
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
    let lse = lse.to_vec()?;
    let (words, _) = lse.as_chunks::<4>();
    Ok(Results {
        out,
        lse: words.iter().map(|&word| f32::from_le_bytes(word)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::sizes;

    #[test]
    fn scales_end_with_their_buffer() {
        let image = scale_image(&[1.0, 2.0]);
        assert_eq!(scale_origin(&[1.0, 2.0], 256), 260);
        assert_eq!(image.len(), 12);
        assert_eq!(element::read(DType::F32, &image, 2), 2.0);
        assert!(element::read(DType::F32, &image, 0).is_nan());
        assert!(scale_image(&[]).is_empty() && scale_origin(&[], 256) == 0);
    }

    /// So that the emulator sees an access past any tensor, whatever its layout.
    #[test]
    fn a_buffer_ends_with_its_last_element() {
        let mut case = Case::new(DType::F16, sizes(5, 7, [2, 1], 8));
        case.shape.batch = 2;
        case.placements[0].pad = 3;
        case.placements[1].heads_first = true;
        case.placements[1].pad = 8;
        case.placements[2].offset = 5;
        case.placements[2].backwards = true;
        for image in images(&case, &Tensors::of(&case)) {
            let last = image.positions().max().unwrap_or_default();
            assert_eq!(image.bytes.len(), (last + 1) * 2);
            assert_eq!(image.positions().min(), Some(image.offset));
            let gaps: usize = image.gaps().iter().map(Range::len).sum();
            assert_eq!(gaps + image.positions().count(), last + 1);
        }
    }

    #[test]
    fn poison_is_where_no_query_looks() {
        let line = "fused f16 b2 q5 k200 h1/1 d32/32 causal=top-left poison seed=1";
        let case: Case = line.parse().unwrap();
        let block_n = case.variant().tile.block_n as usize;
        let images = images(&case, &Tensors::of(&case));
        for (image, first) in [(&images[1], 5), (&images[2], block_n)] {
            for (element, at) in image.positions().enumerate() {
                let finite = element::read(DType::F16, &image.bytes, at).is_finite();
                assert_eq!(finite, element / 32 % 200 < first, "element {element}");
            }
        }
    }
}

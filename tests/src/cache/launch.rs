//! Buffers of a case, and its launch.

use flashtile::{
    DType, Device, DeviceBuffer, Result, Stream, TensorLayout,
    cache::{AppendProblem, GatherProblem, IndexType, RotaryPointers, RowsPointers},
    element,
    serving::CacheLayout,
};
use flashtile_verify::data::Random;

use super::case::{CacheCase, Numbers};

/// One buffer on the host. It ends with its tensor's last element.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// Unused elements before the tensor's lowest one.
    pub offset: usize,
    /// From the lowest element to element [0, 0, 0, 0].
    origin: usize,
    width: usize,
    /// All bytes. None if there is no such tensor, or it has no elements.
    pub bytes: Vec<u8>,
}

/// The buffers of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Images(pub [Image; 8]);

impl Images {
    /// New keys.
    pub const K: usize = 0;
    /// New values.
    pub const V: usize = 1;
    /// Keys' cache.
    pub const K_CACHE: usize = 2;
    /// Values' cache.
    pub const V_CACHE: usize = 3;
    /// Queries.
    pub const Q: usize = 4;
    /// Queries' output; empty where it is in place.
    pub const Q_OUT: usize = 5;
    /// Cosines.
    pub const COS: usize = 6;
    /// Sines.
    pub const SIN: usize = 7;
    /// Their names.
    pub const NAMES: [&'static str; 8] =
        ["k", "v", "k_cache", "v_cache", "q", "q_out", "cos", "sin"];

    /// The buffers of a case, full of finite numbers.
    pub fn new(case: &CacheCase) -> Self {
        let problem = case.append();
        let mut random = Random::new(case.seed ^ 1);
        let tensor = |layout: Option<TensorLayout>| {
            layout.map(|it| (it.span().unwrap(), it.index([0; 4]), it.is_empty()))
        };
        let cache = |layout: Option<CacheLayout>| {
            layout.map(|it| (it.span().unwrap(), it.index([0; 4]), it.is_empty()))
        };
        let rotary = problem.rotary;
        let queries = rotary.and_then(|it| it.queries);
        let table = rotary.map(|it| {
            let elements = (it.table.positions - 1) * it.table.stride as usize + it.rotary_dim / 2;
            (elements, 0, false)
        });
        let table_type = rotary.map_or(DType::F32, |it| it.table.element.of(case.dtype));
        let extents = [
            tensor(Some(problem.k.tensor)),
            tensor(problem.v.map(|it| it.tensor)),
            cache(Some(problem.k.cache)),
            cache(problem.v.map(|it| it.cache)),
            tensor(queries.map(|it| it.q)),
            tensor(queries.filter(|it| it.q != it.out).map(|it| it.out)),
            table,
            table,
        ];
        let mut turn = 0;
        Self(extents.map(|extent| {
            let at = turn;
            turn += 1;
            let Some((span, origin, false)) = extent else {
                return Image::default();
            };
            // Every other buffer begins aligned.
            let offset = case.gaps[0] * (at % 2);
            let dtype = match at {
                Self::COS | Self::SIN => table_type,
                Self::K_CACHE | Self::V_CACHE => case.kv_dtype(),
                _ => case.dtype,
            };
            let width = dtype.bytes() as usize;
            let mut bytes = vec![0; (offset + span) * width];
            for index in 0..offset + span {
                let value = match at {
                    Self::COS | Self::SIN => random.uniform() as f32 * 2.0 - 1.0,
                    _ => number(&mut random),
                };
                element::write(dtype, &mut bytes, index, value);
                // Rounding may have made it infinite.
                if !element::read(dtype, &bytes, index).is_finite() {
                    element::write(dtype, &mut bytes, index, 1.0);
                }
            }
            Image {
                offset,
                origin,
                width,
                bytes,
            }
        }))
    }

    /// Refuses other bytes.
    ///
    /// # Errors
    /// The first byte that is another one.
    pub fn same(&self, found: &Self) -> std::result::Result<(), String> {
        for ((name, expected), found) in Self::NAMES.iter().zip(&self.0).zip(&found.0) {
            let mut bytes = expected.bytes.iter().zip(&found.bytes);
            if let Some(at) = bytes.position(|(a, b)| a != b) {
                return Err(format!(
                    "byte {at} of {name}: {} instead of {}",
                    found.bytes[at], expected.bytes[at]
                ));
            }
        }
        Ok(())
    }
}

/// A number of any size.
fn number(random: &mut Random) -> f32 {
    let scale = match random.below(8) {
        0 => 2f32.powi(-24),
        1 => 2f32.powi(-130),
        2 => 2f32.powi(13),
        3 => 2f32.powi(124),
        _ => 1.0,
    };
    random.normal() * scale
}

/// Buffers on a device.
struct Buffers<'d> {
    buffers: [DeviceBuffer<'d>; 8],
    numbers: Vec<DeviceBuffer<'d>>,
    rows: RowsPointers,
    rotary: RotaryPointers,
}

impl<'d> Buffers<'d> {
    fn new(
        device: &'d dyn Device,
        images: &Images,
        numbers: &Numbers,
        index: Option<IndexType>,
        in_place: bool,
    ) -> Result<Self> {
        let mut buffers = Vec::new();
        for image in &images.0 {
            buffers.push(DeviceBuffer::from_bytes(device, &image.bytes)?);
        }
        let address = |at: usize| match &images.0[at] {
            image if image.bytes.is_empty() => 0,
            image => buffers[at].address() + ((image.offset + image.origin) * image.width) as u64,
        };
        let small = |numbers: &[i32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let wide = |numbers: &[i64]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let positions: Vec<u8> = match index {
            Some(IndexType::I32) => {
                let narrow: Vec<i32> = numbers.positions.iter().map(|&n| n as i32).collect();
                small(&narrow)
            }
            _ => wide(&numbers.positions),
        };
        let scales = |side: usize| {
            let scales = numbers.scales[side].iter();
            scales.flat_map(|x| x.to_le_bytes()).collect()
        };
        let arrays: [Vec<u8>; 8] = [
            wide(&numbers.slots),
            small(&numbers.starts),
            small(&numbers.used),
            small(&numbers.first),
            small(&numbers.table),
            positions,
            scales(0),
            scales(1),
        ];
        let mut uploaded = Vec::new();
        for array in &arrays {
            uploaded.push(DeviceBuffer::from_bytes(device, array)?);
        }
        let rows = RowsPointers {
            k: address(Images::K),
            v: address(Images::V),
            k_cache: address(Images::K_CACHE),
            v_cache: address(Images::V_CACHE),
            k_scale: uploaded[6].address(),
            v_scale: uploaded[7].address(),
            slots: uploaded[0].address(),
            starts: uploaded[1].address(),
            used: uploaded[2].address(),
            first: uploaded[3].address(),
            table: uploaded[4].address(),
        };
        let q = address(Images::Q);
        let rotary = RotaryPointers {
            cos: address(Images::COS),
            sin: address(Images::SIN),
            positions: uploaded[5].address(),
            q,
            q_out: if in_place { q } else { address(Images::Q_OUT) },
        };
        let buffers = buffers.try_into().expect("as many as images");
        Ok(Self {
            buffers,
            numbers: uploaded,
            rows,
            rotary,
        })
    }

    /// What the buffers hold now.
    fn read(self, images: &Images) -> Result<Images> {
        let mut found = images.clone();
        for (image, buffer) in found.0.iter_mut().zip(&self.buffers) {
            image.bytes = buffer.to_vec()?;
        }
        drop(self.numbers);
        Ok(found)
    }
}

/// Appends on a device.
///
/// # Errors
/// Whatever the library says.
pub fn append(
    device: &dyn Device,
    problem: &AppendProblem,
    numbers: &Numbers,
    images: &Images,
) -> Result<Images> {
    let plan = problem.plan(device.info())?;
    let queries = problem.rotary.and_then(|rotary| rotary.queries);
    let in_place = queries.is_some_and(|it| it.q == it.out);
    let index = problem.rotary.and_then(|rotary| rotary.positions);
    let buffers = Buffers::new(device, images, numbers, index, in_place)?;
    // SAFETY: each buffer is allocated on this device and sized for its tensor, nothing else knows of them, and they are read when the
    // device is idle.
    unsafe { plan.launch(device, Stream::DEFAULT, &buffers.rows, &buffers.rotary)? };
    device.synchronize()?;
    buffers.read(images)
}

/// Gathers on a device.
///
/// # Errors
/// Whatever the library says.
pub fn gather(
    device: &dyn Device,
    problem: &GatherProblem,
    numbers: &Numbers,
    images: &Images,
) -> Result<Images> {
    let plan = problem.plan(device.info())?;
    let buffers = Buffers::new(device, images, numbers, None, false)?;
    // SAFETY: as in `append`.
    unsafe { plan.launch(device, Stream::DEFAULT, &buffers.rows)? };
    device.synchronize()?;
    buffers.read(images)
}

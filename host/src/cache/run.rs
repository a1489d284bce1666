//! Caches in the host's memory.

use flashtile_abi::cache::CachePair;

use super::{
    check::{PlaceData, check_distinct, check_pairs},
    copy::CopyProblem,
    plan::{RotaryPointers, RowsPointers},
    problem::{AppendProblem, GatherProblem, IndexType, Place, Rows},
    rotary::table_of_angles,
    rows::RowsExtents,
};
use crate::{
    device::{Device, DeviceBuffer, Stream},
    error::{Error, Result},
    extent::Extent,
    layout::TensorLayout,
    serving::CacheScales,
};

/// What goes into a cache, in the host's memory: little-endian elements, each slice from its tensor's lowest one on and at least as long as
/// the tensor's span. What the problem does not have is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CacheData<'a> {
    /// Keys.
    pub k: &'a [u8],
    /// Values.
    pub v: &'a [u8],
    /// Where they go.
    pub place: PlaceData<'a>,
    /// Scales of the keys' cache.
    pub k_scale: &'a [f32],
    /// Scales of the values' cache.
    pub v_scale: &'a [f32],
    /// Table of cosines.
    pub cos: &'a [u8],
    /// Table of sines.
    pub sin: &'a [u8],
    /// Positions by token, of whichever type the problem says.
    pub positions: &'a [i64],
    /// Queries.
    pub q: &'a [u8],
}

/// Copies of the host's tensors on a device.
struct Uploads<'d> {
    device: &'d dyn Device,
    buffers: Vec<DeviceBuffer<'d>>,
}

impl<'d> Uploads<'d> {
    fn new(device: &'d dyn Device) -> Self {
        let buffers = Vec::new();
        Self { device, buffers }
    }

    /// Address of element [0, 0, 0, 0]; 0 if there is nothing.
    fn add(&mut self, argument: &'static str, extent: Extent, bytes: &[u8]) -> Result<u64> {
        let buffer = DeviceBuffer::from_bytes(self.device, extent.of(argument, bytes)?)?;
        Ok(self.keep(extent, buffer))
    }

    /// As [`Uploads::add`], of zeros.
    fn zeroed(&mut self, extent: Extent) -> Result<u64> {
        let buffer = DeviceBuffer::zeroed(self.device, extent.bytes())?;
        Ok(self.keep(extent, buffer))
    }

    fn keep(&mut self, extent: Extent, buffer: DeviceBuffer<'d>) -> u64 {
        let address = buffer.address();
        self.buffers.push(buffer);
        match address {
            0 => 0,
            _ => extent.origin(address),
        }
    }

    fn numbers<const N: usize>(&mut self, numbers: impl Iterator<Item = [u8; N]>) -> Result<u64> {
        let bytes: Vec<u8> = numbers.flatten().collect();
        let extent = Extent::numbers(bytes.len(), 1);
        self.add("numbers", extent, &bytes)
    }

    fn scales(&mut self, [k, v]: [&[f32]; 2], pointers: &mut RowsPointers) -> Result<()> {
        pointers.k_scale = self.numbers(k.iter().map(|x| x.to_le_bytes()))?;
        pointers.v_scale = self.numbers(v.iter().map(|x| x.to_le_bytes()))?;
        Ok(())
    }

    fn place(&mut self, place: &Place, data: &PlaceData<'_>) -> Result<RowsPointers> {
        let pages = match place {
            Place::Slots => None,
            Place::Sequences(sequences) => sequences.pages.map(|it| (it, sequences.batch)),
        };
        let table: Vec<u8> = data.table.iter().flat_map(|n| n.to_le_bytes()).collect();
        let layout = match &pages {
            Some((table, batch)) => table.tensor(*batch),
            None => TensorLayout::contiguous([0; 4]),
        };
        let extent = Extent::tensor(&layout, 4);
        Ok(RowsPointers {
            slots: self.numbers(data.slots.iter().map(|n| n.to_le_bytes()))?,
            starts: self.numbers(data.starts.iter().map(|n| n.to_le_bytes()))?,
            used: self.numbers(data.used.iter().map(|n| n.to_le_bytes()))?,
            first: self.numbers(data.first.iter().map(|n| n.to_le_bytes()))?,
            table: self.add("block_table", extent, &table)?,
            ..RowsPointers::default()
        })
    }
}

/// The first two dimensions: batch and rows.
pub(super) fn tokens(rows: &Rows) -> [usize; 2] {
    [rows.tensor.shape[0], rows.tensor.shape[1]]
}

/// Keys and values, those that there are, with their arguments' names.
fn sides<'a>(k: &'a Rows, v: &'a Option<Rows>) -> [([&'static str; 2], Option<&'a Rows>); 2] {
    [(["k", "k_cache"], Some(k)), (["v", "v_cache"], v.as_ref())]
}

/// Appends to the caches of keys and values on a device, and returns the queries that were turned, from the lowest element on, gaps being
/// zeros: uploads, runs, downloads, and frees what it allocated. A cache that the problem does not have is empty.
///
/// # Errors
/// Whatever [`AppendProblem::plan`] and [`Place::rows`] refuse; [`Error::BadInput`] for slices that are too short, for two tokens with the
/// same row, for a scale that is not positive and finite, and for a position that the tables do not have; the device's own errors.
pub fn append(
    device: &dyn Device,
    problem: &AppendProblem,
    data: &CacheData<'_>,
    caches: [&mut [u8]; 2],
) -> Result<Vec<u8>> {
    let plan = problem.plan(device.info())?;
    let rows = problem
        .place
        .rows(tokens(&problem.k), &problem.k.cache, &data.place)?;
    check_distinct(&rows)?;
    check_positions(problem, data, &rows)?;
    check_scales(&problem.extents(), [data.k_scale, data.v_scale])?;
    let (element, kv_element) = (problem.dtype.bytes(), problem.kv_dtype.bytes());
    let mut uploads = Uploads::new(device);
    let mut pointers = uploads.place(&problem.place, &data.place)?;
    uploads.scales([data.k_scale, data.v_scale], &mut pointers)?;
    let mut cache_extents = [None; 2];
    let [k_cache, v_cache] = &caches;
    for ((((([argument, cache], side), from), into), [to, to_cache]), kept) in
        sides(&problem.k, &problem.v)
            .into_iter()
            .zip([data.k, data.v])
            .zip([&**k_cache, &**v_cache])
            .zip([
                [&mut pointers.k, &mut pointers.k_cache],
                [&mut pointers.v, &mut pointers.v_cache],
            ])
            .zip(&mut cache_extents)
    {
        if let Some(side) = side {
            let tensor = Extent::tensor(&side.tensor, element);
            *to = uploads.add(argument, tensor, from)?;
            let extent = Extent::cache(&side.cache, kv_element);
            *to_cache = uploads.add(cache, extent, into)?;
            *kept = Some((extent, uploads.buffers.len() - 1));
        }
    }
    let mut rotary = RotaryPointers::default();
    let mut turned = None;
    if let Some(by) = &problem.rotary {
        let table = table_of_angles(&by.table, by.rotary_dim / 2);
        let bytes = by.table.element.of(problem.dtype).bytes();
        let extent = Extent::tensor(&table, bytes);
        rotary.cos = uploads.add("cos", extent, data.cos)?;
        rotary.sin = uploads.add("sin", extent, data.sin)?;
        rotary.positions = match by.positions {
            None => 0,
            Some(IndexType::I64) => {
                uploads.numbers(data.positions.iter().map(|n| n.to_le_bytes()))?
            }
            // They are below the number of positions.
            Some(IndexType::I32) => {
                uploads.numbers(data.positions.iter().map(|&n| (n as i32).to_le_bytes()))?
            }
        };
        if let Some(queries) = &by.queries {
            let extent = Extent::tensor(&queries.q, element);
            rotary.q = uploads.add("q", extent, data.q)?;
            let extent = Extent::tensor(&queries.out, element);
            rotary.q_out = uploads.zeroed(extent)?;
            turned = Some(uploads.buffers.len() - 1);
        }
    }
    // SAFETY: every buffer is allocated on this device, holds its tensor's whole extent (by which it was sized) and overlaps no other, and
    // is only read again after the device is idle.
    unsafe { plan.launch(device, Stream::DEFAULT, &pointers, &rotary)? };
    device.synchronize()?;
    for (cache, kept) in caches.into_iter().zip(cache_extents) {
        if let Some((extent, buffer)) = kept
            && let Some(cache) = cache.get_mut(..extent.bytes())
        {
            uploads.buffers[buffer].read(cache)?;
        }
    }
    match turned {
        Some(buffer) => uploads.buffers[buffer].to_vec(),
        None => Ok(Vec::new()),
    }
}

/// Refuses other scales than a problem with these extents has.
pub(super) fn check_scales(has: &RowsExtents, [k, v]: [&[f32]; 2]) -> Result<()> {
    for (argument, extent, scales) in [("k_scale", has.k_scale, k), ("v_scale", has.v_scale, v)] {
        let wanted = extent.map_or(0, |extent| extent.bytes() / 4);
        CacheScales::check(argument, wanted, scales)?;
    }
    Ok(())
}

/// Refuses positions that the tables do not have, of tokens that are some sequence's.
pub(super) fn check_positions(
    problem: &AppendProblem,
    data: &CacheData<'_>,
    rows: &[Option<[usize; 2]>],
) -> Result<()> {
    let Some(rotary) = &problem.rotary else {
        return Ok(());
    };
    let most = rotary.table.positions as u64;
    let outside = |position: &i64| u64::try_from(*position).map_or(true, |n| n >= most);
    let wrong = match rotary.positions {
        Some(_) if data.positions.len() != rows.len() => {
            return Err(Error::bad(
                "positions",
                format!("{} numbers", rows.len()),
                data.positions.len().to_string(),
            ));
        }
        Some(_) => data.positions.iter().copied().find(outside),
        // The last row of a sequence is its last position.
        None => match problem.place {
            Place::Slots => None,
            Place::Sequences(sequences) => {
                let last = |n: usize| {
                    let rows = problem.k.tensor.shape[1];
                    let (_, length, first) = sequences.span(n, rows, &data.place);
                    (length > 0).then(|| (first + length - 1) as i64)
                };
                (0..sequences.batch).filter_map(last).find(outside)
            }
        },
    };
    match wrong {
        None => Ok(()),
        Some(position) => Err(Error::bad(
            "positions",
            format!("0 to {} positions, of which the tables have angles", most),
            position.to_string(),
        )),
    }
}

/// Gathers keys and values from caches on a device, from the lowest element on, gaps and what is no sequence's being zeros: uploads, runs,
/// downloads, and frees what it allocated. What the problem does not have is empty; caches and their scales are those of keys and of values.
///
/// # Errors
/// Whatever [`GatherProblem::plan`] and [`Place::rows`] refuse; [`Error::BadInput`] for caches that are too short, and for a scale that is not
/// positive and finite; the device's own errors.
pub fn gather(
    device: &dyn Device,
    problem: &GatherProblem,
    place: &PlaceData<'_>,
    caches: [&[u8]; 2],
    scales: [&[f32]; 2],
) -> Result<[Vec<u8>; 2]> {
    let plan = problem.plan(device.info())?;
    problem
        .place
        .rows(tokens(&problem.k), &problem.k.cache, place)?;
    check_scales(&problem.extents(), scales)?;
    let (element, kv_element) = (problem.dtype.bytes(), problem.kv_dtype.bytes());
    let mut uploads = Uploads::new(device);
    let mut pointers = uploads.place(&problem.place, place)?;
    uploads.scales(scales, &mut pointers)?;
    let mut outputs = [None; 2];
    for (((([_, cache], side), from), [to, to_cache]), output) in sides(&problem.k, &problem.v)
        .into_iter()
        .zip(caches)
        .zip([
            [&mut pointers.k, &mut pointers.k_cache],
            [&mut pointers.v, &mut pointers.v_cache],
        ])
        .zip(&mut outputs)
    {
        if let Some(side) = side {
            let extent = Extent::cache(&side.cache, kv_element);
            *to_cache = uploads.add(cache, extent, from)?;
            let extent = Extent::tensor(&side.tensor, element);
            *to = uploads.zeroed(extent)?;
            *output = Some(uploads.buffers.len() - 1);
        }
    }
    // SAFETY: as in `append`.
    unsafe { plan.launch(device, Stream::DEFAULT, &pointers)? };
    device.synchronize()?;
    let [k, v] = outputs.map(|output| match output {
        Some(buffer) => uploads.buffers[buffer].to_vec(),
        None => Ok(Vec::new()),
    });
    Ok([k?, v?])
}

/// Copies blocks within each of the caches on a device: uploads, runs, downloads, and frees what it allocated. Each cache is from its lowest
/// byte on.
///
/// # Errors
/// Whatever [`CopyProblem::plan`] and [`check_pairs`] refuse; [`Error::BadInput`] for caches that are too short; the device's own errors.
pub fn copy_blocks(
    device: &dyn Device,
    problem: &CopyProblem,
    pairs: &[[i64; 2]],
    caches: &mut [&mut [u8]],
) -> Result<()> {
    let plan = problem.plan(device.info())?;
    if problem.src != problem.dst {
        return Err(Error::bad(
            "dst",
            format!("{:?}, since the caches are the same", problem.src),
            format!("{:?}", problem.dst),
        ));
    }
    check_pairs(pairs, problem, true)?;
    let mut uploads = Uploads::new(device);
    let numbers = pairs.iter().flatten();
    let numbers = match problem.index {
        IndexType::I64 => uploads.numbers(numbers.map(|n| n.to_le_bytes()))?,
        // They are below the number of blocks.
        IndexType::I32 => uploads.numbers(numbers.map(|&n| (n as i32).to_le_bytes()))?,
    };
    let extent = problem.src.extent(problem.block_bytes);
    let first = uploads.buffers.len();
    let mut addresses = Vec::new();
    for cache in caches.iter() {
        let address = uploads.add("caches", extent, cache)?;
        addresses.push(CachePair {
            src: address,
            dst: address,
        });
    }
    // SAFETY: as in `append`.
    unsafe { plan.launch(device, Stream::DEFAULT, numbers, &addresses)? };
    device.synchronize()?;
    for (cache, buffer) in caches.iter_mut().zip(&uploads.buffers[first..]) {
        if let Some(cache) = cache.get_mut(..extent.bytes()) {
            buffer.read(cache)?;
        }
    }
    Ok(())
}

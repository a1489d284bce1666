//! Launches of the sm_90a tier: what the copy engine can address, which rows share tiles, who computes what.

use std::fmt;

use flashtile_abi::{
    DType, Schedule, Variant,
    hopper::{MOST_PIECES, WARPGROUP_ROWS, swizzle_bytes},
};

use crate::{
    device::{DeviceInfo, DeviceKind, TensorMapSpec},
    error::{Error, Result},
    layout::TensorLayout,
    plan::{Pointers, validate},
    problem::{Problem, Shape},
};

/// Bytes that addresses and strides of tensors are multiples of.
const ALIGNMENT: u64 = 16;

/// Largest stride of a tensor, and one more.
const STRIDE_LIMIT: u64 = 1 << 40;

/// Keys and values that are in use at the same time, in bytes: a part of the L2 cache (50 MB on H100 and H200) that leaves room for
/// the rest. (FlashAttention-3's scheduler has the same.)
const SECTION_BYTES: u64 = 32 << 20;

/// The same on the emulator, which has no cache: so small that small problems have several sections.
const EMULATED_SECTION_BYTES: u64 = 128 << 10;

/// Why no kernel of the sm_90a tier computes a problem that it has a kernel for: the copy engine cannot address a tensor, or the driver
/// is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Obstacle {
    argument: &'static str,
    what: What,
    found: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Address,
    Stride,
    /// What the driver lacks.
    Driver(&'static str),
}

impl Obstacle {
    /// Of a device that would have the tier.
    pub(super) fn of_driver(device: &DeviceInfo) -> Option<Self> {
        let lacks = device.driver_lacks?;
        Some(Self {
            argument: "driver",
            what: What::Driver(lacks),
            found: 0,
        })
    }

    fn expected(&self) -> &'static str {
        match self.what {
            What::Address => {
                "an address that is a multiple of 16, as the copy engine of the sm_90a tier needs it"
            }
            What::Stride => {
                "strides that are positive multiples of 16 bytes below 2^40, as the copy engine of the sm_90a tier needs them"
            }
            What::Driver(_) => "one that is new enough for the copy engine of the sm_90a tier",
        }
    }

    fn found(&self) -> String {
        match self.what {
            What::Address => format!("{:#x}", self.found),
            What::Stride => format!("a stride of {} bytes", self.found),
            What::Driver(lacks) => format!("one that lacks {lacks}"),
        }
    }

    pub(super) fn error(&self) -> Error {
        match self.what {
            What::Driver(_) => Error::NoDevice {
                reason: self.to_string(),
            },
            What::Address | What::Stride => {
                Error::bad(self.argument, self.expected(), self.found())
            }
        }
    }

    /// The same, where no other tier has a kernel for the problem.
    pub(super) fn error_of_the_only_tier(&self) -> Error {
        let expected = format!("{} (no other has these head dimensions)", self.expected());
        Error::bad(self.argument, expected, self.found())
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: expected {}, found {}",
            self.argument,
            self.expected(),
            self.found()
        )
    }
}

/// The tensors that the copy engine moves, with their element types, each at one of the addresses.
fn tensors<T>(
    problem: &Problem,
    [q, k, v, out]: [T; 4],
) -> impl Iterator<Item = (&'static str, &TensorLayout, DType, T)> {
    // f32 output is written by the threads.
    let element = problem.out_element();
    let out = (element != DType::F32).then_some(("out", &problem.out, element, out));
    let dtype = problem.dtype;
    let all = [
        ("q", &problem.q, dtype, q),
        ("k", &problem.k, dtype, k),
        ("v", &problem.v, dtype, v),
    ];
    let all = all.into_iter().chain(out);
    all.filter(|(_, layout, ..)| !layout.is_empty())
}

/// The first stride that the copy engine cannot take, if any.
pub(super) fn obstacle(problem: &Problem) -> Option<Obstacle> {
    tensors(problem, [(); 4]).find_map(|(argument, layout, element, ())| {
        let bytes = i64::from(element.bytes());
        let steps = (0..3).filter(|&dim| layout.shape[dim] > 1);
        let strides = steps.map(|dim| layout.strides[dim].wrapping_mul(bytes));
        let bad = |stride: &i64| {
            let fits = u64::try_from(*stride)
                .is_ok_and(|s| s != 0 && s < STRIDE_LIMIT && s.is_multiple_of(ALIGNMENT));
            !fits
        };
        let found = strides.into_iter().find(bad)?;
        Some(Obstacle {
            argument,
            what: What::Stride,
            found,
        })
    })
}

/// The first address that the copy engine cannot take, if any.
pub(super) fn address_obstacle(problem: &Problem, pointers: &Pointers) -> Option<Obstacle> {
    let all = [pointers.q, pointers.k, pointers.v, pointers.out];
    tensors(problem, all).find_map(|(argument, _, _, address)| {
        let found = (!address.is_multiple_of(ALIGNMENT)).then_some(address as i64)?;
        Some(Obstacle {
            argument,
            what: What::Address,
            found,
        })
    })
}

fn section_bytes(device: &DeviceInfo) -> u64 {
    match device.kind {
        DeviceKind::Cuda => SECTION_BYTES,
        DeviceKind::Emulator => EMULATED_SECTION_BYTES,
    }
}

/// How the blocks share the work.
pub(super) fn schedule(
    problem: &Problem,
    shape: &Shape,
    variant: &Variant,
    device: &DeviceInfo,
) -> Result<Schedule> {
    let tile = &variant.tile;
    let block_m = u64::from(tile.block_m);
    let q_per_kv = shape.heads_q / shape.heads_kv;
    let seqlen_q = shape.seqlen_q as u64;

    // Heads that share keys can share tiles, where the rows of a single one leave much of a tile empty.
    let most = q_per_kv
        .trailing_zeros()
        .min(WARPGROUP_ROWS.trailing_zeros());
    // Of a packed tensor the copy engine steps over 2^pack heads at once.
    let step = tensors(problem, [(); 4])
        .filter(|(argument, layout, ..)| ["q", "out"].contains(argument) && layout.shape[2] > 1)
        .map(|(_, layout, element, ())| {
            layout.strides[2].unsigned_abs() * u64::from(element.bytes())
        })
        .fold(0, u64::max);
    let most = (0..=most)
        .rev()
        .find(|pack| seqlen_q << pack <= i32::MAX as u64 && step << pack < STRIDE_LIMIT);
    let filled = |pack: u32| {
        let rows = seqlen_q << pack;
        rows as f64 / (rows.div_ceil(block_m).max(1) * block_m) as f64
    };
    let pack = most
        .filter(|&pack| filled(0) < 0.9 * filled(pack))
        .unwrap_or(0);

    let m_blocks = (seqlen_q << pack).div_ceil(block_m);
    let groups_per_kv = (q_per_kv >> pack) as u64;
    // Where there are no queries, there may be any number of heads.
    let groups = (shape.batch as u64).saturating_mul(shape.heads_q as u64) >> pack;
    validate::grid_blocks(shape, m_blocks)?;

    let kv_bytes = shape.seqlen_k as u64
        * (shape.head_dim_qk + shape.head_dim_v) as u64
        * u64::from(problem.dtype.bytes());
    let kv_heads = (section_bytes(device) / kv_bytes.max(1)).max(1);
    let section = kv_heads.saturating_mul(groups_per_kv).min(groups).max(1);

    // Two blocks share keys and values if they see the same ones and neither is idle.
    let same_keys = !problem.is_masked();
    let pays = tile.head_dim_qk >= 128 && shape.seqlen_k as u64 > u64::from(tile.block_n);
    let pairs = m_blocks.is_multiple_of(2) && device.multiprocessors >= 2;
    let cluster = if same_keys && pays && pairs { 2 } else { 1 };
    let pieces = (m_blocks / cluster).saturating_mul(groups) as u32;
    Ok(Schedule {
        pieces,
        rounds: pieces.div_ceil(clusters(pieces, cluster as u32, device).max(1)),
        groups: groups as u32,
        section: section as u32,
        pack,
        rows: (seqlen_q << pack) as i32,
        cluster: cluster as u32,
        padding: 0,
    })
}

/// Clusters of the grid: as many as run at the same time, if there is work for them; more if that were too much for each.
fn clusters(pieces: u32, cluster: u32, device: &DeviceInfo) -> u32 {
    let resident = (device.multiprocessors / cluster).max(1);
    resident.max(pieces.div_ceil(MOST_PIECES)).min(pieces)
}

/// Blocks of the grid.
pub(super) fn blocks(schedule: &Schedule, device: &DeviceInfo) -> u32 {
    clusters(schedule.pieces, schedule.cluster, device) * schedule.cluster
}

/// What the copy engine is told of q, k, v and out. Where out is f32, its map is that of q, which is not used.
pub(super) fn tensor_maps(
    problem: &Problem,
    variant: &Variant,
    schedule: &Schedule,
    pointers: &Pointers,
) -> [TensorMapSpec; 4] {
    let tile = &variant.tile;
    let out_element = problem.out_element();
    let (packed, kv_rows) = (1 << schedule.pack, tile.block_n / schedule.cluster);
    let map = |layout: &TensorLayout, dtype: DType, address, pack: u32, rows: u32, padded: u32| {
        let element = dtype.bytes();
        let swizzle = swizzle_bytes(padded * element);
        let [batch, seqlen, heads, dim] = layout.shape.map(|n| n.max(1) as u64);
        let stride = |dim: usize, times: u64| match layout.shape[dim] {
            // A dimension that never steps may have any stride.
            0 | 1 => ALIGNMENT,
            _ if layout.is_empty() => ALIGNMENT,
            _ => layout.strides[dim] as u64 * u64::from(element) * times,
        };
        TensorMapSpec {
            dtype,
            // Without elements nothing is read, but the engine wants an address.
            address: if layout.is_empty() {
                pointers.q
            } else {
                address
            },
            dims: [dim, u64::from(pack), seqlen, heads / u64::from(pack), batch],
            strides: [
                stride(2, 1),
                stride(1, 1),
                stride(2, u64::from(pack)),
                stride(0, 1),
            ],
            extents: [swizzle / element, pack, rows / pack, 1, 1],
            swizzle,
        }
    };
    let input =
        |layout, address, pack, rows, padded| map(layout, tile.dtype, address, pack, rows, padded);
    let (rows, dim_qk, dim_v) = (WARPGROUP_ROWS, tile.head_dim_qk, tile.head_dim_v);
    let q = input(&problem.q, pointers.q, packed, rows, dim_qk);
    let part = dim_v / tile.v_splits;
    let out = match out_element {
        DType::F32 => q,
        _ => map(&problem.out, out_element, pointers.out, packed, rows, part),
    };
    [
        q,
        input(&problem.k, pointers.k, 1, kv_rows, dim_qk),
        input(&problem.v, pointers.v, 1, kv_rows, dim_v),
        out,
    ]
}

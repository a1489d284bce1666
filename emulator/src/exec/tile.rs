//! What one bulk copy moves: rows of contiguous bytes, in global memory and in shared memory.

use std::rc::Rc;

use super::{Cluster, RANK_MASK, SHARED_BASE};
use crate::error::FaultKind;
use crate::memory::DeviceMemory;
use crate::program::AtomicFn;
use crate::tensor_map::{ElementType, MOST_DIMS, OobFill, TensorMap};

/// A row of a tile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Where its bytes `from..to` are: allocation and offset.
    pub(super) global: (usize, u64),
    /// The bytes of it that are inside the tensor.
    pub(super) from: u32,
    pub(super) to: u32,
}

/// What one bulk copy moves. In shared memory row `n` begins `n` rows after the start.
#[derive(Debug)]
pub(super) struct Tile {
    pub(super) rows: Vec<Row>,
    pub(super) row_bytes: u32,
    /// Bits of a shared address that are shifted right by 3 and change the address.
    swizzle: u64,
    /// Type of the elements of a tensor, and what those outside are.
    element: Option<ElementType>,
    fill: u64,
}

/// A stretch of a block's shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    /// The block's rank in the cluster.
    pub(super) rank: u32,
    /// Address in its shared memory.
    pub(super) address: u64,
}

/// Bytes that stay together in shared memory, whatever the swizzle.
pub(super) const CHUNK: usize = 16;

impl Tile {
    /// A row of bytes in global memory.
    pub(super) fn linear(
        memory: &DeviceMemory,
        address: u64,
        bytes: u32,
        write: bool,
    ) -> Result<Rc<Tile>, FaultKind> {
        let global = match bytes {
            0 => (0, 0),
            _ => memory.locate(address, u64::from(bytes), write)?,
        };
        Ok(Rc::new(Tile {
            rows: vec![Row {
                global,
                from: 0,
                to: bytes,
            }],
            row_bytes: bytes,
            swizzle: 0,
            element: None,
            fill: 0,
        }))
    }

    /// A row of bytes that are in no global memory.
    pub(super) fn unmapped(bytes: u32) -> Rc<Tile> {
        let none = Row {
            global: (0, 0),
            from: 0,
            to: 0,
        };
        Rc::new(Tile {
            rows: vec![none],
            row_bytes: bytes,
            swizzle: 0,
            element: None,
            fill: 0,
        })
    }

    /// The box of a tensor that begins at these coordinates.
    pub(super) fn boxed(
        memory: &DeviceMemory,
        map: &TensorMap,
        coordinates: &[i32],
        write: bool,
    ) -> Result<Rc<Tile>, FaultKind> {
        let operand = |reason: String| Err(FaultKind::BadOperand { reason });
        let rank = map.dims.len();
        if coordinates.len() != rank {
            let reason = format!(
                "{} coordinates, but the tensor map has {rank} dimensions",
                coordinates.len()
            );
            return operand(reason);
        }
        if write && coordinates.iter().any(|&c| c < 0) {
            return operand(format!("a store at the coordinates {coordinates:?}"));
        }
        let converts = [ElementType::F32Ftz, ElementType::Tf32, ElementType::Tf32Ftz];
        if converts.contains(&map.element_type) {
            let reason = format!(
                "tensor maps of {:?}, whose elements are converted on the way",
                map.element_type
            );
            return Err(FaultKind::Unsupported { reason });
        }
        let (row_bytes, each) = (map.inner_bytes(), map.element_type.bytes());
        if let Some(span) = map.swizzle.span()
            && row_bytes != span
        {
            let reason = format!(
                "a swizzle of {span} bytes and box rows of {row_bytes}: how they lie in shared memory is not documented"
            );
            return Err(FaultKind::Unsupported { reason });
        }
        // The innermost dimension: elements first..last of the row are inside.
        let (start, count) = (i64::from(coordinates[0]), i64::from(map.box_dims[0]));
        let first = (-start).clamp(0, count);
        let last = (map.dims[0] as i64 - start).clamp(first, count);
        let moved = map.moved();
        let mut rows = Vec::with_capacity(moved[1..].iter().product::<u32>() as usize);
        let mut index = [0u32; MOST_DIMS];
        loop {
            let mut inside = first < last;
            let mut offset = (start + first) * i64::from(each);
            for n in 1..rank {
                let step = map.element_strides[n] * index[n];
                let at = i64::from(coordinates[n]) + i64::from(step);
                inside &= (0..map.dims[n] as i64).contains(&at);
                // Below 2^33 * 2^40: cut, as the address is.
                offset = offset.wrapping_add(at.wrapping_mul(map.strides[n - 1] as i64));
            }
            let mut row = Row {
                global: (0, 0),
                from: 0,
                to: 0,
            };
            if inside {
                (row.from, row.to) = (first as u32 * each, last as u32 * each);
                let address = map.address.wrapping_add_signed(offset);
                let bytes = u64::from(row.to - row.from);
                row.global = memory.locate(address, bytes, write)?;
            }
            rows.push(row);
            let Some(next) = (1..rank).find(|&n| index[n] + 1 < moved[n]) else {
                break;
            };
            index[next] += 1;
            index[1..next].fill(0);
        }
        let fill = match (map.oob_fill, map.element_type) {
            (OobFill::Zero, _) => 0,
            (_, ElementType::F16 | ElementType::Bf16) => 0x7fff_7fff_7fff_7fff,
            (_, ElementType::F64) => 0x7fff_ffff_ffff_ffff,
            _ => 0x7fff_ffff_7fff_ffff,
        };
        Ok(Rc::new(Tile {
            rows,
            row_bytes,
            swizzle: map.swizzle.mask(),
            element: Some(map.element_type),
            fill,
        }))
    }

    /// Bytes that are moved, those outside of the tensor included.
    pub(super) fn bytes(&self) -> u32 {
        self.rows.len() as u32 * self.row_bytes
    }

    pub(super) fn element(&self) -> Option<ElementType> {
        self.element
    }

    /// The pieces of a row that lie together in shared memory: first byte in the row, bytes, and the place.
    pub(super) fn pieces(
        &self,
        stride: usize,
        start: Start,
        row: usize,
    ) -> impl Iterator<Item = (usize, usize, usize)> {
        let bytes = self.row_bytes as usize;
        let each = if self.swizzle == 0 { bytes } else { CHUNK };
        let (mask, first) = (self.swizzle, start.address + (row * bytes) as u64);
        (0..bytes).step_by(each.max(1)).map(move |at| {
            let linear = first + at as u64;
            let address = linear ^ (linear & mask) >> 3;
            (at, each, start.place(stride, address))
        })
    }

    /// Copies from global to shared memory.
    pub(super) fn load(&self, cluster: &mut Cluster<'_, '_>, start: Start) {
        let stride = cluster.machine.shared_stride();
        let fill = self.fill.to_le_bytes();
        let mut bytes = vec![0; self.row_bytes as usize];
        for (n, row) in self.rows.iter().enumerate() {
            if row.to - row.from != self.row_bytes {
                for (at, byte) in bytes.iter_mut().enumerate() {
                    *byte = fill[at % 8];
                }
            }
            if let Some(allocation) = cluster.machine.memory.get(row.global.0)
                && row.from != row.to
            {
                let inside = &mut bytes[row.from as usize..row.to as usize];
                allocation.copy_out(row.global.1, inside);
            }
            for (at, len, place) in self.pieces(stride, start, n) {
                cluster.shared[place..place + len].copy_from_slice(&bytes[at..at + len]);
            }
        }
    }

    /// The bytes in shared memory, row after row.
    pub(super) fn gather(&self, cluster: &Cluster<'_, '_>, start: Start) -> Vec<u8> {
        let stride = cluster.machine.shared_stride();
        let mut bytes = Vec::with_capacity(self.bytes() as usize);
        for n in 0..self.rows.len() {
            for (_, len, place) in self.pieces(stride, start, n) {
                bytes.extend_from_slice(&cluster.shared[place..place + len]);
            }
        }
        bytes
    }

    /// Writes them to global memory, or updates it with them.
    pub(super) fn store(
        &self,
        memory: &DeviceMemory,
        bytes: &[u8],
        reduce: Option<(&AtomicFn, u32)>,
    ) {
        let rows = bytes.chunks_exact(self.row_bytes.max(1) as usize);
        for (row, bytes) in self.rows.iter().zip(rows) {
            let Some(allocation) = memory.get(row.global.0).filter(|_| row.from != row.to) else {
                continue;
            };
            let bytes = &bytes[row.from as usize..row.to as usize];
            let Some((f, each)) = reduce else {
                allocation.copy_in(row.global.1, bytes);
                continue;
            };
            for (n, element) in bytes.chunks_exact(each as usize).enumerate() {
                let mut word = [0; 8];
                word[..element.len()].copy_from_slice(element);
                let operand = u64::from_le_bytes(word);
                let at = row.global.1 + n as u64 * u64::from(each);
                match each {
                    2 => allocation.update::<2>(at, |old| f(old, operand, operand)),
                    4 => allocation.update::<4>(at, |old| f(old, operand, operand)),
                    _ => allocation.update::<8>(at, |old| f(old, operand, operand)),
                };
            }
        }
    }
}

impl Start {
    /// Where an address of the same block is in the cluster's shared memory.
    pub(super) fn place(self, stride: usize, address: u64) -> usize {
        self.rank as usize * stride + ((address & RANK_MASK) - SHARED_BASE) as usize
    }
}

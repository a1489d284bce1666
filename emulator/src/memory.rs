//! Device memory: a table of allocations, each with its own host storage.
//!
//! Every cell is an atomic, and kernels access it with relaxed loads and stores of the access's own width, so a kernel
//! with a data race gets some value, as on a GPU, and never undefined behaviour of the host program.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::error::{FaultKind, MemoryError, Space};

/// What memory holds before anything is written to it: NaN in every floating-point type, and no valid pointer.
pub(crate) const POISON: u8 = 0xff;

/// First device address that is handed out.
const FIRST: u64 = 0x0000_7000_0000_0000;
/// Free addresses between two allocations.
const GUARD: u64 = 4096;

/// A mask of `len` bits, from 1 to 32.
pub(crate) fn ones(len: usize) -> u32 {
    u32::MAX >> (32 - len.clamp(1, 32))
}

/// One live allocation.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) read_only: bool,
    cells: Box<[AtomicU64]>,
    /// The bytes that were written, a bit each, if that is tracked.
    written: Option<Box<[AtomicU32]>>,
}

impl Allocation {
    fn new(base: u64, len: u64, track: bool) -> Self {
        let cells = (0..len.div_ceil(8))
            .map(|_| AtomicU64::new(u64::MAX))
            .collect();
        Self {
            base,
            len,
            read_only: false,
            cells,
            written: track.then(|| (0..len.div_ceil(32)).map(|_| AtomicU32::new(0)).collect()),
        }
    }

    /// The bytes of a range of at most 32, which lies in an aligned block of 32, that were written: a bit each.
    pub(crate) fn written(&self, offset: u64, len: usize) -> u32 {
        let Some(written) = &self.written else {
            return u32::MAX;
        };
        let word = written.get(offset as usize / 32);
        word.map_or(0, |word| word.load(Relaxed)) >> (offset % 32) & ones(len)
    }

    /// Sets them.
    pub(crate) fn set_written(&self, offset: u64, len: usize, written: u32) {
        let words = self.written.as_ref();
        if let Some(word) = words.and_then(|words| words.get(offset as usize / 32)) {
            let (mask, bits) = (ones(len) << (offset % 32), written << (offset % 32));
            word.fetch_and(!mask | bits, Relaxed);
            word.fetch_or(mask & bits, Relaxed);
        }
    }

    /// Notes that the host has written a range (all ones), or that nobody has (0).
    fn note(&self, offset: u64, len: u64, written: u32) {
        if self.written.is_none() {
            return;
        }
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let n = (32 - at % 32).min(end - at);
            self.set_written(at, n as usize, written);
            at += n;
        }
    }

    /// The first byte of a range that was never written.
    fn first_unwritten(&self, offset: u64, len: u64) -> Option<u64> {
        self.written.as_ref()?;
        (offset..offset + len).find(|&at| self.written(at, 1) == 0)
    }

    /// Pointer to the byte at `offset`.
    #[inline(always)]
    fn at(&self, offset: u64) -> *const u8 {
        debug_assert!(offset <= self.len);
        self.cells
            .as_ptr()
            .cast::<u8>()
            .wrapping_add(offset as usize)
    }

    /// Reads `N` = 1, 2, 4 or 8 bytes at a multiple of `N` inside the allocation.
    #[inline(always)]
    pub(crate) fn load<const N: usize>(&self, offset: u64) -> u64 {
        assert!(offset.is_multiple_of(N as u64) && offset + N as u64 <= self.len);
        let at = self.at(offset);
        // SAFETY: `cells` lives as long as `self` and is interior-mutable; the assertion above keeps the N bytes at
        // `at` inside it, and since the cells are 8-aligned, `at` is aligned for an N-byte atomic.
        unsafe {
            match N {
                1 => u64::from((*at.cast::<AtomicU8>()).load(Relaxed)),
                2 => u64::from((*at.cast::<AtomicU16>()).load(Relaxed)),
                4 => u64::from((*at.cast::<AtomicU32>()).load(Relaxed)),
                _ => (*at.cast::<AtomicU64>()).load(Relaxed),
            }
        }
    }

    /// Writes the low `N` = 1, 2, 4 or 8 bytes of `value` at a multiple of `N` inside the allocation.
    #[inline(always)]
    pub(crate) fn store<const N: usize>(&self, offset: u64, value: u64) {
        assert!(offset.is_multiple_of(N as u64) && offset + N as u64 <= self.len);
        let at = self.at(offset);
        // SAFETY: as in `load`.
        unsafe {
            match N {
                1 => (*at.cast::<AtomicU8>()).store(value as u8, Relaxed),
                2 => (*at.cast::<AtomicU16>()).store(value as u16, Relaxed),
                4 => (*at.cast::<AtomicU32>()).store(value as u32, Relaxed),
                _ => (*at.cast::<AtomicU64>()).store(value, Relaxed),
            }
        }
    }

    /// Replaces the `N` = 2, 4 or 8 bytes at a multiple of `N` by `f` of them, atomically; returns the old value.
    pub(crate) fn update<const N: usize>(&self, offset: u64, f: impl Fn(u64) -> u64) -> u64 {
        assert!(offset.is_multiple_of(N as u64) && offset + N as u64 <= self.len);
        let at = self.at(offset);
        // SAFETY: as in `load`.
        unsafe {
            match N {
                2 => {
                    let cell = &*at.cast::<AtomicU16>();
                    u64::from(
                        cell.fetch_update(Relaxed, Relaxed, |v| Some(f(u64::from(v)) as u16))
                            .unwrap_or(0),
                    )
                }
                4 => {
                    let cell = &*at.cast::<AtomicU32>();
                    u64::from(
                        cell.fetch_update(Relaxed, Relaxed, |v| Some(f(u64::from(v)) as u32))
                            .unwrap_or(0),
                    )
                }
                _ => {
                    let cell = &*at.cast::<AtomicU64>();
                    cell.fetch_update(Relaxed, Relaxed, |v| Some(f(v)))
                        .unwrap_or(0)
                }
            }
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.note(offset, bytes.len() as u64, u32::MAX);
        self.copy_in(offset, bytes);
    }

    /// Writes bytes inside the allocation.
    pub(crate) fn copy_in(&self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let (head, rest) = bytes.split_at(bytes.len().min((offset.wrapping_neg() % 8) as usize));
        for &byte in head {
            self.store::<1>(at, u64::from(byte));
            at += 1;
        }
        let (words, tail) = rest.as_chunks::<8>();
        for word in words {
            self.store::<8>(at, u64::from_le_bytes(*word));
            at += 8;
        }
        for &byte in tail {
            self.store::<1>(at, u64::from(byte));
            at += 1;
        }
    }

    /// Reads bytes inside the allocation.
    pub(crate) fn copy_out(&self, offset: u64, bytes: &mut [u8]) {
        let mut at = offset;
        let (head, rest) =
            bytes.split_at_mut(bytes.len().min((offset.wrapping_neg() % 8) as usize));
        for byte in head {
            *byte = self.load::<1>(at) as u8;
            at += 1;
        }
        let (words, tail) = rest.as_chunks_mut::<8>();
        for word in words {
            *word = self.load::<8>(at).to_le_bytes();
            at += 8;
        }
        for byte in tail {
            *byte = self.load::<1>(at) as u8;
            at += 1;
        }
    }
}

/// The device's memory.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    limit: u64,
    track: bool,
    used: u64,
    next: u64,
    /// Live allocations by ascending address.
    live: Vec<Allocation>,
    /// Freed ranges: base to length. Addresses are never handed out twice.
    freed: BTreeMap<u64, u64>,
}

impl DeviceMemory {
    /// Empty memory; `track`: note which bytes are written.
    pub(crate) fn new(limit: u64, track: bool) -> Self {
        Self {
            limit,
            track,
            used: 0,
            next: FIRST,
            live: Vec::new(),
            freed: BTreeMap::new(),
        }
    }

    pub(crate) fn allocate(&mut self, bytes: u64) -> Result<u64, MemoryError> {
        let out = MemoryError::OutOfMemory {
            requested: bytes,
            used: self.used,
            limit: self.limit,
        };
        let size = bytes
            .max(1)
            .checked_next_multiple_of(256)
            .ok_or_else(|| out.clone())?;
        if self
            .used
            .checked_add(size)
            .is_none_or(|total| total > self.limit)
        {
            return Err(out);
        }
        let base = self.next;
        self.next = base
            .checked_add(size + GUARD)
            .filter(|&next| next < 1 << 55)
            .ok_or(out)?;
        self.used += size;
        self.live.push(Allocation::new(base, bytes, self.track));
        Ok(base)
    }

    pub(crate) fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        let at = self
            .live
            .binary_search_by_key(&address, |a| a.base)
            .map_err(|_| MemoryError::NotAllocated { address })?;
        let gone = self.live.remove(at);
        self.used -= gone.len.max(1).next_multiple_of(256);
        self.freed.insert(gone.base, gone.len);
        // The list of freed ranges serves messages only: keep it bounded.
        if self.freed.len() > 4096 {
            self.freed.pop_first();
        }
        Ok(())
    }

    pub(crate) fn set_read_only(&mut self, address: u64) {
        if let Ok(at) = self.live.binary_search_by_key(&address, |a| a.base) {
            self.live[at].read_only = true;
        }
    }

    /// The allocation that holds the address, by its place in the table.
    #[inline]
    pub(crate) fn find(&self, address: u64) -> Option<usize> {
        let at = self
            .live
            .partition_point(|a| a.base <= address)
            .checked_sub(1)?;
        (address - self.live[at].base < self.live[at].len).then_some(at)
    }

    #[inline(always)]
    pub(crate) fn get(&self, index: usize) -> Option<&Allocation> {
        self.live.get(index)
    }

    fn range(&self, address: u64, len: u64) -> Result<(&Allocation, u64), MemoryError> {
        let inside = |at: usize| {
            let allocation = &self.live[at];
            let offset = address - allocation.base;
            (len <= allocation.len - offset).then_some((allocation, offset))
        };
        // An empty range may lie at the very end, or in an empty allocation.
        let at = self
            .live
            .partition_point(|a| a.base <= address)
            .checked_sub(1);
        at.filter(|&at| address - self.live[at].base <= self.live[at].len)
            .and_then(inside)
            .ok_or_else(|| MemoryError::OutOfBounds {
                address,
                len,
                detail: format!(" ({})", self.nearest(address)),
            })
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let (allocation, offset) = self.range(address, bytes.len() as u64)?;
        allocation.write(offset, bytes);
        Ok(())
    }

    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let (allocation, offset) = self.range(address, bytes.len() as u64)?;
        allocation.copy_out(offset, bytes);
        Ok(())
    }

    pub(crate) fn fill(&self, address: u64, len: u64, byte: u8) -> Result<(), MemoryError> {
        let (allocation, offset) = self.range(address, len)?;
        let block = [byte; 4096];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(4096);
            allocation.write(offset + done, &block[..n as usize]);
            done += n;
        }
        Ok(())
    }

    /// Poisons a range.
    pub(crate) fn forget(&self, address: u64, len: u64) -> Result<(), MemoryError> {
        self.fill(address, len, POISON)?;
        let (allocation, offset) = self.range(address, len)?;
        allocation.note(offset, len, 0);
        Ok(())
    }

    /// The first address of a range that nobody has written, if that is tracked.
    pub(crate) fn first_unwritten(
        &self,
        address: u64,
        len: u64,
    ) -> Result<Option<u64>, MemoryError> {
        let (allocation, offset) = self.range(address, len)?;
        let found = allocation.first_unwritten(offset, len);
        Ok(found.map(|at| allocation.base + at))
    }

    /// Where a range is: its allocation and the offset there. It must lie in one allocation, and in one that is not
    /// read-only if it is to be written.
    pub(crate) fn locate(
        &self,
        address: u64,
        len: u64,
        write: bool,
    ) -> Result<(usize, u64), FaultKind> {
        let outside = || self.explain(address, u32::try_from(len).unwrap_or(u32::MAX));
        let at = self.find(address).ok_or_else(outside)?;
        let allocation = &self.live[at];
        if write && allocation.read_only {
            let space = Space::Global;
            return Err(FaultKind::ReadOnly { space, address });
        }
        let offset = address - allocation.base;
        if len > allocation.len - offset {
            return Err(outside());
        }
        Ok((at, offset))
    }

    /// The nearest allocation, in words.
    fn nearest(&self, address: u64) -> String {
        let after = self.live.partition_point(|a| a.base <= address);
        let below = after.checked_sub(1).map(|at| &self.live[at]);
        let above = self.live.get(after);
        let below = below.map(|a| (address - a.base - a.len.min(address - a.base), a));
        let above = above.map(|a| (a.base - address, a));
        match (below, above) {
            (Some((d, a)), Some((e, _))) if d <= e => past(d, a),
            (Some((d, a)), None) => past(d, a),
            (_, Some((e, a))) => format!(
                "{e} bytes before the allocation of {} bytes at {:#x}",
                a.len, a.base
            ),
            (None, None) => "nothing is allocated".to_owned(),
        }
    }

    /// Why an access to global memory fails.
    pub(crate) fn explain(&self, address: u64, size: u32) -> FaultKind {
        if address < 4096 {
            return FaultKind::Null {
                space: Space::Global,
                address,
            };
        }
        if let Some((&base, &len)) = self.freed.range(..=address).next_back()
            && address - base < len
        {
            return FaultKind::Freed { address, base, len };
        }
        FaultKind::OutOfBounds {
            space: Space::Global,
            address,
            size,
            detail: self.nearest(address),
        }
    }
}

fn past(distance: u64, a: &Allocation) -> String {
    format!(
        "{distance} bytes past the end of the allocation of {} bytes at {:#x}",
        a.len, a.base
    )
}

//! The one place through which every access to memory goes, by instructions and by asynchronous copies.

use super::warp::Warp;
use super::{
    Cluster, LOCAL_BASE, LOCAL_WINDOW, PARAM_WINDOW, RANK_MASK, RANK_SHIFT, SHARED_BASE,
    SHARED_WINDOW, Trouble, trouble,
};
use crate::error::{FaultKind, Space};
use crate::program::{Address, Atomic, Load, Store, WARP, Wide};

pub(super) use super::copy::PendingCopies;

/// Where the bytes of an access are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// In an allocation, at an offset.
    Global(usize, u64),
    /// In the shared memory of the cluster's blocks.
    Shared(usize),
    Local(usize),
    Param(usize),
}

/// What an access does, for messages and for whoever watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    Read,
    Write,
}

/// The lanes of a mask.
#[inline(always)]
pub(super) fn lanes(mut mask: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane)
    })
}

impl Warp {
    /// Every lane's address.
    #[inline(always)]
    pub(super) fn addresses(&self, address: Address) -> Wide {
        let mut out = [0; WARP];
        self.regs.widen(address.base, &mut out);
        let offset = address.offset as u64;
        for a in &mut out {
            *a = a.wrapping_add(offset);
        }
        out
    }

    /// Finds the bytes of one lane's access, or says what is wrong with it.
    #[inline(always)]
    pub(super) fn place(
        &mut self,
        cluster: &Cluster<'_, '_>,
        space: Space,
        address: u64,
        bytes: u32,
        intent: Intent,
        lane: u32,
    ) -> Result<Place, Trouble> {
        let size = u64::from(bytes);
        if address & (size - 1) != 0 {
            return trouble(
                Some(lane),
                FaultKind::Misaligned {
                    space,
                    address,
                    align: bytes,
                },
            );
        }
        if matches!(space, Space::Shared) {
            let at = address.wrapping_sub(cluster.window);
            let len = cluster.machine.shared_bytes as u64;
            if at < len && at + size <= len {
                return Ok(Place::Shared(cluster.offset + at as usize));
            }
        } else if matches!(space, Space::Global | Space::Const)
            && let Some(allocation) = cluster.machine.memory.get(self.last)
        {
            let at = address.wrapping_sub(allocation.base);
            if at < allocation.len
                && at + size <= allocation.len
                && (intent == Intent::Read || !allocation.read_only)
            {
                return Ok(Place::Global(self.last, at));
            }
        }
        self.place_slow(cluster, space, address, bytes, intent, lane)
    }

    #[cold]
    fn place_slow(
        &mut self,
        cluster: &Cluster<'_, '_>,
        space: Space,
        address: u64,
        bytes: u32,
        intent: Intent,
        lane: u32,
    ) -> Result<Place, Trouble> {
        let size = u64::from(bytes);
        let inside = |at: u64, len: usize| at < len as u64 && at + size <= len as u64;
        let outside = |space: Space, address: u64, detail: String| {
            trouble(
                Some(lane),
                FaultKind::OutOfBounds {
                    space,
                    address,
                    size: bytes,
                    detail,
                },
            )
        };
        match space {
            Space::Generic => {
                let low = address & ((1 << 56) - 1);
                let space = match address >> 56 << 56 {
                    0 => return self.place(cluster, Space::Global, address, bytes, intent, lane),
                    SHARED_WINDOW => Space::Cluster,
                    LOCAL_WINDOW => Space::Local,
                    PARAM_WINDOW => Space::Param,
                    _ => return outside(space, address, "no window is there".to_owned()),
                };
                self.place(cluster, space, low, bytes, intent, lane)
            }
            Space::Global | Space::Const => {
                let memory = cluster.machine.memory;
                let Some(at) = memory.find(address) else {
                    return trouble(Some(lane), memory.explain(address, bytes));
                };
                self.last = at;
                match memory.get(at) {
                    Some(a) if a.read_only && intent == Intent::Write => {
                        trouble(Some(lane), FaultKind::ReadOnly { space, address })
                    }
                    Some(a) if inside(address - a.base, a.len as usize) => {
                        Ok(Place::Global(at, address - a.base))
                    }
                    _ => trouble(Some(lane), memory.explain(address, bytes)),
                }
            }
            Space::Shared => {
                let (len, window) = (cluster.machine.shared_bytes, cluster.window);
                if address < SHARED_BASE {
                    return trouble(Some(lane), FaultKind::Null { space, address });
                }
                outside(space, address, format!("{len} bytes from {window:#x}"))
            }
            Space::Cluster => {
                let rank = address >> RANK_SHIFT;
                if rank == u64::from(cluster.rank) {
                    return self.place(cluster, Space::Shared, address, bytes, intent, lane);
                }
                let at = (address & RANK_MASK).wrapping_sub(SHARED_BASE);
                let len = cluster.machine.shared_bytes;
                match cluster.blocks.get(rank as usize) {
                    Some(block) if block.alive == 0 => trouble(
                        Some(lane),
                        FaultKind::BlockExited {
                            address,
                            rank: rank as u32,
                        },
                    ),
                    Some(_) if inside(at, len) => {
                        let base = rank as usize * cluster.machine.shared_stride();
                        Ok(Place::Shared(base + at as usize))
                    }
                    _ => {
                        let size = cluster.blocks.len();
                        let detail = format!("{len} bytes in each of {size} blocks");
                        outside(space, address, detail)
                    }
                }
            }
            Space::Local => {
                let each = cluster.machine.program.local;
                let at = address.wrapping_sub(LOCAL_BASE);
                if inside(at, each as usize) {
                    return Ok(Place::Local(lane as usize * each as usize + at as usize));
                }
                outside(space, address, format!("{each} bytes from {LOCAL_BASE:#x}"))
            }
            Space::Param => {
                if intent == Intent::Write {
                    return trouble(Some(lane), FaultKind::ReadOnly { space, address });
                }
                if inside(address, cluster.machine.params.len()) {
                    return Ok(Place::Param(address as usize));
                }
                outside(
                    space,
                    address,
                    format!("{} bytes", cluster.machine.params.len()),
                )
            }
        }
    }

    /// Reads `N` = 1, 2, 4 or 8 bytes.
    #[inline(always)]
    pub(super) fn get<const N: usize>(
        &self,
        cluster: &Cluster<'_, '_>,
        place: Place,
        offset: usize,
    ) -> u64 {
        let slice = |bytes: &[u8], at: usize| {
            let mut word = [0; 8];
            word[..N].copy_from_slice(&bytes[at..at + N]);
            u64::from_le_bytes(word)
        };
        match place {
            Place::Global(allocation, at) => cluster
                .machine
                .memory
                .get(allocation)
                .map_or(0, |a| a.load::<N>(at + offset as u64)),
            Place::Shared(at) => slice(&cluster.shared, at + offset),
            Place::Local(at) => slice(&self.local, at + offset),
            Place::Param(at) => slice(cluster.machine.params, at + offset),
        }
    }

    /// Writes the low `N` = 1, 2, 4 or 8 bytes.
    #[inline(always)]
    pub(super) fn put<const N: usize>(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        place: Place,
        offset: usize,
        value: u64,
    ) {
        let word = value.to_le_bytes();
        match place {
            Place::Global(allocation, at) => {
                if let Some(a) = cluster.machine.memory.get(allocation) {
                    a.store::<N>(at + offset as u64, value);
                }
            }
            Place::Shared(at) => {
                cluster.shared[at + offset..at + offset + N].copy_from_slice(&word[..N])
            }
            Place::Local(at) => {
                self.local[at + offset..at + offset + N].copy_from_slice(&word[..N])
            }
            // Finding the place has already refused.
            Place::Param(_) => {}
        }
    }

    /// `ld`.
    pub(super) fn load(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        load: &Load,
        active: u32,
    ) -> Result<(), Trouble> {
        match load.bytes {
            1 => self.load_as::<1>(cluster, load, active),
            2 => self.load_as::<2>(cluster, load, active),
            4 => self.load_as::<4>(cluster, load, active),
            _ => self.load_as::<8>(cluster, load, active),
        }
    }

    #[inline(always)]
    fn load_as<const N: usize>(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        load: &Load,
        active: u32,
    ) -> Result<(), Trouble> {
        let addresses = self.addresses(load.address);
        let total = (N * load.dst.len()) as u32;
        let extend = 64 - 8 * N as u32;
        // Every lane reads before any register is written: the address may be among them.
        for lane in lanes(active) {
            let place = self.place(
                cluster,
                load.space,
                addresses[lane as usize],
                total,
                Intent::Read,
                lane,
            )?;
            for (n, dst) in load.dst.iter().enumerate() {
                let Some(dst) = *dst else { continue };
                let mut value = self.get::<N>(cluster, place, n * N);
                if load.signed {
                    value = ((value << extend) as i64 >> extend) as u64;
                }
                self.regs.set_lane(dst, lane, value);
            }
        }
        cluster.count_banks(load.space, &addresses, active, total as usize);
        Ok(())
    }

    /// `st`.
    pub(super) fn store(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        store: &Store,
        active: u32,
    ) -> Result<(), Trouble> {
        match store.bytes {
            1 => self.store_as::<1>(cluster, store, active),
            2 => self.store_as::<2>(cluster, store, active),
            4 => self.store_as::<4>(cluster, store, active),
            _ => self.store_as::<8>(cluster, store, active),
        }
    }

    #[inline(always)]
    fn store_as<const N: usize>(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        store: &Store,
        active: u32,
    ) -> Result<(), Trouble> {
        let addresses = self.addresses(store.address);
        let total = (N * store.src.len()) as u32;
        for lane in lanes(active) {
            let place = self.place(
                cluster,
                store.space,
                addresses[lane as usize],
                total,
                Intent::Write,
                lane,
            )?;
            for (n, &src) in store.src.iter().enumerate() {
                let value = self.regs.lane(src, lane);
                self.put::<N>(cluster, place, n * N, value);
            }
        }
        cluster.count_banks(store.space, &addresses, active, total as usize);
        Ok(())
    }

    /// `atom` and `red`: lane after lane.
    pub(super) fn atomic(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        op: &Atomic,
        active: u32,
    ) -> Result<(), Trouble> {
        let addresses = self.addresses(op.address);
        for lane in lanes(active) {
            let place = self.place(
                cluster,
                op.space,
                addresses[lane as usize],
                op.bytes,
                Intent::Write,
                lane,
            )?;
            let (a, b) = (self.regs.lane(op.a, lane), self.regs.lane(op.b, lane));
            let old = match op.bytes {
                2 => self.update::<2>(cluster, place, |old| (op.f)(old, a, b)),
                4 => self.update::<4>(cluster, place, |old| (op.f)(old, a, b)),
                _ => self.update::<8>(cluster, place, |old| (op.f)(old, a, b)),
            };
            if let Some(dst) = op.dst {
                self.regs.set_lane(dst, lane, old);
            }
        }
        Ok(())
    }

    fn update<const N: usize>(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        place: Place,
        f: impl Fn(u64) -> u64,
    ) -> u64 {
        if let Place::Global(allocation, at) = place {
            return cluster
                .machine
                .memory
                .get(allocation)
                .map_or(0, |a| a.update::<N>(at, f));
        }
        let old = self.get::<N>(cluster, place, 0);
        self.put::<N>(cluster, place, 0, f(old));
        old
    }

    /// Reads 16 bytes at a multiple of 16.
    pub(super) fn read_row(
        &mut self,
        cluster: &Cluster<'_, '_>,
        space: Space,
        address: u64,
        lane: u32,
    ) -> Result<[u8; 16], Trouble> {
        let place = self.place(cluster, space, address, 16, Intent::Read, lane)?;
        let mut row = [0; 16];
        row[..8].copy_from_slice(&self.get::<8>(cluster, place, 0).to_le_bytes());
        row[8..].copy_from_slice(&self.get::<8>(cluster, place, 8).to_le_bytes());
        Ok(row)
    }

    /// Writes 16 bytes at a multiple of 16.
    pub(super) fn write_row(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        space: Space,
        address: u64,
        lane: u32,
        row: [u8; 16],
    ) -> Result<(), Trouble> {
        let place = self.place(cluster, space, address, 16, Intent::Write, lane)?;
        let row = u128::from_le_bytes(row);
        self.put::<8>(cluster, place, 0, row as u64);
        self.put::<8>(cluster, place, 8, (row >> 64) as u64);
        Ok(())
    }
}

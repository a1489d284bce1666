//! What is remembered of every byte of memory: who wrote it last, and who has read it since.
//!
//! Accesses mostly cover 16 bytes at a time, so one [`Granule`] describes 16 bytes, and falls apart into smaller pieces
//! when an access covers only some of them.

use crate::program::WARP;

/// Bytes of a granule.
pub(super) const GRANULE: usize = 16;

/// What kind of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strength {
    /// Ordinary.
    Weak,
    /// Atomic or volatile, for the block.
    Block,
    /// Atomic or volatile, for the device.
    Device,
    /// By an asynchronous copy of the generic proxy: `cp.async`.
    Async,
    /// By the async proxy: a bulk copy.
    Proxy,
    /// By the async proxy: a product of a warpgroup.
    Product,
}

/// One access: who, when, where in the program. 0 is none.
///
/// Who: a thread of the cluster, or from the number of threads on one of those that stand for what happens
/// asynchronously (see `clock`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Access(u64);

impl Access {
    const STRENGTH_BITS: u32 = 3;
    const PC_BITS: u32 = 20;
    const WHO_BITS: u32 = 13;
    const CLOCK_AT: u32 = Self::STRENGTH_BITS + Self::PC_BITS + Self::WHO_BITS;
    /// Largest number of instructions of a program that fits.
    pub(super) const MOST_INSTRUCTIONS: usize = 1 << Self::PC_BITS;
    /// Largest number of those who access.
    pub(super) const MOST_WHO: usize = 1 << Self::WHO_BITS;
    /// The moment of what has not happened.
    pub(super) const NEVER: u32 = u32::MAX >> (32 - (64 - Self::CLOCK_AT));

    #[inline(always)]
    pub(super) fn new(who: usize, clock: u32, pc: u32, strength: Strength) -> Self {
        Access(
            u64::from(clock) << Self::CLOCK_AT
                | (who as u64) << (Self::STRENGTH_BITS + Self::PC_BITS)
                | u64::from(pc) << Self::STRENGTH_BITS
                | strength as u64,
        )
    }

    /// An asynchronous access that nobody has waited for: ordered before nothing.
    pub(super) fn in_flight(thread: usize, pc: u32, strength: Strength) -> Self {
        Self::new(thread, Self::NEVER, pc, strength)
    }

    #[inline(always)]
    pub(super) fn is_none(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub(super) fn clock(self) -> u32 {
        (self.0 >> Self::CLOCK_AT) as u32
    }

    /// Who.
    #[inline(always)]
    pub(super) fn thread(self) -> usize {
        (self.0 >> (Self::STRENGTH_BITS + Self::PC_BITS)) as usize & (Self::MOST_WHO - 1)
    }

    fn warp(self) -> usize {
        self.thread() / WARP
    }

    pub(super) fn pc(self) -> u32 {
        (self.0 >> Self::STRENGTH_BITS) as u32 & (Self::MOST_INSTRUCTIONS as u32 - 1)
    }

    #[inline(always)]
    pub(super) fn strength(self) -> Strength {
        match self.0 & 7 {
            0 => Strength::Weak,
            1 => Strength::Block,
            2 => Strength::Device,
            3 => Strength::Async,
            4 => Strength::Proxy,
            _ => Strength::Product,
        }
    }

    #[inline(always)]
    pub(super) fn is_of_proxy(self) -> bool {
        matches!(self.strength(), Strength::Proxy | Strength::Product)
    }

    #[inline(always)]
    pub(super) fn is_in_flight(self) -> bool {
        self.clock() == Self::NEVER
    }

    /// The same access, once it has been waited for: by `who`, at a moment.
    pub(super) fn landed(self, who: usize, clock: u32) -> Self {
        Self::new(who, clock, self.pc(), self.strength())
    }
}

/// Says which accesses happen before the present one.
pub(super) trait Before {
    /// Whether an access of this cluster does, through the fences between proxies that it takes.
    fn ordered(&self, other: Access) -> bool;
    /// The same of a write, or of a read where the present access writes: whether the two do not conflict.
    #[inline(always)]
    fn comes_after(&self, other: Access) -> bool {
        self.ordered(other)
    }
    /// Whether an access of another cluster does.
    fn ordered_block(&self, block: u32, other: Access) -> bool;
    /// Whether another access of this cluster can be forgotten for the present one: what comes after this one comes after
    /// that one too.
    fn stands_for(&self, me: Access, other: Access) -> bool;
    /// Whether another access of this cluster is by a thread of the same block.
    fn same_block(&self, other: Access) -> bool;
    /// The present cluster.
    fn block(&self) -> u32;
}

/// A conflict: the other access, whether it wrote, and its block if it is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) other: Access,
    pub(super) wrote: bool,
    pub(super) block: Option<u32>,
}

/// What is remembered of a piece of memory.
pub(super) trait Cell: Clone + Default {
    /// Notes an access, and returns one that it conflicts with.
    fn access(&mut self, me: Access, write: bool, before: &impl Before) -> Option<Conflict>;
    /// Whether a read would conflict with a write.
    fn check_read(&self, me: Access, before: &impl Before) -> Option<Conflict>;
    /// What was in flight and wrote or read here has landed.
    fn land(&mut self, flight: Access, landed: Access);
}

/// Strong accesses do not race with each other.
#[inline(always)]
fn race(me: Access, other: Access, other_block: bool) -> bool {
    let strong = |a: Access| match a.strength() {
        Strength::Block => !other_block,
        Strength::Device => true,
        _ => false,
    };
    !(strong(me) && strong(other))
}

/// Accesses of one block.
#[derive(Debug, Clone, Default)]
pub(super) struct BlockCell<const N: usize> {
    /// The last weak write.
    write: Access,
    /// Strong ones since. They do not replace the weak one, nor each other: others may race with one alone.
    strong: Several<1>,
    reads: Several<N>,
}

/// Accesses that nothing orders. Those beyond the first few go to a list.
#[derive(Debug, Clone)]
struct Several<const N: usize> {
    first: [Access; N],
    /// Mostly there are none, and a cell should stay small.
    #[expect(clippy::box_collection)]
    more: Option<Box<Vec<Access>>>,
}

impl<const N: usize> Default for Several<N> {
    fn default() -> Self {
        Several {
            first: [Access::default(); N],
            more: None,
        }
    }
}

impl<const N: usize> Several<N> {
    /// Of more accesses of a warp than this, the others are not remembered: a stranger to one of its threads is mostly
    /// one to all, and what a byte takes must have an end.
    const MOST_OF_WARP: usize = 2;

    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.more.is_none() && self.first.iter().all(|a| a.is_none())
    }

    fn iter(&self) -> impl Iterator<Item = Access> + '_ {
        let more = self.more.iter().flat_map(|more| more.iter());
        self.first
            .iter()
            .chain(more)
            .copied()
            .filter(|r| !r.is_none())
    }

    /// Adds an access in the place of one that it makes superfluous: what comes after it comes after that one too.
    #[inline(always)]
    fn add(&mut self, me: Access, before: &impl Before) {
        // A strong access races with less than a weak one, so it does not stand for it.
        let weaker = me.strength() == Strength::Weak;
        let free = |r: Access| {
            let same = weaker || r.strength() == me.strength();
            r.is_none() || r == me || same && before.stands_for(me, r)
        };
        if let Some(at) = self.first.iter().position(|&r| free(r)) {
            self.first[at] = me;
            for r in &mut self.first[at + 1..] {
                if free(*r) {
                    *r = Access::default();
                }
            }
            if let Some(more) = &mut self.more {
                more.retain(|&r| !free(r));
                if more.is_empty() {
                    self.more = None;
                }
            }
            return;
        }
        // Of a warpgroup's products there is one.
        let counts = me.strength() != Strength::Product;
        let alike = |r: &Access| counts && r.warp() == me.warp() && r.strength() == me.strength();
        let known = self.iter().filter(alike).count();
        let more = self.more.get_or_insert_default();
        match more.iter().position(|&r| free(r)) {
            Some(at) => more[at] = me,
            None if known >= Self::MOST_OF_WARP => {}
            None => more.push(me),
        }
    }
}

/// The conflict of two accesses of one cluster, if they conflict.
#[inline(always)]
fn conflict(me: Access, other: Access, wrote: bool, before: &impl Before) -> Option<Conflict> {
    let racing = !other.is_none()
        && !before.comes_after(other)
        && race(me, other, !before.same_block(other));
    racing.then_some(Conflict {
        other,
        wrote,
        block: None,
    })
}

impl<const N: usize> Cell for BlockCell<N> {
    #[inline(always)]
    fn check_read(&self, me: Access, before: &impl Before) -> Option<Conflict> {
        let with = |w: Access| conflict(me, w, true, before);
        let found = with(self.write);
        if found.is_some() || self.strong.is_empty() {
            return found;
        }
        self.strong.iter().find_map(with)
    }

    #[inline(always)]
    fn access(&mut self, me: Access, write: bool, before: &impl Before) -> Option<Conflict> {
        let mut found = self.check_read(me, before);
        if write {
            if found.is_none() {
                let with = |r: Access| conflict(me, r, false, before);
                found = self.reads.iter().find_map(with);
            }
            if matches!(me.strength(), Strength::Block | Strength::Device) {
                self.strong.add(me, before);
            } else {
                *self = BlockCell {
                    write: me,
                    ..BlockCell::default()
                };
            }
        } else {
            self.reads.add(me, before);
        }
        found
    }

    fn land(&mut self, flight: Access, landed: Access) {
        if self.write == flight {
            self.write = landed;
        }
        let more = self.reads.more.iter_mut().flat_map(|more| more.iter_mut());
        for r in self.reads.first.iter_mut().chain(more) {
            if *r == flight {
                *r = landed;
            }
        }
    }
}

/// Accesses of several blocks: all of the present one's, and some of the others'.
#[derive(Debug, Clone, Default)]
pub(super) struct GridCell {
    block: u32,
    own: BlockCell<1>,
    /// Most memory is one block's alone.
    foreign: Option<Box<Foreign>>,
}

/// Accesses of other blocks: the last write, and two readers of different blocks, so that whoever writes is a stranger
/// to one of them.
#[derive(Debug, Clone, Default)]
struct Foreign {
    /// Weak and strong.
    writes: [Option<(u32, Access)>; 2],
    reads: [Option<(u32, Access)>; 2],
}

impl GridCell {
    /// The accesses of the last block become a stranger's.
    fn enter(&mut self, block: u32) {
        if self.block == block {
            return;
        }
        let last = self.block;
        let writes = [Some(self.own.write), self.own.strong.iter().next()];
        let writes = writes.map(|write| write.filter(|w| !w.is_none()));
        let read = self.own.reads.iter().next();
        if read.is_some() || writes != [None; 2] {
            let foreign = self.foreign.get_or_insert_default();
            for (foreign, own) in foreign.writes.iter_mut().zip(writes) {
                *foreign = own.map(|own| (last, own)).or(*foreign);
            }
            let at = usize::from(foreign.reads[0].is_some());
            foreign.reads[at] = read.map(|read| (last, read)).or(foreign.reads[at]);
        }
        self.own = BlockCell::default();
        self.block = block;
    }
}

impl Cell for GridCell {
    fn check_read(&self, me: Access, before: &impl Before) -> Option<Conflict> {
        self.own.check_read(me, before)
    }

    fn access(&mut self, me: Access, write: bool, before: &impl Before) -> Option<Conflict> {
        self.enter(before.block());
        let conflict = |of: Option<(u32, Access)>, wrote: bool| {
            let (block, other) = of?;
            let racing = block != before.block()
                && !before.ordered_block(block, other)
                && race(me, other, true);
            racing.then_some(Conflict {
                other,
                wrote,
                block: Some(block),
            })
        };
        let mut found = None;
        if let Some(foreign) = &self.foreign {
            found = foreign.writes.iter().find_map(|&w| conflict(w, true));
            if write && found.is_none() {
                found = foreign.reads.iter().find_map(|&r| conflict(r, false));
            }
        }
        found.or(self.own.access(me, write, before))
    }

    fn land(&mut self, flight: Access, landed: Access) {
        self.own.land(flight, landed);
    }
}

/// 16 bytes.
#[derive(Debug, Clone, Default)]
struct Granule<C> {
    whole: C,
    /// The cells of its pieces, if they differ: 2, 4, 8 or 16 of the same size.
    pieces: Option<Box<[C]>>,
}

impl<C: Cell> Granule<C> {
    /// The cells of pieces so small that a range is made of whole ones, and the bytes of one.
    fn pieces(&mut self, range: &std::ops::Range<usize>) -> (&mut [C], usize) {
        let size = 1 << (range.start | range.end | GRANULE).trailing_zeros();
        let (have, need) = (self.pieces.as_ref().map_or(1, |p| p.len()), GRANULE / size);
        if have < need {
            let old = self.pieces.as_deref();
            let old = old.unwrap_or(std::slice::from_ref(&self.whole));
            let each = |n: usize| old[n * have / need].clone();
            self.pieces = Some((0..need).map(each).collect());
        }
        let pieces = self.pieces.as_deref_mut();
        let pieces = pieces.unwrap_or(std::slice::from_mut(&mut self.whole));
        let size = GRANULE / pieces.len();
        (pieces, size)
    }

    #[inline(always)]
    fn access(
        &mut self,
        range: std::ops::Range<usize>,
        me: Access,
        write: bool,
        before: &impl Before,
    ) -> Option<(usize, Conflict)> {
        let all = range.len() == GRANULE;
        if all && self.pieces.is_none() {
            return self.whole.access(me, write, before).map(|found| (0, found));
        }
        let (pieces, size) = self.pieces(&range);
        let mut found = None;
        let first = range.start / size;
        for (n, piece) in pieces[first..range.end / size].iter_mut().enumerate() {
            let new = piece.access(me, write, before);
            found = found.or(new.map(|new| ((first + n) * size, new)));
        }
        if all && write {
            // Nothing but this write is left to remember.
            self.whole = pieces[0].clone();
            self.pieces = None;
        }
        found
    }

    /// As [`access`](Self::access) of a read that leaves no trace.
    fn check_read(
        &mut self,
        range: std::ops::Range<usize>,
        me: Access,
        before: &impl Before,
    ) -> Option<(usize, Conflict)> {
        if self.pieces.is_none() {
            let found = self.whole.check_read(me, before);
            return found.map(|found| (range.start, found));
        }
        let (pieces, size) = self.pieces(&range);
        let first = range.start / size;
        let mut pieces = pieces[first..range.end / size].iter().enumerate();
        pieces.find_map(|(n, piece)| {
            let found = piece.check_read(me, before);
            found.map(|found| ((first + n) * size, found))
        })
    }

    fn land(&mut self, range: std::ops::Range<usize>, flight: Access, landed: Access) {
        let (pieces, size) = self.pieces(&range);
        for piece in &mut pieces[range.start / size..range.end / size] {
            piece.land(flight, landed);
        }
    }
}

/// A stretch of memory.
#[derive(Debug, Default)]
pub(super) struct Shadow<C> {
    granules: Vec<Granule<C>>,
}

impl<C: Cell> Shadow<C> {
    pub(super) fn new(bytes: usize) -> Self {
        Shadow {
            granules: vec![Granule::default(); bytes.div_ceil(GRANULE)],
        }
    }

    pub(super) fn clear(&mut self) {
        self.granules.fill(Granule::default());
    }

    /// Notes an access, and returns the first byte of it that conflicts, and with what.
    #[inline(always)]
    pub(super) fn access(
        &mut self,
        at: usize,
        len: usize,
        me: Access,
        write: bool,
        before: &impl Before,
    ) -> Option<(usize, Conflict)> {
        let mut found = None;
        let (mut from, end) = (at, at + len);
        while from < end {
            let granule = from / GRANULE;
            let first = granule * GRANULE;
            let to = end.min(first + GRANULE);
            if let Some(g) = self.granules.get_mut(granule) {
                let new = g.access(from - first..to - first, me, write, before);
                found = found.or(new.map(|(at, conflict)| (first + at, conflict)));
            }
            from = to;
        }
        found
    }

    /// As [`access`](Self::access) of a read of one granule that leaves no trace.
    pub(super) fn check_read(
        &mut self,
        at: usize,
        len: usize,
        me: Access,
        before: &impl Before,
    ) -> Option<(usize, Conflict)> {
        let (granule, from) = (at / GRANULE, at % GRANULE);
        let found = self.granules.get_mut(granule)?;
        let found = found.check_read(from..from + len, me, before);
        found.map(|(byte, conflict)| (granule * GRANULE + byte, conflict))
    }

    pub(super) fn land(&mut self, at: usize, len: usize, flight: Access, landed: Access) {
        let (mut from, end) = (at, at + len);
        while from < end {
            let granule = from / GRANULE;
            let first = granule * GRANULE;
            let to = end.min(first + GRANULE);
            if let Some(g) = self.granules.get_mut(granule) {
                g.land(from - first..to - first, flight, landed);
            }
            from = to;
        }
    }
}

/// Bytes of a page of [`GlobalShadow`].
pub(super) const PAGE: usize = 4096;

/// The allocations of the device: pages that come into being when they are touched.
#[derive(Debug, Default)]
pub(super) struct GlobalShadow {
    allocations: Vec<Vec<Option<Box<Shadow<GridCell>>>>>,
}

impl GlobalShadow {
    fn page(&mut self, allocation: usize, at: u64) -> &mut Shadow<GridCell> {
        if self.allocations.len() <= allocation {
            self.allocations.resize_with(allocation + 1, Vec::new);
        }
        let pages = &mut self.allocations[allocation];
        let number = at as usize / PAGE;
        if pages.len() <= number {
            pages.resize_with(number + 1, || None);
        }
        pages[number].get_or_insert_with(|| Box::new(Shadow::new(PAGE)))
    }

    /// As [`Shadow::access`], from the start of the allocation. An access is aligned to its size, so it lies in one page.
    pub(super) fn access(
        &mut self,
        allocation: usize,
        at: u64,
        len: usize,
        me: Access,
        write: bool,
        before: &impl Before,
    ) -> Option<(usize, Conflict)> {
        let inside = at as usize % PAGE;
        let page = self.page(allocation, at);
        page.access(inside, len, me, write, before)
            .map(|(byte, conflict)| (at as usize - inside + byte, conflict))
    }

    pub(super) fn land(
        &mut self,
        allocation: usize,
        at: u64,
        len: usize,
        flight: Access,
        landed: Access,
    ) {
        let inside = at as usize % PAGE;
        self.page(allocation, at).land(inside, len, flight, landed);
    }
}

//! The async proxy: bulk copies, and products of warpgroups.
//!
//! What it accesses after accesses of ordinary instructions (of the generic proxy) needs more than order between threads:
//! the thread that made the access must have executed a `fence.proxy.async` in between. What it has done is there for
//! everybody who has waited for it. (PTX ISA 8.6, 9.7.13.4)

use super::Rule;
use super::Sanitizer;
use super::shadow::{Access, Strength};
use crate::error::Space;
use crate::exec::{Machine, Place, Who};
use crate::program::{Op, ProxyFence};

/// Most mbarriers that are told apart; beyond, several share one who stands for what they count.
const MOST_MBARRIERS: usize = 64;
/// Warps of a warpgroup.
const WARPGROUP: usize = 4;

/// Fences between proxies, and those who stand for what is asynchronous: warps for their parts of products, mbarriers for
/// the bytes that they count.
pub(super) struct Proxies {
    threads: usize,
    /// Threads of a block, in whole warps.
    each: usize,
    /// Warps of the cluster, those of a block in whole warpgroups.
    warps: usize,
    /// Moments of each thread at which it fenced accesses to shared memory, to global memory, and the making of mbarriers.
    fences: Vec<[Vec<u32>; 3]>,
    /// Of each who stands for what is asynchronous: its last moment, and who issued what it stands for.
    moments: Vec<u32>,
    issuers: Vec<usize>,
    /// mbarriers so far.
    mbarriers: usize,
}

impl Proxies {
    /// `None` for a program that does not use the async proxy, in a cluster of one block.
    pub(super) fn new(machine: &Machine<'_>, threads: usize) -> Option<Self> {
        let of_proxy = |op: &Op| matches!(op, Op::Bulk(_) | Op::Wgmma(_));
        let code = &machine.program().code;
        if machine.cluster_size() == 1 && !code.iter().any(|inst| of_proxy(&inst.op)) {
            return None;
        }
        let each = machine.warps() as usize * 32;
        let warps = (each / 32).next_multiple_of(WARPGROUP) * machine.cluster_size() as usize;
        let others = warps + MOST_MBARRIERS;
        Some(Proxies {
            threads,
            each,
            warps,
            fences: vec![Default::default(); threads],
            moments: vec![0; others],
            issuers: vec![0; others],
            mbarriers: 0,
        })
    }

    pub(super) fn reset(&mut self) {
        for fences in self.fences.iter_mut().flatten() {
            fences.clear();
        }
        self.moments.fill(0);
        self.mbarriers = 0;
    }

    /// Those who stand for what is asynchronous.
    pub(super) fn others(&self) -> usize {
        self.moments.len()
    }

    /// Who stands for a warp's part of products. Its moments are the products that the warp has waited for.
    pub(super) fn of_warp(&self, warp: u32) -> usize {
        let in_block = self.each / 32;
        let (rank, warp) = (warp as usize / in_block, warp as usize % in_block);
        self.threads + rank * in_block.next_multiple_of(WARPGROUP) + warp
    }

    /// Who makes the accesses of a warpgroup's products: who stands for the first of its warps.
    pub(super) fn of_warpgroup(&self, warp: u32) -> usize {
        let of_warp = self.of_warp(warp);
        of_warp - (of_warp - self.threads) % WARPGROUP
    }

    /// Whether an access is made by a product that one of its warps has not waited for.
    pub(super) fn is_awaited(&self, access: Access) -> bool {
        let waits = |part: usize| self.moments[part - self.threads] < access.clock();
        parts(access).is_some_and(|mut parts| parts.any(waits))
    }

    /// Who stands for what a new mbarrier counts.
    pub(super) fn new_mbarrier(&mut self) -> usize {
        let number = self.mbarriers % MOST_MBARRIERS;
        self.mbarriers += 1;
        self.threads + self.warps + number
    }

    /// The next moment of one who stands for what is asynchronous.
    pub(super) fn advance(&mut self, who: usize) -> u32 {
        let moment = &mut self.moments[who - self.threads];
        *moment += 1;
        *moment
    }

    /// A warp has waited for its parts of all products before a number.
    pub(super) fn set_waited(&mut self, of_warp: usize, need: u32) {
        self.moments[of_warp - self.threads] = need;
    }

    pub(super) fn set_issuer(&mut self, who: usize, thread: usize) {
        self.issuers[who - self.threads] = thread;
    }

    pub(super) fn issuer(&self, who: usize) -> usize {
        match who.checked_sub(self.threads) {
            Some(other) => self.issuers.get(other).copied().unwrap_or(0),
            None => who,
        }
    }

    pub(super) fn same_block(&self, a: usize, b: usize) -> bool {
        b >= self.threads || a / self.each == b / self.each
    }

    fn fences(&self, thread: usize, space: Space) -> &[u32] {
        let which = usize::from(space != Space::Shared);
        self.fences.get(thread).map_or(&[], |f| &f[which])
    }

    /// Whether its thread has fenced an access, and that fence is known to who has this row.
    #[inline]
    pub(super) fn fenced(&self, access: Access, space: Space, row: &[u32]) -> bool {
        let thread = access.thread();
        known(self.fences(thread, space), access.clock(), row[thread])
    }

    /// Whether its thread has fenced an access.
    #[inline]
    pub(super) fn any_fence(&self, access: Access) -> bool {
        let of = |space| self.fences(access.thread(), space).last();
        let last = of(Space::Shared).max(of(Space::Global));
        last.is_some_and(|&last| last >= access.clock())
    }
}

/// Those who stand for the parts of a product's four warps, if the access is a product's: each warp waits for its own, and
/// the product is done for those who know of all four.
#[inline(always)]
pub(super) fn parts(access: Access) -> Option<std::ops::Range<usize>> {
    let first = access.thread();
    (access.strength() == Strength::Product).then(|| first..first + WARPGROUP)
}

/// Whether one of these fences comes at or after a moment, and is known to who knows its thread up to another moment.
fn known(fences: &[u32], from: u32, until: u32) -> bool {
    let at = fences.partition_point(|&fence| fence < from);
    fences.get(at).is_some_and(|&fence| fence < until)
}

impl Sanitizer {
    /// `fence.proxy.async` and `fence.mbarrier_init`.
    pub(crate) fn proxy_fence(&mut self, warp: u32, lanes: u32, fence: ProxyFence) {
        let Some(proxies) = &mut self.proxies else {
            return;
        };
        for lane in (0..32).filter(|lane| lanes >> lane & 1 != 0) {
            let thread = (warp * 32 + lane) as usize;
            let now = self.clocks.now(thread);
            let of = [fence.shared, fence.global, fence.init || fence.shared];
            for (fences, of) in proxies.fences[thread].iter_mut().zip(of) {
                if of {
                    fences.push(now);
                }
            }
            // What comes after it comes at another moment.
            self.clocks.advance(thread);
        }
    }

    /// A bulk copy uses an mbarrier: the thread that made it must have said so.
    pub(super) fn check_init_fence(&mut self, machine: &Machine<'_>, who: Who, place: Place) {
        let Some(proxies) = &self.proxies else { return };
        let object = super::key(place).and_then(|key| self.mbarriers.get(&key));
        let Some(init) = object.and_then(|object| object.init) else {
            return;
        };
        let row = self.clocks.row(who.thread());
        let thread = init.thread();
        let ordered = row[thread] >= init.clock();
        let fences = proxies.fences.get(thread).map_or(&[][..], |f| &f[2]);
        if !ordered || known(fences, init.clock(), row[thread]) {
            return;
        }
        let (_, address) = machine.address_of(place);
        let message = || {
            format!(
                "a bulk copy counts at the mbarrier at {address:#x}, but no fence.mbarrier_init or fence.proxy.async of the thread that made it comes between"
            )
        };
        let other = super::Conflict {
            other: init,
            wrote: true,
            block: None,
        };
        self.add_pair(
            machine,
            Rule::ProxyFence,
            who,
            Some((other, "made")),
            message,
        );
    }
}

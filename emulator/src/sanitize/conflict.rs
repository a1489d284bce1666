//! Two accesses that nothing orders: how that is found, and what is said of it.

use std::cell::RefCell;

use super::clock::Clocks;
use super::proxy::{self, Proxies};
use super::shadow::{Access, Before, Conflict, Strength};
use super::{Rule, Sanitizer};
use crate::error::Space;
use crate::exec::{Machine, Place, Who};
use crate::program::{Direction, Op};

/// Orders accesses after others.
pub(super) struct Ordering<'a> {
    pub(super) clocks: &'a Clocks,
    /// The thread that accesses, for other clusters' accesses and those of its block.
    pub(super) thread: usize,
    /// What is known where the access is made: by the thread, or by all that make it.
    pub(super) row: &'a [u32],
    pub(super) block: u32,
    pub(super) proxies: Option<&'a Proxies>,
    /// The access is made by the async proxy, in this space.
    pub(super) by_proxy: Option<Space>,
}

impl Ordering<'_> {
    /// Whether another access of this cluster is known where this one is made.
    #[inline(always)]
    pub(super) fn knows(&self, other: Access) -> bool {
        if let Some(parts) = proxy::parts(other) {
            return self.row[parts].iter().all(|&known| known >= other.clock());
        }
        !other.is_in_flight() && self.row[other.thread()] >= other.clock()
    }
}

impl Before for Ordering<'_> {
    #[inline(always)]
    fn ordered(&self, other: Access) -> bool {
        if !self.knows(other) {
            return false;
        }
        match (self.by_proxy, self.proxies) {
            (Some(space), Some(proxies)) if !other.is_of_proxy() => {
                proxies.fenced(other, space, self.row)
            }
            _ => true,
        }
    }

    fn ordered_block(&self, block: u32, other: Access) -> bool {
        let (of, clock) = (other.thread(), other.clock());
        !other.is_in_flight() && self.clocks.knows_block(self.thread, block, of, clock)
    }

    #[inline(always)]
    fn stands_for(&self, me: Access, other: Access) -> bool {
        let Some(proxies) = self.proxies else {
            return self.ordered(other);
        };
        // Who has waited for a warp's part of a product has waited for its parts of those before.
        if me.strength() == Strength::Product && other.thread() == me.thread() {
            return true;
        }
        // The async proxy may not come after an access without a fence of its thread.
        let fenced =
            other.thread() == self.thread || other.is_of_proxy() || proxies.any_fence(other);
        fenced && self.ordered(other)
    }

    #[inline(always)]
    fn same_block(&self, other: Access) -> bool {
        self.proxies
            .is_none_or(|proxies| proxies.same_block(self.thread, other.thread()))
    }

    fn block(&self) -> u32 {
        self.block
    }
}

/// Orders an access to many pieces of memory, and keeps what it conflicts with or not: mostly it is the same everywhere.
pub(super) struct Recording<'a> {
    pub(super) ordering: Ordering<'a>,
    /// What it met, and whether it comes after that.
    pub(super) met: RefCell<Vec<(Access, bool)>>,
}

impl Before for Recording<'_> {
    #[inline(always)]
    fn ordered(&self, other: Access) -> bool {
        self.ordering.ordered(other)
    }

    #[inline(always)]
    fn comes_after(&self, other: Access) -> bool {
        let mut met = self.met.borrow_mut();
        // The last one first.
        if let Some(&(_, after)) = met.iter().rev().find(|(known, _)| *known == other) {
            return after;
        }
        let after = self.ordering.ordered(other);
        met.push((other, after));
        after
    }

    fn ordered_block(&self, block: u32, other: Access) -> bool {
        self.ordering.ordered_block(block, other)
    }

    #[inline(always)]
    fn stands_for(&self, me: Access, other: Access) -> bool {
        self.ordering.stands_for(me, other)
    }

    #[inline(always)]
    fn same_block(&self, other: Access) -> bool {
        self.ordering.same_block(other)
    }

    fn block(&self) -> u32 {
        self.ordering.block
    }
}

impl Sanitizer {
    /// An access by a thread.
    #[inline]
    pub(super) fn note(
        &mut self,
        machine: &Machine<'_>,
        who: Who,
        place: Place,
        len: usize,
        write: bool,
        me: Access,
    ) {
        let space = match place {
            Place::Shared(_) => Space::Shared,
            _ => Space::Global,
        };
        let before = Ordering {
            clocks: &self.clocks,
            thread: who.thread(),
            row: self.clocks.row(who.thread()),
            block: self.block,
            proxies: self.proxies.as_ref(),
            by_proxy: me.is_of_proxy().then_some(space),
        };
        let found = match place {
            Place::Shared(at) => self.shared.access(at, len, me, write, &before),
            Place::Global(allocation, at) => {
                self.global.access(allocation, at, len, me, write, &before)
            }
            Place::Local(_) | Place::Param(_) => None,
        };
        if let Some((at, conflict)) = found {
            let known = conflict.block.is_none() && before.knows(conflict.other);
            let place = match place {
                Place::Global(allocation, _) => Place::Global(allocation, at as u64),
                _ => Place::Shared(at),
            };
            self.conflict(machine, who, place, (write, me, known), conflict);
        }
    }

    /// The thread that is meant by those who access: what is asynchronous has been issued by one.
    pub(super) fn issuer(&self, who: usize) -> usize {
        match &self.proxies {
            Some(proxies) => proxies.issuer(who),
            None => who,
        }
    }

    /// Reports an access to a byte: whether it writes, what it is, and whether the other is known there.
    #[cold]
    pub(super) fn conflict(
        &mut self,
        machine: &Machine<'_>,
        who: Who,
        place: Place,
        (write, me, known): (bool, Access, bool),
        conflict: Conflict,
    ) {
        let (space, address) = machine.address_of(place);
        let other = conflict.other;
        let by = |a: Access| match a.strength() {
            Strength::Async | Strength::Proxy | Strength::Product => Some(kind_of(machine, a.pc())),
            _ => None,
        };
        let does = match (by(me), write) {
            (Some(kind), true) => format!("{kind} writes"),
            (Some(kind), false) => format!("{kind} reads"),
            (None, true) => "writes".to_owned(),
            (None, false) => "reads".to_owned(),
        };
        let issuer = self.issuer(other.thread());
        let whose = match (conflict.block, issuer == who.thread()) {
            (Some(_), _) => "another block",
            (None, true) => "the thread itself",
            (None, false) => "another thread",
        };
        // The other access comes before, but a fence is missing.
        let awaited = |proxies: &Proxies| proxies.is_awaited(other);
        let flying = other.is_in_flight() || self.proxies.as_ref().is_some_and(awaited);
        let unfenced = known && me.is_of_proxy() && !other.is_of_proxy();
        let rule = match (flying, write || me.strength() == Strength::Async) {
            _ if unfenced => Rule::ProxyFence,
            (true, false) => Rule::ReadInFlight,
            (true, true) => Rule::OverwriteInFlight,
            (false, _) => Rule::Race,
        };
        let (has, goes) = match conflict.wrote {
            true => ("written", "writes"),
            false => ("read", "reads"),
        };
        let end = if conflict.wrote {
            "destination"
        } else {
            "source"
        };
        let (history, what) = match by(other) {
            Some(kind) if flying => (
                format!("which {kind} of {whose} {goes} at any time until its wait"),
                format!("{end} of {kind} that was not waited for, started"),
            ),
            Some(kind) => (
                format!(
                    "which {kind} of {whose} has {has}: it was waited for, but nothing orders that wait and this"
                ),
                format!("{end} of {kind}, started"),
            ),
            None if unfenced => (
                format!(
                    "which {whose} has {has} before: but no fence.proxy.async of that thread comes between"
                ),
                has.to_owned(),
            ),
            None => (
                format!("which {whose} has {has}, and nothing orders the two"),
                has.to_owned(),
            ),
        };
        let message = || format!("{does} {space} byte {address:#x}, {history}");
        self.add_pair(machine, rule, who, Some((conflict, &what)), message);
    }
}

/// What an asynchronous instruction is called.
fn kind_of(machine: &Machine<'_>, pc: u32) -> &'static str {
    match machine.program().code.get(pc as usize).map(|inst| &inst.op) {
        Some(Op::Bulk(op)) => match op.direction {
            Direction::Load => "a bulk load",
            Direction::Store => "a bulk store",
            Direction::Send => "a bulk copy",
        },
        Some(Op::Wgmma(_)) => "a matrix product",
        _ => "a copy",
    }
}

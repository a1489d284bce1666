//! Vector clocks: what each thread knows of the others' past.

use std::rc::Rc;

use super::shadow::Access;
use crate::program::WARP;

/// The clocks of a block's threads, shared where they are the same.
type Row = Rc<Vec<u32>>;
/// Other blocks and what is known of them, in ascending order.
type Foreign = Option<Rc<Vec<(u32, Row)>>>;

/// What was known at a release: the clocks of the block's threads, and of other blocks'.
#[derive(Debug, Clone, Default)]
pub(super) struct Knowledge {
    clock: Option<Row>,
    foreign: Foreign,
}

impl Knowledge {
    pub(super) fn join(&mut self, other: &Knowledge) {
        match (&mut self.clock, &other.clock) {
            (_, None) => {}
            (None, Some(clock)) => self.clock = Some(Rc::clone(clock)),
            (Some(own), Some(clock)) => join_rows(own, clock),
        }
        learn(&mut self.foreign, &other.foreign);
    }

    /// The same, as another block sees it: what this block knew is now a stranger's.
    pub(super) fn of_block(&self, block: u32) -> Knowledge {
        let mut foreign = self.foreign.clone();
        if let Some(clock) = &self.clock {
            // It ran after all blocks that it knew.
            Rc::make_mut(foreign.get_or_insert_default()).push((block, Rc::clone(clock)));
        }
        Knowledge {
            clock: None,
            foreign,
        }
    }

    /// Adds a moment of somebody who stands for what is asynchronous, in a cluster of so many in all.
    pub(super) fn add(&mut self, who: usize, moment: u32, width: usize) {
        let row = self.clock.get_or_insert_with(|| Rc::new(vec![0; width]));
        if let Some(known) = Rc::make_mut(row).get_mut(who) {
            *known = (*known).max(moment);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.clock.is_none() && self.foreign.is_none()
    }
}

/// Joins `from` into `into`.
fn join(into: &mut [u32], from: &[u32]) {
    for (a, &b) in into.iter_mut().zip(from) {
        *a = (*a).max(b);
    }
}

fn join_rows(into: &mut Row, from: &Row) {
    if !Rc::ptr_eq(into, from) {
        join(Rc::make_mut(into).as_mut_slice(), from);
    }
}

/// Adds what is known of other blocks.
fn learn(into: &mut Foreign, from: &Foreign) {
    let Some(new) = from else { return };
    let Some(old) = into else {
        *into = Some(Rc::clone(new));
        return;
    };
    if Rc::ptr_eq(old, new) {
        return;
    }
    let mut all = Vec::with_capacity(old.len().max(new.len()));
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    while let (Some((a, of_a)), Some((b, of_b))) = (old.peek(), new.peek()) {
        let (mut block, mut row) = (*a, Rc::clone(of_a));
        if a == b {
            join_rows(&mut row, of_b);
        } else if b < a {
            (block, row) = (*b, Rc::clone(of_b));
        }
        old.next_if(|(at, _)| *at == block);
        new.next_if(|(at, _)| *at == block);
        all.push((block, row));
    }
    all.extend(old.chain(new).cloned());
    *into = Some(Rc::new(all));
}

/// Those who do what happens asynchronously: each stands for what an mbarrier counts, or for a warp's part of products.
/// Their moments are the phases that have ended, and the products that were waited for; who acquires such a moment comes
/// after all that landed until then.
///
/// The clocks of a cluster's threads, and what they know of those. Row `t` holds, for every thread, the last moment of it
/// that thread `t` is ordered after; its own entry is its present. (Lamport; for data races: Flanagan and Freund, FastTrack, PLDI 2009.)
pub(super) struct Clocks {
    threads: usize,
    /// Threads, and those who stand for what is asynchronous.
    width: usize,
    rows: Vec<u32>,
    /// What all lanes of each warp know, and whether none of them has learnt anything since that was found.
    common: Vec<(bool, Vec<u32>)>,
    /// What each thread knows of other blocks.
    foreign: Vec<Foreign>,
}

impl Clocks {
    pub(super) fn new(threads: usize, others: usize) -> Self {
        let width = threads + others;
        let mut clocks = Clocks {
            threads,
            width,
            rows: vec![0; threads * width],
            common: vec![(false, vec![0; width]); threads.div_ceil(WARP)],
            foreign: vec![None; threads],
        };
        clocks.reset();
        clocks
    }

    /// A new cluster: every thread knows of itself only.
    pub(super) fn reset(&mut self) {
        self.rows.fill(0);
        for t in 0..self.threads {
            self.rows[t * self.width + t] = 1;
            self.foreign[t] = None;
        }
        for (valid, _) in &mut self.common {
            *valid = false;
        }
    }

    pub(super) fn row(&self, thread: usize) -> &[u32] {
        &self.rows[thread * self.width..][..self.width]
    }

    /// Finds out what all lanes of a warp know.
    pub(super) fn find_common(&mut self, warp: usize) {
        let (valid, common) = &mut self.common[warp];
        if std::mem::replace(valid, true) {
            return;
        }
        common.fill(u32::MAX);
        for lane in 0..WARP {
            let row = &self.rows[(warp * WARP + lane) * self.width..][..self.width];
            for (common, &known) in common.iter_mut().zip(row) {
                *common = (*common).min(known);
            }
        }
    }

    /// What all lanes of a warp knew when it was last found out.
    pub(super) fn common(&self, warp: usize) -> &[u32] {
        &self.common[warp].1
    }

    /// The thread learns of a moment of somebody who stands for what is asynchronous.
    pub(super) fn learn_of(&mut self, thread: usize, who: usize, moment: u32) {
        let known = &mut self.row_mut(thread)[who];
        *known = (*known).max(moment);
    }

    /// What any of these threads know.
    pub(super) fn joined(&self, threads: std::ops::Range<usize>) -> Vec<u32> {
        let mut all = vec![0; self.width];
        for thread in threads {
            join(&mut all, self.row(thread));
        }
        all
    }

    fn row_mut(&mut self, thread: usize) -> &mut [u32] {
        self.common[thread / WARP].0 = false;
        &mut self.rows[thread * self.width..][..self.width]
    }

    /// The thread's present.
    #[inline(always)]
    pub(super) fn now(&self, thread: usize) -> u32 {
        self.rows[thread * self.width + thread]
    }

    /// Whether what a thread of another cluster did at `clock` happens before what `thread` does now.
    pub(super) fn knows_block(&self, thread: usize, block: u32, other: usize, clock: u32) -> bool {
        let Some(foreign) = &self.foreign[thread] else {
            return false;
        };
        let at = foreign.binary_search_by_key(&block, |(b, _)| *b);
        let known = at.ok().and_then(|at| foreign[at].1.get(other));
        known.is_some_and(|&known| known >= clock)
    }

    /// What the thread did so far is there for those who acquire `into`; what it does next is not.
    pub(super) fn release(&mut self, thread: usize, into: &mut Knowledge) {
        match &mut into.clock {
            Some(clock) => join(Rc::make_mut(clock).as_mut_slice(), self.row(thread)),
            None => into.clock = Some(Rc::new(self.row(thread).to_vec())),
        }
        learn(&mut into.foreign, &self.foreign[thread]);
        self.advance(thread);
    }

    /// The thread's next moment begins.
    pub(super) fn advance(&mut self, thread: usize) {
        // What the others know of it stays as it is, and so does what all lanes know.
        let now = &mut self.rows[thread * self.width + thread];
        // The last value stands for "not yet": what is in flight.
        *now = (*now + 1).min(Access::NEVER - 1);
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// The thread comes after all that was released into `from`.
    pub(super) fn acquire(&mut self, thread: usize, from: &Knowledge) {
        if let Some(clock) = &from.clock {
            join(self.row_mut(thread), clock);
        }
        learn(&mut self.foreign[thread], &from.foreign);
    }

    /// A barrier among lanes of a warp: each comes after all.
    pub(super) fn meet(&mut self, first: usize, lanes: u32) {
        let mut all = Knowledge::default();
        let members = (0..32).filter(|lane| lanes >> lane & 1 != 0);
        for lane in members.clone() {
            self.release(first + lane, &mut all);
        }
        for lane in members {
            self.acquire(first + lane, &all);
        }
    }
}

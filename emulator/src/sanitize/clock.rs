//! Vector clocks: what each thread knows of the others' past.

use std::rc::Rc;

/// What was known at a release: the clocks of the block's threads, and of other blocks'.
#[derive(Debug, Clone, Default)]
pub(super) struct Knowledge {
    clock: Vec<u32>,
    foreign: Vec<(u32, Rc<[u32]>)>,
}

impl Knowledge {
    pub(super) fn join(&mut self, other: &Knowledge) {
        self.clock
            .resize(self.clock.len().max(other.clock.len()), 0);
        join(&mut self.clock, &other.clock);
        learn(&mut self.foreign, &other.foreign);
    }

    /// The same, as another block sees it: what this block knew is now a stranger's.
    pub(super) fn of_block(&self, block: u32) -> Knowledge {
        let mut foreign = self.foreign.clone();
        if !self.clock.is_empty() {
            foreign.push((block, Rc::from(self.clock.as_slice())));
        }
        Knowledge {
            clock: Vec::new(),
            foreign,
        }
    }

    pub(super) fn clear(&mut self) {
        self.clock.clear();
        self.foreign.clear();
    }
}

/// Joins `from` into `into`.
fn join(into: &mut [u32], from: &[u32]) {
    for (a, &b) in into.iter_mut().zip(from) {
        *a = (*a).max(b);
    }
}

fn learn(into: &mut Vec<(u32, Rc<[u32]>)>, from: &[(u32, Rc<[u32]>)]) {
    for (block, clock) in from {
        match into.iter_mut().find(|(b, _)| b == block) {
            None => into.push((*block, Rc::clone(clock))),
            Some((_, known)) if Rc::ptr_eq(known, clock) => {}
            Some((_, known)) => {
                let mut both = known.to_vec();
                join(&mut both, clock);
                *known = both.into();
            }
        }
    }
}

/// The clocks of a block's threads. Row `t` holds, for every thread, the last moment of it that thread `t` is ordered
/// after; its own entry is its present. (Lamport; for data races: Flanagan and Freund, FastTrack, PLDI 2009.)
pub(super) struct Clocks {
    threads: usize,
    rows: Vec<u32>,
    /// What each thread knows of other blocks.
    foreign: Vec<Vec<(u32, Rc<[u32]>)>>,
}

impl Clocks {
    pub(super) fn new(threads: usize) -> Self {
        let mut clocks = Clocks {
            threads,
            rows: vec![0; threads * threads],
            foreign: vec![Vec::new(); threads],
        };
        clocks.reset();
        clocks
    }

    /// A new block: every thread knows of itself only.
    pub(super) fn reset(&mut self) {
        self.rows.fill(0);
        for t in 0..self.threads {
            self.rows[t * self.threads + t] = 1;
            self.foreign[t].clear();
        }
    }

    fn row(&self, thread: usize) -> &[u32] {
        &self.rows[thread * self.threads..][..self.threads]
    }

    fn row_mut(&mut self, thread: usize) -> &mut [u32] {
        &mut self.rows[thread * self.threads..][..self.threads]
    }

    /// The thread's present.
    #[inline(always)]
    pub(super) fn now(&self, thread: usize) -> u32 {
        self.rows[thread * self.threads + thread]
    }

    /// Whether what `other` did at `clock` happens before what `thread` does now.
    #[inline(always)]
    pub(super) fn knows(&self, thread: usize, other: usize, clock: u32) -> bool {
        self.rows[thread * self.threads + other] >= clock
    }

    /// The same, of a thread of another block.
    pub(super) fn knows_block(&self, thread: usize, block: u32, other: usize, clock: u32) -> bool {
        let known = self.foreign[thread].iter().find(|(b, _)| *b == block);
        known.is_some_and(|(_, known)| known.get(other).is_some_and(|&known| known >= clock))
    }

    /// What the thread did so far is there for those who acquire `into`; what it does next is not.
    pub(super) fn release(&mut self, thread: usize, into: &mut Knowledge) {
        into.clock.resize(self.threads, 0);
        join(&mut into.clock, self.row(thread));
        learn(&mut into.foreign, &self.foreign[thread]);
        let at = thread * self.threads + thread;
        // The last value stands for "not yet": copies in flight.
        self.rows[at] = (self.rows[at] + 1).min(u32::MAX - 1);
    }

    /// The thread comes after all that was released into `from`.
    pub(super) fn acquire(&mut self, thread: usize, from: &Knowledge) {
        join(self.row_mut(thread), &from.clock);
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

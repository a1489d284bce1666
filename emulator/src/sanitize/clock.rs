//! Vector clocks: what each thread knows of the others' past.

use std::rc::Rc;

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

/// The clocks of a block's threads. Row `t` holds, for every thread, the last moment of it that thread `t` is ordered
/// after; its own entry is its present. (Lamport; for data races: Flanagan and Freund, FastTrack, PLDI 2009.)
pub(super) struct Clocks {
    threads: usize,
    rows: Vec<u32>,
    /// What each thread knows of other blocks.
    foreign: Vec<Foreign>,
}

impl Clocks {
    pub(super) fn new(threads: usize) -> Self {
        let mut clocks = Clocks {
            threads,
            rows: vec![0; threads * threads],
            foreign: vec![None; threads],
        };
        clocks.reset();
        clocks
    }

    /// A new block: every thread knows of itself only.
    pub(super) fn reset(&mut self) {
        self.rows.fill(0);
        for t in 0..self.threads {
            self.rows[t * self.threads + t] = 1;
            self.foreign[t] = None;
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
        let at = thread * self.threads + thread;
        // The last value stands for "not yet": copies in flight.
        self.rows[at] = (self.rows[at] + 1).min(u32::MAX - 1);
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

//! Where control goes in a listing, and what a branch decides.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::Range,
};

use super::listing::Listing;

/// The control flow of a listing: its instructions, in blocks that are entered at the top and left at the bottom.
pub struct Flow {
    /// First instruction of each block, and one past the last block's last.
    begins: Vec<usize>,
    /// Blocks that may follow each block. The one past the last block is the end of the entry.
    successors: Vec<Vec<usize>>,
    /// The first block that every path from a block to the end passes: its immediate post-dominator.
    joins: Vec<usize>,
}

/// The two ways of a conditional branch, each as the blocks between it and the place where the ways meet.
#[derive(Debug, PartialEq, Eq)]
pub struct Sides {
    /// Where the branch is taken.
    pub taken: Vec<usize>,
    /// Where it is not.
    pub passed: Vec<usize>,
}

impl Flow {
    /// The control flow of a listing.
    ///
    /// # Errors
    /// A branch to a label that there is not.
    pub fn of(listing: &Listing<'_>) -> Result<Self, String> {
        let instructions = &listing.instructions;
        let target = |label| {
            let at = listing.labels.get(label).copied();
            at.ok_or_else(|| format!("no label {label}"))
        };
        let ends = |i: usize| {
            instructions[i].is("bra") || instructions[i].is("ret") || instructions[i].is("exit")
        };
        let mut begins = vec![0, instructions.len()];
        for (i, instruction) in instructions.iter().enumerate() {
            if let Some(label) = instruction.target() {
                begins.push(target(label)?);
            }
            if ends(i) {
                begins.push(i + 1);
            }
        }
        begins.sort_unstable();
        begins.dedup();
        let block_at = |i: usize| begins.partition_point(|&begin| begin <= i) - 1;
        let count = begins.len() - 1;
        let mut successors = vec![Vec::new(); count];
        for (block, next) in successors.iter_mut().enumerate() {
            let last = begins[block + 1] - 1;
            let instruction = &instructions[last];
            if let Some(label) = instruction.target() {
                next.push(block_at(target(label)?));
            } else if ends(last) {
                next.push(count);
            }
            if !ends(last) || instruction.guard.is_some() {
                next.push(block + 1);
            }
        }
        let joins = post_dominators(&successors);
        Ok(Self {
            begins,
            successors,
            joins,
        })
    }

    /// The instructions of a block.
    pub fn instructions(&self, block: usize) -> Range<usize> {
        self.begins[block]..self.begins[block + 1]
    }

    /// The instructions of each block, in the order of the text.
    pub fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        (0..self.successors.len()).map(|block| self.instructions(block))
    }

    /// The instructions that control can reach, if of some branches it is known whether they are taken.
    pub fn reachable(&self, decided: &HashMap<usize, bool>) -> HashSet<usize> {
        self.reachable_from(0, decided)
    }

    /// The same of control that begins with the block of an instruction.
    pub fn reachable_from(
        &self,
        instruction: usize,
        decided: &HashMap<usize, bool>,
    ) -> HashSet<usize> {
        let begin = self.begins.partition_point(|&begin| begin <= instruction) - 1;
        let (mut blocks, mut open) = (HashSet::new(), vec![begin]);
        while let Some(block) = open.pop() {
            if block >= self.successors.len() || !blocks.insert(block) {
                continue;
            }
            let last = self.begins[block + 1] - 1;
            match (decided.get(&last), &self.successors[block][..]) {
                (Some(true), &[target, _]) => open.push(target),
                (Some(false), &[_, next]) => open.push(next),
                (_, next) => open.extend(next),
            }
        }
        let reached = blocks.into_iter();
        reached.flat_map(|block| self.instructions(block)).collect()
    }

    /// For each instruction, which of the marked ones has been passed last on the ways to it: all their marks, and `start` for a way past
    /// none.
    pub fn since(&self, mark: impl Fn(usize) -> Option<&'static str>) -> Vec<String> {
        let count = self.successors.len();
        let mut before = vec![BTreeSet::new(); count + 1];
        before[0].insert("start");
        let mut open = vec![0];
        while let Some(block) = open.pop() {
            let Some(next) = self.successors.get(block) else {
                continue;
            };
            let last = self.instructions(block).rev().find_map(&mark);
            let after = match last {
                Some(mark) => BTreeSet::from([mark]),
                None => before[block].clone(),
            };
            for &next in next {
                let known = before[next].len();
                before[next].extend(&after);
                if before[next].len() > known {
                    open.push(next);
                }
            }
        }
        let mut found = Vec::new();
        for (block, mut now) in before.into_iter().take(count).enumerate() {
            for at in self.instructions(block) {
                found.push(now.iter().copied().collect::<Vec<_>>().join(" "));
                if let Some(mark) = mark(at) {
                    now = BTreeSet::from([mark]);
                }
            }
        }
        found
    }

    /// What a conditional branch decides. `None` for any other instruction.
    pub fn sides(&self, instruction: usize) -> Option<Sides> {
        let block = self.begins.partition_point(|&begin| begin <= instruction) - 1;
        let is_last = self.begins.get(block + 1) == Some(&(instruction + 1));
        match self.successors.get(block)?[..] {
            [taken, passed] if is_last => {
                let join = self.joins[block];
                Some(Sides {
                    taken: self.between(taken, join),
                    passed: self.between(passed, join),
                })
            }
            _ => None,
        }
    }

    /// The blocks that are reached from `begin` without passing `join`.
    fn between(&self, begin: usize, join: usize) -> Vec<usize> {
        let (mut found, mut open) = (Vec::new(), vec![begin]);
        while let Some(block) = open.pop() {
            if block != join && block < self.successors.len() && !found.contains(&block) {
                found.push(block);
                open.extend(&self.successors[block]);
            }
        }
        found
    }
}

/// The immediate post-dominator of each block, by Cooper, Harvey and Kennedy's iteration over the reversed graph.
/// A block from which no path leads to the end (`successors.len()`) has the end for one.
fn post_dominators(successors: &[Vec<usize>]) -> Vec<usize> {
    let end = successors.len();
    let mut predecessors = vec![Vec::new(); end + 1];
    for (block, next) in successors.iter().enumerate() {
        for &next in next {
            predecessors[next].push(block);
        }
    }
    // Post-order of the reversed graph, from the end.
    let (mut order, mut seen, mut stack) = (Vec::new(), vec![false; end + 1], vec![(end, 0)]);
    seen[end] = true;
    while let Some((block, edge)) = stack.pop() {
        match predecessors[block].get(edge) {
            Some(&before) => {
                stack.push((block, edge + 1));
                if !std::mem::replace(&mut seen[before], true) {
                    stack.push((before, 0));
                }
            }
            None => order.push(block),
        }
    }
    let mut rank = vec![0; end + 1];
    for (at, &block) in order.iter().enumerate() {
        rank[block] = at;
    }
    let mut join: Vec<Option<usize>> = vec![None; end + 1];
    join[end] = Some(end);
    let mut changed = true;
    while changed {
        changed = false;
        for &block in order.iter().rev().filter(|&&block| block != end) {
            let mut known = successors[block]
                .iter()
                .copied()
                .filter(|&next| join[next].is_some());
            let first = known.next();
            let meet = known.fold(first, |a, b| a.and_then(|a| common(&join, &rank, a, b)));
            if meet.is_some() && meet != join[block] {
                join[block] = meet;
                changed = true;
            }
        }
    }
    (0..end).map(|block| join[block].unwrap_or(end)).collect()
}

/// The nearest post-dominator that two blocks have in common.
fn common(join: &[Option<usize>], rank: &[usize], mut a: usize, mut b: usize) -> Option<usize> {
    while a != b {
        if rank[a] < rank[b] {
            a = join[a]?;
        } else {
            b = join[b]?;
        }
    }
    Some(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sides(text: &str, instruction: usize) -> Option<Sides> {
        let text = format!(".entry e() {{ {text} }}");
        Flow::of(&Listing::read(&text).unwrap())
            .unwrap()
            .sides(instruction)
    }

    #[test]
    fn a_branch_over_a_store() {
        let found = sides("@%p1 bra L; st.global.u32 [%rd1], %r1; L: ret;", 0);
        assert_eq!(
            found,
            Some(Sides {
                taken: vec![],
                passed: vec![1]
            })
        );
    }

    #[test]
    fn two_ways() {
        let text =
            "@%p1 bra A; bra.uni B; A: mov.b32 %r1, 1; bra.uni C; B: mov.b32 %r1, 2; C: ret;";
        let found = sides(text, 0);
        assert_eq!(
            found,
            Some(Sides {
                taken: vec![2],
                passed: vec![1, 3]
            })
        );
        assert_eq!(sides(text, 1), None);
    }

    #[test]
    fn what_a_decided_branch_leaves_out() {
        let text = ".entry e() { @%p1 bra L; mov.b32 %r1, 1; L: ret; }";
        let listing = Listing::read(text).unwrap();
        let flow = Flow::of(&listing).unwrap();
        let reachable = |decided: &[_]| flow.reachable(&decided.iter().copied().collect());
        assert_eq!(reachable(&[]), [0, 1, 2].into());
        assert_eq!(reachable(&[(0, false)]), [0, 1, 2].into());
        assert_eq!(reachable(&[(0, true)]), [0, 2].into());
    }

    #[test]
    fn a_loop_is_one_side_of_its_last_branch() {
        let found = sides(
            "mov.b32 %r1, 0; A: add.s32 %r1, %r1, 1; @%p1 bra A; ret;",
            2,
        );
        assert_eq!(
            found,
            Some(Sides {
                taken: vec![1],
                passed: vec![]
            })
        );
    }

    #[test]
    fn what_was_passed_last() {
        let text = ".entry e() {
            setp.eq.b32 %p1, %r1, 0;
         L: add.s32 %r1, %r1, 1;
            @%p1 bra M;
            bar.sync 0;
            add.s32 %r1, %r1, 1;
            bra L;
         M: ret; }";
        let listing = Listing::read(text).unwrap();
        let flow = Flow::of(&listing).unwrap();
        let mark = |at: usize| listing.instructions[at].is("bar.sync").then_some("bar");
        let found = flow.since(mark);
        let both = "bar start";
        assert_eq!(found, ["start", both, both, both, "bar", "bar", both]);
    }
}

//! Warp-wide exchange and votes. The machine passes the executing lanes as a mask; lanes outside it keep no meaning in
//! the results.

use super::Lanes;

/// The modes of `shfl.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shfl {
    /// From the lane `b` below.
    Up,
    /// From the lane `b` above.
    Down,
    /// From the lane whose number differs in the bits of `b`.
    Bfly,
    /// From lane `b` of the segment.
    Idx,
}

/// What a `shfl.sync` gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shuffled {
    /// The destination register.
    pub values: Lanes,
    /// The predicate destination, one bit per lane: the computed source lane was in range.
    pub in_range: u32,
    /// Lanes that read a lane outside `active`: their value is undefined on a GPU (here: the register's old content).
    pub undefined: u32,
}

/// `shfl.sync.mode.b32 d|p, a, b, c, membermask`, after the manual's pseudocode. `c` holds the clamp in bits 0..5 and
/// the segment mask in bits 8..13. `active` are the lanes that take part.
pub fn shfl(mode: Shfl, a: &Lanes, b: &Lanes, c: &Lanes, active: u32) -> Shuffled {
    let mut out = Shuffled {
        values: *a,
        in_range: 0,
        undefined: 0,
    };
    for lane in 0..32u32 {
        let (b, c) = (b[lane as usize] & 31, c[lane as usize]);
        let (clamp, mask) = (c & 31, c >> 8 & 31);
        let max_lane = lane & mask | clamp & !mask;
        let min_lane = lane & mask;
        let (source, in_range) = match mode {
            Shfl::Up => {
                let j = lane as i32 - b as i32;
                (j, j >= max_lane as i32)
            }
            Shfl::Down => ((lane + b) as i32, lane + b <= max_lane),
            Shfl::Bfly => ((lane ^ b) as i32, lane ^ b <= max_lane),
            Shfl::Idx => {
                let j = min_lane | b & !mask;
                (j as i32, j <= max_lane)
            }
        };
        let source = if in_range { source as u32 & 31 } else { lane };
        out.values[lane as usize] = a[source as usize];
        out.in_range |= u32::from(in_range) << lane;
        let defined = active >> source & 1 != 0 || active >> lane & 1 == 0;
        out.undefined |= u32::from(!defined) << lane;
    }
    out
}

/// `vote.sync.all`: every lane of `active` has its bit set in `predicate`.
pub fn vote_all(predicate: u32, active: u32) -> bool {
    predicate & active == active
}

/// `vote.sync.any`.
pub fn vote_any(predicate: u32, active: u32) -> bool {
    predicate & active != 0
}

/// `vote.sync.uni`: all lanes agree.
pub fn vote_uni(predicate: u32, active: u32) -> bool {
    let set = predicate & active;
    set == 0 || set == active
}

/// `vote.sync.ballot`.
pub fn vote_ballot(predicate: u32, active: u32) -> u32 {
    predicate & active
}

/// `match.any.sync`: for each active lane, the active lanes with the same value. 64-bit forms pass the high words.
pub fn match_any(low: &Lanes, high: Option<&Lanes>, active: u32) -> Lanes {
    let value = |lane: usize| u64::from(high.map_or(0, |h| h[lane])) << 32 | u64::from(low[lane]);
    let on = |lane: usize| active >> lane & 1 != 0;
    std::array::from_fn(|i| {
        (0..32)
            .filter(|&j| on(i) && on(j) && value(i) == value(j))
            .fold(0, |mask, j| mask | 1 << j)
    })
}

/// `match.all.sync`: `(mask, predicate)`: the active mask and true when all values agree, else 0 and false.
pub fn match_all(low: &Lanes, high: Option<&Lanes>, active: u32) -> (u32, bool) {
    let same = match_any(low, high, active);
    let all = (0..32).all(|lane| active >> lane & 1 == 0 || same[lane] == active);
    (if all { active } else { 0 }, all)
}

/// The operations of `redux.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are the manual's.
pub enum Redux {
    Add,
    MinU,
    MaxU,
    MinS,
    MaxS,
    And,
    Or,
    Xor,
}

/// `redux.sync`: the reduction over the active lanes (0 when there are none).
pub fn redux(op: Redux, a: &Lanes, active: u32) -> u32 {
    let combine = |x: u32, y: u32| match op {
        Redux::Add => x.wrapping_add(y),
        Redux::MinU => x.min(y),
        Redux::MaxU => x.max(y),
        Redux::MinS => (x as i32).min(y as i32) as u32,
        Redux::MaxS => (x as i32).max(y as i32) as u32,
        Redux::And => x & y,
        Redux::Or => x | y,
        Redux::Xor => x ^ y,
    };
    (0..32)
        .filter(|lane| active >> lane & 1 != 0)
        .map(|lane| a[lane])
        .reduce(combine)
        .unwrap_or(0)
}

/// `elect.sync`: the elected lane of the mask. PTX leaves the choice open; this takes the lowest.
pub fn elect(active: u32) -> u32 {
    active.trailing_zeros() & 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u32 = u32::MAX;

    fn ids() -> Lanes {
        std::array::from_fn(|i| i as u32 + 100)
    }

    fn run(mode: Shfl, b: u32, c: u32) -> Shuffled {
        shfl(mode, &ids(), &[b; 32], &[c; 32], ALL)
    }

    /// Expected lanes from the definitions of CUDA's shuffle intrinsics: c = 0x1f (0 for up) over the full warp, and
    /// (32 - width) << 8 | 0x1f for segments.
    #[test]
    fn shuffles() {
        let down = run(Shfl::Down, 3, 0x1f);
        assert_eq!(
            (down.values[0], down.values[28], down.values[29]),
            (103, 131, 129)
        );
        assert_eq!(down.in_range, ALL >> 3);
        let up = run(Shfl::Up, 3, 0);
        assert_eq!((up.values[31], up.values[3], up.values[2]), (128, 100, 102));
        assert_eq!(up.in_range, ALL << 3);
        let bfly = run(Shfl::Bfly, 16, 0x1f);
        assert_eq!(
            (bfly.values[0], bfly.values[31], bfly.in_range),
            (116, 115, ALL)
        );
        let idx = run(Shfl::Idx, 33, 0x1f);
        assert_eq!((idx.values[7], idx.in_range), (101, ALL));
        // Segments of 8: mask 0x18.
        let c = 0x181f;
        assert_eq!(run(Shfl::Idx, 2, c).values[13], 110);
        let down = run(Shfl::Down, 4, c);
        assert_eq!(
            (down.values[3], down.values[4], down.values[11]),
            (107, 104, 115)
        );
        let up = run(Shfl::Up, 4, 0x1800);
        assert_eq!(
            (up.values[12], up.values[11], up.in_range),
            (108, 111, 0xf0f0_f0f0)
        );
        // A butterfly may read a lower segment but not a higher one.
        assert_eq!(run(Shfl::Bfly, 8, c).in_range, 0xff00_ff00);
    }

    #[test]
    fn inactive_sources_are_reported() {
        let out = shfl(Shfl::Bfly, &ids(), &[1; 32], &[0x1f; 32], 0b0111);
        assert_eq!(out.undefined, 0b0100);
    }

    /// By the definitions.
    #[test]
    fn votes_matches_reductions() {
        assert!(vote_all(0b111, 0b101) && !vote_all(0b110, 0b101));
        assert!(vote_any(0b100, 0b101) && !vote_any(0b010, 0b101));
        assert!(vote_uni(0b010, 0b101) && !vote_uni(0b100, 0b101));
        assert_eq!(vote_ballot(0b110, 0b101), 0b100);
        let mut values = [7; 32];
        values[3] = 9;
        assert_eq!(
            match_any(&values, None, 0b1111)[..5],
            [0b0111, 0b0111, 0b0111, 0b1000, 0]
        );
        assert_eq!(match_all(&values, None, 0b0111), (0b0111, true));
        assert_eq!(match_all(&values, None, 0b1111), (0, false));
        let mut high = [0; 32];
        high[1] = 1;
        assert_eq!(match_any(&values, Some(&high), 0b0011)[0], 0b01);
        let a = std::array::from_fn(|i| i as u32);
        assert_eq!(redux(Redux::Add, &a, ALL), 496);
        assert_eq!(redux(Redux::MaxU, &a, 0xff), 7);
        assert_eq!(redux(Redux::MinS, &[u32::MAX; 32], 1), u32::MAX);
        assert_eq!(redux(Redux::Xor, &a, 0b110), 3);
        assert_eq!(elect(0b1010_0000), 5);
    }
}

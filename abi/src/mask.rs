//! Masks as bands of the score matrix, and the key blocks a query block has to visit.
//!
//! Full, causal (either alignment) and sliding-window attention all let query row `i` attend the
//! keys `j` with `lower <= j - i <= upper`. One band describes them all; the host folds alignment
//! and window into its two numbers, and the kernels know nothing else of masks.

/// The half-open interval of keys `[begin, end)` that one query row attends. Empty if `begin >= end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct KeyInterval {
    /// First key attended.
    pub begin: i32,
    /// One past the last key attended.
    pub end: i32,
}

/// Keys `j` visible to query `i`: `lower <= j - i <= upper` and `0 <= j < seqlen_k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Band {
    /// Smallest `j - i` attended. [`Band::UNBOUNDED_LOWER`] lifts the limit.
    pub lower: i32,
    /// Largest `j - i` attended. [`Band::UNBOUNDED_UPPER`] lifts the limit.
    pub upper: i32,
    /// Keys in the sequence, at most [`Band::MAX_SEQLEN`].
    pub seqlen_k: i32,
}

/// The key blocks a block of query rows visits: `begin..end`, of which `full_begin..full_end` need
/// no mask because every row attends every key in them. `begin <= full_begin <= full_end <= end`
/// whenever `begin <= end`; nothing is visited if `begin >= end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// First block that any row attends.
    pub begin: i32,
    /// One past the last block that any row attends.
    pub end: i32,
    /// First block that every row attends whole.
    pub full_begin: i32,
    /// One past the last block that every row attends whole.
    pub full_end: i32,
}

const fn max(a: i32, b: i32) -> i32 {
    if a > b { a } else { b }
}

const fn min(a: i32, b: i32) -> i32 {
    if a < b { a } else { b }
}

impl Band {
    /// Longest sequence of queries or keys. Keeps `i + upper` within `i32` for every row.
    pub const MAX_SEQLEN: i32 = 1 << 30;
    /// Value of `lower` that lets every earlier key through.
    pub const UNBOUNDED_LOWER: i32 = -Self::MAX_SEQLEN;
    /// Value of `upper` that lets every later key through.
    pub const UNBOUNDED_UPPER: i32 = Self::MAX_SEQLEN - 1;

    /// No mask but the end of the sequence.
    pub const fn full(seqlen_k: i32) -> Self {
        Self {
            lower: Self::UNBOUNDED_LOWER,
            upper: Self::UNBOUNDED_UPPER,
            seqlen_k,
        }
    }

    /// The keys that query row `q_idx` attends.
    #[inline(always)]
    pub const fn row(&self, q_idx: i32) -> KeyInterval {
        KeyInterval {
            begin: max(0, q_idx + self.lower),
            end: min(self.seqlen_k, q_idx + self.upper + 1),
        }
    }

    /// The key blocks of `block_n` keys that the `rows` query rows from `q_begin` visit.
    ///
    /// `rows` counts real rows only (a last block may be short), so that padding rows neither widen
    /// nor narrow the range. The bounds move monotonically with the row, so the first and the last
    /// row decide everything.
    #[inline(always)]
    pub const fn block_range(&self, q_begin: i32, rows: i32, block_n: i32) -> BlockRange {
        let first = self.row(q_begin);
        let last = self.row(q_begin + rows - 1);
        // Any row: from the first row's begin to the last row's end.
        let begin = first.begin / block_n;
        let end = (max(last.end, 0) + block_n - 1) / block_n;
        // Every row: from the last row's begin to the first row's end.
        let full_begin = (last.begin + block_n - 1) / block_n;
        let full_end = max(first.end, 0) / block_n;
        let full_begin = min(max(full_begin, begin), max(begin, end));
        let full_end = min(max(full_end, full_begin), max(full_begin, end));
        BlockRange {
            begin,
            end,
            full_begin,
            full_end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every block's class, by asking every (row, key) pair.
    fn check(band: Band, q_begin: i32, rows: i32, block_n: i32) {
        let range = band.block_range(q_begin, rows, block_n);
        let attends =
            |i: i32, j: i32| j < band.seqlen_k && j - i >= band.lower && j - i <= band.upper;
        for block in 0..(band.seqlen_k + block_n - 1) / block_n {
            let keys = || block * block_n..(block + 1) * block_n;
            let any = (q_begin..q_begin + rows).any(|i| keys().any(|j| attends(i, j)));
            let all = (q_begin..q_begin + rows).all(|i| keys().all(|j| attends(i, j)));
            let visited = range.begin <= block && block < range.end;
            let full = range.full_begin <= block && block < range.full_end;
            assert!(
                visited || !any,
                "{band:?} q {q_begin}+{rows}: block {block} is skipped: {range:?}"
            );
            assert!(
                !full || all,
                "{band:?} q {q_begin}+{rows}: block {block} needs a mask: {range:?}"
            );
            if visited && all {
                assert!(
                    full,
                    "{band:?} q {q_begin}+{rows}: block {block} needs no mask: {range:?}"
                );
            }
        }
        if range.begin < range.end {
            assert!(range.begin >= 0 && range.begin <= range.full_begin);
            assert!(range.full_begin <= range.full_end && range.full_end <= range.end);
        }
    }

    #[test]
    fn block_ranges_agree_with_every_pair_of_row_and_key() {
        let bounds = [
            Band::UNBOUNDED_LOWER,
            -9,
            -4,
            -1,
            0,
            1,
            3,
            8,
            Band::UNBOUNDED_UPPER,
        ];
        for seqlen_k in [0, 1, 3, 4, 5, 7, 8, 11, 16] {
            for &lower in &bounds {
                for &upper in &bounds {
                    let band = Band {
                        lower,
                        upper,
                        seqlen_k,
                    };
                    for q_begin in [0, 1, 4, 8, 13] {
                        for rows in 1..=5 {
                            for block_n in [1, 2, 4, 8] {
                                check(band, q_begin, rows, block_n);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn extreme_rows_do_not_overflow() {
        let last = Band::MAX_SEQLEN - 1;
        let band = Band::full(Band::MAX_SEQLEN);
        assert_eq!(
            band.row(last),
            KeyInterval {
                begin: 0,
                end: Band::MAX_SEQLEN
            }
        );
        assert_eq!(
            band.row(0),
            KeyInterval {
                begin: 0,
                end: Band::MAX_SEQLEN
            }
        );
        let range = band.block_range(last - 63, 64, 64);
        assert_eq!((range.begin, range.end), (0, Band::MAX_SEQLEN / 64));
        assert_eq!((range.full_begin, range.full_end), (range.begin, range.end));
    }
}

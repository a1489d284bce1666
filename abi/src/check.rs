//! Checks of the numbers that say where sequences are, on the device: what a launch of the checking kernel looks at, and what it leaves for
//! the host to read.

use crate::{
    serving::{Lengths, Pages, RangeView},
    variant::{Arch, Entry},
};

/// What the checking kernel looks at: the only parameter, passed by value. An address of 0: there is no such thing.
///
/// The numbers may be anything: tables are read only where they have entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CheckParams {
    /// Device address of a [`CheckState`].
    pub state: u64,
    /// Address of a [`CheckReport`] that the host can read.
    pub report: u64,
    /// Of the queries. Not with [`flags::ROWS`].
    pub q: Lengths,
    /// Of the keys; with [`flags::ROWS`], of the tokens: `tokens` are those of the tensors then, `longest`
    /// those of one sequence where there are no starts.
    pub k: Lengths,
    /// Pages of keys and values.
    pub pages: Pages,
    /// Ranges inside which queries see all keys.
    pub ranges: RangeView,
    /// Device address of `i64` by token.
    pub slots: u64,
    /// With [`flags::ROWS`]: device address of `i32[batch]`, the row of each sequence's first token.
    pub first: u64,
    /// Device address of one `i32`: how many sequences there are. Those past it must have no queries.
    pub sequences: u64,
    /// Sequences: as many as were planned.
    pub batch: u32,
    /// Blocks of one sequence. Grid = parts * batch; with slots, parts.
    pub parts: u32,
    /// Rows that a sequence's entries of the table hold; with [`flags::ROWS`], rows of the cache that a sequence can have, or slots.
    pub capacity: u32,
    /// Bits of [`flags`].
    pub flags: u32,
}

/// Bits of [`CheckParams::flags`].
pub mod flags {
    /// Rows of caches are checked, as appending and gathering kernels find them; else lengths of attention.
    pub const ROWS: u32 = 1 << 0;
    /// Keys are in pages, be it in none: a table without entries has no address.
    pub const PAGED: u32 = 1 << 1;
}

/// What blocks of a checking kernel tell each other. All zeros before the first launch, and after each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CheckState {
    /// The complement of the first [`Offence`] so far, packed; 0: there is none.
    pub worst: u64,
    /// Blocks that have finished.
    pub arrived: u32,
    /// Unused.
    pub padding: u32,
}

/// Numbers that come with an offence.
pub const NUMBERS: usize = 4;

/// What a checking kernel leaves for the host. A kernel writes only while `delivered` and `taken` are the same, the host reads only while
/// they are not: so an offence stays until it has been read, and those of launches in between are lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CheckReport {
    /// Offences that kernels have written.
    pub delivered: u64,
    /// Of these, the host has read so many.
    pub taken: u64,
    /// The last one, packed.
    pub offence: u64,
    /// Its numbers: see [`What`].
    pub numbers: [i64; NUMBERS],
}

crate::serving::as_bytes! { CheckParams }

/// The rule that numbers break, in the order in which they are looked for: all sequences by one rule before any by the next. The comment
/// says which four numbers come with it; those not named are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum What {
    /// There are at most as many sequences as were planned: how many, planned.
    Sequences = 1,
    /// The first sequence of queries starts at 0: where it does.
    QStart,
    /// Starts of queries never decrease: where the sequence starts, where the next one does.
    QOrder,
    /// The last sequence of queries ends inside the tensor: where it does, the tensor's end.
    QEnd,
    /// A sequence of queries has no more tokens than there are ([`length::USED`]: used, at most), and than the longest
    /// ([`length::LONGEST_USED`], [`length::LONGEST`]: tokens, longest).
    QLength,
    /// As `QStart`, of keys.
    KStart,
    /// As `QOrder`, of keys.
    KOrder,
    /// As `QEnd`, of keys. Not in pages.
    KEnd,
    /// As `QLength`, of keys.
    KLength,
    /// A sequence fits its pages (position 0: keys, rows of its pages, entries, 1 if the keys are `used`), and its pages exist (position 1
    /// more than the entry's: entry, blocks, keys).
    Page,
    /// A range (position) that is not empty does not begin before its sequence: first, last.
    Range,
    /// Sequences past the last have no queries: queries, sequences.
    Past,
    /// The slot of a token (position) is -1, or one of the cache's: slot, slots.
    Slot,
    /// Tokens of a sequence have rows of the cache, by [`row`].
    Row,
}

/// Positions of [`What::QLength`] and [`What::KLength`].
pub mod length {
    /// More tokens are used than there are, or fewer than none.
    pub const USED: u32 = 0;
    /// More tokens are used than the longest sequence is said to have.
    pub const LONGEST_USED: u32 = 1;
    /// A sequence is longer than the longest is said to be.
    pub const LONGEST: u32 = 2;
}

/// Positions of [`What::Row`].
pub mod row {
    /// The first sequence starts at 0: where it does.
    pub const START: u32 = 0;
    /// The next sequence starts no earlier, and inside the tensors: where it does, where this one does, tokens.
    pub const NEXT: u32 = 1;
    /// No more tokens are used than there are: used, at most.
    pub const USED: u32 = 2;
    /// The cache has all rows: first, used, capacity.
    pub const FIRST: u32 = 3;
    /// This much more than the entry's, counted from the first that is needed. The pages exist: entry, blocks, which entry of the
    /// sequence it is.
    pub const ENTRY: u32 = 4;
}

impl What {
    const ALL: [Self; 14] = [
        Self::Sequences,
        Self::QStart,
        Self::QOrder,
        Self::QEnd,
        Self::QLength,
        Self::KStart,
        Self::KOrder,
        Self::KEnd,
        Self::KLength,
        Self::Page,
        Self::Range,
        Self::Past,
        Self::Slot,
        Self::Row,
    ];
}

/// Where numbers break a rule. Offences of a launch have an order: by rule, then by sequence, then by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offence {
    /// The rule.
    pub what: What,
    /// The sequence; 0 for rules that are about none. Fewer than 2^28.
    pub sequence: u32,
    /// Where in the sequence. Fewer than 2^31.
    pub position: u32,
}

impl Offence {
    /// Sequences that can be told apart.
    pub const MAX_BATCH: u32 = 1 << SEQUENCE_BITS;

    /// As one number, never 0 nor all ones. The earlier an offence, the smaller.
    pub const fn pack(self) -> u64 {
        let (what, sequence) = (self.what as u64, self.sequence as u64);
        (what << SEQUENCE_BITS | sequence) << POSITION_BITS | self.position as u64
    }

    /// Number of the rule, sequence and position of such a number, whether or not it is an offence's.
    pub const fn fields(packed: u64) -> (u8, u32, u32) {
        (
            (packed >> (POSITION_BITS + SEQUENCE_BITS)) as u8,
            (packed >> POSITION_BITS) as u32 & (Self::MAX_BATCH - 1),
            packed as u32 & ((1 << POSITION_BITS) - 1),
        )
    }

    /// The offence of such a number, if it is one's.
    pub fn unpack(packed: u64) -> Option<Self> {
        let (what, sequence, position) = Self::fields(packed);
        Some(Self {
            what: *What::ALL.get(usize::from(what).checked_sub(1)?)?,
            sequence,
            position,
        })
    }
}

const SEQUENCE_BITS: u32 = 28;
const POSITION_BITS: u32 = 31;

/// The checking kernel. Its [`Entry`] is what it dereferences to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckVariant {
    /// The entry point.
    pub entry: Entry,
}

impl core::ops::Deref for CheckVariant {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

/// Threads of a block.
pub const THREADS: u32 = 128;

/// The checking kernel: numbers have one type, whatever the elements are.
pub static CHECK: CheckVariant = CheckVariant {
    entry: Entry {
        name: "check_metadata_sm80",
        arch: Arch::Sm80,
        threads: THREADS,
        min_blocks: 8,
        shared_bytes: 0,
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_block_has_no_padding() {
        assert_eq!(
            size_of::<CheckParams>(),
            2 * 8
                + 2 * size_of::<Lengths>()
                + size_of::<Pages>()
                + size_of::<RangeView>()
                + 3 * 8
                + 4 * 4
        );
        assert_eq!(size_of::<CheckState>(), 16);
        assert_eq!(size_of::<CheckReport>(), 8 * (3 + NUMBERS));
    }

    #[test]
    fn offences_are_packed_in_their_order() {
        let mut all = Vec::new();
        for (at, what) in What::ALL.into_iter().enumerate() {
            assert_eq!(what as usize, at + 1);
            for sequence in [0, 1, Offence::MAX_BATCH - 1] {
                for position in [0, 1, (1 << POSITION_BITS) - 1] {
                    all.push(Offence {
                        what,
                        sequence,
                        position,
                    });
                }
            }
        }
        assert!(all.is_sorted());
        let packed: Vec<_> = all.iter().map(|it| it.pack()).collect();
        assert!(packed.is_sorted_by(|a, b| a < b));
        assert!(packed.iter().all(|&it| it != 0 && !it != 0));
        for (offence, packed) in all.into_iter().zip(packed) {
            assert_eq!(Offence::unpack(packed), Some(offence));
        }
        assert_eq!(Offence::unpack(0), None);
        assert_eq!(Offence::unpack(u64::MAX), None);
    }
}

//! What is said of numbers that break a rule, whether the host has found them or a kernel.

use flashtile_abi::{
    Offence,
    check::{NUMBERS, What, length, row},
};

use crate::error::Error;

/// A rule that is broken, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub offence: Offence,
    /// As [`What`] lists them.
    pub numbers: [i64; NUMBERS],
}

impl Broken {
    /// Of a sequence and a position in it.
    pub fn new(what: What, sequence: usize, position: u32, found: &[i64]) -> Self {
        let mut numbers = [0; NUMBERS];
        numbers[..found.len()].copy_from_slice(found);
        Self {
            offence: Offence {
                what,
                sequence: sequence as u32,
                position,
            },
            numbers,
        }
    }

    /// As the library's error.
    pub fn error(&self) -> Error {
        let [x, y, z, flag] = self.numbers;
        let (what, b, position) = (
            self.offence.what,
            self.offence.sequence,
            self.offence.position,
        );
        let is_keys = what >= What::KStart;
        let (starts, used) = match is_keys {
            true => ("k_starts", "k_used"),
            false => ("q_starts", "q_used"),
        };
        match (what, position) {
            (What::Sequences, _) => Error::bad(
                "sequences",
                format!("0 to {y} sequences, for which the launch was planned"),
                x.to_string(),
            ),
            (What::QStart | What::KStart, _) => Error::bad(starts, "0 at first", x.to_string()),
            (What::QOrder | What::KOrder, _) => Error::bad(
                starts,
                "numbers that never decrease",
                format!("{y} after {x}, at the end of sequence {b}"),
            ),
            (What::QEnd | What::KEnd, _) => Error::bad(
                starts,
                format!("at most {y} tokens, as the tensor has"),
                x.to_string(),
            ),
            (What::QLength | What::KLength, length::USED) => Error::bad(
                used,
                match y {
                    i64::MAX => format!("at least 0 tokens of sequence {b}"),
                    _ => format!("0 to {y} tokens of sequence {b}"),
                },
                x.to_string(),
            ),
            (What::QLength | What::KLength, _) => Error::bad(
                match position {
                    length::LONGEST_USED => used,
                    _ => starts,
                },
                format!("at most {y} tokens of a sequence, as the longest is said to have"),
                format!("{x} tokens of sequence {b}"),
            ),
            (What::Page, 0) => Error::bad(
                match flag {
                    0 => "k_starts",
                    _ => "k_used",
                },
                format!("at most {y} tokens, which {z} pages hold"),
                format!("{x} tokens of sequence {b}"),
            ),
            (What::Page, at) => Error::bad(
                "table",
                format!("pages from 0 to {}, of {y} that exist", (y - 1).max(0)),
                format!(
                    "{x}, entry {} of sequence {b}, which has {z} tokens",
                    at - 1
                ),
            ),
            (What::Range, at) => Error::bad(
                "ranges",
                "ranges that begin at key 0 or later, or end before they begin",
                format!("{x} to {y}, range {at} of sequence {b}"),
            ),
            (What::Past, _) => Error::bad(
                "sequences",
                format!("no queries in sequence {b}, since there are {y} sequences"),
                format!("{x} queries"),
            ),
            (What::Slot, at) => Error::bad(
                "slots",
                format!("-1, or a slot below {y}, as many as the cache has"),
                format!("{x}, of token {at}"),
            ),
            (What::Row, row::START) => {
                Error::bad("starts", "0 first", format!("{x} of sequence {b}"))
            }
            (What::Row, row::NEXT) => Error::bad(
                "starts",
                format!("{y} to {z} next"),
                format!("{x} of sequence {b}"),
            ),
            (What::Row, row::USED) => Error::bad(
                "used",
                format!("0 to {y} tokens"),
                format!("{x} of sequence {b}"),
            ),
            (What::Row, row::FIRST) => Error::bad(
                "first",
                format!("{y} rows from there on in a cache of {z}"),
                format!("{x} of sequence {b}"),
            ),
            (What::Row, _) => Error::bad(
                "block_table",
                format!("blocks below {y}"),
                format!("{x}, entry {z} of sequence {b}"),
            ),
        }
    }
}

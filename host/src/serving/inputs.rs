//! Inputs in the host's memory, and their checks.

use super::problem::{SequenceLengths, ServingProblem};
use crate::error::{Error, Result};

/// The inputs of a [`ServingProblem`] in the host's memory.
///
/// Bytes are little-endian elements, and start at a tensor's lowest one (which is that of index 0 unless strides are negative). What the
/// problem does not have is empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServingInputs<'a> {
    /// Queries.
    pub q: &'a [u8],
    /// Keys.
    pub k: &'a [u8],
    /// Values.
    pub v: &'a [u8],
    /// Where sequences of queries start, `[batch + 1]`.
    pub q_starts: &'a [i32],
    /// How many queries of each sequence count, `[batch]`.
    pub q_used: &'a [i32],
    /// Where sequences of keys start, `[batch + 1]`.
    pub k_starts: &'a [i32],
    /// How many keys of each sequence count, `[batch]`.
    pub k_used: &'a [i32],
    /// The table of pages. Entries behind a sequence's keys may be anything.
    pub table: &'a [i32],
    /// Scales of k, as many as [`CacheScales`](super::CacheScales) says; positive and finite.
    pub k_scale: &'a [f32],
    /// Scales of v, as those of k.
    pub v_scale: &'a [f32],
    /// Slopes of ALiBi, `[heads_q]` or [batch, heads_q]; finite.
    pub alibi: &'a [f32],
    /// Sinks, `[heads_q]`; finite or -inf.
    pub sink: &'a [f32],
    /// What is added to the scores.
    pub bias: &'a [u8],
    /// Which keys may be seen.
    pub mask: &'a [u8],
    /// Ranges, [batch, ranges, 2]; one that is not empty does not begin before the sequence.
    pub ranges: &'a [i32],
}

impl ServingInputs<'_> {
    /// Refuses slices that are shorter than the tensors and numbers that are not what they must be. The problem has passed its checks.
    pub(super) fn check(&self, problem: &ServingProblem) -> Result<()> {
        let has = problem.extents();
        for (argument, extent, slice) in [
            ("q", Some(has.q), self.q),
            ("k", Some(has.k), self.k),
            ("v", Some(has.v), self.v),
            ("bias", has.bias, self.bias),
            ("mask", has.mask, self.mask),
        ] {
            if let Some(extent) = extent {
                extent.of(argument, slice)?;
            }
        }
        problem.check_metadata(self)?;
        let heads_q = problem.q.shape[2];
        let slopes = match problem.alibi {
            None => 0,
            Some(false) => heads_q,
            Some(true) => problem.batch.saturating_mul(heads_q),
        };
        let scales = problem.kv_scales.count(problem.batch, problem.k.shape[2]);
        for (argument, numbers) in [("k_scale", self.k_scale), ("v_scale", self.v_scale)] {
            count(argument, scales, numbers.len())?;
            if let Some(scale) = numbers.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
                return Err(Error::bad(
                    argument,
                    "positive finite numbers",
                    scale.to_string(),
                ));
            }
        }
        let sinks = if problem.sink { heads_q } else { 0 };
        count("alibi", slopes, self.alibi.len())?;
        count("sink", sinks, self.sink.len())?;
        if let Some(slope) = self.alibi.iter().find(|slope| !slope.is_finite()) {
            return Err(Error::bad("alibi", "finite slopes", slope.to_string()));
        }
        let hot = |sink: &&f32| sink.is_nan() || **sink == f32::INFINITY;
        if let Some(sink) = self.sink.iter().find(hot) {
            return Err(Error::bad(
                "sink",
                "finite numbers or -inf",
                sink.to_string(),
            ));
        }
        Ok(())
    }
}

impl ServingProblem {
    /// Checks the numbers that say where sequences are, if the host has them: starts from 0, never decreasing, and within their tensor;
    /// no more tokens used than there are; no sequence longer than the problem says; pages that exist, for each key that counts;
    /// ranges that do not begin before their sequence. Other inputs are not looked at.
    ///
    /// Kernels keep within the tensors whatever the numbers are. But what they compute is only defined for numbers that pass.
    ///
    /// # Errors
    /// [`Error::BadInput`] names the argument, and the first sequence that is wrong.
    pub fn check_metadata(&self, inputs: &ServingInputs<'_>) -> Result<()> {
        let q_room = self.q.shape[1];
        let names = ["q_starts", "q_used"];
        let [starts, used] = [inputs.q_starts, inputs.q_used];
        check_lengths(names, self.batch, &self.q_lengths, starts, used, q_room)?;
        let (k_room, names) = (self.k_room(), ["k_starts", "k_used"]);
        let [starts, used] = [inputs.k_starts, inputs.k_used];
        match self.pages {
            None => check_lengths(names, self.batch, &self.k_lengths, starts, used, k_room)?,
            Some(_) => {
                // Starts only say how long sequences are: each must fit its pages, not all of them together.
                check_lengths(names, self.batch, &self.k_lengths, starts, used, usize::MAX)?;
                self.check_pages(inputs, k_room)?;
            }
        }
        if self.pages.is_none() {
            count("table", 0, inputs.table.len())?;
        }
        let ranges = self.ranges.unwrap_or(0);
        let numbers = self.batch.saturating_mul(ranges).saturating_mul(2);
        count("ranges", numbers, inputs.ranges.len())?;
        let (pairs, _) = inputs.ranges.as_chunks::<2>();
        for (index, [first, last]) in pairs.iter().enumerate() {
            if *first < 0 && first <= last {
                return Err(Error::bad(
                    "ranges",
                    "ranges that begin at key 0 or later, or end before they begin",
                    format!(
                        "{first} to {last}, range {} of sequence {}",
                        index % ranges,
                        index / ranges
                    ),
                ));
            }
        }
        Ok(())
    }

    fn check_pages(&self, inputs: &ServingInputs<'_>, room: usize) -> Result<()> {
        let Some(pages) = self.pages else {
            return Ok(());
        };
        let wanted = pages.span(self.batch).unwrap_or(usize::MAX);
        if inputs.table.len() < wanted {
            return Err(Error::bad(
                "table",
                format!("at least {wanted} entries"),
                inputs.table.len().to_string(),
            ));
        }
        let (blocks, page) = (self.k.shape[0], self.k.shape[1]);
        for b in 0..self.batch {
            let keys = self.k_len(inputs, b);
            if keys > room {
                return Err(Error::bad(
                    match self.k_lengths.used {
                        true => "k_used",
                        false => "k_starts",
                    },
                    format!("at most {room} tokens, which {} pages hold", pages.entries),
                    format!("{keys} tokens of sequence {b}"),
                ));
            }
            for at in 0..keys.div_ceil(page) {
                let entry = inputs.table[pages.index(self.batch, [b, at])];
                if usize::try_from(entry).map_or(true, |entry| entry >= blocks) {
                    return Err(Error::bad(
                        "table",
                        format!(
                            "pages from 0 to {}, of {blocks} that exist",
                            blocks.saturating_sub(1)
                        ),
                        format!("{entry}, entry {at} of sequence {b}, which has {keys} tokens"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// First row and number of the queries of a sequence that count, by metadata that passed.
    pub(super) fn q_rows(&self, inputs: &ServingInputs<'_>, b: usize) -> (usize, usize) {
        let first = match self.q_lengths.starts {
            true => inputs.q_starts[b] as usize,
            false => 0,
        };
        let room = self.q.shape[1];
        let len = length(&self.q_lengths, inputs.q_starts, inputs.q_used, b, room);
        (first, len)
    }

    /// Number of the keys of a sequence that count, by metadata that passed.
    pub(super) fn k_len(&self, inputs: &ServingInputs<'_>, b: usize) -> usize {
        let room = self.k_room();
        length(&self.k_lengths, inputs.k_starts, inputs.k_used, b, room)
    }
}

fn length(lengths: &SequenceLengths, starts: &[i32], used: &[i32], b: usize, room: usize) -> usize {
    match (lengths.used, lengths.starts) {
        (true, _) => used[b] as usize,
        (false, true) => (starts[b + 1] - starts[b]) as usize,
        (false, false) => room,
    }
}

/// Checks starts and used lengths of sequences in a tensor of `room` tokens: of each sequence, or of all with starts.
fn check_lengths(
    [starts_name, used_name]: [&'static str; 2],
    batch: usize,
    lengths: &SequenceLengths,
    starts: &[i32],
    used: &[i32],
    room: usize,
) -> Result<()> {
    let wanted = batch.saturating_add(1);
    count(
        starts_name,
        if lengths.starts { wanted } else { 0 },
        starts.len(),
    )?;
    count(used_name, if lengths.used { batch } else { 0 }, used.len())?;
    if let Some(&first) = starts.first()
        && first != 0
    {
        return Err(Error::bad(starts_name, "0 at first", first.to_string()));
    }
    for (b, pair) in starts.windows(2).enumerate() {
        if pair[1] < pair[0] {
            return Err(Error::bad(
                starts_name,
                "numbers that never decrease",
                format!("{} after {}, at the end of sequence {b}", pair[1], pair[0]),
            ));
        }
    }
    if let Some(&end) = starts.last()
        && end as usize > room
    {
        return Err(Error::bad(
            starts_name,
            format!("at most {room} tokens, as the tensor has"),
            end.to_string(),
        ));
    }
    let longest = lengths.longest;
    let too_long = |argument, b: usize, tokens: i64| {
        Error::bad(
            argument,
            format!("at most {longest} tokens of a sequence, as the longest is said to have"),
            format!("{tokens} tokens of sequence {b}"),
        )
    };
    for b in 0..batch {
        let room = match lengths.starts {
            true => i64::from(starts[b + 1]) - i64::from(starts[b]),
            false => i64::try_from(room).unwrap_or(i64::MAX),
        };
        match lengths.used {
            true if !(0..=room).contains(&i64::from(used[b])) => {
                return Err(Error::bad(
                    used_name,
                    format!("0 to {room} tokens of sequence {b}"),
                    used[b].to_string(),
                ));
            }
            true if used[b] as usize > longest => {
                return Err(too_long(used_name, b, i64::from(used[b])));
            }
            false if lengths.starts && room as usize > longest => {
                return Err(too_long(starts_name, b, room));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses another number of numbers.
fn count(argument: &'static str, wanted: usize, found: usize) -> Result<()> {
    match found == wanted {
        true => Ok(()),
        false => Err(Error::bad(
            argument,
            match wanted {
                0 => "no numbers, since the problem has no such".into(),
                _ => format!("{wanted} numbers"),
            },
            found.to_string(),
        )),
    }
}

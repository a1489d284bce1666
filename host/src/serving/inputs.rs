//! Inputs in the host's memory, and their checks.

use flashtile_abi::check::{What, length};

use super::problem::{CacheScales, SequenceLengths, ServingProblem};
use crate::{
    checked::Broken,
    error::{Error, Result},
};

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
    /// Values. Empty where they are elements of keys.
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
    /// Scales of v, as those of k. None where values are elements of keys.
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
            ("v", has.v, self.v),
            ("bias", has.bias, self.bias),
            ("mask", has.mask, self.mask),
        ] {
            if let Some(extent) = extent {
                extent.of(argument, slice)?;
            }
        }
        if problem.latent && !self.v.is_empty() {
            return Err(Error::bad(
                "v",
                "no bytes, since values are elements of keys",
                format!("{} bytes", self.v.len()),
            ));
        }
        problem.check_metadata(self)?;
        let heads_q = problem.q.shape[2];
        let slopes = match problem.alibi {
            None => 0,
            Some(false) => heads_q,
            Some(true) => problem.batch.saturating_mul(heads_q),
        };
        let scales = problem.kv_scales.count(problem.batch, problem.k.shape[2]);
        let of_values = if problem.latent { 0 } else { scales };
        for (argument, wanted, numbers) in [
            ("k_scale", scales, self.k_scale),
            ("v_scale", of_values, self.v_scale),
        ] {
            CacheScales::check(argument, wanted, numbers)?;
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
        let [starts, used] = [inputs.q_starts, inputs.q_used];
        check_lengths(&QUERIES, self.batch, &self.q_lengths, starts, used, q_room)?;
        let k_room = self.k_room();
        let [starts, used] = [inputs.k_starts, inputs.k_used];
        match self.pages {
            None => check_lengths(&KEYS, self.batch, &self.k_lengths, starts, used, k_room)?,
            Some(_) => {
                // Starts only say how long sequences are: each must fit its pages, not all of them together.
                check_lengths(&KEYS, self.batch, &self.k_lengths, starts, used, usize::MAX)?;
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
                let (b, at) = (index / ranges, index % ranges);
                let numbers = [i64::from(*first), i64::from(*last)];
                return Err(Broken::new(What::Range, b, at as u32, &numbers).error());
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
                let numbers = [
                    keys as i64,
                    room as i64,
                    pages.entries as i64,
                    i64::from(self.k_lengths.used),
                ];
                return Err(Broken::new(What::Page, b, 0, &numbers).error());
            }
            for at in 0..keys.div_ceil(page) {
                let entry = inputs.table[pages.index(self.batch, [b, at])];
                if usize::try_from(entry).map_or(true, |entry| entry >= blocks) {
                    let numbers = [i64::from(entry), blocks as i64, keys as i64];
                    return Err(Broken::new(What::Page, b, at as u32 + 1, &numbers).error());
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
        let rows = len(&self.q_lengths, inputs.q_starts, inputs.q_used, b, room);
        (first, rows)
    }

    /// Number of the keys of a sequence that count, by metadata that passed.
    pub(super) fn k_len(&self, inputs: &ServingInputs<'_>, b: usize) -> usize {
        let room = self.k_room();
        len(&self.k_lengths, inputs.k_starts, inputs.k_used, b, room)
    }
}

fn len(lengths: &SequenceLengths, starts: &[i32], used: &[i32], b: usize, room: usize) -> usize {
    match (lengths.used, lengths.starts) {
        (true, _) => used[b] as usize,
        (false, true) => (starts[b + 1] - starts[b]) as usize,
        (false, false) => room,
    }
}

/// What checks of queries or keys are called.
struct Side {
    starts: &'static str,
    used: &'static str,
    /// Rules: the first start, their order, their end, lengths.
    rules: [What; 4],
}

const QUERIES: Side = Side {
    starts: "q_starts",
    used: "q_used",
    rules: [What::QStart, What::QOrder, What::QEnd, What::QLength],
};

const KEYS: Side = Side {
    starts: "k_starts",
    used: "k_used",
    rules: [What::KStart, What::KOrder, What::KEnd, What::KLength],
};

/// Checks starts and used lengths of sequences in a tensor of `room` tokens: of each sequence, or of all with starts.
fn check_lengths(
    side: &Side,
    batch: usize,
    lengths: &SequenceLengths,
    starts: &[i32],
    used: &[i32],
    room: usize,
) -> Result<()> {
    let wanted = batch.saturating_add(1);
    count(
        side.starts,
        if lengths.starts { wanted } else { 0 },
        starts.len(),
    )?;
    count(side.used, if lengths.used { batch } else { 0 }, used.len())?;
    let [first_rule, order_rule, end_rule, length_rule] = side.rules;
    let wrong = |rule, b: usize, position: u32, numbers: &[i64]| {
        Err(Broken::new(rule, b, position, numbers).error())
    };
    if let Some(&first) = starts.first()
        && first != 0
    {
        return wrong(first_rule, 0, 0, &[i64::from(first)]);
    }
    for (b, pair) in starts.array_windows().enumerate() {
        let [begin, end] = pair.map(i64::from);
        if end < begin {
            return wrong(order_rule, b, 0, &[begin, end]);
        }
    }
    let most = i64::try_from(room).unwrap_or(i64::MAX);
    if let Some(&end) = starts.last()
        && i64::from(end) > most
    {
        return wrong(end_rule, 0, 0, &[i64::from(end), most]);
    }
    let longest = i64::try_from(lengths.longest).unwrap_or(i64::MAX);
    for b in 0..batch {
        let room = match lengths.starts {
            true => i64::from(starts[b + 1]) - i64::from(starts[b]),
            false => most,
        };
        let used = used.get(b).map(|&used| i64::from(used));
        match used {
            Some(used) if !(0..=room).contains(&used) => {
                return wrong(length_rule, b, length::USED, &[used, room]);
            }
            Some(used) if used > longest => {
                return wrong(length_rule, b, length::LONGEST_USED, &[used, longest]);
            }
            None if lengths.starts && room > longest => {
                return wrong(length_rule, b, length::LONGEST, &[room, longest]);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses another number of numbers.
pub(super) fn count(argument: &'static str, wanted: usize, found: usize) -> Result<()> {
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

//! What the host can check of the numbers on the device, if it has them.

use flashtile_abi::check::{What, row};

use super::{
    copy::CopyProblem,
    plan::MAX_GRID,
    problem::{Place, Sequences},
};
use crate::{
    checked::Broken,
    error::{Error, Result},
    serving::CacheLayout,
};

/// The numbers that say where tokens' rows are, in the host's memory. What the problem does not have is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlaceData<'a> {
    /// Of [`Place::Slots`], by token.
    pub slots: &'a [i64],
    /// Of [`Sequences::starts`]: batch + 1.
    pub starts: &'a [i32],
    /// Of [`Sequences::used`]: batch.
    pub used: &'a [i32],
    /// Of [`Sequences::first`]: batch.
    pub first: &'a [i32],
    /// Of [`Sequences::pages`], in the table's layout from its lowest entry on. Entries of pages that no token needs may be anything.
    pub table: &'a [i32],
}

impl Place {
    /// For each token of tensors [batch, rows, ..], the block and the row of it that it has; none where slots say so, and past the ends of
    /// sequences.
    ///
    /// # Errors
    /// [`Error::BadInput`] if there are not as many batches as the sequences need, and names the first number that is wrong: there are too few or too many; a slot that is not -1 and that the cache does
    /// not have; `starts` that do not begin with 0, decrease, or end past the tensors; `used` that is negative or more than there is; `first`
    /// that is negative, or from which a sequence leaves its pages; an entry of the table that is no block.
    pub fn rows(
        &self,
        [batch, rows]: [usize; 2],
        cache: &CacheLayout,
        data: &PlaceData<'_>,
    ) -> Result<Vec<Option<[usize; 2]>>> {
        let tokens = batch.saturating_mul(rows);
        let batches = match self {
            Self::Sequences(sequences) if sequences.starts => 1,
            Self::Sequences(sequences) => sequences.batch,
            Self::Slots => batch,
        };
        if batch != batches || tokens as u64 > MAX_GRID {
            return Err(Error::bad(
                "k",
                format!("batch {batches}, and at most {MAX_GRID} tokens"),
                format!("batch {batch} of {rows} tokens"),
            ));
        }
        let none = Sequences {
            batch: 0,
            starts: false,
            used: false,
            first: false,
            pages: None,
        };
        let (slots, sequences) = match self {
            Self::Slots => (tokens, &none),
            Self::Sequences(sequences) => (0, sequences),
        };
        let count = |exists: bool, n: usize| if exists { n } else { 0 };
        let n = sequences.batch;
        for (argument, found, wanted) in [
            ("slots", data.slots.len(), slots),
            ("starts", data.starts.len(), count(sequences.starts, n + 1)),
            ("used", data.used.len(), count(sequences.used, n)),
            ("first", data.first.len(), count(sequences.first, n)),
        ] {
            if found != wanted {
                return Err(Error::bad(
                    argument,
                    format!("{wanted} numbers"),
                    format!("{found}"),
                ));
            }
        }
        let table = sequences.pages.map(|it| it.tensor(n));
        let wanted = table.map_or(Some(0), |it| it.span());
        if wanted.is_none_or(|wanted| data.table.len() < wanted) {
            return Err(Error::bad(
                "block_table",
                format!("at least {wanted:?} entries"),
                data.table.len().to_string(),
            ));
        }
        match self {
            Self::Slots => {
                let slots = data.slots.iter().enumerate();
                slots.map(|(at, &slot)| of_slot(at, slot, cache)).collect()
            }
            Self::Sequences(sequences) => {
                let mut places = vec![None; tokens];
                for sequence in 0..n {
                    sequences.place(sequence, rows, cache, data, &mut places)?;
                }
                Ok(places)
            }
        }
    }
}

/// The row of a token's slot, if it is one.
fn of_slot(token: usize, slot: i64, cache: &CacheLayout) -> Result<Option<[usize; 2]>> {
    let [blocks, rows, ..] = cache.shape;
    let slots = (blocks as u64).saturating_mul(rows as u64);
    match u64::try_from(slot) {
        Err(_) if slot == -1 => Ok(None),
        Ok(at) if at < slots => Ok(Some([at as usize / rows, at as usize % rows])),
        _ => {
            let numbers = [slot, i64::try_from(slots).unwrap_or(i64::MAX)];
            Err(Broken::new(What::Slot, 0, token as u32, &numbers).error())
        }
    }
}

impl Sequences {
    /// A sequence's first token, how many count, and the row of the first. The numbers have passed their checks.
    pub(super) fn span(
        &self,
        sequence: usize,
        rows: usize,
        data: &PlaceData<'_>,
    ) -> (usize, usize, usize) {
        let (begin, length) = match *data.starts {
            [] => (sequence * rows, rows),
            ref starts => {
                let [begin, end] = [starts[sequence], starts[sequence + 1]];
                (begin as usize, (end - begin) as usize)
            }
        };
        let used = data.used.get(sequence).map_or(length, |&n| n as usize);
        let first = data.first.get(sequence).map_or(0, |&n| n as usize);
        (begin, used, first)
    }

    /// Writes down the rows of one sequence's tokens.
    fn place(
        &self,
        sequence: usize,
        rows: usize,
        cache: &CacheLayout,
        data: &PlaceData<'_>,
        places: &mut [Option<[usize; 2]>],
    ) -> Result<()> {
        let wrong = |position: u32, numbers: &[i64]| {
            Err(Broken::new(What::Row, sequence, position, numbers).error())
        };
        let (begin, length) = match *data.starts {
            [] => (sequence * rows, rows as i64),
            ref starts => {
                let [begin, end] = [starts[sequence], starts[sequence + 1]].map(i64::from);
                if sequence == 0 && begin != 0 {
                    return wrong(row::START, &[begin]);
                }
                if end < begin || end > places.len() as i64 {
                    return wrong(row::NEXT, &[end, begin, places.len() as i64]);
                }
                (begin as usize, end - begin)
            }
        };
        let used = data.used.get(sequence).map_or(length, |&n| i64::from(n));
        if used < 0 || used > length {
            return wrong(row::USED, &[used, length]);
        }
        let first = data.first.get(sequence).map_or(0, |&n| i64::from(n));
        let [blocks, page, ..] = cache.shape;
        let capacity = match &self.pages {
            None => page as u64,
            Some(table) => (table.entries as u64).saturating_mul(page as u64),
        };
        let capacity = capacity.min(MAX_GRID) as i64;
        if first < 0 || (used > 0 && first + used > capacity) {
            return wrong(row::FIRST, &[first, used, capacity]);
        }
        for i in 0..used as usize {
            let at = first as usize + i;
            places[begin + i] = Some(match &self.pages {
                None => [sequence, at],
                Some(table) => {
                    let entry = at / page;
                    let index = table.tensor(self.batch).index([sequence, entry, 0, 0]);
                    let block = i64::from(data.table[index]);
                    if block < 0 || block >= blocks as i64 {
                        let position = row::ENTRY + (entry - first as usize / page) as u32;
                        return wrong(position, &[block, blocks as i64, entry as i64]);
                    }
                    [block as usize, at % page]
                }
            });
        }
        Ok(())
    }
}

/// Refuses slots that a cache does not have, -1 excepted, and slots that come twice.
///
/// # Errors
/// [`Error::BadInput`] names the slot.
pub fn check_slots(slots: &[i64], cache: &CacheLayout) -> Result<()> {
    let data = PlaceData {
        slots,
        ..PlaceData::default()
    };
    check_distinct(&Place::Slots.rows([1, slots.len()], cache, &data)?)
}

/// Refuses rows that come twice.
pub(super) fn check_distinct(rows: &[Option<[usize; 2]>]) -> Result<()> {
    let mut rows: Vec<_> = rows.iter().flatten().collect();
    rows.sort_unstable();
    match rows.array_windows().find(|[a, b]| a == b) {
        None => Ok(()),
        Some([[block, row], _]) => Err(Error::bad(
            "place",
            "a row of its own for each token",
            format!("row {row} of block {block} for two"),
        )),
    }
}

/// Refuses pairs of numbers that are no blocks, blocks that are written twice, and, within a cache, blocks that are read and written.
///
/// # Errors
/// [`Error::BadInput`] names the pair.
pub fn check_pairs(pairs: &[[i64; 2]], problem: &CopyProblem, within: bool) -> Result<()> {
    if pairs.len() != problem.pairs {
        return Err(Error::bad(
            "pairs",
            format!("{} pairs", problem.pairs),
            pairs.len().to_string(),
        ));
    }
    let bounds = [problem.src.blocks, problem.dst.blocks];
    for pair in pairs {
        let is_block = |(&n, bound): (&i64, usize)| n >= 0 && (n as u64) < bound as u64;
        if !pair.iter().zip(bounds).all(is_block) {
            return Err(Error::bad(
                "pairs",
                format!("blocks below {} and {}", bounds[0], bounds[1]),
                format!("{pair:?}"),
            ));
        }
    }
    let mut written: Vec<_> = pairs.iter().map(|&[_, to]| to).collect();
    written.sort_unstable();
    if let Some([to, _]) = written.array_windows().find(|[a, b]| a == b) {
        return Err(Error::bad(
            "pairs",
            "blocks that are written once",
            format!("block {to} twice"),
        ));
    }
    let overlaps = |&&[from, to]: &&[i64; 2]| from != to && written.binary_search(&from).is_ok();
    match pairs.iter().find(overlaps) {
        Some(pair) if within => Err(Error::bad(
            "pairs",
            "blocks that are read or written, not both",
            format!("{pair:?}, and another that writes block {}", pair[0]),
        )),
        _ => Ok(()),
    }
}

//! Numbers on the device that are wrong: what the checking kernel says of them, and what the host does.

use std::ops::ControlFlow;

use flashtile::{
    DType, Device, DeviceBuffer, Error, Stream, TensorLayout,
    cache::{AppendProblem, Place, PlaceData, RotaryPointers, Rows, RowsPointers},
    checked::{CHECK, Checks, MetadataReport},
    serving::{
        CacheLayout, CacheScales, PageTable, SequenceLengths, ServingInputs, ServingPointers,
        ServingProblem,
    },
};
use flashtile_verify::data::Random;

use crate::{
    cache::{CacheCase, Numbers},
    serving::{Built, ServingCase},
    wrapped::Wrapped,
};

/// What distinguishes an error of the device's numbers.
pub const LATE: &str = ", on the device at an earlier launch";

/// Entries and ranges of a sequence of [`Problem::long`].
const LONG: [usize; 2] = [1300, 700];

/// Where a tensor may be that nobody looks at.
const SOMEWHERE: u64 = 1 << 20;

/// A problem, and numbers that may be anything.
#[derive(Clone, Debug)]
pub enum Problem {
    /// Of attention: starts and lengths of queries, of keys; table; ranges.
    Lengths(Box<ServingProblem>, [Vec<i32>; 6]),
    /// Of a cache.
    Rows(Box<AppendProblem>, [usize; 2], Numbers),
}

impl Problem {
    /// Of attention. Of four in a row the first has sound numbers, the second one that is wrong, the others many.
    pub fn lengths(case: &ServingCase) -> Self {
        let Built {
            mut problem,
            mut numbers,
            ..
        } = Built::of(case);
        let mut random = Random::new(case.seed ^ 0x5eed);
        // Nobody looks at them, and their shape would depend on lengths.
        (problem.bias, problem.mask) = (None, None);
        if let Some(pages) = problem.pages {
            let lengths = &mut problem.k_lengths;
            match random.below(3) {
                // Sequences may be longer than their pages; now and then the first one is.
                0 => {
                    lengths.longest += 20;
                    let more = (pages.entries * problem.k.shape[1] + 1 + random.below(20)) as i32;
                    if random.below(3) == 0 {
                        if let Some(used) = numbers[3].first_mut() {
                            *used = more;
                        }
                        for start in numbers[2].iter_mut().skip(1) {
                            *start += more;
                        }
                    }
                }
                // Each is as long as its pages; some entries are none then.
                1 => {
                    *lengths = SequenceLengths::uniform(pages.entries * problem.k.shape[1]);
                    numbers[2].clear();
                    numbers[3].clear();
                    for entry in &mut numbers[4] {
                        if random.below(8) != 0 {
                            *entry = entry.rem_euclid(problem.k.shape[0] as i32);
                        }
                    }
                }
                _ => {}
            }
        }
        let wild = |x: i32, random: &mut Random| match random.below(6) {
            0 => i32::MAX,
            1 => i32::MIN,
            2 => random.bits() as i32,
            3 => x.wrapping_add(1 + random.below(40) as i32),
            4 => x.wrapping_sub(1 + random.below(40) as i32),
            _ => x.wrapping_add(1),
        };
        let some: Vec<usize> = (0..6).filter(|&at| !numbers[at].is_empty()).collect();
        match random.below(4) {
            0 => {}
            1 if !some.is_empty() => {
                // Few problems have ranges, which are the last.
                let at = match (some.last(), random.below(2)) {
                    (Some(5), 0) => 5,
                    _ => some[random.below(some.len())],
                };
                let index = random.below(numbers[at].len());
                numbers[at][index] = wild(numbers[at][index], &mut random);
            }
            rarity => {
                // Some of one kind, or of all kinds.
                let which = random.below(12);
                for (at, kind) in numbers.iter_mut().enumerate() {
                    for x in kind {
                        if (which == at || which >= 6) && random.below(4 * rarity) == 0 {
                            *x = wild(*x, &mut random);
                        }
                    }
                }
            }
        }
        Self::Lengths(Box::new(problem), numbers)
    }

    /// Of two sequences with more pages and ranges than a block's threads look at once, all of them sound: 1300 entries, of which the last is
    /// nobody's, and 700 ranges of each.
    pub fn long() -> Self {
        let cache = CacheLayout::contiguous([7, 1, 1, 8]);
        let q = TensorLayout::contiguous([2, 1, 1, 8]);
        let problem = ServingProblem::new(DType::F16, 2, q, cache, cache)
            .pages(PageTable::contiguous(LONG[0]))
            .k_used(LONG[0])
            .ranges(LONG[1]);
        let numbers = [
            vec![],
            vec![],
            vec![],
            vec![LONG[0] as i32 - 1; 2],
            vec![6; 2 * LONG[0]],
            vec![0; 4 * LONG[1]],
        ];
        Self::Lengths(Box::new(problem), numbers)
    }

    /// Such problems, each with an entry or range that is wrong, and another one behind it.
    pub fn long_and_wrong() -> impl Iterator<Item = Self> {
        let [entries, ranges] = LONG;
        let wrong = move |kind: usize, at: usize| {
            let mut problem = Self::long();
            if let Self::Lengths(_, numbers) = &mut problem {
                numbers[kind][at] = [7, -1][kind - 4];
                numbers[4][2 * entries - 2] = -1;
            }
            problem
        };
        // Some of them of the last block's last warps.
        let at = [
            0,
            31,
            32,
            127,
            128,
            383,
            511,
            512,
            704,
            1023,
            1024,
            1151,
            entries - 2,
        ];
        let tables = (0..2).flat_map(move |b| at.map(|at| wrong(4, b * entries + at)));
        let at = [0, 127, 128, 511, 512, ranges - 1];
        let ranges = (0..2).flat_map(move |b| at.map(|at| wrong(5, 2 * (b * ranges + at))));
        tables.chain(ranges)
    }

    /// Of a cache. In a hostile case numbers are wrong.
    pub fn rows(case: &CacheCase) -> Self {
        let problem = AppendProblem {
            rotary: None,
            ..case.append()
        };
        let mut numbers = case.numbers();
        let mut random = Random::new(case.seed ^ 0x5eed);
        // The rule for starts has no wild numbers of the case's own.
        if case.hostile && !numbers.starts.is_empty() && random.below(2) == 0 {
            let at = random.below(numbers.starts.len());
            let wild = [-1, i32::MIN, i32::MAX, numbers.starts[at] + 3];
            numbers.starts[at] = wild[random.below(wild.len())];
        }
        Self::Rows(Box::new(problem), case.tokens(), numbers)
    }

    /// What the host says of the numbers.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn host(&self) -> flashtile::Result<()> {
        match self {
            Self::Lengths(problem, numbers) => {
                let [q_starts, q_used, k_starts, k_used, table, ranges] = numbers;
                problem.check_metadata(&ServingInputs {
                    q_starts,
                    q_used,
                    k_starts,
                    k_used,
                    table,
                    ranges,
                    ..ServingInputs::default()
                })
            }
            Self::Rows(problem, tokens, numbers) => {
                let data = PlaceData {
                    slots: &numbers.slots,
                    starts: &numbers.starts,
                    used: &numbers.used,
                    first: &numbers.first,
                    table: &numbers.table,
                };
                let rows = problem.place.rows(*tokens, &problem.k.cache, &data);
                rows.map(drop)
            }
        }
    }

    /// What the checking kernel says of them; `None` if the problem is empty, so that nothing is launched. `sequences`: how many there
    /// are, if not as many as planned.
    ///
    /// # Errors
    /// The first that is wrong, or what else the library says.
    pub fn device(
        &self,
        device: &dyn Device,
        sequences: Option<i32>,
    ) -> flashtile::Result<ControlFlow<()>> {
        // No other kernel runs, so tensors may be anywhere.
        let device = Wrapped::only(device, &CHECK);
        let report = MetadataReport::new(&device)?;
        let small = |numbers: &[i32]| {
            let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            DeviceBuffer::from_bytes(&device, &bytes)
        };
        let live = sequences.map(|n| small(&[n])).transpose()?;
        let checks = Checks::new(&report).sequences(live.as_ref().map_or(0, DeviceBuffer::address));
        match self {
            Self::Lengths(problem, numbers) => {
                let plan = problem.plan(device.info())?;
                if plan.is_empty() {
                    return Ok(ControlFlow::Break(()));
                }
                let mut buffers = Vec::new();
                for kind in numbers {
                    buffers.push(small(kind)?);
                }
                let [q_starts, q_used, k_starts, k_used, table, ranges] =
                    std::array::from_fn(|at| buffers[at].address());
                let somewhere = |exists: bool| if exists { SOMEWHERE } else { 0 };
                let scales = problem.kv_scales.count(problem.batch, problem.k.shape[2]) > 0;
                let pointers = ServingPointers {
                    q: SOMEWHERE,
                    k: SOMEWHERE,
                    v: somewhere(!problem.latent),
                    out: SOMEWHERE,
                    lse: problem
                        .lse
                        .then_some(somewhere(problem.lse_shape().iter().all(|&n| n > 0))),
                    q_starts,
                    q_used,
                    k_starts,
                    k_used,
                    table,
                    k_scale: somewhere(scales),
                    v_scale: somewhere(scales && !problem.latent),
                    alibi: somewhere(problem.alibi.is_some()),
                    sink: somewhere(problem.sink),
                    bias: somewhere(problem.bias.is_some()),
                    mask: somewhere(problem.mask.is_some()),
                    ranges,
                    workspace: somewhere(plan.workspace_bytes() > 0),
                };
                // SAFETY: the numbers are on the device; no kernel runs that looks at anything else.
                unsafe { plan.launch_checked(&device, Stream::DEFAULT, &pointers, &checks)? };
            }
            Self::Rows(problem, _, numbers) => {
                let plan = problem.plan(device.info())?;
                if plan.config().grid[0] == 0 {
                    return Ok(ControlFlow::Break(()));
                }
                let slots: Vec<u8> = numbers.slots.iter().flat_map(|n| n.to_le_bytes()).collect();
                let slots = DeviceBuffer::from_bytes(&device, &slots)?;
                let buffers = [
                    small(&numbers.starts)?,
                    small(&numbers.used)?,
                    small(&numbers.first)?,
                    small(&numbers.table)?,
                ];
                let [starts, used, first, table] = std::array::from_fn(|at| buffers[at].address());
                let values = if problem.v.is_some() { SOMEWHERE } else { 0 };
                let scales = match problem.kv_scales {
                    CacheScales::None => (0, 0),
                    _ => (SOMEWHERE, values),
                };
                let rows = RowsPointers {
                    k: SOMEWHERE,
                    v: values,
                    k_cache: SOMEWHERE,
                    v_cache: values,
                    k_scale: scales.0,
                    v_scale: scales.1,
                    slots: slots.address(),
                    starts,
                    used,
                    first,
                    table,
                };
                let rotary = RotaryPointers::default();
                // SAFETY: as above.
                unsafe { plan.launch_checked(&device, Stream::DEFAULT, &rows, &rotary, &checks)? };
            }
        }
        report.finish()?;
        Ok(ControlFlow::Continue(()))
    }

    /// What the kernel must say: what the host does, but for the rules that the host has none of.
    pub fn expected(&self, sequences: Option<i32>) -> Option<Error> {
        let bad = |expected: String, found: String| {
            Some(late(Error::BadInput {
                argument: "sequences",
                expected,
                found,
            }))
        };
        let host = self.host().err().map(late);
        let (Self::Lengths(problem, numbers), Some(sequences)) = (self, sequences) else {
            return host;
        };
        let batch = problem.batch as i32;
        if !(0..=batch).contains(&sequences) {
            let expected = format!("0 to {batch} sequences, for which the launch was planned");
            return bad(expected, sequences.to_string());
        }
        if host.is_some() {
            return host;
        }
        let [q_starts, q_used, ..] = numbers;
        let queries = |b: usize| match (problem.q_lengths.used, problem.q_lengths.starts) {
            (true, _) => i64::from(q_used[b]),
            (_, true) => i64::from(q_starts[b + 1]) - i64::from(q_starts[b]),
            _ => problem.q.shape[1] as i64,
        };
        let past = (sequences as usize..problem.batch).find(|&b| queries(b) != 0)?;
        let expected =
            format!("no queries in sequence {past}, since there are {sequences} sequences");
        bad(expected, format!("{} queries", queries(past)))
    }

    /// Requires the device to say what is expected, and tells it; `None` within if nothing is wrong, or nothing was launched.
    ///
    /// # Errors
    /// What is said, if it is something else.
    pub fn agrees(
        &self,
        device: &dyn Device,
        sequences: Option<i32>,
    ) -> Result<Option<Error>, String> {
        let expected = self.expected(sequences);
        let found = match self.device(device, sequences) {
            Ok(ControlFlow::Break(())) => return Ok(None),
            Ok(ControlFlow::Continue(())) => None,
            Err(error) => Some(error),
        };
        if found != expected {
            return Err(format!(
                "{self:?}, {sequences:?} sequences\n  found: {found:?}\n  expected: {expected:?}"
            ));
        }
        Ok(found)
    }
}

/// Of several replays whose numbers are wrong the first one is told, once, and then the next.
///
/// # Errors
/// What is told instead.
pub fn first_of_replays(device: &dyn Device) -> Result<(), String> {
    let device = Wrapped::only(device, &CHECK);
    let told = || -> flashtile::Result<Vec<Option<String>>> {
        let report = MetadataReport::new(&device)?;
        let rows = Rows {
            tensor: TensorLayout::contiguous([1, 1, 1, 8]),
            cache: CacheLayout::contiguous([1, 4, 1, 8]),
        };
        let problem = AppendProblem {
            dtype: DType::F16,
            kv_dtype: DType::F16,
            kv_scales: CacheScales::None,
            k: rows,
            v: None,
            place: Place::Slots,
            rotary: None,
        };
        let mut slots = DeviceBuffer::zeroed(&device, 8)?;
        let rows = RowsPointers {
            k: SOMEWHERE,
            k_cache: SOMEWHERE,
            slots: slots.address(),
            ..RowsPointers::default()
        };
        let plan = problem.plan(device.info())?;
        let (rotary, checks) = (RotaryPointers::default(), Checks::new(&report));
        // SAFETY: the slot is on the device; no kernel runs that looks at anything else.
        unsafe { plan.launch_checked(&device, Stream::DEFAULT, &rows, &rotary, &checks)? };
        let mut told = vec![report.look().err()];
        for replays in [vec![-2i64, -3, 3], vec![-4, 4], vec![3, -1]] {
            for slot in replays {
                slots.write(&slot.to_le_bytes())?;
                // SAFETY: as above.
                unsafe { device.replay()? };
            }
            told.extend([report.look().err(), report.look().err()]);
        }
        let found = |error| match error {
            Error::BadInput { found, .. } => found,
            error => error.to_string(),
        };
        Ok(told.into_iter().map(|error| error.map(found)).collect())
    };
    let told = told().map_err(|error| error.to_string())?;
    let found = |slot: i64| Some(format!("{slot}, of token 0{LATE}"));
    let expected = vec![None, found(-2), None, found(-4), None, None, None];
    match told == expected {
        true => Ok(()),
        false => Err(format!("{told:?} instead of {expected:?}")),
    }
}

/// The host's error, as it is told of numbers on the device.
fn late(error: Error) -> Error {
    match error {
        Error::BadInput {
            argument,
            expected,
            found,
        } => Error::BadInput {
            argument,
            expected,
            found: found + LATE,
        },
        error => error,
    }
}

//! Rows in and out of caches, under the sanitizer, against plain Rust.

use std::{cell::RefCell, collections::BTreeMap};

use flashtile::{
    Device, EmulatorDevice,
    cache::{CacheWork, PlaceData, cache_variants},
    serving::CacheScales,
};
use flashtile_tests::{
    cache::{CacheCase, Images, Prepared, append, case, gather},
    generate::runner,
};
use proptest::{prelude::*, test_runner::TestCaseError};

/// Steps in which a failure is made simpler.
const SHRINKING: u32 = 2000;

type Outcome = Result<(), String>;

/// Tries a property on generated cases.
fn for_all(
    cases: u32,
    salt: u64,
    strategy: impl Strategy<Value = CacheCase>,
    property: impl Fn(&dyn Device, &CacheCase) -> Outcome,
) {
    let device = EmulatorDevice::sanitizing();
    let outcome = runner(cases, salt, SHRINKING).run(&strategy, |case| {
        property(&device, &case).map_err(TestCaseError::fail)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn appends(device: &dyn Device, case: &CacheCase) -> Outcome {
    Prepared::new(case.clone()).appends(device)
}

fn gathers(device: &dyn Device, case: &CacheCase) -> Outcome {
    Prepared::new(case.clone()).gathers(device)
}

/// Appended values are the same bits; nothing else changes.
#[test]
fn append_copies() {
    for_all(400, 1001, case(false, false), appends);
}

/// Turned elements are within what f32 arithmetic and one rounding can make of them.
#[test]
fn append_turns() {
    for_all(600, 1002, case(false, true), appends);
}

/// Slots, lengths, tables and positions that are anything: rows that the cache does not have are skipped, and nothing else is touched.
#[test]
fn append_survives_hostile_numbers() {
    for_all(600, 1003, case(true, true), appends);
}

#[test]
fn gather_copies() {
    for_all(400, 1004, case(false, false), gathers);
}

/// Rows that the cache does not have are zeros.
#[test]
fn gather_survives_hostile_numbers() {
    for_all(400, 1005, case(true, false), gathers);
}

/// What was appended is gathered again: the same bits, in every layout.
#[test]
fn what_was_appended_is_gathered() {
    let strategy = case(false, false).prop_map(|case| CacheCase {
        narrow: None,
        ..case
    });
    for_all(400, 1006, strategy, |device, case| {
        let numbers = case.numbers();
        let before = Images::new(case);
        let mut appended =
            append(device, &case.append(), &numbers, &before).map_err(|error| error.to_string())?;
        // New keys and values are forgotten; where slots are -1, or tokens beyond the end, they are not found again.
        let rows = case.place().rows(
            case.tokens(),
            &case.append().k.cache,
            &PlaceData {
                slots: &numbers.slots,
                starts: &numbers.starts,
                used: &numbers.used,
                first: &numbers.first,
                table: &numbers.table,
            },
        );
        let rows = rows.map_err(|error| error.to_string())?;
        for at in [Images::K, Images::V] {
            appended.0[at].bytes.fill(0);
        }
        let found = gather(device, &case.gather(), &numbers, &appended)
            .map_err(|error| error.to_string())?;
        let problem = case.append();
        for (at, side) in [(Images::K, Some(problem.k)), (Images::V, problem.v)] {
            let Some(side) = side else { continue };
            let layout = side.tensor;
            let [_, of_batch, heads, dim] = layout.shape;
            for (token, row) in rows.iter().enumerate() {
                for (head, d) in (0..heads).flat_map(|h| (0..dim).map(move |d| (h, d))) {
                    let index = layout.index([token / of_batch, token % of_batch, head, d]);
                    let byte = 2 * (before.0[at].offset + index);
                    let expected = match row {
                        Some(_) => &before.0[at].bytes[byte..byte + 2],
                        None => &[0, 0],
                    };
                    let element = &found.0[at].bytes[byte..byte + 2];
                    if element != expected {
                        return Err(format!("token {token}: {element:?}, not {expected:?}"));
                    }
                }
            }
        }
        Ok(())
    });
}

/// 16-bit elements have all numbers that e4m3 has: what was gathered from such a cache, and is appended again, gives the same bytes.
#[test]
fn what_was_gathered_is_appended() {
    let strategy = case(false, false).prop_map(|case| CacheCase {
        narrow: Some(CacheScales::None),
        ..case
    });
    for_all(200, 1009, strategy, |device, case| {
        let numbers = case.numbers();
        let emptied = |mut images: Images, of: [usize; 2]| {
            for at in of {
                images.0[at].bytes.fill(0);
            }
            images
        };
        let (tensors, caches) = ([Images::K, Images::V], [Images::K_CACHE, Images::V_CACHE]);
        let before = emptied(Images::new(case), caches);
        let twice = |images: &Images| -> flashtile::Result<[Images; 2]> {
            let first = append(device, &case.append(), &numbers, images)?;
            let forgotten = emptied(first.clone(), tensors);
            let gathered = gather(device, &case.gather(), &numbers, &forgotten)?;
            let emptied = emptied(gathered, caches);
            Ok([first, append(device, &case.append(), &numbers, &emptied)?])
        };
        let [first, second] = twice(&before).map_err(|error| error.to_string())?;
        emptied(first, tensors).same(&emptied(second, tensors))
    });
}

/// `starts` that are anything at all lead nowhere outside.
#[test]
fn wild_starts_stay_inside() {
    let strategy = (case(true, true), proptest::collection::vec(any::<i32>(), 5));
    let device = EmulatorDevice::sanitizing();
    let outcome = runner(300, 1007, SHRINKING).run(&strategy, |(case, wild)| {
        let mut numbers = case.numbers();
        for (start, wild) in numbers.starts.iter_mut().zip(wild) {
            // Small ones too.
            *start = if wild % 3 == 0 { wild % 8 } else { wild };
        }
        let images = Images::new(&case);
        append(&device, &case.append(), &numbers, &images)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        gather(&device, &case.gather(), &numbers, &images)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// An axis that the generator never moves along tests nothing.
#[test]
fn generated_cases_reach_everything() {
    let seen = RefCell::new(BTreeMap::<String, bool>::new());
    let strategy = case(true, true);
    let device = EmulatorDevice::new();
    let outcome = runner(2000, 1008, 0).run(&strategy, |case| {
        let plan = case.append().plan(device.info()).unwrap();
        let mut seen = seen.borrow_mut();
        let mut note = |what: &str, is: bool| *seen.entry(what.to_owned()).or_default() |= is;
        for variant in cache_variants()
            .iter()
            .filter(|it| it.work == CacheWork::Append)
        {
            note(variant.name, plan.variant() == variant);
        }
        note(
            "several blocks of a token",
            plan.config().grid[0] as usize > {
                let [batch, rows] = case.tokens();
                batch * rows
            } && plan.config().grid[0] > 0,
        );
        note("no tokens", plan.config().grid[0] == 0);
        let rotary = case.rotary().unwrap();
        let pairs = rotary.rotary_dim / 2;
        note("partial", rotary.rotary_dim < case.dims.0);
        note("whole", rotary.rotary_dim == case.dims.0);
        note("whole units", pairs.is_multiple_of(8));
        note("broken units", pairs > 8 && !pairs.is_multiple_of(8));
        note("in place", rotary.queries.is_some_and(|it| it.q == it.out));
        note(
            "out of place",
            rotary.queries.is_some_and(|it| it.q != it.out),
        );
        note("positions", rotary.positions.is_some());
        note("no positions", rotary.positions.is_none());
        note("no values", case.dims.1.is_none());
        note(&format!("{:?} of caches", case.narrow), true);
        note(&format!("{:?}", case.layouts), true);
        note(&format!("{:?}", case.place), true);
        Ok(())
    });
    outcome.unwrap();
    let seen = seen.into_inner();
    assert_eq!(seen.len(), 4 + 11 + 10 + 5, "{seen:?}");
    let missing: Vec<_> = seen.iter().filter(|(_, seen)| !**seen).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

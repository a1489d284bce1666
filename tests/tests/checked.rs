//! Checked mode: numbers that only the device has, checked there by the host's rules.

use std::{cell::RefCell, collections::BTreeMap};

use flashtile::{
    DType, Device, DeviceBuffer, EmulatorDevice, Error, ErrorClass, Stream, TensorLayout,
    cache::{AppendProblem, Place, RotaryPointers, Rows, RowsPointers},
    checked::{CHECK, Checks, MetadataReport},
    device::emulator::{BlockOrder, Options, Schedule},
    serving::{CacheLayout, CacheScales},
};
use flashtile_tests::{
    cache,
    checked::{LATE, Problem, first_of_replays},
    generate::{factor, runner},
    serving::{Axes, case, for_all},
};
use proptest::test_runner::TestCaseError;

/// The sanitizer's devices: everything in order, and warps and blocks in another.
fn devices() -> [EmulatorDevice; 2] {
    let seeded = Schedule::Seeded { seed: 7, share: 20 };
    [
        (Schedule::InOrder, BlockOrder::Ascending),
        (seeded, BlockOrder::Seeded(7)),
    ]
    .map(|(schedule, block_order)| {
        EmulatorDevice::with_options(Options {
            sanitize: true,
            schedule,
            block_order,
            ..Options::default()
        })
    })
}

/// How often each argument was wrong, or none.
#[derive(Default)]
struct Tally(RefCell<BTreeMap<String, u32>>);

impl Tally {
    fn check(
        &self,
        devices: &[EmulatorDevice],
        problem: &Problem,
        sequences: Option<i32>,
    ) -> Result<(), String> {
        for device in devices {
            let said = match problem.agrees(device, sequences)? {
                Some(Error::BadInput { argument, .. }) => argument,
                Some(error) => return Err(error.to_string()),
                None => "sound",
            };
            *self.0.borrow_mut().entry(said.into()).or_default() += 1;
        }
        Ok(())
    }

    /// Every one often, of all cases; where the environment asks for fewer, there is nothing to say.
    fn has(&self, all: &[&str]) {
        let tally = self.0.borrow();
        println!("{tally:?}");
        for name in all {
            let count = tally.get(*name).copied().unwrap_or(0);
            assert!(count >= 10 || factor() < 1.0, "{name}: {count}");
        }
    }
}

/// Lengths, pages and ranges of attention: the kernel reports if and only if the host does, the same number of the same sequence.
#[test]
fn lengths_as_on_the_host() {
    let devices = devices();
    let tally = Tally::default();
    for axes in [Axes::DECODE, Axes::SMALL] {
        for_all(500, case(axes), |case| {
            tally.check(&devices, &Problem::lengths(case), None)
        });
    }
    tally.has(&[
        "sound", "q_starts", "q_used", "k_starts", "k_used", "table", "ranges",
    ]);
}

/// Slots, starts, lengths and pages of caches, as above.
#[test]
fn rows_as_on_the_host() {
    let devices = devices();
    let tally = Tally::default();
    for hostile in [true, false] {
        let mut runner = runner(if hostile { 800 } else { 100 }, 1030, 2000);
        let outcome = runner.run(&cache::case(hostile, false), |case| {
            tally
                .check(&devices, &Problem::rows(&case), None)
                .map_err(TestCaseError::fail)
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
    }
    tally.has(&["sound", "slots", "starts", "used", "first", "block_table"]);
}

/// Tables, ranges and slots of which a sequence has more than a block's threads look at once: each number by itself, the first of them, and
/// none of those that no sequence has.
#[test]
fn long_tables() {
    let device = EmulatorDevice::sanitizing();
    let cache = CacheLayout::contiguous([7, 1, 1, 8]);
    for entries in [128, 129, 512, 513, 5000] {
        let tokens = TensorLayout::contiguous([1, entries, 1, 8]);
        let problem = AppendProblem {
            dtype: DType::F16,
            kv_dtype: DType::F16,
            kv_scales: CacheScales::None,
            k: Rows {
                tensor: tokens,
                cache,
            },
            v: None,
            place: Place::Slots,
            rotary: None,
        };
        let of = |slots: Vec<i64>| {
            let numbers = cache::Numbers {
                slots,
                ..Default::default()
            };
            let problem = Problem::Rows(Box::new(problem), [1, entries], numbers);
            problem.agrees(&device, None).unwrap()
        };
        let sound: Vec<i64> = (0..entries).map(|at| [-1, 0, 6][at % 3]).collect();
        assert_eq!(of(sound.clone()), None);
        for at in [0, 1, 127, entries / 2, entries - 1] {
            let mut slots = sound.clone();
            slots[at] = 7;
            slots[entries - 1] = -2;
            assert!(of(slots).is_some());
        }
    }

    let sound = Problem::long();
    assert_eq!(sound.agrees(&device, None), Ok(None));
    for problem in Problem::long_and_wrong() {
        assert!(problem.agrees(&device, None).unwrap().is_some());
    }
    let Problem::Lengths(problem, mut numbers) = sound else {
        unreachable!("a problem of attention");
    };
    let last = numbers[4].len() - 1;
    numbers[4][last] = -1;
    let unused = Problem::Lengths(problem, numbers);
    assert_eq!(unused.agrees(&device, None), Ok(None));
}

/// Replays tell as launches do.
#[test]
fn the_first_of_several_replays_is_told() {
    for device in devices() {
        first_of_replays(&device).unwrap();
    }
}

/// How many sequences there are, on the device: not more than were planned, and none past them.
#[test]
fn sequences_that_were_not_planned() {
    let devices = devices();
    let tally = Tally::default();
    for_all(200, case(Axes::SMALL), |case| {
        let problem = Problem::lengths(case);
        let batch = case.lengths.len() as i32;
        for sequences in [i32::MIN, -1, 0, 1, batch - 1, batch, batch + 1, i32::MAX] {
            tally.check(&devices, &problem, Some(sequences))?;
        }
        Ok(())
    });
    tally.has(&["sound", "sequences", "table"]);
}

/// A problem of two tokens and a cache of four slots, its buffers, and its report.
struct Append<'d> {
    device: &'d EmulatorDevice,
    problem: AppendProblem,
    cache: DeviceBuffer<'d>,
    k: DeviceBuffer<'d>,
    slots: DeviceBuffer<'d>,
}

impl<'d> Append<'d> {
    fn new(device: &'d EmulatorDevice, shape: [usize; 4]) -> Self {
        Self {
            device,
            problem: AppendProblem {
                dtype: DType::F16,
                kv_dtype: DType::F16,
                kv_scales: CacheScales::None,
                k: Rows {
                    tensor: TensorLayout::contiguous([1, 2, 1, 8]),
                    cache: CacheLayout::contiguous(shape),
                },
                v: None,
                place: Place::Slots,
                rotary: None,
            },
            cache: DeviceBuffer::zeroed(device, 4 * 16).unwrap(),
            k: DeviceBuffer::from_bytes(device, &[1; 32]).unwrap(),
            slots: DeviceBuffer::zeroed(device, 16).unwrap(),
        }
    }

    fn launch(&mut self, slots: [i64; 2], report: &MetadataReport<'_>) -> flashtile::Result<()> {
        let bytes: Vec<u8> = slots.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.slots.write(&bytes)?;
        let rows = RowsPointers {
            k: self.k.address(),
            k_cache: self.cache.address(),
            slots: self.slots.address(),
            ..RowsPointers::default()
        };
        let plan = self.problem.plan(self.device.info())?;
        let rotary = RotaryPointers::default();
        let checks = Checks::new(report);
        // SAFETY: the buffers are as large as the problem says; the emulator checks every access.
        unsafe { plan.launch_checked(self.device, Stream::DEFAULT, &rows, &rotary, &checks) }
    }
}

/// An offence is told once, at the next call, which launches nothing then; the first stays until it is told.
#[test]
fn an_offence_is_told_at_the_next_call() {
    let device = EmulatorDevice::sanitizing();
    let report = MetadataReport::new(&device).unwrap();
    report.finish().unwrap();
    let mut append = Append::new(&device, [2, 2, 1, 8]);
    append.launch([0, -1], &report).unwrap();
    report.finish().unwrap();

    // The launch itself succeeds: the number is skipped.
    append.launch([1, 4], &report).unwrap();
    let error = append.launch([2, 3], &report).unwrap_err();
    assert_eq!(error.class(), ErrorClass::BadInput);
    assert_eq!(
        error.to_string(),
        format!(
            "slots: expected -1, or a slot below 4, as many as the cache has, found 4, of token 1{LATE}"
        )
    );
    let rows = |append: &Append<'_>| {
        let bytes = append.cache.to_vec().unwrap();
        [0, 1, 2, 3].map(|slot| bytes[16 * slot])
    };
    assert_eq!(rows(&append), [1, 1, 0, 0]);
    // It is told once, and what was not launched can be.
    report.look().unwrap();
    append.launch([2, 3], &report).unwrap();
    report.finish().unwrap();
    assert_eq!(rows(&append), [1; 4]);

    // Of two in one launch, the first; and `finish` tells as well.
    append.launch([-2, -3], &report).unwrap();
    let text = report.finish().unwrap_err().to_string();
    assert!(text.contains("found -2, of token 0"), "{text}");
    report.finish().unwrap();
}

/// A cache whose blocks have no rows has no slots: neither kernel follows any.
#[test]
fn blocks_without_rows_have_no_slots() {
    let device = EmulatorDevice::sanitizing();
    let report = MetadataReport::new(&device).unwrap();
    let mut append = Append::new(&device, [2, 0, 1, 8]);
    append.launch([0, 1], &report).unwrap();
    let text = report.finish().unwrap_err().to_string();
    assert!(text.contains("a slot below 0"), "{text}");
    assert!(append.cache.to_vec().unwrap().iter().all(|&byte| byte == 0));
}

/// The kernel is loaded by the report, so that a launch need not.
#[test]
fn a_report_loads_its_kernel() {
    let device = EmulatorDevice::new();
    let _report = MetadataReport::new(&device).unwrap();
    // SAFETY: the text is refused.
    let again = unsafe { device.override_ptx(&CHECK, "") };
    assert_eq!(again.unwrap_err().class(), ErrorClass::BadInput);
}

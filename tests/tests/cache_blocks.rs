//! Copies of blocks of caches, under the sanitizer, against plain Rust.

use flashtile::{
    Device, EmulatorDevice,
    cache::{BlocksLayout, CopyProblem, IndexType, copy_blocks},
};
use flashtile_tests::{
    cache::{BlocksCase, blocks_case},
    generate::runner,
};
use proptest::test_runner::TestCaseError;

#[test]
fn blocks_are_copied() {
    let device = EmulatorDevice::sanitizing();
    let outcome = runner(400, 1010, 2000).run(&blocks_case(), |case| {
        case.check(&device).map_err(TestCaseError::fail)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// More caches than one launch takes, each its own bytes.
#[test]
fn many_caches() {
    let case = BlocksCase {
        block_bytes: 48,
        gaps: [0, 16],
        blocks: [3, 4],
        backwards: false,
        within: false,
        caches: 2 * flashtile_abi::cache::MAX_CACHES + 3,
        offset: 0,
        index: IndexType::I64,
        hostile: false,
        seed: 5,
    };
    case.check(&EmulatorDevice::sanitizing()).unwrap();
}

/// The same through the host's memory.
#[test]
fn caches_in_host_memory() {
    let layout = BlocksLayout {
        blocks: 4,
        stride: 3,
    };
    let problem = CopyProblem {
        pairs: 2,
        index: IndexType::I32,
        block_bytes: 2,
        src: layout,
        dst: layout,
    };
    let before = *b"00.11.22.33";
    let (mut a, mut b) = (before, *b"ab.cd.ef.gh");
    let device = EmulatorDevice::new();
    let pairs = [[3, 0], [1, 2]];
    copy_blocks(&device, &problem, &pairs, &mut [&mut a, &mut b]).unwrap();
    assert_eq!((&a, &b), (b"33.11.11.33", b"gh.cd.cd.gh"));
    for (wrong, argument) in [
        (vec![[3, 0]], "pairs"),
        (vec![[3, 0], [1, 4]], "pairs"),
        (vec![[-1, 0], [1, 2]], "pairs"),
        (vec![[3, 0], [1, 0]], "pairs"),
        (vec![[3, 0], [0, 2]], "pairs"),
    ] {
        let error = copy_blocks(&device, &problem, &wrong, &mut [&mut a]).unwrap_err();
        assert!(error.to_string().starts_with(argument), "{error}");
    }
    assert_eq!(&a, b"33.11.11.33");
    let short = &mut a[..10];
    let error = copy_blocks(&device, &problem, &pairs, &mut [short]).unwrap_err();
    assert!(error.to_string().starts_with("caches"), "{error}");
}

/// A launch without blocks launches nothing.
#[test]
fn nothing_to_copy() {
    let device = EmulatorDevice::sanitizing();
    for (pairs, blocks, block_bytes) in [(0, 3, 16), (2, 0, 16), (2, 3, 0)] {
        let layout = BlocksLayout { blocks, stride: 16 };
        let problem = CopyProblem {
            pairs,
            index: IndexType::I32,
            block_bytes,
            src: layout,
            dst: layout,
        };
        let plan = problem.plan(device.info()).unwrap();
        // SAFETY: nothing is launched, so nothing is accessed.
        let outcome = unsafe {
            plan.launch(
                &device,
                flashtile::Stream::DEFAULT,
                256,
                &[Default::default()],
            )
        };
        outcome.unwrap();
        assert_eq!(device.last_stats(), None);
    }
}

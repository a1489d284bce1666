//! A test suite is only as good as what it rejects: kernels with a wait or a barrier removed.
//!
//! The emulator lets asynchronous copies land as late as they may, so a kernel that does not wait for
//! one computes with what was in shared memory before.

use flashtile::{Algorithm, CausalAlignment, DType, Device, EmulatorDevice};
use flashtile_tests::{
    Case, Distribution, Tensors, judge,
    mutation::{lines_with, without_line},
    run, sizes,
};

/// Masked and unmasked tiles, even and odd numbers of them, and a negated query: everything that a wait
/// or a barrier is for. Scores are far apart, so that even a maximum must be right: the exponentials of
/// another would overflow.
fn cases(algorithm: Algorithm) -> [Case; 2] {
    let case = |seqlen_k| {
        let case = Case::new(DType::F16, sizes(128, seqlen_k, [1, 1], 32)).algorithm(algorithm);
        case.data(Distribution::Peaked, 1)
    };
    let block_n = case(1).variant().tile.block_n as usize;
    [
        case(4 * block_n).causal(CausalAlignment::BottomRight),
        case(3 * block_n).scale(-0.3).window(Some(150), None),
    ]
}

/// Whether any case is wrong, or faults, with this text in place of the kernel's.
fn is_rejected(algorithm: Algorithm, ptx: &str) -> bool {
    let device = EmulatorDevice::new();
    let cases = cases(algorithm);
    // SAFETY: the emulator checks every access.
    unsafe { device.override_ptx(cases[0].variant(), ptx) }.unwrap();
    cases.iter().any(|case| {
        let tensors = Tensors::of(case);
        match run(&device, case, &tensors) {
            Ok(results) => judge(case, &tensors, &results).is_err(),
            Err(_) => true,
        }
    })
}

/// The kernel of both cases, and its text.
fn kernel(algorithm: Algorithm) -> String {
    let [a, b] = cases(algorithm);
    assert_eq!(a.variant().name, b.variant().name);
    flashtile::ptx(a.variant()).unwrap()
}

#[test]
fn intact_text_is_accepted() {
    for algorithm in Algorithm::ALL {
        assert!(!is_rejected(algorithm, &kernel(algorithm)), "{algorithm:?}");
    }
}

#[test]
fn a_kernel_that_does_not_wait_for_its_copies_is_rejected() {
    for algorithm in Algorithm::ALL {
        let ptx = kernel(algorithm);
        let waits = lines_with(&ptx, "cp.async.wait");
        assert!(waits.len() >= 2, "{algorithm:?} has {} waits", waits.len());
        for wait in waits {
            let rejected = is_rejected(algorithm, &without_line(&ptx, wait));
            assert!(rejected, "{algorithm:?} without line {}", wait + 1);
        }
    }
}

#[test]
fn a_kernel_that_lacks_a_barrier_is_rejected() {
    for algorithm in Algorithm::ALL {
        let ptx = kernel(algorithm);
        let barriers = lines_with(&ptx, "bar.sync");
        assert!(barriers.len() >= 2, "{algorithm:?}");
        for barrier in barriers {
            let rejected = is_rejected(algorithm, &without_line(&ptx, barrier));
            assert!(rejected, "{algorithm:?} without line {}", barrier + 1);
        }
    }
}

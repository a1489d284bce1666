//! Bank conflicts of the kernels' tiles in shared memory, as the emulator counts them.

use flashtile::{Arch, DType, EmulatorDevice, Variant, device::emulator::Options};
use flashtile_abi::variants;
use flashtile_tests::{Case, Tensors, run};

/// Whole tiles of contiguous, 16-byte aligned tensors: two blocks of queries, three tiles of keys. Also with what else
/// accesses shared memory, or no longer does: a negative scale, f32 outputs of 16-bit kernels, heads that share tiles.
fn cases(variant: &Variant) -> Vec<Case> {
    let (block_m, block_n) = (variant.tile.block_m as usize, variant.tile.block_n as usize);
    let case = Case::of_variant(variant, 2 * block_m, 3 * block_n);
    let mut cases = vec![case, case.scale(-0.1), case.out_f32()];
    if variant.arch == Arch::Sm90a {
        cases.push(Case::of_variant(variant, block_m / 2, 3 * block_n).heads(4, 1));
    }
    cases
}

/// Wavefronts beyond the least that bank conflicts cost a case.
fn conflicts(device: &EmulatorDevice, variant: &Variant, case: &Case) -> u64 {
    assert_eq!(case.variant().name, variant.name, "{case}");
    run(device, case, &Tensors::of(case)).unwrap();
    let stats = device.last_stats().unwrap();
    assert_ne!(stats.shared_wavefronts_least, 0, "{case}");
    stats.shared_wavefronts - stats.shared_wavefronts_least
}

/// Runs the variants of some element types, and compares their conflicts with what is known of a case.
fn check_all(dtypes: &[DType], known: impl Fn(&Case) -> u64) {
    let device = EmulatorDevice::with_options(Options {
        count_bank_conflicts: true,
        ..Options::default()
    });
    let mut failures = Vec::new();
    for variant in variants() {
        if !dtypes.contains(&variant.tile.dtype) {
            continue;
        }
        for case in cases(variant) {
            let (found, expected) = (conflicts(&device, variant, &case), known(&case));
            if found != expected {
                let name = variant.name;
                failures.push(format!("{name}: {found} conflicts, not {expected}: {case}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Every access of the 16-bit kernels is free of bank conflicts.
#[test]
fn none_in_16_bit_kernels() {
    check_all(&[DType::F16, DType::Bf16], |_| 0);
}

/// The f32 kernels have one kind: the `st.shared.v2` that stages the output. A half warp stores two chunks (32 bytes)
/// of four rows, which the swizzle puts into two pairs of chunks, each of them twice: two wavefronts instead of one.
/// Everything else, each copy and each fragment, is free of them.
#[test]
fn one_kind_in_f32_kernels() {
    check_all(&[DType::F32], |case| {
        let bytes = 4 * case.shapes()[3].iter().product::<usize>() as u64;
        bytes / 128
    });
}

//! Bulk copies that are refused, and phases that wait for bytes in vain.

mod common;
#[path = "common/tensor.rs"]
mod tensor;

use common::{Run, kernel};
use flashtile_emulator::{ElementType, FaultKind, LaunchError, Options, Space, Swizzle, TensorMap};
use tensor::{LOAD, SHARED, Tensor, load, words};

#[test]
fn what_a_load_refuses() {
    let refused = |change: &dyn Fn(&Tensor), from: &str, to: &str| {
        let tensor = Tensor::new(512, Options::default());
        tensor.set_map(&words(&tensor));
        change(&tensor);
        assert!(LOAD.contains(from));
        fault_of(tensor.launch(&load(&LOAD.replace(from, to))))
    };
    let nothing = |_: &Tensor| {};
    let misaligned = |kind, what, by| matches!(kind, FaultKind::Misaligned { space, align, .. } if space == what && align == by);
    assert!(misaligned(
        refused(&nothing, "[%r41]", "[%r41+64]"),
        Space::Cluster,
        128
    ));
    assert!(misaligned(
        refused(&nothing, "[%d1,", "[%d1+32,"),
        Space::Generic,
        64
    ));
    let kind = refused(&nothing, "[%r41]", "[%r41+16256]");
    assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{kind}");
    let kind = refused(&nothing, "bytes [%r41]", "bytes [0x80]");
    assert!(matches!(kind, FaultKind::Null { .. }), "{kind}");
    // A second mbarrier that nobody made.
    let kind = refused(&nothing, "}], [%r40]", "}], [%r40+8]");
    assert!(matches!(kind, FaultKind::Mbarrier { .. }), "{kind}");
    let says = |kind: FaultKind, part: &str| {
        assert!(kind.to_string().contains(part), "{kind}: {part}");
    };
    says(
        refused(
            &nothing,
            "2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r41], [%d1, {0, 0}]",
            "3d.shared::cluster.global.mbarrier::complete_tx::bytes [%r41], [%d1, {0, 0, 0}]",
        ),
        "the tensor map has 2 dimensions",
    );
    // Bytes that are no map.
    let spoil = |t: &Tensor| t.run.device.fill(t.run.buffers[1], 128, 7).unwrap();
    says(refused(&spoil, "0, 0", "0, 0"), "tensorMap");
    let change = |f: fn(&mut TensorMap)| {
        move |t: &Tensor| {
            let mut map = words(t);
            f(&mut map);
            t.set_map(&map);
        }
    };
    // The tensor is larger than the allocation, or lies nowhere.
    let kind = refused(&change(|m| m.strides[0] = 80), "0, 0", "0, 0");
    assert!(
        matches!(
            kind,
            FaultKind::OutOfBounds {
                space: Space::Global,
                ..
            }
        ),
        "{kind}"
    );
    let kind = refused(&change(|m| m.address = 16), "0, 0", "0, 0");
    assert!(
        matches!(
            kind,
            FaultKind::Null {
                space: Space::Global,
                ..
            }
        ),
        "{kind}"
    );
    says(
        refused(
            &change(|m| m.element_type = ElementType::Tf32),
            "0, 0",
            "0, 0",
        ),
        "converted",
    );
    says(
        refused(&change(|m| m.swizzle = Swizzle::B128), "0, 0", "0, 0"),
        "not documented",
    );
    says(
        refused(&change(|m| m.box_dims = vec![256, 256]), "0, 0", "0, 0"),
        "262144 bytes",
    );
}

#[test]
fn what_a_store_refuses() {
    let store = |instruction: &str| {
        let tensor = Tensor::new(512, Options::default());
        tensor.set_map(&words(&tensor));
        let body = format!("mov.u32 %r41, s;\nmov.u32 %r42, 16;\n{instruction}");
        fault_of(tensor.run.launch(&kernel(SHARED, &body), 1, 1, 0))
    };
    let kind =
        store("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%d1, {-1, 0}], [%r41];");
    assert!(kind.to_string().contains("coordinates"), "{kind}");
    let kind = store("cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r41], 24;");
    assert!(kind.to_string().contains("the size 24"), "{kind}");
    let kind = store("cp.async.bulk.global.shared::cta.bulk_group [%d0+8], [%r41], %r42;");
    assert!(
        matches!(kind, FaultKind::Misaligned { align: 16, .. }),
        "{kind}"
    );
    let kind = store("cp.async.bulk.global.shared::cta.bulk_group [%d0+512], [%r41], %r42;");
    assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{kind}");
    let kind = store(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.inc.bulk_group [%d0, {0, 0}], [%r41];",
    );
    assert!(kind.to_string().contains("tensorMap"), "{kind}");
}

#[test]
fn a_phase_that_never_ends_is_a_deadlock() {
    let deadlock = |issue: &str| {
        let tensor = Tensor::new(512, Options::default());
        tensor.set_map(&words(&tensor));
        match fault_of(tensor.launch(&load(issue))) {
            kind @ FaultKind::Deadlock { .. } => kind.to_string(),
            other => panic!("{other}"),
        }
    };
    let more = deadlock(&LOAD.replace("512", "528"));
    assert!(
        more.contains("all have arrived, of the bytes expected 16 are missing, 0 are on their way"),
        "{more}"
    );
    let less = deadlock(&LOAD.replace("512", "496"));
    assert!(
        less.contains("16 bytes more than expected have come"),
        "{less}"
    );
    let none = deadlock(&LOAD.replace(
        "arrive.expect_tx.shared::cta.b64 _,",
        "expect_tx.relaxed.cta.shared::cta.b64",
    ));
    assert!(
        none.contains(
            "1 arrival is missing, of the bytes expected 512 are missing, 512 are on their way"
        ),
        "{none}"
    );
}

#[test]
fn a_wait_that_gives_up_is_no_deadlock() {
    // It counts how often it was told "not yet", and leaves after a hundred times.
    let body = "mov.u32 %r40, m;\nmbarrier.init.shared.b64 [%r40], 1;\nmov.u32 %r9, 0;\n\
        LOOP: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r40], 0;\n@%p3 bra END;\nadd.u32 %r9, %r9, 1;\n\
        setp.lt.u32 %p2, %r9, 100;\n@%p2 bra LOOP;\nEND: st.global.u32 [%d0], %r9;";
    let run = Run::new(Options::default());
    run.launch(&kernel(SHARED, body), 1, 1, 0).unwrap();
    assert_eq!(run.get(0, 1), [100]);
    // Two barriers in turn, and no way out.
    let body = "mov.u32 %r40, m;\nmbarrier.init.shared.b64 [%r40], 1;\nmbarrier.init.shared.b64 [%r40+8], 2;\n\
        LOOP: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r40], 0;\n@%p3 bra END;\n\
        mbarrier.test_wait.parity.shared::cta.b64 %p3, [%r40+8], 0;\n@!%p3 bra LOOP;\nEND:";
    let kind = common::fault(SHARED, body, 1).kind;
    assert!(matches!(kind, FaultKind::Deadlock { .. }), "{kind}");
    // Somebody else may change what it looks at in global memory: nobody knows that it is one.
    let body = "mov.u32 %r40, m;\nmbarrier.init.shared.b64 [%r40], 1;\n\
        LOOP: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r40], 0;\nld.relaxed.gpu.global.u32 %r9, [%d0];\n\
        @!%p3 bra LOOP;";
    let kind = common::fault(SHARED, body, 1).kind;
    assert!(matches!(kind, FaultKind::InstructionLimit { .. }), "{kind}");
}

fn fault_of<T: std::fmt::Debug>(result: Result<T, LaunchError>) -> FaultKind {
    match result {
        Err(LaunchError::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    }
}

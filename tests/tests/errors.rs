//! What the library refuses, through its public face and before any kernel runs.

use flashtile::{
    ArchChoice, DType, DeviceBuffer, Error, ErrorClass, Inputs, Plan, Pointers, Problem, Stream,
    TensorLayout, attention,
};
use flashtile_tests::{Case, devices, sizes};

/// A sound problem to be spoilt: batch 1, 20 queries, 30 keys, 4 heads over 2, head_dim 32.
fn sound() -> Problem {
    Case::new(DType::F16, sizes(20, 30, [4, 2], 32)).problem()
}

/// The argument that a plan names as wrong.
fn refused(problem: &Problem) -> &'static str {
    for device in devices() {
        match problem.plan(device.info()) {
            Err(error @ Error::BadInput { .. }) => {
                let line = error.to_string();
                assert!(!line.contains('\n') && line.contains("expected"), "{line}");
                assert_eq!(error.class(), ErrorClass::BadInput);
                if let Error::BadInput { argument, .. } = error {
                    return argument;
                }
            }
            other => panic!("{problem:?}: {other:?}"),
        }
    }
    "nothing"
}

/// The problem after some spoiling.
fn with(spoil: impl Fn(&mut Problem)) -> Problem {
    let mut problem = sound();
    spoil(&mut problem);
    problem
}

#[test]
fn shapes_that_contradict_each_other() {
    let cases: [(&str, usize, usize, usize); 6] = [
        ("k", 1, 0, 2),
        ("k", 1, 3, 31),
        ("v", 2, 1, 29),
        ("v", 2, 2, 4),
        ("out", 3, 1, 21),
        ("out", 3, 2, 2),
    ];
    for (argument, tensor, dim, extent) in cases {
        let problem = with(|p| {
            let layout = [&mut p.q, &mut p.k, &mut p.v, &mut p.out];
            for (at, layout) in layout.into_iter().enumerate() {
                if at == tensor {
                    layout.shape[dim] = extent;
                }
            }
        });
        assert_eq!(refused(&problem), argument, "{problem:?}");
    }
}

#[test]
fn heads_that_do_not_divide_and_dimensions_out_of_range() {
    let problem = |heads, dim| Case::new(DType::F16, sizes(20, 30, heads, dim)).problem();
    assert_eq!(refused(&problem([3, 2], 32)), "q");
    assert_eq!(refused(&problem([0, 2], 32)), "q");
    assert_eq!(refused(&problem([2, 0], 32)), "k");
    assert_eq!(refused(&problem([2, 2], 0)), "q");
    assert_eq!(refused(&problem([2, 2], 513)), "q");
}

#[test]
fn numbers_that_are_none() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(refused(&sound().scale(bad)), "scale");
        assert_eq!(refused(&sound().softcap(bad)), "softcap");
    }
    for bad in [0.0, -0.0, -1.0] {
        assert_eq!(refused(&sound().softcap(bad)), "softcap");
    }
}

#[test]
fn layouts_that_no_kernel_addresses() {
    assert_eq!(refused(&with(|p| p.q.strides[3] = 2)), "q");
    assert_eq!(refused(&with(|p| p.k.strides[3] = -1)), "k");
    // Two output rows in one place, or one over the other.
    assert_eq!(refused(&with(|p| p.out.strides[1] = 0)), "out");
    assert_eq!(refused(&with(|p| p.out.strides[1] -= 1)), "out");
    let far = with(|p| {
        p.v = TensorLayout {
            strides: [0, i64::MAX / 4, 32, 1],
            ..p.v
        }
    });
    assert_eq!(refused(&far), "v");
}

#[test]
fn tiers_that_have_no_kernel() {
    for device in devices() {
        let error = sound().arch(ArchChoice::Sm90a).plan(device.info());
        match error {
            Err(error) => assert!(
                matches!(error.class(), ErrorClass::NoVariant | ErrorClass::NoDevice),
                "{error}"
            ),
            Ok(plan) => assert_eq!(plan.variant().arch, flashtile::Arch::Sm90a),
        }
    }
}

/// Addresses that tensors of these tests can have.
fn addresses() -> Pointers {
    Pointers {
        q: 0x1000,
        k: 0x1000_0000,
        v: 0x2000_0000,
        out: 0x3000_0000,
        lse: Some(0x4000_0000),
        ..Pointers::default()
    }
}

/// What the copy engine of the sm_90a tier cannot take is an error for those who ask for the tier.
#[test]
fn tensors_that_the_copy_engine_cannot_take() {
    type Tensor = fn(&mut Problem) -> &mut TensorLayout;
    let tensors: [(&str, Tensor); 4] = [
        ("q", |p| &mut p.q),
        ("k", |p| &mut p.k),
        ("v", |p| &mut p.v),
        ("out", |p| &mut p.out),
    ];
    let good = addresses();
    let asked = sound().arch(ArchChoice::Sm90a);
    for device in devices() {
        let Ok(plan) = asked.plan(device.info()) else {
            continue;
        };
        for (argument, tensor) in tensors {
            for stride in [-128, 132] {
                let mut problem = asked;
                tensor(&mut problem).strides[1] = stride;
                let error = problem.plan(device.info()).unwrap_err();
                assert!(
                    matches!(error, Error::BadInput { argument: found, .. } if found == argument),
                    "{problem:?}: {error}"
                );
            }
        }
        for off in [2, 8] {
            refused_pointers(
                &plan,
                &Pointers {
                    q: 0x1000 + off,
                    ..good
                },
                "q",
            );
            refused_pointers(
                &plan,
                &Pointers {
                    k: good.k + off,
                    ..good
                },
                "k",
            );
            refused_pointers(
                &plan,
                &Pointers {
                    v: good.v + off,
                    ..good
                },
                "v",
            );
            refused_pointers(
                &plan,
                &Pointers {
                    out: good.out + off,
                    ..good
                },
                "out",
            );
        }
    }
}

#[test]
fn inputs_that_are_too_short() {
    let problem = sound();
    let bytes = |layout: &TensorLayout| vec![0; layout.span().unwrap() * 2];
    let (q, k, v) = (bytes(&problem.q), bytes(&problem.k), bytes(&problem.v));
    for device in devices() {
        for cut in 0..3 {
            let short = |which: usize, bytes: &[u8]| bytes.len() - usize::from(which == cut);
            let inputs = Inputs {
                q: &q[..short(0, &q)],
                k: &k[..short(1, &k)],
                v: &v[..short(2, &v)],
                ..Inputs::default()
            };
            let error = attention(&**device, &problem, &inputs).unwrap_err();
            let expected = ["q", "k", "v"][cut];
            assert!(
                matches!(error, Error::BadInput { argument, .. } if argument == expected),
                "{error}"
            );
        }
    }
}

/// Launches with these addresses must be refused for this argument.
fn refused_pointers(plan: &Plan, pointers: &Pointers, expected: &str) {
    for device in devices() {
        // SAFETY: the launch is refused, so no address is used.
        let error = unsafe { plan.launch(&**device, Stream::DEFAULT, pointers) }.unwrap_err();
        assert!(
            matches!(error, Error::BadInput { argument, .. } if argument == expected),
            "{pointers:?}: {error}"
        );
    }
}

#[test]
fn addresses_that_hold_no_tensor() {
    for (dtype, off) in [(DType::F16, 1), (DType::Bf16, 1), (DType::F32, 2)] {
        let problem = Case::new(dtype, sizes(20, 30, [4, 2], 32)).problem();
        let plan = problem.plan(devices()[0].info()).unwrap();
        let good = addresses();
        assert!(plan.params(&good).is_ok());
        // Null, between two elements, at the end of the address space.
        for bad in [0, 0x1000 + off, u64::MAX - 255] {
            refused_pointers(&plan, &Pointers { q: bad, ..good }, "q");
            refused_pointers(&plan, &Pointers { k: bad, ..good }, "k");
            refused_pointers(&plan, &Pointers { v: bad, ..good }, "v");
            refused_pointers(&plan, &Pointers { out: bad, ..good }, "out");
            let lse = Some(bad);
            refused_pointers(&plan, &Pointers { lse, ..good }, "lse");
        }
        refused_pointers(&plan, &Pointers { lse: None, ..good }, "lse");
        let unwanted = problem.lse(false).plan(devices()[0].info()).unwrap();
        refused_pointers(&unwanted, &good, "lse");
    }
}

/// Tensors without elements need no address; a problem without keys still answers every query.
#[test]
fn empty_tensors_need_no_address() {
    let problem = Case::new(DType::F16, sizes(3, 0, [1, 1], 32)).problem();
    for device in devices() {
        let plan = problem.plan(device.info()).unwrap();
        let q = DeviceBuffer::zeroed(&**device, 3 * 32 * 2).unwrap();
        let out = DeviceBuffer::from_bytes(&**device, &[7; 3 * 32 * 2]).unwrap();
        let lse = DeviceBuffer::zeroed(&**device, 3 * 4).unwrap();
        let pointers = Pointers {
            q: q.address(),
            out: out.address(),
            lse: Some(lse.address()),
            ..Pointers::default()
        };
        // SAFETY: the buffers hold q, out and lse whole; k and v have no elements.
        unsafe { plan.launch(&**device, Stream::DEFAULT, &pointers) }.unwrap();
        device.synchronize().unwrap();
        assert_eq!(out.to_vec().unwrap(), [0; 3 * 32 * 2]);
        let minus_infinity = f32::NEG_INFINITY.to_le_bytes().repeat(3);
        assert_eq!(lse.to_vec().unwrap(), minus_infinity);
    }
}

//! Table-driven tests of plans: what is chosen, what is refused, and that nothing panics.

mod hopper;

use flashtile_abi::{Band, params::WIDEST_QUICK_CAP, params::flags::*, variants};
use proptest::prelude::*;

use super::*;
use crate::{
    Algorithm, Arch, ArchChoice, CausalAlignment, Error, ErrorClass, OutDType, device::DeviceKind,
};

fn hopper() -> DeviceInfo {
    DeviceInfo {
        kind: DeviceKind::Cuda,
        name: "test GPU".into(),
        compute_capability: (9, 0),
        multiprocessors: 132,
        shared_bytes_per_block: 227 * 1024,
        total_memory: 80 << 30,
        driver_lacks: None,
    }
}

/// A GPU that has the sm_80 tier alone.
fn ampere() -> DeviceInfo {
    DeviceInfo {
        compute_capability: (8, 0),
        shared_bytes_per_block: 163 * 1024,
        ..hopper()
    }
}

fn shape(head_dim_qk: usize, head_dim_v: usize) -> Shape {
    Shape {
        batch: 2,
        seqlen_q: 129,
        seqlen_k: 200,
        heads_q: 6,
        heads_kv: 2,
        head_dim_qk,
        head_dim_v,
    }
}

fn sound() -> Problem {
    Problem::contiguous(DType::F16, shape(64, 64)).lse(true)
}

#[test]
fn the_smallest_kernel_that_fits_is_chosen() {
    use Algorithm::{Fused, ThreePass, TwoPass};
    let table = [
        (Fused, DType::F16, 1, 1, None, "fused_f16_d32_sm80"),
        (Fused, DType::F16, 32, 32, None, "fused_f16_d32_sm80"),
        (Fused, DType::F16, 33, 8, None, "fused_f16_d64_sm80"),
        (Fused, DType::F16, 8, 33, None, "fused_f16_d64_sm80"),
        (Fused, DType::Bf16, 80, 80, None, "fused_bf16_d96_sm80"),
        (
            Fused,
            DType::Bf16,
            192,
            128,
            None,
            "fused_bf16_d192x128_sm80",
        ),
        (Fused, DType::Bf16, 192, 129, None, "fused_bf16_d192_sm80"),
        (Fused, DType::Bf16, 129, 192, None, "fused_bf16_d192_sm80"),
        (Fused, DType::F32, 65, 65, None, "fused_f32_d128_sm80"),
        (Fused, DType::F32, 256, 256, None, "fused_f32_d256_sm80"),
        (
            Fused,
            DType::F16,
            64,
            64,
            Some(30.0),
            "fused_f16_d64_softcap_sm80",
        ),
        (
            Fused,
            DType::F16,
            192,
            128,
            Some(30.0),
            "fused_f16_d192_softcap_sm80",
        ),
        (TwoPass, DType::F16, 65, 64, None, "two_pass_f16_d128_sm80"),
        (
            TwoPass,
            DType::F32,
            20,
            20,
            Some(1.0),
            "two_pass_f32_d32_sm80",
        ),
        (
            ThreePass,
            DType::Bf16,
            200,
            8,
            None,
            "three_pass_bf16_d256_sm80",
        ),
    ];
    for (algorithm, dtype, head_dim_qk, head_dim_v, softcap, name) in table {
        let mut problem =
            Problem::contiguous(dtype, shape(head_dim_qk, head_dim_v)).algorithm(algorithm);
        problem.softcap = softcap;
        let plan = problem.plan(&ampere()).unwrap();
        assert_eq!(plan.variant().name, name);
        assert_eq!(problem.arch(ArchChoice::Sm80).plan(&hopper()), {
            let mut same = plan;
            same.problem.arch = ArchChoice::Sm80;
            Ok(same)
        });
    }
}

#[test]
fn every_kernel_is_the_choice_for_its_own_shape() {
    for variant in variants() {
        let (qk, v) = (variant.tile.head_dim_qk, variant.tile.head_dim_v);
        let mut problem = Problem::contiguous(variant.tile.dtype, shape(qk as usize, v as usize))
            .algorithm(variant.algorithm)
            .arch(match variant.arch {
                Arch::Sm80 => ArchChoice::Sm80,
                Arch::Sm90a => ArchChoice::Sm90a,
            });
        if variant.score_mod == flashtile_abi::ScoreModKind::Softcap {
            problem = problem.softcap(20.0);
        }
        assert_eq!(problem.plan(&hopper()).unwrap().variant(), variant);
    }
}

#[test]
fn geometry_and_parameters() {
    let plan = sound()
        .causal(CausalAlignment::BottomRight)
        .plan(&ampere())
        .unwrap();
    assert_eq!(plan.config().grid, [2 * 6 * 2, 1, 1]);
    assert_eq!(plan.config().block, [plan.variant().threads, 1, 1]);
    assert_eq!(plan.config().shared_bytes, plan.variant().shared_bytes);
    let params = plan.template();
    assert_eq!(
        (params.m_blocks, params.heads_q, params.q_per_kv),
        (2, 6, 3)
    );
    assert_eq!((params.head_dim_qk, params.head_dim_v), (64, 64));
    assert_eq!(
        params.band,
        Band {
            lower: Band::UNBOUNDED_LOWER,
            upper: 71,
            seqlen_k: 200
        }
    );
    assert_eq!(params.q.row_stride, 6 * 64 * 2);
    assert_eq!(params.lse.head_stride, 129 * 4);
    assert_eq!(params.lse.batch_stride, 6 * 129 * 4);
    assert!((params.exponent_scale - 0.125 * std::f32::consts::LOG2_E).abs() < 1e-7);
    assert_eq!((params.cap_scale, params.flags), (0.0, 0));
    let params = *sound()
        .scale(-0.5)
        .softcap(2.0)
        .out_dtype(OutDType::F32)
        .plan(&hopper())
        .unwrap()
        .template();
    assert_eq!(params.flags, NEGATE_Q | OUT_F32);
    assert_eq!(params.cap_scale, 0.25);
    assert_eq!(params.exponent_scale, 2.0 * std::f32::consts::LOG2_E);
}

#[test]
fn wide_caps_of_short_elements_are_flagged() {
    let flags = |dtype: DType, cap: f32| {
        let problem = Problem::contiguous(dtype, shape(9, 9)).softcap(cap);
        problem.plan(&hopper()).unwrap().template().flags
    };
    for dtype in [DType::F16, DType::Bf16] {
        assert_eq!(flags(dtype, WIDEST_QUICK_CAP) & WIDE_CAP, 0);
        assert_eq!(
            flags(dtype, WIDEST_QUICK_CAP.next_up()) & WIDE_CAP,
            WIDE_CAP
        );
    }
    assert_eq!(flags(DType::F32, 1e5) & WIDE_CAP, 0);

    // 8-bit kernels have no longer way.
    let problem = Problem::contiguous(DType::E4m3, shape(64, 64));
    assert!(problem.softcap(WIDEST_QUICK_CAP).plan(&hopper()).is_ok());
    let error = problem.softcap(300.0).plan(&hopper()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "softcap: expected at most 256 with e4m3 elements, found 300"
    );
}

#[test]
fn a_scale_of_zero_weighs_all_keys_alike() {
    for softcap in [None, Some(10.0)] {
        let mut problem = sound().scale(0.0);
        problem.softcap = softcap;
        let params = *problem.plan(&hopper()).unwrap().template();
        assert_eq!(
            (params.exponent_scale, params.cap_scale),
            (f32::MIN_POSITIVE, 0.0)
        );
    }
}

#[test]
fn empty_problems() {
    let mut empty = shape(64, 64);
    empty.seqlen_q = 0;
    let problem = Problem::contiguous(DType::F16, empty).lse(true);
    assert!(problem.plan(&hopper()).unwrap().is_empty());
    empty = shape(64, 64);
    empty.batch = 0;
    assert!(
        Problem::contiguous(DType::F16, empty)
            .plan(&hopper())
            .unwrap()
            .is_empty()
    );
    // No keys: the kernel still writes zeros and -inf.
    empty = shape(64, 64);
    empty.seqlen_k = 0;
    let plan = Problem::contiguous(DType::F16, empty)
        .plan(&hopper())
        .unwrap();
    assert!(!plan.is_empty());
    let pointers = Pointers {
        q: 256,
        out: 512,
        ..Pointers::default()
    };
    assert!(plan.params(&pointers).is_ok());
}

/// The argument that a plan's error names.
fn refused(problem: &Problem) -> &'static str {
    match problem.plan(&hopper()) {
        Err(Error::BadInput { argument, .. }) => argument,
        other => panic!("{problem:?}: {other:?}"),
    }
}

#[test]
fn each_bad_argument_is_named() {
    type Change = fn(&mut Problem);
    let changes: [(&str, Change); 26] = [
        ("q", |p| p.q.shape[3] = 0),
        ("q", |p| p.q.shape[3] = 513),
        ("v", |p| p.v.shape[3] = 0),
        ("v", |p| p.v.shape[3] = 513),
        ("k", |p| p.k.shape[3] = 63),
        ("k", |p| p.k.shape[0] = 3),
        ("k", |p| p.k.shape[2] = 0),
        ("q", |p| p.q.shape[2] = 0),
        ("v", |p| p.v.shape[1] = 199),
        ("v", |p| p.v.shape[2] = 1),
        ("out", |p| p.out.shape[1] = 128),
        ("out", |p| p.out.shape[3] = 32),
        ("q", |p| {
            p.q.shape[2] = 5;
            p.out.shape[2] = 5;
        }),
        ("q", |p| p.q.strides[3] = 2),
        ("k", |p| p.k.strides[3] = 0),
        ("v", |p| p.v.strides[3] = -1),
        ("out", |p| p.out.strides[0] = 0),
        ("out", |p| p.out.strides[1] = 64),
        ("q", |p| p.q.strides[0] = i64::MAX),
        ("k", |p| p.k.strides[1] = i64::MIN),
        ("q", |p| {
            p.q.shape[1] = (1 << 30) + 1;
            p.out.shape[1] = (1 << 30) + 1;
        }),
        ("scale", |p| p.scale = Some(f32::NAN)),
        ("scale", |p| p.scale = Some(f32::MAX)),
        ("softcap", |p| p.softcap = Some(0.0)),
        ("softcap", |p| {
            p.scale = Some(100.0);
            p.softcap = Some(f32::MAX);
        }),
        ("softcap", |p| {
            p.scale = Some(1e30);
            p.softcap = Some(1e-30);
        }),
    ];
    for (index, (argument, change)) in changes.into_iter().enumerate() {
        let mut problem = sound();
        change(&mut problem);
        assert_eq!(refused(&problem), argument, "change {index}");
    }
    for softcap in [f32::NAN, f32::INFINITY, -1.0] {
        assert_eq!(refused(&sound().softcap(softcap)), "softcap");
    }
    for scale in [f32::INFINITY, f32::NEG_INFINITY, f32::MIN] {
        assert_eq!(refused(&sound().scale(scale)), "scale");
    }
}

#[test]
fn too_many_blocks() {
    let mut big = shape(8, 8);
    (big.batch, big.seqlen_q) = (1 << 20, 1 << 20);
    assert_eq!(refused(&Problem::contiguous(DType::F16, big)), "q");
}

#[test]
fn messages_say_what_was_expected_and_found() {
    let mut problem = sound();
    problem.k.shape[3] = 63;
    let message = problem.plan(&hopper()).unwrap_err().to_string();
    assert_eq!(
        message,
        "k: expected shape [2, 200, 2, 64], found shape [2, 200, 2, 63]"
    );
}

#[test]
fn devices_and_tiers() {
    let plan = |arch, capability| {
        let device = DeviceInfo {
            compute_capability: capability,
            ..hopper()
        };
        sound().arch(arch).plan(&device)
    };
    for (capability, arch) in [
        ((8, 0), Arch::Sm80),
        ((8, 6), Arch::Sm80),
        ((9, 0), Arch::Sm90a),
        ((10, 0), Arch::Sm80),
        ((12, 0), Arch::Sm80),
    ] {
        let chosen = |arch| plan(arch, capability).unwrap().variant().arch;
        assert_eq!(chosen(ArchChoice::Auto), arch);
        assert_eq!(chosen(ArchChoice::Sm80), Arch::Sm80);
        if arch == Arch::Sm90a {
            assert_eq!(chosen(ArchChoice::Sm90a), arch);
            continue;
        }
        let error = plan(ArchChoice::Sm90a, capability).unwrap_err();
        assert_eq!(error.class(), ErrorClass::NoDevice);
        let (major, minor) = capability;
        let message = format!(
            "no device: test GPU has compute capability {major}.{minor}; sm_90a kernels need 9.0 exactly (Hopper)"
        );
        assert_eq!(error.to_string(), message);
    }
    let class = |arch, capability| plan(arch, capability).unwrap_err().class();
    assert_eq!(class(ArchChoice::Auto, (7, 5)), ErrorClass::NoDevice);
    let tiny = DeviceInfo {
        shared_bytes_per_block: 1024,
        ..hopper()
    };
    assert_eq!(
        sound().plan(&tiny).unwrap_err().class(),
        ErrorClass::NoVariant
    );
    assert!(sound().plan(&DeviceInfo::emulator()).is_ok());
}

fn pointers() -> Pointers {
    Pointers {
        q: 0x1000,
        k: 0x2000,
        v: 0x3000,
        out: 0x4000,
        lse: Some(0x5004),
        ..Pointers::default()
    }
}

#[test]
fn alignment_decides_the_flags() {
    const ALL: u32 = Q_ALIGNED | K_ALIGNED | V_ALIGNED | OUT_ALIGNED;
    let flags = |problem: &Problem, pointers: &Pointers| {
        problem
            .plan(&hopper())
            .unwrap()
            .params(pointers)
            .unwrap()
            .flags
    };
    assert_eq!(flags(&sound(), &pointers()), ALL);
    let shifted = Pointers {
        k: 0x2008,
        out: 0x4002,
        ..pointers()
    };
    assert_eq!(flags(&sound(), &shifted), Q_ALIGNED | V_ALIGNED);
    // Rows of 60 halves are 120 bytes: no kernel of the sm_90a tier.
    let odd = Problem::contiguous(DType::F16, shape(64, 60)).lse(true);
    assert_eq!(flags(&odd, &pointers()), Q_ALIGNED | K_ALIGNED);
    // As f32 they are 240.
    let wide = odd.out_dtype(OutDType::F32);
    assert_eq!(
        flags(&wide, &pointers()),
        Q_ALIGNED | K_ALIGNED | OUT_ALIGNED | OUT_F32
    );
    // A stride that is never stepped does not matter.
    let mut single = shape(64, 64);
    (single.batch, single.heads_q, single.heads_kv) = (1, 1, 1);
    let mut problem = Problem::contiguous(DType::F16, single).lse(true);
    (problem.q.strides[0], problem.q.strides[2]) = (7, 3);
    assert_eq!(flags(&problem, &pointers()), ALL);
}

#[test]
fn bad_pointers_are_named() {
    let plan = sound().plan(&hopper()).unwrap();
    let table = [
        ("q", Pointers { q: 0, ..pointers() }),
        (
            "k",
            Pointers {
                k: 0x2001,
                ..pointers()
            },
        ),
        (
            "v",
            Pointers {
                v: u64::MAX - 1,
                ..pointers()
            },
        ),
        (
            "out",
            Pointers {
                out: 0,
                ..pointers()
            },
        ),
        (
            "lse",
            Pointers {
                lse: None,
                ..pointers()
            },
        ),
        (
            "lse",
            Pointers {
                lse: Some(0),
                ..pointers()
            },
        ),
        (
            "lse",
            Pointers {
                lse: Some(0x5002),
                ..pointers()
            },
        ),
    ];
    for (name, pointers) in table {
        match plan.params(&pointers) {
            Err(Error::BadInput { argument, .. }) => assert_eq!(argument, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    let plan = sound().lse(false).plan(&hopper()).unwrap();
    assert!(plan.params(&pointers()).is_err());
    // A tensor that would start below address 0.
    let mut problem = sound();
    problem.q.strides[1] = -problem.q.strides[1];
    let plan = problem.plan(&hopper()).unwrap();
    assert!(plan.params(&pointers()).is_err());
    assert!(
        plan.params(&Pointers {
            q: 1 << 20,
            ..pointers()
        })
        .is_ok()
    );
}

/// Numbers from all over, mostly from near the edges.
fn extents() -> BoxedStrategy<usize> {
    prop_oneof![
        4 => 0usize..300,
        1 => Just(usize::MAX),
        1 => Just(1 << 30),
        1 => Just((1 << 30) + 1),
        1 => Just(1 << 31),
        1 => Just(i64::MAX as usize),
        1 => any::<usize>(),
    ]
    .boxed()
}

fn strides() -> BoxedStrategy<i64> {
    prop_oneof![
        4 => -300i64..300,
        2 => Just(1),
        1 => Just(i64::MIN),
        1 => Just(i64::MAX),
        1 => any::<i64>(),
    ]
    .boxed()
}

// Boxed: the strategies' types would otherwise nest beyond a test thread's stack.
fn layouts() -> BoxedStrategy<TensorLayout> {
    let numbers = (
        prop::array::uniform4(extents()),
        prop::array::uniform4(strides()),
    );
    numbers
        .prop_map(|(shape, strides)| TensorLayout { shape, strides })
        .boxed()
}

fn floats() -> BoxedStrategy<Option<f32>> {
    prop_oneof![
        Just(None),
        any::<f32>().prop_map(Some),
        any::<u32>().prop_map(|x| Some(f32::from_bits(x)))
    ]
    .boxed()
}

type Masks = (Option<CausalAlignment>, Option<u32>, Option<u32>);

fn masks() -> BoxedStrategy<Masks> {
    let causal = prop_oneof![
        Just(None),
        Just(Some(CausalAlignment::BottomRight)),
        Just(Some(CausalAlignment::TopLeft)),
    ];
    (causal, any::<Option<u32>>(), any::<Option<u32>>()).boxed()
}

fn check_all(problem: Problem, addresses: [u64; 5]) {
    let [q, k, v, out, lse] = addresses;
    let pointers = Pointers {
        q,
        k,
        v,
        out,
        lse: problem.lse.then_some(lse),
        ..Pointers::default()
    };
    if let Ok(plan) = problem.plan(&hopper()) {
        assert!(plan.template().exponent_scale >= f32::MIN_POSITIVE);
        assert!(plan.template().exponent_scale.is_finite());
        assert!(plan.template().cap_scale.is_finite());
        let _ = plan.params(&pointers);
    }
    let _ = (problem.q.span(), problem.q.index([1, 2, 3, 4]));
}

proptest! {
    #[test]
    fn no_numbers_make_a_plan_panic(
        layouts in prop::array::uniform4(layouts()),
        scale in floats(), softcap in floats(), masks in masks(), lse: bool, addresses: [u64; 5],
    ) {
        let [q, k, v, out] = layouts;
        let mut problem = Problem::new(DType::Bf16, q, k, v, out).lse(lse);
        (problem.scale, problem.softcap) = (scale, softcap);
        (problem.causal, problem.window.left, problem.window.right) = masks;
        check_all(problem, addresses);
    }

    /// Consistent shapes, so that the checks behind the shapes' are reached.
    #[test]
    fn no_consistent_numbers_make_a_plan_panic(
        sizes in prop::array::uniform5(extents()), dims in prop::array::uniform2(1usize..=512), groups in 1usize..9, half: bool,
        strides in prop::array::uniform4(prop::array::uniform3(strides())),
        scale in floats(), softcap in floats(), masks in masks(), lse: bool, addresses: [u64; 5],
    ) {
        let [batch, seqlen_q, seqlen_k, heads_kv, pick] = sizes;
        let shape = Shape {
            batch, seqlen_q, seqlen_k, heads_kv,
            heads_q: heads_kv.saturating_mul(groups),
            head_dim_qk: dims[0],
            head_dim_v: dims[1],
        };
        let dtype = if half { DType::F16 } else { DType::F32 };
        let mut problem = Problem::contiguous(dtype, shape).lse(lse);
        let Problem { q, k, v, out, .. } = &mut problem;
        for (index, (layout, strides)) in [q, k, v, out].into_iter().zip(strides).enumerate() {
            if pick >> index & 1 == 1 {
                layout.strides[..3].copy_from_slice(&strides);
            }
        }
        (problem.scale, problem.softcap) = (scale, softcap);
        (problem.causal, problem.window.left, problem.window.right) = masks;
        check_all(problem, addresses);
    }
}

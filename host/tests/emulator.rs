//! The whole path on the emulator: problem, plan, launch, download, comparison with the oracle.
#![cfg(feature = "emulator")]

use flashtile::{
    Algorithm, CausalAlignment, DType, Device, EmulatorDevice, Error, ErrorClass, Inputs, OutDType,
    Pointers, Problem, Shape, Stream, TensorLayout, attention, element, kernel, reference,
};

/// Uniform in [-1, 1), the same everywhere.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn tensor(problem: &Problem, layout: &TensorLayout, seed: u32) -> Vec<u8> {
    element::encode(problem.dtype, &noise(layout.span().unwrap(), seed))
}

/// Runs a problem and compares out and lse with the oracle.
fn check(device: &EmulatorDevice, problem: &Problem) {
    let (q, k, v) = (
        tensor(problem, &problem.q, 1),
        tensor(problem, &problem.k, 2),
        tensor(problem, &problem.v, 3),
    );
    let inputs = Inputs {
        q: &q,
        k: &k,
        v: &v,
        ..Inputs::default()
    };
    let outputs = match attention(device, problem, &inputs) {
        Ok(outputs) => outputs,
        Err(error) => panic!("{problem:?}: {error}"),
    };
    let found = reference::compare(problem, &inputs, &outputs).unwrap();
    assert!(found.ok, "{problem:?}: {found:?}");
}

fn shape(seqlen_q: usize, seqlen_k: usize, head_dim: usize) -> Shape {
    Shape {
        batch: 1,
        seqlen_q,
        seqlen_k,
        heads_q: 2,
        heads_kv: 1,
        head_dim_qk: head_dim,
        head_dim_v: head_dim,
    }
}

#[test]
fn algorithms_and_element_types() {
    let device = EmulatorDevice::new();
    for algorithm in Algorithm::ALL {
        for dtype in [DType::F16, DType::Bf16, DType::F32] {
            let problem = Problem::contiguous(dtype, shape(37, 70, 32))
                .algorithm(algorithm)
                .lse(true);
            check(&device, &problem);
            check(
                &device,
                &problem.softcap(3.0).causal(CausalAlignment::BottomRight),
            );
        }
    }
}

#[test]
fn masks() {
    let device = EmulatorDevice::new();
    for (seqlen_q, seqlen_k) in [(1, 1), (70, 20), (20, 150), (5, 0)] {
        let problem = Problem::contiguous(DType::F16, shape(seqlen_q, seqlen_k, 32)).lse(true);
        check(&device, &problem);
        check(&device, &problem.causal(CausalAlignment::BottomRight));
        check(&device, &problem.causal(CausalAlignment::TopLeft));
        check(&device, &problem.window(Some(3), Some(2)));
        check(
            &device,
            &problem
                .window(Some(9), None)
                .causal(CausalAlignment::TopLeft),
        );
    }
}

#[test]
fn scales() {
    let device = EmulatorDevice::new();
    let problem = Problem::contiguous(DType::Bf16, shape(20, 40, 32)).lse(true);
    for scale in [0.0, -0.3, 1.0, 1e-40] {
        check(&device, &problem.scale(scale));
        check(&device, &problem.scale(scale).softcap(0.5));
        check(
            &device,
            &problem
                .scale(scale)
                .softcap(0.5)
                .algorithm(Algorithm::ThreePass),
        );
    }
}

#[test]
fn layouts_and_unpadded_dimensions() {
    let device = EmulatorDevice::new();
    for (head_dim_qk, head_dim_v) in [(1, 1), (20, 27), (40, 33)] {
        let shape = Shape {
            head_dim_qk,
            head_dim_v,
            heads_q: 4,
            heads_kv: 2,
            batch: 2,
            ..shape(19, 35, 0)
        };
        let mut problem = Problem::contiguous(DType::F16, shape).lse(true);
        check(&device, &problem.out_dtype(OutDType::F32));
        problem.q = TensorLayout::heads_first(problem.q.shape);
        problem.out = TensorLayout::heads_first(problem.out.shape);
        // Keys backwards, the same values for every batch.
        problem.k.strides[1] = -problem.k.strides[1];
        problem.v.strides[0] = 0;
        check(&device, &problem);
    }
}

#[test]
fn no_queries_no_launch() {
    let device = EmulatorDevice::new();
    let problem = Problem::contiguous(DType::F16, shape(0, 9, 16)).lse(true);
    check(&device, &problem);
    assert_eq!(device.last_stats(), None);
    let plan = problem.plan(device.info()).unwrap();
    // SAFETY: nothing is launched, so no address is used.
    unsafe { plan.launch(&device, Stream::DEFAULT, &Pointers::default()) }.unwrap();
}

#[test]
fn memory_that_is_too_short_is_a_fault() {
    let device = EmulatorDevice::new();
    let problem = Problem::contiguous(DType::F16, shape(16, 16, 32));
    let plan = problem.plan(device.info()).unwrap();
    let short = device.allocate(64).unwrap();
    let pointers = Pointers {
        q: short,
        k: short,
        v: short,
        out: short,
        ..Pointers::default()
    };
    // SAFETY: the emulator checks every access.
    let error = unsafe { plan.launch(&device, Stream::DEFAULT, &pointers) }.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Fault, "{error}");
}

#[test]
fn overridden_ptx_runs_instead_of_the_archives() {
    let device = EmulatorDevice::new();
    let variant = kernel("fused_f16_d32_sm80").unwrap().entry();
    // SAFETY: the emulator checks every access.
    unsafe { device.override_ptx(variant, ".version 7.8\n.target sm_80\n.address_size 64\n") }
        .unwrap();
    let error = device.load(variant).unwrap_err();
    assert!(matches!(error, Error::Fault { .. }), "{error}");
    assert!(error.to_string().contains("no such entry point"), "{error}");
}

#[test]
fn an_unknown_instruction_is_found_when_the_kernel_is_loaded() {
    let device = EmulatorDevice::new();
    let variant = kernel("fused_f16_d32_sm80").unwrap().entry();
    let ptx = flashtile::ptx(variant).unwrap();
    let at = ptx.rfind("ret;").unwrap();
    let ptx = format!("{}frobnicate.b32 1;\n{}", &ptx[..at], &ptx[at..]);
    // SAFETY: the emulator checks every access.
    unsafe { device.override_ptx(variant, &ptx) }.unwrap();
    let error = device.load(variant).unwrap_err();
    assert!(error.to_string().contains("frobnicate"), "{error}");
}

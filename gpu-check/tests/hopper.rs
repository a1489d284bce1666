//! The sm_90a tier through the library's driver path, over the stand-in for the driver: tensor maps, clusters, and what an
//! older GPU or an older driver lacks. Each test runs the one that it is named after in a process that finds the stand-in.

#![cfg(unix)]

mod common;

use common::{
    in_a_process_with_the_stand_in, stand_in_without, with_driver, with_the_stand_in_and,
};
use flashtile::{
    Arch, ArchChoice, CudaDevice, DType, Device, DeviceBuffer, EmulatorDevice, ErrorClass,
    LaunchConfig, Problem, Shape, Stream, TensorMapSpec, device::cuda::TensorMapArguments,
};
use flashtile_verify::{Case, Tensors, judge, memory};

/// Masks, packed heads, pairs of blocks, several pieces of work, padded head dimensions, f32 output, tensors of all layouts.
const CASES: [&str; 9] = [
    "fused bf16 sm_90a b1 q130 k70 h2/1 d64/64 seed=1",
    "fused f16 sm_90a b2 q37 k333 h6/2 d64/64 causal=bottom-right seed=2",
    "fused bf16 sm_90a b1 q256 k390 h2/2 d128/128 seed=3",
    "fused f16 sm_90a b1 q131 k260 h1/1 d128/128 causal=top-left window=100,3 seed=4",
    "fused bf16 sm_90a b1 q5 k129 h8/1 d80/72 softcap=3 seed=5",
    "fused f16 sm_90a b1 q256 k257 h1/1 d192/128 out-dtype=f32 seed=6",
    "fused bf16 sm_90a b1 q70 k90 h2/1 d256/256 seed=7",
    "fused f16 sm_90a b1 q65 k70 h1/1 d64/512 seed=8",
    "fused bf16 sm_90a b2 q3 k65 h2/2 d512/512 causal=bottom-right seed=9",
];

#[test]
fn cases_of_the_tier() {
    in_a_process_with_the_stand_in("cases_of_the_tier_inner");
}

#[test]
#[ignore = "run by cases_of_the_tier"]
fn cases_of_the_tier_inner() {
    let (gpu, emulator) = (CudaDevice::new(0).unwrap(), EmulatorDevice::new());
    assert_eq!(gpu.info().driver_lacks, None);
    for line in CASES {
        let case: Case = line.parse().unwrap();
        assert_eq!(case.variant().arch, Arch::Sm90a, "{line}");
        let tensors = Tensors::of(&case);
        let results = memory::run(&gpu, &case, &tensors).unwrap();
        judge(&case, &tensors, &results).unwrap();
        let same = memory::run(&emulator, &case, &tensors).unwrap();
        // Another number of multiprocessors, so other blocks do the work; the arithmetic is the same.
        assert_eq!(results.out, same.out, "{line}");
        assert_eq!(results.lse, same.lse, "{line}");
    }
    // The pair of blocks came about.
    let pairs: Case = CASES[2].parse().unwrap();
    let plan = pairs.problem().plan(gpu.info()).unwrap();
    assert_eq!(plan.config().cluster, 2);
}

const CLUSTER: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry ranks(.param .u64 out)\n{\n\
    .reg .b32 %r<4>;\n.reg .b64 %d<3>;\nld.param.u64 %d0, [out];\nmov.u32 %r0, %ctaid.x;\nmul.wide.u32 %d1, %r0, 4;\n\
    add.s64 %d0, %d0, %d1;\nmov.u32 %r1, %cluster_ctarank;\nmov.u32 %r2, %cluster_nctarank;\nshl.b32 %r2, %r2, 8;\n\
    or.b32 %r1, %r1, %r2;\nst.global.u32 [%d0], %r1;\nret;\n}\n";

fn launch(device: &CudaDevice, grid: u32, cluster: u32) -> flashtile::Result<Vec<u32>> {
    let out = DeviceBuffer::zeroed(device, 4 * grid as usize)?;
    let module = device.load_ptx(CLUSTER)?;
    let config = LaunchConfig {
        grid: [grid, 1, 1],
        block: [1, 1, 1],
        shared_bytes: 0,
        cluster,
    };
    let params = out.address().to_le_bytes();
    // SAFETY: the stand-in's emulator checks every access.
    unsafe { module.launch("ranks", &config, &params, Stream::DEFAULT) }?;
    let bytes = out.to_vec()?;
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().map(|&word| u32::from_le_bytes(word)).collect())
}

#[test]
fn clusters() {
    in_a_process_with_the_stand_in("clusters_inner");
}

#[test]
#[ignore = "run by clusters"]
fn clusters_inner() {
    let device = CudaDevice::new(0).unwrap();
    assert_eq!(launch(&device, 4, 1).unwrap(), [0x100; 4]);
    assert_eq!(launch(&device, 4, 2).unwrap(), [0x200, 0x201, 0x200, 0x201]);
    // Clusters divide the grid.
    let error = launch(&device, 3, 2).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Driver);
    assert!(
        error.to_string().contains("CUDA_ERROR_INVALID_VALUE"),
        "{error}"
    );
}

fn spec(address: u64) -> TensorMapSpec {
    TensorMapSpec {
        dtype: DType::Bf16,
        address,
        dims: [64, 1, 100, 3, 2],
        strides: [128, 384, 384, 38_400],
        extents: [64, 1, 64, 1, 1],
        swizzle: 128,
    }
}

fn arguments<'a>(dims: &'a [u64], strides: &'a [u64], ones: &'a [u32]) -> TensorMapArguments<'a> {
    TensorMapArguments {
        element: 6,
        address: 4096,
        dims,
        strides,
        extents: &[64, 1][..ones.len()],
        steps: ones,
        swizzle: 0,
        promotion: 0,
        fill: 0,
    }
}

#[test]
fn tensor_maps() {
    in_a_process_with_the_stand_in("tensor_maps_inner");
}

#[test]
#[ignore = "run by tensor_maps"]
fn tensor_maps_inner() {
    let device = CudaDevice::new(0).unwrap();
    let ours = flashtile::device::emulator::tensor_map(&spec(4096)).unwrap();
    assert_eq!(device.tensor_map(&spec(4096)).unwrap(), ours);
    let error = device.tensor_map(&spec(4096 + 8)).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Driver);
    assert!(error.to_string().contains("tensor_map_encode"), "{error}");
    // Slices that do not belong together never reach the driver.
    let encode = |arguments| device.encode_tensor_map(&arguments);
    assert!(encode(arguments(&[64, 9], &[128], &[1, 1])).is_ok());
    for wrong in [
        arguments(&[], &[], &[]),
        arguments(&[64, 9], &[], &[1, 1]),
        arguments(&[64, 9], &[128], &[1]),
        arguments(&[64], &[128], &[1]),
    ] {
        assert_eq!(encode(wrong).unwrap_err().class(), ErrorClass::BadInput);
    }
}

fn problem() -> Problem {
    let shape = Shape {
        batch: 1,
        seqlen_q: 3,
        seqlen_k: 5,
        heads_q: 1,
        heads_kv: 1,
        head_dim_qk: 64,
        head_dim_v: 64,
    };
    Problem::contiguous(DType::F16, shape)
}

/// `auto` takes the sm_80 tier, and computes; `sm_90a` is an error that says this, and so does the reason given for `auto`.
fn sm_80_alone(device: &CudaDevice, says: &str) {
    let plan = problem().plan(device.info()).unwrap();
    assert_eq!(plan.variant().arch, Arch::Sm80);
    let error = problem()
        .arch(ArchChoice::Sm90a)
        .plan(device.info())
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::NoDevice);
    assert!(error.to_string().contains(says), "{error}");
    if let Some(obstacle) = plan.obstacle() {
        assert!(obstacle.to_string().contains(says), "{obstacle}");
    }
    let case: Case = "fused f16 b1 q3 k5 h1/1 d64/64 seed=1".parse().unwrap();
    let tensors = Tensors::of(&case);
    let results = memory::run(device, &case, &tensors).unwrap();
    judge(&case, &tensors, &results).unwrap();
}

#[test]
fn an_older_gpu() {
    let variables = [("FLASHTILE_STAND_IN_CAPABILITY", "8.0")];
    with_the_stand_in_and("an_older_gpu_inner", &variables);
}

#[test]
#[ignore = "run by an_older_gpu"]
fn an_older_gpu_inner() {
    let device = CudaDevice::new(0).unwrap();
    sm_80_alone(
        &device,
        "has compute capability 8.0; sm_90a kernels need 9.0 exactly (Hopper)",
    );
    assert_eq!(problem().plan(device.info()).unwrap().obstacle(), None);
    let error = device.load_ptx(CLUSTER).unwrap_err();
    assert!(error.to_string().contains("NO_BINARY_FOR_GPU"), "{error}");
}

#[test]
fn a_driver_without_tensor_maps() {
    let driver = stand_in_without("cuTensorMapEncodeTiled");
    let variables = [("FLASHTILE_STAND_IN_CUDA", "11.8")];
    with_driver("a_driver_without_tensor_maps_inner", &driver, &variables);
}

#[test]
#[ignore = "run by a_driver_without_tensor_maps"]
fn a_driver_without_tensor_maps_inner() {
    assert_eq!(flashtile::device::cuda::driver_version(), Ok((11, 8)));
    let device = CudaDevice::new(0).unwrap();
    let lacks = "cuTensorMapEncodeTiled, which comes with CUDA 12.0";
    assert_eq!(device.info().driver_lacks, Some(lacks));
    sm_80_alone(&device, lacks);
    assert!(problem().plan(device.info()).unwrap().obstacle().is_some());
    let error = device.tensor_map(&spec(4096)).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Driver);
    assert!(
        error
            .to_string()
            .contains("cuTensorMapEncodeTiled comes with CUDA 12.0"),
        "{error}"
    );
    // Clusters are older.
    assert_eq!(launch(&device, 2, 2).unwrap(), [0x200, 0x201]);
}

#[test]
fn a_driver_without_clusters() {
    let driver = stand_in_without("cuLaunchKernelEx");
    with_driver("a_driver_without_clusters_inner", &driver, &[]);
}

#[test]
#[ignore = "run by a_driver_without_clusters"]
fn a_driver_without_clusters_inner() {
    let device = CudaDevice::new(0).unwrap();
    sm_80_alone(&device, "cuLaunchKernelEx, which comes with CUDA 11.8");
    assert_eq!(launch(&device, 2, 1).unwrap(), [0x100; 2]);
    let error = launch(&device, 2, 2).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("cuLaunchKernelEx comes with CUDA 11.8"),
        "{error}"
    );
}

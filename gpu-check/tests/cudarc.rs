//! The front door for cudarc, over the stand-in for the driver: see `driver.rs`.

#![cfg(unix)]

mod common;

use common::{door::Step, in_a_process_with_the_stand_in};
use cudarc::driver::{CudaContext, CudaSlice, sys};
use flashtile::{
    CudaDevice, DType, Device, TensorLayout,
    cache::{AppendProblem, CopyProblem, GatherProblem, IndexType, Place, Rows, Sequences},
    front::{
        CopiedCache,
        cudarc::{AppendSlices, CopySlices, GatherSlices, MergeSlices, ServingSlices, launch},
    },
    serving::{CacheLayout, CacheScales, MergeProblem},
};
use half::f16;

fn halves(bits: &[u16]) -> Vec<f16> {
    bits.iter().copied().map(f16::from_bits).collect()
}

#[test]
fn decoding() {
    in_a_process_with_the_stand_in("decoding_inner");
}

#[test]
#[ignore = "run by decoding"]
fn decoding_inner() {
    let step = Step::new();
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let device = CudaDevice::new(0).unwrap();
    let plan = step.problem.plan(device.info()).unwrap();
    let q = stream.clone_htod(&halves(&step.q)).unwrap();
    let k = stream.clone_htod(&halves(&step.k)).unwrap();
    let v = stream.clone_htod(&halves(&step.v)).unwrap();
    let table = stream.clone_htod(&step.table).unwrap();
    let lengths = stream.clone_htod(&[150i32, 7]).unwrap();
    let mut out = stream.alloc_zeros::<f16>(step.q.len() + 8).unwrap();
    let mut lse = stream.alloc_zeros::<f32>(step.lse_len()).unwrap();
    let mut workspace = stream.alloc_zeros::<u8>(plan.workspace_bytes()).unwrap();

    // Views, and slices of more than is needed; then what is refused.
    let short = q.slice(1..);
    let whole = q.slice(..);
    let floats = stream.clone_htod(&[150f32, 7.0]).unwrap();
    for (q, lengths, with_lse, error) in [
        (
            &short,
            (&lengths).into(),
            true,
            "q: expected a slice of at least 512 bytes, found 510 bytes",
        ),
        (
            &whole,
            (&floats).into(),
            true,
            "k_used: expected elements of type i32 or u32, found f32",
        ),
        (
            &whole,
            (&lengths).into(),
            false,
            "lse: expected a slice of 32 bytes, found none",
        ),
        (&whole, (&lengths).into(), true, ""),
    ] {
        let mut part = out.slice_mut(..step.q.len());
        let slices = ServingSlices {
            table: Some((&table).into()),
            k_used: Some(lengths),
            lse: with_lse.then_some((&mut lse).into()),
            workspace: Some((&mut workspace).into()),
            ..ServingSlices::new(q, &k, &v, &mut part)
        };
        let launched = launch(&plan, &device, &stream, slices);
        assert_eq!(
            launched
                .err()
                .map_or(String::new(), |error| error.to_string()),
            error
        );
    }

    let (expected, expected_lse) = step.expected(&[150, 7]);
    let found = stream.clone_dtoh(&out).unwrap();
    assert_eq!(found[..step.q.len()], halves(&expected));
    assert_eq!(found[step.q.len()..], [f16::ZERO; 8]);
    assert_eq!(stream.clone_dtoh(&lse).unwrap(), expected_lse);
}

#[test]
fn replay() {
    in_a_process_with_the_stand_in("replay_inner");
}

/// A graph that is captured once is replayed with other lengths.
#[test]
#[ignore = "run by replay"]
fn replay_inner() {
    let step = Step::new();
    let context = CudaContext::new(0).unwrap();
    // SAFETY: all work of this test is on one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let device = CudaDevice::new(0).unwrap();
    let plan = step.problem.plan(device.info()).unwrap();
    for kernel in plan.kernels() {
        device.load(kernel).unwrap();
    }
    // As bits, which are elements too.
    let q = stream.clone_htod(&step.q).unwrap();
    let k = stream.clone_htod(&step.k).unwrap();
    let v = stream.clone_htod(&step.v).unwrap();
    let table = stream.clone_htod(&step.table).unwrap();
    let mut lengths = stream.alloc_zeros::<i32>(2).unwrap();
    let mut out = stream.alloc_zeros::<u16>(step.q.len()).unwrap();
    let mut lse = stream.alloc_zeros::<f32>(step.lse_len()).unwrap();
    let mut workspace = stream.alloc_zeros::<u8>(plan.workspace_bytes()).unwrap();
    stream
        .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
        .unwrap();
    let slices = ServingSlices {
        table: Some((&table).into()),
        k_used: Some((&lengths).into()),
        lse: Some((&mut lse).into()),
        workspace: Some((&mut workspace).into()),
        ..ServingSlices::new(&q, &k, &v, &mut out)
    };
    launch(&plan, &device, &stream, slices).unwrap();
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    for used in [[160, 1], [0, 65], [33, 128]] {
        stream.memcpy_htod(&used, &mut lengths).unwrap();
        graph.launch().unwrap();
        let (expected, expected_lse) = step.expected(&used);
        assert_eq!(stream.clone_dtoh(&out).unwrap(), expected, "{used:?}");
        assert_eq!(stream.clone_dtoh(&lse).unwrap(), expected_lse, "{used:?}");
    }
}

#[test]
fn caches() {
    in_a_process_with_the_stand_in("caches_inner");
}

#[test]
#[ignore = "run by caches"]
fn caches_inner() {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let device = CudaDevice::new(0).unwrap();
    let numbers: Vec<f16> = (0..3 * 16).map(|i| f16::from_f32(i as f32)).collect();
    let k = stream.clone_htod(&numbers).unwrap();
    let cache = CacheLayout::contiguous([4, 2, 2, 8]);
    let rows = Rows {
        tensor: TensorLayout::contiguous([1, 3, 2, 8]),
        cache,
    };
    let mut k_cache = stream.alloc_zeros::<f16>(4 * 2 * 16).unwrap();
    let slots = stream.clone_htod(&[5i64, -1, 0]).unwrap();
    let append = AppendProblem {
        dtype: DType::F16,
        kv_dtype: DType::F16,
        kv_scales: CacheScales::None,
        k: rows,
        v: None,
        place: Place::Slots,
        rotary: None,
    };
    let plan = append.plan(device.info()).unwrap();
    let slices = AppendSlices {
        slots: Some((&slots).into()),
        ..AppendSlices::new(&k, &mut k_cache)
    };
    launch(&plan, &device, &stream, slices).unwrap();

    // Block 2 of the cache, which has slots 4 and 5, becomes block 3 of another one, and block 1 of its own.
    let copy = CopyProblem::within(DType::F16, &cache, 1, IndexType::I64).unwrap();
    let plan = copy.plan(device.info()).unwrap();
    let mut other = stream.alloc_zeros::<f16>(4 * 2 * 16).unwrap();
    let pairs = stream.clone_htod(&[2i64, 3]).unwrap();
    let slices = CopySlices {
        pairs: (&pairs).into(),
        caches: vec![CopiedCache::Between {
            src: (&k_cache).into(),
            dst: (&mut other).into(),
        }],
    };
    launch(&plan, &device, &stream, slices).unwrap();
    let pairs = stream.clone_htod(&[2i64, 1]).unwrap();
    let slices = CopySlices {
        pairs: (&pairs).into(),
        caches: vec![CopiedCache::Within((&mut k_cache).into())],
    };
    launch(&plan, &device, &stream, slices).unwrap();

    let gather = GatherProblem {
        dtype: DType::F16,
        kv_dtype: DType::F16,
        kv_scales: CacheScales::None,
        k: Rows {
            tensor: TensorLayout::contiguous([4, 2, 2, 8]),
            cache,
        },
        v: None,
        place: Place::Sequences(Sequences {
            batch: 4,
            starts: false,
            used: false,
            first: false,
            pages: None,
        }),
    };
    let plan = gather.plan(device.info()).unwrap();
    let mut gathered = stream.alloc_zeros::<f16>(4 * 2 * 16).unwrap();
    let slices = GatherSlices::new(&mut gathered, &other);
    launch(&plan, &device, &stream, slices).unwrap();
    let read = |slice: &CudaSlice<f16>| stream.clone_dtoh(slice).unwrap();
    let zeros = vec![f16::ZERO; 16];
    let (first, last) = (numbers[..16].to_vec(), numbers[32..].to_vec());
    let blocks = [
        &last, &zeros, &zeros, &first, &zeros, &first, &zeros, &zeros,
    ];
    let concat = |rows: &[&Vec<f16>]| {
        rows.iter()
            .flat_map(|row| row.iter().copied())
            .collect::<Vec<_>>()
    };
    assert_eq!(read(&k_cache), concat(&blocks));
    let copied = [
        &zeros, &zeros, &zeros, &zeros, &zeros, &zeros, &zeros, &first,
    ];
    assert_eq!(read(&other), concat(&copied));
    assert_eq!(read(&gathered), concat(&copied));

    let merge = MergeProblem::new(DType::F16, 2, TensorLayout::contiguous([1, 1, 2, 8]));
    let plan = merge.plan(device.info()).unwrap();
    let parts = stream.clone_htod(&numbers[..32]).unwrap();
    let parts_lse = stream
        .clone_htod(&[0f32, 0.0, 0.0, f32::NEG_INFINITY])
        .unwrap();
    let mut out = stream.alloc_zeros::<f16>(16).unwrap();
    let mut lse = stream.alloc_zeros::<f32>(2).unwrap();
    let slices = MergeSlices {
        parts: (&parts).into(),
        parts_lse: (&parts_lse).into(),
        sink: None,
        out: (&mut out).into(),
        lse: Some((&mut lse).into()),
    };
    launch(&plan, &device, &stream, slices).unwrap();
    // Of head 0 the mean, of head 1 the first.
    let mean = (0..8).map(|i| i as f32 + 8.0);
    let expected: Vec<f32> = mean.chain((8..16).map(|i| i as f32)).collect();
    let found: Vec<f32> = read(&out).into_iter().map(f32::from).collect();
    assert_eq!(found, expected);
}

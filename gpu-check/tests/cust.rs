//! The front door for cust. The program is linked with `libcuda`, so it starts with the driver, or with the stand-in for it if
//! `LD_LIBRARY_PATH` has that first (`.ci/cust`).

mod common;

use common::door::Step;
use cust::{
    memory::{CopyDestination, DeviceBuffer},
    stream::{Stream, StreamFlags},
};
use flashtile::{
    DType, TensorLayout,
    cache::{AppendProblem, Place, Rows},
    front::cust::{AppendSlices, CustDevice, ServingSlices, launch},
    serving::{CacheLayout, CacheScales},
};

fn buffer<T: cust::memory::DeviceCopy>(numbers: &[T]) -> DeviceBuffer<T> {
    DeviceBuffer::from_slice(numbers).unwrap()
}

fn read<T: cust::memory::DeviceCopy + Default + Clone>(buffer: &DeviceBuffer<T>) -> Vec<T> {
    let mut numbers = vec![T::default(); buffer.len()];
    buffer.copy_to(&mut numbers).unwrap();
    numbers
}

#[test]
fn decoding() {
    let step = Step::new();
    let device = CustDevice::new(cust::quick_init().unwrap()).unwrap();
    let stream = Stream::new(StreamFlags::DEFAULT, None).unwrap();
    let plan = step.problem.plan(device.info()).unwrap();
    for kernel in plan.kernels() {
        device.load(kernel).unwrap();
    }
    let (q, k, v) = (buffer(&step.q), buffer(&step.k), buffer(&step.v));
    let (table, lengths) = (buffer(&step.table), buffer(&[150i32, 7]));
    let mut out = buffer(&vec![0u16; step.q.len()]);
    let mut lse = buffer(&vec![0f32; step.lse_len()]);
    let mut workspace = buffer(&vec![0u8; plan.workspace_bytes()]);
    for (bytes, right) in [
        (plan.workspace_bytes() - 1, false),
        (plan.workspace_bytes(), true),
    ] {
        let mut part = workspace.index(..bytes);
        let slices = ServingSlices {
            table: Some((&table).into()),
            k_used: Some((&lengths).into()),
            lse: Some((&mut lse).into()),
            workspace: Some((&mut part).into()),
            ..ServingSlices::new(&q, &k, &v, &mut out)
        };
        // SAFETY: nothing else uses the buffers, which live until the stream is done.
        let launched = unsafe { launch(&plan, &device, &stream, slices) };
        match right {
            true => launched.unwrap(),
            false => {
                let error = launched.unwrap_err().to_string();
                assert!(
                    error.starts_with("workspace: expected a slice of at least"),
                    "{error}"
                );
            }
        }
    }
    stream.synchronize().unwrap();
    let (expected, expected_lse) = step.expected(&[150, 7]);
    assert_eq!(read(&out), expected);
    assert_eq!(read(&lse), expected_lse);

    // Longs are no lengths, and what is there twice is there.
    let longs = buffer(&[150i64, 7]);
    let slices = ServingSlices {
        table: Some((&table).into()),
        k_used: Some((&longs).into()),
        lse: Some((&mut lse).into()),
        workspace: Some((&mut workspace).into()),
        ..ServingSlices::new(&q, &k, &v, &mut out)
    };
    // SAFETY: as above.
    let error = unsafe { launch(&plan, &device, &stream, slices) }.unwrap_err();
    assert_eq!(
        error.to_string(),
        "k_used: expected elements of type i32 or u32, found i64"
    );
}

#[test]
fn appending() {
    let device = CustDevice::new(cust::quick_init().unwrap()).unwrap();
    let stream = Stream::new(StreamFlags::DEFAULT, None).unwrap();
    let append = AppendProblem {
        dtype: DType::Bf16,
        kv_dtype: DType::Bf16,
        kv_scales: CacheScales::None,
        k: Rows {
            tensor: TensorLayout::contiguous([1, 2, 1, 8]),
            cache: CacheLayout::contiguous([3, 2, 1, 8]),
        },
        v: None,
        place: Place::Slots,
        rotary: None,
    };
    let plan = append.plan(device.info()).unwrap();
    let numbers: Vec<u16> = (1..=16).collect();
    let (k, slots) = (buffer(&numbers), buffer(&[4i64, 1]));
    let mut cache = buffer(&[0u16; 48]);
    let slices = AppendSlices {
        slots: Some((&slots).into()),
        ..AppendSlices::new(&k, &mut cache)
    };
    // SAFETY: nothing else uses the buffers, which live until the stream is done.
    unsafe { launch(&plan, &device, &stream, slices).unwrap() };
    stream.synchronize().unwrap();
    let mut expected = vec![0; 48];
    expected[4 * 8..5 * 8].copy_from_slice(&numbers[..8]);
    expected[8..16].copy_from_slice(&numbers[8..]);
    assert_eq!(read(&cache), expected);
}

//! What a launch may not depend on: far addresses, the moment copies land, an unwanted log-sum-exp.

use flashtile::{
    CausalAlignment, DType, Device, DeviceBuffer, EmulatorDevice, Inputs, Outputs, Pointers,
    Problem, Stream, TensorLayout, attention, device::emulator::Options, element, reference,
};
use flashtile_emulator::AsyncTiming;
use flashtile_tests::{
    Case, Tensors, assert_same_bits, check, devices,
    generate::{Axes, case, for_all},
    run, sizes,
};

/// Asynchronous copies may land anywhere between their issue and the wait for them.
#[test]
fn copies_may_land_at_any_time() {
    let with_timing = |async_copies| {
        EmulatorDevice::with_options(Options {
            async_copies,
            ..Options::default()
        })
    };
    let late = with_timing(AsyncTiming::Late);
    let others = [
        with_timing(AsyncTiming::Early),
        with_timing(AsyncTiming::Seeded(1)),
        with_timing(AsyncTiming::Seeded(2)),
    ];
    for_all(80, case(Axes::ALL), |case| {
        let tensors = Tensors::of(case);
        let expected = run(&late, case, &tensors)?;
        for device in &others {
            let found = run(device, case, &tensors)?;
            assert_same_bits(&format!("{case}: out"), &found.out, &expected.out)?;
            assert_same_bits(&format!("{case}: lse"), &found.lse, &expected.lse)?;
        }
        Ok(())
    });
}

/// Many tiles in a row: a decoded token's long past, and a long causal sequence.
#[test]
fn long_sequences() {
    for dtype in [DType::F16, DType::Bf16, DType::F32] {
        check(&Case::new(dtype, sizes(1, 4099, [4, 1], 64))).unwrap();
        let causal = Case::new(dtype, sizes(700, 700, [1, 1], 64));
        check(&causal.causal(CausalAlignment::BottomRight)).unwrap();
    }
}

/// Without a log-sum-exp, and through the library's own upload, the output is the same.
#[test]
fn attention_is_a_launch() {
    for_all(40, case(Axes::SMALL), |case| {
        let tensors = Tensors::of(case);
        let encode = |values: &[f32]| element::encode(case.dtype, values);
        let (q, k, v) = (encode(&tensors.q), encode(&tensors.k), encode(&tensors.v));
        let inputs = Inputs {
            q: &q,
            k: &k,
            v: &v,
        };
        for device in devices() {
            let expected = run(&**device, case, &tensors)?;
            for lse in [false, true] {
                let problem = case.contiguous_problem().lse(lse);
                let found = attention(&**device, &problem, &inputs)
                    .map_err(|error| format!("{case}: {error}"))?;
                let out = element::gather(case.out_element(), &found.out, &problem.out)
                    .map_err(|error| error.to_string())?;
                assert_same_bits(&format!("{case}: out"), &out, &expected.out)?;
                if lse != found.lse.is_some() {
                    return Err(format!("{case}: lse wanted {lse}, but {:?}", found.lse));
                }
            }
        }
        Ok(())
    });
}

/// Two buffers whose addresses are more than 4 GiB apart, each of these bytes.
fn far_apart(device: &dyn Device, bytes: &[u8]) -> [DeviceBuffer<'_>; 2] {
    let first = DeviceBuffer::from_bytes(device, bytes).unwrap();
    // The emulator hands out no address twice, so what is freed at once still takes up addresses.
    for _ in 0..17 {
        drop(DeviceBuffer::uninitialized(device, 256 << 20).unwrap());
    }
    let second = DeviceBuffer::from_bytes(device, bytes).unwrap();
    assert!(second.address() - first.address() > 1 << 32);
    [first, second]
}

/// Offsets are 64-bit in every dimension: the two halves of each tensor lie in two distant buffers.
#[test]
fn strides_beyond_four_gigabytes() {
    let device = EmulatorDevice::new();
    let near = TensorLayout::contiguous([1, 1, 1, 32]);
    for dim in [0, 1, 2] {
        let mut shape = sizes(1, 1, [1, 1], 32);
        match dim {
            0 => shape.batch = 2,
            1 => (shape.seqlen_q, shape.seqlen_k) = (2, 2),
            _ => (shape.heads_q, shape.heads_kv) = (2, 2),
        }
        let case = Case::new(DType::F16, shape);
        let tensors = Tensors::of(&case);
        let values = [&tensors.q, &tensors.k, &tensors.v].map(|x| element::encode(DType::F16, x));
        let buffers = [64, 64, 64, 64].map(|bytes| far_apart(&device, &vec![0xff; bytes]));
        let mut problem = case.contiguous_problem();
        let layouts = [
            &mut problem.q,
            &mut problem.k,
            &mut problem.v,
            &mut problem.out,
        ];
        for (layout, [first, second]) in layouts.into_iter().zip(&buffers) {
            layout.strides = near.strides;
            layout.strides[dim] = ((second.address() - first.address()) / 2) as i64;
        }
        let mut buffers = buffers;
        for (halves, bytes) in buffers.iter_mut().zip(&values) {
            halves[0].write(&bytes[..64]).unwrap();
            halves[1].write(&bytes[64..]).unwrap();
        }
        let out = launch(&device, &problem.lse(false), &buffers);
        let outputs = Outputs { out, lse: None };
        let contiguous = case.contiguous_problem().lse(false);
        let inputs = Inputs {
            q: &values[0],
            k: &values[1],
            v: &values[2],
        };
        let found = reference::compare(&contiguous, &inputs, &outputs).unwrap();
        assert!(found.ok, "dimension {dim}: {found:?}");
    }
}

/// Launches on buffers whose first halves begin the tensors, and returns out's halves together.
fn launch(device: &dyn Device, problem: &Problem, buffers: &[[DeviceBuffer<'_>; 2]; 4]) -> Vec<u8> {
    let plan = problem.plan(device.info()).unwrap();
    let [q, k, v, out] = [0, 1, 2, 3].map(|at| buffers[at][0].address());
    let pointers = Pointers {
        q,
        k,
        v,
        out,
        ..Pointers::default()
    };
    // SAFETY: the strides lead from each tensor's first buffer to its second, and from row to row in
    // them; the device is idle when they are read.
    unsafe { plan.launch(device, Stream::DEFAULT, &pointers) }.unwrap();
    device.synchronize().unwrap();
    let [first, second] = &buffers[3];
    [first.to_vec().unwrap(), second.to_vec().unwrap()].concat()
}

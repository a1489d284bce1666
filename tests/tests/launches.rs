//! What a launch may not depend on: far addresses, the moment copies land, an unwanted log-sum-exp.

use flashtile::{
    ArchChoice, CausalAlignment, DType, Device, DeviceBuffer, EmulatorDevice, Inputs, Outputs,
    Pointers, Problem, Stream, TensorLayout, attention, device::emulator::Options, element,
    reference,
};
use flashtile_emulator::AsyncTiming;
use flashtile_tests::{
    Case, Distribution, Tensors, assert_same_bits, check, devices_for,
    generate::{Axes, case, for_all, for_each_variant},
    memory::images,
    run, sizes,
};

fn with_timing(async_copies: AsyncTiming) -> EmulatorDevice {
    EmulatorDevice::with_options(Options {
        async_copies,
        ..Options::default()
    })
}

/// Asynchronous copies may land anywhere between their issue and the wait for them.
#[test]
fn copies_may_land_at_any_time() {
    let late = with_timing(AsyncTiming::Late);
    let others = [
        with_timing(AsyncTiming::Early),
        with_timing(AsyncTiming::Seeded(1)),
        with_timing(AsyncTiming::Seeded(2)),
    ];
    for_each_variant(1, Axes::ALL, |case| {
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
        for arch in [ArchChoice::Sm80, ArchChoice::Auto] {
            let case = |q, k, heads| Case::new(dtype, sizes(q, k, heads, 64)).arch(arch);
            check(&case(1, 4099, [4, 1])).unwrap();
            let causal = case(700, 700, [1, 1]).causal(CausalAlignment::BottomRight);
            check(&causal).unwrap();
        }
    }
}

/// Without a log-sum-exp, and through the library's own upload, the output is the same.
#[test]
fn attention_is_a_launch() {
    for_all(40, case(Axes::SMALL), |case| {
        let tensors = Tensors::of(case);
        // These cases have no offsets.
        let [q, k, v, _] = images(case, &tensors).map(|image| image.bytes);
        let [q_scale, k_scale, v_scale] = &tensors.scales;
        let inputs = Inputs {
            q: &q,
            k: &k,
            v: &v,
            q_scale,
            k_scale,
            v_scale,
        };
        for (_, device) in devices_for(case) {
            let expected = run(device, case, &tensors)?;
            for lse in [false, true] {
                let problem = case.problem().lse(lse);
                let found = attention(device, &problem, &inputs)
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

/// Two sets of four buffers of 64 bytes each, more than 4 GiB from one set to the other.
fn far_apart(device: &dyn Device) -> [Vec<DeviceBuffer<'_>>; 2] {
    let set = || -> Vec<_> {
        let buffers = (0..4).map(|_| DeviceBuffer::from_bytes(device, &[0xff; 64]));
        buffers.collect::<Result<_, _>>().unwrap()
    };
    let first = set();
    // The emulator hands out no address twice, so what is freed at once still takes up addresses.
    for _ in 0..17 {
        drop(DeviceBuffer::uninitialized(device, 256 << 20).unwrap());
    }
    let second = set();
    assert!(second[0].address() - first[3].address() > 1 << 32);
    [first, second]
}

/// Offsets are 64-bit in every dimension: the two halves of each tensor lie in two distant buffers.
#[test]
fn strides_beyond_four_gigabytes() {
    let device = EmulatorDevice::new();
    let [mut first, mut second] = far_apart(&device);
    let near = TensorLayout::contiguous([1, 1, 1, 32]);
    for (dim, arch) in [0, 1, 2]
        .into_iter()
        .flat_map(|dim| [(dim, ArchChoice::Sm80), (dim, ArchChoice::Sm90a)])
    {
        let mut shape = sizes(1, 1, [1, 1], 32);
        match dim {
            0 => shape.batch = 2,
            1 => (shape.seqlen_q, shape.seqlen_k) = (2, 2),
            _ => (shape.heads_q, shape.heads_kv) = (2, 2),
        }
        let case = Case::new(DType::F16, shape).data(Distribution::Normal, dim as u64);
        let tensors = Tensors::of(&case);
        let values = [&tensors.q, &tensors.k, &tensors.v].map(|x| element::encode(DType::F16, x));
        for (at, bytes) in values.iter().enumerate() {
            first[at].write(&bytes[..64]).unwrap();
            second[at].write(&bytes[64..]).unwrap();
        }
        let mut problem = case.contiguous_problem().lse(false).arch(arch);
        let [q, k, v, out] = [
            &mut problem.q,
            &mut problem.k,
            &mut problem.v,
            &mut problem.out,
        ];
        for (at, layout) in [q, k, v, out].into_iter().enumerate() {
            layout.strides = near.strides;
            layout.strides[dim] = ((second[at].address() - first[at].address()) / 2) as i64;
        }
        let out = launch(&device, &problem, &first, &second);
        let outputs = Outputs { out, lse: None };
        let contiguous = case.contiguous_problem().lse(false);
        let inputs = Inputs {
            q: &values[0],
            k: &values[1],
            v: &values[2],
            ..Inputs::default()
        };
        let found = reference::compare(&contiguous, &inputs, &outputs).unwrap();
        assert!(found.ok, "dimension {dim}, {arch:?}: {found:?}");
    }
}

/// Launches on tensors that begin in `first` and end in `second`, and returns both halves of out.
fn launch(
    device: &dyn Device,
    problem: &Problem,
    first: &[DeviceBuffer<'_>],
    second: &[DeviceBuffer<'_>],
) -> Vec<u8> {
    let plan = problem.plan(device.info()).unwrap();
    let pointers = Pointers {
        q: first[0].address(),
        k: first[1].address(),
        v: first[2].address(),
        out: first[3].address(),
        ..Pointers::default()
    };
    // SAFETY: the strides lead from each tensor's first buffer to its second, which hold a row each;
    // the device is idle when they are read.
    unsafe { plan.launch(device, Stream::DEFAULT, &pointers) }.unwrap();
    device.synchronize().unwrap();
    [first[3].to_vec().unwrap(), second[3].to_vec().unwrap()].concat()
}

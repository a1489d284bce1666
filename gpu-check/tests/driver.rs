//! The library's driver path, over the stand-in for the driver. A process sees the stand-in only if it is there when
//! the process starts, so each test here runs the one that it is named after in a process of its own.

#![cfg(unix)]

mod common;

use common::in_a_process_with_the_stand_in;
use flashtile::{CudaDevice, Device, DeviceBuffer, ErrorClass, LaunchConfig, Stream};

const STORE: &str = ".version 7.8\n.target sm_80\n.address_size 64\n\
    .visible .entry store(.param .u32 value, .param .u64 out)\n{\n.reg .b32 %r<2>;\n.reg .b64 %d<2>;\n\
    ld.param.u32 %r0, [value];\nld.param.u64 %d0, [out];\nst.global.u32 [%d0], %r0;\nret;\n}\n";

const ONE: LaunchConfig = LaunchConfig {
    grid: [1, 1, 1],
    block: [1, 1, 1],
    shared_bytes: 0,
    cluster: 1,
};

fn params(value: u32, address: u64) -> Vec<u8> {
    // The address is at its own alignment.
    [&value.to_le_bytes()[..], &[0; 4], &address.to_le_bytes()].concat()
}

fn launch(device: &CudaDevice, config: &LaunchConfig, params: &[u8]) -> flashtile::Result<()> {
    let module = device.load_ptx(STORE)?;
    // SAFETY: the stand-in's emulator checks every access.
    unsafe { module.launch("store", config, params, Stream::DEFAULT) }
}

#[test]
fn raw_modules() {
    in_a_process_with_the_stand_in("raw_modules_inner");
}

#[test]
#[ignore = "run by raw_modules"]
fn raw_modules_inner() {
    let device = CudaDevice::new(0).unwrap();
    let out = DeviceBuffer::zeroed(&device, 4).unwrap();
    launch(&device, &ONE, &params(0x1234_5678, out.address())).unwrap();
    assert_eq!(out.to_vec().unwrap(), 0x1234_5678u32.to_le_bytes());

    // The compiler's words come through.
    let error = device
        .load_ptx(&STORE.replace("st.global", "st.nowhere"))
        .unwrap_err();
    assert_eq!(error.class(), ErrorClass::Fault);
    assert!(error.to_string().contains("nowhere"), "{error}");
    assert!(device.load_ptx("a 0 byte\0").is_err());
    // SAFETY: nothing is launched.
    let missing = unsafe {
        device
            .load_ptx(STORE)
            .unwrap()
            .launch("restore", &ONE, &[], Stream::DEFAULT)
    };
    assert_eq!(missing.unwrap_err().class(), ErrorClass::Fault);

    // Too few bytes of parameters, and more shared memory than a block can have.
    assert!(launch(&device, &ONE, &params(1, out.address())[..12]).is_err());
    let large = LaunchConfig {
        shared_bytes: 228 << 10,
        ..ONE
    };
    assert!(launch(&device, &large, &params(1, out.address())).is_err());
    // Past 48 KiB it takes the attribute.
    let ample = LaunchConfig {
        shared_bytes: 200 << 10,
        ..ONE
    };
    launch(&device, &ample, &params(2, out.address())).unwrap();
    assert_eq!(out.to_vec().unwrap(), 2u32.to_le_bytes());
}

#[test]
fn contexts() {
    in_a_process_with_the_stand_in("contexts_inner");
}

#[test]
#[ignore = "run by contexts"]
fn contexts_inner() {
    // SAFETY: no context is current, which is what is asked.
    let none = unsafe { CudaDevice::from_current_context() };
    assert_eq!(none.unwrap_err().class(), ErrorClass::NoDevice);
    let owner = CudaDevice::new(0).unwrap();
    // SAFETY: the owner lives to the end of the test.
    let borrower = unsafe { CudaDevice::from_raw_context(owner.raw_context()) }.unwrap();
    let out = DeviceBuffer::zeroed(&borrower, 4).unwrap();
    launch(&borrower, &ONE, &params(3, out.address())).unwrap();
    assert_eq!(out.to_vec().unwrap(), 3u32.to_le_bytes());
    drop(out);
    drop(borrower);
    // The borrower left the context alone, and every push was undone.
    DeviceBuffer::zeroed(&owner, 4).unwrap();
    // SAFETY: as above.
    assert!(unsafe { CudaDevice::from_current_context() }.is_err());
    // Another thread has no context of its own, and needs none.
    std::thread::scope(|scope| {
        scope.spawn(|| DeviceBuffer::zeroed(&owner, 4).map(drop).unwrap());
    });
    assert_eq!(
        CudaDevice::new(1).unwrap_err().class(),
        ErrorClass::NoDevice
    );
}

#[test]
fn faults() {
    in_a_process_with_the_stand_in("faults_inner");
}

#[test]
#[ignore = "run by faults"]
fn faults_inner() {
    let device = CudaDevice::new(0).unwrap();
    let out = DeviceBuffer::zeroed(&device, 4).unwrap();
    // The launch itself succeeds, as on a GPU: what waits for it gets the fault.
    let module = device.load_ptx(STORE).unwrap();
    // SAFETY: the stand-in's emulator checks every access.
    unsafe { module.launch("store", &ONE, &params(1, 4), Stream::DEFAULT) }.unwrap();
    let error = device.synchronize().unwrap_err();
    assert_eq!(error.class(), ErrorClass::Fault);
    assert!(
        error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"),
        "{error}"
    );
    // So does everything after; and nothing panics when all is dropped.
    assert_eq!(out.to_vec().unwrap_err().class(), ErrorClass::Fault);
    assert_eq!(device.allocate(4).unwrap_err().class(), ErrorClass::Fault);
}

#[test]
fn streams_events_and_graphs() {
    in_a_process_with_the_stand_in("streams_events_and_graphs_inner");
}

#[test]
#[ignore = "run by streams_events_and_graphs"]
fn streams_events_and_graphs_inner() {
    let device = CudaDevice::new(0).unwrap();
    assert_eq!(device.l2_bytes().unwrap(), 1 << 20);
    assert_eq!(device.pci_bus_id().unwrap(), "0000:00:00.0");
    let module = device.load_ptx(STORE).unwrap();
    let mut out = DeviceBuffer::zeroed(&device, 4).unwrap();
    let copy = DeviceBuffer::zeroed(&device, 4).unwrap();
    let stream = device.stream().unwrap();
    let enqueue = |value: u32, address: u64| {
        // SAFETY: the stand-in's emulator checks every access.
        unsafe { module.launch("store", &ONE, &params(value, address), stream.stream()) }
    };

    // What is taken down is not done, whatever else is enqueued; a graph does it as often as it is launched.
    let graph = stream
        .capture(|| {
            enqueue(7, out.address())?;
            enqueue(8, out.address())
        })
        .unwrap();
    assert_eq!(out.to_vec().unwrap(), [0; 4]);
    let (start, end) = (device.event().unwrap(), device.event().unwrap());
    // An event that was never recorded has no time.
    assert!(end.seconds_since(&start).is_err());
    stream.record(&start).unwrap();
    for _ in 0..2 {
        out.write(&[0; 4]).unwrap();
        // SAFETY: the buffer is still allocated, and nothing else runs.
        unsafe { stream.launch(&graph) }.unwrap();
        assert_eq!(out.to_vec().unwrap(), 8u32.to_le_bytes());
    }
    // SAFETY: both buffers have four bytes, and nothing else runs.
    unsafe { stream.copy(copy.address(), out.address(), 4) }.unwrap();
    stream.record(&end).unwrap();
    end.synchronize().unwrap();
    assert_eq!(copy.to_vec().unwrap(), 8u32.to_le_bytes());
    let seconds = end.seconds_since(&start).unwrap();
    assert!(seconds > 0.0 && seconds < 60.0, "{seconds}");

    // Waiting cannot be taken down; the stream works on after the attempt, as it does after work that fails.
    let waiting = stream.capture(|| device.synchronize()).unwrap_err();
    assert!(
        waiting
            .to_string()
            .contains("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"),
        "{waiting}"
    );
    assert!(
        stream
            .capture(|| enqueue(1, 0).and(launch(&device, &ONE, &[])))
            .is_err()
    );
    enqueue(9, out.address()).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(out.to_vec().unwrap(), 9u32.to_le_bytes());

    // The stand-in has done everything already; it does refuse streams that are none.
    let order = |before, after| {
        // SAFETY: the stand-in knows its streams, and refuses the others.
        unsafe { device.order(before, after) }
    };
    let other = device.stream().unwrap();
    for (before, after) in [(&stream, &other), (&other, &stream), (&stream, &stream)] {
        order(before.stream(), after.stream()).unwrap();
    }
    order(Stream::DEFAULT, other.stream()).unwrap();
    let none = Stream::from_raw(std::ptr::without_provenance_mut(8));
    assert!(order(none, other.stream()).is_err());
    assert!(order(other.stream(), none).is_err());
    assert!(device.owns(stream.stream()).unwrap() && device.owns(Stream::DEFAULT).unwrap());
    assert!(device.owns(none).is_err());
}

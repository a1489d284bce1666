//! Every device there is.

use std::sync::{Mutex, PoisonError};

use flashtile::{CudaDevice, Device, EmulatorDevice};
use flashtile_verify::Case;

type Devices = &'static [Box<dyn Device>];

/// Devices that no thread uses now.
static IDLE: Mutex<Vec<Devices>> = Mutex::new(Vec::new());

/// A thread's devices, which others may have when it ends.
struct Lent(Devices);

impl Drop for Lent {
    fn drop(&mut self) {
        IDLE.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.0);
    }
}

thread_local! {
    static DEVICES: Lent = {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Lent(idle.unwrap_or_else(|| Vec::leak(open())))
    };
}

/// The emulator, then each GPU of this machine. Each thread has its own: an emulator's allocations wait
/// for its launches to end.
pub fn devices() -> Devices {
    DEVICES.with(|lent| lent.0)
}

fn open() -> Vec<Box<dyn Device>> {
    let mut devices: Vec<Box<dyn Device>> = vec![Box::new(EmulatorDevice::new())];
    // No driver and no GPU is the ordinary case; a GPU that cannot be opened is a failure.
    let gpus = flashtile::device::cuda::devices().map_or(0, |found| found.len());
    for ordinal in 0..gpus as u32 {
        match CudaDevice::new(ordinal) {
            Ok(device) => devices.push(Box::new(device)),
            Err(error) => panic!("GPU {ordinal}: {error}"),
        }
    }
    devices
}

/// The command that repeats a case on the device of this number.
pub fn command(case: &Case, number: usize) -> String {
    let device = match number.checked_sub(1) {
        None => "emulator".into(),
        Some(ordinal) => format!("cuda:{ordinal}"),
    };
    format!("flashtile verify --device {device} --case '{case}'")
}

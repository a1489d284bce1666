//! Every device there is.

use std::sync::OnceLock;

use flashtile::{CudaDevice, Device, EmulatorDevice};

/// The emulator, then each GPU of this machine.
pub fn devices() -> &'static [Box<dyn Device>] {
    static DEVICES: OnceLock<Vec<Box<dyn Device>>> = OnceLock::new();
    DEVICES.get_or_init(|| {
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
    })
}

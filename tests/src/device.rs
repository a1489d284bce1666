//! Every device there is.

use std::sync::OnceLock;

use flashtile::{CudaDevice, Device, EmulatorDevice};

/// The emulator, then each GPU of this machine; `FLASHTILE_TEST_DEVICE` (`all`, `emulator` or `cuda`) may
/// leave out one of the two.
pub fn devices() -> &'static [Box<dyn Device>] {
    static DEVICES: OnceLock<Vec<Box<dyn Device>>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let choice = std::env::var("FLASHTILE_TEST_DEVICE").unwrap_or_else(|_| "all".into());
        let (emulator, cuda) = match choice.as_str() {
            "all" => (true, true),
            "emulator" => (true, false),
            "cuda" => (false, true),
            other => {
                panic!("FLASHTILE_TEST_DEVICE: expected all, emulator or cuda, found `{other}`")
            }
        };
        let mut devices: Vec<Box<dyn Device>> = Vec::new();
        if emulator {
            devices.push(Box::new(EmulatorDevice::new()));
        }
        // No driver and no GPU is the ordinary case; a GPU that cannot be opened is a failure.
        let gpus = match flashtile::device::cuda::devices() {
            Ok(found) if cuda => found.len(),
            _ => 0,
        };
        for ordinal in 0..gpus as u32 {
            match CudaDevice::new(ordinal) {
                Ok(device) => devices.push(Box::new(device)),
                Err(error) => panic!("GPU {ordinal}: {error}"),
            }
        }
        assert!(
            !devices.is_empty(),
            "FLASHTILE_TEST_DEVICE={choice}: there is no GPU"
        );
        devices
    })
}

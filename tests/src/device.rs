//! Every device there is.

use std::sync::{Mutex, PoisonError};

use flashtile::{
    CudaDevice, Device, EmulatorDevice,
    device::emulator::{Options, Schedule},
};
use flashtile_verify::Case;

/// Most instructions that a warp executes at a time under `FLASHTILE_TEST_SCHEDULE`.
const SHARE: u32 = 40;

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
    let mut devices: Vec<Box<dyn Device>> = vec![Box::new(emulator())];
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

/// The emulator as the environment wants it.
fn emulator() -> EmulatorDevice {
    let schedule = match number("FLASHTILE_TEST_SCHEDULE") {
        Some(seed) => Schedule::Seeded { seed, share: SHARE },
        None => Schedule::InOrder,
    };
    EmulatorDevice::with_options(Options {
        memory_limit: 8 << 30,
        schedule,
        sanitize: sanitizes(),
        ..Options::default()
    })
}

/// Whether the suite's emulator has its sanitizer on.
fn sanitizes() -> bool {
    number("FLASHTILE_TEST_SANITIZE").is_some_and(|on| on != 0)
}

/// A number from the environment, where one is set.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    // A mistyped variable would otherwise test something else than was asked for.
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}: expected a number, found `{text}`")))
}

/// The command that repeats a case on the device of this number.
pub fn command(case: &Case, number: usize) -> String {
    let device = match number.checked_sub(1) {
        None => "emulator".into(),
        Some(ordinal) => format!("cuda:{ordinal}"),
    };
    let sanitize = if number == 0 && sanitizes() {
        " --sanitize"
    } else {
        ""
    };
    format!("flashtile verify --device {device}{sanitize} --case '{case}'")
}

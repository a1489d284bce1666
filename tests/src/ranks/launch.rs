//! Ranks as threads, each with an emulator of its own.

use std::{
    sync::{Mutex, PoisonError},
    thread,
};

use flashtile::{Device, EmulatorDevice};

use super::exchange::{LocalExchange, hub};
use crate::device::emulators;

/// Emulators that nobody uses now.
static IDLE: Mutex<Vec<EmulatorDevice>> = Mutex::new(Vec::new());

/// Emulators with their sanitizer on, which others may have afterwards: with the kernels that they have loaded.
pub struct Devices(Vec<EmulatorDevice>);

impl Drop for Devices {
    fn drop(&mut self) {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        idle.append(&mut self.0);
    }
}

impl Devices {
    /// One for each rank.
    pub fn all(&self) -> Vec<&dyn Device> {
        let all = self.0.iter();
        all.map(|device| device as &dyn Device).collect()
    }
}

/// So many emulators as the environment wants them, if it wants any.
pub fn lend(world: usize) -> Option<Devices> {
    let wanted = crate::devices()
        .iter()
        .any(|device| device.info().kind == flashtile::DeviceKind::Emulator);
    let idle = || {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        idle.pop()
    };
    let open = || idle().unwrap_or_else(|| emulators(true).swap_remove(0));
    wanted.then(|| Devices((0..world).map(|_| open()).collect()))
}

/// Does what each rank does, all at the same time. A rank's exchange is gone when it is done.
///
/// # Panics
/// If a rank does.
pub fn ranks<T: Send>(
    devices: &Devices,
    rank: impl Fn(usize, &dyn Device, LocalExchange<'_>) -> T + Sync,
) -> Vec<T> {
    let devices = devices.all();
    let ends = hub(&devices);
    let rank = &rank;
    thread::scope(|scope| {
        let threads: Vec<_> = devices
            .iter()
            .zip(ends)
            .enumerate()
            .map(|(number, (&device, end))| scope.spawn(move || rank(number, device, end)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

//! Every device there is.

use std::{env, str::FromStr, sync::OnceLock};

use flashtile::{
    CudaDevice, Device, EmulatorDevice,
    device::emulator::{Numerics, Options, TensorCores},
};

/// The emulator, with each of the arithmetics that the environment asks for, then each GPU of this machine.
///
/// `FLASHTILE_TEST_NUMERICS` lists models of tensor cores (`fast`, `ampere`, `hopper`; else `fast`), separated by
/// commas; `FLASHTILE_TEST_PERTURB` is the seed by which approximate functions are off.
pub fn devices() -> &'static [Box<dyn Device>] {
    static DEVICES: OnceLock<Vec<Box<dyn Device>>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let perturb = variable("FLASHTILE_TEST_PERTURB").map(|seed| parse(&seed));
        let models = variable("FLASHTILE_TEST_NUMERICS").unwrap_or_else(|| "fast".into());
        let mut devices: Vec<Box<dyn Device>> = models
            .split(',')
            .map(|model| emulator(parse(model.trim()), perturb))
            .collect();
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

fn emulator(tensor_cores: TensorCores, perturb: Option<u64>) -> Box<dyn Device> {
    Box::new(EmulatorDevice::with_options(Options {
        memory_limit: 8 << 30,
        numerics: Numerics {
            tensor_cores,
            perturb,
        },
        ..Options::default()
    }))
}

/// An environment variable that is set, and not to nothing.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// A mistyped variable would otherwise test something else than was asked for.
fn parse<T: FromStr<Err: std::fmt::Display>>(value: &str) -> T {
    value
        .parse()
        .unwrap_or_else(|error| panic!("`{value}` in the environment: {error}"))
}

//! Every device there is.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `FLASHTILE_TEST_DEVICE` | `emulator` or `cuda` alone | `all` |
//! | `FLASHTILE_TEST_NUMERICS` | tensor cores of the emulator, separated by commas: `fast`, `ampere`, `hopper` | `fast` |
//! | `FLASHTILE_TEST_PERTURB` | seed by which the emulator's approximate functions are off | none |
//! | `FLASHTILE_TEST_SANITIZE` | 1: the emulator sanitizes | 0 |
//! | `FLASHTILE_TEST_SCHEDULE` | seed of the order in which the emulator's warps run | in order |

use std::{
    env,
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use flashtile::{
    Arch, ArchChoice, CudaDevice, Device, DeviceKind, EmulatorDevice,
    device::emulator::{Numerics, Options, Schedule, TensorCores},
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

/// The emulator, with each of the arithmetics that the environment asks for, then each GPU of this machine. Each thread
/// has its own: an emulator's allocations wait for its launches to end.
pub fn devices() -> Devices {
    DEVICES.with(|lent| lent.0)
}

/// The devices that run the tier of kernels that the case asks for, or that alone has one for it, with their numbers.
pub fn devices_for(case: &Case) -> impl Iterator<Item = (usize, &'static dyn Device)> + use<> {
    let needs_hopper = match case.arch {
        ArchChoice::Sm90a => true,
        ArchChoice::Sm80 => false,
        ArchChoice::Auto => case.arch(ArchChoice::Sm80).planned().is_err(),
    };
    let devices = devices().iter().map(|device| &**device).enumerate();
    devices.filter(move |(_, device)| !needs_hopper || device.info().supports(Arch::Sm90a).is_ok())
}

fn open() -> Vec<Box<dyn Device>> {
    let choice = variable("FLASHTILE_TEST_DEVICE").unwrap_or_else(|| "all".into());
    let (emulators, gpus) = match choice.as_str() {
        "all" => (true, true),
        "emulator" => (true, false),
        "cuda" => (false, true),
        other => panic!("FLASHTILE_TEST_DEVICE: expected all, emulator or cuda, found `{other}`"),
    };
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    if emulators {
        let all = self::emulators(sanitizes()).into_iter();
        devices.extend(all.map(|device| Box::new(device) as Box<dyn Device>));
    }
    // No driver and no GPU is the ordinary case; a GPU that cannot be opened is a failure.
    let found = match flashtile::device::cuda::devices() {
        Ok(found) if gpus => found.len(),
        _ => 0,
    };
    for ordinal in 0..found as u32 {
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
}

/// An emulator with each of the arithmetics that the environment asks for.
pub fn emulators(sanitize: bool) -> Vec<EmulatorDevice> {
    let models = variable("FLASHTILE_TEST_NUMERICS").unwrap_or_else(|| "fast".into());
    let models = models.split(',').map(|model| parse(model.trim()));
    models.map(|model| emulator(model, sanitize)).collect()
}

/// An emulator as the environment wants it.
fn emulator(tensor_cores: TensorCores, sanitize: bool) -> EmulatorDevice {
    let schedule = match variable("FLASHTILE_TEST_SCHEDULE") {
        Some(seed) => Schedule::Seeded {
            seed: parse(&seed),
            share: SHARE,
        },
        None => Schedule::InOrder,
    };
    EmulatorDevice::with_options(Options {
        memory_limit: 8 << 30,
        schedule,
        sanitize,
        numerics: Numerics {
            tensor_cores,
            perturb: variable("FLASHTILE_TEST_PERTURB").map(|seed| parse(&seed)),
        },
        ..Options::default()
    })
}

/// Whether the suite's emulator has its sanitizer on.
fn sanitizes() -> bool {
    variable("FLASHTILE_TEST_SANITIZE").is_some_and(|on| parse::<u8>(&on) != 0)
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

/// The command that repeats a case on the device of this number.
pub fn command(case: &Case, number: usize) -> String {
    let gpu = |device: &dyn Device| device.info().kind != DeviceKind::Emulator;
    let device = match gpu(&*devices()[number]) {
        true => {
            let before = devices()[..number].iter().filter(|device| gpu(&***device));
            format!("cuda:{}", before.count())
        }
        // `flashtile verify` has the plain emulator and the sanitizer, nothing else.
        false if !settings(&MODELS).is_empty() => {
            return format!(
                "{}FLASHTILE_TEST_CASE='{case}' {CARGO} repeat",
                settings(&ALL)
            );
        }
        false if sanitizes() => "emulator --sanitize".into(),
        false => "emulator".into(),
    };
    format!("flashtile verify --device {device} --case '{case}'")
}

/// How the suite is run.
pub const CARGO: &str = "cargo test --release -p flashtile-tests";

/// Variables by which the suite's emulator is another one than `flashtile verify` has.
const MODELS: [&str; 3] = [
    "FLASHTILE_TEST_NUMERICS",
    "FLASHTILE_TEST_PERTURB",
    "FLASHTILE_TEST_SCHEDULE",
];

/// All variables on which a result depends.
pub const ALL: [&str; 5] = [
    MODELS[0],
    MODELS[1],
    MODELS[2],
    "FLASHTILE_TEST_SANITIZE",
    "FLASHTILE_TEST_DEVICE",
];

/// Those of the variables that are set, as they are written before a command.
pub fn settings(names: &[&str]) -> String {
    let set = names
        .iter()
        .filter_map(|name| Some((name, variable(name)?)));
    set.map(|(name, value)| format!("{name}={value} "))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile::DType;
    use flashtile_verify::sizes;

    /// As the environment is: whatever it asks for, the printed line runs on a device like that one.
    #[test]
    fn the_printed_command_names_the_device() {
        let case = Case::new(DType::F16, sizes(3, 5, [1, 1], 8));
        for (number, device) in devices().iter().enumerate() {
            let text = command(&case, number);
            assert!(text.contains(&case.to_string()), "{text}");
            let (gpu, changed) = (device.info().kind == DeviceKind::Cuda, settings(&MODELS));
            match (gpu, changed.is_empty()) {
                (true, _) => assert!(
                    text.starts_with("flashtile verify --device cuda:"),
                    "{text}"
                ),
                (false, true) => {
                    assert!(
                        text.starts_with("flashtile verify --device emulator"),
                        "{text}"
                    );
                    assert_eq!(text.contains("--sanitize"), sanitizes(), "{text}");
                }
                (false, false) => assert!(text.starts_with(&changed), "{text}"),
            }
        }
    }
}

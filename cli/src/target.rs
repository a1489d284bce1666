//! Where attention is computed, as the command line names it.

use std::path::Path;

use flashtile::{
    Arch, ArchChoice, CudaDevice, Device, DeviceInfo, EmulatorDevice, Error, ErrorClass, Inputs,
    Outputs, Plan, Problem, Variant,
};

use crate::{
    args::DeviceChoice,
    failure::{Failure, Result},
};

/// Largest PTX file that is read.
const MAX_PTX: u64 = 64 << 20;

/// A device, or the reference on the CPU.
#[derive(Debug)]
pub enum Target {
    /// f32 in plain Rust.
    Cpu,
    /// The emulator.
    Emulator(Box<EmulatorDevice>),
    /// A GPU.
    Gpu {
        /// As the option spells it.
        name: String,
        /// The device.
        device: Box<CudaDevice>,
    },
}

impl Target {
    /// Opens what `--device` says. Only the emulator can sanitize, and `auto` means it then.
    pub fn open(choice: DeviceChoice, sanitize: bool) -> Result<Self> {
        if sanitize {
            return match choice {
                DeviceChoice::Emulator | DeviceChoice::Auto => {
                    Ok(Self::Emulator(Box::new(EmulatorDevice::sanitizing())))
                }
                DeviceChoice::Cuda(_) | DeviceChoice::Cpu => Err(Failure::bad(
                    "--sanitize",
                    "--device emulator, which alone can check",
                    "another device",
                )),
            };
        }
        let cuda = |number| -> Result<Self> {
            Ok(Self::Gpu {
                name: format!("cuda:{number}"),
                device: Box::new(CudaDevice::new(number)?),
            })
        };
        match choice {
            DeviceChoice::Cpu => Ok(Self::Cpu),
            DeviceChoice::Cuda(number) => cuda(number),
            DeviceChoice::Emulator => Ok(Self::emulator()),
            // `doctor` says why there is no GPU.
            DeviceChoice::Auto => Ok(cuda(0).unwrap_or_else(|_| Self::emulator())),
        }
    }

    fn emulator() -> Self {
        Self::Emulator(Box::new(EmulatorDevice::new()))
    }

    /// What launches are timed on.
    pub fn timed(&self) -> Option<flashtile_benches::Target<'_>> {
        match self {
            Self::Cpu => None,
            Self::Emulator(device) => Some(flashtile_benches::Target::Emulator(device)),
            Self::Gpu { device, .. } => Some(flashtile_benches::Target::Gpu(device)),
        }
    }

    /// What runs kernels.
    pub fn device(&self) -> Option<&dyn Device> {
        match self {
            Self::Cpu => None,
            Self::Emulator(device) => Some(device.as_ref()),
            Self::Gpu { device, .. } => Some(device.as_ref()),
        }
    }

    /// As `--device` spells it.
    pub fn name(&self) -> &str {
        match self {
            Self::Cpu => "cpu",
            Self::Emulator(_) => "emulator",
            Self::Gpu { name, .. } => name,
        }
    }

    /// Name for people.
    pub fn title(&self) -> String {
        match self {
            Self::Gpu { name, device } => format!("{name} ({})", device.info().name),
            _ => self.name().into(),
        }
    }

    /// Whether tensors are copied to memory of the host once more.
    pub fn copies_in_host_memory(&self) -> bool {
        self.name() == "emulator"
    }

    /// Checks a problem and chooses its kernel; the reference needs none, and takes any tensors.
    pub fn plan(&self, problem: &Problem) -> Result<Option<Plan>> {
        match self.device() {
            None => {
                let any = problem.arch(ArchChoice::Auto);
                match any.plan(&DeviceInfo::emulator()) {
                    Err(error) if error.class() == ErrorClass::BadInput => Err(error.into()),
                    _ => Ok(None),
                }
            }
            Some(device) => Ok(Some(problem.plan(device.info())?)),
        }
    }

    /// Whether it runs kernels of a tier. The reference has none to run.
    pub fn supports(&self, arch: Arch) -> bool {
        let device = self.device();
        device.is_none_or(|device| device.info().supports(arch).is_ok())
    }

    /// Makes the kernel ready, from other PTX than the built-in if there is some.
    pub fn load(&self, variant: Option<&'static Variant>, ptx: Option<&Ptx>) -> Result<()> {
        let (Some(device), Some(variant)) = (self.device(), variant) else {
            return Ok(());
        };
        if let Some(ptx) = ptx {
            ptx.require(variant.name)?;
            // SAFETY: the user asks for this code to run in place of the kernel, on a GPU with the
            // rights of their process. The emulator checks every access.
            unsafe { device.override_ptx(variant, &ptx.text)? };
            return device.load(variant).map_err(|error| {
                let expected = format!("PTX that {} can load", self.name());
                Failure::bad(&ptx.name, expected, error)
            });
        }
        Ok(device.load(variant)?)
    }

    /// Computes attention.
    pub fn attention(&self, problem: &Problem, inputs: &Inputs<'_>) -> Result<Outputs, Error> {
        match self.device() {
            None => flashtile::cpu::attention(problem, inputs),
            Some(device) => flashtile::attention(device, problem, inputs),
        }
    }
}

/// PTX text from a file.
#[derive(Debug)]
pub struct Ptx {
    /// The file's name, for messages.
    name: String,
    text: String,
}

impl Ptx {
    /// Reads PTX text.
    ///
    /// # Errors
    /// The file can't be read, or is no PTX.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |expected: &str, found: String| Failure::bad(path.display(), expected, found);
        let unreadable =
            |error: std::io::Error| bad("a PTX file that can be read", error.to_string());
        let kind = std::fs::metadata(path).map_err(unreadable)?;
        if !kind.is_file() {
            return Err(bad("a PTX file", "a folder, device or pipe".into()));
        }
        if kind.len() > MAX_PTX {
            return Err(bad("a PTX file", format!("{} bytes", kind.len())));
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| bad("PTX, which is text", "bytes that are not UTF-8".into()))?;
        if !text
            .lines()
            .any(|line| line.trim_start().starts_with(".version"))
        {
            return Err(bad("PTX", "text without a .version directive".into()));
        }
        let name = path.display().to_string();
        Ok(Self { name, text })
    }

    /// Its entry points.
    fn entries(&self) -> impl Iterator<Item = &str> {
        self.text.split(".entry").skip(1).map(|rest| {
            let rest = rest.trim_start();
            let end = rest.find(|c: char| !(c.is_alphanumeric() || "_$%".contains(c)));
            &rest[..end.unwrap_or(rest.len())]
        })
    }

    /// Whether it has the entry point.
    pub fn has(&self, entry: &str) -> bool {
        self.entries().any(|name| name == entry)
    }

    fn require(&self, entry: &str) -> Result<()> {
        if self.has(entry) {
            return Ok(());
        }
        let entries: Vec<_> = self.entries().collect();
        let found = match entries.as_slice() {
            [] => "no entry point".into(),
            some => some.join(", "),
        };
        let expected = format!("an entry point {entry}");
        Err(Failure::bad(&self.name, expected, found))
    }
}

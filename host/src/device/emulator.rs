//! The emulator as a device.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use flashtile_abi::{DType, Entry, TensorMap};
pub use flashtile_emulator::{BlockOrder, Finding, Options, Report, Rule, Schedule, Site, Stats};
use flashtile_emulator::{
    ElementType, Emulator, Launch, LaunchError, MemoryError, Module, Swizzle,
    TensorMap as EmulatedMap,
};
pub use flashtile_emulator::{Numerics, TensorCores};

use super::{Device, DeviceInfo, LaunchConfig, Stream, TensorMapSpec};
use crate::error::{Error, Result};

/// Device memory of [`EmulatorDevice::new`] in bytes.
const MEMORY_LIMIT: u64 = 8 << 30;

/// Runs the shipped PTX on the CPU, and refuses what a GPU would silently get wrong: every access
/// out of bounds, misaligned, or of freed memory. Launches are synchronous; streams are ignored.
#[derive(Debug)]
pub struct EmulatorDevice {
    info: DeviceInfo,
    emulator: Emulator,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    modules: HashMap<&'static str, Arc<Module>>,
    overrides: HashMap<&'static str, String>,
    stats: Option<Stats>,
}

impl Default for EmulatorDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl EmulatorDevice {
    /// An emulator with 8 GiB of memory (taken from the host as it is allocated) and all of the host's cores.
    pub fn new() -> Self {
        Self::with_options(Options {
            memory_limit: MEMORY_LIMIT,
            ..Options::default()
        })
    }

    /// An emulator with options of its own.
    pub fn with_options(options: Options) -> Self {
        let mut info = DeviceInfo::emulator();
        info.total_memory = options.memory_limit;
        if options.numerics != Numerics::default() {
            info.name = format!("{} ({})", info.name, options.numerics);
        }
        Self {
            info,
            emulator: Emulator::new(options),
            state: Mutex::default(),
        }
    }

    /// The same, with so many multiprocessors for kernels that share out their work among them. It runs no faster.
    #[must_use]
    pub fn multiprocessors(mut self, count: u32) -> Self {
        self.info.multiprocessors = count.max(1);
        self
    }

    /// The emulator itself.
    pub fn emulator(&self) -> &Emulator {
        &self.emulator
    }

    /// An emulator as [`EmulatorDevice::new`] makes it that also checks what hardware does not: races, uninitialised
    /// values, asynchronous copies still under way, outputs that are not written. A launch with findings is an
    /// [`Error::Findings`].
    pub fn sanitizing() -> Self {
        Self::with_options(Options {
            memory_limit: MEMORY_LIMIT,
            sanitize: true,
            ..Options::default()
        })
    }

    /// What the last successful launch did.
    pub fn last_stats(&self) -> Option<Stats> {
        self.state().stats
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every update of the state is a single insertion, so it is whole even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel's module, parsed at the first use.
    fn module(&self, kernel: &'static Entry) -> Result<Arc<Module>> {
        let mut state = self.state();
        if let Some(module) = state.modules.get(kernel.name) {
            return Ok(Arc::clone(module));
        }
        let fault = |reason: String| Error::Fault {
            context: kernel.name.into(),
            reason,
        };
        let module = match state.overrides.get(kernel.name) {
            Some(ptx) => Module::parse(ptx),
            None => Module::parse(&crate::kernels::ptx(kernel)?),
        };
        let module = module.map_err(|error| fault(error.to_string()))?;
        if module.entry(kernel.name).is_none() {
            let known: Vec<_> = module.entries().map(|entry| entry.name.as_str()).collect();
            return Err(fault(format!(
                "no such entry point in the PTX, which has {known:?}"
            )));
        }
        // An instruction that the emulator does not know is found here rather than at the first launch.
        module
            .decode(kernel.name)
            .map_err(|error| fault(error.to_string()))?;
        let module = Arc::new(module);
        state.modules.insert(kernel.name, Arc::clone(&module));
        Ok(module)
    }
}

/// A memory call's error as the library's.
fn memory(call: &'static str) -> impl Fn(MemoryError) -> Error {
    move |error| match error {
        MemoryError::OutOfMemory { requested, .. } => Error::OutOfMemory {
            requested,
            reason: error.to_string(),
        },
        other => Error::Driver {
            call,
            reason: other.to_string(),
        },
    }
}

/// Describes a tensor to the emulator's copy engine.
///
/// # Errors
/// [`Error::Driver`] names the argument that is wrong.
pub fn tensor_map(spec: &TensorMapSpec) -> Result<TensorMap> {
    let element = match spec.dtype {
        DType::F16 => ElementType::F16,
        DType::Bf16 => ElementType::Bf16,
        DType::F32 => ElementType::F32,
        // The engine moves bytes; it has no type of its own for these.
        DType::E4m3 => ElementType::U8,
    };
    let map = EmulatedMap::new(
        element,
        spec.address,
        &spec.dims,
        &spec.strides,
        &spec.extents,
    );
    let map = EmulatedMap {
        swizzle: match spec.swizzle {
            128 => Swizzle::B128,
            64 => Swizzle::B64,
            _ => Swizzle::B32,
        },
        ..map
    };
    let bytes = map.encode().map_err(|error| Error::Driver {
        call: "tensor_map",
        reason: error.to_string(),
    })?;
    let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[8 * n + i]));
    Ok(TensorMap(std::array::from_fn(word)))
}

impl Device for EmulatorDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.emulator
            .allocate(bytes as u64)
            .map_err(memory("allocate"))
    }

    unsafe fn free(&self, address: u64) -> Result<()> {
        self.emulator.free(address).map_err(memory("free"))
    }

    unsafe fn write(&self, address: u64, source: &[u8]) -> Result<()> {
        self.emulator
            .write(address, source)
            .map_err(memory("write"))
    }

    unsafe fn read(&self, address: u64, destination: &mut [u8]) -> Result<()> {
        self.emulator
            .read(address, destination)
            .map_err(memory("read"))
    }

    unsafe fn fill(&self, address: u64, bytes: usize, value: u8) -> Result<()> {
        self.emulator
            .fill(address, bytes as u64, value)
            .map_err(memory("fill"))
    }

    fn load(&self, kernel: &'static Entry) -> Result<()> {
        self.module(kernel).map(drop)
    }

    unsafe fn override_ptx(&self, kernel: &'static Entry, ptx: &str) -> Result<()> {
        let mut state = self.state();
        super::check_override(kernel, state.modules.contains_key(kernel.name))?;
        state.overrides.insert(kernel.name, ptx.into());
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: &'static Entry,
        config: &LaunchConfig,
        params: &[u8],
        _stream: Stream,
    ) -> Result<()> {
        let module = self.module(kernel)?;
        let launch = Launch {
            grid: config.grid,
            block: config.block,
            cluster: (config.cluster > 1).then_some([config.cluster, 1, 1]),
            dynamic_shared: config.shared_bytes,
            params,
        };
        let stats = self.emulator.launch(&module, kernel.name, &launch);
        let stats = stats.map_err(|error| match error {
            LaunchError::Memory(error) => memory("launch")(error),
            LaunchError::Findings(report) => Error::Findings {
                context: kernel.name.into(),
                report,
            },
            other => Error::Fault {
                context: kernel.name.into(),
                reason: other.to_string(),
            },
        })?;
        self.state().stats = Some(stats);
        Ok(())
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        tensor_map(spec)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    unsafe fn order(&self, _before: Stream, _after: Stream) -> Result<()> {
        // What was enqueued is done.
        Ok(())
    }

    fn tracks_writes(&self) -> bool {
        // A block alone writes its part.
        let options = self.emulator.options();
        options.sanitize && !matches!(options.block_order, BlockOrder::Only(_))
    }

    unsafe fn forget(&self, address: u64, bytes: usize) -> Result<()> {
        self.emulator
            .forget(address, bytes as u64)
            .map_err(memory("forget"))
    }

    fn first_unwritten(&self, address: u64, bytes: usize) -> Result<Option<u64>> {
        self.emulator
            .first_unwritten(address, bytes as u64)
            .map_err(memory("first_unwritten"))
    }

    fn unwritten(&self, kernel: &'static Entry, message: String) -> Error {
        let finding = Finding {
            rule: Rule::OutputNotWritten,
            message,
            site: Site::default(),
            other: None,
            count: 1,
        };
        Error::Findings {
            context: kernel.name.into(),
            report: Box::new(Report {
                findings: vec![finding],
                more: 0,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_alone_need_not_write_all() {
        let device = |block_order| {
            EmulatorDevice::with_options(Options {
                sanitize: true,
                block_order,
                ..Options::default()
            })
        };
        assert!(device(BlockOrder::Reversed).tracks_writes());
        assert!(!device(BlockOrder::Only(0)).tracks_writes());
        assert!(!EmulatorDevice::new().tracks_writes());
    }
}

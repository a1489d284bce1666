//! Where a test's PTX runs: a GPU, or the emulator.

use flashtile::{CudaDevice, Device, DeviceBuffer, LaunchConfig, Stream};
use flashtile_emulator::{Emulator, Launch, Module, Numerics, Options, TensorCores};

use crate::{
    compare::Format,
    micro::{Target, Test},
};

/// Something that runs PTX of our own.
pub trait Machine {
    /// Name, for reports.
    fn name(&self) -> String;

    /// Compute capability: tests for later ones are left out.
    fn capability(&self) -> (u32, u32);

    /// Runs a test over all of its inputs.
    ///
    /// # Errors
    /// What the machine says: text that it refuses, a fault.
    fn run(&self, test: &Test) -> Result<Vec<u32>, String>;
}

/// A test that any machine passes that works at all.
pub fn probe() -> Test {
    let outs = vec![Format::Bits];
    Test::new(
        "probe",
        Target::Sm80,
        "mov.u32 %o0, %a0;",
        (1, outs),
        vec![0; 128],
    )
}

/// Byte that outputs hold before.
const UNWRITTEN: u8 = 0xff;

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|&word| u32::from_le_bytes(word)).collect()
}

fn parameters(input: u64, output: u64) -> [u8; 16] {
    let mut params = [0; 16];
    params[..8].copy_from_slice(&input.to_le_bytes());
    params[8..].copy_from_slice(&output.to_le_bytes());
    params
}

fn grid(test: &Test) -> [u32; 3] {
    [(test.threads() / test.block as usize) as u32, 1, 1]
}

/// A GPU.
#[derive(Debug)]
pub struct Gpu(pub CudaDevice);

impl Machine for Gpu {
    fn name(&self) -> String {
        self.0.info().name.clone()
    }

    fn capability(&self) -> (u32, u32) {
        self.0.info().compute_capability
    }

    fn run(&self, test: &Test) -> Result<Vec<u32>, String> {
        let text = |error: flashtile::Error| error.to_string();
        let module = self.0.load_ptx(&test.ptx()).map_err(text)?;
        let input = DeviceBuffer::from_bytes(&self.0, &bytes(&test.input)).map_err(text)?;
        let blank = vec![UNWRITTEN; 4 * test.threads() * test.outs.len()];
        let output = DeviceBuffer::from_bytes(&self.0, &blank).map_err(text)?;
        let config = LaunchConfig {
            grid: grid(test),
            block: [test.block, 1, 1],
            shared_bytes: 0,
            cluster: 1,
        };
        let params = parameters(input.address(), output.address());
        // SAFETY: a test's entry takes two addresses and reads `ins` words, writes `outs` words for each thread of this
        // geometry; the buffers have that many, and live until the results are read.
        unsafe { module.launch(Test::ENTRY, &config, &params, Stream::DEFAULT) }.map_err(text)?;
        self.0.synchronize().map_err(text)?;
        Ok(words(&output.to_vec().map_err(text)?))
    }
}

/// The emulator.
#[derive(Debug)]
pub struct Emulated {
    name: &'static str,
    emulator: Emulator,
}

impl Emulated {
    /// An emulator with options of its own.
    pub fn new(name: &'static str, options: Options) -> Self {
        // Programs that spin would never end.
        let options = Options {
            memory_limit: 8 << 30,
            max_instructions: Some(1 << 20),
            ..options
        };
        Self {
            name,
            emulator: Emulator::new(options),
        }
    }
}

impl Machine for Emulated {
    fn name(&self) -> String {
        format!("emulator ({})", self.name)
    }

    fn capability(&self) -> (u32, u32) {
        (9, 0)
    }

    fn run(&self, test: &Test) -> Result<Vec<u32>, String> {
        fn text(error: impl std::fmt::Display) -> String {
            error.to_string()
        }
        let module = Module::parse(&test.ptx()).map_err(text)?;
        let input = self
            .emulator
            .allocate(4 * test.input.len() as u64)
            .map_err(text)?;
        let mut results = vec![UNWRITTEN; 4 * test.threads() * test.outs.len()];
        let output = self.emulator.allocate(results.len() as u64).map_err(text)?;
        let ran = self
            .emulator
            .write(input, &bytes(&test.input))
            .map_err(text)
            .and_then(|()| {
                self.emulator.write(output, &results).map_err(text)?;
                let launch = Launch {
                    grid: grid(test),
                    block: [test.block, 1, 1],
                    cluster: None,
                    dynamic_shared: 0,
                    params: &parameters(input, output),
                };
                self.emulator
                    .launch(&module, Test::ENTRY, &launch)
                    .map_err(text)?;
                self.emulator.read(output, &mut results).map_err(text)
            });
        for address in [input, output] {
            self.emulator.free(address).map_err(text)?;
        }
        ran.map(|()| words(&results))
    }
}

/// The emulator's models of the tensor cores: the first is the one that every test is compared with, the others are
/// tried where a test depends on them.
pub fn model_options() -> Vec<(&'static str, Options)> {
    let with = |tensor_cores| Options {
        numerics: Numerics {
            tensor_cores,
            ..Numerics::default()
        },
        ..Options::default()
    };
    TensorCores::ALL
        .map(|cores| (cores.name(), with(cores)))
        .to_vec()
}

/// An emulator for each model.
pub fn models() -> Vec<Emulated> {
    let new = |(name, options)| Emulated::new(name, options);
    model_options().into_iter().map(new).collect()
}

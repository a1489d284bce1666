//! Where a test's PTX runs: a GPU, or the emulator.

use flashtile::{
    CudaDevice, Device, DeviceBuffer, LaunchConfig, Stream, device::cuda::TensorMapArguments,
};
use flashtile_emulator::{
    ElementType, Emulator, L2Promotion, Launch, Module, Numerics, OobFill, Options, Swizzle,
    TENSOR_MAP_BYTES, TensorCores, TensorMap,
};

use crate::{
    compare::Format,
    micro::{Buffer, Map, Target, Test},
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

    /// The bytes of a tensor map.
    ///
    /// # Errors
    /// What the machine says of its arguments.
    fn encode(&self, map: &TensorMap) -> Result<[u8; TENSOR_MAP_BYTES], String>;
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

/// A test's tensor maps, where input and output are at these addresses.
fn maps(
    machine: &dyn Machine,
    test: &Test,
    [input, output]: [u64; 2],
) -> Result<Vec<[u8; TENSOR_MAP_BYTES]>, String> {
    let encode = |map: &Map| {
        let base = match map.of {
            Buffer::Input => input,
            Buffer::Output => output,
        };
        let mut tensor = map.tensor.clone();
        tensor.address += base;
        machine.encode(&tensor)
    };
    test.maps.iter().map(encode).collect()
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
        let buffer = |bytes: &[u8]| DeviceBuffer::from_bytes(&self.0, bytes).map_err(text);
        let input = buffer(&bytes(&test.input))?;
        let output = buffer(&vec![UNWRITTEN; 4 * test.threads() * test.outs.len()])?;
        let encoded = maps(self, test, [input.address(), output.address()])?;
        let global = buffer(encoded.as_flattened())?;
        let config = LaunchConfig {
            grid: [test.grid, 1, 1],
            block: [test.block, 1, 1],
            shared_bytes: 0,
            cluster: test.cluster,
        };
        let addresses = [input.address(), output.address(), global.address()];
        let params = test.params(addresses, &encoded);
        // SAFETY: a test's entry takes these parameters, and its body accesses what they are addresses of in this geometry, or what
        // the maps describe of it; the buffers live until the results are read.
        unsafe { module.launch(Test::ENTRY, &config, &params, Stream::DEFAULT) }.map_err(text)?;
        self.0.synchronize().map_err(text)?;
        Ok(words(&output.to_vec().map_err(text)?))
    }

    fn encode(&self, map: &TensorMap) -> Result<[u8; TENSOR_MAP_BYTES], String> {
        // The driver's numbers are those of the emulator's lists.
        let place = |found: Option<usize>| found.map_or(-1, |n| n as i32);
        let arguments = TensorMapArguments {
            element: place(
                ElementType::ALL
                    .iter()
                    .position(|it| *it == map.element_type),
            ),
            address: map.address,
            dims: &map.dims,
            strides: &map.strides,
            extents: &map.box_dims,
            steps: &map.element_strides,
            swizzle: match map.swizzle {
                Swizzle::None => 0,
                Swizzle::B32 => 1,
                Swizzle::B64 => 2,
                Swizzle::B128 => 3,
            },
            promotion: match map.l2_promotion {
                L2Promotion::None => 0,
                L2Promotion::B64 => 1,
                L2Promotion::B128 => 2,
                L2Promotion::B256 => 3,
            },
            fill: i32::from(map.oob_fill == OobFill::Nan),
        };
        let made = self.0.encode_tensor_map(&arguments);
        let made = made.map_err(|error| error.to_string())?;
        let mut bytes = [0; TENSOR_MAP_BYTES];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(made.0) {
            *to = word.to_le_bytes();
        }
        Ok(bytes)
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
        let mut results = vec![UNWRITTEN; 4 * test.threads() * test.outs.len()];
        let mut allocated = Vec::new();
        let mut buffer = |bytes: &[u8]| {
            let address = self
                .emulator
                .allocate(bytes.len().max(1) as u64)
                .map_err(text)?;
            allocated.push(address);
            self.emulator.write(address, bytes).map_err(text)?;
            Ok::<u64, String>(address)
        };
        let ran = (|| {
            let (input, output) = (buffer(&bytes(&test.input))?, buffer(&results)?);
            let encoded = maps(self, test, [input, output])?;
            let global = buffer(encoded.as_flattened())?;
            let launch = Launch {
                grid: [test.grid, 1, 1],
                block: [test.block, 1, 1],
                cluster: (test.cluster > 1).then_some([test.cluster, 1, 1]),
                dynamic_shared: 0,
                params: &test.params([input, output, global], &encoded),
            };
            self.emulator
                .launch(&module, Test::ENTRY, &launch)
                .map_err(text)?;
            self.emulator.read(output, &mut results).map_err(text)
        })();
        for address in allocated {
            self.emulator.free(address).map_err(text)?;
        }
        ran.map(|()| words(&results))
    }

    fn encode(&self, map: &TensorMap) -> Result<[u8; TENSOR_MAP_BYTES], String> {
        map.encode().map_err(|error| error.to_string())
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

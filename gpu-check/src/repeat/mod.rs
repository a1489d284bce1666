//! Every kernel again and again with the same inputs: equal bits each time, wherever the tensors lie, whatever
//! their outputs and the shared memory held before.

mod serving;

use flashtile::{
    ArchChoice, CausalAlignment, DType, Device, DeviceBuffer, EmulatorDevice, Entry, Operation,
    Plan, Pointers, Problem, Result, ScoreModKind, Shape, Stream, Variant, element,
};
use flashtile_abi::{Arch, variants};
use serde::Serialize;

use crate::{
    compare::{Format, Relation},
    machine::model_options,
    micro::inputs::Noise,
};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Launches of each problem.
    pub launches: usize,
    /// Whether to run the large problems too.
    pub large: bool,
    /// Whether to compare with the emulator's models.
    pub emulator: bool,
    /// Only kernels whose name contains this.
    pub filter: String,
}

/// A problem's result.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The kernel.
    pub variant: &'static str,
    /// The problem.
    pub problem: String,
    /// Launches whose results were compared with the first's.
    pub launches: usize,
    /// Of those, with other bits.
    pub differing: usize,
    /// The first difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// Why it could not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How the emulator's models compare.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<Fit>,
}

/// Elements of out that differ from a model's.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    /// The emulator's model of the tensor cores.
    pub model: &'static str,
    /// Elements of out.
    pub elements: usize,
    /// Of those, with other bits.
    pub differing: usize,
    /// Largest distance in units of the last place.
    pub max_ulp: u32,
    /// Of lse.
    pub lse_differing: usize,
}

/// The problems of a kernel, the smallest first.
fn problems(variant: &Variant, large: bool) -> Vec<(String, Problem)> {
    let tile = &variant.tile;
    let (m, n) = (tile.block_m as usize, tile.block_n as usize);
    let shape = |batch, seqlen_q, seqlen_k, heads_q, heads_kv| Shape {
        batch,
        seqlen_q,
        seqlen_k,
        heads_q,
        heads_kv,
        head_dim_qk: tile.head_dim_qk as usize,
        head_dim_v: tile.head_dim_v as usize,
    };
    let arch = match variant.arch {
        Arch::Sm80 => ArchChoice::Sm80,
        Arch::Sm90a => ArchChoice::Sm90a,
    };
    let problem = |shape: Shape| {
        let problem = Problem::contiguous(tile.dtype, shape)
            .algorithm(variant.algorithm)
            .arch(arch)
            .lse(true);
        match variant.score_mod {
            ScoreModKind::None => problem,
            ScoreModKind::Softcap | ScoreModKind::OptionalSoftcap => problem.softcap(3.0),
        }
    };
    let mut list = vec![
        (
            "short".to_owned(),
            problem(shape(1, m + 1, 2 * n + 3, 2, 1)),
        ),
        (
            "causal".to_owned(),
            problem(shape(2, 2 * m + 5, 3 * n + 7, 2, 2)).causal(CausalAlignment::BottomRight),
        ),
    ];
    if large {
        list.push(("long".into(), problem(shape(2, 1000, 1111, 8, 2))));
        let window = problem(shape(2, 777, 777, 4, 4))
            .causal(CausalAlignment::TopLeft)
            .window(Some(200), None);
        list.push(("window".into(), window));
    }
    list
}

/// Tensors of a problem in a device's memory.
struct Tensors<'d> {
    inputs: [DeviceBuffer<'d>; 3],
    out: DeviceBuffer<'d>,
    lse: DeviceBuffer<'d>,
    workspace: DeviceBuffer<'d>,
}

impl<'d> Tensors<'d> {
    fn new(device: &'d dyn Device, plan: &Plan, inputs: &[Vec<u8>; 3], before: u8) -> Result<Self> {
        let problem = plan.problem();
        let blank = |bytes: usize| DeviceBuffer::from_bytes(device, &vec![before; bytes]);
        let [q, k, v] = inputs;
        Ok(Self {
            inputs: [
                DeviceBuffer::from_bytes(device, q)?,
                DeviceBuffer::from_bytes(device, k)?,
                DeviceBuffer::from_bytes(device, v)?,
            ],
            out: blank(
                problem.out.elements().unwrap_or(0) * problem.out_element().bytes() as usize,
            )?,
            lse: blank(4 * problem.lse_shape().iter().product::<usize>())?,
            workspace: blank(plan.workspace_bytes())?,
        })
    }

    fn launch(&self, device: &dyn Device, plan: &Plan) -> Result<()> {
        let [q, k, v] = &self.inputs;
        let pointers = Pointers {
            q: q.address(),
            k: k.address(),
            v: v.address(),
            out: self.out.address(),
            lse: Some(self.lse.address()),
            workspace: self.workspace.address(),
            ..Pointers::default()
        };
        // SAFETY: each buffer has the size of its contiguous tensor, nothing else knows of it, and it is freed
        // only when the device is idle.
        unsafe { plan.launch(device, Stream::DEFAULT, &pointers) }
    }

    fn results(&self) -> Result<Vec<u8>> {
        let mut bytes = self.out.to_vec()?;
        bytes.extend(self.lse.to_vec()?);
        Ok(bytes)
    }
}

fn inputs(problem: &Problem, name: &str) -> [Vec<u8>; 3] {
    let mut noise = Noise::of(name);
    [&problem.q, &problem.k, &problem.v].map(|layout| {
        let count = layout.elements().unwrap_or(0);
        let values: Vec<f32> = (0..count).map(|_| (2.0 * noise.unit()) as f32).collect();
        element::encode(problem.dtype, &values)
    })
}

fn repeat(
    device: &dyn Device,
    plan: &Plan,
    data: &[Vec<u8>; 3],
    options: &Options,
    outcome: &mut Outcome,
) -> Result<Vec<u8>> {
    let mut noise = Noise::of(&outcome.problem);
    // NaN in every type, and what a launch over it leaves in shared memory and registers.
    let nan = data.each_ref().map(|tensor| vec![0xff; tensor.len()]);
    let poison = Tensors::new(device, plan, &nan, 0xff)?;
    let mut neighbours = Neighbours::default();
    let mut first: Option<Vec<u8>> = None;
    for launch in 0..options.launches {
        neighbours.change(device, launch, &mut noise)?;
        let before = [0x00, 0xff, 0x7f, 0x55][launch % 4];
        let tensors = Tensors::new(device, plan, data, before)?;
        if launch % 2 == 1 {
            poison.launch(device, plan)?;
        }
        tensors.launch(device, plan)?;
        device.synchronize()?;
        outcome.compare(launch, &mut first, tensors.results()?);
    }
    Ok(first.unwrap_or_default())
}

/// Other allocations, which make tensors of one launch lie elsewhere than those of another.
#[derive(Default)]
struct Neighbours<'d>(Vec<DeviceBuffer<'d>>);

impl<'d> Neighbours<'d> {
    /// Before the launch of this number: now and then one comes, and one goes.
    fn change(&mut self, device: &'d dyn Device, launch: usize, noise: &mut Noise) -> Result<()> {
        if launch % 4 != 3 {
            return Ok(());
        }
        if self.0.len() == 3 {
            self.0.remove(noise.below(3) as usize);
        }
        let bytes = 1 + noise.below(4 << 20) as usize;
        let byte = noise.next32() as u8;
        self.0
            .push(DeviceBuffer::from_bytes(device, &vec![byte; bytes])?);
        Ok(())
    }
}

/// Compares a GPU's results with the emulator's models.
fn fits(problem: &Problem, data: &[Vec<u8>; 3], gpu: &[u8]) -> Result<Vec<Fit>> {
    let mut fits = Vec::new();
    for (model, options) in model_options() {
        let device = EmulatorDevice::with_options(flashtile_emulator::Options {
            memory_limit: 1 << 30,
            ..options
        });
        let plan = problem.plan(device.info())?;
        let tensors = Tensors::new(&device, &plan, data, 0xff)?;
        tensors.launch(&device, &plan)?;
        let emulator = tensors.results()?;
        let dtype = problem.out_element();
        let (width, format) = match dtype {
            DType::F16 => (2, Format::F16),
            DType::Bf16 => (2, Format::Bf16),
            _ => (4, Format::F32),
        };
        let split = tensors.out.len();
        let word = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0u32, |word, &byte| word << 8 | u32::from(byte))
        };
        let (Some((gpu_out, gpu_lse)), Some((out, lse))) = (
            gpu.split_at_checked(split),
            emulator.split_at_checked(split),
        ) else {
            continue;
        };
        let mut fit = Fit {
            model,
            elements: split / width,
            differing: 0,
            max_ulp: 0,
            lse_differing: gpu_lse
                .chunks(4)
                .zip(lse.chunks(4))
                .filter(|(a, b)| a != b)
                .count(),
        };
        for (a, b) in gpu_out.chunks(width).zip(out.chunks(width)) {
            match format.relate(word(a), word(b)) {
                Relation::Same => {}
                Relation::Apart(ulp) => {
                    fit.differing += 1;
                    fit.max_ulp = fit.max_ulp.max(ulp);
                }
                _ => fit.differing += 1,
            }
        }
        fits.push(fit);
    }
    Ok(fits)
}

/// Runs the problems of every kernel that the device runs. `each` hears of every outcome.
pub fn run(device: &dyn Device, options: &Options, mut each: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for variant in variants()
        .iter()
        .filter(|variant| options.wants(device, variant))
    {
        for (at, (name, problem)) in problems(variant, options.large).into_iter().enumerate() {
            let mut outcome = Outcome::new(variant.name, format!("{} {name}", variant.name));
            let data = inputs(&problem, &outcome.problem);
            let ran = problem.plan(device.info()).and_then(|plan| {
                if plan.variant().name != variant.name {
                    outcome.error = Some(format!("{} was planned", plan.variant().name));
                    return Ok(());
                }
                let results = repeat(device, &plan, &data, options, &mut outcome)?;
                if options.emulator && at == 0 {
                    outcome.models = fits(&problem, &data, &results)?;
                }
                Ok(())
            });
            if let Err(error) = ran {
                outcome.error = Some(error.to_string());
            }
            each(&outcome);
            outcomes.push(outcome);
        }
    }
    serving::run(device, options, |outcome| {
        each(&outcome);
        outcomes.push(outcome);
    });
    outcomes
}

/// Kernels that are asked for and that the device does not run.
pub fn skipped(device: &dyn Device, options: &Options) -> usize {
    // Other kernels are the suite's alone.
    let kernels = flashtile::kernels().filter(|it| {
        matches!(
            it.operation,
            Operation::Attention(_) | Operation::Serving(_) | Operation::Merge(_)
        )
    });
    let asked = kernels.filter(|it| it.entry.name.contains(&options.filter));
    let skipped = asked.filter(|it| device.info().supports(it.entry.arch).is_err());
    skipped.count()
}

impl Options {
    /// Whether a kernel is asked for, and the device runs it.
    fn wants(&self, device: &dyn Device, kernel: &Entry) -> bool {
        kernel.name.contains(&self.filter) && device.info().supports(kernel.arch).is_ok()
    }
}

impl Outcome {
    /// Before the first launch.
    fn new(variant: &'static str, problem: String) -> Self {
        Self {
            variant,
            problem,
            launches: 0,
            differing: 0,
            first: None,
            error: None,
            models: Vec::new(),
        }
    }

    /// Holds the results of a launch against the first one's, if this is not the first.
    fn compare(&mut self, launch: usize, first: &mut Option<Vec<u8>>, results: Vec<u8>) {
        let Some(first) = first else {
            *first = Some(results);
            return;
        };
        self.launches += 1;
        if *first != results {
            self.differing += 1;
            let at = first.iter().zip(&results).position(|(a, b)| a != b);
            let differ = first.iter().zip(&results).filter(|(a, b)| a != b).count();
            self.first.get_or_insert_with(|| {
                format!(
                    "launch {launch}: {differ} of {} bytes, the first at {at:?}",
                    results.len()
                )
            });
        }
    }

    /// Whether all launches gave the same bits.
    pub fn ok(&self) -> bool {
        self.error.is_none() && self.differing == 0
    }
}

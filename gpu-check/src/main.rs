//! The `flashtile-gpu-check` command.
//!
//! Exit status: 0 as it should be, 1 something differs or failed, 2 bad input, 3 no GPU.

use std::{
    fs,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use clap::{Args, Parser, Subcommand};
use flashtile::{CudaDevice, Device, EmulatorDevice, ErrorClass};
use flashtile_gpu_check::{
    dense,
    machine::{self, Emulated, Gpu, Machine},
    maps, micro, pack, repeat,
    report::{self, Verdict},
    run,
};
use serde_json::json;

/// Holds a GPU against flashtile's emulator and oracle.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit status: 0 as it should be, 1 something differs or failed, 2 bad input, 3 no GPU."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a folder that runs everything on a machine with a GPU and nothing else installed
    Pack {
        /// The folder; it must not exist, or be one that this command made
        dir: PathBuf,
        /// The second folder: programs of the suite that have no room in the first (errors, caches, inference engines)
        #[arg(long)]
        second: bool,
    },
    /// Run everything, from a packed folder
    Run(run::Options),
    /// Compare single instructions
    Micro(Micro),
    /// Compare the driver's tensor maps with the emulator's
    Maps(Maps),
    /// Run approximations over whole binades
    Dense(Dense),
    /// Run every kernel again and again
    Repeat(Repeat),
    /// Write the micro-tests' PTX to a folder, or list them
    Ptx {
        /// The folder; without one the tests are listed
        dir: Option<PathBuf>,
    },
    /// Name the GPU
    Gpu {
        /// cuda or cuda:N
        #[arg(long, default_value = "cuda")]
        device: Choice,
    },
}

#[derive(Args, Debug)]
struct Micro {
    /// cuda, cuda:N or emulator
    #[arg(long, default_value = "cuda")]
    device: Choice,
    /// Only tests whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Only this group of tests
    #[arg(long, value_parser = micro::GROUPS.map(|(name, _)| name))]
    group: Option<String>,
    /// File for all results: a line of JSON for the device, one for each test
    #[arg(long)]
    out: Option<PathBuf>,
    /// Go on from this test, and append to the file
    #[arg(long, hide = true, default_value_t = 0)]
    resume: usize,
    /// How the tests before ended
    #[arg(long, hide = true, value_delimiter = ',')]
    counts: Vec<usize>,
}

#[derive(Args, Debug)]
struct Maps {
    /// cuda, cuda:N or emulator
    #[arg(long, default_value = "cuda")]
    device: Choice,
    /// File for all results, JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Dense {
    /// cuda, cuda:N or emulator
    #[arg(long, default_value = "cuda")]
    device: Choice,
    /// So many times fewer values
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    divisor: u32,
    /// File for the distances
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Repeat {
    /// cuda, cuda:N or emulator
    #[arg(long, default_value = "cuda")]
    device: Choice,
    /// Launches of each problem
    #[arg(long, default_value_t = 50)]
    launches: usize,
    /// Small problems only
    #[arg(long)]
    quick: bool,
    /// Only kernels whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// File for all results, JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

/// `--device`.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Cuda(u32),
    Emulator,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cuda" => Ok(Self::Cuda(0)),
            None if text == "emulator" => Ok(Self::Emulator),
            Some(("cuda", number)) => number
                .parse()
                .map(Self::Cuda)
                .map_err(|error| format!("{error}")),
            _ => Err("expected cuda, cuda:N or emulator".into()),
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Emulator => f.write_str("emulator"),
        }
    }
}

impl Choice {
    fn machine(self) -> Result<Box<dyn Machine>, Failure> {
        Ok(match self {
            Self::Cuda(ordinal) => Box::new(Gpu(CudaDevice::new(ordinal)?)),
            Self::Emulator => Box::new(Emulated::new("in place of a GPU", Default::default())),
        })
    }

    fn device(self) -> Result<Box<dyn Device>, Failure> {
        Ok(match self {
            Self::Cuda(ordinal) => Box::new(CudaDevice::new(ordinal)?),
            Self::Emulator => Box::new(EmulatorDevice::new()),
        })
    }
}

/// Why a command ended early: exit status and message.
struct Failure(u8, String);

impl From<flashtile::Error> for Failure {
    fn from(error: flashtile::Error) -> Self {
        let status = if error.class() == ErrorClass::NoDevice {
            3
        } else {
            1
        };
        Self(status, error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(2, error.to_string())
    }
}

fn written(path: &Path, result: io::Result<()>) -> Result<(), Failure> {
    result.map_err(|error| Failure(2, format!("{}: {error}", path.display())))
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Pack { dir, second } => pack::pack(&dir, second)
            .map(|()| true)
            .map_err(|error| Failure(2, error)),
        Command::Run(options) => return ExitCode::from(run::run(&options)),
        Command::Micro(options) => compare_micro(&options),
        Command::Maps(options) => compare_maps(&options),
        Command::Dense(options) => compare_dense(&options),
        Command::Repeat(options) => compare_repeats(&options),
        Command::Ptx { dir } => write_ptx(dir.as_deref()).map(|()| true),
        Command::Gpu { device } => name_gpu(device).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure(status, message)) => {
            eprintln!("{message}");
            ExitCode::from(status)
        }
    }
}

/// How tests end, in the order of the summary.
const VERDICTS: [(Verdict, &str); 7] = [
    (Verdict::Identical, "identical"),
    (Verdict::NanBitsDiffer, "differ in bits of NaN"),
    (Verdict::Allowed, "differ as allowed"),
    (Verdict::Answered, "answered"),
    (Verdict::Different, "DIFFERENT"),
    (Verdict::Failed, "failed"),
    (Verdict::Skipped, "skipped"),
];

fn compare_micro(options: &Micro) -> Result<bool, Failure> {
    let device = options.device.machine()?;
    let models = machine::models();
    let names: Vec<_> = models.iter().map(Machine::name).collect();
    let mut file = match &options.out {
        Some(path) => Some(
            fs::OpenOptions::new()
                .create(true)
                .write(true)
                .append(options.resume > 0)
                .truncate(options.resume == 0)
                .open(path)?,
        ),
        None => None,
    };
    if options.resume == 0 {
        println!("{} against {}", device.name(), names.join(", "));
        let (major, minor) = device.capability();
        let head = json!({
            "device": device.name(),
            "compute_capability": format!("{major}.{minor}"),
            "models": names,
        });
        file.iter_mut()
            .try_for_each(|file| writeln!(file, "{head}"))?;
    }
    let mut counts = [0; VERDICTS.len()];
    for (count, before) in counts.iter_mut().zip(&options.counts) {
        *count = *before;
    }
    let of_group =
        |(name, _): &&micro::Group| options.group.as_deref().is_none_or(|it| it == *name);
    let tests: Vec<_> = (micro::GROUPS.iter().filter(of_group))
        .flat_map(|(_, tests)| tests())
        .filter(|test| test.name.contains(&options.filter))
        .collect();
    for (number, test) in tests.iter().enumerate().skip(options.resume) {
        let outcome = report::judge(device.as_ref(), &models, test);
        if let Some(line) = outcome.line() {
            println!("{line}");
        }
        // Written at once: whoever stops this program keeps what there is.
        let line = json!(outcome);
        file.iter_mut()
            .try_for_each(|file| writeln!(file, "{line}"))?;
        for (count, (verdict, _)) in counts.iter_mut().zip(&VERDICTS) {
            *count += usize::from(outcome.verdict == *verdict);
        }
        // After a fault a process has lost its GPU: the others go on in a new one.
        let lost = outcome.error.is_some() && device.run(&machine::probe()).is_err();
        if lost && number + 1 < tests.len() {
            println!("the device is lost; a new process goes on");
            return resume(options, number + 1, &counts);
        }
    }
    let words: Vec<_> = counts
        .iter()
        .zip(&VERDICTS)
        .map(|(count, (_, word))| format!("{count} {word}"))
        .collect();
    println!(
        "{} tests: {}",
        counts.iter().sum::<usize>(),
        words.join(", ")
    );
    let bad = |verdict: Verdict| matches!(verdict, Verdict::Different | Verdict::Failed);
    let wrong = counts
        .iter()
        .zip(&VERDICTS)
        .filter(|(_, (verdict, _))| bad(*verdict));
    Ok(wrong.map(|(count, _)| count).sum::<usize>() == 0 && counts.iter().sum::<usize>() > 0)
}

/// Runs the rest of the micro-tests in a new process.
fn resume(options: &Micro, from: usize, counts: &[usize]) -> Result<bool, Failure> {
    let counts: Vec<_> = counts.iter().map(usize::to_string).collect();
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(["micro", "--device", &options.device.to_string()]);
    command.args(["--filter", &options.filter, "--resume", &from.to_string()]);
    command.args(["--counts", &counts.join(",")]);
    if let Some(group) = &options.group {
        command.args(["--group", group]);
    }
    if let Some(path) = &options.out {
        command.arg("--out").arg(path);
    }
    Ok(command.status()?.success())
}

fn compare_maps(options: &Maps) -> Result<bool, Failure> {
    let device = options.device.machine()?;
    let models = machine::models();
    let emulator = models
        .first()
        .ok_or_else(|| Failure(2, "no model".into()))?;
    let outcomes = maps::run(device.as_ref(), emulator);
    for outcome in &outcomes {
        println!("{}", outcome.line());
    }
    let same = |outcome: &&maps::Outcome| outcome.differing.is_empty();
    println!(
        "{} tensor maps, {} with the same bytes or refused",
        outcomes.len(),
        outcomes.iter().filter(same).count()
    );
    if let Some(path) = &options.out {
        let all = json!({ "device": device.name(), "maps": outcomes });
        written(path, fs::write(path, all.to_string()))?;
    }
    Ok(outcomes.iter().all(maps::Outcome::ok))
}

fn compare_dense(options: &Dense) -> Result<bool, Failure> {
    let device = options.device.machine()?;
    let models = machine::models();
    let emulator = models
        .first()
        .ok_or_else(|| Failure(2, "no model".into()))?;
    let mut file = match &options.out {
        Some(path) => Some(BufWriter::new(fs::File::create(path)?)),
        None => None,
    };
    let mut ok = true;
    for sweep in dense::sweeps(options.divisor) {
        match dense::run(device.as_ref(), emulator, &sweep) {
            Ok((section, codes)) => {
                println!("{}", section.line());
                ok &= section.within != Some(false);
                if let Some(file) = &mut file {
                    writeln!(file, "{}", json!(section))?;
                    file.write_all(&codes.bytes())?;
                }
            }
            Err(error) => {
                println!("FAILED {}: {error}", sweep.instruction);
                ok = false;
            }
        }
    }
    if let Some(mut file) = file {
        file.flush()?;
    }
    Ok(ok)
}

fn compare_repeats(options: &Repeat) -> Result<bool, Failure> {
    let device = options.device.device()?;
    let wanted = repeat::Options {
        launches: options.launches.max(2),
        large: !options.quick,
        emulator: true,
        filter: options.filter.clone(),
    };
    let outcomes = repeat::run(device.as_ref(), &wanted, |outcome| {
        let state = match (&outcome.error, &outcome.first) {
            (Some(error), _) => format!("FAILED {error}"),
            (None, Some(first)) => format!(
                "DIFFERENT in {} of {} launches; {first}",
                outcome.differing, outcome.launches
            ),
            (None, None) => format!("{} launches like the first", outcome.launches),
        };
        println!("{}: {state}", outcome.problem);
        for fit in &outcome.models {
            println!(
                "  emulator ({}): {} of {} elements differ, at most {} ulp; {} of lse",
                fit.model, fit.differing, fit.elements, fit.max_ulp, fit.lse_differing
            );
        }
    });
    let bad = outcomes.iter().filter(|outcome| !outcome.ok()).count();
    let skipped = repeat::skipped(device.as_ref(), &wanted);
    println!(
        "{} problems: {} with equal bits, {bad} not; {skipped} kernels skipped, which the device does not run",
        outcomes.len(),
        outcomes.len() - bad
    );
    if let Some(path) = &options.out {
        let all = json!({ "device": device.info().name, "problems": outcomes });
        written(path, fs::write(path, all.to_string()))?;
    }
    Ok(bad == 0 && (!outcomes.is_empty() || skipped > 0))
}

fn write_ptx(dir: Option<&Path>) -> Result<(), Failure> {
    for (number, test) in micro::all().iter().enumerate() {
        let Some(dir) = dir else {
            println!(
                "{number:03} {} ({}, {} threads)",
                test.name,
                test.target.name(),
                test.threads()
            );
            continue;
        };
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("{number:03}.ptx"));
        written(
            &path,
            fs::write(&path, format!("// {}\n{}", test.name, test.ptx())),
        )?;
    }
    Ok(())
}

fn name_gpu(device: Choice) -> Result<(), Failure> {
    let Choice::Cuda(number) = device else {
        return Err(Failure(2, "--device: expected cuda or cuda:N".into()));
    };
    let (major, minor) = flashtile::device::cuda::driver_version()?;
    let gpus = flashtile::device::cuda::devices()?;
    let Some(gpu) = gpus.get(number as usize) else {
        return Err(Failure(3, format!("the driver knows {} GPUs", gpus.len())));
    };
    let (cc_major, cc_minor) = gpu.compute_capability;
    println!(
        "{}, compute capability {cc_major}.{cc_minor}, driver for CUDA {major}.{minor}",
        gpu.name
    );
    Ok(())
}

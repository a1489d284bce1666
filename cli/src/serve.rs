//! `flashtile attend` on files with what inference engines have: lengths, pages, what is added to scores.

use std::time::Instant;

use flashtile::{
    Algorithm, Arch, DType, DeviceInfo, Entry, Error, ErrorClass, OutDType, Outputs,
    serving::{self, ServingProblem},
};

use crate::{
    args::AttendArgs,
    attend::{NOTHING, Report, encode, findings},
    failure::{Failure, Outcome, Result},
    input::Source,
    memory,
    output::Pending,
    progress,
    target::Target,
};

/// Runs the command.
pub fn run(args: &AttendArgs, source: Source) -> Result<Outcome> {
    check_options(args, source.dtype())?;
    memory::require("q, k, v", memory_needed(&source))?;
    let contents = source.read_serving(args.latent)?;
    let problem = with_options(args, contents.problem());
    let inputs = contents.inputs();
    let target = Target::open(args.device, args.sanitize)?;
    let entry = target.prepare(&problem)?;
    problem.check_metadata(&inputs).map_err(as_in_the_file)?;
    let pending = match &args.output {
        Some(path) => Some(Pending::create(path, Some(&args.input))?),
        None => None,
    };

    let spinner = progress::spinner("attention", args.json);
    let start = Instant::now();
    let outputs = match target.serve(&problem, &inputs) {
        Ok(outputs) => outputs,
        Err(Error::Findings { report, .. }) => {
            spinner.finish_and_clear();
            let seconds = start.elapsed().as_secs_f64();
            return findings(&target, entry, seconds, args.json, &report);
        }
        Err(error) => return Err(as_in_the_file(error).into()),
    };
    let seconds = start.elapsed().as_secs_f64();
    spinner.set_message("comparing with the reference");
    let comparison = match args.check {
        true if problem.out.is_empty() => Some(NOTHING),
        true => Some(serving::compare(&problem, &inputs, &outputs)?),
        false => None,
    };
    spinner.finish_and_clear();

    if let Some(pending) = pending {
        pending.commit(&encoded(&problem, &outputs)?)?;
    }
    let report = Report {
        target: &target,
        entry,
        fallback: None,
        shape: describe(&problem),
        seconds,
        comparison,
        sanitized: args.sanitize,
    };
    report.tell(args.json)
}

/// Bytes of the host's memory that the whole command takes, roughly and at most. `None` on overflow.
fn memory_needed(source: &Source) -> Option<u64> {
    // Inputs, their copies on the device, and gathered as f32; outputs in f32 on the device, here and in the file, and in f64 twice.
    let inputs = source.bytes().checked_mul(6)?;
    inputs.checked_add(source.outputs()?.checked_mul(3 * 4 + 2 * 8)?)
}

/// The library's names of arguments, and the file's.
const NAMES: [(&str, &str); 5] = [
    ("q_starts", "cu_seqlens_q"),
    ("k_starts", "cu_seqlens_k"),
    ("k_used", "seqlens_k"),
    ("table", "block_table"),
    ("ranges", "prefix_ranges"),
];

/// An error that names tensors as the file does.
fn as_in_the_file(error: Error) -> Error {
    match error {
        Error::BadInput {
            argument,
            expected,
            found,
        } => {
            let name = NAMES.iter().find(|(library, _)| *library == argument);
            Error::BadInput {
                argument: name.map_or(argument, |(_, file)| file),
                expected,
                found,
            }
        }
        other => other,
    }
}

/// Refuses options that only dense problems have.
fn check_options(args: &AttendArgs, dtype: DType) -> Result<()> {
    let dense = "a file without optional tensors (dense attention)";
    let refuse = |option: &str| Err(Failure::bad(option, dense, "a file with some"));
    if args.ptx.is_some() {
        return refuse("--ptx");
    }
    if args.scale_block.is_some() {
        return refuse("--scale-block");
    }
    let missing = |arch: Arch, algorithm: Algorithm, missing: &str| {
        Err(Error::NoVariant {
            algorithm,
            arch,
            dtype,
            missing: missing.into(),
        }
        .into())
    };
    let algorithm = Algorithm::from(args.algorithm);
    if algorithm != Algorithm::Fused {
        return missing(
            Arch::Sm80,
            algorithm,
            "sequence lengths, pages and optional tensors have fused kernels only",
        );
    }
    Ok(())
}

fn with_options(args: &AttendArgs, problem: ServingProblem) -> ServingProblem {
    let mut problem = problem.lse(true);
    problem.arch = args.arch.into();
    problem.causal = args.causal.map(Into::into);
    problem.window = args.window.unwrap_or_default();
    problem.scale = args.scale;
    problem.softcap = args.softcap;
    problem.out_dtype = args.out_dtype.map_or(OutDType::Same, Into::into);
    problem
}

/// The output file's content: out as q is, and its log-sum-exp [batch, heads_q, seqlen_q], or [heads_q, total_q].
fn encoded(problem: &ServingProblem, outputs: &Outputs) -> Result<Vec<u8>> {
    // What follows each other has no batch.
    let skip = usize::from(problem.q_lengths.starts);
    encode(
        problem.out_element(),
        &problem.out.shape[skip..],
        &problem.lse_shape()[skip..],
        outputs,
    )
}

fn describe(problem: &ServingProblem) -> String {
    let [_, _, heads_q, dim_qk] = problem.q.shape;
    let [_, _, heads_kv, dim_v] = problem.v.shape;
    let kv = match problem.kv_dtype == problem.dtype {
        true => String::new(),
        false => format!("/{}", problem.kv_dtype.as_str()),
    };
    let pages = match problem.pages {
        Some(_) => format!(" pages of {}", problem.k.shape[1]),
        None => String::new(),
    };
    format!(
        "{}{kv} batch {} queries up to {} keys up to {}{pages} heads {heads_q}/{heads_kv} head_dim {dim_qk}/{dim_v}",
        problem.dtype.as_str(),
        problem.batch,
        problem.q_lengths.longest,
        problem.k_lengths.longest,
    )
}

/// What a target has for a problem.
impl Target {
    /// Checks a problem and loads its kernels; the first is returned. The reference needs none.
    fn prepare(&self, problem: &ServingProblem) -> Result<Option<&'static Entry>> {
        let Some(device) = self.device() else {
            // Its checks are those of every device.
            return match problem.plan(&DeviceInfo::emulator()) {
                Err(error) if error.class() == ErrorClass::BadInput => {
                    Err(as_in_the_file(error).into())
                }
                _ => Ok(None),
            };
        };
        let plan = problem.plan(device.info()).map_err(as_in_the_file)?;
        for kernel in plan.kernels() {
            device.load(kernel)?;
        }
        Ok(plan.kernels().next())
    }

    fn serve(
        &self,
        problem: &ServingProblem,
        inputs: &serving::ServingInputs<'_>,
    ) -> Result<Outputs, Error> {
        match self.device() {
            None => serving::attention_cpu(problem, inputs),
            Some(device) => serving::attention(device, problem, inputs),
        }
    }
}

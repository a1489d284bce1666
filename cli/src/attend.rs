//! `flashtile attend`.

use std::time::Instant;

use flashtile::{
    Arch, ArchChoice, DType, Entry, Inputs, OutDType, Outputs, Plan, Problem,
    reference::{Comparison, ErrorBound, compare},
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use crate::{
    args::{AttendArgs, DeviceChoice},
    failure::{Failure, Outcome, Result},
    findings,
    input::Source,
    memory,
    output::{Pending, print},
    progress, serve,
    target::{Ptx, Target},
};

/// What the reference on the CPU is called where a kernel's name would be.
const CPU_VARIANT: &str = "reference_f32";

/// Runs the command.
pub fn run(args: &AttendArgs) -> Result<Outcome> {
    if args.ptx.is_some() && args.device == DeviceChoice::Cpu {
        return Err(Failure::bad(
            "--ptx",
            "a device that runs PTX (--device cuda or emulator)",
            "--device cpu",
        ));
    }
    let source = Source::open(&args.input)?;
    source.check_values(args.latent)?;
    if source.is_serving() || args.latent.is_some() {
        return serve::run(args, source);
    }
    let mut problem = problem(args, &source)?;
    let target = Target::open(args.device, args.sanitize)?;
    let mut plan = target.plan(&problem)?;
    source.check_scales(&problem)?;
    let ptx = args.ptx.as_deref().map(Ptx::read).transpose()?;
    if let (Some(ptx), Some(chosen)) = (&ptx, &plan)
        && problem.arch == ArchChoice::Auto
        && !ptx.has(chosen.variant().name)
    {
        // PTX of the other tier says which one is meant.
        let other = problem.arch(ArchChoice::Sm80);
        let meant = target.plan(&other).ok().flatten();
        if let Some(meant) = meant.filter(|meant| ptx.has(meant.variant().name)) {
            (problem, plan) = (other, Some(meant));
        }
    }
    let variant = plan.as_ref().map(Plan::variant);
    let fallback = plan.as_ref().and_then(Plan::obstacle);
    let fallback = fallback.map(|obstacle| obstacle.to_string());
    memory::require("q, k, v", memory_needed(args, &source, &problem, &target))?;
    let pending = match &args.output {
        Some(path) => Some(Pending::create(path, Some(&args.input))?),
        None => None,
    };
    target.load(variant, ptx.as_ref())?;
    let contents = source.read()?;
    let inputs = contents.inputs();

    let spinner = progress::spinner("attention", args.json);
    let start = Instant::now();
    let outputs = match target.attention(&problem, &inputs) {
        Ok(outputs) => outputs,
        Err(flashtile::Error::Findings { report, .. }) => {
            spinner.finish_and_clear();
            let seconds = start.elapsed().as_secs_f64();
            let entry = variant.map(|variant| &variant.entry);
            return findings(&target, entry, seconds, args.json, &report);
        }
        Err(error) => return Err(error.into()),
    };
    let seconds = start.elapsed().as_secs_f64();
    spinner.set_message("comparing with the reference");
    let comparison = match args.check {
        true => Some(check(&problem, &inputs, &outputs)?),
        false => None,
    };
    spinner.finish_and_clear();

    if let Some(pending) = pending {
        let (out, lse) = (problem.out.shape, problem.lse_shape());
        pending.commit(&encode(problem.out_element(), &out, &lse, &outputs)?)?;
    }
    let report = Report {
        target: &target,
        entry: variant.map(|variant| &variant.entry),
        fallback,
        shape: describe_shape(&problem),
        seconds,
        comparison,
        sanitized: args.sanitize,
    };
    report.tell(args.json)
}

/// Tells what the sanitizer found. There is no result: nothing is written.
pub fn findings(
    target: &Target,
    entry: Option<&'static Entry>,
    seconds: f64,
    as_json: bool,
    found: &flashtile::device::emulator::Report,
) -> Result<Outcome> {
    print(&match as_json {
        true => json!({
            "device": target.name(),
            "arch": entry.map(|entry| entry.arch.as_str()),
            "variant": entry.map(|entry| entry.name),
            "seconds": seconds,
            "ok": false,
            "findings": findings::json(found),
            "more_findings": found.more,
        })
        .to_string(),
        false => found.to_string(),
    })?;
    Ok(Outcome::Wrong)
}

fn problem(args: &AttendArgs, source: &Source) -> Result<Problem> {
    let mut problem = source.problem(args.scale_block)?.lse(true);
    problem.algorithm = args.algorithm.into();
    problem.arch = args.arch.into();
    problem.causal = args.causal.map(Into::into);
    problem.window = args.window.unwrap_or_default();
    problem.scale = args.scale;
    problem.softcap = args.softcap;
    problem.out_dtype = args.out_dtype.map_or(OutDType::Same, Into::into);
    Ok(problem)
}

/// Bytes of the host's memory that the whole command takes, roughly. `None` on overflow.
fn memory_needed(
    args: &AttendArgs,
    source: &Source,
    problem: &Problem,
    target: &Target,
) -> Option<u64> {
    let inputs = source.bytes();
    let elements_in = inputs / u64::from(problem.dtype.bytes());
    let elements_out = problem.out.elements()? as u64;
    let rows = problem
        .lse_shape()
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))? as u64;
    let outputs = elements_out
        .checked_mul(u64::from(problem.out_element().bytes()))?
        .checked_add(rows.checked_mul(4)?)?;
    let mut sum = inputs.checked_add(outputs)?;
    let mut add = |bytes: Option<u64>| {
        sum = sum.checked_add(bytes?)?;
        Some(())
    };
    if args.output.is_some() {
        add(Some(outputs))?;
    }
    if target.copies_in_host_memory() {
        add(inputs.checked_add(outputs))?;
    }
    // The references gather inputs as f32 and hold outputs twice, in f32 or f64.
    let working = |bytes: u64| {
        let gathered = elements_in.checked_mul(4)?;
        gathered.checked_add(elements_out.checked_mul(bytes)?)
    };
    match (args.check, matches!(target, Target::Cpu)) {
        (true, _) => add(working(8 + 8 + 4 + 4))?,
        (false, true) => add(working(4 + 4))?,
        (false, false) => {}
    }
    Some(sum)
}

/// Nothing can be wrong with nothing, and its other dimensions may be astronomical.
pub const NOTHING: Comparison = Comparison {
    max_abs_error: 0.0,
    rms_error: 0.0,
    lse_max_abs_error: Some(0.0),
    bound: ErrorBound {
        max_abs: 0.0,
        rms: 0.0,
        lse_max_abs: 0.0,
    },
    ok: true,
};

/// Compares with the reference.
fn check(problem: &Problem, inputs: &Inputs<'_>, outputs: &Outputs) -> Result<Comparison> {
    if problem.out.is_empty() {
        return Ok(NOTHING);
    }
    Ok(compare(problem, inputs, outputs)?)
}

/// The output file's content: out and lse of these shapes.
pub fn encode(
    dtype: DType,
    out_shape: &[usize],
    lse_shape: &[usize],
    outputs: &Outputs,
) -> Result<Vec<u8>> {
    let unencodable = |error: safetensors::SafeTensorError| {
        Failure::bad("out", "tensors that can be encoded", error)
    };
    let dtype = match dtype {
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::E4m3 => Dtype::F8_E4M3,
    };
    let lse = outputs.lse.as_deref().unwrap_or_default();
    let lse: Vec<u8> = lse.iter().flat_map(|x| x.to_le_bytes()).collect();
    let out = TensorView::new(dtype, out_shape.to_vec(), &outputs.out);
    let lse = TensorView::new(Dtype::F32, lse_shape.to_vec(), &lse);
    let tensors = [
        ("out", out.map_err(unencodable)?),
        ("lse", lse.map_err(unencodable)?),
    ];
    safetensors::serialize(tensors, None).map_err(unencodable)
}

/// What is told of a run.
pub struct Report<'a> {
    /// Where it ran.
    pub target: &'a Target,
    /// The kernel; the reference has none.
    pub entry: Option<&'static Entry>,
    /// Why the kernel is not of the tier that `auto` prefers.
    pub fallback: Option<String>,
    /// Dtype and sizes.
    pub shape: String,
    /// How long it took.
    pub seconds: f64,
    /// Against the reference, if that was asked for.
    pub comparison: Option<Comparison>,
    /// Whether the sanitizer looked, and found nothing.
    pub sanitized: bool,
}

/// Dtype and sizes of a problem.
fn describe_shape(problem: &Problem) -> String {
    let s = problem.shape();
    format!(
        "{} batch {} queries {} keys {} heads {}/{} head_dim {}/{}",
        problem.dtype.as_str(),
        s.batch,
        s.seqlen_q,
        s.seqlen_k,
        s.heads_q,
        s.heads_kv,
        s.head_dim_qk,
        s.head_dim_v,
    )
}

impl Report<'_> {
    fn variant(&self) -> &'static str {
        self.entry.map_or(CPU_VARIANT, |entry| entry.name)
    }

    /// Prints it, and says what came out.
    pub fn tell(&self, as_json: bool) -> Result<Outcome> {
        print(&match as_json {
            true => self.json().to_string(),
            false => self.text(),
        })?;
        match self.comparison {
            Some(Comparison { ok: false, .. }) => Ok(Outcome::Wrong),
            _ => Ok(Outcome::Right),
        }
    }

    /// As one JSON object.
    fn json(&self) -> Value {
        let mut object = json!({
            "device": self.target.name(),
            "arch": self.entry.map(|entry| entry.arch.as_str()),
            "variant": self.variant(),
            "seconds": self.seconds,
        });
        if let (Some(reason), Some(map)) = (&self.fallback, object.as_object_mut()) {
            map.insert("fallback".into(), reason.as_str().into());
        }
        if let (Some(found), Some(map)) = (&self.comparison, object.as_object_mut()) {
            map.insert("max_abs_error".into(), finite(found.max_abs_error).into());
            map.insert("rms_error".into(), finite(found.rms_error).into());
            map.insert("bound".into(), finite(found.bound.max_abs).into());
            map.insert("ok".into(), found.ok.into());
        }
        if let (true, Some(map)) = (self.sanitized, object.as_object_mut()) {
            map.insert("findings".into(), json!([]));
        }
        object
    }

    /// For people.
    fn text(&self) -> String {
        let mut text = format!(
            "{}: {}, {}, {:.6} s",
            self.target.title(),
            self.variant(),
            self.shape,
            self.seconds,
        );
        if let Some(reason) = &self.fallback {
            text += &format!("\nnot {}: {reason}", Arch::Sm90a.as_str());
        }
        if let Some(found) = &self.comparison {
            text += &describe(found);
        }
        if self.sanitized {
            text += "\nsanitizer: no findings";
        }
        text
    }
}

/// A comparison, line by line.
fn describe(found: &Comparison) -> String {
    let lse = found.lse_max_abs_error.unwrap_or(0.0);
    format!(
        "\nout: max absolute error {:.3e} (bound {:.3e}), RMS error {:.3e} (bound {:.3e})\
         \nlse: max absolute error {lse:.3e} (bound {:.3e})\n{}",
        found.max_abs_error,
        found.bound.max_abs,
        found.rms_error,
        found.bound.rms,
        found.bound.lse_max_abs,
        match found.ok {
            true => "ok",
            false => "WRONG: past the bound",
        },
    )
}

/// JSON has no infinity and no NaN: the largest number stands for them.
pub fn finite(x: f64) -> f64 {
    if x.is_finite() { x } else { f64::MAX }
}

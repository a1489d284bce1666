//! The command line's grammar.

use std::{ffi::OsString, num::NonZeroUsize, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};
use flashtile::{Algorithm, ArchChoice, CausalAlignment, DType, OutDType, Window};
use flashtile_benches::{Group, HeadDim};

use crate::failure::{Failure, Result};

/// Exact attention by GPU kernels written in Rust.
///
/// Runs on an NVIDIA GPU if there is one, else the same kernels run in an emulator on the CPU.
#[derive(Debug, Parser)]
#[command(
    name = "flashtile",
    version,
    after_help = "Exit status: 0 right, 1 wrong result, 2 bad input, 3 no such device or variant, 130 interrupted."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "shapes of one dimension; clap prints these texts as they are"
)]
pub enum Command {
    /// Run attention on tensors from a file
    ///
    /// IN holds q [batch, seqlen_q, heads_q, head_dim_qk], k [batch, seqlen_k, heads_kv, head_dim_qk] and
    /// v [batch, seqlen_k, heads_kv, head_dim_v], all F16, BF16, F32 or F8_E4M3. OUT gets
    /// out [batch, seqlen_q, heads_q, head_dim_v] in that dtype (BF16 for F8_E4M3), and lse [batch, heads_q, seqlen_q] in F32
    /// (natural logarithm). Tensors of other names are ignored.
    ///
    /// F8_E4M3 tensors may have scales in F32, q_scale, k_scale and v_scale: an element means itself times its scale. Each is
    /// one number for the tensor, [batch, heads] or [batch, heads, blocks], for each block of --scale-block rows.
    ///
    /// Optional tensors, alone or together, with F16 or BF16 (k and v may then be F8_E4M3, with k_scale and v_scale [1], [heads_kv] or
    /// [batch, heads_kv]): cu_seqlens_q and cu_seqlens_k [batch + 1] (q, k, v and out are then [total, heads, head_dim], lse
    /// [heads_q, total]); seqlens_k [batch]; block_table [batch, max_blocks] (k and v are then [blocks, page, heads_kv, head_dim]);
    /// alibi [heads_q] or [batch, heads_q]; sink [heads_q]; bias (F32 or the dtype of q) and mask (BOOL, true = attend), which
    /// broadcast to [batch, heads_q, seqlen_q, seqlen_k]; prefix_ranges [batch, ranges, 2], first and last position of each.
    /// Lengths, tables and ranges are I32, alibi and sink F32.
    Attend(Box<AttendArgs>),
    /// Compare the kernels with the reference on this machine's device
    Verify(VerifyArgs),
    /// Time the kernels, and other libraries' in the same run
    ///
    /// Every combination of the lists is a cell. Times are those of CUDA events on a GPU; on the emulator they are the
    /// host's, of small sizes, and say nothing about a GPU. DIR gets results.csv, results.json, summary.md and plots.
    Bench(Box<BenchArgs>),
    /// List the kernels, or write their PTX to files
    Kernels(KernelsArgs),
    /// Say what works on this machine and what is missing
    Doctor(DoctorArgs),
}

/// Options of `attend`.
#[derive(Args, Debug)]
pub struct AttendArgs {
    /// File with the tensors q, k and v
    #[arg(value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// File to write the tensors out and lse to; without it only a summary is printed
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub output: Option<PathBuf>,
    /// Where to run: auto, cuda, cuda:N, emulator or cpu (f32 reference in plain Rust)
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Which kernel; cpu has one for all
    #[arg(long, value_enum, default_value_t = AlgorithmArg::Fused)]
    pub algorithm: AlgorithmArg,
    /// Which tier of kernels; cpu has none
    #[arg(long, value_enum, default_value_t = ArchArg::Auto)]
    pub arch: ArchArg,
    /// Causal mask; the last query sees the last key, or (top-left) the first only the first [default when given: bottom-right]
    #[arg(long, value_enum, value_name = "ALIGNMENT", num_args = 0..=1, default_missing_value = "bottom-right")]
    pub causal: Option<CausalArg>,
    /// Sliding window: keys before and after the diagonal; -1 is unbounded
    #[arg(long, value_name = "LEFT,RIGHT", allow_hyphen_values = true, value_parser = window)]
    pub window: Option<Window>,
    /// Factor of the scores [default: 1/sqrt(head_dim_qk)]
    #[arg(long, value_name = "S", allow_hyphen_values = true)]
    pub scale: Option<f32>,
    /// Caps scores: C * tanh(score / C) [default: off]
    #[arg(long, value_name = "C", allow_hyphen_values = true)]
    pub softcap: Option<f32>,
    /// Rows that share a scale, where scales are [batch, heads, blocks]; a power of two [default: 128]
    #[arg(long, value_name = "ROWS", allow_hyphen_values = true)]
    pub scale_block: Option<u32>,
    /// Values are the first N elements of keys (MLA): the file has no v
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub latent: Option<usize>,
    /// Dtype of out: f32, or that of q, k and v; f16 too for F8_E4M3 [default: that of q, k and v; bf16 for F8_E4M3]
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub out_dtype: Option<OutDTypeArg>,
    /// Compare with the f64 reference; exit status 1 if an error is past its bound
    #[arg(long)]
    pub check: bool,
    /// Run this PTX instead of the built-in (it needs an entry point named like the variant; its tier is meant, unless --arch says another)
    #[arg(long, value_name = "FILE")]
    pub ptx: Option<PathBuf>,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Emulator only: check for races, uninitialised values, copies still under way, outputs not
    /// written, and wrong synchronisation; exit status 1 if there is a finding
    #[arg(long)]
    pub sanitize: bool,
}

/// Options of `verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// A short sweep that runs every kernel at least once
    #[arg(long)]
    pub quick: bool,
    /// Only cases whose line or whose kernel's name contains this
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Only kernels for dense tensors, or only those for inference engines
    #[arg(long, value_enum, value_name = "KIND")]
    pub only: Option<OnlyArg>,
    /// This one case, as a failure prints it
    #[arg(long, value_name = "LINE", conflicts_with_all = ["quick", "filter", "only"])]
    pub case: Option<String>,
    /// Emulator only: run every case under the sanitizer, whose findings are failures
    #[arg(long)]
    pub sanitize: bool,
    /// Where to run: auto, cuda, cuda:N, emulator or cpu
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Folder for the results; files of an earlier run are replaced
    #[arg(long, value_name = "DIR", default_value = "flashtile-bench")]
    pub out: PathBuf,
    /// Time other libraries in the same cells, in turns: all that Python can import, or these
    #[arg(long, value_name = "NAMES", num_args = 0..=1, default_missing_value = "all", value_parser = peers)]
    pub peers: Option<Peers>,
    /// The Python that has torch
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    pub python: OsString,
    /// Where to run: auto, cuda, cuda:N or emulator
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Which tier of kernels
    #[arg(long, value_enum, default_value_t = ArchArg::Auto)]
    pub arch: ArchArg,
    /// A few cells only
    #[arg(long)]
    pub quick: bool,
    /// Only cells of dense tensors, or only those of inference engines: decode over pages and latent caches (MLA), prefill of sequences
    /// that follow each other [default: both; dense if a list below is given]
    #[arg(long, value_enum, value_name = "KIND")]
    pub only: Option<OnlyArg>,
    /// Element types [default: those of at most 16 bits]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = flashtile_benches::cell::dtype)]
    pub dtype: Vec<DType>,
    /// Head dimensions, of q, k and v, or QK/V [default: 64,128,256; emulator: 64,128]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub head_dim: Vec<HeadDim>,
    /// Masks: full, causal, window [default: full,causal, and window if --window is given]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub mask: Vec<MaskArg>,
    /// The sliding window: keys before and after the diagonal; -1 is unbounded
    #[arg(long, value_name = "LEFT,RIGHT", allow_hyphen_values = true, value_parser = window)]
    pub window: Option<Window>,
    /// Sequence lengths, of queries and keys [default: powers of two from 512 to 32768; emulator: 64,128,256]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub seqlen: Vec<NonZeroUsize>,
    /// Heads: mha, or gqaN with N query heads to a key/value head [default: mha,gqa8]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub heads: Vec<Group>,
    /// Query heads times head_dim [default: 2048; emulator: 512]
    #[arg(long, value_name = "N")]
    pub hidden: Option<NonZeroUsize>,
    /// Batch times sequence length, if the batch is 1 at least [default: 16384; emulator: 256]
    #[arg(long, value_name = "N")]
    pub tokens: Option<NonZeroUsize>,
    /// Seconds of measurement for each implementation in each cell [default: 0.3; emulator: 0.02]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds_per_cell: Option<Duration>,
    /// Begin no cell after so many seconds
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub budget: Option<Duration>,
    /// Print one JSON object on standard output: that of results.json
    #[arg(long)]
    pub json: bool,
}

/// `--only`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnlyArg {
    /// Dense tensors.
    Dense,
    /// Problems of inference engines.
    Serving,
}

/// `--peers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers(pub Vec<String>);

/// Names of peers, or all of them.
fn peers(text: &str) -> Result<Peers, String> {
    let known = flashtile_benches::peers::NAMES;
    if text == "all" {
        return Ok(Peers(known.map(String::from).to_vec()));
    }
    let names: Vec<_> = text.split(',').map(String::from).collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(Peers(names)),
        Some(name) => Err(format!(
            "expected all, or some of {}, found `{name}`",
            known.join(", ")
        )),
    }
}

/// A time between a nanosecond and a week.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1e-9..=604_800.0) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("expected a positive number of seconds".into()),
    }
}

/// `--mask`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MaskArg {
    /// Every query sees every key
    Full,
    /// Causal; the last query sees the last key
    Causal,
    /// That of --window
    Window,
}

/// Options of `kernels`.
#[derive(Args, Debug)]
pub struct KernelsArgs {
    /// Write each kernel's PTX to NAME.ptx in this folder
    #[arg(long, value_name = "DIR")]
    pub emit: Option<PathBuf>,
    /// Only kernels whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// Options of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Print one JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if there is one, else the emulator.
    Auto,
    /// The GPU of that number.
    Cuda(u32),
    /// The emulator.
    Emulator,
    /// The reference.
    Cpu,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda(0)),
            "emulator" => Ok(Self::Emulator),
            "cpu" => Ok(Self::Cpu),
            _ => {
                let number = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                number
                    .map(Self::Cuda)
                    .ok_or_else(|| "expected auto, cuda, cuda:N, emulator or cpu".into())
            }
        }
    }
}

/// `--algorithm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AlgorithmArg {
    /// One pass over the keys with a running maximum (FlashAttention)
    Fused,
    /// Maximum and sum together, then the weighted sum (online softmax)
    TwoPass,
    /// Maximum, sum, weighted sum (safe softmax)
    ThreePass,
}

impl From<AlgorithmArg> for Algorithm {
    fn from(arg: AlgorithmArg) -> Self {
        match arg {
            AlgorithmArg::Fused => Self::Fused,
            AlgorithmArg::TwoPass => Self::TwoPass,
            AlgorithmArg::ThreePass => Self::ThreePass,
        }
    }
}

/// `--arch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArchArg {
    /// The best that has a kernel for the problem
    Auto,
    /// Every GPU since Ampere
    #[value(name = "sm_80")]
    Sm80,
    /// Hopper
    #[value(name = "sm_90a")]
    Sm90a,
}

impl From<ArchArg> for ArchChoice {
    fn from(arg: ArchArg) -> Self {
        match arg {
            ArchArg::Auto => Self::Auto,
            ArchArg::Sm80 => Self::Sm80,
            ArchArg::Sm90a => Self::Sm90a,
        }
    }
}

/// `--causal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CausalArg {
    /// The last query sees the last key
    BottomRight,
    /// The first query sees only the first key
    TopLeft,
}

impl From<CausalArg> for CausalAlignment {
    fn from(arg: CausalArg) -> Self {
        match arg {
            CausalArg::BottomRight => Self::BottomRight,
            CausalArg::TopLeft => Self::TopLeft,
        }
    }
}

/// `--out-dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutDTypeArg {
    /// Half precision
    F16,
    /// The upper half of single precision
    Bf16,
    /// Single precision
    F32,
}

impl From<OutDTypeArg> for OutDType {
    fn from(arg: OutDTypeArg) -> Self {
        match arg {
            OutDTypeArg::F16 => Self::F16,
            OutDTypeArg::Bf16 => Self::Bf16,
            OutDTypeArg::F32 => Self::F32,
        }
    }
}

/// `LEFT,RIGHT`.
fn window(text: &str) -> Result<Window, String> {
    let (left, right) = text
        .split_once(',')
        .ok_or("expected two numbers, LEFT,RIGHT")?;
    let side = |text: &str| match text.trim().parse::<i64>() {
        Ok(-1) => Ok(None),
        // A side longer than any sequence is as good as the longest.
        Ok(keys @ 0..) => Ok(Some(u32::try_from(keys).unwrap_or(u32::MAX))),
        _ => Err(format!(
            "expected a number of keys, or -1 for unbounded, found `{text}`"
        )),
    };
    Ok(Window {
        left: side(left)?,
        right: side(right)?,
    })
}

/// Parses a command line. `None`: help or version was asked for, and is printed.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Command>> {
    match Cli::try_parse_from(separate_causal(args)) {
        Ok(cli) => Ok(Some(cli.command)),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                error.print().map_err(Failure::Stdout)?;
                Ok(None)
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Err(Failure::Input(
                "expected a command (attend, verify, bench, kernels, doctor), found none; try --help"
                    .into(),
            )),
            _ => Err(Failure::Input(first_paragraph(&error.to_string()))),
        },
    }
}

/// What clap says before it comes to tips and usage, in one line.
fn first_paragraph(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    lines.join(" ")
}

/// `--causal IN.safetensors` is a flag and a file: the alignment may be left out, and clap would
/// take the file for it.
fn separate_causal(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<_> = args.into_iter().collect();
    for i in 0..args.len() {
        if args[i] == "--causal"
            && let Some(next) = args.get(i + 1)
            && CausalArg::from_str(&next.to_string_lossy(), false).is_err()
            && is_file_name(next)
        {
            args[i] = "--causal=bottom-right".into();
        }
    }
    args
}

fn is_file_name(word: &OsString) -> bool {
    let text = word.to_string_lossy();
    !text.starts_with('-')
        && (text.contains(['.', '/', '\\']) || std::path::Path::new(word).exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn attend(words: &[&str]) -> Option<Box<AttendArgs>> {
        let words = ["flashtile", "attend"].iter().chain(words);
        match parse(words.map(OsString::from)) {
            Ok(Some(Command::Attend(args))) => Some(args),
            _ => None,
        }
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn causal_takes_an_alignment_but_no_file() {
        let causal = |words: &[&str]| attend(words).map(|args| (args.causal, args.input));
        let file = PathBuf::from("in.safetensors");
        let bottom_right = Some((Some(CausalArg::BottomRight), file.clone()));
        let top_left = Some((Some(CausalArg::TopLeft), file));
        assert_eq!(causal(&["--causal", "in.safetensors"]), bottom_right);
        assert_eq!(causal(&["in.safetensors", "--causal"]), bottom_right);
        assert_eq!(
            causal(&["in.safetensors", "--causal", "--check"]),
            bottom_right
        );
        assert_eq!(
            causal(&["--causal", "top-left", "in.safetensors"]),
            top_left
        );
        assert_eq!(causal(&["--causal", "sideways", "in.safetensors"]), None);
    }

    #[test]
    fn windows() {
        let found = window("-1, 7");
        assert_eq!(
            found,
            Ok(Window {
                left: None,
                right: Some(7)
            })
        );
        let endless = window("9999999999,0").map(|window| window.left);
        assert_eq!(endless, Ok(Some(u32::MAX)));
        for bad in [
            "", "1", "1,", "-2,0", "0,-2", "1,2,3", "a,b", "1.5,2", "NaN,1",
        ] {
            assert!(window(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices() {
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for bad in ["", "cuda:", "cuda:-1", "gpu", "cuda:4294967296"] {
            assert!(bad.parse::<DeviceChoice>().is_err(), "{bad}");
        }
    }
}

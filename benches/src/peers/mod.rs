//! Other libraries' attention, in a Python process that is kept alive and asked one thing at a time. What hangs, dies or
//! talks nonsense there is a reason in the results, never an error of the run.

mod process;

use std::{collections::BTreeMap, ffi::OsString, fs::File, path::PathBuf, time::Duration};

use flashtile::element;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    cell::{Cell, Mask},
    inputs::part,
    judge::{Judge, Verdict},
    timer::{FEWEST_SAMPLES, MOST, SAMPLE_SECONDS, WARM_UP},
    workload::seeds,
};
use process::Process;

/// The program, to be written to a file and given to [`Options::script`].
pub const SCRIPT: &str = include_str!("peers.py");

/// Peers by name, as the program knows them.
pub const NAMES: [&str; 7] = [
    "torch-flash",
    "torch-cudnn",
    "flash-attn-2",
    "flash-attn-3",
    "flash-attn-4",
    "flashinfer",
    "flex-attention",
];

/// Most processes of one run: whatever ends them so often ends the next as well.
const MOST_PROCESSES: usize = 10;

/// How peers are run.
#[derive(Debug)]
pub struct Options {
    /// Which, of [`NAMES`].
    pub names: Vec<String>,
    /// `cuda:N` as flashtile counts GPUs, or `cpu` for a rehearsal.
    pub device: String,
    /// The Python interpreter.
    pub python: OsString,
    /// The file that holds [`SCRIPT`].
    pub script: PathBuf,
    /// Takes what libraries print.
    pub log: Option<File>,
    /// Longest time to import the libraries, and to prepare a peer for a cell: some compile.
    pub patience: Duration,
}

/// What is known of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct About {
    /// Name.
    pub name: String,
    /// Version of the library, if it says.
    pub version: String,
    /// Why it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// What is known of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Python {
    /// Version of torch.
    pub torch: String,
    /// Version of CUDA that it was built with.
    pub cuda: String,
    /// Why there are no peers at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// A peer, ready to be timed in a cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// `graph` or `launches`.
    pub method: String,
    /// Launches of one sample.
    pub launches: usize,
    /// Whether what it computes is right.
    pub verdict: Verdict,
}

/// The peers.
#[derive(Debug)]
pub struct Peers {
    options: Options,
    process: Option<Process>,
    /// Processes started so far.
    started: usize,
    python: Python,
    about: Vec<About>,
    /// Those that cost the process once, and why.
    given_up: BTreeMap<String, String>,
    /// The cell that is open, as it was asked.
    cell: Option<Value>,
    /// Whose preparation the present process knows.
    prepared: Vec<String>,
}

/// Why there is no answer.
enum Trouble {
    /// The process says so, and goes on.
    Said(String),
    /// The process is gone.
    Lost(String),
}

impl Trouble {
    fn reason(self) -> String {
        match self {
            Self::Said(reason) | Self::Lost(reason) => reason,
        }
    }
}

impl Peers {
    /// Starts the process and asks who is there.
    pub fn start(options: Options) -> Self {
        let mut peers = Self {
            options,
            process: None,
            started: 0,
            python: Python::default(),
            about: Vec::new(),
            given_up: BTreeMap::new(),
            cell: None,
            prepared: Vec::new(),
        };
        if let Err(trouble) = peers.hello() {
            peers.python.missing = Some(trouble.reason());
        }
        peers
    }

    /// What is known of the process.
    pub fn python(&self) -> &Python {
        &self.python
    }

    /// What is known of each peer.
    pub fn about(&self) -> &[About] {
        &self.about
    }

    /// Names and versions of those that are there.
    pub fn present(&self) -> Vec<(String, String)> {
        let present = self.about.iter().filter(|peer| peer.missing.is_none());
        present
            .map(|peer| (peer.name.clone(), peer.version.clone()))
            .collect()
    }

    /// TFLOP/s of the fastest of a few large matrix products.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn peak(&mut self, dtype: &str, time: Duration) -> Result<f64, String> {
        let ask = json!({"ask": "peak", "dtype": dtype, "seconds": time.as_secs_f64()});
        let limit = self.options.patience + 10 * time;
        let answer = self.ask(&ask, limit).map_err(Trouble::reason)?;
        let tflops = answer["tflops"].as_f64().filter(|&tflops| tflops > 0.0);
        tflops.ok_or_else(|| format!("it answered {answer}"))
    }

    /// Makes the tensors of a cell.
    ///
    /// # Errors
    /// Why they cannot be had, for example that they do not fit in memory.
    pub fn open(&mut self, cell: &Cell, sets: usize, judge: &Judge) -> Result<(), String> {
        self.prepared.clear();
        self.cell = Some(ask_of(cell, sets, judge));
        self.reopen().map_err(Trouble::reason)
    }

    /// Frees the tensors of a cell.
    pub fn close(&mut self) {
        self.cell = None;
        self.prepared.clear();
        if self.process.is_some() {
            // If it is lost, the next cell starts another.
            let _ = self.ask(&json!({"ask": "close"}), self.options.patience);
        }
    }

    /// Makes a peer ready, and judges what it computes.
    ///
    /// # Errors
    /// Why it cannot do the cell.
    pub fn prepare(&mut self, name: &str, judge: &Judge) -> Result<Prepared, String> {
        let answer = self.prepared_answer(name)?;
        let text = answer["rows"].as_str().and_then(from_base64);
        let (Some(bytes), Some(launches)) = (text, answer["launches"].as_u64()) else {
            return Err(format!("it answered {answer}"));
        };
        let (words, _) = bytes.as_chunks::<4>();
        let rows: Vec<_> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
        Ok(Prepared {
            method: answer["method"].as_str().unwrap_or_default().into(),
            launches: usize::try_from(launches).unwrap_or(0),
            verdict: judge.judge(&rows),
        })
    }

    fn prepared_answer(&mut self, name: &str) -> Result<Value, String> {
        let ask = json!({
            "ask": "prepare",
            "peer": name,
            "warm_up": WARM_UP,
            "sample_seconds": SAMPLE_SECONDS,
            "most": MOST,
        });
        let answer = self.ask_peer(name, &ask, self.options.patience)?;
        self.prepared.push(name.into());
        Ok(answer)
    }

    /// Samples of a prepared peer for about so long: seconds a launch, each.
    ///
    /// # Errors
    /// Why it could not go on.
    pub fn samples(&mut self, name: &str, time: Duration) -> Result<Vec<f64>, String> {
        // Another peer may have cost the process in which this one was prepared.
        if self.process.is_none() {
            self.reopen().map_err(Trouble::reason)?;
        }
        if !self.prepared.iter().any(|known| known == name) {
            self.prepared_answer(name)?;
        }
        let ask = json!({
            "ask": "time",
            "peer": name,
            "seconds": time.as_secs_f64(),
            "fewest": FEWEST_SAMPLES,
            "most": MOST,
        });
        let answer = self.ask_peer(name, &ask, self.options.patience + 10 * time)?;
        let times = answer["times"].as_array().into_iter().flatten();
        let times: Vec<_> = times.filter_map(Value::as_f64).collect();
        match times.iter().all(|&seconds| seconds > 0.0) && !times.is_empty() {
            true => Ok(times),
            false => Err(format!("it answered {answer}")),
        }
    }

    /// Asks on behalf of a peer, which is given up if that costs the process.
    fn ask_peer(&mut self, name: &str, ask: &Value, limit: Duration) -> Result<Value, String> {
        if let Some(reason) = self.given_up.get(name) {
            return Err(reason.clone());
        }
        if self.process.is_none() {
            self.reopen().map_err(Trouble::reason)?;
        }
        match self.ask(ask, limit) {
            Ok(answer) => Ok(answer),
            Err(Trouble::Said(reason)) => Err(reason),
            Err(Trouble::Lost(reason)) => {
                self.given_up
                    .insert(name.into(), format!("given up: {reason}"));
                Err(reason)
            }
        }
    }

    fn hello(&mut self) -> Result<(), Trouble> {
        let Options {
            names,
            device,
            python,
            script,
            log,
            patience,
        } = &self.options;
        if self.started == MOST_PROCESSES {
            return Err(Trouble::Lost(format!(
                "{MOST_PROCESSES} processes were lost"
            )));
        }
        self.started += 1;
        let process = Process::start(python, script, log.as_ref());
        let (patience, names) = (*patience, names.clone());
        let ask = json!({"ask": "hello", "device": device, "names": names});
        self.process = Some(process.map_err(Trouble::Lost)?);
        let answer = self.ask(&ask, patience).inspect_err(|_| {
            self.process = None;
        })?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.python = Python {
            torch: text(&answer["torch"]),
            cuda: text(&answer["cuda"]),
            missing: None,
        };
        let about = |name: &String| {
            let peer = &answer["peers"][name];
            About {
                name: name.clone(),
                version: text(&peer["version"]),
                missing: match &peer["version"] {
                    Value::String(_) => None,
                    _ => Some(text(&peer["missing"])),
                },
            }
        };
        self.about = names.iter().map(about).collect();
        Ok(())
    }

    /// Makes the tensors of the open cell, in a new process if need be.
    fn reopen(&mut self) -> Result<(), Trouble> {
        if self.process.is_none() {
            self.hello()?;
        }
        self.prepared.clear();
        let Some(cell) = self.cell.clone() else {
            return Ok(());
        };
        let answer = self.ask(&json!({"ask": "open", "cell": cell}), self.options.patience)?;
        match answer["probe"] == cell["probe"] {
            true => Ok(()),
            false => Err(Trouble::Said(format!(
                "its tensors hold other numbers: {} for {}",
                answer["probe"], cell["probe"]
            ))),
        }
    }

    fn ask(&mut self, ask: &Value, limit: Duration) -> Result<Value, Trouble> {
        let Some(process) = &mut self.process else {
            return Err(Trouble::Lost("the process has ended".into()));
        };
        let answer = process.ask(ask, limit).map_err(|reason| {
            self.process = None;
            Trouble::Lost(reason)
        })?;
        let Some(error) = answer["error"].as_str() else {
            return Ok(answer);
        };
        if answer["lost"] == true {
            self.process = None;
            return Err(Trouble::Lost(error.into()));
        }
        Err(Trouble::Said(error.into()))
    }
}

/// A cell as the program takes it, with the first and last element of each tensor, which the answer must repeat.
fn ask_of(cell: &Cell, sets: usize, judge: &Judge) -> Value {
    let s = &cell.shape;
    let window = match cell.mask {
        Mask::Window(window) => [window.left, window.right].map(|side| side.map_or(-1, i64::from)),
        Mask::Full | Mask::Causal => [-1, -1],
    };
    let problem = cell.problem(Default::default());
    let tensors = [&problem.q, &problem.k, &problem.v]
        .into_iter()
        .zip(seeds(0));
    let ends = tensors.flat_map(|(layout, seed)| {
        let count = layout.elements().unwrap_or(0);
        let end = |at: usize| {
            let bytes = part(cell.dtype, seed, at..at + 1);
            f64::from(element::read(cell.dtype, &bytes, 0))
        };
        [end(0), end(count.saturating_sub(1))]
    });
    json!({
        "dtype": cell.dtype.as_str(),
        "mask": cell.mask.name(),
        "cache": cell.cache.to_string(),
        "window": window,
        "batch": s.batch,
        "seqlen_q": s.seqlen_q,
        "seqlen_k": s.seqlen_k,
        "heads_q": s.heads_q,
        "heads_kv": s.heads_kv,
        "head_dim_qk": s.head_dim_qk,
        "head_dim_v": s.head_dim_v,
        "seeds": (0..sets).map(seeds).collect::<Vec<_>>(),
        "rows": judge.places(),
        "probe": ends.collect::<Vec<_>>(),
    })
}

/// The bytes of base64 (RFC 4648) with padding.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for &c in group {
            bits = bits << 6 | u32::from(digit(c)?);
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64() {
        let cases: [(&str, &[u8]); 5] = [
            ("", b""),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("AP+/", &[0x00, 0xff, 0xbf]),
        ];
        for (text, bytes) in cases {
            assert_eq!(from_base64(text).as_deref(), Some(bytes), "{text}");
        }
        for bad in ["Z", "Zg", "Zg=", "Zm9v=", "Zm 9", "===="] {
            assert_eq!(from_base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_program_knows_every_name_and_dtype() {
        for name in NAMES {
            assert!(SCRIPT.contains(&format!("\n    \"{name}\": (")), "{name}");
        }
        for dtype in crate::cell::dtypes() {
            let name = dtype.as_str();
            assert!(SCRIPT.contains(&format!("\"{name}\": ")), "{name}");
        }
    }
}

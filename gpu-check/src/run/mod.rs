//! Everything, step by step: each with its log and its limit, going on after failures, into one folder of
//! results.
//!
//! | file | what |
//! |---|---|
//! | `summary.txt`, `summary.json` | every step and how it ended; rewritten after each |
//! | `log.txt` | what the steps printed |
//! | `maps.json` | the driver's tensor maps ([`crate::maps`]) |
//! | `micro-GROUP.jsonl`, `dense.bin` | instructions ([`crate::report`], [`crate::dense`]) |
//! | `repeat-TIER.json` | repeated launches |
//! | `bench/` | times: what `flashtile bench` writes |
//!
//! Exit status: 0 all is well, 1 something failed, 2 bad input, 3 no GPU.

mod process;
pub mod steps;

use std::{
    env, fs,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use clap::Args;
use flashtile_benches::machine::date;
use serde_json::{Value, json};

use process::End;
use steps::{Plan, Step, chosen};

/// Options of `run`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Folder for the results; files of an earlier run are replaced
    #[arg(long, default_value = "results")]
    pub results: PathBuf,
    /// cuda, cuda:N, or emulator for a rehearsal without a GPU
    #[arg(long, default_value = "cuda")]
    pub device: String,
    /// Only these steps, by name or by what comes before a dash: micro,suite,sanitize
    #[arg(long, value_delimiter = ',')]
    pub steps: Vec<String>,
    /// Seconds for everything; a step gets what is left
    #[arg(long, default_value_t = 1440)]
    pub budget: u64,
    /// Small versions of everything
    #[arg(long)]
    pub quick: bool,
    /// Print the names of the steps and stop
    #[arg(long)]
    pub list: bool,
    /// The packed folder; that of this program if left out
    #[arg(long, hide = true)]
    pub folder: Option<PathBuf>,
}

/// Bytes of a step's output that are kept at each end.
const KEPT: u64 = 512 << 10;

/// How a step ended, in the words of the summary.
#[derive(Clone, Debug)]
struct Done {
    name: String,
    state: String,
    ok: bool,
    seconds: f64,
    last_line: String,
}

/// Runs everything; returns the exit status.
pub fn run(options: &Options) -> u8 {
    match Session::open(options).and_then(Session::run) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("{}: {error}", options.results.display());
            2
        }
    }
}

struct Session<'a> {
    options: &'a Options,
    folder: PathBuf,
    results: PathBuf,
    started: Instant,
    date: String,
    gpu: Option<String>,
    done: Vec<Done>,
    log: File,
    /// Where the driver keeps what it has compiled, so that every step after the first finds it.
    cache: PathBuf,
}

impl<'a> Session<'a> {
    fn open(options: &'a Options) -> io::Result<Self> {
        let beside = || {
            let program = env::current_exe()?;
            let folder = program.parent().map(Path::to_path_buf);
            folder.ok_or_else(|| io::Error::other("this program has no folder"))
        };
        let folder = match &options.folder {
            Some(folder) => folder.clone(),
            None => beside()?,
        };
        fs::create_dir_all(&options.results)?;
        let results = fs::canonicalize(&options.results)?;
        let log = File::create(results.join("log.txt"))?;
        let cache = env::temp_dir().join(format!("flashtile-gpu-check-{}", std::process::id()));
        Ok(Self {
            options,
            folder,
            results,
            started: Instant::now(),
            date: date(SystemTime::now()),
            gpu: None,
            done: Vec::new(),
            log,
            cache,
        })
    }

    fn run(mut self) -> io::Result<u8> {
        let quick = self.options.quick || self.options.device == "emulator";
        let (folder, results) = (self.folder.clone(), self.results.clone());
        let plan = Plan {
            folder: &folder,
            results: &results,
            device: &self.options.device,
            quick,
        };
        let steps = plan.steps();
        let wanted = &self.options.steps;
        let unknown = wanted.iter().find(|want| {
            !steps
                .iter()
                .any(|step| chosen(&step.name, std::slice::from_ref(want)))
        });
        if self.options.list || unknown.is_some() {
            let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
            println!("{}", names.join("\n"));
            return Ok(match unknown {
                Some(want) => {
                    eprintln!("--steps: there is no {want}");
                    2
                }
                None => 0,
            });
        }
        let mut no_gpu = false;
        if plan.on_gpu() {
            self.step(&plan.probe())?;
            let probe = self.done.last();
            no_gpu = !probe.is_some_and(|done| done.ok);
            self.gpu = probe
                .filter(|done| done.ok)
                .map(|done| done.last_line.clone());
        }
        for step in &steps {
            if !wanted.is_empty() && !chosen(&step.name, wanted) {
                continue;
            }
            match no_gpu {
                true => self.note(step, "not run: no GPU".into()),
                false => self.step(step)?,
            }
            self.summarise()?;
        }
        self.summarise()?;
        // Nothing that matters is lost if it cannot be removed.
        let _ = fs::remove_dir_all(&self.cache);
        let failed = self.done.iter().any(|done| !done.ok);
        print!("{}", self.text());
        Ok(match (no_gpu, failed) {
            (true, _) => 3,
            (false, true) => 1,
            (false, false) => 0,
        })
    }

    fn note(&mut self, step: &Step, state: String) {
        self.done.push(Done {
            name: step.name.clone(),
            state,
            ok: true,
            seconds: 0.0,
            last_line: String::new(),
        });
    }

    fn step(&mut self, step: &Step) -> io::Result<()> {
        if let Some(reason) = &step.skip {
            self.note(step, format!("skipped: {reason}"));
            return Ok(());
        }
        let left = Duration::from_secs(self.options.budget).saturating_sub(self.started.elapsed());
        if left < Duration::from_secs(2) {
            self.note(step, "not run: no time left".into());
            // It was asked for, and nobody knows how it would have ended.
            if let Some(done) = self.done.last_mut() {
                done.ok = false;
            }
            return Ok(());
        }
        println!("{}: {}", step.name, step.command.join(" "));
        let limit = step.limit.min(left);
        let output = self.results.join("step.tmp");
        let stderr = File::create(&output)?;
        let stdout = stderr.try_clone()?;
        let mut command = Command::new(&step.command[0]);
        command
            .args(&step.command[1..])
            .envs(step.env.iter().map(|(name, value)| (name, value)));
        command
            .env("CUDA_CACHE_PATH", &self.cache)
            .env("CUDA_CACHE_MAXSIZE", (1u32 << 30).to_string());
        let start = Instant::now();
        let ended = process::run(&mut command, stdout, stderr, limit);
        let seconds = start.elapsed().as_secs_f64();
        let (ok, state) = match ended {
            Ok(End::Status(0)) => (true, "passed".to_owned()),
            Ok(End::Status(status)) => (false, format!("FAILED with status {status}")),
            Ok(End::TimedOut) => (false, format!("STOPPED after {} s", limit.as_secs())),
            Err(error) => (false, format!("FAILED to start: {error}")),
        };
        writeln!(
            self.log,
            "\n==== {}: {}, {seconds:.1} s\n==== {}",
            step.name,
            state,
            step.command.join(" ")
        )?;
        let last_line = append(&mut self.log, &output)?;
        fs::remove_file(&output)?;
        println!("  {state}, {seconds:.1} s  {last_line}");
        self.done.push(Done {
            name: step.name.clone(),
            state,
            ok,
            seconds,
            last_line,
        });
        Ok(())
    }

    /// What the folder was made from.
    fn build(&self) -> Value {
        let text = fs::read_to_string(self.folder.join("build.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    fn verdict(&self) -> String {
        let failed: Vec<_> = self
            .done
            .iter()
            .filter(|done| !done.ok)
            .map(|done| done.name.as_str())
            .collect();
        let on_gpu = self.options.device != "emulator";
        match (&self.gpu, failed.is_empty()) {
            (None, _) if on_gpu => "no GPU: nothing was checked".into(),
            (_, true) => "all is well".into(),
            (_, false) => format!("failed: {}", failed.join(", ")),
        }
    }

    fn device(&self) -> &str {
        match &self.gpu {
            Some(gpu) => gpu,
            None if self.options.device == "emulator" => "emulator, a rehearsal",
            None => "no GPU",
        }
    }

    fn text(&self) -> String {
        let build = self.build();
        let field = |name: &str| build[name].as_str().unwrap_or("unknown").to_owned();
        let mut text = format!(
            "{}\ndevice   {}\ndate     {}\ncommit   {}\nseconds  {:.0}\n\n",
            self.verdict(),
            self.device(),
            self.date,
            field("commit"),
            self.started.elapsed().as_secs_f64()
        );
        for done in &self.done {
            text += &format!(
                "{:20} {:6.1} s  {:24} {}\n",
                done.name, done.seconds, done.state, done.last_line
            );
        }
        text
    }

    fn summarise(&self) -> io::Result<()> {
        fs::write(self.results.join("summary.txt"), self.text())?;
        let step = |done: &Done| {
            json!({
                "name": done.name,
                "ok": done.ok,
                "state": done.state,
                "seconds": done.seconds,
                "last_line": done.last_line,
            })
        };
        let all = json!({
            "verdict": self.verdict(),
            "device": self.device(),
            "date": self.date,
            "build": self.build(),
            "seconds": self.started.elapsed().as_secs_f64(),
            "steps": self.done.iter().map(step).collect::<Vec<_>>(),
        });
        fs::write(self.results.join("summary.json"), all.to_string())
    }
}

/// Appends a step's output to the log, without the middle of a long one; returns its last line that says anything.
fn append(log: &mut File, path: &Path) -> io::Result<String> {
    let mut file = OpenOptions::new().read(true).open(path)?;
    let len = file.metadata()?.len();
    let mut bytes = Vec::new();
    (&mut file).take(KEPT).read_to_end(&mut bytes)?;
    log.write_all(&bytes)?;
    if len > KEPT {
        let from = len.saturating_sub(KEPT).max(KEPT);
        writeln!(log, "\n==== {} bytes are left out", from - KEPT)?;
        bytes.clear();
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut bytes)?;
        log.write_all(&bytes)?;
    }
    let text = String::from_utf8_lossy(&bytes);
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    Ok(last.unwrap_or_default().chars().take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_chosen_by_name_or_group() {
        let wanted = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        assert!(chosen("suite-laws", &wanted(&["suite"])));
        assert!(chosen("suite-laws", &wanted(&["micro", "suite-laws"])));
        assert!(!chosen("suite-laws", &wanted(&["sui", "laws"])));
        assert!(!chosen("verify-quick", &wanted(&["verify"])));
        assert!(chosen("verify", &wanted(&["verify"])));
        assert!(chosen("verify-quick-sm90a", &wanted(&["verify-quick"])));
        assert!(!chosen("verify-quick-sm90a", &wanted(&["verify"])));
        assert!(!chosen("micro-wgmma-sums", &wanted(&["micro-wgmma-s"])));
    }

    #[test]
    fn a_long_output_loses_its_middle() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let mut text = vec![b'a'; KEPT as usize];
        text.extend(vec![b'b'; 1000]);
        text.extend(vec![b'c'; KEPT as usize - 6]);
        text.extend(b"\nlast\n");
        fs::write(&from, &text).unwrap();
        let last = append(&mut File::create(&to).unwrap(), &from).unwrap();
        assert_eq!(last, "last");
        let log = fs::read(&to).unwrap();
        assert!(!log.contains(&b'B') && log.starts_with(b"aaa") && log.ends_with(b"last\n"));
        assert!(String::from_utf8_lossy(&log).contains("1000 bytes are left out"));
    }
}

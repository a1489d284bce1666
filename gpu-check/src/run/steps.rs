//! What is run, in order: what tells most comes first.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use flashtile_abi::Arch;

use crate::micro::GROUPS;

/// A program and how it is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Name; `suite-laws` is also chosen by `suite`.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables of its environment.
    pub env: Vec<(String, String)>,
    /// Longest time.
    pub limit: Duration,
    /// Why it cannot run here, if so.
    pub skip: Option<String>,
}

/// Where and how large.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// The packed folder.
    pub folder: &'a Path,
    /// The results.
    pub results: &'a Path,
    /// `cuda`, `cuda:N` or `emulator`.
    pub device: &'a str,
    /// Small versions of everything.
    pub quick: bool,
}

/// The program that this is.
pub const SELF: &str = "flashtile-gpu-check";

impl Plan<'_> {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn result(&self, name: &str) -> String {
        self.results.join(name).display().to_string()
    }

    fn step(&self, name: &str, seconds: u64, command: &[&str]) -> Step {
        let mut command: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
        let elsewhere = self.is_second() && command.iter().any(|word| word.ends_with("flashtile"));
        // Programs of the folder are named without a path.
        if self.folder.join(&command[0]).is_file() {
            command[0] = self.path(&command[0]);
        }
        Step {
            name: name.into(),
            command,
            env: Vec::new(),
            limit: Duration::from_secs(seconds),
            skip: elsewhere.then(|| "the command is in the first folder".into()),
        }
    }

    /// Whether this is the folder of the suite's other programs, in which the command has no room.
    fn is_second(&self) -> bool {
        let has = |name: &str| self.folder.join(name).is_file();
        has("suite/cache_rows") && !has("flashtile")
    }

    /// Whether a GPU is asked for.
    pub fn on_gpu(&self) -> bool {
        self.device != "emulator"
    }

    /// The step that says whether there is a GPU.
    pub fn probe(&self) -> Step {
        self.step("gpu", 60, &[SELF, "gpu", "--device", self.device])
    }

    /// Every step after the probe.
    pub fn steps(&self) -> Vec<Step> {
        let device = self.device;
        let mut steps = vec![
            self.step("doctor", 60, &["flashtile", "doctor"]),
            self.tool("smi", 30, &["nvidia-smi"]),
        ];
        let out = self.result("maps.json");
        steps.push(self.step(
            "maps",
            60,
            &[SELF, "maps", "--device", device, "--out", &out],
        ));
        // Each group is a process of its own: one that hangs takes no other along.
        for (group, _) in GROUPS {
            let out = self.result(&format!("micro-{group}.jsonl"));
            let name = format!("micro-{group}");
            steps.push(self.step(
                &name,
                120,
                &[
                    SELF, "micro", "--group", group, "--device", device, "--out", &out,
                ],
            ));
        }
        for tier in TIERS {
            let name = format!("verify-quick-{tier}");
            let quick = ["flashtile", "verify", "--quick", "--filter", tier];
            steps.push(self.step(&name, 150, &[&quick[..], &["--device", device]].concat()));
        }
        let data = self.path("data/minilm-128.safetensors");
        steps.push(self.step(
            "attend",
            60,
            &["flashtile", "attend", &data, "--check", "--device", device],
        ));
        for tier in TIERS {
            let out = self.result(&format!("repeat-{tier}.json"));
            let mut repeat = vec![SELF, "repeat", "--device", device, "--out", &out];
            let small = format!("_d64_{tier}");
            match self.quick {
                true => repeat.extend(["--quick", "--launches", "4", "--filter", &small]),
                false => repeat.extend(["--filter", tier]),
            }
            steps.push(self.step(&format!("repeat-{tier}"), 240, &repeat));
        }
        steps.extend(self.suite());
        let out = self.result("dense.bin");
        let mut dense = vec![SELF, "dense", "--device", device, "--out", &out];
        if self.quick {
            dense.extend(["--divisor", "256"]);
        }
        steps.push(self.step("dense", 120, &dense));
        steps.extend(self.benches());
        steps.extend(self.sanitizers());
        if !self.quick {
            steps.push(self.step("verify", 240, &["flashtile", "verify", "--device", device]));
        }
        steps
    }

    /// A program of the system, if it is there.
    fn tool(&self, name: &str, seconds: u64, command: &[&str]) -> Step {
        let mut step = self.step(name, seconds, command);
        if step.skip.is_some() {
            return step;
        }
        if !self.on_gpu() {
            step.skip = Some("needs a GPU".into());
        } else {
            match find(&step.command[0]) {
                Some(path) => step.command[0] = path.display().to_string(),
                None => step.skip = Some(format!("there is no {} on the path", step.command[0])),
            }
        }
        step
    }

    /// The suite's programs, in the order of their names but for the quickest two.
    fn suite(&self) -> Vec<Step> {
        let files = std::fs::read_dir(self.folder.join("suite"));
        let mut names: Vec<String> = files
            .into_iter()
            .flatten()
            .filter_map(|file| file.ok()?.file_name().into_string().ok())
            .collect();
        names.sort_by_key(|name| {
            let first = ["variants", "golden"]
                .iter()
                .position(|quick| quick == name);
            (first.unwrap_or(2), name.clone())
        });
        let device = if self.on_gpu() { "cuda" } else { "emulator" };
        let mut steps = Vec::new();
        for name in names {
            let mut step = self.step(&format!("suite-{name}"), 240, &[&format!("suite/{name}")]);
            step.env = vec![
                ("FLASHTILE_TEST_DEVICE".into(), device.into()),
                ("FLASHTILE_EXAMPLES".into(), self.path("data")),
                ("FLASHTILE_DATA".into(), self.path("data")),
            ];
            if self.quick {
                // The test of the generator itself needs all of its cases.
                let skip = ["--skip", "generated_cases_reach_everything"];
                step.command.extend(skip.map(String::from));
                step.env
                    .push(("FLASHTILE_TEST_CASES".into(), "0.05".into()));
            }
            steps.push(step);
        }
        steps
    }

    /// The same over the suite's tests of caches, in the folder that has them: `verify` knows no caches.
    fn cache_sanitizers(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for test in ["cache_rows", "cache_blocks"] {
            let program = self.path(&format!("suite/{test}"));
            if !std::path::Path::new(&program).is_file() {
                continue;
            }
            let command = [
                "compute-sanitizer",
                "--tool",
                "memcheck",
                "--error-exitcode",
                "9",
                "--print-limit",
                "40",
                &program,
            ];
            let mut step = self.tool(&format!("sanitize-memcheck-{test}"), 150, &command);
            step.env = vec![
                ("FLASHTILE_TEST_DEVICE".into(), "cuda".into()),
                ("FLASHTILE_TEST_CASES".into(), "0.05".into()),
            ];
            steps.push(step);
        }
        steps
    }

    /// Our times and those of others in the same cells: of dense tensors, and of inference engines.
    fn benches(&self) -> [Step; 2] {
        [
            ("bench", "dense", "360"),
            ("bench-serving", "serving", "150"),
        ]
        .map(|(name, kind, budget)| {
            let out = self.result(name);
            // The harness writes what it has after every cell, and ends by itself before the step's limit. All that can be
            // imported but FlexAttention, which compiles anew for every cell.
            let mut command = vec!["flashtile", "bench", "--device", self.device, "--out", &out];
            command.extend(["--only", kind, "--budget", budget, "--peers"]);
            command
                .push("torch-flash,torch-cudnn,flash-attn-2,flash-attn-3,flash-attn-4,flashinfer");
            if self.quick {
                command.extend(["--quick", "--seconds-per-cell", "0.01"]);
                if kind == "dense" {
                    command.extend(["--seqlen", "64", "--tokens", "64", "--hidden", "64"]);
                    command.extend(["--head-dim", "64"]);
                }
            }
            self.step(name, 480, &command)
        })
    }

    /// NVIDIA's own checkers, over every kernel once. The newest tier comes first, by itself: it is what they know least of.
    fn sanitizers(&self) -> Vec<Step> {
        let verify = self.path("flashtile");
        let step = |tier: &str, tool: &str| {
            let command = [
                "compute-sanitizer",
                "--tool",
                tool,
                "--error-exitcode",
                "9",
                "--print-limit",
                "40",
                &verify,
                "verify",
                "--quick",
                "--filter",
                tier,
                "--device",
                self.device,
            ];
            self.tool(&format!("sanitize-{tool}-{tier}"), 150, &command)
        };
        let tools = ["memcheck", "racecheck", "initcheck", "synccheck"];
        let tiers = TIERS.iter().rev();
        let mut steps: Vec<_> = tiers
            .flat_map(|tier| tools.map(|tool| step(tier, tool)))
            .collect();
        steps.extend(self.cache_sanitizers());
        steps
    }
}

/// What the names of each tier's kernels end with.
const TIERS: [&str; Arch::ALL.len()] = ["sm80", "sm90a"];

/// A program on the path, or where CUDA keeps its own.
fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.push("/usr/local/cuda/bin".into());
    folders.push("/usr/local/nvidia/bin".into());
    folders
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Whether a step is asked for: by its name, or by what comes before a dash.
pub fn chosen(step: &str, wanted: &[String]) -> bool {
    let group = |want: &String| {
        step.strip_prefix(want.as_str())
            .is_some_and(|rest| rest.starts_with('-'))
    };
    // `verify` means the long one: `verify-quick` has a name of its own.
    wanted
        .iter()
        .any(|want| want == step || want != "verify" && group(want))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_instructions_come_before_whole_kernels_and_every_kernel_is_asked_for() {
        let folder = Path::new("nowhere");
        let plan = |quick| {
            let plan = Plan {
                folder,
                results: folder,
                device: "cuda",
                quick,
            };
            plan.steps()
        };
        for quick in [false, true] {
            let steps = plan(quick);
            let place = |name: &str| steps.iter().position(|step| step.name == name).unwrap();
            let first_kernel = place("verify-quick-sm80");
            let micro = |(group, _)| place(&format!("micro-{group}"));
            assert!(GROUPS.map(micro).iter().all(|&at| at < first_kernel));
            assert!(place("maps") < place("micro-tma"));
            let mut names: Vec<_> = steps.iter().map(|step| &step.name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), steps.len());
        }
        // Steps name tiers by what their kernels' names end with.
        for variant in flashtile_abi::variants() {
            let tiers = TIERS.iter().filter(|tier| variant.name.contains(**tier));
            assert_eq!(tiers.count(), 1, "{}", variant.name);
        }
    }
}

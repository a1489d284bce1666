//! Assembles finished entries with NVIDIA's ptxas, where there is one, and reads what it says.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ptx;
use crate::spec::EntrySpec;

/// A ptxas, and the tools beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ptxas {
    /// The program.
    pub path: PathBuf,
    /// Its release, e.g. "13.0, V13.0.88".
    pub version: String,
}

/// What the machine code of one entry takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Registers of a thread when the kernel begins.
    pub registers: u32,
    /// Registers of a thread that it asks for later, by `setmaxnreg`, the fewest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub setmaxnreg: Vec<u32>,
    /// Bytes stored to spill registers.
    pub spill_stores: u32,
    /// Bytes loaded to restore them.
    pub spill_loads: u32,
    /// Bytes of stack.
    pub stack_bytes: u32,
    /// Bytes of static shared memory.
    pub static_shared_bytes: u32,
    /// Tensor-core instructions in the PTX (mma, wgmma).
    pub tensor_core_instructions: u32,
    /// What ptxas remarks: C75xx and the like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Ptxas {
    /// Looks for one: `FLASHTILE_PTXAS`, the path, a CUDA installation, NVIDIA's Python packages.
    ///
    /// `Err` only if the environment names one that does not work.
    pub fn find() -> Result<Option<Self>> {
        if let Some(path) = set("FLASHTILE_PTXAS") {
            return Self::at(&path).map(Some);
        }
        let found = candidates().into_iter().find(|p| p.is_file());
        let found = found.or_else(|| in_site_packages(&python_packages()));
        Ok(found.and_then(|path| Self::at(&path).ok()))
    }

    fn at(path: &Path) -> Result<Self> {
        Ok(Self {
            version: Self::version_of(path)?,
            path: path.to_path_buf(),
        })
    }

    /// The release of ptxas or a tool beside it.
    pub(crate) fn version_of(path: &Path) -> Result<String> {
        let output = Command::new(path)
            .arg("--version")
            .output()
            .map_err(Error::spawn(path))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text
            .split_once("release ")
            .and_then(|(_, v)| v.lines().next());
        let version = version.ok_or_else(|| Error::Ptxas {
            entry: String::new(),
            what: format!("{} --version says no release", path.display()),
        })?;
        Ok(version.trim().to_owned())
    }

    /// A tool that is installed beside this ptxas or on the path ("nvdisasm").
    pub fn tool(&self, name: &str) -> Option<PathBuf> {
        let beside = self.path.parent().map(|p| p.join(name));
        beside
            .into_iter()
            .chain(on_path(name))
            .find(|p| p.is_file())
    }

    /// Assembles the PTX of one entry; the machine code goes to `cubin`, the PTX to a file beside it.
    pub fn assemble(&self, spec: &EntrySpec, ptx: &str, cubin: &Path) -> Result<Facts> {
        self.assemble_with(spec, ptx, cubin, &[])
    }

    /// As [`assemble`](Self::assemble), and the machine code tells the line of PTX that an instruction is from.
    pub fn assemble_with_lines(&self, spec: &EntrySpec, ptx: &str, cubin: &Path) -> Result<Facts> {
        self.assemble_with(spec, ptx, cubin, &["-lineinfo"])
    }

    fn assemble_with(
        &self,
        spec: &EntrySpec,
        ptx: &str,
        cubin: &Path,
        options: &[&str],
    ) -> Result<Facts> {
        let file = cubin.with_extension("ptx");
        fs::write(&file, ptx).map_err(Error::io(&file))?;
        let output = Command::new(&self.path)
            .arg(format!("-arch={}", spec.arch))
            .arg("-v")
            .args(options)
            .arg(&file)
            .arg("-o")
            .arg(cubin)
            .output()
            .map_err(Error::spawn(&self.path))?;
        let mut log = String::from_utf8_lossy(&output.stderr).into_owned();
        log.push_str(&String::from_utf8_lossy(&output.stdout));
        let failed = |what: String| Error::Ptxas {
            entry: spec.name.clone(),
            what,
        };
        if !output.status.success() {
            return Err(failed(log.trim().to_owned()));
        }
        let mut facts = parse_log(&log).ok_or_else(|| failed(format!("unknown output: {log}")))?;
        facts.tensor_core_instructions = tensor_core_instructions(ptx);
        facts.setmaxnreg = setmaxnreg(ptx);
        Ok(facts)
    }
}

/// Reads the output of `ptxas -v` for one entry.
fn parse_log(log: &str) -> Option<Facts> {
    let before = |unit: &str| -> Option<u32> {
        let (head, _) = log.split_once(unit)?;
        let digits = head.rsplit(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    };
    let notes = log
        .lines()
        .filter(|l| l.contains("(C75") || l.contains("Potential Performance"));
    Some(Facts {
        registers: before(" registers")?,
        spill_stores: before(" bytes spill stores")?,
        spill_loads: before(" bytes spill loads")?,
        stack_bytes: before(" bytes stack frame")?,
        static_shared_bytes: before(" bytes smem").unwrap_or(0),
        notes: notes.map(|l| l.trim().to_owned()).collect(),
        ..Facts::default()
    })
}

fn tensor_core_instructions(ptx: &str) -> u32 {
    let clean = ptx::strip_comments(ptx);
    let is_mma = |opcode: &str| {
        ["mma.sync", "wgmma.mma_async", "wmma.mma"]
            .iter()
            .any(|p| opcode.starts_with(p))
    };
    let count = ptx::statements(ptx::body(&clean))
        .filter(|s| is_mma(s.opcode))
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The values of `setmaxnreg`, each once.
fn setmaxnreg(ptx: &str) -> Vec<u32> {
    let clean = ptx::strip_comments(ptx);
    let statements = ptx::statements(ptx::body(&clean));
    let asked = statements.filter(|s| s.opcode.starts_with("setmaxnreg."));
    let values: BTreeSet<u32> = asked.filter_map(|s| s.operands.parse().ok()).collect();
    values.into_iter().collect()
}

fn set(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
}

fn on_path(name: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|f| f.join(name)).collect()
}

fn candidates() -> Vec<PathBuf> {
    let mut found = on_path("ptxas");
    for name in [
        "CUDA_HOME",
        "CUDA_PATH",
        "CUDA_ROOT",
        "CUDA_TOOLKIT_ROOT_DIR",
    ] {
        found.extend(set(name).map(|p| p.join("bin/ptxas")));
    }
    found.push("/usr/local/cuda/bin/ptxas".into());
    for name in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        if let Some(folder) = set(name) {
            found.push(folder.join("bin/ptxas"));
            let pythons = fs::read_dir(folder.join("lib"))
                .into_iter()
                .flatten()
                .flatten();
            let packages: Vec<_> = pythons.map(|p| p.path().join("site-packages")).collect();
            found.extend(in_site_packages(&packages));
        }
    }
    found
}

/// Where the python on the path has its packages.
fn python_packages() -> Vec<PathBuf> {
    let program = "import site, sys; print('\\n'.join(site.getsitepackages() + [site.getusersitepackages()]))";
    let Ok(output) = Command::new("python3").args(["-c", program]).output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(PathBuf::from)
        .collect()
}

/// `nvidia/cu13/bin/ptxas` (13.x) or `nvidia/cuda_nvcc/bin/ptxas` (12.x), the newest.
fn in_site_packages(packages: &[PathBuf]) -> Option<PathBuf> {
    let folders = packages
        .iter()
        .filter_map(|p| fs::read_dir(p.join("nvidia")).ok());
    let tools = folders
        .flatten()
        .flatten()
        .map(|f| f.path().join("bin/ptxas"));
    tools.filter(|p| p.is_file()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'k' for 'sm_80'\n\
        ptxas info    : Function properties for k\n    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
        ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 64 bytes smem, 384 bytes cmem[0]\n\
        ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized\n";

    #[test]
    fn the_log_is_read() {
        let facts = parse_log(LOG).unwrap_or_default();
        assert_eq!(
            (
                facts.registers,
                facts.spill_stores,
                facts.spill_loads,
                facts.stack_bytes
            ),
            (40, 8, 12, 16)
        );
        assert_eq!(facts.static_shared_bytes, 64);
        assert_eq!(facts.notes.len(), 1);
        assert_eq!(parse_log("nothing"), None);
    }

    #[test]
    fn tensor_core_instructions_are_counted() {
        let text = ".version 7.0\n.global .b8 a[2] = {1, 2};\n.entry k(.param .u64 a)\n.maxntid 1, 1, 1\n{ mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {a}, {b}, {c}, {d};\n// mma.sync\n\
            wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {a}, b, c; wgmma.fence.sync.aligned; }";
        assert_eq!(tensor_core_instructions(text), 2);
    }

    #[test]
    fn registers_that_are_asked_for_later_are_known() {
        let text = ".version 8.0\n.entry k()\n{ @%p1 bra $L1; setmaxnreg.inc.sync.aligned.u32 240;\n\
            setmaxnreg.inc.sync.aligned.u32 240; // setmaxnreg.dec.sync.aligned.u32 8;\n\
            $L1:\n\tsetmaxnreg.dec.sync.aligned.u32 \t24; ret; }";
        assert_eq!(setmaxnreg(text), [24, 240]);
        assert_eq!(setmaxnreg(".entry k() { ret; }"), [0; 0]);
    }
}

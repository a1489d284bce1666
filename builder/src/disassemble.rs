//! NVIDIA's nvdisasm: machine code as text.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::ptxas::Ptxas;

/// An nvdisasm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvdisasm {
    /// The program.
    pub path: PathBuf,
}

impl Nvdisasm {
    /// The one beside this ptxas or on the path, if it is of the same release: others may not know its code.
    pub fn find(ptxas: &Ptxas) -> Option<Self> {
        let path = ptxas.tool("nvdisasm")?;
        let version = Ptxas::version_of(&path).ok()?;
        let release = |v: &str| v.split(',').next().map(str::to_owned);
        (release(&version) == release(&ptxas.version)).then_some(Self { path })
    }

    /// The code sections of a cubin.
    pub fn text(&self, entry: &str, cubin: &Path) -> Result<String> {
        run(&self.path, entry, cubin, &["-c"])
    }

    /// The same with the lines of PTX in comments, if the cubin has them ([`Ptxas::assemble_with_lines`]).
    pub fn text_with_lines(&self, entry: &str, cubin: &Path) -> Result<String> {
        run(&self.path, entry, cubin, &["-c", "-gp"])
    }
}

/// What a disassembler writes of a cubin.
pub fn run(program: &Path, entry: &str, cubin: &Path, options: &[&str]) -> Result<String> {
    let output = Command::new(program).args(options).arg(cubin).output();
    let output = output.map_err(Error::spawn(program))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let what = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::sass(entry, what))
    }
}

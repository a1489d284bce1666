//! From the kernel crate to proven PTX.

use std::fs;
use std::path::{Path, PathBuf};

use flashtile_abi::Arch;

use crate::archive::Compiler;
use crate::check::{Problem, check_entry, check_module};
use crate::compile::Compile;
use crate::disassemble::Nvdisasm;
use crate::error::{Error, Result};
use crate::finish::{finish, without_lines};
use crate::limits;
use crate::parallel;
use crate::ptx::Module;
use crate::ptxas::{Facts, Ptxas};
use crate::sass::MachineCode;
use crate::spec::{self, EntrySpec};
use crate::toolchain::Toolchain;

/// Compiles a kernel crate, in the manner of the Rust-CUDA project's `CudaBuilder`.
///
/// ```no_run
/// # fn main() -> Result<(), flashtile_builder::Error> {
/// use flashtile_builder::{Arch, Builder};
/// let build = Builder::new("../kernels").arch(Arch::Sm80).build()?;
/// for kernel in &build.kernels {
///     println!("{}: {} bytes of PTX", kernel.spec.name, kernel.ptx.len());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    kernels: PathBuf,
    arches: Vec<&'static str>,
    specs: Vec<EntrySpec>,
    target_dir: Option<PathBuf>,
    toolchain: Option<Toolchain>,
    emit: Option<PathBuf>,
    enforce: bool,
    echo: bool,
    deny_warnings: bool,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// What compiled it.
    pub compiler: Compiler,
    /// Release of the ptxas that proved it, if there was one.
    pub ptxas: Option<String>,
    /// The kernels in the table's order.
    pub kernels: Vec<Kernel>,
}

/// One kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What the table says of it.
    pub spec: EntrySpec,
    /// A module of PTX with this one entry.
    pub ptx: String,
    /// Size of its parameters in bytes.
    pub params_bytes: u32,
    /// What ptxas says of it.
    pub facts: Option<Facts>,
    /// What its machine code says.
    pub machine: Option<MachineCode>,
}

impl Build {
    /// The kernels that pass a limit ([`limits`]), if ptxas had a look; those of loops if nvdisasm had.
    pub fn over_limits(&self) -> Vec<Problem> {
        over_limits(&self.kernels)
    }
}

fn over_limits(kernels: &[Kernel]) -> Vec<Problem> {
    let over = kernels.iter().filter_map(|kernel| {
        let facts = kernel.facts.as_ref()?;
        let what = limits::over_limits(&kernel.spec, facts, kernel.machine.as_ref())?;
        Some(Problem::Limit {
            entry: kernel.spec.name.clone(),
            what,
        })
    });
    over.collect()
}

impl Builder {
    /// For the crate in this folder, whose entries flashtile-abi's table lists.
    pub fn new(kernels: impl Into<PathBuf>) -> Self {
        Self {
            kernels: kernels.into(),
            arches: Vec::new(),
            specs: spec::all(),
            target_dir: None,
            toolchain: None,
            emit: None,
            enforce: true,
            echo: false,
            deny_warnings: false,
        }
    }

    /// Compiles for this target; several calls add up, none means all.
    #[must_use]
    pub fn arch(mut self, arch: Arch) -> Self {
        self.arches.push(arch.as_str());
        self
    }

    /// Another table than flashtile-abi's.
    #[must_use]
    pub fn entries(mut self, specs: Vec<EntrySpec>) -> Self {
        self.specs = specs;
        self
    }

    /// Lets one entry compute in f64.
    #[must_use]
    pub fn allow_f64(mut self, entry: &str) -> Self {
        for spec in self.specs.iter_mut().filter(|s| s.name == entry) {
            spec.allow_f64 = true;
        }
        self
    }

    /// Where cargo works; `target/kernels` beside the crate unless told.
    #[must_use]
    pub fn target_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.target_dir = Some(folder.into());
        self
    }

    /// The compiler; [`Toolchain::find`] unless told.
    #[must_use]
    pub fn toolchain(mut self, toolchain: Toolchain) -> Self {
        self.toolchain = Some(toolchain);
        self
    }

    /// Writes every kernel's PTX to this folder, even what is rejected afterwards.
    #[must_use]
    pub fn emit(mut self, folder: impl Into<PathBuf>) -> Self {
        self.emit = Some(folder.into());
        self
    }

    /// Whether kernels that spill or pass another limit of [`limits`] are rejected, where
    /// there is a ptxas to tell; they are unless told.
    #[must_use]
    pub fn enforce_limits(mut self, enforce: bool) -> Self {
        self.enforce = enforce;
        self
    }

    /// Whether cargo's messages go to the terminal as they come. Otherwise they are in the error.
    #[must_use]
    pub fn echo(mut self, echo: bool) -> Self {
        self.echo = echo;
        self
    }

    /// Whether the compiler's warnings are errors. What is compiled is the same, and so are the archive's hashes.
    #[must_use]
    pub fn deny_warnings(mut self, deny: bool) -> Self {
        self.deny_warnings = deny;
        self
    }

    /// Compiles, finishes, checks and proves.
    pub fn build(&self) -> Result<Build> {
        let toolchain = self.toolchain_found()?;
        let target_dir = self.work_folder();
        let mut kernels: Vec<Kernel> = self.for_each_target("", |arch, specs| {
            let text = self.compile(&toolchain, arch, false)?;
            self.finish_and_check(&text, specs, arch)
        })?;
        // The table's order, whatever the order of the targets.
        kernels.sort_by_key(|k| self.specs.iter().position(|s| s.name == k.spec.name));
        let ptxas = Ptxas::find()?;
        if let Some(ptxas) = &ptxas {
            let entries: Vec<_> = kernels.iter().map(|k| (&k.spec, k.ptx.as_str())).collect();
            let proven = prove(&entries, ptxas, &target_dir.join("cubin"))?;
            for (kernel, (facts, machine)) in kernels.iter_mut().zip(proven) {
                kernel.facts = Some(facts);
                kernel.machine = machine;
            }
        }
        let problems = over_limits(&kernels);
        if self.enforce && !problems.is_empty() {
            return Err(Error::Rejected(problems));
        }
        Ok(Build {
            compiler: Compiler {
                rustc: toolchain.version,
                llvm: toolchain.llvm,
            },
            ptxas: ptxas.map(|p| p.version),
            kernels,
        })
    }

    /// The finished PTX of the entries whose name contains `filter`, not checked and not proven: for whoever works on them.
    pub fn finished(&self, filter: &str) -> Result<Vec<(EntrySpec, String)>> {
        let toolchain = self.toolchain_found()?;
        self.for_each_target(filter, |arch, specs| {
            let text = self.compile(&toolchain, arch, false)?;
            let mut kernels = Vec::new();
            for entry in finish(&Module::parse(&text)?, specs)? {
                let spec = specs.iter().find(|s| s.name == entry.name);
                kernels.extend(spec.map(|s| (s.clone(), entry.ptx)));
            }
            Ok(kernels)
        })
    }

    /// Compiles the kernels with line tables, and writes the PTX of those whose name contains `filter` to the folder,
    /// with `.file` and `.loc` directives in it: for whoever wants to know which line of Rust an instruction is from,
    /// the emulator's sanitizer among them. Returns their names, and whether the instructions are those that
    /// [`build`](Self::build) gives. Line tables should change none, but nothing promises that.
    pub fn write_with_lines(&self, folder: &Path, filter: &str) -> Result<Vec<(String, bool)>> {
        let toolchain = self.toolchain_found()?;
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        self.for_each_target(filter, |arch, specs| {
            let modules = [false, true].map(|lines| {
                let text = self.compile(&toolchain, arch, lines)?;
                finish(&Module::parse(&text)?, specs)
            });
            let [plain, with_lines] = modules;
            let mut written = Vec::new();
            for (plain, entry) in plain?.iter().zip(with_lines?) {
                let path = folder.join(format!("{}.ptx", entry.name));
                fs::write(&path, &entry.ptx).map_err(Error::io(&path))?;
                written.push((entry.name, without_lines(&entry.ptx) == plain.ptx));
            }
            Ok(written)
        })
    }

    fn toolchain_found(&self) -> Result<Toolchain> {
        match &self.toolchain {
            Some(toolchain) => Ok(toolchain.clone()),
            None => Toolchain::find(&self.kernels),
        }
    }

    /// What `work` makes of each target, and of the entries it has whose name contains `filter`: those of all targets, in order.
    /// Two targets at a time, since the compiler takes a minute or more for one, and one core.
    fn for_each_target<T: Send>(
        &self,
        filter: &str,
        work: impl Fn(&'static str, &[EntrySpec]) -> Result<Vec<T>> + Sync,
    ) -> Result<Vec<T>> {
        let wanted = spec::arches().filter(|a| self.arches.is_empty() || self.arches.contains(a));
        let targets: Vec<_> = wanted
            .map(|arch| (arch, self.specs_of(arch, filter)))
            .filter(|(_, specs)| !specs.is_empty())
            .collect();
        let made = parallel::map(&targets, |(arch, specs)| work(arch, specs))?;
        Ok(made.into_iter().flatten().collect())
    }

    /// The table's entries of a target, those whose name contains `filter`.
    fn specs_of(&self, arch: &str, filter: &str) -> Vec<EntrySpec> {
        let wanted = |s: &&EntrySpec| s.arch == arch && s.name.contains(filter);
        self.specs.iter().filter(wanted).cloned().collect()
    }

    /// The compiler's PTX for a target, each kind in a folder of its own.
    fn compile(&self, toolchain: &Toolchain, arch: &str, lines: bool) -> Result<String> {
        let kind = if lines { "-lines" } else { "" };
        let compile = Compile {
            toolchain,
            kernels: &self.kernels,
            arch,
            target_dir: &self.work_folder().join(format!("{arch}{kind}")),
            lines,
            echo: self.echo,
            deny_warnings: self.deny_warnings,
        };
        compile.run()
    }

    fn work_folder(&self) -> PathBuf {
        let beside = self.kernels.parent().unwrap_or(Path::new("."));
        self.target_dir
            .clone()
            .unwrap_or_else(|| beside.join("target/kernels"))
    }

    /// Turns one module of the compiler into kernels, or says everything that is wrong with it.
    fn finish_and_check(
        &self,
        text: &str,
        specs: &[EntrySpec],
        arch: &'static str,
    ) -> Result<Vec<Kernel>> {
        let module = Module::parse(text)?;
        let mut problems = check_module(&module, specs, arch);
        let finished = finish(&module, specs)?;
        if let Some(folder) = &self.emit {
            fs::create_dir_all(folder).map_err(Error::io(folder))?;
            for entry in &finished {
                let path = folder.join(format!("{}.ptx", entry.name));
                fs::write(&path, &entry.ptx).map_err(Error::io(&path))?;
            }
        }
        let mut kernels = Vec::new();
        for spec in specs {
            if let Some(entry) = finished.iter().find(|f| f.name == spec.name) {
                problems.extend(check_entry(entry, spec));
                kernels.push(Kernel {
                    spec: spec.clone(),
                    ptx: entry.ptx.clone(),
                    params_bytes: entry.params_bytes,
                    facts: None,
                    machine: None,
                });
            }
        }
        if problems.is_empty() {
            Ok(kernels)
        } else {
            Err(Error::Rejected(problems))
        }
    }
}

/// Assembles entries and reads their machine code, that where there is an nvdisasm. Files go to `folder`.
pub fn prove(
    entries: &[(&EntrySpec, &str)],
    ptxas: &Ptxas,
    folder: &Path,
) -> Result<Vec<(Facts, Option<MachineCode>)>> {
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let nvdisasm = Nvdisasm::find(ptxas);
    parallel::map(entries, |(spec, ptx)| {
        let cubin = folder.join(format!("{}.cubin", spec.name));
        let facts = ptxas.assemble(spec, ptx, &cubin)?;
        let read = |nvdisasm: &Nvdisasm| {
            let text = nvdisasm.text(&spec.name, &cubin)?;
            MachineCode::read(&text, spec).map_err(|what| Error::sass(&spec.name, what))
        };
        Ok((facts, nvdisasm.as_ref().map(read).transpose()?))
    })
}

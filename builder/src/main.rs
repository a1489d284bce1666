//! `cargo run -p flashtile-builder`: compiles the kernels and writes the archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use flashtile_builder::archive::{ARCHIVE_FILE, FACTS_FILE, MANIFEST_FILE};
use flashtile_builder::{Arch, Archive, Build, Error, Ptxas, Result, Toolchain, Workspace};

/// Compiles the kernels to PTX, proves them, and writes host/archive.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Compare with the committed archive instead of writing it; exit status 1 if it differs
    #[arg(long, conflicts_with = "arch")]
    check: bool,
    /// Compile for this target only; the archive is not written then
    #[arg(long)]
    arch: Option<Tier>,
    /// Write every kernel's PTX to this folder, even if it is then rejected
    #[arg(long, value_name = "DIR")]
    emit: Option<PathBuf>,
    /// Write every kernel's machine code to this folder, as text (needs ptxas and nvdisasm)
    #[arg(long, value_name = "DIR")]
    sass: Option<PathBuf>,
    /// Write every kernel's PTX with the Rust lines that its instructions are from to this folder, and stop; `flashtile
    /// attend --sanitize --ptx` shows them
    #[arg(long, value_name = "DIR", conflicts_with = "check")]
    lines: Option<PathBuf>,
    /// With --lines: only the kernels whose name contains this
    #[arg(long, value_name = "TEXT", requires = "lines")]
    filter: Option<String>,
    /// Write the archive even if kernels spill registers or pass another limit
    #[arg(long)]
    allow_spills: bool,
    /// Say which compiler and which ptxas would be used, and stop
    #[arg(long)]
    toolchain: bool,
    /// The checkout; by default the one this program was compiled in
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Tier {
    #[value(name = "sm_80")]
    Sm80,
    #[value(name = "sm_90a")]
    Sm90a,
}

impl From<Tier> for Arch {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Sm80 => Self::Sm80,
            Tier::Sm90a => Self::Sm90a,
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all is well; false only from `--check`.
fn run(arguments: &Arguments) -> Result<bool> {
    let root = match &arguments.workspace {
        Some(root) => root.clone(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
    };
    let workspace = Workspace::at(&root).ok_or_else(|| Error::Archive {
        what: format!("{}: no kernels/ and abi/ here", root.display()),
    })?;
    if arguments.toolchain {
        return describe_tools(&workspace);
    }

    let toolchain = Toolchain::find(&workspace.kernels())?;
    if arguments.check && !can_compare(&workspace, &toolchain)? {
        let committed = Archive::open(&workspace.archive())?;
        return Ok(committed.manifest.sources_hash == workspace.sources_hash()?);
    }
    let lock = workspace.lock()?;
    let hash = workspace.sources_hash()?;
    let mut builder = workspace
        .builder()
        .toolchain(toolchain)
        .echo(true)
        .enforce_limits(false);
    if let Some(folder) = &arguments.emit {
        builder = builder.emit(folder);
    }
    if let Some(arch) = arguments.arch {
        builder = builder.arch(arch.into());
    }
    if let Some(folder) = &arguments.lines {
        let filter = arguments.filter.as_deref().unwrap_or_default();
        let written = builder.write_with_lines(folder, filter)?;
        if written.is_empty() {
            return Err(Error::Archive {
                what: format!("no kernel's name contains `{filter}`"),
            });
        }
        for (name, same) in written {
            let word = if same {
                "the same instructions as without lines"
            } else {
                "other instructions than without lines: the compiler ordered or merged some otherwise"
            };
            println!("{name}: {word}");
        }
        return Ok(true);
    }
    let build = builder.build()?;
    drop(lock);

    if let Some(folder) = &arguments.sass {
        disassemble(&workspace, &build, folder)?;
    }
    let mut archive = Archive::pack(&build, hash)?;
    print_table(&build, &archive);
    let over_limits = build.over_limits();
    if !over_limits.is_empty() && !arguments.allow_spills {
        return Err(Error::Rejected(over_limits));
    }
    if arguments.check {
        return compare(&workspace, &archive);
    }
    if arguments.arch.is_none() {
        if let Ok(older) = Archive::open(&workspace.archive()) {
            archive.inherit_facts(&older);
        }
        archive.write(&workspace.archive())?;
        println!("wrote {}", workspace.archive().display());
    }
    Ok(true)
}

/// Whether this compiler is the one that made the committed archive. Says so if not.
fn can_compare(workspace: &Workspace, toolchain: &Toolchain) -> Result<bool> {
    let committed = Archive::open(&workspace.archive())?.manifest;
    let fresh = committed.sources_hash == workspace.sources_hash()?;
    let word = if fresh { "match" } else { "do not match" };
    println!("the sources {word} the archive's hash");
    let (theirs, ours) = (&committed.compiler, toolchain);
    let same = theirs.rustc == ours.version && theirs.llvm == ours.llvm;
    if !same {
        println!(
            "bytes are not compared: the archive is from {} (LLVM {}), here is {} (LLVM {})",
            theirs.rustc, theirs.llvm, ours.version, ours.llvm
        );
    }
    Ok(same)
}

/// Compares a new archive with the committed one, by way of the files it would write.
fn compare(workspace: &Workspace, new: &Archive) -> Result<bool> {
    let old = Archive::open(&workspace.archive())?;
    let mut same = true;
    let mut differs = |what: String| {
        println!("differs: {what}");
        same = false;
    };
    if old.bytes != new.bytes {
        differs(ARCHIVE_FILE.to_owned());
    }
    if old.manifest != new.manifest {
        differs(MANIFEST_FILE.to_owned());
    }
    // Another ptxas makes other machine code of the same PTX; that is no difference of ours.
    if old.facts.ptxas == new.facts.ptxas && old.facts != new.facts {
        differs(FACTS_FILE.to_owned());
    }
    for record in &new.manifest.kernels {
        let before = old.manifest.kernels.iter().find(|r| r.name == record.name);
        if before.is_none_or(|b| b.ptx_sha256 != record.ptx_sha256) {
            differs(format!("the PTX of {}", record.name));
        }
    }
    if same {
        println!("the archive is what these sources give");
    }
    Ok(same)
}

fn print_table(build: &Build, archive: &Archive) {
    let width = build
        .kernels
        .iter()
        .map(|k| k.spec.name.len())
        .max()
        .unwrap_or(0)
        .max(6);
    println!(
        "{:width$} {:>9} {:>6} {:>7} {:>9} {:>9} {:>7}",
        "kernel", "registers", "spills", "shared", "mma", "PTX", "packed"
    );
    for (kernel, record) in build.kernels.iter().zip(&archive.manifest.kernels) {
        let fact = |value: fn(&flashtile_builder::Facts) -> u32| match &kernel.facts {
            Some(facts) => value(facts).to_string(),
            None => "?".to_owned(),
        };
        println!(
            "{:width$} {:>9} {:>6} {:>7} {:>9} {:>9} {:>7}",
            kernel.spec.name,
            fact(|f| f.registers),
            fact(|f| f.spill_stores.max(f.spill_loads)),
            kernel.spec.shared_bytes,
            fact(|f| f.tensor_core_instructions),
            record.ptx_bytes,
            record.packed_bytes,
        );
        for note in kernel.facts.iter().flat_map(|f| &f.notes) {
            println!("  {note}");
        }
    }
    let text: usize = archive.manifest.kernels.iter().map(|r| r.ptx_bytes).sum();
    println!(
        "{} kernels, {text} bytes of PTX, packed to {} bytes; {}; {}",
        build.kernels.len(),
        archive.bytes.len(),
        build.compiler.rustc,
        match &build.ptxas {
            Some(version) => format!("ptxas {version}"),
            None => "no ptxas here: registers and spills are not proven".to_owned(),
        }
    );
}

fn describe_tools(workspace: &Workspace) -> Result<bool> {
    println!("{}", Toolchain::find(&workspace.kernels())?);
    match Ptxas::find()? {
        Some(ptxas) => {
            println!("ptxas {}\n  {}", ptxas.version, ptxas.path.display());
            for name in ["nvdisasm", "cuobjdump"] {
                let path = ptxas.tool(name).map(|p| p.display().to_string());
                println!("{name}\n  {}", path.as_deref().unwrap_or("none"));
            }
        }
        None => println!(
            "ptxas\n  none (pip install nvidia-cuda-nvcc, or FLASHTILE_PTXAS=/path/to/ptxas)"
        ),
    }
    Ok(true)
}

/// Machine code as text, by nvdisasm, or by cuobjdump where there is only that.
fn disassemble(workspace: &Workspace, build: &Build, folder: &Path) -> Result<()> {
    let missing = |what: &str| Error::Archive {
        what: format!("--sass needs {what} (pip install nvidia-cuda-nvcc nvidia-cuda-nvdisasm)"),
    };
    let ptxas = Ptxas::find()?.ok_or_else(|| missing("ptxas"))?;
    let (tool, option) = match (ptxas.tool("nvdisasm"), ptxas.tool("cuobjdump")) {
        (Some(tool), _) => (tool, "-c"),
        (None, Some(tool)) => (tool, "-sass"),
        (None, None) => return Err(missing("nvdisasm or cuobjdump")),
    };
    create(folder)?;
    for kernel in &build.kernels {
        let name = &kernel.spec.name;
        let cubin = workspace
            .target()
            .join("cubin")
            .join(format!("{name}.cubin"));
        let output = Command::new(&tool).arg(option).arg(&cubin).output();
        let output = output.map_err(|source| Error::Spawn {
            program: tool.display().to_string(),
            source,
        })?;
        if !output.status.success() {
            return Err(Error::Ptxas {
                entry: name.clone(),
                what: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        write(&folder.join(format!("{name}.sass")), &output.stdout)?;
    }
    Ok(())
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|source| Error::Io {
        path: folder.to_path_buf(),
        source,
    })
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).map_err(|source| Error::Io {
        path: path.to_path_buf(),
        source,
    })
}

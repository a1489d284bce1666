//! `cargo run -p flashtile-builder`: compiles the kernels and writes the archive.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use flashtile_builder::archive::{ARCHIVE_FILE, FACTS_FILE, MACHINE_CODE_FILE, MANIFEST_FILE};
use flashtile_builder::disassemble::{self, Nvdisasm};
use flashtile_builder::sass::{listing, report};
use flashtile_builder::{
    Arch, Archive, Build, Error, Ptxas, Result, Toolchain, Workspace, builder, limits,
};

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
    /// Print what the machine code's loops cost, by class of instructions and by pipe, and stop (needs ptxas and nvdisasm)
    #[arg(long, conflicts_with_all = ["arch", "check", "lines"])]
    loops: bool,
    /// Print the unmasked loop of this kernel, each instruction with its class and its PTX, and stop (as --loops)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["arch", "check", "lines", "loops", "filter"])]
    listing: Option<String>,
    /// With --lines and --loops: only the kernels whose name contains this
    #[arg(long, value_name = "TEXT")]
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

    if arguments.loops || arguments.listing.is_some() {
        return print_loops(&workspace, arguments);
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
        // Only of the compiler whose archive this is: another one has other warnings.
        .deny_warnings(arguments.check)
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
            return Err(no_such_kernel(filter));
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
        if archive.machine_code.is_empty() {
            println!(
                "no {MACHINE_CODE_FILE}, and limits of loops are not proven: no ptxas here, or no nvdisasm of its release"
            );
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
    if new.machine_code.is_empty() {
        println!(
            "{MACHINE_CODE_FILE} is not compared: no ptxas here, or no nvdisasm of its release"
        );
    } else if old.facts.ptxas == new.facts.ptxas && old.machine_code != new.machine_code {
        differs(MACHINE_CODE_FILE.to_owned());
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

/// What the machine code's loops cost, or one of them instruction by instruction.
fn print_loops(workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    let missing = || Error::Archive {
        what: format!("ptxas and nvdisasm of one release are needed ({INSTALL_TOOLS})"),
    };
    let ptxas = Ptxas::find()?.ok_or_else(missing)?;
    let nvdisasm = Nvdisasm::find(&ptxas).ok_or_else(missing)?;
    let filter = arguments.listing.as_ref().or(arguments.filter.as_ref());
    let filter = filter.map_or("", String::as_str);
    let _lock = workspace.lock()?;
    let mut kernels = workspace.ptx(&workspace.builder().echo(true), filter)?;
    if arguments.listing.is_some() && kernels.iter().any(|(s, _)| s.name == filter) {
        kernels.retain(|(s, _)| s.name == filter);
    }
    if kernels.is_empty() {
        return Err(no_such_kernel(filter));
    }
    let folder = workspace.target().join("loops");
    create(&folder)?;
    if arguments.listing.is_some() {
        for (spec, ptx) in &kernels {
            let cubin = folder.join(format!("{}.cubin", spec.name));
            ptxas.assemble_with_lines(spec, ptx, &cubin)?;
            let text = nvdisasm.text_with_lines(&spec.name, &cubin)?;
            let listing = listing::listing(&text, ptx, spec).map_err(|what| Error::Sass {
                entry: spec.name.clone(),
                what,
            })?;
            print_long(&listing);
        }
        return Ok(true);
    }
    let entries: Vec<_> = kernels.iter().map(|(s, p)| (s, p.as_str())).collect();
    let proven = builder::prove(&entries, &ptxas, &folder)?;
    let rows = kernels
        .iter()
        .zip(&proven)
        .filter_map(|((spec, _), proof)| {
            let (facts, machine) = proof;
            let machine = machine.as_ref()?;
            Some(report::Row {
                spec,
                facts,
                machine,
            })
        });
    let rows: Vec<_> = rows.collect();
    print_long(&report::tables(&rows, &ptxas.version));
    let over = rows.iter().filter_map(|r| {
        let what = limits::over_limits(r.spec, r.facts, Some(r.machine))?;
        Some(format!("over a limit: {}: {what}", r.spec.name))
    });
    for line in over {
        print_long(&format!("{line}\n"));
    }
    Ok(true)
}

/// Prints what people pipe to `head` or `less`: that the other end was closed is no error.
fn print_long(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// What to install for tools that are missing.
const INSTALL_TOOLS: &str = "pip install nvidia-cuda-nvcc nvidia-cuda-nvdisasm";

fn no_such_kernel(filter: &str) -> Error {
    Error::Archive {
        what: format!("no kernel's name contains `{filter}`"),
    }
}

/// Machine code as text, by nvdisasm, or by cuobjdump where there is only that.
fn disassemble(workspace: &Workspace, build: &Build, folder: &Path) -> Result<()> {
    let missing = |what: &str| Error::Archive {
        what: format!("--sass needs {what} ({INSTALL_TOOLS})"),
    };
    let ptxas = Ptxas::find()?.ok_or_else(|| missing("ptxas"))?;
    let nvdisasm = Nvdisasm::find(&ptxas);
    let cuobjdump = ptxas.tool("cuobjdump");
    create(folder)?;
    for kernel in &build.kernels {
        let name = &kernel.spec.name;
        let cubin = workspace
            .target()
            .join("cubin")
            .join(format!("{name}.cubin"));
        let text = match (&nvdisasm, &cuobjdump) {
            (Some(nvdisasm), _) => nvdisasm.text(name, &cubin)?,
            (None, Some(tool)) => disassemble::run(tool, name, &cubin, &["-sass"])?,
            (None, None) => return Err(missing("nvdisasm or cuobjdump")),
        };
        write(&folder.join(format!("{name}.sass")), text.as_bytes())?;
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

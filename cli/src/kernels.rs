//! `flashtile kernels`.

use std::{fs, path::Path};

use flashtile::{DType, Kernel};
use flashtile_builder::{Archive, Facts, Workspace};
use serde_json::json;

use crate::{
    args::KernelsArgs,
    failure::{Failure, Outcome, Result},
    output::{Pending, print},
};

/// The checkout that this program was compiled in, if it is still there.
pub fn workspace() -> Option<Workspace> {
    Workspace::at(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What ptxas said of a kernel, if the checkout's archive knows this very PTX.
fn facts<'a>(archive: Option<&'a Archive>, kernel: &Kernel) -> Option<&'a Facts> {
    let archive = archive?;
    let hash = hex(&kernel.ptx_sha256);
    let records = &archive.manifest.kernels;
    let record = records.iter().find(|record| record.ptx_sha256 == hash)?;
    archive.facts(record)
}

/// Runs the command.
pub fn run(args: &KernelsArgs) -> Result<Outcome> {
    let filter = args.filter.as_deref().unwrap_or_default();
    let kernels: Vec<_> = flashtile::kernels()
        .filter(|kernel| kernel.entry.name.contains(filter))
        .collect();
    if kernels.is_empty() {
        let found = format!("none whose name contains `{filter}`");
        return Err(Failure::bad("kernels", "at least one", found));
    }
    if let Some(folder) = &args.emit {
        emit(folder, &kernels)?;
    }
    let archive = workspace().and_then(|w| Archive::open(&w.archive()).ok());
    let rows: Vec<_> = kernels
        .iter()
        .map(|kernel| (kernel, facts(archive.as_ref(), kernel)))
        .collect();
    match args.json {
        true => print(&as_json(&rows).to_string())?,
        false => print(&table(&rows))?,
    }
    Ok(Outcome::Right)
}

/// Bytes that spill in one thread.
fn spills(facts: &Facts) -> u32 {
    facts.spill_stores.max(facts.spill_loads)
}

fn as_json(rows: &[(&Kernel, Option<&Facts>)]) -> serde_json::Value {
    let kernels = rows.iter().map(|(kernel, facts)| {
        let (entry, operation) = (kernel.entry, kernel.operation);
        let (head_dim_qk, head_dim_v) = operation.head_dims().unzip();
        json!({
            "name": entry.name,
            "arch": entry.arch.as_str(),
            "algorithm": operation.as_str(),
            "dtype": operation.dtype().map(DType::as_str),
            "head_dim_qk": head_dim_qk,
            "head_dim_v": head_dim_v,
            "threads": entry.threads,
            "registers": kernel.registers,
            "shared_bytes": entry.shared_bytes,
            "spill_bytes": facts.map(spills),
            "ptx_bytes": kernel.ptx_bytes,
            "ptx_sha256": hex(&kernel.ptx_sha256),
        })
    });
    json!({ "kernels": kernels.collect::<Vec<_>>() })
}

fn table(rows: &[(&Kernel, Option<&Facts>)]) -> String {
    let width = rows.iter().map(|(k, _)| k.entry.name.len()).max();
    let width = width.unwrap_or(0).max(4);
    let mut lines = vec![format!(
        "{:width$} {:6} {:11} {:5} {:>8} {:>7} {:>9} {:>7} {:>6}",
        "name",
        "arch",
        "algorithm",
        "dtype",
        "head_dim",
        "threads",
        "registers",
        "shared",
        "spills"
    )];
    let known = |n: Option<u32>| n.map_or("?".into(), |n| n.to_string());
    for (kernel, facts) in rows {
        let (entry, operation) = (kernel.entry, kernel.operation);
        let head_dim = match operation.head_dims() {
            None => "any".into(),
            Some((qk, v)) if qk == v => qk.to_string(),
            Some((qk, v)) => format!("{qk}/{v}"),
        };
        lines.push(format!(
            "{:width$} {:6} {:11} {:5} {head_dim:>8} {:>7} {:>9} {:>7} {:>6}",
            entry.name,
            entry.arch.as_str(),
            operation.as_str(),
            operation.dtype().map_or("any", DType::as_str),
            entry.threads,
            known(kernel.registers),
            entry.shared_bytes,
            known(facts.map(spills)),
        ));
    }
    lines.join("\n")
}

/// Writes NAME.ptx for each kernel.
fn emit(folder: &Path, kernels: &[Kernel]) -> Result<()> {
    fs::create_dir_all(folder)
        .map_err(|error| Failure::bad(folder.display(), "a folder that can be written", error))?;
    for kernel in kernels {
        let text = flashtile::ptx(kernel.entry)?;
        let path = folder.join(format!("{}.ptx", kernel.entry.name));
        Pending::create(&path, None)?.commit(text.as_bytes())?;
    }
    Ok(())
}

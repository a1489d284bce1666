//! The build script of the library: makes sure that the archive is fresh and turns its manifest into
//! a static table, so that the library itself parses nothing.

use std::env;
use std::fmt::Write as _;
use std::path::Path;

use crate::archive::{ARCHIVE_FILE, Archive, write_whole};
use crate::error::{Error, Result};
use crate::spec;
use crate::workspace::{Freshness, Workspace};

/// Set to `frozen`, it embeds the committed archive whatever the kernels' sources say: for work on the
/// host side while kernels don't compile. The build says so in a warning.
const OVERRIDE: &str = "FLASHTILE_ARCHIVE";

/// Writes `kernels.bin` and `kernels.rs` to `out`, from the archive of the crate in `host`.
///
/// `kernels.rs` is an expression, `&[Entry { name: .., .. }, ..]`; `packed` in it is a range of
/// `kernels.bin`. Prints what cargo must watch.
pub fn embed(host: &Path, out: &Path) -> Result<()> {
    let root = host.parent().unwrap_or(host);
    let committed = host.join("archive");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", committed.display());
    println!("cargo::rerun-if-env-changed={OVERRIDE}");

    let frozen = env::var_os(OVERRIDE).is_some_and(|v| v == "frozen");
    let archive = match Workspace::at(root) {
        Some(workspace) if !frozen => {
            for variable in ["FLASHTILE_RUSTC", "FLASHTILE_CARGO"] {
                println!("cargo::rerun-if-env-changed={variable}");
            }
            for krate in [workspace.kernels(), workspace.abi()] {
                for path in [krate.join("src"), krate.join("Cargo.toml")] {
                    println!("cargo::rerun-if-changed={}", path.display());
                }
            }
            let (archive, freshness) = workspace.ensure_archive(&out.join("archive"))?;
            if let Freshness::Rebuilt { over_limits } = freshness {
                println!("cargo::warning=the kernels have changed: rebuilt the archive");
                for problem in over_limits {
                    println!("cargo::warning={problem}");
                }
            }
            archive
        }
        workspace => {
            if workspace.is_some() {
                println!(
                    "cargo::warning={OVERRIDE}=frozen: the archive may be older than the kernels"
                );
            }
            Archive::open(&committed)?
        }
    };
    if !frozen {
        agrees_with_table(&archive)?;
    }
    write_whole(&out.join(ARCHIVE_FILE), &archive.bytes)?;
    write_whole(&out.join("kernels.rs"), table(&archive)?.as_bytes())
}

/// The archive must have exactly the variants of the flashtile-abi that is being compiled with it.
fn agrees_with_table(archive: &Archive) -> Result<()> {
    let records = &archive.manifest.kernels;
    let specs = spec::all();
    for spec in &specs {
        let same = records.iter().any(|r| {
            r.name == spec.name
                && r.arch == spec.arch
                && r.threads == spec.threads
                && r.min_blocks == spec.min_blocks
                && r.shared_bytes == spec.shared_bytes
        });
        if !same {
            let what = format!("{}: the archive and this flashtile-abi disagree", spec.name);
            return Err(Error::archive(what));
        }
    }
    match records
        .iter()
        .find(|r| !specs.iter().any(|s| s.name == r.name))
    {
        Some(record) => Err(Error::archive(format!(
            "{} is unknown to this flashtile-abi",
            record.name
        ))),
        None => Ok(()),
    }
}

/// The static table, as Rust.
fn table(archive: &Archive) -> Result<String> {
    let mut out = String::from("&[\n");
    for record in &archive.manifest.kernels {
        // What is embedded can be unpacked.
        archive.ptx(record)?;
        let hash: Vec<_> = (0..record.ptx_sha256.len() / 2)
            .filter_map(|i| record.ptx_sha256.get(2 * i..2 * i + 2))
            .map(|b| format!("0x{b}"))
            .collect();
        let (registers, notes) = match archive.facts(record) {
            Some(f) => (format!("Some({})", f.registers), f.notes.len()),
            None => ("None".to_owned(), 0),
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "    Entry {{ name: {:?}, registers: {registers}, notes: {notes}, \
             ptx_bytes: {}, ptx_sha256: [{}], packed: {}..{} }},",
            record.name,
            record.ptx_bytes,
            hash.join(", "),
            record.offset,
            record.offset + record.packed_bytes,
        );
    }
    out.push_str("]\n");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Compiler, Record};
    use crate::builder::{Build, Kernel};

    #[test]
    fn the_table_is_rust() -> Result<()> {
        let specs = spec::all();
        let Some(first) = specs.first() else {
            return Ok(());
        };
        let build = Build {
            compiler: Compiler::default(),
            ptxas: None,
            kernels: vec![Kernel {
                spec: first.clone(),
                ptx: "ret;".into(),
                params_bytes: 8,
                facts: None,
                machine: None,
            }],
        };
        let archive = Archive::pack(&build, String::new())?;
        let text = table(&archive)?;
        assert!(text.starts_with("&[\n    Entry { name: \""), "{text}");
        assert!(
            text.contains("registers: None") && text.contains("packed: 8.."),
            "{text}"
        );
        // All the other variants are missing.
        assert_eq!(agrees_with_table(&archive).is_err(), specs.len() > 1);
        Ok(())
    }

    #[test]
    fn a_kernel_that_the_table_lacks_is_found() -> Result<()> {
        let kernels = spec::all().into_iter().map(|spec| Kernel {
            spec,
            ptx: String::new(),
            params_bytes: 0,
            facts: None,
            machine: None,
        });
        let build = Build {
            compiler: Compiler::default(),
            ptxas: None,
            kernels: kernels.collect(),
        };
        let mut archive = Archive::pack(&build, String::new())?;
        agrees_with_table(&archive)?;
        let extra = archive.manifest.kernels.first().cloned().map(|r| Record {
            name: "extra".into(),
            ..r
        });
        archive.manifest.kernels.extend(extra);
        assert!(agrees_with_table(&archive).is_err());
        Ok(())
    }
}

//! The packed form in which PTX is committed and embedded.
//!
//! Files in `host/archive/`:
//! - `kernels.bin`: [`MAGIC`], then one brotli stream for every kernel, in the manifest's order;
//! - `manifest.json`: where each stream is, what it must expand to, and what made it ([`Manifest`]);
//! - `facts.json`: what ptxas said about each kernel ([`FactsFile`]), apart because it depends on ptxas;
//! - `machine-code.txt`: what the machine code's loops cost ([`report::snapshot`]), for people to read.
//!
//! The manifest is the only index. The library's build script reads it with this module and turns
//! it into a static table ([`crate::embed`]), so that the format is known here and nowhere else.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::builder::Build;
use crate::compile;
use crate::error::{Error, Result};
use crate::parallel;
use crate::ptxas::Facts;
use crate::sass::report;
use crate::sources::sha256;
use crate::spec::EntrySpec;

/// What `kernels.bin` begins with.
pub const MAGIC: &[u8; 8] = b"flashtl1";

/// The manifest's schema.
pub const SCHEMA: u32 = 1;

/// The packed streams.
pub const ARCHIVE_FILE: &str = "kernels.bin";
/// The index.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Facts about the machine code.
pub const FACTS_FILE: &str = "facts.json";
/// Tables of the machine code's loops.
pub const MACHINE_CODE_FILE: &str = "machine-code.txt";

/// The compiler that made an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compiler {
    /// First line of `rustc -vV`.
    pub rustc: String,
    /// Version of its LLVM.
    pub llvm: String,
}

/// One kernel of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Entry point.
    pub name: String,
    /// Target it is compiled for.
    pub arch: String,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that a multiprocessor can hold.
    pub min_blocks: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Size of the parameters in bytes.
    pub params_bytes: u32,
    /// SHA-256 of the PTX.
    pub ptx_sha256: String,
    /// Size of the PTX.
    pub ptx_bytes: usize,
    /// Where its stream begins in `kernels.bin`.
    pub offset: usize,
    /// Size of its stream.
    pub packed_bytes: usize,
}

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// [`crate::sources::sources_hash`] of kernels/ and abi/.
    pub sources_hash: String,
    /// What compiled them.
    pub compiler: Compiler,
    /// The compiler's flags for each target.
    pub flags: BTreeMap<String, Vec<String>>,
    /// SHA-256 of `kernels.bin`.
    pub archive_sha256: String,
    /// The kernels.
    pub kernels: Vec<Record>,
}

/// `facts.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactsFile {
    /// Release of ptxas.
    pub ptxas: String,
    /// By kernel.
    pub kernels: BTreeMap<String, KernelFacts>,
}

/// Facts about one kernel, and the PTX they are about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFacts {
    /// SHA-256 of that PTX.
    pub ptx_sha256: String,
    /// What ptxas said.
    #[serde(flatten)]
    pub facts: Facts,
}

/// An archive in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// `kernels.bin`.
    pub bytes: Vec<u8>,
    /// `manifest.json`.
    pub manifest: Manifest,
    /// `facts.json`.
    pub facts: FactsFile,
    /// `machine-code.txt`; empty if nothing could read the machine code.
    pub machine_code: String,
}

impl Archive {
    /// Packs what was built.
    pub fn pack(build: &Build, sources_hash: String) -> Result<Self> {
        let streams = parallel::map(&build.kernels, |kernel| {
            compress(kernel.ptx.as_bytes()).map_err(|e| Error::archive(e.to_string()))
        })?;
        let mut bytes = MAGIC.to_vec();
        let mut records = Vec::new();
        let mut facts = FactsFile {
            ptxas: build.ptxas.clone().unwrap_or_default(),
            kernels: BTreeMap::new(),
        };
        for (kernel, stream) in build.kernels.iter().zip(&streams) {
            let EntrySpec {
                name,
                arch,
                threads,
                min_blocks,
                shared_bytes,
                ..
            } = &kernel.spec;
            let ptx_sha256 = sha256(kernel.ptx.as_bytes());
            if let Some(machine) = &kernel.facts {
                let known = KernelFacts {
                    ptx_sha256: ptx_sha256.clone(),
                    facts: machine.clone(),
                };
                facts.kernels.insert(name.clone(), known);
            }
            records.push(Record {
                name: name.clone(),
                arch: (*arch).to_owned(),
                threads: *threads,
                min_blocks: *min_blocks,
                shared_bytes: *shared_bytes,
                params_bytes: kernel.params_bytes,
                ptx_sha256,
                ptx_bytes: kernel.ptx.len(),
                offset: bytes.len(),
                packed_bytes: stream.len(),
            });
            bytes.extend_from_slice(stream);
        }
        let flags = records
            .iter()
            .map(|r| (r.arch.clone(), compile::flags(&r.arch)));
        let manifest = Manifest {
            schema: SCHEMA,
            sources_hash,
            compiler: build.compiler.clone(),
            flags: flags.collect(),
            archive_sha256: sha256(&bytes),
            kernels: records,
        };
        Ok(Self {
            bytes,
            manifest,
            facts,
            machine_code: report::snapshot(build).unwrap_or_default(),
        })
    }

    /// Reads the files of a folder and verifies that they belong together. Facts and machine code may be absent.
    pub fn open(folder: &Path) -> Result<Self> {
        let manifest: Manifest = read_json(&folder.join(MANIFEST_FILE))?;
        let path = folder.join(ARCHIVE_FILE);
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let facts = folder.join(FACTS_FILE);
        let facts = if facts.is_file() {
            read_json(&facts)?
        } else {
            FactsFile::default()
        };
        let machine_code = folder.join(MACHINE_CODE_FILE);
        let machine_code = if machine_code.is_file() {
            fs::read_to_string(&machine_code).map_err(Error::io(&machine_code))?
        } else {
            String::new()
        };
        let archive = Self {
            bytes,
            manifest,
            facts,
            machine_code,
        };
        archive
            .verify()
            .map_err(|what| Error::archive(format!("{}: {what}", folder.display())))?;
        Ok(archive)
    }

    fn verify(&self) -> Result<(), String> {
        if self.manifest.schema != SCHEMA {
            return Err(format!(
                "schema {}, this builder reads {SCHEMA}",
                self.manifest.schema
            ));
        }
        if !self.bytes.starts_with(MAGIC) {
            return Err(format!("{ARCHIVE_FILE} is not an archive of kernels"));
        }
        if sha256(&self.bytes) != self.manifest.archive_sha256 {
            return Err(format!(
                "{ARCHIVE_FILE} is not the one that {MANIFEST_FILE} describes"
            ));
        }
        let inside = |r: &Record| {
            let end = r.offset.checked_add(r.packed_bytes);
            r.offset >= MAGIC.len() && end.is_some_and(|e| e <= self.bytes.len())
        };
        match self.manifest.kernels.iter().find(|r| !inside(r)) {
            Some(record) => Err(format!("{} lies outside of {ARCHIVE_FILE}", record.name)),
            None => Ok(()),
        }
    }

    /// The PTX of one kernel, its hash verified.
    pub fn ptx(&self, record: &Record) -> Result<String> {
        let damaged = || Error::archive(format!("{} is damaged in {ARCHIVE_FILE}", record.name));
        let end = record
            .offset
            .checked_add(record.packed_bytes)
            .ok_or_else(damaged)?;
        let stream = self.bytes.get(record.offset..end).ok_or_else(damaged)?;
        // One byte more than expected, to see a stream that is too long.
        let limit = u64::try_from(record.ptx_bytes)
            .unwrap_or(u64::MAX)
            .saturating_add(1);
        let mut text = String::with_capacity(record.ptx_bytes.min(1 << 24));
        brotli::Decompressor::new(stream, 1 << 16)
            .take(limit)
            .read_to_string(&mut text)
            .map_err(|_| damaged())?;
        if sha256(text.as_bytes()) == record.ptx_sha256 {
            Ok(text)
        } else {
            Err(damaged())
        }
    }

    /// The facts about a kernel, if they are about this very PTX.
    pub fn facts(&self, record: &Record) -> Option<&Facts> {
        let known = self.facts.kernels.get(&record.name)?;
        (known.ptx_sha256 == record.ptx_sha256).then_some(&known.facts)
    }

    /// Takes from an older archive the facts that still hold, where this one has none; the tables of the machine code if
    /// they are about the same PTX as a whole.
    pub fn inherit_facts(&mut self, older: &Self) {
        if self.machine_code.is_empty() && self.bytes == older.bytes {
            self.machine_code.clone_from(&older.machine_code);
        }
        if !self.facts.ptxas.is_empty() {
            return;
        }
        self.facts.ptxas.clone_from(&older.facts.ptxas);
        for record in &self.manifest.kernels {
            if let Some(known) = older.facts.kernels.get(&record.name)
                && known.ptx_sha256 == record.ptx_sha256
            {
                self.facts
                    .kernels
                    .insert(record.name.clone(), known.clone());
            }
        }
    }

    /// Writes the files, the manifest last. A table that nobody could make anew is removed: it would tell of other code.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        write_whole(&folder.join(ARCHIVE_FILE), &self.bytes)?;
        write_whole(&folder.join(FACTS_FILE), json(&self.facts)?.as_bytes())?;
        let tables = folder.join(MACHINE_CODE_FILE);
        if !self.machine_code.is_empty() {
            write_whole(&tables, self.machine_code.as_bytes())?;
        } else if tables.exists() {
            fs::remove_file(&tables).map_err(Error::io(&tables))?;
        }
        write_whole(
            &folder.join(MANIFEST_FILE),
            json(&self.manifest)?.as_bytes(),
        )
    }
}

/// Writes a file under another name first, so that nobody sees half of it.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let written = fs::write(&part, content).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written.map_err(Error::io(path))
}

fn json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    let mut text = text.map_err(|e| Error::archive(e.to_string()))?;
    text.push('\n');
    Ok(text)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::archive(format!("{}: {e}", path.display())))
}

/// Deterministic for a version of brotli, which the lock file pins.
fn compress(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let params = brotli::enc::BrotliEncoderParams {
        quality: QUALITY,
        lgwin: WINDOW,
        size_hint: bytes.len(),
        ..Default::default()
    };
    let mut stream = Vec::new();
    let mut input = bytes;
    brotli::BrotliCompress(&mut input, &mut stream, &params)?;
    Ok(stream)
}

/// Brotli's quality.
const QUALITY: i32 = 10;
/// Base-2 logarithm of brotli's window: it spans the largest kernel.
const WINDOW: i32 = 22;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Kernel;
    use crate::spec::tests::spec;

    fn sample() -> Result<Archive> {
        let kernel = |name: &str, ptx: &str, facts| Kernel {
            spec: EntrySpec {
                shared_bytes: 1024,
                ..spec(name)
            },
            ptx: ptx.into(),
            params_bytes: 16,
            facts,
            machine: None,
        };
        let build = Build {
            compiler: Compiler {
                rustc: "rustc 1".into(),
                llvm: "22".into(),
            },
            ptxas: Some("13.0".into()),
            kernels: vec![
                kernel("a", &"mma.sync;\n".repeat(1000), Some(Facts::default())),
                kernel("b", "", None),
                kernel("c", "ret;\n", None),
            ],
        };
        Archive::pack(&build, "hash".into())
    }

    #[test]
    fn what_is_packed_comes_back() -> Result<()> {
        let archive = sample()?;
        let folder = tempfile::tempdir().map_err(Error::io("temporary"))?;
        archive.write(folder.path())?;
        let read = Archive::open(folder.path())?;
        assert_eq!(read, archive);
        let texts: Result<Vec<_>> = read.manifest.kernels.iter().map(|r| read.ptx(r)).collect();
        assert_eq!(
            texts?,
            [
                "mma.sync;\n".repeat(1000),
                String::new(),
                "ret;\n".to_owned()
            ]
        );
        assert!(read.facts(&read.manifest.kernels[0]).is_some());
        assert!(read.facts(&read.manifest.kernels[1]).is_none());
        assert_eq!(sample()?, archive, "packing is deterministic");
        Ok(())
    }

    #[test]
    fn a_damaged_byte_anywhere_is_found() -> Result<()> {
        let good = sample()?;
        let folder = tempfile::tempdir().map_err(Error::io("temporary"))?;
        good.write(folder.path())?;
        for at in 0..good.bytes.len() {
            let mut bad = good.clone();
            bad.bytes[at] ^= 0x10;
            let path = folder.path().join(ARCHIVE_FILE);
            fs::write(&path, &bad.bytes).map_err(Error::io(&path))?;
            assert!(Archive::open(folder.path()).is_err(), "byte {at}");
            let owner = bad
                .manifest
                .kernels
                .iter()
                .find(|r| (r.offset..r.offset + r.packed_bytes).contains(&at));
            if let Some(record) = owner {
                // Trailing bits of a stream may be padding: then the text is right all the same.
                let text = bad.ptx(record);
                assert!(
                    text.is_err() || text.ok() == good.ptx(record).ok(),
                    "byte {at}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn records_that_lie_are_errors() -> Result<()> {
        let archive = sample()?;
        for change in [
            |r: &mut Record| r.offset = usize::MAX,
            |r: &mut Record| r.packed_bytes = 1 << 40,
            |r: &mut Record| r.packed_bytes = 1,
            |r: &mut Record| r.ptx_bytes = 3,
            |r: &mut Record| r.ptx_sha256.clear(),
        ] {
            let mut record = archive.manifest.kernels[0].clone();
            change(&mut record);
            assert!(archive.ptx(&record).is_err(), "{record:?}");
        }
        Ok(())
    }

    #[test]
    fn facts_outlive_a_build_without_ptxas() -> Result<()> {
        let older = sample()?;
        let mut newer = older.clone();
        newer.facts = FactsFile::default();
        newer.inherit_facts(&older);
        assert_eq!(newer.facts, older.facts);
        newer.facts = FactsFile::default();
        newer.manifest.kernels[0].ptx_sha256 = "other".into();
        newer.inherit_facts(&older);
        assert!(newer.facts.kernels.is_empty());
        Ok(())
    }

    #[test]
    fn tables_of_machine_code_stay_while_they_are_of_this_code() -> Result<()> {
        let older = Archive {
            machine_code: "tables".into(),
            ..sample()?
        };
        let folder = tempfile::tempdir().map_err(Error::io("temporary"))?;
        older.write(folder.path())?;
        assert_eq!(Archive::open(folder.path())?, older);
        let mut newer = sample()?;
        newer.inherit_facts(&older);
        assert_eq!(newer.machine_code, older.machine_code);
        newer = sample()?;
        newer.bytes.push(0);
        newer.manifest.archive_sha256 = sha256(&newer.bytes);
        newer.inherit_facts(&older);
        newer.write(folder.path())?;
        assert_eq!(Archive::open(folder.path())?.machine_code, "");
        assert!(!folder.path().join(MACHINE_CODE_FILE).exists());
        Ok(())
    }
}

//! The archive in a checkout: is it fresh, and if not, make it so.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::archive::Archive;
use crate::builder::Builder;
use crate::check::Problem;
use crate::error::{Error, Result};
use crate::sources::sources_hash;
use crate::spec::{self, EntrySpec};
use crate::toolchain::Toolchain;

/// The folders of a checkout that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    root: PathBuf,
}

/// How an archive came to be fresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It was.
    Fresh,
    /// The sources had changed and it was rebuilt. Kernels that spill are right, only slow: they
    /// are in the archive, and told here.
    Rebuilt {
        /// What passes a limit.
        over_limits: Vec<Problem>,
    },
}

impl Workspace {
    /// The checkout at `root`, if the kernels' sources are there: a published crate has none.
    pub fn at(root: &Path) -> Option<Self> {
        let root = fs::canonicalize(root).ok()?;
        let workspace = Self { root };
        let manifests = [workspace.kernels(), workspace.abi()].map(|f| f.join("Cargo.toml"));
        manifests.iter().all(|m| m.is_file()).then_some(workspace)
    }

    /// The kernel crate.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// The crate that kernels and host share.
    pub fn abi(&self) -> PathBuf {
        self.root.join("abi")
    }

    /// The committed archive.
    pub fn archive(&self) -> PathBuf {
        self.root.join("host/archive")
    }

    /// Where the kernels are compiled.
    pub fn target(&self) -> PathBuf {
        self.root.join("target/kernels")
    }

    /// Hash of the sources as they are now.
    pub fn sources_hash(&self) -> Result<String> {
        sources_hash(&[("kernels", &self.kernels()), ("abi", &self.abi())])
    }

    /// A builder for this checkout's kernels.
    pub fn builder(&self) -> Builder {
        Builder::new(self.kernels()).target_dir(self.target())
    }

    /// Waits until no other process builds kernels here, and keeps others waiting until the file is dropped.
    pub fn lock(&self) -> Result<File> {
        let folder = self.target();
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let path = folder.join(".lock");
        let file = File::create(&path).map_err(Error::io(&path))?;
        file.lock().map_err(Error::io(&path))?;
        Ok(file)
    }

    /// Returns an archive that is of these very sources.
    ///
    /// If the committed one is, or the one in `fallback`, nothing is compiled and no toolchain is
    /// needed. Otherwise it is rebuilt and written in place, so that a commit carries it, or to
    /// `fallback` where the checkout can't be written.
    pub fn ensure_archive(&self, fallback: &Path) -> Result<(Archive, Freshness)> {
        if let Some(archive) = self.fresh(fallback)? {
            return Ok((archive, Freshness::Fresh));
        }
        // A read-only checkout has no place for a lock either; then only OUT_DIR is written, which
        // cargo itself guards.
        let lock = self.lock().ok();
        // Another process may have rebuilt it meanwhile.
        if let Some(archive) = self.fresh(fallback)? {
            return Ok((archive, Freshness::Fresh));
        }
        let target = match lock {
            Some(_) => self.target(),
            None => fallback.join("target"),
        };
        let hash = self.sources_hash()?;
        let stale = |why: Error| match why {
            Error::NoToolchain { .. } | Error::BadToolchain { .. } => {
                Error::Stale { why: why.into() }
            }
            other => other,
        };
        let toolchain = Toolchain::find(&self.kernels()).map_err(stale)?;
        let builder = self.builder().target_dir(target).toolchain(toolchain);
        let build = builder.enforce_limits(false).build()?;
        let mut archive = Archive::pack(&build, hash)?;
        if self.sources_hash()? != archive.manifest.sources_hash {
            return Err(Error::archive(
                "the kernels' sources changed while they were compiled: build again",
            ));
        }
        if let Ok(older) = Archive::open(&self.archive()) {
            archive.inherit_facts(&older);
        }
        if archive.write(&self.archive()).is_err() {
            archive.write(fallback)?;
        }
        let over_limits = build.over_limits();
        Ok((archive, Freshness::Rebuilt { over_limits }))
    }

    /// The finished PTX of the kernels whose name contains `filter`: from the committed archive if it is of these sources,
    /// else by `builder`, without checks.
    pub fn ptx(&self, builder: &Builder, filter: &str) -> Result<Vec<(EntrySpec, String)>> {
        let hash = self.sources_hash()?;
        let archive = Archive::open(&self.archive()).ok();
        let Some(archive) = archive.filter(|a| a.manifest.sources_hash == hash) else {
            return builder.finished(filter);
        };
        let wanted = spec::all().into_iter().filter(|s| s.name.contains(filter));
        let of_archive = wanted.map(|spec| {
            let record = archive
                .manifest
                .kernels
                .iter()
                .find(|r| r.name == spec.name);
            let record = record
                .ok_or_else(|| Error::archive(format!("{}: the archive lacks it", spec.name)))?;
            Ok((spec, archive.ptx(record)?))
        });
        of_archive.collect()
    }

    /// The archive of these sources, if there is one. A damaged one counts as none.
    fn fresh(&self, fallback: &Path) -> Result<Option<Archive>> {
        let hash = self.sources_hash()?;
        let places = [self.archive(), fallback.to_path_buf()];
        let archives = places.iter().filter_map(|p| Archive::open(p).ok());
        Ok(archives
            .into_iter()
            .find(|a| a.manifest.sources_hash == hash))
    }
}

//! `flashtile doctor`.

use std::collections::BTreeMap;

use flashtile::{Arch, DeviceInfo, Error, device::cuda};
use flashtile_builder::{Archive, Ptxas, Toolchain, toolchain::INSTALL};
use serde_json::{Value, json};

use crate::{
    args::DoctorArgs,
    failure::{Outcome, Result},
    kernels::{hex, workspace},
    output::print,
};

/// Where ptxas comes from.
const INSTALL_PTXAS: &str = "pip install nvidia-cuda-nvcc, or FLASHTILE_PTXAS=/path/to/ptxas";

/// What was found on this machine. `Err` says why something is not there.
struct Findings {
    gpus: Result<Vec<DeviceInfo>, String>,
    driver: Result<String, String>,
    kernels: usize,
    /// Of each tier.
    tiers: [(Arch, usize); Arch::ALL.len()],
    archive: Result<ArchiveFindings, String>,
    toolchain: Result<Toolchain, String>,
    ptxas: Result<Ptxas, String>,
}

/// The checkout's archive.
struct ArchiveFindings {
    compiler: String,
    sources_hash: String,
    /// Of the kernels' sources as they are now.
    fresh: bool,
    /// The kernels inside this program are those of the archive.
    embedded: bool,
}

/// Runs the command.
pub fn run(args: &DoctorArgs) -> Result<Outcome> {
    let findings = Findings::gather();
    print(&match args.json {
        true => findings.json().to_string(),
        false => findings.text(),
    })?;
    Ok(Outcome::Right)
}

/// Why there is no device, without saying again that there is none.
fn why(error: flashtile::Error) -> String {
    match error {
        flashtile::Error::NoDevice { reason } => reason,
        other => other.to_string(),
    }
}

impl Findings {
    fn gather() -> Self {
        let folder = workspace().map_or_else(|| ".".into(), |w| w.kernels());
        let ptxas = match Ptxas::find() {
            Ok(Some(ptxas)) => Ok(ptxas),
            Ok(None) => Err(format!("none found ({INSTALL_PTXAS})")),
            Err(error) => Err(error.to_string()),
        };
        Self {
            gpus: cuda::devices().map_err(why),
            driver: cuda::driver_version()
                .map(|(major, minor)| format!("CUDA {major}.{minor}"))
                .map_err(why),
            kernels: flashtile::kernels().count(),
            tiers: Arch::ALL.map(|arch| {
                let of_tier = flashtile::kernels().filter(|kernel| kernel.entry.arch == arch);
                (arch, of_tier.count())
            }),
            archive: archive(),
            toolchain: Toolchain::find(&folder).map_err(|error| error.to_string()),
            ptxas,
        }
    }

    /// GPUs that can run the kernels.
    fn able(&self) -> usize {
        let gpus = self.gpus.iter().flatten();
        gpus.filter(|gpu| gpu.supports(Arch::Sm80).is_ok()).count()
    }

    fn works(&self) -> Vec<String> {
        let mut works = vec!["--device cpu".to_owned()];
        if self.kernels > 0 {
            works.push("--device emulator".into());
            works.extend((self.able() > 0).then(|| "--device cuda".into()));
        }
        works.extend(self.toolchain.is_ok().then(|| "rebuilding kernels".into()));
        works.extend(
            self.ptxas
                .is_ok()
                .then(|| "proving kernels with ptxas".into()),
        );
        works
    }

    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.kernels == 0 {
            missing.push("an archive of kernels in this program".to_owned());
        }
        if self.able() == 0 {
            missing.push("a GPU of compute capability 8.0 or later, with its driver".into());
        }
        // What a GPU lacks for kernels beyond those that every able one runs.
        let gpus = self.gpus.iter().flatten();
        for gpu in gpus.filter(|gpu| gpu.supports(Arch::Sm80).is_ok()) {
            if let Err(Error::NoDevice { reason }) = gpu.supports(Arch::Sm90a) {
                missing.push(reason);
            }
        }
        if let Ok(ArchiveFindings { fresh: false, .. }) = self.archive {
            missing.push("an archive of the kernels' sources as they are now: cargo run -p flashtile-builder".into());
        }
        if self.toolchain.is_err() {
            missing.push("a kernel toolchain, only to rebuild kernels".into());
        }
        if self.ptxas.is_err() {
            missing.push("ptxas, only to prove rebuilt kernels".into());
        }
        missing
    }

    fn json(&self) -> Value {
        let gpus: Vec<_> = self
            .gpus
            .iter()
            .flatten()
            .enumerate()
            .map(|(number, gpu)| {
                json!({
                    "device": format!("cuda:{number}"),
                    "name": gpu.name,
                    "compute_capability": format!("{}.{}", gpu.compute_capability.0, gpu.compute_capability.1),
                    "multiprocessors": gpu.multiprocessors,
                    "memory_bytes": gpu.total_memory,
                    "driver_lacks": gpu.driver_lacks,
                    "tiers": tiers_of(gpu),
                })
            })
            .collect();
        let archive = match &self.archive {
            Ok(found) => json!({
                "compiler": found.compiler,
                "sources_hash": found.sources_hash,
                "up_to_date": found.fresh,
                "embedded": found.embedded,
            }),
            Err(_) => Value::Null,
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "emulator": self.kernels > 0,
            "gpus": gpus,
            "no_gpu_because": self.gpus.as_ref().err(),
            "driver": self.driver.as_ref().ok(),
            "kernels": self.kernels,
            "kernels_by_arch": self.tiers.iter().map(|(arch, count)| (arch.as_str(), *count)).collect::<BTreeMap<_, _>>(),
            "archive": archive,
            "no_archive_because": self.archive.as_ref().err(),
            "toolchain": self.toolchain.as_ref().ok().map(|t| &t.version),
            "ptxas": self.ptxas.as_ref().ok().map(|p| &p.version),
            "works": self.works(),
            "missing": self.missing(),
        })
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("flashtile {}", env!("CARGO_PKG_VERSION"))];
        let mut line = |title: &str, text: String| lines.push(format!("{title:10} {text}"));
        line(
            "emulator",
            match self.kernels {
                0 => "no kernels to run".into(),
                _ => "runs every kernel on the CPU".into(),
            },
        );
        match &self.gpus {
            Ok(gpus) if gpus.is_empty() => line("GPU", "none".into()),
            Ok(gpus) => {
                for (number, gpu) in gpus.iter().enumerate() {
                    let (major, minor) = gpu.compute_capability;
                    let gibibytes = gpu.total_memory as f64 / f64::from(1 << 30);
                    line(
                        &format!("cuda:{number}"),
                        format!(
                            "{}, compute capability {major}.{minor}, {} multiprocessors, {gibibytes:.1} GiB; runs {}",
                            gpu.name,
                            gpu.multiprocessors,
                            match tiers_of(gpu).as_slice() {
                                [] => "no kernels".into(),
                                tiers => tiers.join(", "),
                            },
                        ),
                    );
                }
            }
            Err(reason) => line("GPU", format!("none: {reason}")),
        }
        line(
            "driver",
            match &self.driver {
                Ok(version) => version.clone(),
                Err(_) => "none".into(),
            },
        );
        let tiers = self
            .tiers
            .map(|(arch, count)| format!("{count} {}", arch.as_str()));
        line(
            "kernels",
            format!("{} in this program: {}", self.kernels, tiers.join(", ")),
        );
        line(
            "archive",
            match &self.archive {
                Ok(found) => format!(
                    "{}; sources {}; {}{}",
                    found.compiler,
                    &found.sources_hash.get(..12).unwrap_or(&found.sources_hash),
                    if found.fresh {
                        "up to date"
                    } else {
                        "OLDER than the kernels' sources"
                    },
                    if found.embedded {
                        ""
                    } else {
                        "; not the one in this program"
                    },
                ),
                Err(reason) => reason.clone(),
            },
        );
        line(
            "toolchain",
            match &self.toolchain {
                Ok(toolchain) => toolchain.to_string(),
                Err(_) => format!("none that can compile kernels; to install one:\n{INSTALL}"),
            },
        );
        line(
            "ptxas",
            match &self.ptxas {
                Ok(ptxas) => format!("{}, {}", ptxas.version, ptxas.path.display()),
                Err(reason) => reason.clone(),
            },
        );
        line("works", self.works().join(", "));
        let missing = self.missing();
        if !missing.is_empty() {
            line("missing", missing.join("; "));
        }
        lines.join("\n")
    }
}

/// The tiers of kernels that a GPU runs.
fn tiers_of(gpu: &DeviceInfo) -> Vec<&'static str> {
    let tiers = Arch::ALL.into_iter();
    let able = tiers.filter(|&arch| gpu.supports(arch).is_ok());
    able.map(Arch::as_str).collect()
}

/// The archive of the checkout that this program is from.
fn archive() -> Result<ArchiveFindings, String> {
    let workspace = workspace().ok_or("built outside of a checkout: nothing to compare it with")?;
    let archive = Archive::open(&workspace.archive()).map_err(|error| error.to_string())?;
    let hash = workspace
        .sources_hash()
        .map_err(|error| error.to_string())?;
    let manifest = archive.manifest;
    let recorded = |sha: &str| manifest.kernels.iter().any(|r| r.ptx_sha256 == sha);
    Ok(ArchiveFindings {
        compiler: format!(
            "{}, LLVM {}",
            manifest.compiler.rustc, manifest.compiler.llvm
        ),
        fresh: manifest.sources_hash == hash,
        embedded: flashtile::kernels().count() == manifest.kernels.len()
            && flashtile::kernels().all(|kernel| recorded(&hex(&kernel.ptx_sha256))),
        sources_hash: manifest.sources_hash,
    })
}

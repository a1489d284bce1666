//! Runs cargo and rustc on the kernel crate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::toolchain::{Core, TARGET, Toolchain};

/// The compiler's flags for `arch` ("sm_80"), the same wherever the checkout lies.
///
/// - `--emit=asm -Clinker=true`: the PTX is the assembly of the one crate; nothing is linked.
/// - `-unroll-threshold=20000`: loops over accumulators must go, or the accumulators live in local memory.
/// - `-unroll-runtime=false`: a loop whose count is hidden from the compiler on purpose must not come several times.
/// - `-JumpThreading`: that pass may duplicate barriers (rust-lang/rust#137086).
/// - `--cfg flashtile_arch="..."`: what the kernels' source selects a tier with.
pub fn flags(arch: &str) -> Vec<String> {
    vec![
        format!("-Ctarget-cpu={arch}"),
        "--emit=asm".into(),
        "-Clinker=true".into(),
        "-Cllvm-args=-unroll-threshold=20000 -unroll-runtime=false".into(),
        "-Zmir-enable-passes=-JumpThreading".into(),
        format!("--cfg=flashtile_arch=\"{arch}\""),
        "--check-cfg=cfg(flashtile_arch, values(\"sm_80\", \"sm_90a\"))".into(),
    ]
}

/// The profile the kernels are compiled with, whatever their manifest says.
pub const PROFILE: &[&str] = &[
    "profile.release.panic=\"abort\"",
    "profile.release.lto=\"fat\"",
    "profile.release.codegen-units=1",
    "profile.release.opt-level=3",
    "profile.release.debug=false",
    "profile.release.debug-assertions=false",
    "profile.release.overflow-checks=false",
    "profile.release.incremental=false",
];

/// One compilation.
pub(crate) struct Compile<'a> {
    pub toolchain: &'a Toolchain,
    /// The kernel crate.
    pub kernels: &'a Path,
    pub arch: &'a str,
    /// Where cargo works; another one for every arch.
    pub target_dir: &'a Path,
    /// Whether instructions say from which line they come.
    pub lines: bool,
    /// Whether the compiler's messages go to the terminal as they come.
    pub echo: bool,
    /// Whether a warning is an error.
    pub deny_warnings: bool,
}

impl Compile<'_> {
    /// The PTX as the compiler wrote it.
    pub(crate) fn run(&self) -> Result<String> {
        let kernels = fs::canonicalize(self.kernels).map_err(Error::io(self.kernels))?;
        let root = kernels.parent().unwrap_or(&kernels);
        let mut flags = flags(self.arch);
        flags.push(format!("--remap-path-prefix={}=/flashtile", root.display()));
        if self.deny_warnings {
            flags.push("-Dwarnings".into());
        }

        let mut command = self.toolchain.cargo_command();
        command
            .current_dir(&kernels)
            .args(["build", "--release", "--lib", "--target", TARGET])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", self.target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        for setting in PROFILE {
            command.args(["--config", setting]);
        }
        if self.lines {
            command.args(["--config", "profile.release.debug=\"line-directives-only\""]);
        }
        if let Core::Sources(library) = &self.toolchain.core {
            command.arg("-Zbuild-std=core");
            // The standard library's workspace names crates that `core` does not need, but cargo
            // resolves them all. With their sources beside it, that takes no network.
            let vendor = library.join("vendor");
            if vendor.is_dir() {
                let folder = format!("source.vendored-std.directory='{}'", vendor.display());
                command
                    .arg("--offline")
                    .args(["--config", "source.crates-io.replace-with='vendored-std'"])
                    .args(["--config", &folder]);
            }
        }

        let stderr = if self.echo {
            Stdio::inherit()
        } else {
            Stdio::piped()
        };
        let output = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .output()
            .map_err(Error::spawn(&self.toolchain.cargo))?;
        if !output.status.success() {
            let stderr = match self.echo {
                true => "see the compiler's messages above".to_owned(),
                false => String::from_utf8_lossy(&output.stderr)
                    .trim_end()
                    .to_owned(),
            };
            return Err(Error::Compile {
                arch: self.arch.to_owned(),
                stderr,
            });
        }
        let file = self.assembly(&kernels)?;
        fs::read_to_string(&file).map_err(Error::io(&file))
    }

    /// The assembly file of the kernel crate itself, not of `core` or of its dependencies.
    fn assembly(&self, kernels: &Path) -> Result<PathBuf> {
        let krate = crate_name(&kernels.join("Cargo.toml"))?;
        let folder = self.target_dir.join(TARGET).join("release/deps");
        let exact = folder.join(format!("{krate}.s"));
        if exact.is_file() {
            return Ok(exact);
        }
        let prefix = format!("{krate}-");
        let files = fs::read_dir(&folder).map_err(Error::io(&folder))?;
        let newest = files
            .flatten()
            .map(|f| f.path())
            .filter(|p| p.extension().is_some_and(|e| e == "s"))
            .filter(|p| {
                p.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
            })
            .max_by_key(|p| {
                let time = fs::metadata(p).and_then(|m| m.modified());
                time.unwrap_or(SystemTime::UNIX_EPOCH)
            });
        newest.ok_or_else(|| Error::Compile {
            arch: self.arch.to_owned(),
            stderr: format!(
                "the compiler left no {} (is the crate's type cdylib?)",
                exact.display()
            ),
        })
    }
}

/// The library's name by the first `name = "..."` of the manifest, as rustc spells it.
fn crate_name(manifest: &Path) -> Result<String> {
    let text = fs::read_to_string(manifest).map_err(Error::io(manifest))?;
    let name = text.lines().find_map(|line| {
        let value = line.trim().strip_prefix("name")?.trim_start();
        let value = value.strip_prefix('=')?.trim();
        value.strip_prefix('"')?.split('"').next()
    });
    let name = name.ok_or_else(|| Error::Compile {
        arch: String::new(),
        stderr: format!("{} names no package", manifest.display()),
    })?;
    Ok(name.replace('-', "_"))
}

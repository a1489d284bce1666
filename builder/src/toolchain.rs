//! Finds a Rust compiler that can make PTX.
//!
//! Such a compiler comes with the sources of its `core` (`rust-src`), or with a prebuilt `core` for
//! nvptx64-nvidia-cuda. Sources are preferred: then `core` is compiled with the kernels' own flags.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fmt, fs};

use crate::error::{Error, Result};

/// The target triple of the kernels.
pub const TARGET: &str = "nvptx64-nvidia-cuda";

/// What to type where there is no kernel toolchain.
pub const INSTALL: &str = "  rustup component add rust-src\n  \
     rustup target add nvptx64-nvidia-cuda\n  \
     apt-get update && apt-get install rustc-web cargo-web rust-web-src    (Debian)\n\
     or name one: FLASHTILE_RUSTC=/path/to/rustc FLASHTILE_CARGO=/path/to/cargo";

/// Where `core` for the GPU comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Core {
    /// Compiled from the sources in this `library` folder.
    Sources(PathBuf),
    /// The compiler's own, from `rustup target add`.
    Prebuilt,
}

/// A compiler, its cargo, and its `core`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The compiler itself, never rustup's proxy.
    pub rustc: PathBuf,
    /// The cargo that goes with it.
    pub cargo: PathBuf,
    /// First line of `rustc -vV`.
    pub version: String,
    /// Version of its LLVM.
    pub llvm: String,
    /// Where `core` comes from.
    pub core: Core,
}

impl Toolchain {
    /// Finds one: the environment's (`FLASHTILE_RUSTC`, `FLASHTILE_CARGO`), else the one that
    /// `rustc` means in `folder`, else any other `rustc` on the path or in the usual places.
    pub fn find(folder: &Path) -> Result<Self> {
        if let Some(path) = env::var_os("FLASHTILE_RUSTC").filter(|v| !v.is_empty()) {
            let path = PathBuf::from(path);
            return Self::probe(&path, folder).map_err(|why| Error::BadToolchain { path, why });
        }
        let mut tried = Vec::new();
        for rustc in candidates() {
            match Self::probe(&rustc, folder) {
                Ok(toolchain) => return Ok(toolchain),
                Err(why) => tried.push(format!("{}: {why}", rustc.display())),
            }
        }
        if tried.is_empty() {
            tried.push("no rustc found".to_owned());
        }
        Err(Error::NoToolchain {
            tried: tried.join("; "),
        })
    }

    /// Looks at one compiler; `Err` says what it lacks.
    fn probe(rustc: &Path, folder: &Path) -> Result<Self, String> {
        let sysroot = PathBuf::from(ask(rustc, folder, &["--print", "sysroot"])?);
        // A proxy of rustup resolves to the toolchain's own binaries, which no environment redirects.
        let own = sysroot.join("bin").join(exe("rustc"));
        let rustc = if own.is_file() {
            own
        } else {
            rustc.to_path_buf()
        };
        let verbose = ask(&rustc, folder, &["-vV"])?;
        let field = |name: &str| {
            let line = verbose.lines().find_map(|l| l.strip_prefix(name));
            line.map(|v| v.trim().to_owned())
        };
        let version = verbose.lines().next().unwrap_or_default().to_owned();
        let llvm = field("LLVM version:").unwrap_or_default();

        let library = sysroot.join("lib/rustlib/src/rust/library");
        let core = if library.join("core/src/lib.rs").is_file() {
            Core::Sources(library)
        } else if has_prebuilt_core(&sysroot.join("lib/rustlib").join(TARGET).join("lib")) {
            Core::Prebuilt
        } else {
            return Err(format!("{version} has neither rust-src nor {TARGET}"));
        };
        let cargo =
            find_cargo(&rustc, &sysroot).ok_or_else(|| format!("{version} has no cargo"))?;
        Ok(Self {
            rustc,
            cargo,
            version,
            llvm,
            core,
        })
    }

    /// A call of this toolchain's cargo that the surrounding cargo, rustup and build script don't disturb.
    pub(crate) fn cargo_command(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        clean(&mut command);
        command.env("RUSTC", &self.rustc);
        // A compiler cache configured for the host would cache without `-Z` flags in its key.
        command.env("RUSTC_WRAPPER", "");
        command.env("RUSTC_WORKSPACE_WRAPPER", "");
        command
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = match &self.core {
            Core::Sources(path) => format!("sources in {}", path.display()),
            Core::Prebuilt => "prebuilt".to_owned(),
        };
        write!(
            f,
            "{} (LLVM {})\n  rustc {}\n  cargo {}\n  core  {core}",
            self.version,
            self.llvm,
            self.rustc.display(),
            self.cargo.display()
        )
    }
}

fn exe(name: &str) -> String {
    format!("{name}{}", env::consts::EXE_SUFFIX)
}

/// Every `rustc` on the path, in order, then the usual places.
fn candidates() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/bin", "/usr/local/bin"].map(PathBuf::from));
    let mut found: Vec<PathBuf> = Vec::new();
    for file in folders.map(|f| f.join(exe("rustc"))) {
        if file.is_file() && !found.contains(&file) {
            found.push(file);
        }
    }
    found
}

fn find_cargo(rustc: &Path, sysroot: &Path) -> Option<PathBuf> {
    if let Some(cargo) = env::var_os("FLASHTILE_CARGO").filter(|v| !v.is_empty()) {
        return Some(PathBuf::from(cargo));
    }
    let beside = rustc.parent().map(|p| p.join(exe("cargo")));
    let places = [Some(sysroot.join("bin").join(exe("cargo"))), beside];
    places.into_iter().flatten().find(|p| p.is_file())
}

fn has_prebuilt_core(folder: &Path) -> bool {
    let Ok(files) = fs::read_dir(folder) else {
        return false;
    };
    files.flatten().any(|f| {
        let name = f.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

/// Runs a question-and-answer call of a compiler. rustup's own variables stay: a proxy needs them.
fn ask(rustc: &Path, folder: &Path, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(rustc);
    command.args(args).env_remove("RUSTC_WRAPPER");
    if folder.is_dir() {
        command.current_dir(folder);
    }
    let output = command.output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let line = stderr.lines().next().unwrap_or("it fails").to_owned();
        return Err(line);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Takes out what cargo, rustup and a build script's environment would tell a nested cargo.
fn clean(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if is_leak(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    if let Some(paths) = env::var_os("LD_LIBRARY_PATH") {
        // cargo puts the libraries of the surrounding toolchain there; another compiler must not load them.
        let kept = env::split_paths(&paths).filter(|p| !is_toolchain_folder(p));
        let kept = env::join_paths(kept).unwrap_or_else(|_| OsString::new());
        if kept.is_empty() {
            command.env_remove("LD_LIBRARY_PATH");
        } else {
            command.env("LD_LIBRARY_PATH", kept);
        }
    }
}

fn is_leak(name: &str) -> bool {
    let build_script = [
        "OUT_DIR",
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "NUM_JOBS",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_LINKER",
        "RUSTUP_TOOLCHAIN",
        "RUSTUP_TOOLCHAIN_SOURCE",
        "RUST_RECURSION_COUNT",
        "CARGO",
    ];
    let user = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_TERM_",
        "CARGO_BUILD_JOBS",
    ];
    let cargo = ["CARGO_", "RUSTC_", "DEP_", "__CARGO"];
    build_script.contains(&name)
        || (cargo.iter().any(|p| name.starts_with(p)) && !user.iter().any(|p| name.starts_with(p)))
}

fn is_toolchain_folder(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains("/toolchains/") || text.contains("/rustlib/") || text.contains("/target/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_sets_leaks_and_what_the_user_sets_does_not() {
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_MANIFEST_DIR",
            "CARGO_CFG_TARGET_OS",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_BOOTSTRAP",
            "RUSTUP_TOOLCHAIN",
            "DEP_X_ROOT",
            "OUT_DIR",
        ] {
            assert!(is_leak(name), "{name}");
        }
        for name in [
            "PATH",
            "HOME",
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_HTTP_PROXY",
            "CARGO_TERM_COLOR",
            "RUSTUP_HOME",
            "FLASHTILE_RUSTC",
        ] {
            assert!(!is_leak(name), "{name}");
        }
    }

    #[test]
    fn the_error_says_how_to_install_one() {
        let text = Error::NoToolchain {
            tried: "none".into(),
        }
        .to_string();
        for command in [
            "rustup component add rust-src",
            "rust-web-src",
            "FLASHTILE_RUSTC",
        ] {
            assert!(text.contains(command), "{text}");
        }
    }

    #[test]
    fn a_compiler_that_is_not_there_is_an_answer_not_a_panic() {
        let missing = Path::new("/nonexistent/rustc");
        assert!(Toolchain::probe(missing, Path::new("/")).is_err());
    }
}

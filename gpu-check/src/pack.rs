//! Makes a folder of programs and inputs that needs libc and NVIDIA's driver, and nothing else.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use flashtile_benches::machine::date;
use serde_json::{Value, json};

use crate::run::steps::SELF;

/// Largest folder.
const MOST_BYTES: u64 = 60 << 20;

/// Newest glibc that the target must have: that of Debian 12.
const NEWEST_GLIBC: (u32, u32) = (2, 36);

/// Programs of the suite that know the emulator alone or no device, say nothing of one, or need the checkout.
const EMULATOR_ONLY: [&str; 18] = [
    "accumulator",
    "banks",
    "cache_errors",
    "cache_mutations",
    "check_mutations",
    "checked",
    "context_parallel",
    "context_parallel_errors",
    "corpus",
    "errors",
    "findings",
    "mutate",
    "mutations",
    "programs",
    "replay",
    "schedules",
    "second_attempt",
    "serving_errors",
];

/// Programs of the suite that have no room in the first folder: each carries all kernels. The command has none in the second.
const SECOND: [&str; 6] = [
    "cache_blocks",
    "cache_rows",
    "golden",
    "serving_laws",
    "serving_properties",
    "serving_replays",
];

/// What marks a folder as ours.
const MARK: &str = "build.json";

const SCRIPT: &str = r#"#!/bin/sh
# Checks the GPU of this machine: everything in a sensible order, results in ./results (or --results DIR).
# ./run.sh --list names the steps, ./run.sh --steps micro,verify-quick runs some, ./run.sh --budget 540 limits the time,
# ./run.sh --device emulator rehearses without a GPU. Needs glibc 2.36 and NVIDIA's driver.
# Exit status: 0 all is well, 1 something failed, 2 bad input, 3 no GPU.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 2
# Where containers and some distributions keep the driver.
LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/nvidia/lib64:/usr/lib/wsl/lib:/run/opengl-driver/lib
export LD_LIBRARY_PATH
exec "$here/flashtile-gpu-check" run "$@"
"#;

type Outcome<T> = Result<T, String>;

fn failed(what: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{}: {error}", what.display())
}

/// Builds and copies everything but the programs of the other folder: the first, or the second.
///
/// # Errors
/// A build that fails, a folder that is not ours, a program too new or a folder too large for its purpose.
pub fn pack(folder: &Path, second: bool) -> Outcome<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let programs = build(&root, second)?;
    clear(folder)?;
    fs::create_dir_all(folder.join("suite")).map_err(failed(folder))?;
    fs::create_dir_all(folder.join("data")).map_err(failed(folder))?;

    let mut newest = (2, 0);
    for (name, program) in &programs {
        let target = folder.join(name);
        copy(program, &target)?;
        strip(&target);
        newest = newest.max(glibc(&target)?);
    }
    if newest > NEWEST_GLIBC {
        return Err(format!(
            "a program needs glibc {}.{}: build on Debian 12 or older",
            newest.0, newest.1
        ));
    }
    for name in ["minilm-128.safetensors", "minilm-128.expected.safetensors"] {
        copy(
            &root.join("examples/data").join(name),
            &folder.join("data").join(name),
        )?;
    }
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT).map_err(failed(&script))?;
    executable(&script)?;
    let about = json!({
        "commit": commit(&root),
        "built": date(SystemTime::now()),
        "rustc": output(Command::new("rustc").arg("--version")).unwrap_or_default(),
        "glibc": format!("{}.{}", newest.0, newest.1),
    });
    let mark = folder.join(MARK);
    fs::write(&mark, about.to_string()).map_err(failed(&mark))?;

    let bytes = size(folder)?;
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if bytes > MOST_BYTES {
        return Err(format!(
            "{} has {mebibytes:.1} MiB, more than {}",
            folder.display(),
            MOST_BYTES >> 20
        ));
    }
    println!(
        "{}: {} programs, {mebibytes:.1} MiB, needs glibc {}.{}; on the machine with the GPU: ./run.sh",
        folder.display(),
        programs.len(),
        newest.0,
        newest.1
    );
    Ok(())
}

/// Empties a folder that an earlier call has made; refuses any other.
fn clear(folder: &Path) -> Outcome<()> {
    let files = match fs::read_dir(folder) {
        Ok(files) => files.count(),
        // What cannot be read now cannot be written later, which says why.
        Err(_) => return Ok(()),
    };
    if files == 0 {
        return Ok(());
    }
    if !folder.join(MARK).is_file() {
        return Err(format!(
            "{}: expected a new folder, or one that this command made",
            folder.display()
        ));
    }
    fs::remove_dir_all(folder).map_err(failed(folder))
}

/// Builds; names in the folder, and where the programs are now.
fn build(root: &Path, second: bool) -> Outcome<Vec<(String, PathBuf)>> {
    let mut programs = Vec::new();
    let packages = ["-p", "flashtile-cli", "-p", "flashtile-gpu-check"];
    for (name, path) in cargo(
        root,
        &[&["build", "--release", "--bins"], &packages[..]].concat(),
    )? {
        if ["flashtile", SELF].contains(&name.as_str()) {
            programs.push((name, path));
        }
    }
    if programs.len() != 2 {
        return Err(format!(
            "cargo built {programs:?}, expected flashtile and {SELF}"
        ));
    }
    programs.retain(|(name, _)| !second || name == SELF);
    let others = programs.len();
    let suite = cargo(
        root,
        &[
            "test",
            "--release",
            "--no-run",
            "-p",
            "flashtile-tests",
            "--test",
            "*",
        ],
    )?;
    let suite = suite
        .into_iter()
        .filter(|(name, _)| !EMULATOR_ONLY.contains(&name.as_str()))
        .filter(|(name, _)| SECOND.contains(&name.as_str()) == second);
    programs.extend(suite.map(|(name, path)| (format!("suite/{name}"), path)));
    if programs.len() == others {
        return Err("cargo built no program of the suite".into());
    }
    Ok(programs)
}

/// Runs cargo; the executables that it reports.
fn cargo(root: &Path, args: &[&str]) -> Outcome<Vec<(String, PathBuf)>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(args)
        .args(["--locked", "--message-format=json"])
        .current_dir(root)
        .stderr(Stdio::inherit());
    let output = command
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo {} failed", args.join(" ")));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(executable_of).collect())
}

/// The executable that a line of cargo's messages reports.
fn executable_of(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = message["executable"].as_str()?;
    Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
}

fn copy(from: &Path, to: &Path) -> Outcome<()> {
    fs::copy(from, to).map(drop).map_err(failed(from))
}

/// Without symbols a program is a quarter smaller; where there is no `strip`, so be it: the size is checked.
fn strip(program: &Path) {
    let _ = Command::new("strip").arg(program).status();
}

#[cfg(unix)]
fn executable(script: &Path) -> Outcome<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).map_err(failed(script))
}

#[cfg(not(unix))]
fn executable(_: &Path) -> Outcome<()> {
    Err("the folder is for Linux, and made there".into())
}

/// The newest glibc whose symbols a program asks for.
fn glibc(program: &Path) -> Outcome<(u32, u32)> {
    let bytes = fs::read(program).map_err(failed(program))?;
    Ok(newest_glibc(&bytes))
}

/// The largest of the version names `GLIBC_2.x` in a file; (2, 0) if there are none.
fn newest_glibc(bytes: &[u8]) -> (u32, u32) {
    let name = b"GLIBC_2.";
    let versions = bytes
        .windows(name.len())
        .enumerate()
        .filter(|(_, window)| window == name);
    let minor = versions.filter_map(|(at, _)| {
        let digits = &bytes[at + name.len()..];
        let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
    });
    (2, minor.max().unwrap_or(0))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

/// The commit, and whether the sources are those of it.
fn commit(root: &Path) -> String {
    let git = |args: &[&str]| output(Command::new("git").arg("-C").arg(root).args(args));
    match (git(&["rev-parse", "HEAD"]), git(&["status", "--porcelain"])) {
        (Some(commit), Some(changes)) if changes.is_empty() => commit,
        (Some(commit), _) => format!("{commit}, with changes"),
        (None, _) => "unknown".into(),
    }
}

fn size(folder: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let entry = entry.map_err(failed(folder))?;
        let about = entry.metadata().map_err(failed(folder))?;
        bytes += if about.is_dir() {
            size(&entry.path())?
        } else {
            about.len()
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_is_found() {
        assert_eq!(
            newest_glibc(b"..GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.4\0"),
            (2, 34)
        );
        assert_eq!(newest_glibc(b"nothing, GLIBC_PRIVATE\0"), (2, 0));
    }

    #[test]
    fn a_folder_of_somebody_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(clear(folder.path()), Ok(()));
        assert_eq!(clear(&folder.path().join("new")), Ok(()));
        fs::write(folder.path().join("thesis.tex"), "").unwrap();
        assert!(clear(folder.path()).is_err());
        assert!(folder.path().join("thesis.tex").exists());
        fs::write(folder.path().join(MARK), "{}").unwrap();
        assert_eq!(clear(folder.path()), Ok(()));
        assert!(!folder.path().exists());
    }

    #[test]
    fn cargos_messages() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"name":"laws"},"executable":"/t/laws-1"}"#;
        assert_eq!(
            executable_of(line),
            Some(("laws".into(), "/t/laws-1".into()))
        );
        assert_eq!(
            executable_of(r#"{"target":{"name":"x"},"executable":null}"#),
            None
        );
        assert_eq!(executable_of("not json"), None);
    }
}

//! Files that are written whole or not at all, and lines on the standard streams.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    failure::{Failure, Result},
    interrupt,
};

/// Prints text and a line end on standard output.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(Failure::Stdout)
}

/// Prints `error: ...` on standard error, in one line whatever the text holds.
pub fn error_line(text: &str) {
    let mut line = String::from("error: ");
    for c in text.trim_end().chars() {
        match c {
            '\n' => line.push_str("; "),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line.push('\n');
    // If nobody can read it, the exit status still tells.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// A file being written: under another name in the same folder, until it is complete.
#[derive(Debug)]
pub struct Pending {
    target: PathBuf,
    temporary: PathBuf,
    file: File,
    done: bool,
}

impl Pending {
    /// Checks that the file can be written and creates the temporary one. `input` must not be
    /// overwritten.
    pub fn create(target: &Path, input: Option<&Path>) -> Result<Self> {
        let target = resolve(target, input)?;
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut last = None;
        for attempt in 0..100 {
            let name = format!(".flashtile-{}-{attempt}.part", std::process::id());
            let temporary = folder.join(name);
            let create = || {
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(&temporary)
            };
            match interrupt::creating(&temporary, create) {
                Ok(file) => {
                    return Ok(Self {
                        target,
                        temporary,
                        file,
                        done: false,
                    });
                }
                // Left behind by a process of this number that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = Some(error),
                Err(error) => return Err(unwritable(&target, error)),
            }
        }
        let error = last.unwrap_or_else(|| io::ErrorKind::AlreadyExists.into());
        Err(unwritable(&target, error))
    }

    /// Writes the content and gives the file its name.
    pub fn commit(mut self, content: &[u8]) -> Result<()> {
        self.replace(content)
            .map_err(|error| unwritable(&self.target, error))
    }

    fn replace(&mut self, content: &[u8]) -> io::Result<()> {
        self.file.write_all(content)?;
        if let Ok(existing) = fs::metadata(&self.target) {
            self.file.set_permissions(existing.permissions())?;
        }
        self.file.sync_all()?;
        interrupt::ending(|| fs::rename(&self.temporary, &self.target))?;
        self.done = true;
        // The new name is durable once the folder is; not every file system can do that.
        if let Some(folder) = self.temporary.parent()
            && let Ok(folder) = File::open(folder)
        {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.done {
            let _ = interrupt::ending(|| fs::remove_file(&self.temporary));
        }
    }
}

fn unwritable(target: &Path, found: impl std::fmt::Display) -> Failure {
    Failure::bad(target.display(), "a file that can be written", found)
}

/// The file that a path means, symbolic links followed; refused if it can't or must not be replaced.
fn resolve(target: &Path, input: Option<&Path>) -> Result<PathBuf> {
    let text = target.to_string_lossy();
    if target.file_name().is_none() || text.ends_with(['/', std::path::MAIN_SEPARATOR]) {
        return Err(unwritable(target, "the path of a folder"));
    }
    let existing = match fs::metadata(target) {
        Ok(existing) => existing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(target.to_path_buf()),
        Err(error) => return Err(unwritable(target, error)),
    };
    if existing.is_dir() {
        return Err(unwritable(target, "a folder"));
    }
    if !existing.is_file() {
        return Err(unwritable(
            target,
            "a device or pipe, which can't be replaced",
        ));
    }
    if existing.permissions().readonly() {
        return Err(unwritable(target, "a read-only file"));
    }
    let resolved = fs::canonicalize(target).map_err(|error| unwritable(target, error))?;
    if let Some(input) = input
        && fs::canonicalize(input).is_ok_and(|input| input == resolved)
    {
        return Err(Failure::bad(
            target.display(),
            "an output other than the input",
            "the same file",
        ));
    }
    Ok(resolved)
}

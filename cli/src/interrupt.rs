//! Ctrl-C, SIGTERM and SIGHUP: no temporary file stays behind.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Exit status after an interrupt.
const INTERRUPTED: i32 = 130;

/// The temporary file that exists now. Whoever creates, renames or removes it holds the lock, so
/// that an interrupt comes either before or after.
static TEMPORARY: Mutex<Option<PathBuf>> = Mutex::new(None);

fn temporary() -> MutexGuard<'static, Option<PathBuf>> {
    // The value is whole at all times: it is only ever replaced.
    TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes an interrupt remove the temporary file and end the process.
pub fn install() {
    // Without a handler an interrupt ends the process as well, only less tidily.
    let _ = ctrlc::set_handler(|| {
        let temporary = temporary();
        if let Some(path) = &*temporary {
            let _ = fs::remove_file(path);
        }
        // The lock is held to the end: no new temporary file can appear.
        process::exit(INTERRUPTED);
    });
}

/// Creates a temporary file, which an interrupt would remove.
pub fn creating<T>(path: &Path, create: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut temporary = temporary();
    let created = create()?;
    *temporary = Some(path.to_path_buf());
    Ok(created)
}

/// Renames or removes the temporary file. After an error it is still there.
pub fn ending<T>(end: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut temporary = temporary();
    let value = end()?;
    *temporary = None;
    Ok(value)
}

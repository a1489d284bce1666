//! Which calls are made while a stream is taking down its work.

use std::{
    fs::OpenOptions,
    io::Write as _,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

/// Streams that are taking down.
pub static TAKING: AtomicU32 = AtomicU32::new(0);

static FILE: LazyLock<Option<String>> =
    LazyLock::new(|| std::env::var("FLASHTILE_STAND_IN_CALLS").ok());

/// Adds a call to the file, if there is one and some stream is taking down its work.
pub fn note(call: &str) {
    if TAKING.load(Relaxed) == 0 {
        return;
    }
    let Some(file) = FILE.as_ref() else {
        return;
    };
    let file = OpenOptions::new().create(true).append(true).open(file);
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{call}")) {
        eprintln!("{call} could not be noted: {error}");
    }
}

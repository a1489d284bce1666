//! How much memory there is.

use std::fs;

use crate::failure::{Failure, Result};

/// Bytes that can be allocated without swapping, where the system tells (Linux).
fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Refuses work that needs more memory than there is. `None` is a number past 64 bits.
///
/// Allocating until it fails would not do: the system promises memory that it lacks, and kills the
/// process when it is used.
pub fn require(what: &str, bytes: Option<u64>) -> Result<()> {
    match (bytes, available()) {
        (Some(bytes), Some(available)) if bytes > available => Err(Failure::bad(
            what,
            format!("sizes that fit in the {available} bytes of memory available"),
            format!("sizes that need {bytes} bytes"),
        )),
        (None, _) => Err(Failure::bad(
            what,
            "sizes that fit in memory",
            "sizes that overflow 64 bits",
        )),
        _ => Ok(()),
    }
}

/// An empty vector with room for so many bytes.
pub fn vector(what: &str, bytes: usize) -> Result<Vec<u8>> {
    let mut vector = Vec::new();
    match vector.try_reserve_exact(bytes) {
        Ok(()) => Ok(vector),
        Err(_) => Err(Failure::bad(
            what,
            "a tensor that fits in memory",
            format!("{bytes} bytes"),
        )),
    }
}

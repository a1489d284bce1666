//! Decoded programs.
#[derive(Debug)]
pub(crate) struct Program { pub(crate) static_shared: u64, pub(crate) dynamic_align: u64 }

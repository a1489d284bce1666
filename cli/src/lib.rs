//! The parts of the `flashtile` command that meet bytes of unknown origin, so that tests and fuzzers can call them
//! without starting a process. No stable interface: the command is.

pub mod failure;
pub mod input;
pub mod memory;

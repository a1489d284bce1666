//! Holds a GPU against the emulator and the oracle. `cargo run --release -p flashtile-gpu-check -- pack DIR` makes a
//! folder that does all of it on a machine with a GPU, NVIDIA's driver and nothing else: `DIR/run.sh`.
//!
//! | module | what |
//! |---|---|
//! | [`micro`] | single instructions: the same PTX on GPU and emulator, bit by bit |
//! | [`dense`] | approximations over whole binades, kept so that the hardware's function can be rebuilt |
//! | [`repeat`] | every kernel again and again: equal bits, whatever else is in memory |
//! | [`run`](mod@run) | everything, step by step, each with a time limit, into one folder of results |
//! | [`pack`] | that folder of programs |

pub mod compare;
pub mod dense;
pub mod machine;
pub mod maps;
pub mod micro;
pub mod pack;
pub mod repeat;
pub mod report;
pub mod run;

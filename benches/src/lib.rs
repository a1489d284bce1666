//! Speed: of flashtile's kernels, and of others' in the same run. The command `flashtile bench` is made of this; what
//! criterion measures on the emulator (`cargo bench`) is in `benches/`.
//!
//! | module | what |
//! |---|---|
//! | [`cell`], [`grid`] | what is measured: problems, and grids of them |
//! | [`inputs`], [`workload`] | numbers that Rust and Python make alike; tensors on a device |
//! | [`timer`], [`stats`] | how long launches take |
//! | [`judge`] | whether what they compute is right |
//! | [`peers`] | other libraries' attention |
//! | [`run`](mod@run), [`report`], [`machine`] | the whole of it, and what is told of it |

pub mod cell;
pub mod grid;
pub mod inputs;
pub mod judge;
pub mod machine;
pub mod peers;
pub mod report;
pub mod run;
pub mod stats;
pub mod timer;
pub mod workload;

pub use cell::{Cache, Cell, Group, HeadDim, Mask};
pub use grid::Grid;
pub use inputs::values;
pub use report::Report;
pub use run::{Options, Progress, plan, run};
pub use timer::Target;
pub use workload::Workload;

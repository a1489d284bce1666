//! Several emulators as ranks in one process: an exchange between their memories, streams that run late, cases by chance.

mod case;
mod deferred;
mod exchange;
mod launch;
mod serving;

pub use case::{ParallelCase, Split, parallel_case};
pub use deferred::{Deferred, First};
pub use exchange::{LocalExchange, hub};
pub use launch::{Devices, lend, ranks};
pub use serving::{KeysCase, keys_case};

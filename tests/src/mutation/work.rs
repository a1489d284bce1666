//! What a mutant has to do: a problem of whatever kind, in memory, with its launches and its judgement.

use std::ops::Range;

use flashtile::{LaunchConfig, Operation};
use flashtile_abi::Entry;

use super::{dense, judge::Cause, merge, place::Addresses, serving};

/// A problem that a mutant has to survive.
pub(super) trait Work: Send + Sync {
    /// In a line.
    fn text(&self) -> String;
    /// What launches find in memory.
    fn images(&self) -> &Images;
    /// The launches, in order.
    fn launches(&self, at: &Addresses) -> Result<Vec<Step>, String>;
    /// What is wrong with a result that has other bits than the kernel's; nothing, if all that counts is what was accessed.
    fn judge(&self, left: &Left) -> Option<(Cause, String)>;
}

/// One launch.
pub(super) struct Step {
    /// Of the mutant, if this is the kernel it was made of; else of this kernel as it is.
    pub(super) kernel: &'static Entry,
    pub(super) config: LaunchConfig,
    pub(super) params: Vec<u8>,
}

/// One tensor in memory.
pub(super) struct Buffer {
    pub(super) bytes: Vec<u8>,
    /// The bytes that lie together.
    pub(super) parts: Vec<Range<usize>>,
}

/// Everything that launches find in memory.
#[derive(Default)]
pub(super) struct Images {
    /// What they read.
    pub(super) inputs: Vec<Buffer>,
    /// What they write, as it is before.
    pub(super) outputs: Vec<Buffer>,
    /// Bytes that one leaves to the next.
    pub(super) scratch: usize,
}

/// What launches left in memory: the whole buffers of outputs, gaps included.
pub(super) type Left = Vec<Vec<u8>>;

impl Buffer {
    /// In one piece.
    pub(super) fn whole(bytes: Vec<u8>) -> Self {
        let all = Range {
            start: 0,
            end: bytes.len(),
        };
        Self {
            parts: vec![all],
            bytes,
        }
    }

    /// Each row, of which there is one every so many bytes, in an allocation of its own, so that nothing beyond it can be read.
    pub(super) fn rows(bytes: Vec<u8>, distance: usize) -> Self {
        let width = bytes.len() % distance;
        let rows = (0..bytes.len()).step_by(distance);
        Self {
            parts: rows.map(|begin| begin..begin + width).collect(),
            bytes,
        }
    }
}

impl Buffer {
    /// Without so many of the first rows: what reads them is at fault.
    pub(super) fn without(mut self, rows: usize) -> Self {
        self.parts.drain(..rows.min(self.parts.len()));
        self
    }
}

/// How far apart the emulator puts two allocations of so many bytes.
pub(super) const fn distance(bytes: usize) -> usize {
    bytes.next_multiple_of(256) + 4096
}

/// The problems of a kernel. The first is the one that most mutants fail.
pub(super) fn works(kernel: &Operation) -> Result<Vec<Box<dyn Work>>, String> {
    match kernel {
        Operation::Attention(variant) => dense::works(variant),
        Operation::Serving(variant) => serving::works(variant),
        Operation::Merge(variant) => merge::works(variant),
        _ => Err(format!(
            "{}: its mutants are judged by generated cases, in tests/",
            kernel.entry().name
        )),
    }
}

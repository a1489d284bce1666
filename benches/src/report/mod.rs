//! What a run has found: rows, and what they are told as.

mod plots;
mod summary;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use flashtile::{DType, Window};
use serde::Serialize;

use crate::{
    cell::{Cell, Mask},
    machine::Machine,
    peers::{About, Python},
};

/// Name of our implementation in results.
pub const OURS: &str = "flashtile";

/// How a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Timed, and right.
    Ok,
    /// Timed, but an element is past its bound.
    Wrong,
    /// Not timed.
    Failed,
}

/// One implementation in one cell. Its fields are the columns of the CSV file and the keys of the JSON file.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `flashtile`, or a peer's name.
    pub implementation: String,
    /// Its version.
    pub version: String,
    /// Tier of our kernel.
    pub arch: &'static str,
    /// Our kernel.
    pub variant: &'static str,
    /// Element type.
    pub dtype: &'static str,
    /// `mha` or `gqaN`.
    pub heads: String,
    /// `dense`, `packed`, `pagesN` or `latentN`: how keys and values lie.
    pub cache: String,
    /// `full`, `causal` or `window`.
    pub mask: &'static str,
    /// Keys before the diagonal, of a window.
    pub window_left: Option<u32>,
    /// Keys after it.
    pub window_right: Option<u32>,
    /// Sequences.
    pub batch: usize,
    /// Queries.
    pub seqlen_q: usize,
    /// Keys.
    pub seqlen_k: usize,
    /// Query heads.
    pub heads_q: usize,
    /// Key/value heads.
    pub heads_kv: usize,
    /// Elements of a query and of a key.
    pub head_dim_qk: usize,
    /// Elements of a value.
    pub head_dim_v: usize,
    /// Operations, as FlashAttention counts them.
    pub gflop: f64,
    /// Operations to a byte that must move.
    pub flop_per_byte: f64,
    /// Bytes that must move.
    pub bytes: Option<u64>,
    /// `ok`, `wrong` or `failed`.
    pub state: State,
    /// Median of the samples, in microseconds a launch.
    pub median_us: Option<f64>,
    /// First quartile.
    pub q1_us: Option<f64>,
    /// Third quartile.
    pub q3_us: Option<f64>,
    /// Operations over the median; on a GPU alone.
    pub tflops: Option<f64>,
    /// Of the fastest matrix product of this run, if there was one.
    pub percent_of_peak: Option<f64>,
    /// Bytes that must move over the median, in 10^9 a second; on a GPU alone.
    pub gb_per_second: Option<f64>,
    /// Of what a large copy reads and writes.
    pub percent_of_copy: Option<f64>,
    /// Largest error of the rows that were looked at.
    pub max_abs_error: Option<f64>,
    /// Root mean square of their errors.
    pub rms_error: Option<f64>,
    /// What an error may be.
    pub error_bound: Option<f64>,
    /// `events` (CUDA) or `wall`.
    pub clock: &'static str,
    /// `graph` or `launches`.
    pub method: String,
    /// Sets of tensors that the launches went round.
    pub sets: usize,
    /// Launches of a sample.
    pub launches: usize,
    /// Samples.
    pub samples: usize,
    /// Why there is no time, or what is wrong.
    pub reason: String,
    /// The cell.
    #[serde(skip)]
    pub cell: Cell,
}

impl Row {
    /// A row of a cell, not timed.
    pub fn new(cell: Cell, implementation: String, version: String) -> Self {
        let s = &cell.shape;
        let window = match cell.mask {
            Mask::Window(window) => window,
            Mask::Full | Mask::Causal => Window::default(),
        };
        Self {
            implementation,
            version,
            arch: "",
            variant: "",
            dtype: cell.dtype.as_str(),
            heads: cell.group().to_string(),
            cache: cell.cache.to_string(),
            mask: cell.mask.name(),
            window_left: window.left,
            window_right: window.right,
            batch: s.batch,
            seqlen_q: s.seqlen_q,
            seqlen_k: s.seqlen_k,
            heads_q: s.heads_q,
            heads_kv: s.heads_kv,
            head_dim_qk: s.head_dim_qk,
            head_dim_v: s.head_dim_v,
            gflop: cell.flops() / 1e9,
            flop_per_byte: cell.intensity(),
            bytes: cell.bytes(),
            state: State::Failed,
            median_us: None,
            q1_us: None,
            q3_us: None,
            tflops: None,
            percent_of_peak: None,
            gb_per_second: None,
            percent_of_copy: None,
            max_abs_error: None,
            rms_error: None,
            error_bound: None,
            clock: "",
            method: String::new(),
            sets: 0,
            launches: 0,
            samples: 0,
            reason: String::new(),
            cell,
        }
    }

    fn is_ours(&self) -> bool {
        self.implementation == OURS
    }
}

/// All that a run has found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version.
    pub flashtile: &'static str,
    /// When it began, UTC.
    pub date: String,
    /// How long it took.
    pub seconds: f64,
    /// Where.
    pub machine: Machine,
    /// Time of measurement for each implementation in each cell, about.
    pub seconds_per_cell: f64,
    /// What a large copy within the device reads and writes.
    pub copy_bytes_per_second: Option<f64>,
    /// The fastest matrix product, by element type.
    pub peak_tflops: BTreeMap<&'static str, f64>,
    /// The peers' process.
    pub python: Option<Python>,
    /// The peers.
    pub peers: Vec<About>,
    /// SHA-256 of the PTX of every kernel that was measured.
    pub kernels: BTreeMap<&'static str, String>,
    /// Every implementation in every cell.
    pub rows: Vec<Row>,
    /// Cells for which no time was left.
    pub not_run: Vec<String>,
    /// What ended the run early.
    pub fault: Option<String>,
}

impl Report {
    /// Whether all that we computed is right.
    pub fn is_right(&self) -> bool {
        let wrong = |row: &Row| row.is_ours() && row.state == State::Wrong;
        self.fault.is_none() && !self.rows.iter().any(wrong)
    }

    /// The rows as CSV, with a header.
    ///
    /// # Errors
    /// What cannot be written as CSV.
    pub fn csv(&self) -> Result<Vec<u8>, String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in &self.rows {
            writer.serialize(row).map_err(|error| error.to_string())?;
        }
        writer.into_inner().map_err(|error| error.to_string())
    }

    /// Everything as one JSON object.
    ///
    /// # Errors
    /// What cannot be written as JSON.
    pub fn json(&self) -> Result<String, String> {
        serde_json::to_string(self).map_err(|error| error.to_string())
    }

    /// Cells in the order in which they were run.
    fn cells(&self) -> Vec<Cell> {
        let mut cells: Vec<Cell> = Vec::new();
        for row in &self.rows {
            // The rows of a cell follow one another.
            if cells.last() != Some(&row.cell) {
                cells.push(row.cell);
            }
        }
        cells
    }

    fn dtypes(&self) -> Vec<DType> {
        let mut dtypes = Vec::new();
        for row in &self.rows {
            if !dtypes.contains(&row.cell.dtype) {
                dtypes.push(row.cell.dtype);
            }
        }
        dtypes
    }
}

//! The table, in Markdown: short, with what is behind.

use flashtile::DType;

use super::{OURS, Report, Row, State};
use crate::cell::{Cache, Cell, Mask};

/// Cells behind the best peer that are listed.
const LISTED: usize = 20;

/// A cell of ours, held against the fastest right peer.
pub(super) struct Standing<'a> {
    pub cell: Cell,
    pub ours: &'a Row,
    pub best: Option<&'a Row>,
}

/// Who is faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Ahead,
    /// The middle halves of the samples overlap.
    Even,
    Behind,
}

impl Standing<'_> {
    /// How many times as fast as the best peer.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.best?.median_us? / self.ours.median_us?)
    }

    pub fn order(&self) -> Option<Order> {
        let best = self.best?;
        Some(if self.ours.q3_us? < best.q1_us? {
            Order::Ahead
        } else if self.ours.q1_us? > best.q3_us? {
            Order::Behind
        } else {
            Order::Even
        })
    }
}

/// A line of the table: cells that differ in their lengths alone.
type Series = (DType, String, String, String);

fn series(cell: &Cell) -> Series {
    (
        cell.dtype,
        cell.group().to_string(),
        cell.head_dim().to_string(),
        mask(cell),
    )
}

/// Mask, and where keys are if not in a dense tensor.
pub(super) fn mask(cell: &Cell) -> String {
    let mask = mask_alone(cell);
    match cell.cache {
        Cache::Dense => mask,
        Cache::Packed => format!("{mask} packed"),
        // The mask of a single query says nothing.
        cache => format!("{cache} b{}", cell.shape.batch),
    }
}

/// Whether keys are read from a cache by few queries, so that bytes count, not operations.
fn is_decode(cell: &Cell) -> bool {
    matches!(cell.cache, Cache::Pages(_) | Cache::Latent(_))
}

fn mask_alone(cell: &Cell) -> String {
    match cell.mask {
        Mask::Full | Mask::Causal => cell.mask.name().into(),
        Mask::Window(window) => {
            let side = |side: Option<u32>| side.map_or("all".into(), |keys| keys.to_string());
            format!("window {}, {}", side(window.left), side(window.right))
        }
    }
}

/// A length as people write it: 512, 16k.
pub(super) fn length(n: usize) -> String {
    match n >= 1024 && n.is_multiple_of(1024) {
        true => format!("{}k", n / 1024),
        false => n.to_string(),
    }
}

fn lengths(cell: &Cell) -> String {
    let s = &cell.shape;
    match s.seqlen_q == s.seqlen_k {
        true => length(s.seqlen_k),
        false => format!("{} to {}", length(s.seqlen_q), length(s.seqlen_k)),
    }
}

/// What a person calls a cell.
fn title(cell: &Cell) -> String {
    let (dtype, heads, dims, mask) = series(cell);
    let dtype = dtype.as_str();
    format!("{dtype} {heads} d{dims} {mask} {}", lengths(cell))
}

pub(super) fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut list = Vec::new();
    for item in items {
        if !list.contains(&item) {
            list.push(item);
        }
    }
    list
}

impl Report {
    pub(super) fn standings(&self) -> Vec<Standing<'_>> {
        let mut standings = Vec::new();
        for cell in self.cells() {
            let rows = || self.rows.iter().filter(|row| row.cell == cell);
            let Some(ours) = rows().find(|row| row.is_ours()) else {
                continue;
            };
            let right = rows().filter(|row| !row.is_ours() && row.state == State::Ok);
            let timed = right.filter_map(|row| Some((row.median_us?, row)));
            let best = timed.min_by(|a, b| a.0.total_cmp(&b.0));
            standings.push(Standing {
                cell,
                ours,
                // The emulator against a CPU's library says nothing.
                best: best.map(|(_, row)| row).filter(|row| row.tflops.is_some()),
            });
        }
        standings
    }

    /// The table, with what was measured above it and what is behind below it.
    pub fn summary(&self) -> String {
        let mut lines = self.head();
        lines.push(String::new());
        lines.extend(self.table(false));
        lines.push(String::new());
        let decode = self.table(true);
        if !decode.is_empty() {
            lines.extend(decode);
            lines.push(String::new());
        }
        lines.extend(self.tail());
        lines.join("\n").trim_end().to_owned()
    }

    fn head(&self) -> Vec<String> {
        let machine = &self.machine;
        let mut lines = vec![format!(
            "flashtile {} on {}, {}: {} cells in {:.0} s",
            self.flashtile,
            machine.name,
            self.date,
            self.cells().len(),
            self.seconds
        )];
        let mut limits = Vec::new();
        if !self.peak_tflops.is_empty() {
            let peaks = self.peak_tflops.iter();
            let peaks: Vec<_> = peaks.map(|(dtype, x)| format!("{dtype} {x:.0}")).collect();
            limits.push(format!("torch.matmul {} TFLOP/s", peaks.join(", ")));
        }
        if let Some(bytes) = self.copy_bytes_per_second {
            limits.push(format!("copies {:.2} TB/s", bytes / 1e12));
        }
        if !limits.is_empty() {
            lines.push(format!("limits: {}", limits.join("; ")));
        }
        if let Some(python) = &self.python {
            let name = |peer: &super::About| match &peer.missing {
                None if peer.version.is_empty() => peer.name.clone(),
                None => format!("{} {}", peer.name, peer.version),
                Some(reason) => format!("no {} ({reason})", peer.name),
            };
            let peers: Vec<_> = self.peers.iter().map(name).collect();
            lines.push(match &python.missing {
                Some(reason) => format!("peers: none ({reason})"),
                None => format!("peers: {}", peers.join("; ")),
            });
        }
        lines
    }

    /// The table of cells that decode, or of the others.
    fn table(&self, decode: bool) -> Vec<String> {
        let mut standings = self.standings();
        standings.retain(|standing| is_decode(&standing.cell) == decode);
        if standings.is_empty() {
            return Vec::new();
        }
        let unit = match decode {
            true => "microseconds, percent of what copies move",
            false => "TFLOP/s",
        };
        let columns = distinct(standings.iter().map(|standing| lengths(&standing.cell)));
        let kinds = distinct(standings.iter().map(|standing| series(&standing.cell)));
        let mut lines = vec![match self.machine.kind {
            "cuda" if standings.iter().any(|standing| standing.best.is_some()) => {
                format!("{OURS}, {unit} (times the best peer's)")
            }
            "cuda" => format!("{OURS}, {unit}"),
            _ => format!(
                "{OURS}, milliseconds on the emulator, by the clock on the wall: nothing about a GPU"
            ),
        }];
        lines.push(String::new());
        lines.push(format!("| | {} |", columns.join(" | ")));
        lines.push(format!("|---|{}", "---|".repeat(columns.len())));
        for kind in &kinds {
            let entry = |column: &String| {
                let cell =
                    |s: &&Standing<'_>| series(&s.cell) == *kind && lengths(&s.cell) == *column;
                standings.iter().find(cell).map_or_else(String::new, entry)
            };
            let entries: Vec<_> = columns.iter().map(entry).collect();
            let (dtype, heads, dims, mask) = kind;
            let dtype = dtype.as_str();
            lines.push(format!(
                "| {dtype} {heads} d{dims} {mask} | {} |",
                entries.join(" | ")
            ));
        }
        lines
    }

    fn tail(&self) -> Vec<String> {
        let standings = self.standings();
        let mut lines = Vec::new();
        let of = |order: Order| standings.iter().filter(move |s| s.order() == Some(order));
        let [ahead, even] = [Order::Ahead, Order::Even].map(|order| of(order).count());
        let mut behind: Vec<_> = of(Order::Behind).collect();
        behind.sort_by(|a, b| {
            a.ratio()
                .unwrap_or(0.0)
                .total_cmp(&b.ratio().unwrap_or(0.0))
        });
        let compared = ahead + even + behind.len();
        if compared > 0 {
            lines.push(format!(
                "of {compared} cells {ahead} are ahead of the best peer, {even} even, {} behind{}",
                behind.len(),
                if behind.is_empty() { "" } else { ":" }
            ));
        }
        for standing in behind.iter().take(LISTED) {
            let peer = standing.best.map_or("", |row| &row.implementation);
            let ratio = standing.ratio().unwrap_or(0.0);
            lines.push(format!("- {}: {ratio:.2} of {peer}", title(&standing.cell)));
        }
        if behind.len() > LISTED {
            lines.push(format!("- and {} more", behind.len() - LISTED));
        }
        for row in &self.rows {
            if row.state != State::Ok && (row.is_ours() || row.state == State::Wrong) {
                let state = match row.state {
                    State::Wrong => "WRONG",
                    _ => "not timed",
                };
                let cell = title(&row.cell);
                lines.push(format!(
                    "{state}: {} {cell}: {}",
                    row.implementation, row.reason
                ));
            }
        }
        if let Some(fault) = &self.fault {
            lines.push(format!("ended early: {fault}"));
        }
        if !self.not_run.is_empty() {
            lines.push(format!("not run: {} cells", self.not_run.len()));
        }
        lines
    }
}

fn entry(standing: &Standing<'_>) -> String {
    let (ours, ratio) = (standing.ours, standing.ratio());
    let mark = match ours.state {
        State::Ok => "",
        State::Wrong => " WRONG",
        State::Failed => return "-".into(),
    };
    let decode = is_decode(&standing.cell);
    let speed = match (ours.tflops, ours.median_us) {
        (Some(_), Some(median)) if decode => match ours.percent_of_copy {
            Some(percent) => format!("{median:.1}, {percent:.0} %"),
            None => format!("{median:.1}"),
        },
        (Some(tflops), _) if tflops < 10.0 => format!("{tflops:.2}"),
        (Some(tflops), _) => format!("{tflops:.0}"),
        (None, Some(median)) => format!("{:.2}", median / 1e3),
        (None, None) => "-".into(),
    };
    match ratio {
        Some(ratio) => format!("{speed} ({ratio:.2}){mark}"),
        None => speed + mark,
    }
}

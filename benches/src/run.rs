//! The run: cell by cell, flashtile and its peers in turns, so that clocks and temperature are alike for all.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    time::{Duration, Instant, SystemTime},
};

use flashtile::{ArchChoice, DType, Entry, Error, ErrorClass, Result};

use crate::{
    cell::Cell,
    grid::Grid,
    judge::{Judge, Verdict},
    machine::{Machine, date},
    peers::{self, Peers},
    report::{OURS, Report, Row, State},
    stats::Quartiles,
    timer::{Clock, Target, Timed},
    workload::Workload,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Turns that each contender gets in a cell.
const ROUNDS: u32 = 3;

/// Time for the largest matrix product's rate.
const PEAK_TIME: Duration = Duration::from_secs(1);

/// How to run.
#[derive(Debug)]
pub struct Options {
    /// Which tier of kernels.
    pub arch: ArchChoice,
    /// Time of measurement for each contender in each cell, about.
    pub time: Duration,
    /// When to begin no further cell.
    pub budget: Option<Duration>,
    /// The peers, if they are wanted.
    pub peers: Option<peers::Options>,
}

/// What is told between cells.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// All that is known so far.
    pub report: &'a Report,
    /// Cells that are done.
    pub done: usize,
    /// The next one.
    pub next: Option<&'a Cell>,
}

/// The cells of a grid, all of them sound, and at least one of them with a kernel.
///
/// # Errors
/// What planning says of a cell that is not, or of the first if none has a kernel.
pub fn plan(target: Target<'_>, grid: &Grid, arch: ArchChoice) -> Result<Vec<Cell>> {
    let cells = grid.cells();
    let mut missing = None;
    let mut able = cells.is_empty();
    for cell in &cells {
        match cell.check(target.device().info(), arch) {
            Ok(()) => able = true,
            // Its row says so; peers may do it.
            Err(error) if error.class() == ErrorClass::NoVariant => {
                missing.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if !able => Err(error),
        _ => Ok(cells),
    }
}

/// Measures the cells, in order. `watch` hears before each and at the end, and may break off.
///
/// # Errors
/// What the device says before the first cell; later on, errors are reasons in the report.
pub fn run(
    target: Target<'_>,
    cells: &[Cell],
    options: Options,
    mut watch: impl FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Report> {
    let started = Instant::now();
    let mut report = Report {
        flashtile: VERSION,
        date: date(SystemTime::now()),
        seconds: 0.0,
        machine: Machine::of(target),
        seconds_per_cell: options.time.as_secs_f64(),
        copy_bytes_per_second: target.copy_bandwidth()?,
        peak_tflops: BTreeMap::new(),
        python: None,
        peers: Vec::new(),
        kernels: BTreeMap::new(),
        rows: Vec::new(),
        not_run: Vec::new(),
        fault: None,
    };
    let mut peers = options.peers.map(Peers::start);
    if let Some(peers) = &mut peers {
        report.python = Some(peers.python().clone());
        report.peers = peers.about().to_vec();
        if target.is_gpu() && peers.python().missing.is_none() {
            for dtype in dtypes(cells) {
                if let Ok(tflops) = peers.peak(dtype.as_str(), PEAK_TIME) {
                    report.peak_tflops.insert(dtype.as_str(), tflops);
                }
            }
        }
    }
    let mut session = Session {
        target,
        arch: options.arch,
        time: options.time,
        peers,
        report,
    };
    for (done, cell) in cells.iter().enumerate() {
        session.report.seconds = started.elapsed().as_secs_f64();
        let progress = Progress {
            report: &session.report,
            done,
            next: Some(cell),
        };
        let late = done > 0
            && options
                .budget
                .is_some_and(|budget| started.elapsed() >= budget);
        if late || session.report.fault.is_some() || watch(progress).is_break() {
            session.report.not_run = cells[done..].iter().map(Cell::to_string).collect();
            break;
        }
        session.cell(cell);
    }
    let mut report = session.report;
    report.seconds = started.elapsed().as_secs_f64();
    report.machine.look_again(target);
    // There is nothing left to break off.
    let _ = watch(Progress {
        report: &report,
        done: cells.len() - report.not_run.len(),
        next: None,
    });
    Ok(report)
}

fn dtypes(cells: &[Cell]) -> Vec<DType> {
    let mut dtypes = Vec::new();
    for cell in cells {
        if !dtypes.contains(&cell.dtype) {
            dtypes.push(cell.dtype);
        }
    }
    dtypes
}

struct Session<'d> {
    target: Target<'d>,
    arch: ArchChoice,
    time: Duration,
    peers: Option<Peers>,
    report: Report,
}

/// Somebody who does a cell.
struct Contender {
    name: String,
    version: String,
    /// The kernel, if it is one of ours.
    variant: Option<&'static Entry>,
    /// How it is timed and whether it is right; or why it cannot be.
    ready: Result<Ready, String>,
    times: Vec<f64>,
}

struct Ready {
    clock: Clock,
    method: String,
    launches: usize,
    verdict: Verdict,
}

/// Ourselves.
fn ours(variant: Option<&'static Entry>, ready: Result<Ready, String>) -> Contender {
    Contender {
        name: OURS.into(),
        version: VERSION.into(),
        variant,
        ready,
        times: Vec::new(),
    }
}

impl<'d> Session<'d> {
    /// Measures one cell.
    fn cell(&mut self, cell: &Cell) {
        let bytes = cell.bytes().unwrap_or(u64::MAX);
        let prepared = Judge::new(cell).and_then(|judge| Ok((judge, self.target.sets(bytes)?)));
        let (judge, sets) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                let ours = ours(None, Err(self.note(error)));
                let row = self.row(cell, 0, ours);
                return self.report.rows.push(row);
            }
        };
        let (mut ours, timed) = self.prepare(cell, &judge, sets);
        let mut peers = self.prepare_peers(cell, &judge, sets);
        for round in 0..ROUNDS {
            // Ours goes first, in the middle, last.
            let turn = peers.len() * round as usize / (ROUNDS as usize - 1);
            for at in 0..=peers.len() {
                if at == turn {
                    self.our_turn(&mut ours, timed.as_ref());
                }
                if let Some(peer) = peers.get_mut(at) {
                    self.turn(peer);
                }
            }
        }
        if let Some(peers) = &mut self.peers {
            peers.close();
        }
        for contender in std::iter::once(ours).chain(peers) {
            let row = self.row(cell, sets, contender);
            self.report.rows.push(row);
        }
    }

    /// An error as a reason; if the device is of no use after it, that is kept in mind.
    fn note(&mut self, error: Error) -> String {
        if matches!(error.class(), ErrorClass::Fault | ErrorClass::Driver) {
            self.report.fault.get_or_insert(error.to_string());
        }
        error.to_string()
    }

    /// Ours: uploads, warms up and judges.
    fn prepare(
        &mut self,
        cell: &Cell,
        judge: &Judge,
        sets: usize,
    ) -> (Contender, Option<Timed<'d>>) {
        let workload = Workload::of_cell(self.target.device(), cell, self.arch, sets);
        let prepared = workload.and_then(|workload| {
            let timed = Timed::new(self.target, workload)?;
            let output = timed.workload().output()?;
            Ok((timed, output))
        });
        let (timed, output) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return (ours(None, Err(self.note(error))), None),
        };
        let ready = Ready {
            clock: timed.clock(),
            method: timed.method().as_str().into(),
            launches: timed.launches(),
            verdict: judge.judge_output(cell, cell.out_element(), &output),
        };
        let variant = timed.workload().kernel();
        (ours(Some(variant), Ok(ready)), Some(timed))
    }

    fn our_turn(&mut self, ours: &mut Contender, timed: Option<&Timed<'d>>) {
        let (Some(timed), true) = (timed, ours.ready.is_ok()) else {
            return;
        };
        match timed.samples(self.time / ROUNDS) {
            Ok(times) => ours.times.extend(times),
            Err(error) => ours.ready = Err(self.note(error)),
        }
    }

    /// The others.
    fn prepare_peers(&mut self, cell: &Cell, judge: &Judge, sets: usize) -> Vec<Contender> {
        let Some(peers) = &mut self.peers else {
            return Vec::new();
        };
        let opened = peers.open(cell, sets, judge);
        let clock = match self.target {
            Target::Gpu(_) => Clock::Events,
            Target::Emulator(_) => Clock::Wall,
        };
        let present = peers.present();
        let contender = |(name, version): (String, String)| {
            let prepared = opened.clone().and_then(|()| peers.prepare(&name, judge));
            Contender {
                variant: None,
                ready: prepared.map(|prepared| Ready {
                    clock,
                    method: prepared.method,
                    launches: prepared.launches,
                    verdict: prepared.verdict,
                }),
                times: Vec::new(),
                name,
                version,
            }
        };
        present.into_iter().map(contender).collect()
    }

    fn turn(&mut self, peer: &mut Contender) {
        let (Some(peers), true) = (&mut self.peers, peer.ready.is_ok()) else {
            return;
        };
        match peers.samples(&peer.name, self.time / ROUNDS) {
            Ok(times) => peer.times.extend(times),
            Err(reason) => peer.ready = Err(reason),
        }
    }

    fn row(&mut self, cell: &Cell, sets: usize, contender: Contender) -> Row {
        let mut row = Row::new(*cell, contender.name, contender.version);
        if let Some(variant) = contender.variant {
            row.arch = variant.arch.as_str();
            row.variant = variant.name;
            self.know(variant);
        }
        let ready = match contender.ready {
            Ok(ready) => ready,
            Err(reason) => {
                row.reason = reason;
                return row;
            }
        };
        row.clock = ready.clock.as_str();
        row.method = ready.method;
        row.sets = sets;
        row.launches = ready.launches;
        row.samples = contender.times.len();
        row.max_abs_error = Some(ready.verdict.max_abs_error);
        row.rms_error = Some(ready.verdict.rms_error);
        row.error_bound = Some(ready.verdict.bound);
        row.state = match ready.verdict.ok {
            true => State::Ok,
            false => State::Wrong,
        };
        if !ready.verdict.ok {
            row.reason = "an element is past the oracle's bound, or not finite".into();
        }
        if let Some(times) = Quartiles::of(&contender.times) {
            row.median_us = Some(times.median * 1e6);
            row.q1_us = Some(times.first * 1e6);
            row.q3_us = Some(times.third * 1e6);
            if self.target.is_gpu() {
                let rate = row.bytes.map(|bytes| bytes as f64 / times.median);
                row.gb_per_second = rate.map(|rate| rate / 1e9);
                let copies = self.report.copy_bytes_per_second;
                row.percent_of_copy = rate.zip(copies).map(|(rate, copy)| 100.0 * rate / copy);
                let tflops = cell.flops() / times.median / 1e12;
                let peak = self.report.peak_tflops.get(cell.dtype.as_str());
                row.tflops = Some(tflops);
                row.percent_of_peak = peak.map(|peak| 100.0 * tflops / peak);
            }
        }
        row
    }

    /// Notes which PTX a kernel is.
    fn know(&mut self, variant: &'static Entry) {
        let known = flashtile::kernels().find(|kernel| kernel.entry.name == variant.name);
        if let Some(kernel) = known {
            let hash = kernel.ptx_sha256.iter().map(|byte| format!("{byte:02x}"));
            let hash = hash.collect();
            self.report.kernels.insert(variant.name, hash);
        }
    }
}

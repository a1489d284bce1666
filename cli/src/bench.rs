//! `flashtile bench`.

use std::{
    fs::{self, File},
    ops::ControlFlow,
    path::Path,
    time::Duration,
};

use flashtile_benches::{Cell, Grid, Mask, Options, Report, peers, plan};

use crate::{
    args::{BenchArgs, MaskArg, OnlyArg},
    failure::{Failure, Outcome, Result},
    memory,
    output::{Pending, print},
    progress,
    target::Target,
};

/// Longest time for a peer to compile what it needs for a cell.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<Outcome> {
    let target = Target::open(args.device, false)?;
    let Some(timed) = target.timed() else {
        let expected = "a device that runs kernels (auto, cuda, cuda:N or emulator)";
        return Err(Failure::bad("--device", expected, target.name()));
    };
    let grid = grid(args, timed.is_gpu())?;
    for cell in grid.cells() {
        memory::require("--seqlen", memory_needed(&cell, timed.is_gpu()))?;
    }
    let cells = plan(timed, &grid, args.arch.into())?;
    let folder = &args.out;
    fs::create_dir_all(folder)
        .map_err(|error| Failure::bad(folder.display(), "a folder that can be written", error))?;
    let options = Options {
        arch: args.arch.into(),
        time: args.seconds_per_cell.unwrap_or(match timed.is_gpu() {
            true => Duration::from_millis(300),
            false => Duration::from_millis(20),
        }),
        budget: args.budget,
        peers: peers(args, &target)?,
    };

    let bar = progress::bar(cells.len(), "cells", args.json);
    let mut saved = Ok(());
    let report = flashtile_benches::run(timed, &cells, options, |progress| {
        bar.set_position(progress.done as u64);
        bar.set_message(progress.next.map_or_else(String::new, Cell::to_string));
        // Whoever stops this program keeps what there is.
        saved = save(folder, progress.report);
        match saved {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    bar.finish_and_clear();
    saved?;
    let report = report?;
    print(&match args.json {
        true => json(folder, &report)?,
        false => format!("results: {}\n\n{}", folder.display(), report.summary()),
    })?;
    Ok(match report.is_right() {
        true => Outcome::Right,
        false => Outcome::Wrong,
    })
}

/// What the options say, and what they leave open.
fn grid(args: &BenchArgs, on_gpu: bool) -> Result<Grid> {
    let mut grid = match (on_gpu, args.quick) {
        (true, false) => Grid::gpu(),
        (true, true) => Grid::gpu_quick(),
        (false, false) => Grid::emulator(),
        (false, true) => Grid::emulator_quick(),
    };
    fn given<T: PartialEq>(list: &mut Vec<T>, given: impl Iterator<Item = T>) {
        let mut new = Vec::new();
        for item in given {
            if !new.contains(&item) {
                new.push(item);
            }
        }
        if !new.is_empty() {
            *list = new;
        }
    }
    let lists = [
        args.dtype.len(),
        args.head_dim.len(),
        args.mask.len(),
        args.seqlen.len(),
        args.heads.len(),
    ];
    let shaped = lists.iter().any(|&len| len > 0)
        || args.window.is_some()
        || args.hidden.is_some()
        || args.tokens.is_some();
    match args.only {
        Some(OnlyArg::Serving) if shaped => {
            let expected = "no list of element types, head dimensions, masks, lengths or heads: those are of dense tensors";
            return Err(Failure::bad("--only serving", expected, "one"));
        }
        Some(OnlyArg::Serving) => grid.dtypes.clear(),
        Some(OnlyArg::Dense) => grid.serving.clear(),
        None if shaped => grid.serving.clear(),
        None => {}
    }
    if args.only == Some(OnlyArg::Serving) {
        return Ok(grid);
    }
    given(&mut grid.dtypes, args.dtype.iter().copied());
    given(&mut grid.head_dims, args.head_dim.iter().copied());
    given(&mut grid.seqlens, args.seqlen.iter().map(|n| n.get()));
    given(&mut grid.groups, args.heads.iter().copied());
    grid.hidden = args.hidden.map_or(grid.hidden, |n| n.get());
    grid.tokens = args.tokens.map_or(grid.tokens, |n| n.get());
    let window = args.window.map(Mask::Window);
    grid.masks.extend(window.filter(|_| args.mask.is_empty()));
    let mut masks = Vec::new();
    for mask in &args.mask {
        masks.push(match (mask, window) {
            (MaskArg::Full, _) => Mask::Full,
            (MaskArg::Causal, _) => Mask::Causal,
            (MaskArg::Window, Some(window)) => window,
            (MaskArg::Window, None) => {
                return Err(Failure::bad("--mask", "--window with window", "none"));
            }
        });
    }
    given(&mut grid.masks, masks.into_iter());
    Ok(grid)
}

/// Bytes of the host's memory that a cell takes, roughly; `None` past 64 bits.
fn memory_needed(cell: &Cell, on_gpu: bool) -> Option<u64> {
    let tensors = cell.bytes()?;
    // One tensor at a time on its way to a GPU, and the output back; the emulator holds all of them as well. A row of
    // the oracle gathers a head's keys and values, on every core.
    let dims = cell.shape.head_dim_qk.checked_add(cell.shape.head_dim_v)?;
    let head = (cell.shape.seqlen_k as u64).checked_mul(dims as u64)?;
    let rows = head.checked_mul(32 * flashtile_verify::parallel::cores() as u64)?;
    let held = tensors.checked_mul(if on_gpu { 1 } else { 2 })?;
    held.checked_add(rows)
}

/// The peers' program, written to the folder of the results.
fn peers(args: &BenchArgs, target: &Target) -> Result<Option<peers::Options>> {
    let Some(names) = &args.peers else {
        return Ok(None);
    };
    write(&args.out, "peers.py", peers::SCRIPT.as_bytes())?;
    let log = args.out.join("peers.log");
    let created = File::create(&log);
    let unwritable = |error| Failure::bad(log.display(), "a file that can be written", error);
    Ok(Some(peers::Options {
        names: names.0.clone(),
        device: match target {
            Target::Gpu { name, .. } => name.clone(),
            Target::Emulator(_) | Target::Cpu => "cpu".into(),
        },
        python: args.python.clone(),
        script: args.out.join("peers.py"),
        log: Some(created.map_err(unwritable)?),
        patience: PATIENCE,
    }))
}

/// Writes all that is known.
fn save(folder: &Path, report: &Report) -> Result<()> {
    let csv = report.csv().map_err(|error| unfit(folder, error))?;
    write(folder, "results.csv", &csv)?;
    write(folder, "results.json", json(folder, report)?.as_bytes())?;
    let summary = format!("{}\n", report.summary());
    write(folder, "summary.md", summary.as_bytes())?;
    let plots = report.plots().map_err(|error| unfit(folder, error))?;
    plots
        .iter()
        .try_for_each(|(name, text)| write(folder, name, text.as_bytes()))
}

fn json(folder: &Path, report: &Report) -> Result<String> {
    report.json().map_err(|error| unfit(folder, error))
}

fn unfit(folder: &Path, error: String) -> Failure {
    Failure::bad(folder.display(), "results that can be written", error)
}

fn write(folder: &Path, name: &str, content: &[u8]) -> Result<()> {
    Pending::create(&folder.join(name), None)?.commit(content)
}

//! The benchmark harness the way it goes on a GPU, over the stand-in for the driver.

#![cfg(unix)]

mod common;

use std::{ops::ControlFlow, time::Duration};

use common::{in_a_process_with_the_stand_in, with_the_stand_in_and};
use flashtile::{ArchChoice, CudaDevice, DType};
use flashtile_benches::{
    Grid, Options, Report, Target, plan,
    report::{OURS, State},
    run,
};

/// Four cells of dense tensors.
fn measure() -> Report {
    let mut grid = Grid::emulator_quick();
    grid.seqlens = vec![64];
    grid.dtypes = vec![DType::Bf16, DType::F16];
    grid.serving.clear();
    measure_grid(&grid)
}

fn measure_grid(grid: &Grid) -> Report {
    let device = CudaDevice::new(0).unwrap();
    let options = Options {
        arch: ArchChoice::Auto,
        time: Duration::from_millis(1),
        budget: None,
        peers: None,
    };
    let target = Target::Gpu(&device);
    let cells = plan(target, grid, options.arch).unwrap();
    run(target, &cells, options, |_| ControlFlow::Continue(())).unwrap()
}

fn is_sound(report: &Report, method: &str) {
    assert!(report.is_right(), "{report:?}");
    assert_eq!(report.rows.len(), 4);
    assert_eq!(report.machine.kind, "cuda");
    assert!(report.copy_bytes_per_second > Some(0.0));
    for row in &report.rows {
        assert_eq!((&*row.implementation, row.state), (OURS, State::Ok));
        assert_eq!((row.clock, &*row.method), ("events", method));
        // 128 KiB of tensors, and twice an L2 cache of 1 MiB.
        assert_eq!(row.sets, 16, "{row:?}");
        assert!(
            row.launches >= 16 && row.launches.is_multiple_of(16),
            "{row:?}"
        );
        assert!(row.tflops > Some(0.0) && row.percent_of_peak.is_none());
        assert!(row.max_abs_error <= row.error_bound);
    }
    let plots = report.plots().unwrap();
    let roofline = plots
        .iter()
        .filter(|(name, _)| name.starts_with("roofline"));
    assert_eq!(roofline.count(), 2);
}

#[test]
fn graphs_are_timed_by_events() {
    in_a_process_with_the_stand_in("graphs_are_timed_by_events_inner");
}

#[test]
#[ignore = "run by graphs_are_timed_by_events"]
fn graphs_are_timed_by_events_inner() {
    is_sound(&measure(), "graph");
}

/// Serving kernels and the merging of parts can be taken down as a graph, and bytes are counted.
#[test]
fn serving_cells_are_timed_by_events() {
    in_a_process_with_the_stand_in("serving_cells_are_timed_by_events_inner");
}

#[test]
#[ignore = "run by serving_cells_are_timed_by_events"]
fn serving_cells_are_timed_by_events_inner() {
    let mut grid = Grid::emulator();
    grid.dtypes.clear();
    let report = measure_grid(&grid);
    assert!(report.is_right(), "{report:?}");
    assert_eq!(report.rows.len(), grid.serving.len());
    for row in &report.rows {
        assert_eq!(
            (row.state, row.clock, &*row.method),
            (State::Ok, "events", "graph")
        );
        let seconds = row.median_us.unwrap() / 1e6;
        let rate = row.bytes.unwrap() as f64 / seconds;
        assert!((row.gb_per_second.unwrap() / (rate / 1e9) - 1.0).abs() < 1e-9);
        let copies = report.copy_bytes_per_second.unwrap();
        assert!((row.percent_of_copy.unwrap() / (100.0 * rate / copies) - 1.0).abs() < 1e-9);
    }
    let summary = report.summary();
    assert!(summary.contains("percent of what copies move"), "{summary}");
}

#[test]
fn without_graphs_launches_are_timed() {
    let variables = [("FLASHTILE_STAND_IN_GRAPHS", "no")];
    with_the_stand_in_and("without_graphs_launches_are_timed_inner", &variables);
}

#[test]
#[ignore = "run by without_graphs_launches_are_timed"]
fn without_graphs_launches_are_timed_inner() {
    is_sound(&measure(), "launches");
}

/// A device is of no use after a fault: the run ends with what it has.
#[test]
fn a_fault_ends_the_run() {
    let variables = [("FLASHTILE_STAND_IN_FAULT", ".entry fused_f16_d64_sm90a")];
    with_the_stand_in_and("a_fault_ends_the_run_inner", &variables);
}

#[test]
#[ignore = "run by a_fault_ends_the_run"]
fn a_fault_ends_the_run_inner() {
    let report = measure();
    let states: Vec<_> = report.rows.iter().map(|row| row.state).collect();
    assert_eq!(states, [State::Ok, State::Ok, State::Failed]);
    let reason = &report.rows[2].reason;
    assert!(reason.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{reason}");
    assert!(!report.is_right());
    assert_eq!(report.fault.as_ref(), Some(reason));
    assert_eq!(report.not_run.len(), 1);
    assert!(report.summary().contains("ended early: "));
}

//! The whole run on the emulator, with a stand-in for the peers' process (`examples/peer.rs`).

use std::{env, ops::ControlFlow, path::PathBuf, time::Duration};

use flashtile::{ArchChoice, DType, EmulatorDevice, ErrorClass, Window};
use flashtile_benches::{
    Cell, Grid, HeadDim, Mask, Options, Report, Target, peers, plan,
    report::{OURS, Row, State},
    run,
};

/// The stand-in's program. `cargo test` builds it.
fn program() -> PathBuf {
    // target/PROFILE/deps/NAME-HASH; examples lie beside deps.
    let test = env::current_exe().unwrap();
    let name = format!("examples/peer{}", env::consts::EXE_SUFFIX);
    let program = test.ancestors().nth(2).unwrap().join(name);
    assert!(program.is_file(), "{} is missing", program.display());
    program
}

/// Runs the cells with these peers, which have these faults.
fn with_peers(cells: &[Cell], names: &[&str], faults: &str, patience: f64) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("faults");
    std::fs::write(&script, faults).unwrap();
    let options = Options {
        peers: Some(peers::Options {
            names: names.iter().map(|&name| name.into()).collect(),
            device: "cpu".into(),
            python: program().into(),
            script,
            log: None,
            patience: Duration::from_secs_f64(patience),
        }),
        ..alone()
    };
    let device = EmulatorDevice::new();
    let go_on = |_: flashtile_benches::Progress<'_>| ControlFlow::Continue(());
    run(Target::Emulator(&device), cells, options, go_on).unwrap()
}

fn alone() -> Options {
    Options {
        arch: ArchChoice::Auto,
        time: Duration::from_millis(1),
        budget: None,
        peers: None,
    }
}

fn cells() -> Vec<Cell> {
    let mut grid = Grid::emulator_quick();
    grid.serving.clear();
    grid.seqlens = vec![64];
    grid.masks.push(Mask::Window(Window {
        left: Some(10),
        right: None,
    }));
    grid.cells()
}

fn of<'a>(report: &'a Report, name: &str) -> Vec<&'a Row> {
    let rows = report.rows.iter();
    rows.filter(|row| row.implementation == name).collect()
}

/// What is told of each row of an implementation.
fn reasons(report: &Report, name: &str) -> Vec<String> {
    let rows = of(report, name).into_iter();
    rows.map(|row| row.reason.clone()).collect()
}

#[test]
fn ours_and_peers_are_timed_in_the_same_cells_and_right() {
    let cells = cells();
    let report = with_peers(
        &cells,
        &["torch-flash", "flashinfer"],
        "flashinfer missing",
        60.0,
    );
    assert!(report.is_right());
    assert_eq!(report.rows.len(), 2 * cells.len());
    for (pair, cell) in report.rows.chunks(2).zip(&cells) {
        assert_eq!(pair[0].implementation, OURS);
        assert_eq!(pair[1].implementation, "torch-flash");
        for row in pair {
            assert_eq!(row.cell, *cell);
            assert_eq!((row.state, row.clock), (State::Ok, "wall"), "{row:?}");
            assert!(row.samples >= 9 && row.median_us > Some(0.0), "{row:?}");
            assert!(row.q1_us <= row.median_us && row.median_us <= row.q3_us);
            assert!(row.max_abs_error > Some(0.0) && row.max_abs_error <= row.error_bound);
            // Neither is a GPU's time.
            assert_eq!((row.tflops, row.percent_of_peak), (None, None));
        }
        assert_eq!(
            (pair[0].arch, pair[0].variant),
            ("sm_90a", "fused_bf16_d64_sm90a")
        );
        assert!(report.kernels.contains_key(pair[0].variant));
        // f32 sums, where the kernel has products of bf16.
        assert!(pair[1].rms_error < pair[0].rms_error);
    }
    assert_eq!(report.machine.kind, "emulator");
    assert!(report.copy_bytes_per_second.is_none() && report.peak_tflops.is_empty());
    let missing = report.peers[1].missing.as_deref();
    assert!(missing.is_some_and(|reason| reason.contains("No module")));
    let summary = report.summary();
    assert!(summary.contains("nothing about a GPU"), "{summary}");
    assert!(!summary.contains("best peer"), "{summary}");
}

#[test]
fn serving_cells_are_timed_and_right() {
    let cells = Grid::emulator_quick().serving;
    let report = with_peers(&cells, &["torch-flash"], "", 60.0);
    assert!(report.is_right(), "{}", report.summary());
    assert_eq!(report.rows.len(), 2 * cells.len());
    let kernels: Vec<_> = of(&report, OURS).iter().map(|row| row.variant).collect();
    assert_eq!(
        kernels,
        [
            "decode_bf16_d128_sm80",
            "mla_bf16_m16_sm80",
            "serving_bf16_d128_sm90a"
        ]
    );
    for row in &report.rows {
        assert_eq!(row.state, State::Ok, "{row:?}");
        assert!(row.max_abs_error > Some(0.0) && row.max_abs_error <= row.error_bound);
        // Neither is a GPU's.
        assert_eq!((row.gb_per_second, row.percent_of_copy), (None, None));
        assert_eq!(row.bytes, row.cell.bytes());
    }
    let summary = report.summary();
    assert!(summary.contains("bf16 gqa4 d128 pages16 b1"), "{summary}");
}

#[test]
fn a_peers_failure_is_its_own() {
    let names = peers::NAMES;
    let faults = format!(
        "{} unable\n{} wrong\n{} dies\n{} loses\n{} short\n{} babbles\n",
        names[0], names[1], names[2], names[3], names[4], names[5]
    );
    let cells = cells();
    let report = with_peers(&cells, &names, &faults, 60.0);
    assert!(report.is_right());
    assert_eq!(report.rows.len(), (names.len() + 1) * cells.len());
    let all = |name: &str, state: State| of(&report, name).iter().all(|row| row.state == state);
    // The last has no fault, though the process was lost under it four times.
    assert!(
        all(OURS, State::Ok) && all(names[6], State::Ok),
        "{report:?}"
    );
    assert!(of(&report, names[6]).iter().all(|row| row.samples >= 9));
    assert!(all(names[1], State::Wrong) && all(names[4], State::Wrong));
    for (name, first) in [
        (names[0], "not this one"),
        (names[2], "the process has ended (exit status: 7)"),
        (names[3], "CUDA error: gone"),
        (names[5], "it answered \"Segmentation fault\\n\""),
    ] {
        assert!(all(name, State::Failed), "{name}");
        let reasons = reasons(&report, name);
        assert_eq!(reasons[0], first);
        // Whoever costs the process is not asked again.
        let later = match name == names[0] {
            true => first.into(),
            false => format!("given up: {first}"),
        };
        assert_eq!(reasons[1..], [later.clone(), later], "{name}");
    }
}

#[test]
fn what_hangs_is_stopped() {
    let cells = &cells()[..2];
    let report = with_peers(
        cells,
        &["flashinfer", "torch-flash"],
        "flashinfer hangs",
        2.0,
    );
    assert_eq!(
        reasons(&report, "flashinfer"),
        ["no answer in 2s", "given up: no answer in 2s"]
    );
    let others = of(&report, "torch-flash");
    assert!(
        others.iter().all(|row| row.state == State::Ok),
        "{others:?}"
    );
}

#[test]
fn without_a_process_there_are_no_peers() {
    let cells = &cells()[..1];
    let report = with_peers(cells, &["torch-flash"], "deaf", 0.5);
    assert_eq!(report.rows.len(), 1);
    let missing = report
        .python
        .as_ref()
        .and_then(|python| python.missing.clone());
    assert_eq!(missing.as_deref(), Some("no answer in 500ms"));
    assert!(report.summary().contains("peers: none (no answer"));

    let device = EmulatorDevice::new();
    let options = Options {
        peers: Some(peers::Options {
            names: vec!["torch-flash".into()],
            device: "cpu".into(),
            python: "/no/such/python".into(),
            script: "none".into(),
            log: None,
            patience: Duration::from_secs(60),
        }),
        ..alone()
    };
    let go_on = |_: flashtile_benches::Progress<'_>| ControlFlow::Continue(());
    let report = run(Target::Emulator(&device), cells, options, go_on).unwrap();
    assert!(report.is_right());
    let missing = report.python.and_then(|python| python.missing).unwrap();
    assert!(missing.starts_with("/no/such/python: "), "{missing}");
}

/// A peer that computes on other numbers would be compared with nothing.
#[test]
fn other_numbers_are_noticed() {
    let report = with_peers(&cells()[..1], &["torch-flash"], "numbers", 60.0);
    let reasons = reasons(&report, "torch-flash");
    assert!(
        reasons[0].starts_with("its tensors hold other numbers"),
        "{reasons:?}"
    );
}

#[test]
fn a_run_can_be_cut_short() {
    let device = EmulatorDevice::new();
    let target = Target::Emulator(&device);
    let cells = cells();
    let names: Vec<_> = cells.iter().map(Cell::to_string).collect();
    // No time: the first cell is measured all the same.
    let options = Options {
        budget: Some(Duration::ZERO),
        ..alone()
    };
    let mut heard = Vec::new();
    let report = run(target, &cells, options, |progress| {
        heard.push((
            progress.done,
            progress.next.copied(),
            progress.report.rows.len(),
        ));
        ControlFlow::Continue(())
    });
    let report = report.unwrap();
    assert_eq!(report.rows.len(), 1);
    assert_eq!(report.not_run, names[1..]);
    assert_eq!(heard, [(0, Some(cells[0]), 0), (1, None, 1)]);
    // Or whoever watches has had enough.
    let report = run(target, &cells, alone(), |progress| match progress.done {
        2 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    let report = report.unwrap();
    assert_eq!((report.rows.len(), &report.not_run[..]), (2, &names[2..]));
}

#[test]
fn cells_that_cannot_be_done_are_rows_with_a_reason() {
    let device = EmulatorDevice::new();
    let target = Target::Emulator(&device);
    let go_on = |_: flashtile_benches::Progress<'_>| ControlFlow::Continue(());
    // The Hopper tier has no f32 kernel.
    let mut grid = Grid::emulator_quick();
    grid.serving.clear();
    grid.dtypes = vec![DType::F32];
    let options = Options {
        arch: ArchChoice::Sm90a,
        ..alone()
    };
    let report = run(target, &grid.cells(), options, go_on).unwrap();
    let none = plan(target, &grid, ArchChoice::Sm90a).unwrap_err();
    assert_eq!(none.class(), ErrorClass::NoVariant);
    assert_eq!(report.rows.len(), grid.cells().len());
    for row in &report.rows {
        assert_eq!((row.state, &row.reason), (State::Failed, &none.to_string()));
    }
    // No result is wrong, and the device is as good as before.
    assert!(report.is_right());

    // Cells that make no sense are an error before anything runs; if they run all the same they are rows, too.
    grid.head_dims = [64, 1024].map(HeadDim::from).to_vec();
    let senseless = plan(target, &grid, ArchChoice::Auto).unwrap_err();
    assert_eq!(senseless.class(), ErrorClass::BadInput);
    let report = run(target, &grid.cells(), alone(), go_on).unwrap();
    for row in &report.rows {
        let wide = row.head_dim_qk == 1024;
        assert_eq!(row.state == State::Failed, wide, "{row:?}");
        assert_eq!(row.reason.contains("head_dim 1024"), wide, "{row:?}");
    }
    grid.head_dims = [64].map(HeadDim::from).to_vec();
    grid.seqlens = vec![usize::MAX];
    let endless = plan(target, &grid, ArchChoice::Auto).unwrap_err();
    assert_eq!(endless.class(), ErrorClass::BadInput);
}

use std::collections::BTreeMap;

use flashtile::{DType, Window};

use super::*;
use crate::{
    Grid,
    cell::{Group, HeadDim},
};

/// A run that never was, on a GPU that does not exist.
fn report(grid: &Grid) -> Report {
    let mut report = Report {
        flashtile: "0.0.1",
        date: "2000-02-28 23:59 UTC".into(),
        seconds: 61.5,
        machine: Machine {
            kind: "cuda",
            name: "Imaginary <GPU> & Co".into(),
            compute_capability: "9.0".into(),
            multiprocessors: 132,
            memory_bytes: 1 << 37,
            l2_bytes: Some(50 << 20),
            driver_cuda: Some("13.0".into()),
            before: BTreeMap::new(),
            after: BTreeMap::new(),
            cpu: "none".into(),
            cores: 1,
        },
        seconds_per_cell: 0.3,
        copy_bytes_per_second: Some(4e12),
        peak_tflops: BTreeMap::from([("bf16", 800.0)]),
        python: Some(Python {
            torch: "2.0".into(),
            cuda: "13.0".into(),
            missing: None,
        }),
        peers: vec![
            About {
                name: "torch-cudnn".into(),
                version: "2.0".into(),
                missing: None,
            },
            About {
                name: "flashinfer".into(),
                version: String::new(),
                missing: Some("ModuleNotFoundError: No module named 'flashinfer'".into()),
            },
        ],
        kernels: BTreeMap::new(),
        rows: Vec::new(),
        not_run: Vec::new(),
        fault: None,
    };
    for cell in grid.cells() {
        // Ours begins faster, and ends slower.
        let length = (cell.shape.seqlen_k as f64).log2();
        for (name, tflops) in [
            (OURS, 300.0 + 10.0 * length),
            ("torch-cudnn", 40.0 * length),
        ] {
            let mut row = Row::new(cell, name.into(), "2.0".into());
            let micros = cell.flops() / tflops / 1e6;
            row.state = State::Ok;
            (row.q1_us, row.median_us, row.q3_us) =
                (Some(micros * 0.99), Some(micros), Some(micros * 1.01));
            row.tflops = Some(tflops);
            row.percent_of_peak = Some(tflops / 8.0);
            row.max_abs_error = Some(1e-2 / length);
            row.rms_error = Some(2e-3 / length);
            report.rows.push(row);
        }
    }
    report
}

fn grid() -> Grid {
    Grid {
        dtypes: vec![DType::Bf16],
        head_dims: [64, 128].map(HeadDim::from).to_vec(),
        seqlens: vec![512, 1024, 4096],
        groups: vec![Group(1)],
        serving: Vec::new(),
        ..Grid::gpu()
    }
}

/// Cells that decode have a table of their own: bytes count, not operations.
#[test]
fn decoding_has_its_own_table() {
    let none = Grid {
        dtypes: Vec::new(),
        ..Grid::gpu_quick()
    };
    let mut report = report(&none);
    for row in &mut report.rows {
        row.percent_of_copy = Some(87.4);
    }
    let summary = report.summary();
    for line in [
        "flashtile, TFLOP/s (times the best peer's)",
        "| bf16 gqa4 d128 causal packed | 420 (0.88) |",
        "flashtile, microseconds, percent of what copies move (times the best peer's)",
        "| | 1 to 4k | 1 to 8k |",
        "| bf16 gqa4 d128 pages16 b1 | 0.2, 87 % (0.88) |  |",
        "| bf16 gqa4 d128 pages16 b64 |  | 20.0, 87 % (0.83) |",
    ] {
        assert!(summary.contains(line), "{line}\n{summary}");
    }
    assert!(report.plots().is_ok());
}

/// As a reader of the file would: a map for each line.
fn parse(csv: &[u8]) -> Vec<BTreeMap<String, String>> {
    csv::Reader::from_reader(csv)
        .deserialize()
        .map(Result::unwrap)
        .collect()
}

#[test]
fn the_csv_file_has_what_the_rows_have() {
    let mut report = report(&grid());
    let odd = "it said \"no\", twice,\nand went";
    report.rows[1].reason = odd.into();
    report.rows[1].median_us = None;
    let lines = parse(&report.csv().unwrap());
    assert_eq!(lines.len(), report.rows.len());
    let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
    for ((line, row), object) in lines
        .iter()
        .zip(&report.rows)
        .zip(json["rows"].as_array().unwrap())
    {
        let columns: Vec<_> = object.as_object().unwrap().keys().cloned().collect();
        let mut expected: Vec<_> = line.keys().cloned().collect();
        expected.sort();
        let mut found = columns.clone();
        found.sort();
        assert_eq!(found, expected);
        assert_eq!(line["implementation"], row.implementation);
        assert_eq!(line["seqlen_q"], row.seqlen_q.to_string());
        assert_eq!(line["state"], "ok");
        assert_eq!(line["tflops"].parse().ok(), row.tflops);
    }
    assert_eq!(
        (lines[1]["median_us"].as_str(), lines[1]["reason"].as_str()),
        ("", odd)
    );
    assert_eq!(json["peak_tflops"]["bf16"], 800.0);
    assert_eq!(json["machine"]["name"], "Imaginary <GPU> & Co");
}

#[test]
fn the_summary_says_who_is_ahead() {
    let mut report = report(&grid());
    // Overlapping quartiles: neither is faster.
    let even = report.rows[0].clone();
    report.rows[1].q1_us = even.q1_us;
    report.rows[1].median_us = even.median_us;
    report.rows[1].q3_us = even.q3_us;
    // A wrong result is no rival.
    report.rows[3].state = State::Wrong;
    report.rows[3].reason = "nonsense".into();
    report.not_run = vec!["one".into()];
    assert!(report.is_right());
    let expected = "flashtile 0.0.1 on Imaginary <GPU> & Co, 2000-02-28 23:59 UTC: 12 cells in 62 s
limits: torch.matmul bf16 800 TFLOP/s; copies 4.00 TB/s
peers: torch-cudnn 2.0; no flashinfer (ModuleNotFoundError: No module named 'flashinfer')

flashtile, TFLOP/s (times the best peer's)

| | 512 | 1k | 4k |
|---|---|---|---|
| bf16 mha d64 full | 390 (1.00) | 400 | 420 (0.88) |
| bf16 mha d64 causal | 390 (1.08) | 400 (1.00) | 420 (0.88) |
| bf16 mha d128 full | 390 (1.08) | 400 (1.00) | 420 (0.88) |
| bf16 mha d128 causal | 390 (1.08) | 400 (1.00) | 420 (0.88) |

of 11 cells 3 are ahead of the best peer, 4 even, 4 behind:
- bf16 mha d64 full 4k: 0.88 of torch-cudnn
- bf16 mha d64 causal 4k: 0.88 of torch-cudnn
- bf16 mha d128 full 4k: 0.88 of torch-cudnn
- bf16 mha d128 causal 4k: 0.88 of torch-cudnn
WRONG: torch-cudnn bf16 mha d64 full 1k: nonsense
not run: 1 cells";
    assert_eq!(report.summary(), expected);

    report.rows[0].state = State::Wrong;
    assert!(!report.is_right());
    report.rows[0].state = State::Failed;
    report.rows[0].tflops = None;
    assert!(report.is_right());
    assert!(report.summary().contains("| bf16 mha d64 full | - |"));
    report.fault = Some("lost".into());
    assert!(!report.is_right());
}

#[test]
fn a_long_list_of_cells_behind_is_cut() {
    let grid = Grid::gpu();
    let cells = grid.cells().len();
    let mut report = report(&grid);
    for row in report.rows.iter_mut().filter(|row| row.is_ours()) {
        (row.q1_us, row.median_us, row.q3_us) = (Some(1e9), Some(1e9), Some(1e9));
    }
    let summary = report.summary();
    let behind = format!("0 are ahead of the best peer, 0 even, {cells} behind");
    assert!(summary.contains(&behind), "{summary}");
    let rest = format!("\n- and {} more", cells - 20);
    assert!(summary.ends_with(&rest), "{summary}");
}

/// The text of a drawing, and how many of its elements are lines of several points.
fn drawing(svg: &str) -> (Vec<String>, usize) {
    let document = roxmltree::Document::parse(svg).unwrap();
    let texts = document
        .descendants()
        .filter(|node| node.has_tag_name("text"));
    let texts = texts.filter_map(|node| node.text());
    let texts = texts.map(|text| text.trim().to_owned()).collect();
    let lines = document.descendants();
    let lines = lines.filter(|node| node.has_tag_name("polyline"));
    (texts, lines.count())
}

#[test]
fn the_plots_are_well_formed_and_complete() {
    let mut grid = grid();
    grid.groups.push(Group(8));
    grid.masks.push(Mask::Window(Window {
        left: Some(256),
        right: Some(0),
    }));
    let report = report(&grid);
    let plots = report.plots().unwrap();
    let names: Vec<_> = plots.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "speed-bf16-mha.svg",
            "error-bf16-mha.svg",
            "speed-bf16-gqa8.svg",
            "error-bf16-gqa8.svg",
            "roofline-bf16.svg"
        ]
    );
    for (name, svg) in &plots {
        if let Ok(folder) = std::env::var("FLASHTILE_SHOW_PLOTS") {
            std::fs::write(std::path::Path::new(&folder).join(name), svg).unwrap();
        }
        let (texts, lines) = drawing(svg);
        let has = |text: &str| texts.iter().any(|found| found.contains(text));
        assert!(has("Imaginary <GPU> & Co"), "{name}: {texts:?}");
        assert!(has("flashtile") && has("torch-cudnn"), "{name}: {texts:?}");
        if name.starts_with("roofline") {
            assert!(has("800 TFLOP/s") && has("4.00 TB/s"), "{texts:?}");
            assert!(lines >= 1);
            continue;
        }
        for caption in [
            "head_dim 64, full",
            "head_dim 128, causal",
            "head_dim 64, window 256, 0",
        ] {
            assert!(has(caption), "{name}: {caption}: {texts:?}");
        }
        assert!(
            ["512", "1k", "4k"].iter().all(|&length| has(length)),
            "{texts:?}"
        );
        if name.starts_with("speed") {
            // Two head dimensions, three masks, two implementations.
            assert!(lines >= 12, "{name}: {lines}");
        }
    }
}

#[test]
fn nothing_and_little_can_be_drawn() {
    let mut grid = grid();
    grid.seqlens = vec![512];
    let mut report = report(&grid);
    // One point without a peak; an error that is infinite, and one that is zero.
    report.peak_tflops.clear();
    report.rows[0].max_abs_error = Some(f64::INFINITY);
    report.rows[0].rms_error = Some(0.0);
    for (_, svg) in report.plots().unwrap() {
        drawing(&svg);
    }
    for row in &mut report.rows {
        *row = Row::new(row.cell, row.implementation.clone(), String::new());
    }
    report.copy_bytes_per_second = None;
    for (name, svg) in report.plots().unwrap() {
        let (texts, _) = drawing(&svg);
        let said = texts
            .iter()
            .any(|text| text.contains("nothing was measured"));
        assert!(said, "{name}: {texts:?}");
    }
    report.machine.kind = "emulator";
    let plots = report.plots().unwrap();
    assert!(plots.iter().all(|(name, _)| !name.starts_with("roofline")));
    report.rows.clear();
    assert_eq!(report.plots().unwrap(), []);
    assert!(report.csv().unwrap().is_empty());
    assert!(report.summary().contains("0 cells"));
}

//! A stand-in for `peers.py`, to rehearse without Python and torch: it answers the same questions, and computes by the
//! library's own f32 reference. The file that it is given in place of the program says which faults it has, a line
//! each: the name of a peer and what becomes of it.
//!
//! | fault | what |
//! |---|---|
//! | `missing` | cannot be imported |
//! | `unable` | refuses every cell |
//! | `wrong` | its output is zero |
//! | `short` | answers with too few rows |
//! | `dies` | ends the process when it is timed |
//! | `loses` | says that the process is lost when it is prepared |
//! | `hangs` | never answers when it is prepared |
//! | `babbles` | answers something else than JSON when it is timed |
//!
//! `numbers` in place of a name: the tensors hold other numbers. `deaf`: nothing is answered at all.

use std::{
    collections::HashMap,
    error::Error,
    io::{BufRead, Write},
    thread::sleep,
    time::Duration,
};

use flashtile::{
    ArchChoice, DType, Inputs, Shape, Window, cpu, element,
    serving::{CacheLayout, ServingInputs, ServingProblem, attention_cpu},
};
use flashtile_benches::{Cache, Cell, Mask, cell, values};
use serde_json::{Value, json};

type Done<T> = Result<T, Box<dyn Error>>;

fn main() -> Done<()> {
    let script = std::env::args().nth(1).ok_or("expected a file")?;
    let text = std::fs::read_to_string(script)?;
    let words = text.lines().filter_map(|line| line.split_once(' '));
    let faults: HashMap<_, _> = words.collect();
    let mut answers = std::io::stdout();
    let mut open = None;
    for line in std::io::stdin().lock().lines() {
        if text.starts_with("deaf") {
            sleep(Duration::from_secs(600));
        }
        let ask: Value = serde_json::from_str(&line?)?;
        let name = ask["peer"].as_str().unwrap_or_default();
        let fault = faults.get(name).copied().unwrap_or_default();
        let what = ask["ask"].as_str().unwrap_or_default();
        let answer = match (what, fault) {
            ("hello", _) => hello(&ask, &faults),
            ("open", _) => {
                let cell = ask["cell"].clone();
                let other = json!([0, 0, 0, 0, 0, 0]);
                let probe = match text.starts_with("numbers") {
                    true => other,
                    false => cell["probe"].clone(),
                };
                open = Some(cell);
                json!({"probe": probe})
            }
            ("prepare", "unable") => json!({"error": "not this one"}),
            ("prepare", "loses") => json!({"error": "CUDA error: gone", "lost": true}),
            ("prepare", "hangs") => {
                sleep(Duration::from_secs(600));
                Value::Null
            }
            ("prepare", _) => prepare(open.as_ref().ok_or("no cell is open")?, fault)?,
            ("time", "dies") => std::process::exit(7),
            ("time", "babbles") => {
                writeln!(answers, "Segmentation fault")?;
                continue;
            }
            ("time", _) => {
                let fewest = ask["fewest"].as_u64().unwrap_or(1) as usize;
                json!({"times": vec![0.001; fewest]})
            }
            ("close", _) => {
                open = None;
                json!({})
            }
            _ => json!({"error": format!("what is {what}?")}),
        };
        writeln!(answers, "{answer}")?;
        answers.flush()?;
    }
    Ok(())
}

fn hello(ask: &Value, faults: &HashMap<&str, &str>) -> Value {
    let names = ask["names"].as_array().into_iter().flatten();
    let peers = names.filter_map(Value::as_str).map(|name| {
        let about = match faults.get(name) {
            Some(&"missing") => json!({"missing": "ModuleNotFoundError: No module named 'it'"}),
            _ => json!({"version": "1.2"}),
        };
        (name.to_owned(), about)
    });
    json!({"torch": "0.0", "cuda": "0.0", "peers": peers.collect::<serde_json::Map<_, _>>()})
}

fn prepare(cell: &Value, fault: &str) -> Done<Value> {
    let mut rows = compute(cell)?;
    match fault {
        "wrong" => rows.fill(0.0),
        "short" => rows.truncate(rows.len() / 2),
        _ => {}
    }
    let bytes: Vec<_> = rows.iter().flat_map(|x| x.to_le_bytes()).collect();
    Ok(json!({"method": "launches", "launches": 1, "rows": to_base64(&bytes)}))
}

/// The cell as it is described in JSON.
fn parse(cell: &Value) -> Done<Cell> {
    let number = |name: &str| cell[name].as_u64().unwrap_or_default() as usize;
    let side = |at: usize| {
        cell["window"][at]
            .as_i64()
            .and_then(|n| u32::try_from(n).ok())
    };
    Ok(Cell {
        dtype: cell::dtype(cell["dtype"].as_str().unwrap_or_default())?,
        shape: Shape {
            batch: number("batch"),
            seqlen_q: number("seqlen_q"),
            seqlen_k: number("seqlen_k"),
            heads_q: number("heads_q"),
            heads_kv: number("heads_kv"),
            head_dim_qk: number("head_dim_qk"),
            head_dim_v: number("head_dim_v"),
        },
        mask: match cell["mask"].as_str() {
            Some("full") => Mask::Full,
            Some("causal") => Mask::Causal,
            Some("window") => Mask::Window(Window {
                left: side(0),
                right: side(1),
            }),
            _ => return Err("what mask is that?".into()),
        },
        cache: cell["cache"].as_str().unwrap_or_default().parse()?,
    })
}

/// The rows that are asked for.
fn compute(ask: &Value) -> Done<Vec<f32>> {
    let cell = parse(ask)?;
    let problem = cell
        .problem(ArchChoice::Auto)
        .out_dtype(flashtile::OutDType::F32);
    let seed = |which: usize| ask["seeds"][0][which].as_u64().unwrap_or_default() as u32;
    let tensor = |layout: &flashtile::TensorLayout, which| {
        values(cell.dtype, layout.elements().unwrap_or(0), seed(which))
    };
    let (q, k) = (tensor(&problem.q, 0), tensor(&problem.k, 1));
    let s = &cell.shape;
    let out = match cell.cache {
        Cache::Latent(_) => {
            let mut problem = ServingProblem::latent(
                cell.dtype,
                s.batch,
                problem.q,
                CacheLayout::contiguous(problem.k.shape),
                s.head_dim_v,
            );
            problem.out_dtype = flashtile::OutDType::F32;
            let inputs = ServingInputs {
                q: &q,
                k: &k,
                ..ServingInputs::default()
            };
            attention_cpu(&problem, &inputs)?.out
        }
        _ => {
            let v = tensor(&problem.v, 2);
            let inputs = Inputs {
                q: &q,
                k: &k,
                v: &v,
                ..Inputs::default()
            };
            cpu::attention(&problem, &inputs)?.out
        }
    };
    let mut rows = Vec::new();
    for place in ask["rows"].as_array().into_iter().flatten() {
        let at = |n: usize| place[n].as_u64().unwrap_or_default() as usize;
        let first = ((at(0) * s.seqlen_q + at(1)) * s.heads_q + at(2)) * s.head_dim_v;
        let row = first..first + s.head_dim_v;
        rows.extend(row.map(|at| element::read(DType::F32, &out, at)));
    }
    Ok(rows)
}

fn to_base64(bytes: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(word);
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place) & 63) as usize;
            let used = place <= group.len();
            text.push(if used { char::from(digits[digit]) } else { '=' });
        }
    }
    text
}

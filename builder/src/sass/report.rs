//! The tables: what the loops of all kernels cost, beside what FlashAttention-3's do.

use std::fmt::Write as _;

use flashtile_abi::{Arch, DType, ScoreModKind};

use super::class::Class;
use super::{LoopCost, Machine, MachineCode};
use crate::builder::Build;
use crate::ptxas::Facts;
use crate::spec::EntrySpec;

/// FlashAttention-3's unmasked loops (bf16, fixed length, TMA, no softcap), disassembled from the published wheel sgl-kernel
/// 0.3.21 with nvdisasm 13.5: head_dim, mask, tile, instructions of the loop, of these HGMMA, instructions for 128 keys.
const FLASH_ATTENTION_3: [(u32, &str, &str, u32, u32, u32); 8] = [
    (64, "causal", "192 x 128", 426, 12, 426),
    (64, "full", "192 x 192", 629, 16, 419),
    (96, "local", "192 x 128", 477, 14, 477),
    (128, "causal", "128 x 128", 472, 16, 472),
    (128, "local", "128 x 128", 471, 16, 471),
    (128, "full", "128 x 176", 1007, 99, 732),
    (192, "local", "128 x 96", 441, 18, 588),
    (256, "local", "128 x 64", 412, 20, 824),
];

/// The mix of the loop for head_dim 128, causal, as far as it is known.
const FLASH_ATTENTION_3_MIX: &str =
    "68 FMNMX, 68 FMUL, 66 FFMA, 66 MUFU, 64 FADD, 32 F2FP, 20 UMOV, 17 UIADD3, 16 HGMMA";

/// Everything that the tables tell of one kernel.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// What it is.
    pub spec: &'a EntrySpec,
    /// What ptxas says of it.
    pub facts: &'a Facts,
    /// What its machine code says.
    pub machine: &'a MachineCode,
}

/// `machine-code.txt`: all tables; none unless ptxas and nvdisasm had a look at every kernel.
pub fn snapshot(build: &Build) -> Option<String> {
    let rows = build.kernels.iter().map(|kernel| {
        Some(Row {
            spec: &kernel.spec,
            facts: kernel.facts.as_ref()?,
            machine: kernel.machine.as_ref()?,
        })
    });
    let rows: Vec<_> = rows.collect::<Option<_>>()?;
    Some(tables(&rows, build.ptxas.as_deref()?))
}

/// The tables of some kernels, by this release of ptxas.
pub fn tables(rows: &[Row<'_>], ptxas: &str) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "Machine code of the loops over key tiles. Made by flashtile-builder with ptxas {ptxas}; docs/builder.md says how\n\
         to read it. Counts are what one warp issues for its 16 rows of a tile of 64 queries and 128 keys, on the way through\n\
         the loop that most iterations take.\n"
    );
    out.push_str(&kernels_table(rows));
    out.push('\n');
    out.push_str(&classes_table(rows));
    out.push('\n');
    out.push_str(&cycles_table(rows));
    out.push('\n');
    out.push_str(&comparison(rows));
    out
}

fn kernels_table(rows: &[Row<'_>]) -> String {
    let mut table = Table::new(&[
        "kernel",
        "registers",
        "later",
        "spills",
        "stack",
        "shared",
        "warps",
        "products",
        "tiles",
        "loop",
        "limit",
        "aside",
        "masked",
        "runs",
        "notes",
    ]);
    for row in rows {
        let facts = row.facts;
        let steady = row.machine.steady();
        let of_steady = |f: &dyn Fn(&LoopCost) -> String| steady.map_or("-".to_owned(), f);
        table.row(vec![
            row.spec.name.clone(),
            facts.registers.to_string(),
            joined(&facts.setmaxnreg, "/"),
            facts.spill_stores.max(facts.spill_loads).to_string(),
            facts.stack_bytes.to_string(),
            (facts.static_shared_bytes + row.spec.shared_bytes).to_string(),
            short(warps(row)),
            row.machine.tensor_instructions.to_string(),
            steady.map_or("part".to_owned(), |s| {
                s.tiles.map_or("?".to_owned(), |t| t.to_string())
            }),
            of_steady(&|s| short(s.per_unit(s.instructions()))),
            row.spec
                .loop_limit
                .map_or("-".to_owned(), |l| l.to_string()),
            of_steady(&|s| short(s.per_unit(s.aside))),
            masked(row.machine),
            of_steady(&|s| runs(&s.runs) + if s.is_serialised() { " serialised" } else { "" }),
            notes(facts),
        ]);
    }
    table.text()
}

fn classes_table(rows: &[Row<'_>]) -> String {
    let names = Class::ALL.iter().map(|c| c.as_str());
    let header: Vec<_> = ["kernel"].into_iter().chain(names).chain(["all"]).collect();
    let mut table = Table::new(&header);
    for (row, steady) in rows.iter().filter_map(|r| Some((r, r.machine.steady()?))) {
        let counts = steady.classes.iter().map(|c| short(steady.per_unit(*c)));
        let mut cells = vec![row.spec.name.clone()];
        cells.extend(counts);
        cells.push(short(steady.per_unit(steady.instructions())));
        table.row(cells);
    }
    table.text()
}

fn cycles_table(rows: &[Row<'_>]) -> String {
    let mut table = Table::new(&[
        "kernel",
        "GPU",
        "tensor",
        "issue",
        "mufu",
        "fma",
        "alu",
        "shared",
        "bound",
        "overlapped",
        "alone",
    ]);
    for (row, steady) in rows.iter().filter_map(|r| Some((r, r.machine.steady()?))) {
        let cycles = &steady.cycles;
        let mut cells = vec![
            row.spec.name.clone(),
            Machine::of(row.spec.arch).name.to_owned(),
        ];
        cells.extend(cycles.pipes().map(|(_, c)| short(steady.per_unit(c))));
        cells.push(cycles.bound().0.to_owned());
        cells.push(format!("{:.0}%", 100.0 * cycles.best_utilisation()));
        cells.push(format!("{:.0}%", 100.0 * cycles.alone_utilisation()));
        table.row(cells);
    }
    table.text()
}

/// Our unmasked loops beside FlashAttention-3's.
fn comparison(rows: &[Row<'_>]) -> String {
    let mut table = Table::new(&[
        "FlashAttention-3",
        "tile",
        "loop",
        "HGMMA",
        "per 128 keys",
        "ours",
        "difference",
    ]);
    for (dim, mask, tile, all, products, per_unit) in FLASH_ATTENTION_3 {
        let ours = rows.iter().find(|r| is_counterpart(&r.spec.name, dim));
        let ours = ours.and_then(|r| r.machine.steady());
        let count = ours.map(|s| s.per_unit(s.instructions()));
        let difference = |count| format!("{:+.0}%", 100.0 * (count / f64::from(per_unit) - 1.0));
        table.row(vec![
            format!("head_dim {dim} {mask}"),
            tile.to_owned(),
            all.to_string(),
            products.to_string(),
            per_unit.to_string(),
            count.map_or("-".to_owned(), short),
            count.map_or("-".to_owned(), difference),
        ]);
    }
    let mut out = table.text();
    let _ = writeln!(
        out,
        "Unmasked loops, bf16, from the published wheel sgl-kernel 0.3.21 (nvdisasm). Head_dim 128 causal: {FLASH_ATTENTION_3_MIX}."
    );
    out
}

/// Whether a kernel is the one to compare with FlashAttention-3's of this head_dim.
fn is_counterpart(name: &str, dim: u32) -> bool {
    let variant = flashtile_abi::variants().iter().find(|v| v.name == name);
    variant.is_some_and(|v| {
        v.arch == Arch::Sm90a
            && v.tile.dtype == DType::Bf16
            && v.score_mod == ScoreModKind::None
            && (v.tile.head_dim_qk, v.tile.head_dim_v) == (dim, dim)
    })
}

/// Warps that compute on one sub-partition: all but a producer warpgroup, which gives registers away.
fn warps(row: &Row<'_>) -> f64 {
    let spec = row.spec;
    let gives = row.facts.setmaxnreg.first().copied();
    let producers = match gives.is_some_and(|r| r < row.facts.registers) {
        true => 128,
        false => 0,
    };
    f64::from(spec.threads.saturating_sub(producers) * spec.min_blocks) / 128.0
}

/// The masked loops' instructions, the fewest and the most.
fn masked(machine: &MachineCode) -> String {
    let masked = machine.masked().iter();
    let counts: Vec<f64> = masked.map(|l| l.per_unit(l.instructions())).collect();
    let least = counts.iter().copied().reduce(f64::min).map(short);
    let most = counts.iter().copied().reduce(f64::max).map(short);
    match (least, most) {
        (Some(least), Some(most)) if least == most => least,
        (Some(least), Some(most)) => format!("{least}..{most}"),
        _ => "-".to_owned(),
    }
}

/// "8+8", "8*1+8": lengths of runs, equal neighbours together.
fn runs(lengths: &[u32]) -> String {
    let groups = lengths.chunk_by(|a, b| a == b);
    let one = |group: &[u32]| match group {
        [single] => single.to_string(),
        [first, ..] => format!("{}*{first}", group.len()),
        [] => String::new(),
    };
    let groups: Vec<_> = groups.map(one).collect();
    joined(&groups, "+")
}

/// The codes of ptxas's notes.
fn notes(facts: &Facts) -> String {
    let code = |note: &String| -> Option<String> {
        let (_, after) = note.split_once("(C")?;
        Some(format!("C{}", after.split(')').next()?))
    };
    let mut codes: Vec<_> = facts
        .notes
        .iter()
        .map(|n| code(n).unwrap_or("?".to_owned()))
        .collect();
    codes.sort();
    codes.dedup();
    joined(&codes, ",")
}

fn joined<T: ToString>(items: &[T], between: &str) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    let items: Vec<_> = items.iter().map(T::to_string).collect();
    items.join(between)
}

/// A number with one digit after the point, if it has any.
fn short(number: f64) -> String {
    let text = format!("{number:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Columns: the first flush left, the others right.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(header: &[&str]) -> Self {
        let header = header.iter().map(|h| (*h).to_owned()).collect();
        Self { rows: vec![header] }
    }

    fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widest = |column: usize| {
            let cells = self.rows.iter().filter_map(|r| r.get(column));
            cells.map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(widest).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let _ = match column {
                    0 => write!(line, "{cell:width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out
    }
}

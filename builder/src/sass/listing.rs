//! One loop, instruction by instruction, with the PTX that each is from.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::class::Class;
use super::parse::{Function, Instruction};
use super::sorted_paths;
use super::steady::{self, SteadyPath};
use crate::spec::EntrySpec;

/// Prints the unmasked loop of a kernel: its steady path as it is executed, its asides, and the PTX of the path in the
/// order of the source with what became of each statement.
///
/// `text` is the disassembly with the lines of PTX, `ptx` that PTX. `Err` says what is not understood.
pub fn listing(text: &str, ptx: &str, spec: &EntrySpec) -> Result<String, String> {
    let function = Function::parse(text, &spec.name)?;
    let paths = sorted_paths(&function, spec)?;
    let path = paths
        .first()
        .ok_or("there is no loop with tensor-core products in it")?;
    let source: Vec<&str> = ptx.lines().map(str::trim).collect();
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "{}: {} instructions an iteration, {} multiplications a warp, runs of {:?}",
        spec.name,
        path.path.len(),
        path.multiplications,
        steady::runs(&function, &path.path),
    );
    in_order_of_execution(&mut out, &function, path, &source);
    in_order_of_source(&mut out, &function, path, &source);
    Ok(out)
}

fn in_order_of_execution(
    out: &mut String,
    function: &Function,
    path: &SteadyPath,
    source: &[&str],
) {
    let _ = writeln!(
        out,
        "\nThe path, as it is executed: address, class, instruction, PTX"
    );
    print(out, function, &path.path, source);
    for aside in &path.asides {
        let word = if aside.repeats { ", with a loop" } else { "" };
        let count = aside.instructions.len();
        let _ = writeln!(out, "\nAside: {count} instructions{word}");
        print(out, function, &aside.instructions, source);
    }
}

fn print(out: &mut String, function: &Function, indices: &[usize], source: &[&str]) {
    let mut before = None;
    for index in indices {
        let instruction = &function.instructions[*index];
        // Where the path leaves the order in memory.
        if before.is_some_and(|b: usize| b + 1 != *index) {
            let _ = writeln!(out, "  ...");
        }
        before = Some(*index);
        let _ = writeln!(
            out,
            "  {:05x} {:8} {:5} {:64} {}",
            instruction.address,
            Class::of(instruction).as_str(),
            instruction.guard,
            format!("{} {}", instruction.opcode, instruction.operands),
            statement(line_of(instruction), source),
        );
    }
}

fn in_order_of_source(out: &mut String, function: &Function, path: &SteadyPath, source: &[&str]) {
    let mut by_line: BTreeMap<usize, Vec<&Instruction>> = BTreeMap::new();
    for index in &path.path {
        let instruction = &function.instructions[*index];
        by_line
            .entry(line_of(instruction))
            .or_default()
            .push(instruction);
    }
    let _ = writeln!(
        out,
        "\nThe PTX of the path, in its own order: instructions, which, PTX"
    );
    for (line, instructions) in by_line {
        let mut opcodes: BTreeMap<&str, u32> = BTreeMap::new();
        for instruction in &instructions {
            *opcodes.entry(instruction.base()).or_default() += 1;
        }
        let which = opcodes.iter().map(|(opcode, count)| match count {
            1 => (*opcode).to_owned(),
            _ => format!("{count} {opcode}"),
        });
        let which: Vec<_> = which.collect();
        let _ = writeln!(
            out,
            "  {:4} {:40} {}",
            instructions.len(),
            which.join(", "),
            statement(line, source)
        );
    }
}

/// The line of PTX that an instruction is from; 0 if that is not known. ptxas writes none for a warpgroup's products, and
/// nvdisasm then shows that of whatever stands before them.
fn line_of(instruction: &Instruction) -> usize {
    if instruction.base().ends_with("GMMA") {
        0
    } else {
        instruction.line
    }
}

/// A line of PTX with its number, long lists of registers cut.
fn statement(line: usize, source: &[&str]) -> String {
    const MOST: usize = 100;
    let text = line.checked_sub(1).and_then(|l| source.get(l));
    match text {
        Some(text) if text.chars().count() > MOST => {
            let cut: String = text.chars().take(MOST).collect();
            format!("{line}: {cut} ...")
        }
        Some(text) => format!("{line}: {text}"),
        None => "-".to_owned(),
    }
}

//! The statements of an entry's PTX text, as far as changing them needs.

use std::{collections::HashMap, ops::Range};

/// Bytes of an mbarrier.
const MBARRIER: u32 = 8;

/// Bytes of eight rows of 128, among which a swizzle permutes.
const SWIZZLED: u32 = 1024;

/// `@%p1` or `@!%p1` before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard<'t> {
    /// Whether the instruction is executed where the predicate is false.
    pub negated: bool,
    /// The predicate's register.
    pub predicate: &'t str,
}

/// One instruction of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction<'t> {
    /// Its bytes, from the guard to the semicolon.
    pub range: Range<usize>,
    /// Its line, from 1.
    pub line: usize,
    /// Its guard.
    pub guard: Option<Guard<'t>>,
    /// Opcode with all modifiers.
    pub opcode: &'t str,
    /// Operands as they are written.
    pub operands: Vec<&'t str>,
}

impl<'t> Instruction<'t> {
    /// Whether the opcode begins with these parts: `ld.shared` is the beginning of `ld.shared.u32`, not of
    /// `ld.shared_other`.
    pub fn is(&self, parts: &str) -> bool {
        self.opcode
            .strip_prefix(parts)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Whether it moves data between registers, shared and global memory, or tells others that it was moved.
    pub fn accesses_memory(&self) -> bool {
        let accesses = [
            "ld",
            "st",
            "ldmatrix",
            "stmatrix",
            "cp.async",
            "atom",
            "red",
            "mbarrier.init",
            "mbarrier.arrive",
        ];
        let groups = [
            "cp.async.commit_group",
            "cp.async.wait_group",
            "cp.async.wait_all",
            "cp.async.bulk.commit_group",
            "cp.async.bulk.wait_group",
        ];
        let is_any = |opcodes: &[&str]| opcodes.iter().any(|opcode| self.is(opcode));
        is_any(&accesses) && !self.is("ld.param") && !is_any(&groups)
    }

    /// The operands that hold addresses in shared memory: their positions, and the bytes that are accessed there.
    pub fn shared_addresses(&self) -> Vec<(usize, u32)> {
        let mut parts = self.opcode.split('.');
        if !parts.any(|part| part == "shared" || part.starts_with("shared::")) {
            return Vec::new();
        }
        // Of boxes the rows that a swizzle permutes, and the mbarrier that counts their bytes.
        if self.is("cp.async.bulk.tensor") {
            return match self.opcode.contains("mbarrier") {
                true => vec![(0, SWIZZLED), (2, MBARRIER)],
                false => vec![(1, SWIZZLED)],
            };
        }
        if self.is("mbarrier") {
            return vec![(usize::from(!self.is("mbarrier.init")), MBARRIER)];
        }
        self.shared_address().into_iter().collect()
    }

    fn shared_address(&self) -> Option<(usize, u32)> {
        let parts = || self.opcode.split('.');
        if self.is("cp.async") {
            return Some((0, self.operands.get(2)?.parse().ok()?));
        }
        // Each lane's address is that of one row of 8 elements of 16 bits.
        if self.is("ldmatrix") || self.is("stmatrix") {
            return Some((usize::from(self.is("ldmatrix")), 16));
        }
        let vector = parts().find_map(|part| part.strip_prefix('v')?.parse().ok());
        let bits: u32 = parts()
            .next_back()?
            .trim_start_matches(char::is_alphabetic)
            .parse()
            .ok()?;
        let bytes = vector.unwrap_or(1) * bits / 8;
        match () {
            () if self.is("ld") => Some((1, bytes)),
            () if self.is("st") || self.is("red") => Some((0, bytes)),
            () => None,
        }
    }

    /// The operands that it writes: the first, if it writes any.
    pub fn writes(&self) -> &[&'t str] {
        let none = [
            "st",
            "stmatrix",
            "cp",
            "bar",
            "barrier",
            "bra",
            "ret",
            "exit",
            "trap",
            "fence",
            "membar",
            "red",
            "prefetch",
            "mbarrier.init",
            "setmaxnreg",
            "wgmma.fence",
            "wgmma.commit_group",
            "wgmma.wait_group",
        ];
        if none.iter().any(|opcode| self.is(opcode)) && !self.is("bar.red") {
            return &[];
        }
        &self.operands[..self.operands.len().min(1)]
    }

    /// The operands that it reads.
    pub fn reads(&self) -> &[&'t str] {
        &self.operands[self.writes().len()..]
    }

    /// Where control goes, if it is a branch.
    pub fn target(&self) -> Option<&'t str> {
        if self.is("bra") {
            self.operands.first().copied()
        } else {
            None
        }
    }
}

/// The registers that an operand names.
pub fn registers<'t>(operand: &'t str) -> impl Iterator<Item = &'t str> + use<'t> {
    operand
        .split(|c: char| !(c.is_alphanumeric() || "%_$.".contains(c)))
        .filter(|word| word.starts_with('%'))
}

/// The instructions of an entry's body, in order.
#[derive(Clone, Debug)]
pub struct Listing<'t> {
    /// The whole text.
    pub text: &'t str,
    /// The instructions.
    pub instructions: Vec<Instruction<'t>>,
    /// For each label, the position of the instruction that follows it.
    pub labels: HashMap<&'t str, usize>,
}

impl<'t> Listing<'t> {
    /// Reads a text with one entry.
    ///
    /// # Errors
    /// What is not a statement, and its line.
    pub fn read(text: &'t str) -> Result<Self, String> {
        let entry = text.find(".entry").ok_or("no entry")?;
        let body = entry + text[entry..].find('{').ok_or("the entry has no body")?;
        let mut listing = Self {
            text,
            instructions: Vec::new(),
            labels: HashMap::new(),
        };
        let (mut at, mut line) = (body, 1 + text[..body].matches('\n').count());
        while let Some(next) = text[at..].chars().next() {
            let rest = &text[at..];
            let length = match next {
                '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
                '/' if rest.starts_with("/*") => {
                    2 + rest.find("*/").ok_or_else(|| unended(line))?
                }
                '{' | '}' => 1,
                _ if next.is_whitespace() => next.len_utf8(),
                '.' if rest.starts_with(".loc") => rest.find('\n').unwrap_or(rest.len()),
                _ if let Some(label) = label(rest) => {
                    listing.labels.insert(label, listing.instructions.len());
                    label.len() + 1
                }
                _ => {
                    let end = rest.find(';').ok_or_else(|| unended(line))?;
                    if next != '.' {
                        let range = at..at + end + 1;
                        listing
                            .instructions
                            .push(instruction(&rest[..end], range, line)?);
                    }
                    end + 1
                }
            };
            line += rest[..length].matches('\n').count();
            at += length;
        }
        Ok(listing)
    }

    /// Threads of a block at most, from `.maxntid`.
    pub fn threads(&self) -> Option<u32> {
        let (_, rest) = self.text.split_once(".maxntid")?;
        let numbers = rest.split(['\n', '{']).next()?.split(',');
        numbers.map(|n| n.trim().parse::<u32>().ok()).product()
    }
}

/// The label that a text begins with.
fn label(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || "_$%".contains(c)))?;
    let rest = text[end..].strip_prefix(':')?;
    (end > 0 && !rest.starts_with(':')).then_some(&text[..end])
}

fn unended(line: usize) -> String {
    format!("line {line}: a statement has no end")
}

fn instruction<'t>(
    words: &'t str,
    range: Range<usize>,
    line: usize,
) -> Result<Instruction<'t>, String> {
    let mut words = words.trim();
    let mut guard = None;
    if let Some(rest) = words.strip_prefix('@') {
        let (predicate, rest) = rest
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("line {line}: a guard alone"))?;
        let (negated, predicate) = match predicate.strip_prefix('!') {
            Some(predicate) => (true, predicate),
            None => (false, predicate),
        };
        guard = Some(Guard { negated, predicate });
        words = rest.trim_start();
    }
    let (opcode, operands) = words.split_once(char::is_whitespace).unwrap_or((words, ""));
    Ok(Instruction {
        range,
        line,
        guard,
        opcode,
        operands: split(operands),
    })
}

/// Splits operands at the commas outside of brackets.
fn split(operands: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, c) in operands.char_indices() {
        match c {
            '[' | '{' | '(' => depth += 1,
            ']' | '}' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(operands[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    let last = operands[begin..].trim();
    if !last.is_empty() {
        parts.push(last);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
        .visible .entry e(.param .u64 p)
        .maxntid 64, 2, 1
        {
            .reg .b32 %r<9>; // comment; with: marks
            mov.u32 %r1, %tid.x;
        $L1:
            @!%p1 bra $L1;
            { .reg .b32 t; mov.b64 {t, %r2}, %rd1; }
            ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [%r5+16];
            cp.async.cg.shared.global [%r1], [%rd1], 16, %r2;
            ret;
        }";

    #[test]
    fn statements_are_told_apart() {
        let listing = Listing::read(TEXT).unwrap();
        let opcodes: Vec<_> = listing.instructions.iter().map(|i| i.opcode).collect();
        let expected = [
            "mov.u32",
            "bra",
            "mov.b64",
            "ld.shared.v4.u32",
            "cp.async.cg.shared.global",
            "ret",
        ];
        assert_eq!(opcodes, expected);
        assert_eq!(listing.labels["$L1"], 1);
        assert_eq!(listing.threads(), Some(128));
        let [_, branch, unpack, load, copy, _] = &listing.instructions[..] else {
            unreachable!()
        };
        assert_eq!(branch.line, 8);
        assert_eq!(&TEXT[branch.range.clone()], "@!%p1 bra $L1;");
        assert!(
            branch
                .guard
                .is_some_and(|guard| guard.negated && guard.predicate == "%p1")
        );
        assert_eq!(unpack.writes(), ["{t, %r2}"]);
        assert_eq!(
            registers(load.operands[0]).collect::<Vec<_>>(),
            ["%r1", "%r2", "%r3", "%r4"]
        );
        assert_eq!(load.shared_addresses(), [(1, 16)]);
        assert_eq!(copy.shared_addresses(), [(0, 16)]);
        assert!(copy.writes().is_empty() && copy.accesses_memory());
    }
}

//! PTX as text: a module's declarations and entries, and the statements of a body.
//!
//! This reads what LLVM's NVPTX backend writes. It knows comments, strings and nested braces, and
//! nothing about instructions.

use crate::error::{Error, Result};

/// A module of PTX, cut at its top level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// `.version`, e.g. "7.0".
    pub version: String,
    /// `.target`, e.g. "sm_80".
    pub target: String,
    /// `.address_size`, e.g. "64".
    pub address_size: String,
    /// The `.file` directives, if the compiler wrote line tables.
    pub files: Vec<String>,
    /// Everything else but debug sections, in order.
    pub items: Vec<Item>,
}

/// One declaration or definition at the top level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Its symbol.
    pub name: String,
    /// Its text, without comments around it.
    pub text: String,
    /// Its first line in the compiler's output, from 1.
    pub line: usize,
}

/// What a top-level item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `.entry` with a body: a kernel.
    Entry,
    /// `.func` with a body.
    Function,
    /// `.func` without a body: somebody else's function.
    ExternFunction,
    /// A variable in global, constant or shared memory.
    Variable,
}

impl Module {
    /// Reads a module.
    pub fn parse(text: &str) -> Result<Self> {
        if !text.is_ascii() {
            return Err(Error::ptx(0, "PTX is ASCII, this is not"));
        }
        let mut module = Self::default();
        let mut scanner = Scanner::new(text);
        while let Some((start, line)) = scanner.next_token() {
            let rest = &text[start..];
            let word = rest.split_whitespace().next().unwrap_or_default();
            let one_line = rest.lines().next().unwrap_or_default();
            let operand = || strip_comments(&one_line[word.len()..]).trim().to_owned();
            match word {
                ".version" | ".target" | ".address_size" => {
                    let field = match word {
                        ".version" => &mut module.version,
                        ".target" => &mut module.target,
                        _ => &mut module.address_size,
                    };
                    *field = operand();
                    scanner.skip_line();
                }
                // Debug information.
                ".file" => {
                    module.files.push(one_line.trim().to_owned());
                    scanner.skip_line();
                }
                ".loc" => scanner.skip_line(),
                // Labels between debug sections.
                label if label.starts_with("$L__") && label.ends_with(':') => scanner.skip_line(),
                ".section" => {
                    scanner.item(true, line)?;
                }
                _ => {
                    let end = scanner.item(false, line)?;
                    let text = text[start..end].trim_end().to_owned();
                    let (kind, name) = classify(&text, line)?;
                    module.items.push(Item {
                        kind,
                        name,
                        text,
                        line,
                    });
                }
            }
        }
        for (field, name) in [
            (&module.version, ".version"),
            (&module.target, ".target"),
            (&module.address_size, ".address_size"),
        ] {
            if field.is_empty() {
                return Err(Error::ptx(0, format!("{name} is missing")));
            }
        }
        Ok(module)
    }

    /// The items of one kind, in order.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(move |i| i.kind == kind)
    }
}

/// Kind and symbol of an item, from the part before its body or initialiser.
fn classify(text: &str, line: usize) -> Result<(Kind, String)> {
    let clean = strip_comments(text);
    let head = clean.split(['{', '=']).next().unwrap_or_default();
    let named_after = |keyword: &str| -> Option<String> {
        let (_, after) = head.split_once(keyword)?;
        let mut after = after.trim_start();
        // `.func (.param .b32 ret) name (...)`: the return value comes first.
        if keyword == ".func" && after.starts_with('(') {
            after = after.split_once(')')?.1.trim_start();
        }
        let name = identifiers(after).next()?;
        Some(name.to_owned())
    };
    let missing = || Error::ptx(line, format!("no name in `{}`", head.trim()));
    if head.contains(".entry") {
        return Ok((Kind::Entry, named_after(".entry").ok_or_else(missing)?));
    }
    if head.contains(".func") {
        let name = named_after(".func").ok_or_else(missing)?;
        let kind = if clean.contains('{') {
            Kind::Function
        } else {
            Kind::ExternFunction
        };
        return Ok((kind, name));
    }
    if [".global", ".const", ".shared"]
        .iter()
        .any(|s| head.contains(s))
    {
        let before = head.split(['[', ';']).next().unwrap_or_default();
        let name = identifiers(before).last().ok_or_else(missing)?;
        return Ok((Kind::Variable, name.to_owned()));
    }
    let first = head.lines().next().unwrap_or_default();
    Err(Error::ptx(line, format!("unknown item `{first}`")))
}

/// Walks over text, past comments and strings.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            line: 1,
        }
    }

    fn advance(&mut self, bytes: usize) {
        let end = (self.at + bytes).min(self.text.len());
        let passed = &self.text.as_bytes()[self.at..end];
        self.line += passed.iter().filter(|b| **b == b'\n').count();
        self.at = end;
    }

    fn skip_line(&mut self) {
        let rest = &self.text[self.at..];
        self.advance(rest.find('\n').unwrap_or(rest.len()));
    }

    /// If a comment or a string begins here, its length.
    fn opaque(&self) -> Option<usize> {
        opaque(&self.text[self.at..])
    }

    /// Where the next item begins, and its line.
    fn next_token(&mut self) -> Option<(usize, usize)> {
        loop {
            let byte = *self.text.as_bytes().get(self.at)?;
            if byte.is_ascii_whitespace() || byte == b';' {
                self.advance(1);
            } else if byte == b'/' && self.opaque().is_some() {
                self.advance(self.opaque()?);
            } else {
                return Some((self.at, self.line));
            }
        }
    }

    /// Passes one item: to its `;`, or to the brace that closes its body. Returns where it ends.
    fn item(&mut self, section: bool, line: usize) -> Result<usize> {
        let start = self.at;
        let (mut depth, mut body) = (0usize, section);
        while let Some(&byte) = self.text.as_bytes().get(self.at) {
            if let Some(length) = self.opaque() {
                self.advance(length);
                continue;
            }
            match byte {
                b'{' => {
                    if depth == 0 && !body {
                        let head = strip_comments(&self.text[start..self.at]);
                        body = head.contains(".entry") || head.contains(".func");
                    }
                    depth += 1;
                }
                b'}' => {
                    depth = depth
                        .checked_sub(1)
                        .ok_or_else(|| Error::ptx(self.line, "a `}` too many"))?;
                    if depth == 0 && body {
                        self.advance(1);
                        return Ok(self.at);
                    }
                }
                b';' if depth == 0 => {
                    self.advance(1);
                    return Ok(self.at);
                }
                _ => {}
            }
            self.advance(1);
        }
        Err(Error::ptx(line, "the item that begins here does not end"))
    }
}

/// Length of the comment or string that `text` begins with. What does not end lasts to the end.
fn opaque(text: &str) -> Option<usize> {
    let after = |start: usize, end: &str| {
        let found = text[start..].find(end);
        found.map_or(text.len(), |i| start + i + end.len())
    };
    if text.starts_with("//") {
        // The newline stays: it separates words.
        Some(text.find('\n').unwrap_or(text.len()))
    } else if text.starts_with("/*") {
        Some(after(2, "*/"))
    } else if text.starts_with('"') {
        Some(after(1, "\""))
    } else {
        None
    }
}

/// The text without comments; each becomes a space. Strings stay.
pub fn strip_comments(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['/', '"']) {
        clean.push_str(&rest[..at]);
        rest = &rest[at..];
        match opaque(rest) {
            Some(length) if rest.starts_with('"') => {
                clean.push_str(&rest[..length]);
                rest = &rest[length..];
            }
            Some(length) => {
                clean.push(' ');
                rest = &rest[length..];
            }
            None => {
                clean.push('/');
                rest = &rest[1..];
            }
        }
    }
    clean.push_str(rest);
    clean
}

/// The identifiers of a text: symbols, registers without their `%`, and words of directives.
pub fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !is_word(c))
        .filter(|w| w.starts_with(|c: char| !c.is_ascii_digit()))
}

/// Whether a character may be within an identifier of PTX.
pub fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$'
}

/// One statement of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Its opcode with modifiers, or its directive: "ld.global.b32", ".reg".
    pub opcode: &'a str,
    /// The rest, trimmed.
    pub operands: &'a str,
}

/// The statements of a body that went through [`strip_comments`], labels, braces and guards taken off.
pub fn statements(body: &str) -> impl Iterator<Item = Statement<'_>> {
    pieces(body).filter_map(|piece| {
        let mut text = piece.trim();
        loop {
            let word_end = text.find(|c: char| !is_word(c)).unwrap_or(text.len());
            let after = text[word_end..].trim_start();
            match after.strip_prefix(':') {
                // A label, not the `::` within an opcode.
                Some(rest) if word_end > 0 && !rest.starts_with(':') => text = rest.trim_start(),
                _ => break,
            }
        }
        if text.starts_with('@') {
            text = text[text.find(char::is_whitespace)?..].trim_start();
        }
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let (opcode, operands) = text.split_at(end);
        (!opcode.is_empty()).then_some(Statement {
            opcode,
            operands: operands.trim(),
        })
    })
}

/// Cuts at `;` and at the braces of blocks, not at the braces of vector operands.
fn pieces(body: &str) -> impl Iterator<Item = &str> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut vector = 0usize;
        for (at, byte) in rest.bytes().enumerate() {
            match byte {
                b'{' if vector > 0 || within_statement(&rest[..at]) => vector += 1,
                b'}' if vector > 0 => vector -= 1,
                b';' | b'{' | b'}' if vector == 0 => {
                    let piece = &rest[..at];
                    rest = &rest[at + 1..];
                    return Some(piece);
                }
                _ => {}
            }
        }
        Some(std::mem::take(&mut rest))
    })
}

/// Whether a brace after `text` opens a vector operand: something stands before it, and not a label.
fn within_statement(text: &str) -> bool {
    let text = text.trim_end();
    !text.is_empty() && !text.ends_with(':')
}

/// The parameter list of an entry's text and what surrounds it: (up to and with `)`, the rest).
pub fn split_signature(entry: &str) -> Option<(&str, &str)> {
    let mut at = 0;
    let mut depth = 0usize;
    while at < entry.len() && entry.is_char_boundary(at) {
        if let Some(length) = opaque(&entry[at..]) {
            at += length;
            continue;
        }
        match entry.as_bytes()[at] {
            b'(' => depth += 1,
            b')' if depth == 1 => return Some(entry.split_at(at + 1)),
            b')' => depth = depth.checked_sub(1)?,
            // No parameter list at all.
            b'{' if depth == 0 => return Some((entry[..at].trim_end(), &entry[at..])),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The body of the first entry of a module that went through [`strip_comments`], its braces
/// included; empty if there is none.
pub fn body(module: &str) -> &str {
    let entry = module.find(".entry").map_or("", |at| &module[at..]);
    let rest = split_signature(entry).map_or("", |(_, rest)| rest);
    rest.find('{').map_or("", |at| &rest[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "//\n// Generated {\n.version 7.0\n.target sm_80\n.address_size 64\n\n\
        \t// .globl\ta\n.file 1 \"x{.rs\"\n\
        .visible .global .align 4 .b8 a__barriers[4] = {2};\n\
        .extern .func (.param .b32 r) panic(\n.param .b64 p\n)\n.noreturn;\n\
        .visible .entry a(\n\t.param .align 8 .b8 a_param_0[32]\n)\n{\n\t{ .reg .pred p; } /* } */ // }\n\tret;\n\n}\n\
        .func helper() { ret; }\n\
        .section .debug_str {\n.b8 1\n}\n\
        .const .align 4 .u32 k = 3;\n";

    #[test]
    fn a_module_is_cut_at_its_top_level() -> Result<()> {
        let module = Module::parse(TEXT)?;
        assert_eq!(module.version, "7.0");
        assert_eq!(module.target, "sm_80");
        assert_eq!(module.address_size, "64");
        let items: Vec<_> = module
            .items
            .iter()
            .map(|i| (i.kind, i.name.as_str()))
            .collect();
        assert_eq!(
            items,
            [
                (Kind::Variable, "a__barriers"),
                (Kind::ExternFunction, "panic"),
                (Kind::Entry, "a"),
                (Kind::Function, "helper"),
                (Kind::Variable, "k"),
            ]
        );
        assert!(module.items[2].text.ends_with("ret;\n\n}"));
        assert_eq!(module.items[0].line, 9);
        Ok(())
    }

    #[test]
    fn damaged_text_is_an_error() {
        for text in [
            "",
            ".version 7.0\n.target sm_80\n",
            ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry a() {",
            ".version 7.0\n.target sm_80\n.address_size 64\n}",
            ".version 7.0\n.target sm_80\n.address_size 64\nnonsense;",
            ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry ;",
        ] {
            assert!(Module::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn statements_lose_labels_guards_and_blocks() {
        let body = "{\n.reg .b32 %r<3>;\n$L__BB0_1:\n@%p1 bra $L__BB0_1;\n\
            { .reg .pred p; @!p ld.shared::cta.v2.b32 {%r1, %r2}, [%r0]; }\nL2: { mov.b64 %rd1, {%r1, %r2}; }\nret;\n}";
        let found: Vec<_> = statements(body).map(|s| (s.opcode, s.operands)).collect();
        assert_eq!(
            found,
            [
                (".reg", ".b32 %r<3>"),
                ("bra", "$L__BB0_1"),
                (".reg", ".pred p"),
                ("ld.shared::cta.v2.b32", "{%r1, %r2}, [%r0]"),
                ("mov.b64", "%rd1, {%r1, %r2}"),
                ("ret", ""),
            ]
        );
    }

    #[test]
    fn comments_go_and_strings_stay() {
        let clean = strip_comments("a // b\nc /* ; */ d \"// x\" / e /* open");
        assert_eq!(clean, "a  \nc   d \"// x\" / e  ");
    }

    #[test]
    fn signatures_with_and_without_parameters() {
        assert_eq!(
            split_signature(".entry a(.param .u64 x)\n{}"),
            Some((".entry a(.param .u64 x)", "\n{}"))
        );
        assert_eq!(split_signature(".entry a\n{}"), Some((".entry a", "{}")));
        assert_eq!(split_signature(".entry a(.param"), None);
    }
}

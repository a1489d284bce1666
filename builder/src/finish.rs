//! Makes each entry of the compiler's module a module of its own, and adds what Rust can't say:
//! launch bounds, dynamic shared memory, the alignment of tensor maps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::error::{Error, Result};
use crate::ptx::{self, Item, Kind, Module};
use crate::spec::EntrySpec;

/// The symbol through which kernels take the address of dynamic shared memory.
pub const SHARED_SYMBOL: &str = "flashtile_smem";

/// `NAME__barriers` is a variable that holds how many barriers the source of the entry `NAME` has.
pub const BARRIERS_SUFFIX: &str = "__barriers";

/// One entry as a module of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Name of the entry.
    pub name: String,
    /// The whole module.
    pub ptx: String,
    /// Bytes of its parameters, as the driver lays them out.
    pub params_bytes: u32,
    /// How many barriers its source says it has, if it says so.
    pub barriers: Option<u32>,
}

/// Finishes every entry that `specs` lists; the checks tell what else there is.
pub fn finish(module: &Module, specs: &[EntrySpec]) -> Result<Vec<Finished>> {
    let variables = Variables::new(module);
    let mut finished = Vec::new();
    for entry in module.of(Kind::Entry) {
        if let Some(spec) = specs.iter().find(|s| s.name == entry.name) {
            finished.push(finish_entry(module, &variables, entry, spec)?);
        }
    }
    Ok(finished)
}

fn finish_entry(
    module: &Module,
    variables: &Variables<'_>,
    entry: &Item,
    spec: &EntrySpec,
) -> Result<Finished> {
    let text = without_noise(&entry.text);
    let (signature, rest) = ptx::split_signature(&text)
        .ok_or_else(|| Error::ptx(entry.line, "an entry without parameter list and body"))?;
    let (directives, body) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
    if !directives.trim().is_empty() {
        let what = format!("{}: unexpected {}", entry.name, directives.trim());
        return Err(Error::ptx(entry.line, what));
    }
    let clean = ptx::strip_comments(body);
    let signature = align_tensor_maps(signature, &clean);
    let params_bytes = params_bytes(&signature).map_err(|what| Error::ptx(entry.line, what))?;

    let mut out = String::with_capacity(text.len() + 512);
    // Writing to a string does not fail.
    let _ = writeln!(out, ".version {}", module.version);
    // The full debug information that `, debug` announces stays behind.
    let target = module.target.trim_end_matches(", debug");
    let _ = writeln!(out, ".target {target}");
    let _ = writeln!(out, ".address_size {}\n", module.address_size);
    if text.contains(".loc ") {
        for file in &module.files {
            // Paths begin where the checkout does.
            let _ = writeln!(out, "{}", file.replace("\"/flashtile/", "\""));
        }
    }
    if ptx::identifiers(&clean).any(|w| w == SHARED_SYMBOL) {
        let _ = writeln!(out, ".extern .shared .align 1024 .b8 {SHARED_SYMBOL}[];\n");
    }
    let needed = variables.needed_by(&clean);
    for variable in &needed {
        out.push_str(&variable.text);
        out.push('\n');
    }
    if !needed.is_empty() {
        out.push('\n');
    }
    let _ = writeln!(out, "{signature}");
    let _ = writeln!(out, ".maxntid {}, 1, 1", spec.threads);
    let _ = writeln!(out, ".minnctapersm {}", spec.min_blocks);
    let _ = writeln!(out, "{body}");
    Ok(Finished {
        name: entry.name.clone(),
        ptx: rename(&out, &needed),
        params_bytes,
        barriers: variables.barriers(&entry.name),
    })
}

/// The module's variables, by name.
struct Variables<'a> {
    by_name: BTreeMap<&'a str, &'a Item>,
    order: Vec<&'a Item>,
}

impl<'a> Variables<'a> {
    fn new(module: &'a Module) -> Self {
        let order: Vec<_> = module.of(Kind::Variable).collect();
        let by_name = order.iter().map(|v| (v.name.as_str(), *v)).collect();
        Self { by_name, order }
    }

    /// The variables that a text names, and those that their initialisers name, in the module's order.
    fn needed_by(&self, text: &str) -> Vec<&'a Item> {
        let mut needed: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&'a Item> = Vec::new();
        let mut visit = |text: &str, open: &mut Vec<&'a Item>| {
            for word in ptx::identifiers(text) {
                if let Some((name, item)) = self.by_name.get_key_value(word)
                    && needed.insert(name)
                {
                    open.push(item);
                }
            }
        };
        visit(text, &mut open);
        while let Some(item) = open.pop() {
            visit(&item.text, &mut open);
        }
        let wanted = |v: &&&Item| needed.contains(v.name.as_str());
        self.order.iter().filter(wanted).copied().collect()
    }

    /// The value of the entry's `__barriers`.
    fn barriers(&self, entry: &str) -> Option<u32> {
        let item = self
            .by_name
            .get(format!("{entry}{BARRIERS_SUFFIX}").as_str())?;
        let Some((_, value)) = item.text.split_once('=') else {
            // A variable without initialiser is zero.
            return Some(0);
        };
        let parse = |v: &str| -> Option<u32> { v.trim().parse().ok() };
        let value = value.trim().trim_end_matches(';').trim();
        let Some(list) = value.strip_prefix('{').and_then(|v| v.strip_suffix('}')) else {
            return parse(value);
        };
        if !item.text.contains(".b8 ") {
            return parse(list);
        }
        // The bytes of a little-endian u32; the zeros at the end may be left out.
        let mut bytes = [0u8; 4];
        for (index, value) in list.split(',').enumerate() {
            *bytes.get_mut(index)? = value.trim().parse().ok()?;
        }
        Some(u32::from_le_bytes(bytes))
    }
}

/// Takes out the comments that the backend puts around every inline assembly.
fn without_noise(text: &str) -> String {
    let noise = ["// begin inline asm", "// end inline asm"];
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let bare = line.trim();
        if bare.starts_with(".loc") {
            out.push_str(&line_of_source(bare));
        } else if !noise.contains(&bare) && !is_debug_label(bare) {
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// A `.loc` without the name of the function, which is in a section that is dropped.
fn line_of_source(loc: &str) -> String {
    let parts: Vec<&str> = loc.split(',').map(str::trim).collect();
    let inlined = parts.iter().find(|p| p.starts_with("inlined_at"));
    let words: Vec<&str> = parts[0].split_whitespace().take(4).collect();
    let inlined = inlined.map_or(String::new(), |p| format!(", {p}"));
    format!("\t{}{inlined}\n", words.join(" "))
}

/// Labels that only debug sections refer to.
fn is_debug_label(line: &str) -> bool {
    ["$L__tmp", "$L__func_begin", "$L__func_end"]
        .iter()
        .any(|prefix| line.starts_with(prefix))
        && line.ends_with(':')
}

/// The text without its line table.
pub(crate) fn without_lines(ptx: &str) -> String {
    let kept = ptx.lines().filter(|line| {
        let bare = line.trim_start();
        !bare.starts_with(".loc ") && !bare.starts_with(".file ")
    });
    kept.flat_map(|line| [line, "\n"]).collect()
}

/// Gives private variables names that don't depend on the crate's version and place: mangled names
/// carry a hash of both.
fn rename(text: &str, variables: &[&Item]) -> String {
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    for (index, variable) in variables.iter().enumerate() {
        if variable.text.contains(".visible ") || variable.text.contains(".extern ") {
            continue;
        }
        let path = format!("{:#}", rustc_demangle::demangle(&variable.name));
        let readable = path != variable.name && path.chars().all(|c| ptx::is_word(c) || c == ':');
        let stem = if readable {
            path.replace("::", "__")
        } else {
            "constant".to_owned()
        };
        names.insert(&variable.name, format!("{stem}__{index}"));
    }
    if names.is_empty() {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !ptx::is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        out.push_str(names.get(word).map_or(word, String::as_str));
        let next = after.find(ptx::is_word).unwrap_or(after.len());
        out.push_str(&after[..next]);
        rest = &after[next..];
    }
    out
}

/// Raises the alignment of the parameters whose address is taken to what a tensor map needs: `mov`, maybe copies, then
/// `cvta.param`. Of a struct whose maps come first, all maps are aligned then, each being 128 bytes long.
fn align_tensor_maps(signature: &str, body: &str) -> String {
    let mut maps = BTreeSet::new();
    // What each register was last set to that may be a parameter's address.
    let mut held: BTreeMap<&str, &str> = BTreeMap::new();
    for statement in ptx::statements(body) {
        let mut operands = statement.operands.split(',').map(str::trim);
        let Some((target, source)) = operands.next().zip(operands.next()) else {
            continue;
        };
        let address = held.get(source).copied().unwrap_or(source);
        match statement.opcode {
            "mov.b64" | "mov.u64" => {
                held.insert(target, address);
            }
            "cvta.param.u64" => {
                maps.insert(address);
            }
            _ => {}
        }
    }
    let lines = signature.split_inclusive('\n').map(|line| {
        if maps.iter().any(|m| ptx::identifiers(line).any(|w| w == *m)) {
            line.replacen(".align 8 ", ".align 64 ", 1)
                .replacen(".align 16 ", ".align 64 ", 1)
        } else {
            line.to_owned()
        }
    });
    lines.collect()
}

/// Size of the parameter space: every parameter at its alignment, one after the other.
fn params_bytes(signature: &str) -> Result<u32, String> {
    let Some((_, list)) = signature.split_once('(') else {
        return Ok(0);
    };
    let list = ptx::strip_comments(list.trim_end().trim_end_matches(')'));
    let mut size = 0u32;
    for parameter in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let unknown = || format!("unknown parameter `{parameter}`");
        let mut words = parameter.split_whitespace();
        let (mut align, mut element) = (None, None);
        while let Some(word) = words.next() {
            if word == ".ptr" {
                // What follows describes the memory that the parameter points to.
                break;
            } else if word == ".align" {
                align = words.next().and_then(|w| w.parse::<u32>().ok());
            } else if word.starts_with('.') && word.ends_with(|c: char| c.is_ascii_digit()) {
                let bits = word.trim_start_matches(|c: char| !c.is_ascii_digit());
                element = bits.parse::<u32>().ok().map(|b| b / 8);
            }
        }
        let element = element.filter(|e| *e > 0).ok_or_else(unknown)?;
        let count = match parameter.split_once('[') {
            Some((_, count)) => count
                .trim_end_matches(']')
                .trim()
                .parse()
                .map_err(|_| unknown())?,
            None => 1u32,
        };
        let align = align.unwrap_or(element).max(1);
        let end = size
            .checked_next_multiple_of(align)
            .and_then(|at| at.checked_add(element.checked_mul(count)?));
        size = end.ok_or_else(unknown)?;
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec;

    const HEADER: &str = ".version 7.0\n.target sm_80\n.address_size 64\n";

    fn one(text: &str) -> Result<Finished> {
        let module = Module::parse(&format!("{HEADER}{text}"))?;
        let mut all = finish(&module, &[spec("k")])?;
        all.pop().ok_or_else(|| Error::ptx(0, "no entry k"))
    }

    #[test]
    fn bounds_and_shared_memory_are_added() -> Result<()> {
        let text = ".visible .entry k(\n\t.param .align 8 .b8 k_param_0[32]\n)\n{\n\tmov.u32 %r1, flashtile_smem;\n\
            \t// begin inline asm\n\tx; // kept\n\t// end inline asm\n\tret;\n\n}\n";
        let finished = one(text)?;
        assert_eq!(
            finished.ptx,
            format!(
                "{HEADER}\n.extern .shared .align 1024 .b8 flashtile_smem[];\n\n\
                 .visible .entry k(\n\t.param .align 8 .b8 k_param_0[32]\n)\n.maxntid 128, 1, 1\n.minnctapersm 2\n\
                 {{\n\tmov.u32 %r1, flashtile_smem;\n\tx; // kept\n\tret;\n\n}}\n"
            )
        );
        assert_eq!(finished.params_bytes, 32);
        assert_eq!(finished.barriers, None);
        Ok(())
    }

    #[test]
    fn each_entry_gets_the_variables_it_needs() -> Result<()> {
        let text = ".global .u64 inner = 1;\n.global .u64 table = inner;\n.global .u32 other = 2;\n\
            .visible .global .align 4 .u32 k__barriers = 3;\n\
            .visible .entry j() { mov.b64 %rd1, other; ret; }\n\
            .visible .entry k() { mov.b64 %rd1, table; /* other */ ret; }\n";
        let finished = one(text)?;
        for line in [
            ".global .u64 constant__0 = 1;",
            ".global .u64 constant__1 = constant__0;",
            "mov.b64 %rd1, constant__1;",
        ] {
            assert!(finished.ptx.contains(line), "{}", finished.ptx);
        }
        assert!(!finished.ptx.contains(".u32"));
        assert!(!finished.ptx.contains("barriers"));
        assert!(!finished.ptx.contains(".entry j"));
        assert_eq!(finished.barriers, Some(3));
        assert_eq!(finished.params_bytes, 0);
        Ok(())
    }

    #[test]
    fn names_lose_the_hash_of_their_crate() -> Result<()> {
        let text = ".global .u32 _RNvCs48qQHqZqEfH_17flashtile_kernels5TABLE = 1;\n\
            .visible .entry k() { ld.global.b32 %r1, [_RNvCs48qQHqZqEfH_17flashtile_kernels5TABLE]; ret; }\n";
        let finished = one(text)?;
        assert!(
            finished.ptx.contains("[flashtile_kernels__TABLE__0]"),
            "{}",
            finished.ptx
        );
        assert!(!finished.ptx.contains("_RNv"));
        Ok(())
    }

    #[test]
    fn barriers_are_read_in_every_spelling() -> Result<()> {
        for (text, expected) in [
            (".u32 k__barriers = 7;", Some(7)),
            (".align 4 .b8 k__barriers[4] = {2};", Some(2)),
            (".align 4 .b8 k__barriers[4] = {1, 1, 0, 0};", Some(257)),
            (".align 4 .b8 k__barriers[4];", Some(0)),
            (".u32 k__barriers;", Some(0)),
            (".u32 k__barriers = x;", None),
        ] {
            let finished = one(&format!(
                ".visible .global {text}\n.visible .entry k() {{ ret; }}"
            ))?;
            assert_eq!(finished.barriers, expected, "{text}");
        }
        Ok(())
    }

    #[test]
    fn tensor_maps_are_aligned_and_nothing_else() -> Result<()> {
        let text = ".visible .entry k(\n.param .align 8 .b8 k_param_0[40],\n.param .align 8 .b8 k_param_1[128],\n\
            .param .align 16 .b8 k_param_10[128]\n) {\nld.param.b64 %rd0, [k_param_0];\n\
            mov.b64 %rd1, k_param_1; cvta.param.u64 %rd2, %rd1;\nmov.b64 %rd3, k_param_10;\n cvta.param.u64 %rd3, %rd3; ret; }";
        let finished = one(text)?;
        assert!(finished.ptx.contains(".align 8 .b8 k_param_0[40]"));
        assert!(finished.ptx.contains(".align 64 .b8 k_param_1[128]"));
        assert!(finished.ptx.contains(".align 64 .b8 k_param_10[128]"));
        assert_eq!(finished.params_bytes, 64 + 128 + 128);
        Ok(())
    }

    #[test]
    fn a_struct_of_tensor_maps_is_aligned_however_its_address_travels() -> Result<()> {
        for taken in [
            "mov.b64 %rd1, k_param_0; cvta.param.u64 %rd1, %rd1;",
            "mov.u64 %rd1, k_param_0;\n\tmov.b64 %rd2, %rd9;\n\tcvta.param.u64 %rd3, %rd1;",
            "mov.b64 %rd1, k_param_0;\n\tmov.b64 %rd2, %rd1;\n\tmov.b64 %rd1, %rd8;\n\tcvta.param.u64 %rd3, %rd2;",
            "cvta.param.u64 %rd3, k_param_0;",
        ] {
            let text = format!(
                ".visible .entry k(\n\t.param .align 8 .b8 k_param_0[776]\n)\n{{\n\t// begin inline asm\n\t{taken}\n\
                 \t// end inline asm\n\tld.param.b32 %r1, [k_param_0+512];\n\tret;\n}}"
            );
            let finished = one(&text)?;
            let aligned = "\t.param .align 64 .b8 k_param_0[776]\n";
            assert!(finished.ptx.contains(aligned), "{}", finished.ptx);
            assert_eq!(finished.params_bytes, 776);
        }
        for other in [
            "mov.b64 %rd1, k_param_0; mov.b64 %rd1, %rd2; cvta.param.u64 %rd3, %rd1;",
            "mov.b64 %rd1, k_param_0; cvta.to.global.u64 %rd3, %rd1;",
        ] {
            let text =
                format!(".visible .entry k(.param .align 8 .b8 k_param_0[8]) {{ {other} ret; }}");
            let finished = one(&text)?;
            assert!(finished.ptx.contains(".align 8 "), "{}", finished.ptx);
        }
        Ok(())
    }

    #[test]
    fn parameters_of_every_kind_have_a_size() {
        let size = |list: &str| params_bytes(&format!(".entry k({list})"));
        assert_eq!(size(""), Ok(0));
        assert_eq!(size(".param .u32 a, .param .u64 b, .param .f32 c"), Ok(20));
        assert_eq!(size(".param .u64 .ptr .global .align 16 a"), Ok(8));
        assert!(size(".param .texref a").is_err());
        assert!(size(".param .b8 a[x]").is_err());
    }

    #[test]
    fn bounds_that_are_already_there_are_an_error() {
        assert!(one(".visible .entry k() .maxntid 1, 1, 1 { ret; }").is_err());
    }
}

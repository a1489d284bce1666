//! What PTX must not have: each of these is a kernel that is slow, wrong, or hangs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::finish::{BARRIERS_SUFFIX, Finished};
use crate::ptx::{self, Kind, Module, Statement};
use crate::spec::EntrySpec;

/// How many offending instructions one problem quotes.
const QUOTED: usize = 4;

/// Why a module or one of its entries is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A function that PTX only declares: rustc left a call to it.
    Undefined {
        /// Its readable name.
        function: String,
        /// The entries that call it.
        callers: Vec<String>,
    },
    /// A function that was not inlined.
    Function {
        /// Its readable name.
        function: String,
    },
    /// The table has it, the PTX does not.
    MissingEntry {
        /// Its name.
        entry: String,
        /// Target of the module.
        arch: &'static str,
    },
    /// The PTX has it, the table does not.
    UnlistedEntry {
        /// Its name.
        entry: String,
    },
    /// The entry has no `NAME__barriers`.
    BarriersUnknown {
        /// Its name.
        entry: String,
    },
    /// LLVM duplicated or dropped a barrier.
    Barriers {
        /// The entry.
        entry: String,
        /// What `NAME__barriers` says.
        source: u32,
        /// What the PTX has.
        ptx: u32,
    },
    /// Local memory: an array that was not kept in registers.
    Local {
        /// The entry.
        entry: String,
        /// Declarations.
        declarations: Vec<String>,
    },
    /// Calls.
    Call {
        /// The entry.
        entry: String,
        /// What is called.
        callees: Vec<String>,
    },
    /// Loads and stores that don't say which memory they mean.
    Generic {
        /// The entry.
        entry: String,
        /// How many.
        count: usize,
        /// Some of them.
        instructions: Vec<String>,
    },
    /// The machine code passes a limit.
    Limit {
        /// The entry.
        entry: String,
        /// Which limits, and by how much.
        what: String,
    },
    /// Double precision.
    F64 {
        /// The entry.
        entry: String,
        /// How many.
        count: usize,
        /// Some of them.
        instructions: Vec<String>,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undefined { function, callers } => {
                let callers = some_of(callers);
                write!(f, "{function} is left undefined, called by {callers}")
            }
            Self::Function { function } => write!(f, "{function} is not inlined"),
            Self::MissingEntry { entry, arch } => {
                write!(
                    f,
                    "{entry}: the table of variants lists it for {arch}, the PTX lacks it"
                )
            }
            Self::UnlistedEntry { entry } => {
                write!(
                    f,
                    "{entry}: the PTX has it, the table of variants does not list it"
                )
            }
            Self::BarriersUnknown { entry } => write!(
                f,
                "{entry}: no `#[unsafe(no_mangle)] pub static {entry}{BARRIERS_SUFFIX}: u32` beside it"
            ),
            Self::Barriers { entry, source, ptx } => write!(
                f,
                "{entry}: source has {source} barriers, PTX has {ptx}: LLVM duplicated or dropped a barrier"
            ),
            Self::Local {
                entry,
                declarations,
            } => {
                let what = declarations.join("; ");
                write!(f, "{entry}: local memory: {what}")
            }
            Self::Call { entry, callees } => write!(f, "{entry}: calls {}", some_of(callees)),
            Self::Generic {
                entry,
                count,
                instructions,
            } => {
                let some = instructions.join("; ");
                write!(
                    f,
                    "{entry}: {count} memory accesses without a state space: {some}"
                )
            }
            Self::Limit { entry, what } => write!(f, "{entry}: {what}"),
            Self::F64 {
                entry,
                count,
                instructions,
            } => {
                let some = instructions.join("; ");
                write!(f, "{entry}: {count} instructions in f64: {some}")
            }
        }
    }
}

/// Checks the compiler's module against the table: functions left over, entries too few or too many.
pub fn check_module(module: &Module, specs: &[EntrySpec], arch: &'static str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut declared: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for function in module.of(Kind::ExternFunction) {
        declared.entry(&function.name).or_default();
    }
    for function in module.of(Kind::Function) {
        // A declaration ahead of the definition.
        declared.remove(function.name.as_str());
    }
    if !declared.is_empty() {
        for item in module
            .items
            .iter()
            .filter(|i| matches!(i.kind, Kind::Entry | Kind::Function))
        {
            let clean = ptx::strip_comments(&item.text);
            let words: BTreeSet<_> = ptx::identifiers(&clean).collect();
            for (name, callers) in &mut declared {
                if words.contains(name) {
                    callers.push(item.name.clone());
                }
            }
        }
    }
    for (name, callers) in declared {
        problems.push(Problem::Undefined {
            function: readable(name),
            callers,
        });
    }
    for function in module.of(Kind::Function) {
        problems.push(Problem::Function {
            function: readable(&function.name),
        });
    }
    for spec in specs {
        if !module.of(Kind::Entry).any(|e| e.name == spec.name) {
            problems.push(Problem::MissingEntry {
                entry: spec.name.clone(),
                arch,
            });
        }
    }
    for entry in module.of(Kind::Entry) {
        if !specs.iter().any(|s| s.name == entry.name) {
            problems.push(Problem::UnlistedEntry {
                entry: entry.name.clone(),
            });
        }
    }
    problems
}

/// Checks one finished entry.
pub fn check_entry(finished: &Finished, spec: &EntrySpec) -> Vec<Problem> {
    let entry = || finished.name.clone();
    let clean = ptx::strip_comments(&finished.ptx);
    let body = ptx::body(&clean);

    let mut barriers = 0;
    let (mut locals, mut callees) = (Vec::new(), Vec::new());
    let (mut generic, mut double) = (Quotes::default(), Quotes::default());
    for statement in ptx::statements(body) {
        barriers += u32::from(is_block_barrier(statement.opcode));
        if statement.opcode == ".local" {
            locals.push(statement.operands.replace('\t', ""));
        }
        if statement.opcode == "call" || statement.opcode.starts_with("call.") {
            callees.push(callee(statement.operands));
        }
        if is_generic(statement.opcode) {
            generic.add(statement);
        }
        if !statement.opcode.starts_with('.') && statement.opcode.split('.').any(|p| p == "f64") {
            double.add(statement);
        }
    }

    let mut problems = Vec::new();
    match finished.barriers {
        None => problems.push(Problem::BarriersUnknown { entry: entry() }),
        Some(source) if source != barriers => problems.push(Problem::Barriers {
            entry: entry(),
            source,
            ptx: barriers,
        }),
        Some(_) => {}
    }
    if !locals.is_empty() {
        problems.push(Problem::Local {
            entry: entry(),
            declarations: locals,
        });
    }
    if !callees.is_empty() {
        callees.sort();
        callees.dedup();
        problems.push(Problem::Call {
            entry: entry(),
            callees,
        });
    }
    if generic.count > 0 {
        problems.push(Problem::Generic {
            entry: entry(),
            count: generic.count,
            instructions: generic.some,
        });
    }
    if double.count > 0 && !spec.allow_f64 {
        problems.push(Problem::F64 {
            entry: entry(),
            count: double.count,
            instructions: double.some,
        });
    }
    problems
}

/// How many there are, and the first few.
#[derive(Default)]
struct Quotes {
    count: usize,
    some: Vec<String>,
}

impl Quotes {
    fn add(&mut self, statement: Statement<'_>) {
        self.count += 1;
        if self.some.len() < QUOTED {
            self.some
                .push(format!("{} {}", statement.opcode, statement.operands));
        }
    }
}

/// Whether an opcode is a barrier among the threads of a block, arrival alone included.
pub fn is_block_barrier(opcode: &str) -> bool {
    let mut parts = opcode.split('.');
    matches!(parts.next(), Some("bar" | "barrier"))
        && !matches!(parts.next(), None | Some("warp" | "cluster"))
}

/// Whether an opcode accesses memory without saying which.
fn is_generic(opcode: &str) -> bool {
    let mut parts = opcode.split('.');
    let accesses = matches!(
        parts.next(),
        Some("ld" | "st" | "atom" | "red" | "ldmatrix" | "stmatrix")
    );
    let spaces = ["global", "shared", "param", "const", "local"];
    // `shared::cta`, `param::entry`.
    let named = |part: &str| spaces.contains(&part.split(':').next().unwrap_or_default());
    accesses && !parts.any(named)
}

/// The function of a call's operands: `(ret), name, (arguments), prototype`, results and arguments optional.
fn callee(operands: &str) -> String {
    let after = match operands.strip_prefix('(').and_then(|o| o.split_once(')')) {
        Some((_, rest)) => rest.trim_start_matches([',', ' ', '\t', '\n']),
        None => operands,
    };
    let name = after.split(|c: char| !ptx::is_word(c) && c != '%').next();
    readable(name.unwrap_or_default())
}

fn readable(symbol: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(symbol))
}

fn some_of(names: &[String]) -> String {
    match names {
        [] => "nobody".to_owned(),
        names if names.len() <= QUOTED => names.join(", "),
        names => {
            let rest = names.len() - QUOTED;
            format!("{} and {rest} more", names[..QUOTED].join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::finish::finish;
    use crate::spec::tests::spec;

    const HEADER: &str = ".version 7.0\n.target sm_80\n.address_size 64\n";

    fn body(barriers: u32, body: &str, spec: &EntrySpec) -> Result<Vec<String>> {
        let text = format!(
            "{HEADER}.visible .global .u32 k__barriers = {barriers};\n.visible .entry k(.param .u64 k_param_0)\n{{{body}}}"
        );
        let finished = finish(&Module::parse(&text)?, std::slice::from_ref(spec))?;
        let problems = finished.iter().flat_map(|f| check_entry(f, spec));
        Ok(problems.map(|p| p.to_string()).collect())
    }

    #[test]
    fn right_code_passes() -> Result<()> {
        let good = "ld.param::entry.b64 %rd1, [k_param_0]; cp.async.ca.shared.global [%r1], [%rd1], 4;\n\
            ld.global.nc.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1]; @%p1 st.shared::cta.b32 [%r1], %r2;\n\
            // ld.b32 and bar.sync in a comment\n\
            bar.sync 0; barrier.sync.aligned 1, 128; bar.warp.sync -1; barrier.cta.arrive.aligned 1, 64;\n\
            barrier.cluster.arrive; mbarrier.init.shared::cta.b64 [%r1], 1; .reg .f64 %fd<3>; ret;";
        assert_eq!(body(3, good, &spec("k"))?, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn each_bad_kind_is_named() -> Result<()> {
        for (barriers, text, expected) in [
            (
                1,
                "bar.sync 0; bar.sync 0; ret;",
                "source has 1 barriers, PTX has 2",
            ),
            (
                2,
                "barrier.cta.red.popc.aligned.u32 %r1, 0, %p1;",
                "source has 2 barriers, PTX has 1",
            ),
            (
                0,
                ".local .align 4 .b8 __local_depot0[64]; ret;",
                "local memory: .align 4 .b8 __local_depot0[64]",
            ),
            (0, "{ call.uni (r), helper, (a); }", "calls helper"),
            (0, "call.uni panic, (a);", "calls panic"),
            (0, "call %rd1, (a), proto;", "calls %rd1"),
            (
                0,
                "@%p1 ld.b32 %r1, [%rd1];",
                "1 memory accesses without a state space: ld.b32 %r1, [%rd1]",
            ),
            (
                0,
                "st.volatile.v2.b32 [%rd1], {%r1, %r2};",
                "without a state space: st.volatile.v2.b32",
            ),
            (
                0,
                "atom.relaxed.gpu.add.u32 %r1, [%rd1], 1;",
                "atom.relaxed.gpu.add.u32",
            ),
            (
                0,
                "ldmatrix.sync.aligned.m8n8.x4.b16 {%r1}, [%rd1];",
                "without a state space",
            ),
            (
                0,
                "cvt.f64.f32 %fd1, %r1; add.rn.f64 %fd1, %fd1, %fd1;",
                "2 instructions in f64: cvt.f64.f32",
            ),
        ] {
            let problems = body(barriers, text, &spec("k"))?;
            assert!(
                problems.len() == 1 && problems[0].contains(expected),
                "{text}: {problems:?}"
            );
        }
        let allowed = EntrySpec {
            allow_f64: true,
            ..spec("k")
        };
        assert_eq!(
            body(0, "add.rn.f64 %fd1, %fd1, %fd1;", &allowed)?,
            Vec::<String>::new()
        );
        Ok(())
    }

    #[test]
    fn the_module_is_compared_with_the_table_both_ways() -> Result<()> {
        let panic = "_RNvNtCs4fqI2P2rA04_4core9panicking18panic_bounds_check";
        let text = format!(
            "{HEADER}.extern .func {panic}(.param .b64 a);\n.func helper() {{ ret; }}\n\
             .visible .entry k() {{ call.uni {panic}, (a); }}\n.visible .entry extra() {{ ret; }}\n"
        );
        let module = Module::parse(&text)?;
        let problems = check_module(&module, &[spec("k"), spec("missing")], "sm_80");
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "core::panicking::panic_bounds_check is left undefined, called by k",
                "helper is not inlined",
                "missing: the table of variants lists it for sm_80, the PTX lacks it",
                "extra: the PTX has it, the table of variants does not list it",
            ]
        );
        let finished = finish(&module, &[spec("k")])?;
        let problems = check_entry(&finished[0], &spec("k"));
        assert!(
            problems[0].to_string().contains("k__barriers"),
            "{problems:?}"
        );
        Ok(())
    }
}

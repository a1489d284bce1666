//! Programs as PTX.

mod collective;

use std::fmt::Write;

use super::{
    Access, Class, DUMP_BYTES, Guard, INPUT_WORDS, LOCAL_BYTES, OWN_BYTES, Operand, Place, Program,
    SLOT_BYTES, Statement, Trips, forms::forms,
};

/// What one access moves.
#[derive(Clone, Copy, Debug)]
pub struct Width {
    /// Vector and type.
    pub name: &'static str,
    /// Bytes of one register's part.
    pub bytes: usize,
    /// Registers.
    pub count: usize,
    /// Their class.
    pub class: Class,
    /// A load extends the sign.
    pub signed: bool,
}

const fn width(
    name: &'static str,
    bytes: usize,
    count: usize,
    class: Class,
    signed: bool,
) -> Width {
    Width {
        name,
        bytes,
        count,
        class,
        signed,
    }
}

/// Every width.
pub const WIDTHS: [Width; 12] = [
    width("u8", 1, 1, Class::R, false),
    width("s8", 1, 1, Class::R, true),
    width("u16", 2, 1, Class::R, false),
    width("s16", 2, 1, Class::R, true),
    width("b16", 2, 1, Class::H, false),
    width("b32", 4, 1, Class::R, false),
    width("f32", 4, 1, Class::R, false),
    width("b64", 8, 1, Class::D, false),
    width("v2.b16", 2, 2, Class::H, false),
    width("v2.b32", 4, 2, Class::R, false),
    width("v4.f32", 4, 4, Class::R, false),
    width("v2.u64", 8, 2, Class::D, false),
];

impl Width {
    /// Bytes of the whole access.
    pub fn total(&self) -> usize {
        self.bytes * self.count
    }

    /// Numbers of the registers.
    pub fn registers(&self, first: usize) -> impl Iterator<Item = usize> {
        let class = self.class;
        (0..self.count).map(move |n| (first + n) % class.count())
    }
}

/// Atomic updates: operation, type and offset of its cell.
pub const UPDATES: [(&str, &str, usize); 7] = [
    ("add", "u32", 0),
    ("min", "s32", 4),
    ("max", "u32", 8),
    ("and", "b32", 12),
    ("or", "b32", 16),
    ("xor", "b32", 20),
    ("add", "u64", 24),
];

/// The whole text.
pub fn render(program: &Program) -> String {
    let threads = program.threads;
    let mut text = String::from(".version 8.4\n.target sm_90\n.address_size 64\n");
    let bytes = threads * SLOT_BYTES;
    text += &match program.dynamic {
        true => ".extern .shared .align 16 .b8 slots[];\n".to_owned(),
        false => format!(".shared .align 16 .b8 slots[{bytes}];\n"),
    };
    text += ".visible .entry k(.param .u64 input, .param .u64 own, .param .u64 cells, .param .u64 dump)\n{\n";
    for (class, ty) in Class::ALL.into_iter().zip(["pred", "b16", "b32", "b64"]) {
        let _ = writeln!(text, ".reg .{ty} {}<{}>;", class.prefix(), class.count());
    }
    text += ".reg .pred %xp, %xq;\n.reg .b16 %xh, %xg;\n.reg .b32 %xr, %xs, %slot, %count<4>, %mask<4>, %a<4>, %b<2>, %c<4>;\n";
    text += ".reg .b64 %xd, %input, %own, %cells, %dump;\n";
    let _ = writeln!(text, ".local .align 16 .b8 stack[{LOCAL_BYTES}];");
    let mut writer = Writer {
        text,
        threads,
        labels: 0,
        loops: Vec::new(),
    };
    writer.preamble();
    writer.statements(&program.body);
    writer.dump();
    if !program.tail.is_empty() {
        writer.statements(&program.tail);
        writer.dump();
    }
    writer.text + "ret;\n}\n"
}

struct Writer {
    text: String,
    threads: usize,
    labels: usize,
    /// Labels at the ends of the open loops.
    loops: Vec<usize>,
}

/// `@%p1 ` or nothing.
fn guarded(guard: Option<Guard>) -> String {
    guard.map_or_else(String::new, |g| {
        format!("@{}%p{} ", if g.negated { "!" } else { "" }, g.predicate)
    })
}

fn opposite(guard: Guard) -> Guard {
    Guard {
        negated: !guard.negated,
        ..guard
    }
}

fn operand(operand: &Operand) -> String {
    match *operand {
        Operand::Reg(reg) => format!("{}{}", reg.class.prefix(), reg.number),
        Operand::Integer(x) => format!("{x:#x}"),
        Operand::Single(x) => format!("0f{x:08X}"),
        Operand::Double(x) => format!("0d{x:016X}"),
    }
}

/// Successive registers, in braces if there are several.
fn list(class: Class, numbers: impl Iterator<Item = usize>) -> String {
    let names: Vec<String> = numbers.map(|n| format!("{}{n}", class.prefix())).collect();
    match names.as_slice() {
        [one] => one.clone(),
        _ => format!("{{{}}}", names.join(", ")),
    }
}

impl Writer {
    fn line(&mut self, line: impl AsRef<str>) {
        self.text += line.as_ref();
        self.text.push('\n');
    }

    fn label(&mut self) -> usize {
        self.labels += 1;
        self.labels
    }

    /// Addresses, the slot and the local variable zeroed, registers from the input.
    fn preamble(&mut self) {
        for name in ["input", "own", "cells", "dump"] {
            self.line(format!("ld.param.u64 %{name}, [{name}];"));
        }
        self.line("mov.u32 %r0, %tid.x;\nmov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %ntid.x;");
        self.line("mad.lo.u32 %xs, %r1, %r2, %r0;");
        for (name, bytes) in [("own", OWN_BYTES), ("dump", DUMP_BYTES)] {
            self.line(format!(
                "mul.wide.u32 %xd, %xs, {bytes};\nadd.s64 %{name}, %{name}, %xd;"
            ));
        }
        self.line(format!(
            "mov.u32 %slot, slots;\nmad.lo.u32 %slot, %r0, {SLOT_BYTES}, %slot;"
        ));
        self.line("mov.u32 %xr, 0;\nst.shared.v4.b32 [%slot], {%xr, %xr, %xr, %xr};");
        for at in (0..LOCAL_BYTES).step_by(16) {
            self.line(format!(
                "st.local.v4.b32 [stack+{at}], {{%xr, %xr, %xr, %xr}};"
            ));
        }
        self.line("bar.sync 0;");
        let half = INPUT_WORDS / 2;
        self.line(format!(
            "mul.lo.u32 %xr, %xs, 5;\nand.b32 %xr, %xr, {};",
            half - 1
        ));
        self.line("mul.wide.u32 %xd, %xr, 4;\nadd.s64 %xd, %xd, %input;");
        let mut at = 0;
        for class in [Class::R, Class::D, Class::H, Class::P] {
            for number in 0..class.count() {
                self.line(format!("ld.global.b32 %xr, [%xd+{at}];"));
                at += 4;
                let name = format!("{}{number}", class.prefix());
                self.line(match class {
                    Class::R => format!("mov.b32 {name}, %xr;"),
                    Class::D => format!("mov.b64 {name}, {{%xr, %r{number}}};"),
                    Class::H => format!("cvt.u16.u32 {name}, %xr;"),
                    Class::P => format!("setp.lt.s32 {name}, %xr, 0;"),
                });
            }
        }
        for (number, name) in ["tid.x", "laneid", "ctaid.x", "lanemask_le"]
            .iter()
            .enumerate()
        {
            self.line(format!("mov.u32 %r{number}, %{name};"));
        }
    }

    /// Stores all registers.
    fn dump(&mut self) {
        let mut at = 0;
        for class in [Class::D, Class::R, Class::H, Class::P] {
            for number in 0..class.count() {
                let name = format!("{}{number}", class.prefix());
                let (ty, bytes, name) = match class {
                    Class::D => ("b64", 8, name),
                    Class::R => ("b32", 4, name),
                    Class::H => ("b16", 2, name),
                    Class::P => {
                        self.line(format!("selp.u32 %xr, 1, 0, {name};"));
                        ("b8", 1, "%xr".to_owned())
                    }
                };
                self.line(format!("st.global.{ty} [%dump+{at}], {name};"));
                at += bytes;
            }
        }
    }

    fn statements(&mut self, statements: &[Statement]) {
        for statement in statements {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Compute {
                form,
                guard,
                to,
                from,
            } => self.compute(*form, *guard, *to, from),
            Statement::Load(place, access, guard) => {
                let width = WIDTHS[access.width];
                let opcode = self.address(*place, access, "ld");
                let registers = list(width.class, width.registers(access.first));
                let guard = guarded(*guard);
                self.line(format!(
                    "{guard}{opcode}.{} {registers}, [%xd];",
                    width.name
                ));
            }
            Statement::Store(place, access, guard) => {
                let width = WIDTHS[access.width];
                let opcode = self.address(*place, access, "st");
                let registers = list(width.class, width.registers(access.first));
                let guard = guarded(*guard);
                self.line(format!(
                    "{guard}{opcode}.{} [%xd], {registers};",
                    width.name
                ));
            }
            Statement::Update(which, from, guard) => {
                let (operation, ty, at) = UPDATES[*which];
                let guard = guarded(*guard);
                let source = match ty {
                    "u64" => {
                        self.line(format!("cvt.s64.s32 %xd, %r{from};"));
                        "%xd".to_owned()
                    }
                    _ => format!("%r{from}"),
                };
                self.line(format!(
                    "{guard}red.global.{operation}.{ty} [%cells+{at}], {source};"
                ));
            }
            Statement::If {
                condition,
                ballot,
                then,
                otherwise,
            } => {
                let (other, end) = (self.label(), self.label());
                if let Some((mask, lanes)) = ballot {
                    let not = if condition.negated { "!" } else { "" };
                    let lanes = self.lanes(*lanes);
                    let p = condition.predicate;
                    self.line(format!(
                        "vote.sync.ballot.b32 %mask{mask}, {not}%p{p}, {lanes};"
                    ));
                }
                self.line(format!(
                    "{}bra L{other};",
                    guarded(Some(opposite(*condition)))
                ));
                self.statements(then);
                self.line(format!("bra L{end};\nL{other}:"));
                self.statements(otherwise);
                self.line(format!("L{end}:"));
            }
            Statement::Loop {
                trips,
                at_end,
                body,
            } => self.repeat(*trips, *at_end, body),
            Statement::Break(guard) => {
                if let Some(end) = self.loops.last().copied() {
                    self.line(format!("{}bra L{end};", guarded(Some(*guard))));
                }
            }
            Statement::Switch(selector, cases) => {
                let (table, end) = (self.label(), self.label());
                let labels: Vec<usize> = cases.iter().map(|_| self.label()).collect();
                let names: Vec<String> = labels.iter().map(|label| format!("L{label}")).collect();
                self.line(format!("L{table}: .branchtargets {};", names.join(", ")));
                self.line(format!("and.b32 %xr, %r{selector}, {};", cases.len() - 1));
                self.line(format!("brx.idx %xr, L{table};"));
                for (label, case) in labels.iter().zip(cases) {
                    self.line(format!("L{label}:"));
                    self.statements(case);
                    self.line(format!("bra L{end};"));
                }
                self.line(format!("L{end}:"));
            }
            Statement::Exit(guard) => self.line(format!("{}exit;", guarded(Some(*guard)))),
            Statement::Collective(collective) => self.collective(collective),
            Statement::Reduce(operation, guard, to) => {
                let source = format!(
                    "{}%p{}",
                    if guard.negated { "!" } else { "" },
                    guard.predicate
                );
                self.line(match operation {
                    0 => format!("bar.red.popc.u32 %r{to}, 2, {source};"),
                    1 => format!("bar.red.and.pred %p{to}, 2, {source};"),
                    _ => format!("bar.red.or.pred %p{to}, 2, {source};"),
                });
            }
            Statement::Exchange {
                write,
                reads,
                barrier,
            } => {
                self.write_shared(write);
                self.line(format!("bar.sync {barrier};"));
                for read in reads {
                    self.read_shared(read);
                }
                let count = self.threads.next_multiple_of(32);
                self.line(format!("bar.sync {barrier}, {count};"));
            }
            Statement::Matrix(matrix) => self.matrix(matrix),
        }
    }

    fn compute(&mut self, form: usize, guard: Option<Guard>, to: usize, from: &[Operand]) {
        let form = &forms()[form];
        let mut text = form
            .text
            .replace("$0", &format!("{}{to}", form.to.prefix()));
        for (n, from) in from.iter().enumerate() {
            text = text.replace(&format!("${}", n + 1), &operand(from));
        }
        let guard = guarded(guard);
        for instruction in text
            .split(';')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            self.line(format!("{guard}{instruction};"));
        }
    }

    /// Puts an element's address in `%xd`, and returns the opcode with its space.
    fn address(&mut self, place: Place, access: &Access, opcode: &str) -> String {
        let width = WIDTHS[access.width].total();
        let (base, bytes) = match place {
            Place::Input => ("%input", INPUT_WORDS * 4),
            Place::Own => ("%own", OWN_BYTES),
            Place::Local => ("stack", LOCAL_BYTES),
        };
        self.line(format!(
            "and.b32 %xr, %r{}, {};",
            access.index,
            bytes / width - 1
        ));
        self.line(format!("mul.wide.u32 %xd, %xr, {width};"));
        let spellings: &[&str] = match (place, opcode) {
            (Place::Local, _) => &[".local", ""],
            (Place::Input, _) => &[
                ".global",
                "",
                ".global.nc",
                ".volatile.global",
                ".relaxed.gpu.global",
            ],
            (_, "ld") => &[
                ".global",
                "",
                ".volatile.global",
                ".global.cg",
                ".relaxed.cta.global",
            ],
            _ => &[
                ".global",
                "",
                ".volatile.global",
                ".global.wt",
                ".relaxed.sys.global",
            ],
        };
        let space = spellings[access.spelling % spellings.len()];
        if place != Place::Local {
            self.line(format!("add.s64 %xd, %xd, {base};"));
        } else if space.is_empty() {
            self.line("{ .reg .b64 %base;\nmov.u64 %base, stack;\ncvta.local.u64 %base, %base;");
            self.line("add.s64 %xd, %xd, %base; }");
        } else {
            self.line("{ .reg .b64 %base;\nmov.u64 %base, stack;\nadd.s64 %xd, %xd, %base; }");
        }
        format!("{opcode}{space}")
    }

    fn repeat(&mut self, trips: Trips, at_end: bool, body: &[Statement]) {
        let (start, end) = (self.label(), self.label());
        let counter = format!("%count{}", self.loops.len());
        self.line(match trips {
            Trips::Fixed(n) => format!("mov.u32 {counter}, {n};"),
            Trips::Register(r) => format!("and.b32 {counter}, %r{r}, 3;"),
        });
        self.line(format!("L{start}:"));
        if !at_end {
            self.line(format!("setp.eq.u32 %xq, {counter}, 0;\n@%xq bra L{end};"));
        }
        self.loops.push(end);
        self.statements(body);
        self.loops.pop();
        match at_end {
            true => {
                self.line(format!(
                    "setp.ne.u32 %xq, {counter}, 0;\nsub.u32 {counter}, {counter}, 1;"
                ));
                self.line(format!("@%xq bra L{start};"));
            }
            false => self.line(format!(
                "sub.u32 {counter}, {counter}, 1;\nbra.uni L{start};"
            )),
        }
        self.line(format!("L{end}:"));
    }
}

//! What the lanes of a warp, or the threads of a block, do together.

use super::{WIDTHS, Writer, list};
use crate::program::warp::{Matrix, Operation, REDUCTIONS, SHUFFLES, segments};
use crate::program::{Class, Collective, INPUT_WORDS, Lanes, SLOT_BYTES, SharedRead, SharedWrite};

impl Writer {
    /// A mask operand.
    pub(super) fn lanes(&self, lanes: Lanes) -> String {
        match lanes {
            Lanes::All if self.threads < 32 => format!("{:#x}", (1u32 << self.threads) - 1),
            Lanes::All => "0xffffffff".to_owned(),
            Lanes::Ballot(mask) => format!("%mask{mask}"),
        }
    }

    pub(super) fn collective(&mut self, c: &Collective) {
        let lanes = self.lanes(c.lanes);
        let (to, [a, b]) = (c.to, c.from);
        let source = format!(
            "{}%p{}",
            if c.guard.negated { "!" } else { "" },
            c.guard.predicate
        );
        self.line(match c.operation {
            Operation::All => format!("vote.sync.all.pred %p{to}, {source}, {lanes};"),
            Operation::Any => format!("vote.sync.any.pred %p{to}, {source}, {lanes};"),
            Operation::Uniform => format!("vote.sync.uni.pred %p{to}, {source}, {lanes};"),
            Operation::Ballot => format!("vote.sync.ballot.b32 %r{to}, {source}, {lanes};"),
            Operation::MatchAny => format!("match.any.sync.b32 %r{to}, %r{a}, {lanes};"),
            Operation::MatchAnyWide => format!("match.any.sync.b64 %r{to}, %d{a}, {lanes};"),
            Operation::MatchAll => format!("match.all.sync.b32 %r{to}|%xp, %r{a}, {lanes};"),
            Operation::Reduction(which) => {
                format!("redux.sync.{} %r{to}, %r{a}, {lanes};", REDUCTIONS[which].0)
            }
            Operation::Shuffle(mode, size) => {
                let (name, segments) = (SHUFFLES[mode], segments(mode, size));
                format!("shfl.sync.{name}.b32 %r{to}|%xp, %r{a}, %r{b}, {segments:#x}, {lanes};")
            }
        });
    }

    pub(super) fn write_shared(&mut self, write: &SharedWrite) {
        match write {
            SharedWrite::Stores(stores) => {
                for store in stores {
                    let width = WIDTHS[store.width];
                    let parts = SLOT_BYTES / width.total();
                    self.line(format!("and.b32 %xr, %r{}, {};", store.index, parts - 1));
                    self.line(format!("mad.lo.u32 %xr, %xr, {}, %slot;", width.total()));
                    let registers = list(width.class, width.registers(store.first));
                    self.line(format!("st.shared.{} [%xr], {registers};", width.name));
                }
            }
            SharedWrite::Copy {
                bytes,
                read,
                index,
                meanwhile,
            } => {
                let mask = INPUT_WORDS * 4 / bytes - 1;
                self.line(format!(
                    "and.b32 %xr, %r{index}, {mask};\nmul.wide.u32 %xd, %xr, {bytes};"
                ));
                let cache = if *bytes == 16 { "cg" } else { "ca" };
                let size = if read == bytes {
                    String::new()
                } else {
                    format!(", {read}")
                };
                self.line("add.s64 %xd, %xd, %input;");
                self.line(format!(
                    "cp.async.{cache}.shared.global [%slot], [%xd], {bytes}{size};"
                ));
                self.line("cp.async.commit_group;");
                self.statements(meanwhile);
                self.line("cp.async.wait_group 0;");
            }
        }
    }

    pub(super) fn read_shared(&mut self, read: &SharedRead) {
        match *read {
            SharedRead::Load(access) => {
                let width = WIDTHS[access.width];
                let parts = self.threads * SLOT_BYTES / width.total();
                let registers = list(width.class, width.registers(access.first));
                self.line(format!(
                    "rem.u32 %xr, %r{}, {parts};\nmov.u32 %xs, slots;",
                    access.index
                ));
                self.line(format!("mad.lo.u32 %xr, %xr, {}, %xs;", width.total()));
                match access.spelling % 2 {
                    0 => self.line(format!("ld.shared.{} {registers}, [%xr];", width.name)),
                    _ => {
                        self.line("cvt.u64.u32 %xd, %xr;\ncvta.shared.u64 %xd, %xd;");
                        self.line(format!("ld.{} {registers}, [%xd];", width.name));
                    }
                }
            }
            SharedRead::Matrix {
                count,
                transposed,
                row,
                first,
            } => {
                self.line(format!(
                    "rem.u32 %xr, %r{row}, {};\nmov.u32 %xs, slots;",
                    self.threads
                ));
                self.line(format!("mad.lo.u32 %xr, %xr, {SLOT_BYTES}, %xs;"));
                let numbers = (0..count).map(|n| (first + n) % Class::R.count());
                let names: Vec<String> = numbers.map(|n| format!("%r{n}")).collect();
                let trans = if transposed { ".trans" } else { "" };
                self.line(format!(
                    "ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{}}}, [%xr];",
                    names.join(", ")
                ));
            }
        }
    }

    pub(super) fn matrix(&mut self, m: &Matrix) {
        let sizes = m.sizes();
        let names = ["%a", "%b", "%c"];
        for ((name, size), first) in names.iter().zip(sizes).zip(m.registers) {
            for n in 0..size {
                let from = (first + n) % Class::R.count();
                self.line(match (m.integer, *name) {
                    (true, _) => format!("mov.b32 {name}{n}, %r{from};"),
                    (false, "%c") => format!(
                        "and.b32 %xr, %r{from}, 1023;\ncvt.rn.f32.u32 {name}{n}, %xr;"
                    ),
                    (false, _) => format!(
                        "and.b32 %xr, %r{from}, 15;\ncvt.rn.f16.u32 %xh, %xr;\nbfe.u32 %xr, %r{from}, 16, 4;\n\
                         cvt.rn.f16.u32 %xg, %xr;\nmov.b32 {name}{n}, {{%xh, %xg}};"
                    ),
                });
            }
        }
        let operands = names.iter().zip(sizes).map(|(name, size)| {
            let parts: Vec<String> = (0..size).map(|n| format!("{name}{n}")).collect();
            format!("{{{}}}", parts.join(", "))
        });
        let operands: Vec<String> = operands.collect();
        let to: Vec<String> = (0..4)
            .map(|n| format!("%r{}", (m.registers[3] + n) % Class::R.count()))
            .collect();
        let types = match m.integer {
            true => {
                let [a, b] = m.signed.map(|signed| if signed { "s8" } else { "u8" });
                format!(
                    "m16n8k{}.row.col.s32.{a}.{b}.s32",
                    if m.long { 32 } else { 16 }
                )
            }
            false => "m16n8k16.row.col.f32.f16.f16.f32".to_owned(),
        };
        self.line(format!(
            "mma.sync.aligned.{types} {{{}}}, {};",
            to.join(", "),
            operands.join(", ")
        ));
    }
}

//! From an entry's statements to a program: forms are looked up in the table, operands become places in the register
//! file, and operations become functions over a warp.

mod bulk;
mod compare;
mod convert;
mod float;
mod flow;
mod integer;
mod layout;
mod lift;
mod moves;
mod registers;
mod spread;
mod warpwide;
mod wgmma;

use std::collections::HashMap;

use crate::error::{ParseError, Space};
use crate::exec::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::isa::{self, Group, Row};
use crate::module::Module;
use crate::numerics::Numerics;
use crate::parse::tree::{Base, Body, Operand, RegId, Statement, Type, VarRef};
use crate::program::{
    Address, Constant, Dst, Inst, Kind, NOWHERE, NarrowFn, Op, Origin, PredSrc, Program, Special,
    Src, WideFn,
};

use layout::{Layout, Placement};

/// Why an instruction cannot be decoded.
type Decoded<T> = Result<T, String>;

/// Decodes the entry at that place of the module.
pub(crate) fn decode(
    module: &Module,
    at: usize,
    numerics: Numerics,
) -> Result<Program, ParseError> {
    let entry = &module.tree.entries[at];
    let body = &entry.body;
    let text = module.text.as_str();
    let located = |s: &Statement, message: String| ParseError {
        line: s.line,
        column: s.column,
        message,
        instruction: text[s.range.clone()]
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
    };
    let mut forms = Vec::with_capacity(body.statements.len());
    let mut seen: HashMap<&str, Result<(&'static Row, Vec<&str>), String>> = HashMap::new();
    for s in &body.statements {
        let opcode = &text[s.opcode.clone()];
        let form = seen
            .entry(opcode)
            .or_insert_with(|| isa::find(opcode))
            .clone();
        let (row, modifiers) = form.map_err(|message| located(s, message))?;
        let most = row.operands.split_ascii_whitespace().count();
        let least = row
            .operands
            .split_ascii_whitespace()
            .filter(|o| !o.ends_with('?'))
            .count();
        if s.operands.len() < least || s.operands.len() > most {
            let message = format!(
                "`{opcode}` takes {}, not {} operands",
                range(least, most),
                s.operands.len()
            );
            return Err(located(s, message));
        }
        forms.push((row, modifiers));
    }
    let graph = flow::Graph::new(body, &forms);
    let layout = Layout::new(module, at).map_err(|message| ParseError {
        line: entry.body.statements.first().map_or(0, |s| s.line),
        column: 1,
        message,
        instruction: String::new(),
    })?;
    let assignment = registers::assign(body, &forms, &graph);
    let mut decoder = Decoder {
        body,
        layout: &layout,
        numerics,
        registers: entry.bounds.registers(),
        places: assignment.places,
        rows: assignment.rows,
        preds: assignment.preds,
        constants: HashMap::new(),
        order: Vec::new(),
        specials: HashMap::new(),
    };
    let joins = graph.joins();
    let mut code = Vec::with_capacity(forms.len());
    let mut origin = Vec::with_capacity(forms.len());
    for (n, (s, (row, modifiers))) in body.statements.iter().zip(&forms).enumerate() {
        let guard = match s.guard {
            None => PredSrc::TRUE,
            Some((reg, negated)) => PredSrc {
                index: decoder.places[reg as usize].slot,
                flip: if negated { u32::MAX } else { 0 },
            },
        };
        let form = Form {
            row,
            mods: modifiers,
            operands: &s.operands,
        };
        let op = decoder.op(&form).map_err(|message| located(s, message))?;
        code.push(Inst {
            op,
            guard,
            join: joins.get(n).copied().unwrap_or(NOWHERE),
            spread: spread::of(row, modifiers, &s.operands),
        });
        origin.push(Origin {
            line: s.line,
            range: s.range.clone(),
            source: s.source,
        });
    }
    let mut specials: Vec<_> = decoder
        .specials
        .iter()
        .map(|(&special, &src)| (src, special))
        .collect();
    specials.sort_by_key(|(src, _)| src.slot);
    let undefined = assignment
        .undefined
        .iter()
        .map(|&reg| decoder.places[reg as usize])
        .collect();
    let products = |inst: &Inst| matches!(inst.op, Op::Wgmma(_));
    let touched = if code.iter().any(products) {
        let of = |n: usize| match products(&code[n]) {
            true => Vec::new(),
            false => registers::named(&body.statements[n])
                .map(|reg| decoder.places[reg as usize])
                .collect(),
        };
        (0..code.len()).map(of).collect()
    } else {
        Vec::new()
    };
    Ok(Program {
        code,
        origin,
        touched,
        undefined,
        rows: decoder.rows,
        preds: decoder.preds,
        constants: decoder.order,
        specials,
        static_shared: layout.shared,
        dynamic_align: layout.dynamic_align,
        registers: entry.bounds.registers(),
        local: layout.local,
    })
}

fn range(least: usize, most: usize) -> String {
    if least == most {
        format!("{least}")
    } else {
        format!("{least} to {most}")
    }
}

/// A statement with its form.
struct Form<'s> {
    row: &'static Row,
    mods: &'s [&'s str],
    operands: &'s [Operand],
}

impl Form<'_> {
    fn has(&self, modifier: &str) -> bool {
        self.mods.contains(&modifier)
    }

    fn opcode(&self) -> &'static str {
        self.row.opcode
    }

    /// The last type among the modifiers.
    fn ty(&self) -> Decoded<Type> {
        self.types()
            .last()
            .copied()
            .ok_or_else(|| "a type is missing".to_owned())
    }

    fn types(&self) -> Vec<Type> {
        self.mods
            .iter()
            .filter_map(|m| Type::named(&m[1..]))
            .collect()
    }

    /// Elements: 1, or as `.v2` and so on say.
    fn vector(&self) -> usize {
        [(".v2", 2), (".v4", 4), (".v8", 8)]
            .iter()
            .find(|(m, _)| self.has(m))
            .map_or(1, |&(_, n)| n)
    }

    fn space(&self) -> Space {
        for m in self.mods {
            return match *m {
                ".global" => Space::Global,
                ".shared" | ".shared::cta" => Space::Shared,
                ".shared::cluster" => Space::Cluster,
                ".local" => Space::Local,
                ".param" | ".param::entry" => Space::Param,
                ".const" => Space::Const,
                _ => continue,
            };
        }
        Space::Generic
    }
}

struct Decoder<'m> {
    body: &'m Body,
    layout: &'m Layout,
    numerics: Numerics,
    /// Registers that a thread begins with, if the entry says.
    registers: Option<u32>,
    places: Vec<Src>,
    rows: u32,
    preds: u32,
    constants: HashMap<(Kind2, Constant), Src>,
    order: Vec<(Src, Constant)>,
    specials: HashMap<Special, Src>,
}

/// Width of a constant: one row or two.
type Kind2 = bool;

fn kind_of(ty: Type) -> Kind {
    match ty.bits {
        1 => Kind::Pred,
        8 => Kind::W8,
        16 => Kind::W16,
        32 => Kind::W32,
        _ => Kind::W64,
    }
}

impl Decoder<'_> {
    fn op(&mut self, form: &Form<'_>) -> Decoded<Op> {
        match form.row.group {
            Group::Integer => self.integer(form),
            Group::Float => self.float(form),
            Group::Compare => self.compare(form),
            Group::Convert => self.convert(form),
            Group::Move => self.moves(form),
            Group::Memory => self.memory(form),
            Group::Control => self.control(form),
            Group::Sync => self.sync(form),
            Group::Collective => self.collective(form),
            Group::Matrix => self.matrix(form),
            Group::Wgmma => self.wgmma(form),
            Group::Async => self.asynchronous(form),
            Group::Bulk => self.bulk(form),
            Group::Hint => self.hint(form),
        }
    }

    fn constant(&mut self, wide: bool, constant: Constant) -> Src {
        if let Some(&src) = self.constants.get(&(wide, constant)) {
            return src;
        }
        let src = Src {
            slot: self.rows,
            kind: if wide { Kind::W64 } else { Kind::W32 },
        };
        self.rows += if wide { 2 } else { 1 };
        self.constants.insert((wide, constant), src);
        self.order.push((src, constant));
        src
    }

    fn bits(&mut self, bits: u32, value: u64) -> Src {
        let value = if bits >= 64 {
            value
        } else {
            value & ((1 << bits) - 1)
        };
        self.constant(bits == 64, Constant::Bits(value))
    }

    fn place(&self, reg: RegId) -> Src {
        self.places[reg as usize]
    }

    /// A source of exactly so many bits.
    fn src(&mut self, operand: &Operand, bits: u32) -> Decoded<Src> {
        let src = self.src_any(operand, bits)?;
        let have = match operand {
            Operand::Reg(reg) => self.body.registers[*reg as usize].bits,
            Operand::Special(_) if src.kind == Kind::Pred => 1,
            Operand::Special(_) => 32,
            _ => bits,
        };
        if have != bits {
            Err(format!("an operand has {have} bits, {bits} are needed"))
        } else {
            Ok(src)
        }
    }

    /// A source of at least so many bits.
    fn src_relaxed(&mut self, operand: &Operand, bits: u32) -> Decoded<Src> {
        let src = self.src_any(operand, bits)?;
        if let Operand::Reg(reg) = operand
            && (self.body.registers[*reg as usize].bits < bits || src.kind == Kind::Pred)
        {
            return Err(format!("an operand has fewer than {bits} bits"));
        }
        Ok(src)
    }

    fn src_any(&mut self, operand: &Operand, bits: u32) -> Decoded<Src> {
        match operand {
            Operand::Reg(reg) => Ok(self.place(*reg)),
            Operand::Int(value) => Ok(self.bits(bits, *value)),
            Operand::Float32(value) => match bits {
                64 => Ok(self.bits(64, f64::from(f32::from_bits(*value)).to_bits())),
                _ => Ok(self.bits(bits.max(32), u64::from(*value))),
            },
            Operand::Float64(value) => match bits {
                64 => Ok(self.bits(64, *value)),
                32 => Ok(self.bits(32, u64::from((f64::from_bits(*value) as f32).to_bits()))),
                _ => Err("a floating-point number does not fit here".to_owned()),
            },
            Operand::Var(var, offset) => self.variable(*var, *offset, bits, false),
            Operand::Special(name) => self.special(name),
            Operand::Unknown(name) => Err(format!("`{name}` is not declared")),
            _ => Err("a register or a number was expected".to_owned()),
        }
    }

    /// A variable's address, in its own space or generic.
    fn variable(&mut self, var: VarRef, offset: u64, bits: u32, generic: bool) -> Decoded<Src> {
        if bits < 32 {
            return Err("an address does not fit here".to_owned());
        }
        let wide = bits == 64;
        Ok(match self.layout.find(var) {
            Placement::Device(n) => self.constant(wide, Constant::Variable(n, offset)),
            Placement::At(space, at) => {
                let window = if generic { window(space) } else { 0 };
                let address = window.wrapping_add(at).wrapping_add(offset);
                match space {
                    Space::Shared => self.constant(wide, Constant::Shared(address)),
                    _ => self.bits(bits, address),
                }
            }
        })
    }

    fn special(&mut self, name: &str) -> Decoded<Src> {
        let axis = |n: usize| name.as_bytes().get(n).map_or(9, |c| c.wrapping_sub(b'x'));
        let special = match name {
            "%tid.x" | "%tid.y" | "%tid.z" => Special::Tid(axis(5)),
            "%ntid.x" | "%ntid.y" | "%ntid.z" => Special::Ntid(axis(6)),
            "%ctaid.x" | "%ctaid.y" | "%ctaid.z" => Special::Ctaid(axis(7)),
            "%nctaid.x" | "%nctaid.y" | "%nctaid.z" => Special::Nctaid(axis(8)),
            "%laneid" => Special::LaneId,
            "%warpid" => Special::WarpId,
            "%nwarpid" => Special::NWarpId,
            "%lanemask_eq" => Special::LaneMaskEq,
            "%lanemask_le" => Special::LaneMaskLe,
            "%lanemask_lt" => Special::LaneMaskLt,
            "%lanemask_ge" => Special::LaneMaskGe,
            "%lanemask_gt" => Special::LaneMaskGt,
            "%smid" => Special::SmId,
            "%nsmid" => Special::NSmId,
            "%gridid" => Special::GridId,
            "%dynamic_smem_size" => Special::DynamicShared,
            "%total_smem_size" => Special::TotalShared,
            "%clusterid.x" | "%clusterid.y" | "%clusterid.z" => Special::ClusterId(axis(11)),
            "%nclusterid.x" | "%nclusterid.y" | "%nclusterid.z" => Special::NClusterId(axis(12)),
            "%cluster_ctaid.x" | "%cluster_ctaid.y" | "%cluster_ctaid.z" => {
                Special::ClusterCtaid(axis(15))
            }
            "%cluster_nctaid.x" | "%cluster_nctaid.y" | "%cluster_nctaid.z" => {
                Special::ClusterNctaid(axis(16))
            }
            "%cluster_ctarank" => Special::ClusterCtaRank,
            "%cluster_nctarank" => Special::ClusterNctaRank,
            "%is_explicit_cluster" => Special::IsExplicitCluster,
            _ => return Err(format!("unknown register `{name}`")),
        };
        if let Some(&src) = self.specials.get(&special) {
            return Ok(src);
        }
        let (next, kind) = match special {
            Special::IsExplicitCluster => (&mut self.preds, Kind::Pred),
            _ => (&mut self.rows, Kind::W32),
        };
        let src = Src { slot: *next, kind };
        *next += 1;
        self.specials.insert(special, src);
        Ok(src)
    }

    /// A destination of exactly so many bits.
    fn dst(&self, operand: &Operand, bits: u32) -> Decoded<Src> {
        let src = self.dst_relaxed(operand, bits)?;
        let Operand::Reg(reg) = operand else {
            return Err("a register was expected".to_owned());
        };
        let have = self.body.registers[*reg as usize].bits;
        if have != bits {
            Err(format!(
                "the destination has {have} bits, {bits} are needed"
            ))
        } else {
            Ok(src)
        }
    }

    /// A destination of at least so many bits.
    fn dst_relaxed(&self, operand: &Operand, bits: u32) -> Decoded<Src> {
        match operand {
            Operand::Reg(reg) if self.body.registers[*reg as usize].bits >= bits => {
                Ok(self.place(*reg))
            }
            Operand::Reg(_) => Err(format!("the destination has fewer than {bits} bits")),
            _ => Err("a register was expected".to_owned()),
        }
    }

    /// A destination or `_`.
    fn dst_or_sink(&self, operand: &Operand, bits: u32) -> Decoded<Dst> {
        if matches!(operand, Operand::Sink) {
            Ok(None)
        } else {
            self.dst(operand, bits).map(Some)
        }
    }

    /// A predicate destination or `_`.
    fn pred_dst(&self, operand: &Operand) -> Decoded<Option<u32>> {
        match operand {
            Operand::Sink => Ok(None),
            Operand::Reg(reg) if self.body.registers[*reg as usize].bits == 1 => {
                Ok(Some(self.place(*reg).slot))
            }
            _ => Err("a predicate register was expected".to_owned()),
        }
    }

    fn pred_src(&mut self, operand: &Operand) -> Decoded<PredSrc> {
        match operand {
            Operand::Special(name) => match self.special(name)? {
                Src {
                    slot,
                    kind: Kind::Pred,
                } => Ok(PredSrc {
                    index: slot,
                    flip: 0,
                }),
                _ => Err("a predicate register was expected".to_owned()),
            },
            Operand::Reg(reg) | Operand::NotReg(reg)
                if self.body.registers[*reg as usize].bits == 1 =>
            {
                let flip = if matches!(operand, Operand::NotReg(_)) {
                    u32::MAX
                } else {
                    0
                };
                Ok(PredSrc {
                    index: self.place(*reg).slot,
                    flip,
                })
            }
            Operand::Int(value) => Ok(PredSrc {
                index: 0,
                flip: if *value != 0 { 0 } else { u32::MAX },
            }),
            _ => Err("a predicate register was expected".to_owned()),
        }
    }

    /// `d|p`: the first part and the second, if there is one.
    fn pair<'o>(&self, operand: &'o Operand) -> (&'o Operand, Option<&'o Operand>) {
        match operand {
            Operand::Pair(first, second) => (first, Some(second)),
            other => (other, None),
        }
    }

    /// An immediate number.
    fn immediate(&self, operand: &Operand) -> Decoded<u64> {
        match operand {
            Operand::Int(value) => Ok(*value),
            _ => Err("a number was expected".to_owned()),
        }
    }

    fn address(&mut self, operand: &Operand, space: Space) -> Decoded<Address> {
        let Operand::Address(base, offset) = operand else {
            return Err("an address in brackets was expected".to_owned());
        };
        self.based(base, *offset, space)
    }

    fn based(&mut self, base: &Base, offset: i64, space: Space) -> Decoded<Address> {
        let generic = space == Space::Generic;
        let base = match base {
            Base::None => self.bits(64, 0),
            Base::Reg(reg) => match self.place(*reg) {
                src @ Src {
                    kind: Kind::W32 | Kind::W64,
                    ..
                } => src,
                _ => return Err("an address has 32 or 64 bits".to_owned()),
            },
            Base::Var(var) => {
                let wide = |of| {
                    if of == Space::Cluster {
                        Space::Shared
                    } else {
                        of
                    }
                };
                if let Placement::At(of, _) = self.layout.find(*var)
                    && !generic
                    && of != wide(space)
                {
                    return Err(format!(
                        "the variable is in {of} memory, the access is to {space} memory"
                    ));
                }
                self.variable(*var, 0, 64, generic)?
            }
        };
        Ok(Address { base, offset })
    }

    /// An operation on 32-bit rows.
    fn narrow(&mut self, form: &Form<'_>, bits: u32, f: NarrowFn) -> Decoded<Op> {
        let d = self.dst(&form.operands[0], bits)?.slot;
        // Operands that there are not are a constant, which is never poison.
        let mut abc = [self.bits(32, 0).slot; 3];
        for (slot, operand) in abc.iter_mut().zip(&form.operands[1..]) {
            *slot = self.src(operand, bits)?.slot;
        }
        let [a, b, c] = abc;
        Ok(Op::Narrow { f, d, a, b, c })
    }

    /// An operation on values of any widths: of the destination, then of the sources.
    fn wide(&mut self, form: &Form<'_>, widths: &[u32], f: WideFn) -> Decoded<Op> {
        let d = self.dst(&form.operands[0], widths[0])?;
        let mut abc = [self.bits(32, 0); 3];
        for (n, operand) in form.operands[1..].iter().take(3).enumerate() {
            abc[n] = self.src(operand, widths[n + 1])?;
        }
        let [a, b, c] = abc;
        Ok(Op::Wide { f, d, a, b, c })
    }
}

/// Generic address of address 0 of a space.
fn window(space: Space) -> u64 {
    match space {
        Space::Shared | Space::Cluster => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        _ => 0,
    }
}

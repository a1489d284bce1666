//! The grammar of an entry's body: scopes, registers, labels and instructions.

use std::collections::HashMap;

use super::lexer::Token;
use super::parser::{Parser, Result};
use super::tree::*;
use crate::error::ParseError;

/// Deepest nesting of `{ }` scopes.
const MAX_DEPTH: usize = 64;
/// Most parts of one vector operand or tensor address; wgmma has 128.
const MAX_PARTS: usize = 256;

/// A `{ }` scope: what its names mean.
#[derive(Default)]
struct Scope<'t> {
    registers: HashMap<&'t str, RegId>,
    /// `%r<10>`: prefix to type and count.
    ranges: HashMap<&'t str, (Type, u64)>,
    variables: HashMap<&'t str, usize>,
    labels: HashMap<&'t str, LabelId>,
}

/// An operand that may name a label further down.
struct Pending<'t> {
    scope: Vec<usize>,
    name: &'t str,
    at: PendingAt,
}

enum PendingAt {
    Operand { statement: usize, operand: usize },
    Table { label: LabelId, index: usize },
}

struct BodyParser<'t> {
    body: Body,
    params: HashMap<&'t str, usize>,
    scopes: Vec<Scope<'t>>,
    /// The open scopes, innermost last.
    open: Vec<usize>,
    pending: Vec<Pending<'t>>,
    source: Option<Source>,
}

impl<'t> Parser<'t> {
    pub(super) fn body(&mut self, params: HashMap<&'t str, usize>) -> Result<Body> {
        let mut b = BodyParser {
            body: Body::default(),
            params,
            scopes: vec![Scope::default()],
            open: vec![0],
            pending: Vec::new(),
            source: None,
        };
        loop {
            match self.current.token {
                Token::Punct(b'}') => {
                    self.advance()?;
                    b.open.pop();
                    if b.open.is_empty() {
                        break;
                    }
                }
                Token::Punct(b'{') => {
                    self.advance()?;
                    if b.open.len() >= MAX_DEPTH {
                        return Err(self.error("scopes are nested too deeply"));
                    }
                    b.open.push(b.scopes.len());
                    b.scopes.push(Scope::default());
                }
                Token::Punct(b';') => {
                    self.advance()?;
                }
                Token::Directive(".reg") => self.registers(&mut b)?,
                Token::Directive(".shared" | ".local" | ".global" | ".const") => {
                    let mut found = Vec::new();
                    self.variables(false, &mut found)?;
                    for (name, variable) in found {
                        let id = b.body.variables.len();
                        b.body.variables.push(variable);
                        b.innermost().variables.insert(name, id);
                    }
                }
                Token::Directive(".loc") => {
                    let mut source = self.loc()?;
                    if let (Some(new), Some(old)) = (&mut source, b.source) {
                        let other = old.file != new.file;
                        new.after = if other {
                            Some((old.file, old.line))
                        } else {
                            old.after
                        };
                    }
                    // Line 0 is code of no line: it goes on with the last.
                    b.source = source.or(b.source);
                }
                Token::Directive(".file") => self.file()?,
                Token::Directive(".pragma") => self.skip_statement()?,
                Token::Directive(other) => {
                    return Err(self.error(format!("unknown directive `{other}`")));
                }
                Token::Word(_) | Token::Punct(b'@') => self.statement(&mut b)?,
                _ => return Err(self.expected("an instruction")),
            }
        }
        b.resolve_labels();
        Ok(b.body)
    }

    fn registers(&mut self, b: &mut BodyParser<'t>) -> Result<()> {
        self.advance()?;
        let Token::Directive(ty) = self.current.token else {
            return Err(self.expected("a type"));
        };
        let ty = Type::named(&ty[1..]).ok_or_else(|| self.expected("a type"))?;
        self.advance()?;
        loop {
            let name = self.word("a register's name")?;
            if self.eat(b'<')? {
                let count = self.int("a number of registers")?;
                self.expect(b'>')?;
                b.innermost().ranges.insert(name, (ty, count));
            } else {
                let id = b.new_register(ty);
                b.innermost().registers.insert(name, id);
            }
            if !self.eat(b',')? {
                break;
            }
        }
        self.expect(b';')
    }

    /// A label or an instruction.
    fn statement(&mut self, b: &mut BodyParser<'t>) -> Result<()> {
        let (start, line, column) = (
            self.current.range.start,
            self.current.line,
            self.current.column,
        );
        let mut guard = None;
        if self.eat(b'@')? {
            let negated = self.eat(b'!')?;
            let name = self.word("a predicate register")?;
            let reg = b.register(name);
            let reg = reg.filter(|&r| b.body.registers[r as usize].bits == 1);
            let reg =
                reg.ok_or_else(|| self.error(format!("`{name}` is not a predicate register")))?;
            guard = Some((reg, negated));
        }
        let opcode = self.current.range.clone();
        let word = self.word("an instruction")?;
        if guard.is_none() && self.eat(b':')? {
            let target = b.body.statements.len();
            if b.innermost().labels.contains_key(word) {
                return Err(self.error(format!("the label `{word}` is defined twice")));
            }
            let id = b.body.labels.len() as LabelId;
            b.body.labels.push(Label {
                name: word.to_owned(),
                target: Some(target),
                line,
            });
            b.innermost().labels.insert(word, id);
            if let Token::Directive(
                directive @ (".branchtargets" | ".calltargets" | ".callprototype"),
            ) = self.current.token
            {
                self.advance()?;
                if directive != ".branchtargets" {
                    return self.skip_statement();
                }
                let mut list = Vec::new();
                loop {
                    let name = self.word("a label")?;
                    let at = PendingAt::Table {
                        label: id,
                        index: list.len(),
                    };
                    b.pending.push(Pending {
                        scope: b.open.clone(),
                        name,
                        at,
                    });
                    list.push(LabelId::MAX);
                    if !self.eat(b',')? {
                        break;
                    }
                }
                self.expect(b';')?;
                b.body.tables.insert(id, list);
            }
            return Ok(());
        }
        let mut operands = Vec::new();
        let with_text = |mut e: ParseError| {
            if e.instruction.is_empty() {
                let rest = &self.text[start..];
                let end = rest.find([';', '\n']).map_or(rest.len(), |n| n + 1);
                e.instruction = rest[..end].trim().chars().take(200).collect();
            }
            e
        };
        let parsed = {
            let mut parse = || -> Result<()> {
                if self.is(b';') {
                    return Ok(());
                }
                loop {
                    let operand = self.operand(b, Some(operands.len()))?;
                    operands.push(operand);
                    if !self.eat(b',')? {
                        break;
                    }
                }
                if self.is(b';') {
                    Ok(())
                } else {
                    Err(self.expected("`,` or `;`"))
                }
            };
            parse()
        };
        if let Err(e) = parsed {
            return Err(with_text(e));
        }
        self.advance()?;
        let range = start..self.last_end;
        b.body.statements.push(Statement {
            guard,
            opcode,
            operands,
            range,
            line,
            column,
            source: b.source,
        });
        Ok(())
    }

    /// An operand; `place` is its number if it stands directly in the instruction.
    fn operand(&mut self, b: &mut BodyParser<'t>, place: Option<usize>) -> Result<Operand> {
        let first = match self.current.token {
            Token::Punct(b'[') => {
                self.advance()?;
                let (base, offset) = self.address(b)?;
                if self.eat(b']')? {
                    return Ok(Operand::Address(base, offset));
                }
                let mut parts = Vec::new();
                while self.eat(b',')? {
                    if parts.len() >= MAX_PARTS {
                        return Err(self.error("the address has too many parts"));
                    }
                    let part = if self.is(b'{') {
                        self.vector(b)?
                    } else {
                        self.simple(b, None)?
                    };
                    parts.push(part);
                }
                self.expect(b']')?;
                return Ok(Operand::Tensor(base, offset, parts));
            }
            Token::Punct(b'{') => return self.vector(b),
            // A parenthesised list: the arguments of a call.
            Token::Punct(b'(') => {
                self.advance()?;
                let mut parts = Vec::new();
                while !self.eat(b')')? {
                    if parts.len() >= MAX_PARTS {
                        return Err(self.error("the list has too many parts"));
                    }
                    parts.push(self.simple(b, None)?);
                    if !self.is(b')') {
                        self.expect(b',')?;
                    }
                }
                return Ok(Operand::Vector(parts));
            }
            _ => self.simple(b, place)?,
        };
        if self.eat(b'|')? {
            let second = self.simple(b, None)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn vector(&mut self, b: &mut BodyParser<'t>) -> Result<Operand> {
        self.expect(b'{')?;
        let mut parts = Vec::new();
        while !self.eat(b'}')? {
            if parts.len() >= MAX_PARTS {
                return Err(self.error("the vector has too many parts"));
            }
            parts.push(self.simple(b, None)?);
            if !self.is(b'}') {
                self.expect(b',')?;
            }
        }
        Ok(Operand::Vector(parts))
    }

    fn address(&mut self, b: &mut BodyParser<'t>) -> Result<(Base, i64)> {
        let mut offset = 0i64;
        let base = match self.current.token {
            Token::Word(name) => {
                self.advance()?;
                if let Some(reg) = b.register(name) {
                    Base::Reg(reg)
                } else if let Some(var) = self.variable(b, name) {
                    Base::Var(var)
                } else {
                    return Err(self.error(format!("`{name}` is not declared")));
                }
            }
            Token::Int(v) => {
                self.advance()?;
                offset = v as i64;
                Base::None
            }
            _ => return Err(self.expected("an address")),
        };
        while self.is(b'+') || self.is(b'-') {
            let mut negative = self.is(b'-');
            self.advance()?;
            if self.eat(b'-')? {
                negative = !negative;
            }
            let value = self.int("an offset")? as i64;
            offset = offset.wrapping_add(if negative {
                value.wrapping_neg()
            } else {
                value
            });
        }
        Ok((base, offset))
    }

    fn variable(&self, b: &BodyParser<'t>, name: &str) -> Option<VarRef> {
        for &scope in b.open.iter().rev() {
            if let Some(&id) = b.scopes[scope].variables.get(name) {
                return Some(VarRef::Body(id));
            }
        }
        if let Some(&id) = b.params.get(name) {
            return Some(VarRef::Param(id));
        }
        self.globals.get(name).map(|&id| VarRef::Module(id))
    }

    /// A register, number, symbol or label.
    fn simple(&mut self, b: &mut BodyParser<'t>, place: Option<usize>) -> Result<Operand> {
        let operand = match self.current.token {
            Token::Punct(b'!') => {
                self.advance()?;
                let name = self.word("a predicate register")?;
                let reg = b
                    .register(name)
                    .ok_or_else(|| self.error(format!("`{name}` is not declared")))?;
                return Ok(Operand::NotReg(reg));
            }
            Token::Punct(sign @ (b'-' | b'~' | b'+')) => {
                self.advance()?;
                match (self.current.token, sign) {
                    (Token::Int(v), b'-') => Operand::Int(v.wrapping_neg()),
                    (Token::Int(v), b'~') => Operand::Int(!v),
                    (Token::Int(v), _) => Operand::Int(v),
                    (Token::Float32(v), b'-') => Operand::Float32(v ^ 1 << 31),
                    (Token::Float64(v), b'-') => Operand::Float64(v ^ 1 << 63),
                    _ => return Err(self.expected("a number")),
                }
            }
            Token::Int(v) => Operand::Int(v),
            Token::Float32(v) => Operand::Float32(v),
            Token::Float64(v) => Operand::Float64(v),
            Token::Word("_") => Operand::Sink,
            Token::Word("WARP_SZ") => Operand::Int(32),
            Token::Word(name) => {
                self.advance()?;
                if let Some(reg) = b.register(name) {
                    return Ok(Operand::Reg(reg));
                }
                if let Some(var) = self.variable(b, name) {
                    let offset = if self.eat(b'+')? {
                        self.int("an offset")?
                    } else {
                        0
                    };
                    return Ok(Operand::Var(var, offset));
                }
                if name.starts_with('%') {
                    return Ok(Operand::Special(name.to_owned()));
                }
                if let Some(operand) = place {
                    let at = PendingAt::Operand {
                        statement: b.body.statements.len(),
                        operand,
                    };
                    b.pending.push(Pending {
                        scope: b.open.clone(),
                        name,
                        at,
                    });
                }
                return Ok(Operand::Unknown(name.to_owned()));
            }
            _ => return Err(self.expected("an operand")),
        };
        self.advance()?;
        Ok(operand)
    }
}

impl<'t> BodyParser<'t> {
    fn innermost(&mut self) -> &mut Scope<'t> {
        let at = self.open.last().copied().unwrap_or(0);
        &mut self.scopes[at]
    }

    fn new_register(&mut self, ty: Type) -> RegId {
        self.body.registers.push(ty);
        self.body.registers.len() as RegId - 1
    }

    /// The register that a name means here. Registers of ranges get their number when they are first named.
    fn register(&mut self, name: &'t str) -> Option<RegId> {
        for at in (0..self.open.len()).rev() {
            let scope = self.open[at];
            if let Some(&reg) = self.scopes[scope].registers.get(name) {
                return Some(reg);
            }
            let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
            if prefix.len() < name.len()
                && let Some(&(ty, count)) = self.scopes[scope].ranges.get(prefix)
                && name[prefix.len()..].parse::<u64>().is_ok_and(|n| n < count)
            {
                let id = self.new_register(ty);
                self.scopes[scope].registers.insert(name, id);
                return Some(id);
            }
        }
        None
    }

    fn resolve_labels(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            let label = pending
                .scope
                .iter()
                .rev()
                .find_map(|&scope| self.scopes[scope].labels.get(pending.name).copied());
            let Some(label) = label else { continue };
            match pending.at {
                PendingAt::Operand { statement, operand } => {
                    if let Some(s) = self.body.statements.get_mut(statement)
                        && let Some(o) = s.operands.get_mut(operand)
                    {
                        *o = Operand::Label(label);
                    }
                }
                PendingAt::Table {
                    label: table,
                    index,
                } => {
                    if let Some(list) = self.body.tables.get_mut(&table) {
                        list[index] = label;
                    }
                }
            }
        }
    }
}

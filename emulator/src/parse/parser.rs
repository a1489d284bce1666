//! The grammar.

use std::collections::HashMap;

use super::lexer::{Lexer, Spanned, Token};
use super::tree::*;
use crate::error::ParseError;

type Result<T> = std::result::Result<T, ParseError>;

/// Deepest nesting of `{ }` scopes.
const MAX_DEPTH: usize = 64;
/// Most parts of one vector operand or tensor address; wgmma has 128.
const MAX_PARTS: usize = 256;

/// Parses a module.
pub(crate) fn parse(text: &str) -> Result<Tree> {
    let mut lexer = Lexer::new(text);
    let current = lexer.next()?;
    let mut parser = Parser {
        text,
        lexer,
        current,
        last_end: 0,
        tree: Tree::default(),
        globals: HashMap::new(),
    };
    parser.module()?;
    Ok(parser.tree)
}

struct Parser<'t> {
    text: &'t str,
    lexer: Lexer<'t>,
    current: Spanned<'t>,
    /// End of the token before the current one.
    last_end: usize,
    tree: Tree,
    globals: HashMap<&'t str, usize>,
}

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
}

impl<'t> Parser<'t> {
    fn advance(&mut self) -> Result<Spanned<'t>> {
        let next = self.lexer.next()?;
        self.last_end = self.current.range.end;
        Ok(std::mem::replace(&mut self.current, next))
    }

    fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError {
            line: self.current.line,
            column: self.current.column,
            message: message.into(),
            instruction: String::new(),
        }
    }

    fn expected(&self, what: &str) -> ParseError {
        let found = match self.current.token {
            Token::End => "the end of the text".to_owned(),
            _ => format!(
                "`{}`",
                self.text[self.current.range.clone()]
                    .chars()
                    .take(40)
                    .collect::<String>()
            ),
        };
        self.error(format!("expected {what}, found {found}"))
    }

    fn is(&self, punct: u8) -> bool {
        self.current.token == Token::Punct(punct)
    }

    fn eat(&mut self, punct: u8) -> Result<bool> {
        let found = self.is(punct);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn expect(&mut self, punct: u8) -> Result<()> {
        if self.eat(punct)? {
            Ok(())
        } else {
            Err(self.expected(&format!("`{}`", punct as char)))
        }
    }

    fn word(&mut self, what: &str) -> Result<&'t str> {
        let Token::Word(word) = self.current.token else {
            return Err(self.expected(what));
        };
        self.advance()?;
        Ok(word)
    }

    fn int(&mut self, what: &str) -> Result<u64> {
        let Token::Int(value) = self.current.token else {
            return Err(self.expected(what));
        };
        self.advance()?;
        Ok(value)
    }

    /// Skips a balanced `{ }` block; the current token is its brace.
    fn skip_block(&mut self) -> Result<()> {
        let mut depth = 0u32;
        loop {
            match self.current.token {
                Token::Punct(b'{') => depth += 1,
                Token::Punct(b'}') => depth -= 1,
                Token::End => return Err(self.expected("`}`")),
                _ => {}
            }
            self.advance()?;
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// Skips the tokens of a directive that stand on its line.
    fn skip_line(&mut self) -> Result<()> {
        let line = self.current.line;
        while self.current.line == line && self.current.token != Token::End {
            self.advance()?;
        }
        Ok(())
    }

    fn module(&mut self) -> Result<()> {
        loop {
            match self.current.token {
                Token::End => return Ok(()),
                Token::Punct(b';') => {
                    self.advance()?;
                }
                Token::Directive(".target") => {
                    self.advance()?;
                    self.tree.target = self.word("a target")?.to_owned();
                    while self.eat(b',')? {
                        self.word("a target option")?;
                    }
                }
                Token::Directive(".address_size") => {
                    self.advance()?;
                    if self.int("64")? != 64 {
                        return Err(self.error("only `.address_size 64` is supported"));
                    }
                }
                Token::Directive(".version" | ".file" | ".loc") => self.skip_line()?,
                Token::Directive(".pragma" | ".alias") => self.skip_statement()?,
                Token::Directive(".section") => {
                    while !self.is(b'{') {
                        if self.current.token == Token::End {
                            return Err(self.expected("`{`"));
                        }
                        self.advance()?;
                    }
                    self.skip_block()?;
                }
                Token::Directive(_) => self.declaration()?,
                _ => return Err(self.expected("a directive")),
            }
        }
    }

    fn skip_statement(&mut self) -> Result<()> {
        while !self.is(b';') {
            if self.current.token == Token::End {
                return Err(self.expected("`;`"));
            }
            self.advance()?;
        }
        self.advance()?;
        Ok(())
    }

    /// A variable, function or entry of the module.
    fn declaration(&mut self) -> Result<()> {
        let mut external = false;
        loop {
            let Token::Directive(directive) = self.current.token else {
                return Err(self.expected("a declaration"));
            };
            match directive {
                ".visible" | ".weak" | ".common" => {
                    self.advance()?;
                }
                ".extern" => {
                    external = true;
                    self.advance()?;
                }
                ".entry" => {
                    self.advance()?;
                    return self.entry();
                }
                ".func" => {
                    // Functions are skipped; a call of one is an error when it is decoded.
                    self.advance()?;
                    while !self.is(b';') && !self.is(b'{') {
                        if self.current.token == Token::End {
                            return Err(self.expected("a function body or `;`"));
                        }
                        self.advance()?;
                    }
                    return if self.is(b'{') {
                        self.skip_block()
                    } else {
                        self.expect(b';')
                    };
                }
                ".global" | ".const" | ".shared" => {
                    let mut found = Vec::new();
                    self.variables(external, &mut found)?;
                    for (name, variable) in found {
                        if let Some(&at) = self.globals.get(name) {
                            // A definition after its declaration takes the declaration's place.
                            if !self.tree.variables[at].external {
                                return Err(self.error(format!("`{name}` is declared twice")));
                            }
                            self.tree.variables[at] = variable;
                        } else {
                            self.globals.insert(name, self.tree.variables.len());
                            self.tree.variables.push(variable);
                        }
                    }
                    return Ok(());
                }
                _ => return Err(self.error(format!("unknown directive `{directive}`"))),
            }
        }
    }

    /// `.shared .align 16 .b8 name[64] = {..}, ...;` from its space on.
    fn variables(&mut self, external: bool, found: &mut Vec<(&'t str, Variable)>) -> Result<()> {
        let Token::Directive(space) = self.advance()?.token else {
            return Err(self.expected("a state space"));
        };
        let space = match space {
            ".global" => VarSpace::Global,
            ".const" => VarSpace::Const,
            ".shared" => VarSpace::Shared,
            ".local" => VarSpace::Local,
            _ => VarSpace::Param,
        };
        let (ty, lanes, align) = self.type_of_variable()?;
        loop {
            let name = self.word("a variable's name")?;
            let mut variable = Variable {
                name: name.to_owned(),
                space,
                size: 0,
                align,
                external,
                init: Vec::new(),
            };
            let (count, open) = self.dimensions()?;
            let each = ty.bytes() * lanes;
            variable.size = each
                .checked_mul(count)
                .filter(|&size| size < 1 << 48)
                .ok_or_else(|| self.error("the variable is too large"))?;
            variable.external |= open;
            if self.eat(b'=')? {
                self.initialiser(ty, &mut variable.init, 0)?;
                let written: u64 = variable.init.iter().map(Init::bytes).sum();
                if open {
                    variable.size = written;
                    variable.external = external;
                }
                if written > variable.size {
                    return Err(
                        self.error(format!("the initialiser of `{name}` is longer than it"))
                    );
                }
            }
            found.push((name, variable));
            if !self.eat(b',')? {
                break;
            }
        }
        self.expect(b';')
    }

    /// `.align 16 .v2 .b8`: type, vector lanes, alignment.
    fn type_of_variable(&mut self) -> Result<(Type, u64, u64)> {
        let (mut ty, mut lanes, mut align) = (None, 1, None);
        while let Token::Directive(directive) = self.current.token {
            self.advance()?;
            match directive {
                ".align" => {
                    let value = self.int("an alignment")?;
                    if !value.is_power_of_two() || value > 1 << 20 {
                        return Err(self.error(format!("{value} is not an alignment")));
                    }
                    align = Some(value);
                }
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                // `.param .u64 .ptr .global .align 1 name`: the alignment of what is pointed to.
                ".ptr" => {
                    while let Token::Directive(word) = self.current.token {
                        self.advance()?;
                        if word == ".align" {
                            self.int("an alignment")?;
                        }
                    }
                }
                ".attribute" | ".managed" => {
                    return Err(self.error(format!("`{directive}` is not supported")));
                }
                _ => {
                    let found = Type::named(&directive[1..]).filter(|t| t.bits > 1);
                    ty = Some(
                        found.ok_or_else(|| self.error(format!("`{directive}` is not a type")))?,
                    );
                }
            }
        }
        let ty = ty.ok_or_else(|| self.expected("a type"))?;
        Ok((ty, lanes, align.unwrap_or(ty.bytes() * lanes)))
    }

    /// `[4][8]`: elements, and whether the first dimension is open.
    fn dimensions(&mut self) -> Result<(u64, bool)> {
        let (mut count, mut open) = (1u64, false);
        while self.eat(b'[')? {
            if self.eat(b']')? {
                open = true;
                count = 0;
                continue;
            }
            let n = self.int("a dimension")?;
            count = count
                .checked_mul(n)
                .ok_or_else(|| self.error("the array is too large"))?;
            self.expect(b']')?;
        }
        Ok((count, open))
    }

    fn initialiser(&mut self, ty: Type, init: &mut Vec<Init>, depth: usize) -> Result<()> {
        if self.is(b'{') {
            if depth > 8 {
                return Err(self.error("the initialiser is nested too deeply"));
            }
            self.advance()?;
            while !self.eat(b'}')? {
                self.initialiser(ty, init, depth + 1)?;
                if !self.is(b'}') {
                    self.expect(b',')?;
                }
            }
            return Ok(());
        }
        let bytes = ty.bytes() as usize;
        let value = match self.current.token {
            Token::Word(word) => {
                self.advance()?;
                let generic = word == "generic";
                let name = if generic {
                    self.expect(b'(')?;
                    let name = self.word("a variable's name")?;
                    self.expect(b')')?;
                    name
                } else {
                    word
                };
                let offset = if self.eat(b'+')? {
                    self.int("an offset")?
                } else {
                    0
                };
                if bytes != 8 && bytes != 4 {
                    return Err(self.error("an address needs 4 or 8 bytes"));
                }
                init.push(Init::Address {
                    name: name.to_owned(),
                    offset,
                    bytes: bytes as u64,
                });
                return Ok(());
            }
            Token::Punct(b'-') => {
                self.advance()?;
                match self.current.token {
                    Token::Int(v) => v.wrapping_neg(),
                    Token::Float64(v) if ty.name == "f64" => v ^ 1 << 63,
                    Token::Float64(v) if ty.name == "f32" => {
                        u64::from((-f64::from_bits(v) as f32).to_bits())
                    }
                    _ => return Err(self.expected("a number")),
                }
            }
            Token::Int(v) => v,
            Token::Float32(v) => u64::from(v),
            Token::Float64(v) if ty.name == "f32" => {
                u64::from((f64::from_bits(v) as f32).to_bits())
            }
            Token::Float64(v) => v,
            _ => return Err(self.expected("an initial value")),
        };
        self.advance()?;
        let wide = u128::from(value).to_le_bytes();
        match init.last_mut() {
            Some(Init::Bytes(all)) => all.extend_from_slice(&wide[..bytes]),
            _ => init.push(Init::Bytes(wide[..bytes].to_vec())),
        }
        Ok(())
    }

    fn entry(&mut self) -> Result<()> {
        let name = self.word("the entry's name")?;
        let mut params = Vec::new();
        let mut names = HashMap::new();
        if self.eat(b'(')? {
            while !self.eat(b')')? {
                if self.current.token != Token::Directive(".param") {
                    return Err(self.expected("`.param`"));
                }
                self.advance()?;
                let (ty, lanes, align) = self.type_of_variable()?;
                let param = self.word("a parameter's name")?;
                let (count, open) = self.dimensions()?;
                if open {
                    return Err(self.error(format!("`{param}` has no size")));
                }
                let size = (ty.bytes() * lanes)
                    .checked_mul(count)
                    .filter(|&size| size <= 32764)
                    .ok_or_else(|| self.error(format!("`{param}` is larger than 32764 bytes")))?;
                names.insert(param, params.len());
                params.push(Variable {
                    name: param.to_owned(),
                    space: VarSpace::Param,
                    size,
                    align,
                    external: false,
                    init: Vec::new(),
                });
                if !self.is(b')') {
                    self.expect(b',')?;
                }
            }
        }
        let (mut maxntid, mut reqntid) = (None, None);
        while let Token::Directive(directive) = self.current.token {
            match directive {
                ".maxntid" | ".reqntid" => {
                    self.advance()?;
                    let mut sizes = [1; 3];
                    let mut at = 0;
                    loop {
                        let value = self.int("a number of threads")?;
                        *sizes
                            .get_mut(at)
                            .ok_or_else(|| self.error("more than three sizes"))? =
                            u32::try_from(value).unwrap_or(u32::MAX);
                        at += 1;
                        if !self.eat(b',')? {
                            break;
                        }
                    }
                    *(if directive == ".maxntid" {
                        &mut maxntid
                    } else {
                        &mut reqntid
                    }) = Some(sizes);
                }
                ".minnctapersm" | ".maxnctapersm" | ".maxnreg" | ".reqnctapercluster"
                | ".maxclusterrank" => {
                    self.advance()?;
                    self.int("a number")?;
                    while self.eat(b',')? {
                        self.int("a number")?;
                    }
                }
                ".noreturn" | ".explicitcluster" | ".blocksareclusters" => {
                    self.advance()?;
                }
                ".pragma" => self.skip_statement()?,
                _ => return Err(self.error(format!("unknown directive `{directive}`"))),
            }
        }
        if self.eat(b';')? {
            return Ok(());
        }
        self.expect(b'{')?;
        let body = self.body(names)?;
        if self.tree.entries.iter().any(|e| e.name == name) {
            return Err(self.error(format!("the entry `{name}` is defined twice")));
        }
        self.tree.entries.push(EntryTree {
            name: name.to_owned(),
            params,
            maxntid,
            reqntid,
            body,
        });
        Ok(())
    }

    fn body(&mut self, params: HashMap<&'t str, usize>) -> Result<Body> {
        let mut b = BodyParser {
            body: Body::default(),
            params,
            scopes: vec![Scope::default()],
            open: vec![0],
            pending: Vec::new(),
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
                Token::Directive(".loc" | ".file") => self.skip_line()?,
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
                return Ok(Operand::Tensor(base, parts));
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

impl Init {
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Init::Bytes(bytes) => bytes.len() as u64,
            Init::Address { bytes, .. } => *bytes,
        }
    }
}

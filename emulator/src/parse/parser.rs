//! The grammar of a module: directives and declarations.

use std::collections::{HashMap, HashSet};

use super::lexer::{Lexer, Spanned, Token};
use super::tree::*;
use crate::error::ParseError;

pub(super) type Result<T> = std::result::Result<T, ParseError>;

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
        entries: HashSet::new(),
    };
    parser.module()?;
    Ok(parser.tree)
}

pub(super) struct Parser<'t> {
    pub(super) text: &'t str,
    pub(super) lexer: Lexer<'t>,
    pub(super) current: Spanned<'t>,
    /// End of the token before the current one.
    pub(super) last_end: usize,
    pub(super) tree: Tree,
    pub(super) globals: HashMap<&'t str, usize>,
    /// Names of the entries so far.
    entries: HashSet<&'t str>,
}

impl<'t> Parser<'t> {
    pub(super) fn advance(&mut self) -> Result<Spanned<'t>> {
        let next = self.lexer.next()?;
        self.last_end = self.current.range.end;
        Ok(std::mem::replace(&mut self.current, next))
    }

    pub(super) fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError {
            line: self.current.line,
            column: self.current.column,
            message: message.into(),
            instruction: String::new(),
        }
    }

    pub(super) fn expected(&self, what: &str) -> ParseError {
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

    pub(super) fn is(&self, punct: u8) -> bool {
        self.current.token == Token::Punct(punct)
    }

    pub(super) fn eat(&mut self, punct: u8) -> Result<bool> {
        let found = self.is(punct);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    pub(super) fn expect(&mut self, punct: u8) -> Result<()> {
        if self.eat(punct)? {
            Ok(())
        } else {
            Err(self.expected(&format!("`{}`", punct as char)))
        }
    }

    pub(super) fn word(&mut self, what: &str) -> Result<&'t str> {
        let Token::Word(word) = self.current.token else {
            return Err(self.expected(what));
        };
        self.advance()?;
        Ok(word)
    }

    pub(super) fn int(&mut self, what: &str) -> Result<u64> {
        let Token::Int(value) = self.current.token else {
            return Err(self.expected(what));
        };
        self.advance()?;
        Ok(value)
    }

    /// Skips a balanced `{ }` block; the current token is its brace.
    pub(super) fn skip_block(&mut self) -> Result<()> {
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
    pub(super) fn skip_line(&mut self) -> Result<()> {
        self.skip_rest_of(self.current.line)
    }

    fn skip_rest_of(&mut self, line: u32) -> Result<()> {
        while self.current.line == line && self.current.token != Token::End {
            self.advance()?;
        }
        Ok(())
    }

    /// `.file 1 "name"`, perhaps with a time and a size.
    pub(super) fn file(&mut self) -> Result<()> {
        self.advance()?;
        if let Token::Int(number) = self.current.token {
            self.advance()?;
            if let (Token::Text(name), Ok(number)) = (self.current.token, u32::try_from(number)) {
                self.tree.files.insert(number, name.to_owned());
            }
        }
        self.skip_line()
    }

    /// `.loc file line column`, perhaps with the call that was inlined.
    pub(super) fn loc(&mut self) -> Result<Option<Source>> {
        let line = self.current.line;
        let mut numbers = Vec::new();
        self.advance()?;
        while self.current.line == line && numbers.len() < 6 {
            match self.current.token {
                Token::Int(n) => numbers.push(n as u32),
                Token::End => break,
                _ => {}
            }
            self.advance()?;
        }
        self.skip_rest_of(line)?;
        Ok(match numbers[..] {
            // Line 0 is code that comes from no line.
            [_, 0, ..] => None,
            [file, line, _, of, at, _] => Some(Source {
                file,
                line,
                inlined_at: Some((of, at)),
                after: None,
            }),
            [file, line, ..] => Some(Source {
                file,
                line,
                inlined_at: None,
                after: None,
            }),
            _ => None,
        })
    }

    pub(super) fn module(&mut self) -> Result<()> {
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
                Token::Directive(".file") => self.file()?,
                Token::Directive(".version" | ".loc") => self.skip_line()?,
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

    pub(super) fn skip_statement(&mut self) -> Result<()> {
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
    pub(super) fn declaration(&mut self) -> Result<()> {
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
    pub(super) fn variables(
        &mut self,
        external: bool,
        found: &mut Vec<(&'t str, Variable)>,
    ) -> Result<()> {
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
    pub(super) fn type_of_variable(&mut self) -> Result<(Type, u64, u64)> {
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
    pub(super) fn dimensions(&mut self) -> Result<(u64, bool)> {
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

    pub(super) fn initialiser(
        &mut self,
        ty: Type,
        init: &mut Vec<Init>,
        depth: usize,
    ) -> Result<()> {
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

    pub(super) fn entry(&mut self) -> Result<()> {
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
        let bounds = self.bounds()?;
        if self.eat(b';')? {
            return Ok(());
        }
        self.expect(b'{')?;
        let body = self.body(names)?;
        if !self.entries.insert(name) {
            return Err(self.error(format!("the entry `{name}` is defined twice")));
        }
        self.tree.entries.push(EntryTree {
            name: name.to_owned(),
            params,
            bounds,
            body,
        });
        Ok(())
    }

    /// The directives between an entry's parameters and its body.
    fn bounds(&mut self) -> Result<Bounds> {
        let mut bounds = Bounds::default();
        while let Token::Directive(directive) = self.current.token {
            if directive == ".pragma" {
                self.skip_statement()?;
                continue;
            }
            self.advance()?;
            match directive {
                ".maxntid" => bounds.maxntid = Some(self.sizes()?),
                ".reqntid" => bounds.reqntid = Some(self.sizes()?),
                ".reqnctapercluster" => bounds.reqnctapercluster = Some(self.sizes()?),
                ".minnctapersm" => bounds.minnctapersm = Some(self.size()?),
                ".maxnreg" => bounds.maxnreg = Some(self.size()?),
                ".maxclusterrank" => bounds.maxclusterrank = Some(self.size()?),
                ".maxnctapersm" => {
                    self.size()?;
                }
                ".explicitcluster" => bounds.explicitcluster = true,
                ".noreturn" => {}
                _ => return Err(self.error(format!("unknown directive `{directive}`"))),
            }
        }
        Ok(bounds)
    }

    fn size(&mut self) -> Result<u32> {
        let value = self.int("a number")?;
        Ok(u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// One to three numbers; those that are not there are 1.
    fn sizes(&mut self) -> Result<[u32; 3]> {
        let mut sizes = [1; 3];
        let mut at = 0;
        loop {
            let value = self.size()?;
            *sizes
                .get_mut(at)
                .ok_or_else(|| self.error("more than three sizes"))? = value;
            at += 1;
            if !self.eat(b',')? {
                return Ok(sizes);
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

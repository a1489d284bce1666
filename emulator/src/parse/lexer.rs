//! Tokens of PTX text.

use std::ops::Range;

use crate::error::ParseError;

/// A token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Token<'t> {
    /// A name, an opcode with its modifiers, a register with its component: `ld.global.v4.f32`, `%tid.x`.
    Word(&'t str),
    /// A directive, with its dot.
    Directive(&'t str),
    /// An integer without its sign.
    Int(u64),
    /// `0f3F800000`.
    Float32(u32),
    /// `0d3FF0000000000000` or `1.0`.
    Float64(u64),
    /// A string, without its quotes.
    Text(&'t str),
    /// Any other character.
    Punct(u8),
    /// The end.
    End,
}

pub(super) struct Lexer<'t> {
    text: &'t str,
    at: usize,
    line: u32,
    line_start: usize,
}

/// A token and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Spanned<'t> {
    pub(super) token: Token<'t>,
    pub(super) range: Range<usize>,
    pub(super) line: u32,
    pub(super) column: u32,
}

fn is_word_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%')
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$')
}

impl<'t> Lexer<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            at: 0,
            line: 1,
            line_start: 0,
        }
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.text
            .as_bytes()
            .get(self.at + ahead)
            .copied()
            .unwrap_or(0)
    }

    fn error(&self, message: String) -> ParseError {
        ParseError {
            line: self.line,
            column: (self.at - self.line_start) as u32 + 1,
            message,
            instruction: String::new(),
        }
    }

    fn skip_blank(&mut self) -> Result<(), ParseError> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.at += 1;
                    self.line += 1;
                    self.line_start = self.at;
                }
                (b' ' | b'\t' | b'\r' | 0x0b | 0x0c, _) => self.at += 1,
                (b'/', b'/') => self.skip_line(),
                (b'#', _) => self.skip_line(),
                (b'/', b'*') => {
                    let Some(len) = self.text.as_bytes()[self.at..]
                        .windows(2)
                        .skip(2)
                        .position(|w| w == b"*/")
                    else {
                        return Err(self.error("comment without end".to_owned()));
                    };
                    for _ in 0..len + 4 {
                        if self.peek(0) == b'\n' {
                            self.line += 1;
                            self.line_start = self.at + 1;
                        }
                        self.at += 1;
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    fn skip_line(&mut self) {
        while self.at < self.text.len() && self.peek(0) != b'\n' {
            self.at += 1;
        }
    }

    pub(super) fn next(&mut self) -> Result<Spanned<'t>, ParseError> {
        self.skip_blank()?;
        let (start, line, column) = (self.at, self.line, (self.at - self.line_start) as u32 + 1);
        let token = self.token()?;
        Ok(Spanned {
            token,
            range: start..self.at,
            line,
            column,
        })
    }

    fn token(&mut self) -> Result<Token<'t>, ParseError> {
        let start = self.at;
        if start >= self.text.len() {
            return Ok(Token::End);
        }
        let c = self.peek(0);
        if is_word_start(c) {
            self.at += 1;
            self.dotted();
            return Ok(Token::Word(&self.text[start..self.at]));
        }
        if c == b'.' && is_word_start(self.peek(1)) {
            self.at += 1;
            while is_word(self.peek(0)) {
                self.at += 1;
            }
            return Ok(Token::Directive(&self.text[start..self.at]));
        }
        if c.is_ascii_digit() {
            return self.number();
        }
        if c == b'"' {
            let Some(len) = self.text.as_bytes()[start + 1..]
                .iter()
                .position(|&c| c == b'"' || c == b'\n')
            else {
                return Err(self.error("string without end".to_owned()));
            };
            if self.text.as_bytes()[start + 1 + len] == b'\n' {
                return Err(self.error("string without end".to_owned()));
            }
            self.at = start + len + 2;
            return Ok(Token::Text(&self.text[start + 1..start + 1 + len]));
        }
        if !c.is_ascii_graphic() {
            return Err(self.error(format!("unexpected byte {c:#04x}")));
        }
        self.at += 1;
        Ok(Token::Punct(c))
    }

    /// The rest of a word: name characters, and `.part`s and `::part`s directly behind it.
    fn dotted(&mut self) {
        loop {
            while is_word(self.peek(0)) {
                self.at += 1;
            }
            let c = self.peek(1);
            if self.peek(0) == b'.' && (is_word_start(c) && c != b'%' || c.is_ascii_digit()) {
                self.at += 2;
            } else if self.peek(0) == b':' && c == b':' && is_word(self.peek(2)) {
                self.at += 3;
            } else {
                return;
            }
        }
    }

    fn number(&mut self) -> Result<Token<'t>, ParseError> {
        let start = self.at;
        while is_word(self.peek(0)) {
            self.at += 1;
        }
        let mut decimal = false;
        if self.peek(0) == b'.'
            && self.text[start..self.at]
                .bytes()
                .all(|c| c.is_ascii_digit())
        {
            decimal = true;
            self.at += 1;
            while is_word(self.peek(0)) {
                self.at += 1;
            }
        }
        let word = &self.text[start..self.at];
        let exponent =
            |w: &str| !w.starts_with("0x") && !w.starts_with("0X") && w.ends_with(['e', 'E']);
        if matches!(self.peek(0), b'+' | b'-')
            && self.peek(1).is_ascii_digit()
            && decimal
            && exponent(word)
        {
            self.at += 1;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
        }
        let word = &self.text[start..self.at];
        let bad = || self.error(format!("`{word}` is not a number"));
        let digits = |s: &str, radix| {
            let s = s.strip_suffix(['U', 'u']).unwrap_or(s);
            (!s.starts_with('+'))
                .then(|| u64::from_str_radix(s, radix).ok())
                .flatten()
        };
        if decimal {
            return word
                .parse::<f64>()
                .map(|v| Token::Float64(v.to_bits()))
                .map_err(|_| bad());
        }
        let radix = |n: usize, radix| digits(&word[n..], radix).map(Token::Int).ok_or_else(bad);
        match word.as_bytes() {
            [b'0', b'f' | b'F', rest @ ..] if rest.len() == 8 => {
                u32::from_str_radix(&word[2..], 16)
                    .map(Token::Float32)
                    .map_err(|_| bad())
            }
            [b'0', b'd' | b'D', rest @ ..] if rest.len() == 16 => {
                u64::from_str_radix(&word[2..], 16)
                    .map(Token::Float64)
                    .map_err(|_| bad())
            }
            [b'0', b'x' | b'X', ..] => radix(2, 16),
            [b'0', b'b' | b'B', ..] => radix(2, 2),
            [b'0', c, ..] if c.is_ascii_digit() => radix(1, 8),
            _ => radix(0, 10),
        }
    }
}

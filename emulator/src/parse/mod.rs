//! From text to a module: tokens, then declarations and instructions with names resolved. What an instruction means is
//! decided later, in `decode`, when its entry is first launched.

mod body;
mod lexer;
mod parser;
pub(crate) mod tree;

pub(crate) use parser::parse;

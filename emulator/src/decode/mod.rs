//! Stub.
use crate::{error::ParseError, module::Module, program::Program};
pub(crate) fn decode(_m: &Module, _at: usize) -> Result<Program, ParseError> { Ok(Program{static_shared:0, dynamic_align:1}) }

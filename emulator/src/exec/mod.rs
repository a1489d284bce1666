//! Stub.
use crate::device::*; use crate::memory::DeviceMemory; use crate::module::Module; use crate::program::Program; use crate::error::Fault;
pub(crate) struct Machine;
impl Machine { pub(crate) fn new(_p:&Program,_m:&Module,_d:&DeviceMemory,_v:&[u64],_l:&Launch<'_>,_o:&Options)->Self{Machine} }
pub(crate) struct Block;
impl Block { pub(crate) fn new(_m:&Machine)->Self{Block} pub(crate) fn run(&mut self,_i:[u32;3],_n:u64)->Result<Stats,Fault>{Ok(Stats::default())} }

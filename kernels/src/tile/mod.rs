//! Tiles: in registers, in shared memory, and the copies that fill them.

pub mod gather;
pub mod load;
pub mod operand;
pub mod reg;
pub mod smem;

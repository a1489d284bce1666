//! Front door for cudarc.

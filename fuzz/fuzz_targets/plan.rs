//! See `flashtile_tests::fuzzing::plan`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flashtile_tests::fuzzing::plan(data));

//! See `flashtile_tests::fuzzing::ptx_parse`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flashtile_tests::fuzzing::ptx_parse(data));

//! See `flashtile_tests::fuzzing::emulator`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flashtile_tests::fuzzing::emulator(data));

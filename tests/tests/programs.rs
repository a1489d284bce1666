//! Random programs on the emulator against plain Rust: what `fuzz/` does with coverage, on random bytes.

use arbitrary::Unstructured;
use flashtile_tests::{data::Random, fuzzing, program::Program};

fn bytes(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.bits() as u8).collect()
}

#[test]
fn random_programs() {
    let mut random = Random::new(7);
    for _ in 0..1000 {
        let len = 100 + random.below(900);
        fuzzing::emulator(&bytes(&mut random, len));
    }
}

#[test]
fn every_instruction() {
    let mut random = Random::new(8);
    for _ in 0..2 {
        let bytes = bytes(&mut random, 2 << 20);
        let programs = Program::of_each_form(&mut Unstructured::new(&bytes)).unwrap();
        assert!(programs.len() > 1000, "{}", programs.len());
        programs.iter().for_each(fuzzing::check);
    }
}

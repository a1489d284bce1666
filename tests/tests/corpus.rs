//! The fuzzers' committed corpus, replayed without libFuzzer, and their dictionaries.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use flashtile_emulator::isa::{ROWS, SETS};
use flashtile_tests::fuzzing;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

/// Runs a target on every file of its corpus.
fn replay(name: &str, target: impl Fn(&[u8])) {
    let files = fs::read_dir(folder().join("corpus").join(name)).unwrap();
    let mut count = 0;
    for file in files {
        let path = file.unwrap().path();
        // So that a failure names its input.
        println!("{}", path.display());
        target(&fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 10, "{count} files");
}

#[test]
fn ptx_parse() {
    replay("ptx_parse", fuzzing::ptx_parse);
}

#[test]
fn safetensors() {
    replay("safetensors", fuzzing::safetensors);
}

#[test]
fn plan() {
    replay("plan", fuzzing::plan);
}

/// The parser's dictionary has every word of the instruction table. `FLASHTILE_WRITE=1` writes it.
#[test]
fn the_dictionary_is_of_the_instruction_table() {
    let mut words = BTreeSet::new();
    let mut modifiers = |text: &str| {
        for word in text.split(['|', ' ', '{', '}']) {
            if word.starts_with('.') {
                words.insert(word.to_owned());
            }
        }
    };
    for row in ROWS {
        modifiers(row.modifiers);
    }
    for (_, set) in SETS {
        modifiers(set);
    }
    words.extend(ROWS.iter().map(|row| row.opcode.to_owned()));
    let directives = ".version .target .address_size .visible .extern .weak .entry .func .param .reg .align .ptr .v2 .v4 \
        .pred .b8 .b128 .global .const .shared .local .maxntid .reqntid .minnctapersm .maxnreg .reqnctapercluster .maxclusterrank \
        .explicitcluster .branchtargets .pragma .loc \
        .file .section .alias .noreturn generic( WARP_SZ %tid.x %ctaid.y %laneid %clock64 %cluster_ctarank 0f3F800000 0d3FF0000000000000";
    words.extend(directives.split_ascii_whitespace().map(str::to_owned));
    let mut text =
        String::from("# The instruction table's words; written by tests/tests/corpus.rs.\n");
    for word in &words {
        text += &format!("\"{word}\"\n");
    }
    let path = folder().join("dictionaries/ptx_parse");
    if std::env::var_os("FLASHTILE_WRITE").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap();
    assert!(found == text, "run this test with FLASHTILE_WRITE=1");
}

//! Files that are no safetensors files, or not whole: an error, never a crash.

mod common;

use std::{fs, io::Write};

use common::*;

/// `attend` on some bytes ends with status 0 or 2, and without output if with 2.
fn survives(bench: &Bench, content: &[u8], what: &str) {
    fs::write(&bench.input, content).unwrap();
    let output = bench.attend(&["--json"]);
    match output.status.code() {
        Some(0) => fs::remove_file(bench.path("out.safetensors")).unwrap(),
        Some(2) => fails(&output, 2, &[]),
        other => panic!("{what}: status {other:?}, {output:?}"),
    }
    assert!(bench.others().is_empty(), "{what}: {:?}", bench.others());
}

#[test]
fn truncated_anywhere() {
    let whole = small();
    let bench = Bench::new(&whole);
    let step = whole.len() / 60;
    let cuts = (0..=16).chain((17..whole.len()).step_by(step.max(1)));
    for cut in cuts.chain([whole.len() - 1]) {
        fs::write(&bench.input, &whole[..cut]).unwrap();
        bench.refuses(&[], &["in.safetensors"]);
    }
    let mut longer = whole;
    longer.push(0);
    fs::write(&bench.input, longer).unwrap();
    bench.refuses(&[], &["bytes of tensors after the header"]);
}

#[test]
fn flipped_anywhere_in_the_header() {
    let whole = small();
    let bench = Bench::new(&whole);
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        for bit in [1u8, 0x40] {
            if at % 3 != 0 && bit == 0x40 {
                continue;
            }
            let mut flipped = whole.clone();
            flipped[at] ^= bit;
            survives(&bench, &flipped, &format!("byte {at} ^ {bit:#x}"));
        }
    }
}

#[test]
fn headers_that_lie() {
    let refuses = |content: &[u8], words: &[&str]| Bench::new(content).refuses(&[], words);
    refuses(&u64::MAX.to_le_bytes(), &["header"]);
    refuses(&(1u64 << 40).to_le_bytes(), &["header"]);
    refuses(&raw("", 0), &["header"]);
    refuses(&raw("[]", 0), &["header"]);
    refuses(&raw("{\"q\":", 0), &["header"]);
    let nested = "[".repeat(100_000);
    refuses(&raw(&nested, 0), &["header"]);
    let q = |entry: &str, data| raw(&format!("{{\"q\":{entry}}}"), data);
    refuses(
        &q(r#"{"dtype":"F99","shape":[1],"data_offsets":[0,4]}"#, 4),
        &["q: expected", "F99"],
    );
    refuses(
        &q(r#"{"dtype":"F16","shape":[-1],"data_offsets":[0,4]}"#, 4),
        &["q: expected", "-1"],
    );
    refuses(
        &q(r#"{"dtype":"F16","shape":[3],"data_offsets":[0,4]}"#, 4),
        &["q: expected 6 bytes", "[0, 4]"],
    );
    refuses(
        &q(r#"{"dtype":"F16","shape":[2],"data_offsets":[4,8]}"#, 8),
        &["q: expected data that begins at 0", "[4, 8]"],
    );
    refuses(
        &q(
            r#"{"dtype":"F16","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}"#,
            4,
        ),
        &["q: expected", "4294967296"],
    );
    refuses(
        &q(
            r#"{"dtype":"F16","shape":[2],"data_offsets":[18446744073709551615,3]}"#,
            4,
        ),
        &["q: expected"],
    );
    refuses(
        &q(
            r#"{"dtype":"F16","shape":[2],"data_offsets":[0,18446744073709551616]}"#,
            4,
        ),
        &["q: expected"],
    );
    // Two tensors of a name over the same bytes: nothing else is wrong with the offsets.
    let entry = |name: &str, dtype: &str, begin: usize| {
        let end = begin + 16;
        format!(
            r#""{name}":{{"dtype":"{dtype}","shape":[1,1,1,8],"data_offsets":[{begin},{end}]}}"#
        )
    };
    let entries = [
        entry("q", "F16", 0),
        entry("q", "BF16", 0),
        entry("k", "F16", 16),
        entry("v", "F16", 32),
    ];
    let repeated = raw(&format!("{{{}}}", entries.join(",")), 48);
    refuses(&repeated, &["q: expected one tensor of this name"]);
    // A line break in a name stays inside the one line.
    refuses(
        &raw(
            "{\"a\\nb\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[0,4]}}",
            4,
        ),
        &["expected 6 bytes"],
    );
}

#[test]
fn no_files() {
    let bench = Bench::new(b"");
    fs::remove_file(&bench.input).unwrap();
    bench.refuses(&[], &["in.safetensors", "No such file"]);
    fs::create_dir(&bench.input).unwrap();
    bench.refuses(&[], &["in.safetensors", "expected a regular file"]);
    let output = run(&["attend", "/dev/zero", "--device", "cpu"]);
    fails(&output, 2, &["/dev/zero", "expected a regular file"]);
}

/// A file of 512 GiB that takes no room on the disk.
#[test]
#[cfg(target_os = "linux")]
fn larger_than_memory() {
    let seqlen = 1usize << 30;
    let bytes = seqlen * 256 * 2;
    let entry = |name: &str, seqlen: usize, begin: usize, end: usize| {
        format!(
            r#""{name}":{{"dtype":"F16","shape":[1,{seqlen},1,256],"data_offsets":[{begin},{end}]}}"#
        )
    };
    let header = format!(
        "{{{},{},{}}}",
        entry("k", 1, 0, 512),
        entry("q", seqlen, 1024, 1024 + bytes),
        entry("v", 1, 512, 1024)
    );
    let content = raw(&header, 0);
    let bench = Bench::new(&content);
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(&bench.input)
        .unwrap();
    file.flush().unwrap();
    file.set_len((content.len() + 1024 + bytes) as u64).unwrap();
    for device in ["cpu", "emulator"] {
        bench.refuses(&["--device", device], &["expected sizes that fit in"]);
    }
}

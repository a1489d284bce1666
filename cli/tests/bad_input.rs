//! Input that is wrong: exit status 2, one line that names it, nothing written.

mod common;

use common::*;
use safetensors::Dtype;

const Q: [usize; 4] = [1, 5, 2, 16];
const K: [usize; 4] = [1, 7, 1, 16];
const V: [usize; 4] = [1, 7, 1, 8];

/// A file of f16 tensors of these shapes is refused with these words.
fn shapes(q: &[usize], k: &[usize], v: &[usize], words: &[&str]) {
    Bench::new(&encode(&qkv(Dtype::F16, q, k, v))).refuses(&[], words);
}

#[test]
fn ranks() {
    shapes(
        &[5, 2, 16],
        &K,
        &V,
        &["q: expected 4 dimensions", "[5, 2, 16]"],
    );
    shapes(&Q, &[1, 1, 7, 1, 16], &V, &["k: expected 4 dimensions"]);
    shapes(&Q, &K, &[], &["v: expected 4 dimensions", "found shape []"]);
}

#[test]
fn shapes_that_do_not_match() {
    shapes(
        &Q,
        &[1, 7, 1, 15],
        &V,
        &["k: expected", "[1, 7, 1, 16]", "[1, 7, 1, 15]"],
    );
    shapes(
        &Q,
        &[2, 7, 1, 16],
        &V,
        &["k: expected", "found shape [2, 7, 1, 16]"],
    );
    shapes(
        &Q,
        &K,
        &[1, 6, 1, 8],
        &["v: expected", "found shape [1, 6, 1, 8]"],
    );
    shapes(
        &Q,
        &K,
        &[1, 7, 2, 8],
        &["v: expected", "found shape [1, 7, 2, 8]"],
    );
}

#[test]
fn heads() {
    let words = ["q: expected", "multiple of k's 2", "found 3"];
    shapes(&[1, 5, 3, 16], &[1, 7, 2, 16], &[1, 7, 2, 8], &words);
    shapes(&[1, 5, 0, 16], &K, &V, &["q: expected at least one head"]);
    shapes(
        &Q,
        &[1, 7, 0, 16],
        &[1, 7, 0, 8],
        &["k: expected at least one head"],
    );
}

#[test]
fn head_dims() {
    shapes(
        &[1, 5, 2, 0],
        &[1, 7, 1, 0],
        &V,
        &["q: expected", "found head_dim 0"],
    );
    shapes(
        &[1, 5, 2, 513],
        &[1, 7, 1, 513],
        &V,
        &[
            "q: expected a head_dim between 1 and 512",
            "found head_dim 513",
        ],
    );
    shapes(&Q, &K, &[1, 7, 1, 0], &["v: expected", "found head_dim 0"]);
    shapes(
        &Q,
        &K,
        &[1, 7, 1, 600],
        &["v: expected", "found head_dim 600"],
    );
}

#[test]
fn absurd_shapes() {
    // Without elements a shape can be as large as it likes.
    let huge = 1usize << 60;
    let words = ["found", &huge.to_string()];
    shapes(&[0, huge, 1, 8], &[0, 1, 1, 8], &[0, 1, 1, 8], &words);
    shapes(
        &[1, 0, 1, 8],
        &[0, huge, 1, 8],
        &[0, huge, 1, 8],
        &["k: expected"],
    );
    shapes(
        &[0, 1, huge, 8],
        &[0, 1, 1, 8],
        &[0, 1, 1, 8],
        &["q: expected"],
    );
}

#[test]
fn dtypes() {
    let of = |dtype| encode(&qkv(dtype, &Q, &K, &V));
    for (dtype, found) in [
        (Dtype::F64, "found F64"),
        (Dtype::I32, "found I32"),
        (Dtype::BOOL, "found BOOL"),
        (Dtype::F8_E5M2, "found F8_E5M2"),
    ] {
        let words = ["q: expected F16, BF16, F32 or F8_E4M3", found];
        Bench::new(&of(dtype)).refuses(&[], &words);
    }
    let mut mixed = qkv(Dtype::F16, &Q, &K, &V);
    mixed[2] = tensor("v", Dtype::BF16, &V);
    Bench::new(&encode(&mixed)).refuses(&[], &["v: expected F16, the dtype of q, found BF16"]);
}

#[test]
fn missing_tensors() {
    for missing in 0..3 {
        let mut tensors = qkv(Dtype::F16, &Q, &K, &V);
        let name = tensors.remove(missing).name;
        let expected = format!("{name}: expected a tensor");
        Bench::new(&encode(&tensors)).refuses(&[], &[&expected]);
    }
    Bench::new(&encode(&[])).refuses(&[], &["q: expected", "no tensors"]);
}

#[test]
fn numbers() {
    let bench = Bench::new(&small());
    for bad in ["nan", "inf", "-inf", "1e60"] {
        bench.refuses(&["--scale", bad], &["scale: expected a finite number"]);
        bench.refuses(&["--softcap", bad], &["softcap: expected"]);
    }
    for bad in ["0", "-1"] {
        bench.refuses(&["--softcap", bad], &["softcap: expected a positive"]);
    }
    for bad in ["-2,0", "0,-2", "1", "a,b", "1,2,3", ""] {
        bench.refuses(&["--window", bad], &["--window"]);
    }
    bench.refuses(&["--scale", "big"], &["--scale", "big"]);
}

#[test]
fn options() {
    let bench = Bench::new(&small());
    bench.refuses(&["--frobnicate"], &["--frobnicate"]);
    bench.refuses(&["--algorithm", "four-pass"], &["four-pass", "--algorithm"]);
    bench.refuses(&["--arch", "sm_1"], &["sm_1", "--arch"]);
    bench.refuses(&["--causal", "sideways"], &["sideways", "--causal"]);
    bench.refuses(&["--out-dtype", "f64"], &["f64", "--out-dtype"]);
    bench.refuses(&["--device", "tpu"], &["tpu", "--device"]);
    bench.refuses(
        &["--sanitize", "--device", "cpu"],
        &["--sanitize", "--device emulator"],
    );
    bench.refuses(&["--check", "--check"], &["--check"]);
    bench.refuses(&["surplus"], &["surplus"]);
    for (args, word) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["attend"], "IN.safetensors"),
        (&["verify", "--filter", "no such case"], "no such case"),
        (&["verify", "--quick", "--case", "q1"], "--quick"),
        (&["verify", "--sanitize", "--device", "cpu"], "--sanitize"),
        (&["verify", "--sanitize", "--device", "cuda:0"], "emulator"),
        (&["verify", "--case", ""], "empty"),
        (&["verify", "--case", "fused f17"], "f17"),
        (&["verify", "--case", "h3/2"], "heads"),
        (&["verify", "--case", "d1/0"], "head_dim"),
        (&["verify", "--case", "scale=NaN"], "scale"),
        (
            &["verify", "--case", "b2 out=seqlen-first+0@0,broadcast"],
            "out",
        ),
        (&["verify", "--case", "b999999 q999999 k999999"], "memory"),
        (
            &[
                "verify",
                "--case",
                "q18446744073709551615 q=seqlen-first+9@1",
            ],
            "64 bits",
        ),
        (&["verify", "--case", "serving f32"], "f32"),
        (&["verify", "--case", "serving lengths=1"], "lengths=1"),
        (&["verify", "--case", "serving softcap=NaN"], "softcap"),
        (
            &["verify", "--case", "serving lengths=99999999:99999999"],
            "memory",
        ),
        (
            &[
                "verify",
                "--case",
                "serving lengths=18446744073709551615:2 room=9",
            ],
            "64 bits",
        ),
        (
            &["verify", "--case", "serving hostile", "--device", "cpu"],
            "hostile",
        ),
        (&["verify", "--case", "merge e4m3"], "e4m3"),
        (&["verify", "--case", "merge", "--device", "cpu"], "merge"),
        (&["verify", "--only", "sparse"], "sparse"),
        (
            &["verify", "--only", "dense", "--filter", "decode_bf16_d64"],
            "decode_bf16_d64",
        ),
        (
            &["bench", "--only", "serving", "--seqlen", "64"],
            "--only serving",
        ),
        (&["kernels", "--filter", "no such kernel"], "no such kernel"),
        (&["doctor", "now"], "now"),
        (&[], "attend"),
    ] {
        fails(&run(args), 2, &[word]);
    }
}

#[test]
fn help_lists_what_there_is() {
    let help = succeeds(&run(&["attend", "--help"]));
    assert!(
        help.contains("--softcap") && help.contains("--sanitize"),
        "{help}"
    );
    let help = succeeds(&run(&["--help"]));
    let commands = ["attend", "verify", "bench", "kernels", "doctor"];
    let listed = |command: &&str| help.contains(&format!("\n  {command} "));
    assert!(commands.iter().all(listed), "{help}");
    assert!(succeeds(&run(&["--version"])).starts_with("flashtile "));
}

#[test]
fn ptx_that_is_none() {
    let bench = Bench::new(&small());
    let folder = tempfile::tempdir().unwrap();
    let file = |content: &[u8]| {
        let path = folder.path().join("k.ptx");
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let emulated = |path: &str, words: &[&str]| {
        bench.refuses(&["--device", "emulator", "--ptx", path], words);
    };
    emulated(
        &file(b"int main() { return 0; }"),
        &["k.ptx", "expected PTX", ".version"],
    );
    emulated(&file(b""), &["k.ptx", "expected PTX"]);
    emulated(&file(&[0xff, 0xfe, 0x00]), &["k.ptx", "UTF-8"]);
    let head = ".version 7.8\n.target sm_80\n.address_size 64\n";
    emulated(
        &file(head.as_bytes()),
        &["entry point fused_f16_d64_sm90a", "no entry point"],
    );
    let other = format!("{head}.visible .entry other() {{ ret; }}\n");
    emulated(
        &file(other.as_bytes()),
        &["entry point fused_f16_d64_sm90a", "found other"],
    );
    let of_tier = |arch: &str, words: &[&str]| {
        let path = file(other.as_bytes());
        let options = ["--device", "emulator", "--ptx", &path, "--arch", arch];
        bench.refuses(&options, words);
    };
    of_tier("sm_80", &["entry point fused_f16_d32_sm80", "found other"]);
    of_tier(
        "sm_90a",
        &["entry point fused_f16_d64_sm90a", "found other"],
    );
    let broken = format!("{head}.visible .entry fused_f16_d32_sm80( {{ ret\n");
    emulated(
        &file(broken.as_bytes()),
        &["k.ptx", "expected PTX that emulator can load"],
    );
    emulated("/no/such.ptx", &["/no/such.ptx", "No such file"]);
    emulated(folder.path().to_str().unwrap(), &["expected a PTX file"]);
    // The reference is no device for PTX.
    bench.refuses(
        &["--ptx", &file(head.as_bytes())],
        &["--ptx", "--device cpu"],
    );
}

#[test]
fn devices_and_variants_that_do_not_exist() {
    let bench = Bench::new(&small());
    let absent = bench.attend(&["--device", "cuda:4096"]);
    fails(&absent, 3, &["no device"]);
    // f32 has the other tier alone, and so have the ladder's algorithms.
    let single = Bench::new(&encode(&qkv(Dtype::F32, &Q, &K, &V)));
    let hopper = ["--device", "emulator", "--arch", "sm_90a"];
    fails(&single.attend(&hopper), 3, &["on sm_90a with f32 elements"]);
    let ladder = [&hopper[..], &["--algorithm", "two-pass"]].concat();
    fails(
        &bench.attend(&ladder),
        3,
        &["no kernel for two-pass attention on sm_90a"],
    );
}

/// Rows that the copy engine cannot take: an error for who asks for its tier, and a reason where nobody does.
#[test]
fn tensors_that_the_copy_engine_cannot_take() {
    let rows = |dim: usize| {
        Bench::new(&encode(&qkv(
            Dtype::BF16,
            &[1, 5, 2, dim],
            &[1, 7, 1, dim],
            &[1, 7, 1, 64],
        )))
    };
    let hopper = ["--device", "emulator", "--arch", "sm_90a"];
    let bench = rows(33);
    bench.refuses(
        &hopper,
        &[
            "q: expected strides that are positive multiples of 16 bytes",
            "sm_90a",
            "found a stride of 132 bytes",
        ],
    );
    // No other tier has these head dimensions: both reasons are named.
    for options in [
        &["--device", "emulator"][..],
        &["--device", "emulator", "--arch", "auto"],
    ] {
        let wide = rows(257);
        fails(
            &wide.attend(options),
            3,
            &[
                "on sm_80",
                "beyond the widest, 256 with 256; sm_90a has one, but q: expected strides",
            ],
        );
        assert!(wide.others().is_empty());
    }
    rows(264).refuses(&["--device", "cpu", "--scale", "nan"], &["scale"]);
    fails(
        &rows(264).attend(&["--device", "emulator", "--arch", "sm_80"]),
        3,
        &["head_dim_qk 264 with head_dim_v 64 is beyond the widest, 256 with 256"],
    );
    // The tier's own checks are those of the other one.
    for (q, k, v, words) in [
        (
            [1, 5, 2, 64],
            [1, 7, 1, 72],
            [1, 7, 1, 64],
            ["k: expected shape", "[1, 7, 1, 72]"],
        ),
        (
            [1, 5, 3, 64],
            [1, 7, 2, 64],
            [1, 7, 2, 64],
            ["q: expected", "multiple of k's 2"],
        ),
        (
            [1, 5, 2, 64],
            [1, 7, 1, 64],
            [1, 7, 1, 520],
            ["v: expected a head_dim", "520"],
        ),
    ] {
        Bench::new(&encode(&qkv(Dtype::F16, &q, &k, &v))).refuses(&hopper, &words);
    }
    for (option, bad, word) in [
        ("--scale", "inf", "scale"),
        ("--softcap", "0", "softcap"),
        ("--window", "-2,0", "--window"),
    ] {
        let options = [&hopper[..], &[option, bad]].concat();
        Bench::new(&small()).refuses(&options, &[word]);
    }
}

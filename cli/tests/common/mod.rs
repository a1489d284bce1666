//! Files to feed the command with, and ways to run it.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use half::f16;
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;

/// A tensor to be written.
pub struct Tensor {
    pub name: &'static str,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

/// A tensor of that shape. Floats that the command takes get numbers in [-1, 1), others zeros.
pub fn tensor(name: &'static str, dtype: Dtype, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let mut state = name.bytes().map(u32::from).sum::<u32>();
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let data = match dtype {
        Dtype::F16 => (0..count)
            .flat_map(|_| f16::from_f32(next()).to_le_bytes())
            .collect(),
        Dtype::BF16 => (0..count)
            .flat_map(|_| half::bf16::from_f32(next()).to_le_bytes())
            .collect(),
        Dtype::F32 => (0..count).flat_map(|_| next().to_le_bytes()).collect(),
        Dtype::F8_E4M3 => {
            let numbers: Vec<f32> = (0..count).map(|_| next()).collect();
            flashtile::element::encode(flashtile::DType::E4m3, &numbers)
        }
        other => vec![0; count * other.bitsize() / 8],
    };
    Tensor {
        name,
        dtype,
        shape: shape.to_vec(),
        data,
    }
}

/// An F32 tensor of these numbers.
pub fn f32_tensor(name: &'static str, shape: &[usize], numbers: &[f32]) -> Tensor {
    Tensor {
        name,
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        data: numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// The numbers of an F32 tensor.
pub fn f32s(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|&word| f32::from_le_bytes(word)).collect()
}

/// The object that the command printed.
pub fn json(text: &str) -> serde_json::Value {
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    serde_json::from_str(text).unwrap()
}

/// q, k and v of these shapes.
pub fn qkv(dtype: Dtype, q: &[usize], k: &[usize], v: &[usize]) -> Vec<Tensor> {
    vec![
        tensor("q", dtype, q),
        tensor("k", dtype, k),
        tensor("v", dtype, v),
    ]
}

/// The content of a file with these tensors.
pub fn encode(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors.iter().map(|t| {
        let view = TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap();
        (t.name, view)
    });
    safetensors::serialize(views, None).unwrap()
}

/// A file made of a header's text and some bytes.
pub fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A small sound problem.
pub fn small() -> Vec<u8> {
    encode(&qkv(
        Dtype::F16,
        &[1, 5, 2, 16],
        &[1, 7, 1, 16],
        &[1, 7, 1, 8],
    ))
}

/// A folder with an input in it.
pub struct Bench {
    pub folder: TempDir,
    pub input: PathBuf,
}

impl Bench {
    pub fn new(content: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("in.safetensors");
        fs::write(&input, content).unwrap();
        Self { folder, input }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Names of all files but the input.
    pub fn others(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "in.safetensors").collect()
    }

    /// `attend` on the CPU, with an output that must not appear if it fails.
    pub fn attend(&self, options: &[&str]) -> Output {
        let mut command = flashtile();
        command.arg("attend").arg(&self.input);
        command.arg("-o").arg(self.path("out.safetensors"));
        if !options.contains(&"--device") {
            command.args(["--device", "cpu"]);
        }
        command.args(options).output().unwrap()
    }

    /// Expects `attend` to refuse its input.
    pub fn refuses(&self, options: &[&str], words: &[&str]) {
        let output = self.attend(options);
        fails(&output, 2, words);
        assert!(self.others().is_empty(), "{:?}", self.others());
    }

    /// The output file's tensors: dtype, shape, bytes.
    pub fn out(&self, name: &str) -> (Dtype, Vec<usize>, Vec<u8>) {
        read(&self.path("out.safetensors"), name)
    }
}

pub fn read(path: &Path, name: &str) -> (Dtype, Vec<usize>, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
    (dtype, shape, tensor.data().to_vec())
}

pub fn flashtile() -> Command {
    Command::new(env!("CARGO_BIN_EXE_flashtile"))
}

pub fn run(args: &[&str]) -> Output {
    flashtile().args(args).output().unwrap()
}

/// Expects that exit status, nothing on stdout, and one line on stderr with all the words.
pub fn fails(output: &Output, status: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(output.stdout.is_empty(), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
}

/// Expects success and nothing on stderr; returns stdout.
pub fn succeeds(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(output.stderr.is_empty(), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

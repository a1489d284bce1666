//! Tensors captured from a model, and what attention over them is.

use std::path::{Path, PathBuf};

use flashtile::DType;
use flashtile_verify::{Case, Tensors, sizes};
use safetensors::SafeTensors;

/// The repository's own sample, q, k and v. `FLASHTILE_EXAMPLES` is its folder where there is no checkout.
pub fn sample() -> PathBuf {
    let folder = match std::env::var_os("FLASHTILE_EXAMPLES") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/data"),
    };
    folder.join("minilm-128.safetensors")
}

/// The folder of larger samples, which are not part of the repository.
pub fn data_folder() -> PathBuf {
    match std::env::var_os("FLASHTILE_DATA") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
    }
}

/// Where the expected results of a sample are: `NAME.expected.safetensors` beside it.
pub fn expected_path(sample: &Path) -> PathBuf {
    sample.with_extension("expected.safetensors")
}

/// What attention over a sample is, computed in f64 and rounded to f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Output and log-sum-exp without a mask.
    pub full: (Vec<f32>, Vec<f32>),
    /// The same under a causal mask.
    pub causal: (Vec<f32>, Vec<f32>),
}

fn open(path: &Path) -> Vec<u8> {
    match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

fn tensor(file: &SafeTensors<'_>, name: &str) -> ([usize; 4], Vec<f32>) {
    let view = file
        .tensor(name)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let dtype = match view.dtype() {
        safetensors::Dtype::F16 => DType::F16,
        safetensors::Dtype::F32 => DType::F32,
        other => panic!("{name}: {other:?} elements"),
    };
    let mut shape = [1; 4];
    shape[4 - view.shape().len()..].copy_from_slice(view.shape());
    let count = shape.iter().product();
    let values = (0..count).map(|at| flashtile::element::read(dtype, view.data(), at));
    (shape, values.collect())
}

/// A sample as a case (whose seed means nothing) and its tensors.
///
/// # Panics
/// If the file is not a sample.
pub fn read_sample(path: &Path) -> (Case, Tensors) {
    let bytes = open(path);
    let file = SafeTensors::deserialize(&bytes)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let ([batch, seqlen_q, heads_q, head_dim_qk], q) = tensor(&file, "q");
    let ([_, seqlen_k, heads_kv, _], k) = tensor(&file, "k");
    let ([.., head_dim_v], v) = tensor(&file, "v");
    let mut shape = sizes(seqlen_q, seqlen_k, [heads_q, heads_kv], head_dim_qk);
    (shape.batch, shape.head_dim_v) = (batch, head_dim_v);
    (
        Case::new(DType::F16, shape),
        Tensors {
            q,
            k,
            v,
            ..Tensors::default()
        },
    )
}

/// A sample's expected results.
///
/// # Panics
/// If the file does not hold them.
pub fn read_expected(path: &Path) -> Expected {
    let bytes = open(path);
    let file = SafeTensors::deserialize(&bytes)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let values = |name| tensor(&file, name).1;
    Expected {
        full: (values("out"), values("lse")),
        causal: (values("out_causal"), values("lse_causal")),
    }
}

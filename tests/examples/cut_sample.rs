//! Makes `examples/data/minilm-128.safetensors` and its expected results from a larger capture:
//! the first 128 tokens, and attention over them by the oracle in f64.
//!
//! `cargo run --release -p flashtile-tests --example cut_sample [CAPTURE.safetensors]`

use std::{collections::HashMap, error::Error, path::PathBuf};

use flashtile::{CausalAlignment, DType, element};
use flashtile_tests::{Tensors, data::rebuild, golden, oracle};
use safetensors::{Dtype, serialize_to_file, tensor::TensorView};

const TOKENS: usize = 128;

fn main() -> Result<(), Box<dyn Error>> {
    let source = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => golden::data_folder().join("minilm-layer0.safetensors"),
    };
    let (whole, tensors) = golden::read_sample(&source);
    let mut case = whole;
    (case.shape.seqlen_q, case.shape.seqlen_k) = (TOKENS, TOKENS);
    let (old, new) = (whole.shapes(), case.shapes());
    let cut =
        |values: &[f32], which: usize| rebuild(values, old[which], new[which], |b, s, h| [b, s, h]);
    let tensors = Tensors {
        q: cut(&tensors.q, 0),
        k: cut(&tensors.k, 1),
        v: cut(&tensors.v, 2),
        ..tensors
    };

    let about = |text: &str| Some(HashMap::from([("about".to_owned(), text.to_owned())]));
    let inputs =
        [&tensors.q, &tensors.k, &tensors.v].map(|values| element::encode(DType::F16, values));
    let names = ["q", "k", "v"].into_iter().zip(&inputs).zip(new);
    let views = names
        .map(|((name, bytes), shape)| {
            Ok((name, TensorView::new(Dtype::F16, shape.to_vec(), bytes)?))
        })
        .collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    let path = golden::sample();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let from = "all-MiniLM-L6-v2, layer 0, first 128 tokens of an English text; batch, seqlen, heads, head_dim";
    serialize_to_file(views, about(from), &path)?;

    let f32_bytes = |values: &[f64]| -> Vec<u8> {
        let bytes = values.iter().map(|&x| (x as f32).to_le_bytes());
        bytes.flatten().collect()
    };
    let full = oracle(&case, &tensors);
    let causal = oracle(&case.causal(CausalAlignment::BottomRight), &tensors);
    let out_shape = new[3].to_vec();
    let lse_shape = case.problem().lse_shape().to_vec();
    let results = [
        ("out", &out_shape, f32_bytes(&full.out)),
        ("out_causal", &out_shape, f32_bytes(&causal.out)),
        ("lse", &lse_shape, f32_bytes(&full.lse)),
        ("lse_causal", &lse_shape, f32_bytes(&causal.lse)),
    ];
    let views = results
        .iter()
        .map(|(name, shape, bytes)| {
            Ok((*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?))
        })
        .collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    let computed =
        "three-pass safe softmax in f64 over the f16 inputs, scale 1/sqrt(32); rounded to f32";
    serialize_to_file(views, about(computed), &golden::expected_path(&path))?;
    println!("{}", path.display());
    Ok(())
}

//! The examples do what they say.

use std::{collections::HashMap, fs};

use candle_core::{DType, Device, Tensor};

#[allow(dead_code)] // Its `main` is another one's.
#[path = "../examples/decode.rs"]
mod decode;
#[allow(dead_code)]
#[path = "../examples/embed.rs"]
mod embed;

#[test]
fn decoders_agree() {
    decode::main().unwrap();
}

/// A model of random weights in the layout of all-MiniLM-L6-v2's.
#[test]
fn embeddings_agree() {
    let folder = std::env::temp_dir().join(format!("flashtile-embed-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let config = r#"{"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "num_hidden_layers": 2, "vocab_size": 8,
        "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-12}"#;
    let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6, "g": 7}}}"#;
    fs::write(folder.join("config.json"), config).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    let mut weights = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let tensor = Tensor::randn(0f32, 0.5f32, shape, &Device::Cpu).unwrap();
        weights.insert(name, tensor);
    };
    for (name, rows) in [("word", 8), ("position", 16), ("token_type", 2)] {
        add(format!("embeddings.{name}_embeddings.weight"), &[rows, 24]);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..2 {
        let prefix = format!("encoder.layer.{layer}");
        for (name, to, from) in [
            ("attention.self.query", 24, 24),
            ("attention.self.key", 24, 24),
            ("attention.self.value", 24, 24),
            ("attention.output.dense", 24, 24),
            ("intermediate.dense", 40, 24),
            ("output.dense", 24, 40),
        ] {
            add(format!("{prefix}.{name}.weight"), &[to, from]);
            add(format!("{prefix}.{name}.bias"), &[to]);
        }
        norms.extend(
            ["attention.output.LayerNorm", "output.LayerNorm"]
                .map(|name| format!("{prefix}.{name}")),
        );
    }
    for name in norms {
        add(format!("{name}.weight"), &[24]);
        add(format!("{name}.bias"), &[24]);
    }
    candle_core::safetensors::save(&weights, folder.join("model.safetensors")).unwrap();
    let texts = ["a b c d e f g a b", "g", "c c f other words"].map(String::from);
    let result = embed::run(&folder, &texts, DType::F32, &Device::Cpu);
    fs::remove_dir_all(&folder).unwrap();
    let apart = result.unwrap();
    // Of embeddings of length 1. Rounding in f32 is a thousandth of this; a mask or a position that is wrong, a hundred times it.
    assert!(apart < 1e-4, "{apart:e}");
}

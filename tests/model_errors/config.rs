//! Broken model directories and config.json files.

use std::fs;
use std::path::Path;

use cleave::error::Status::{self, Corrupt, Io, NotFound, Unsupported};
use serde_json::json;

use crate::model_support::edit_config;
use crate::{Break, check, remove, set};

fn replace_in_config(dir: &Path, from: &str, to: &str) {
    let path = dir.join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Defects of llama2-mha's directory and config.json.
const CONFIG: &[(&str, Break, Status, &[&str])] = &[
    ("no config", |d| fs::remove_file(d.join("config.json")).unwrap(), NotFound, &["config.json"]),
    (
        "config is a directory",
        |d| {
            fs::remove_file(d.join("config.json")).unwrap();
            fs::create_dir(d.join("config.json")).unwrap();
        },
        Io,
        &["config.json", "regular file"],
    ),
    ("empty config", |d| fs::write(d.join("config.json"), "").unwrap(), Corrupt, &["config.json", "JSON"]),
    ("config is a list", |d| fs::write(d.join("config.json"), "[1]").unwrap(), Corrupt, &["config.json", "object"]),
    (
        "not UTF-8",
        |d| fs::write(d.join("config.json"), b"{\"model_type\": \"\xff\"}").unwrap(),
        Corrupt,
        &["config.json", "UTF-8", "byte 16"],
    ),
    (
        "deep JSON",
        |d| fs::write(d.join("config.json"), format!("{{\"a\": {}", "[".repeat(100_000))).unwrap(),
        Corrupt,
        &["config.json", "recursion limit"],
    ),
    (
        "deep objects",
        |d| fs::write(d.join("config.json"), "{\"a\":".repeat(100_000)).unwrap(),
        Corrupt,
        &["config.json", "recursion limit"],
    ),
    (
        "huge config",
        |d| fs::write(d.join("config.json"), " ".repeat(2 << 20)).unwrap(),
        Corrupt,
        &["config.json", "2097152 bytes"],
    ),
    (
        "huge number",
        |d| replace_in_config(d, "\"hidden_size\": 32", "\"hidden_size\": 1e999"),
        Corrupt,
        &["config.json"],
    ),
    (
        "large number",
        |d| set(d, "hidden_size", json!(1u64 << 40)),
        Corrupt,
        &["hidden_size = 1099511627776", "1048576"],
    ),
    ("fraction", |d| set(d, "hidden_size", json!(32.5)), Corrupt, &["hidden_size = 32.5", "whole number"]),
    ("negative", |d| set(d, "num_hidden_layers", json!(-2)), Corrupt, &["num_hidden_layers = -2"]),
    ("wrong type", |d| set(d, "vocab_size", json!("80")), Corrupt, &["config.json", "vocab_size = \"80\""]),
    ("missing key", |d| remove(d, "intermediate_size"), Corrupt, &["config.json", "intermediate_size is missing"]),
    ("zero heads", |d| set(d, "num_attention_heads", json!(0)), Corrupt, &["num_attention_heads = 0"]),
    ("zero kv heads", |d| set(d, "num_key_value_heads", json!(0)), Corrupt, &["num_key_value_heads = 0"]),
    (
        "kv heads",
        |d| set(d, "num_key_value_heads", json!(3)),
        Corrupt,
        &["num_attention_heads", "num_key_value_heads = 3"],
    ),
    ("zero layers", |d| set(d, "num_hidden_layers", json!(0)), Corrupt, &["num_hidden_layers = 0"]),
    ("many layers", |d| set(d, "num_hidden_layers", json!(1025)), Corrupt, &["num_hidden_layers = 1025", "1024"]),
    ("huge vocab", |d| set(d, "vocab_size", json!(1 << 25)), Corrupt, &["vocab_size = 33554432"]),
    ("odd head_dim", |d| set(d, "head_dim", json!(7)), Corrupt, &["head_dim = 7", "even"]),
    ("huge head_dim", |d| set(d, "head_dim", json!(514)), Corrupt, &["head_dim = 514"]),
    ("no eps", |d| set(d, "rms_norm_eps", json!(0.0)), Corrupt, &["rms_norm_eps = 0.0"]),
    ("theta", |d| set(d, "rope_theta", json!(-5)), Corrupt, &["rope_theta = -5"]),
    ("eos", |d| set(d, "eos_token_id", json!([2, "x"])), Corrupt, &["config.json", "eos_token_id = [2,\"x\"]"]),
    (
        "bool",
        |d| set(d, "tie_word_embeddings", json!("no")),
        Corrupt,
        &["tie_word_embeddings = \"no\"", "true or false"],
    ),
    (
        "key twice",
        |d| replace_in_config(d, "\"hidden_size\": 32", "\"hidden_size\": 32, \"hidden_size\": 64"),
        Corrupt,
        &["config.json", "\"hidden_size\" occurs twice"],
    ),
    (
        "architecture",
        |d| set(d, "architectures", json!(["GPT2LMHeadModel"])),
        Unsupported,
        &["config.json", "GPT2LMHeadModel", "LlamaForCausalLM"],
    ),
    (
        "model type",
        |d| {
            remove(d, "architectures");
            set(d, "model_type", json!("mamba"));
        },
        Unsupported,
        &["model_type = \"mamba\""],
    ),
    (
        "types disagree",
        |d| set(d, "model_type", json!("qwen3")),
        Unsupported,
        &["model_type = \"qwen3\"", "LlamaForCausalLM"],
    ),
    (
        "no architecture",
        |d| {
            remove(d, "architectures");
            remove(d, "model_type");
        },
        Corrupt,
        &["architectures", "model_type"],
    ),
    ("activation", |d| set(d, "hidden_act", json!("gelu")), Unsupported, &["hidden_act = \"gelu\""]),
    (
        "quantised",
        |d| set(d, "quantization_config", json!({"quant_method": "awq", "bits": 4})),
        Unsupported,
        &["quantization_config", "awq"],
    ),
    (
        "rope type",
        |d| set(d, "rope_scaling", json!({"rope_type": "longrope", "factor": 2.0})),
        Unsupported,
        &["rope_scaling", "longrope"],
    ),
    (
        "rope without factor",
        |d| set(d, "rope_scaling", json!({"type": "linear"})),
        Corrupt,
        &["rope_scaling", "factor is missing"],
    ),
    (
        "rope factor",
        |d| set(d, "rope_scaling", json!({"type": "linear", "factor": 0})),
        Corrupt,
        &["rope_scaling", "factor = 0"],
    ),
    (
        "rope types disagree",
        |d| set(d, "rope_scaling", json!({"type": "linear", "rope_type": "yarn", "factor": 2})),
        Corrupt,
        &["rope_type = \"yarn\"", "type = \"linear\""],
    ),
    (
        "llama3 factors",
        |d| {
            let rope = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4});
            set(d, "rope_scaling", rope);
        },
        Corrupt,
        &["high_freq_factor = 4"],
    ),
    (
        "rope per layer type",
        |d| {
            let set_of = |theta: f64| json!({"rope_type": "default", "rope_theta": theta});
            set(d, "rope_parameters", json!({"full_attention": set_of(1e4), "sliding_attention": set_of(1e6)}));
        },
        Unsupported,
        &["rope_parameters", "layer types"],
    ),
    ("partial rotary", |d| set(d, "partial_rotary_factor", json!(0.5)), Unsupported, &["partial_rotary_factor = 0.5"]),
    ("layer types", |d| set(d, "layer_types", json!(["full_attention"])), Corrupt, &["layer_types has 1 entries"]),
    (
        "generation config",
        |d| fs::write(d.join("generation_config.json"), "{\"eos_token_id\": {}}").unwrap(),
        Corrupt,
        &["generation_config.json", "eos_token_id"],
    ),
];

#[test]
fn broken_config() {
    check("llama2-mha", CONFIG);
}

#[test]
fn other_architectures() {
    check(
        "qwen2-layer-types",
        &[
            (
                "unknown layer type",
                |d| edit_config(d, |c| c["layer_types"][0] = json!("chunked")),
                Unsupported,
                &["chunked"],
            ),
            ("window off", |d| set(d, "use_sliding_window", json!(false)), Corrupt, &["sliding_attention"]),
            ("zero window", |d| set(d, "sliding_window", json!(0)), Corrupt, &["sliding_window = 0"]),
        ],
    );
    check("qwen2", &[("no bias", |d| set(d, "model_type", json!("llama")), Unsupported, &["model_type"])]);
    check(
        "mistral-window",
        &[(
            "alternating",
            |d| {
                edit_config(d, |c| {
                    let n = c["num_hidden_layers"].as_u64().unwrap() as usize;
                    c["layer_types"] = json!(vec!["full_attention"; n]);
                });
            },
            Unsupported,
            &["layer_types"],
        )],
    );
}

//! Malformed model directories: each is a good fixture with one thing broken, and the error must have the right
//! status and name the file and the tensor or key at fault.

mod model_support;

use std::fs;
use std::path::Path;

use cleave::error::Status::{self, Corrupt, InvalidArgument, Io, NotFound, Unsupported};
use cleave::model::Model;
use model_support::{Random, copy, edit_bytes, edit_config, edit_header, edit_json};
use serde_json::{Value, json};

type Break = fn(&Path);

/// Sets one key of config.json.
fn set(dir: &Path, key: &str, value: Value) {
    edit_config(dir, |config| config[key] = value);
}

fn remove(dir: &Path, key: &str) {
    edit_config(dir, |config| {
        config.as_object_mut().unwrap().remove(key);
    });
}

fn replace_in_config(dir: &Path, from: &str, to: &str) {
    let path = dir.join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

fn weights(dir: &Path) -> std::path::PathBuf {
    dir.join("model.safetensors")
}

/// Changes one field of a tensor's header entry.
fn set_tensor(dir: &Path, tensor: &str, field: &str, value: Value) {
    edit_header(&weights(dir), |header| {
        assert!(!header[tensor].is_null(), "no {tensor}");
        header[tensor][field] = value;
    });
}

const Q: &str = "model.layers.1.self_attn.q_proj.weight";

/// Breaks of the directory and config.json of llama2-mha.
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

/// Breaks of model.safetensors of llama2-mha.
const WEIGHTS: &[(&str, Break, Status, &[&str])] = &[
    (
        "none",
        |d| fs::remove_file(weights(d)).unwrap(),
        NotFound,
        &["model.safetensors", "model.safetensors.index.json"],
    ),
    ("empty", |d| fs::write(weights(d), "").unwrap(), Corrupt, &["model.safetensors", "0 bytes"]),
    (
        "a directory",
        |d| {
            fs::remove_file(weights(d)).unwrap();
            fs::create_dir(weights(d)).unwrap();
        },
        Io,
        &["model.safetensors", "regular file"],
    ),
    ("truncated", |d| edit_bytes(&weights(d), |b| b.truncate(b.len() - 1)), Corrupt, &["model.safetensors", "tensor "]),
    ("header cut", |d| edit_bytes(&weights(d), |b| b.truncate(100)), Corrupt, &["model.safetensors", "header length"]),
    ("longer", |d| edit_bytes(&weights(d), |b| b.push(0)), Corrupt, &["model.safetensors", "from the header"]),
    (
        "huge header length",
        |d| edit_bytes(&weights(d), |b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes())),
        Corrupt,
        &["model.safetensors", "header length = 18446744073709551615"],
    ),
    (
        "header not JSON",
        |d| edit_bytes(&weights(d), |b| b[8] = b'x'),
        Corrupt,
        &["model.safetensors", "header", "JSON"],
    ),
    (
        "tensor twice",
        |d| {
            edit_bytes(&weights(d), |b| {
                let end = 8 + u64::from_le_bytes(b[..8].try_into().unwrap()) as usize;
                let mut header = b"{\"a\": {}, \"a\": {}}".to_vec();
                header.resize(end - 8, b' ');
                b[8..end].copy_from_slice(&header);
            });
        },
        Corrupt,
        &["model.safetensors", "\"a\" occurs twice"],
    ),
    (
        "missing tensor",
        |d| {
            edit_header(&weights(d), |h| {
                let entry = h.as_object_mut().unwrap().remove(Q).unwrap();
                h["other"] = entry;
            });
        },
        Corrupt,
        &["model.safetensors", Q, "missing", "[32, 32]"],
    ),
    (
        "wrong shape",
        |d| set_tensor(d, Q, "shape", json!([16, 64])),
        Corrupt,
        &["model.safetensors", Q, "[16, 64]", "[32, 32]"],
    ),
    (
        "lying shape",
        |d| set_tensor(d, Q, "shape", json!([32, 33])),
        Corrupt,
        &["model.safetensors", Q, "[32, 33]", "bytes"],
    ),
    (
        "overflowing shape",
        |d| set_tensor(d, Q, "shape", json!([1u64 << 40, 1u64 << 40])),
        Corrupt,
        &["model.safetensors", Q],
    ),
    ("no shape", |d| set_tensor(d, Q, "shape", Value::Null), Corrupt, &["model.safetensors", Q, "shape"]),
    ("lying dtype", |d| set_tensor(d, Q, "dtype", json!("F16")), Corrupt, &["model.safetensors", Q, "F16"]),
    ("unknown dtype", |d| set_tensor(d, Q, "dtype", json!("F128")), Unsupported, &["model.safetensors", Q, "F128"]),
    ("integers", |d| set_tensor(d, Q, "dtype", json!("I32")), Unsupported, &["model.safetensors", Q, "I32", "BF16"]),
    (
        "outside",
        |d| set_tensor(d, Q, "data_offsets", json!([0, 1u64 << 50])),
        Corrupt,
        &["model.safetensors", Q, "data_offsets"],
    ),
    (
        "backwards",
        |d| set_tensor(d, Q, "data_offsets", json!([4096, 0])),
        Corrupt,
        &["model.safetensors", Q, "data_offsets"],
    ),
    (
        "three offsets",
        |d| set_tensor(d, Q, "data_offsets", json!([0, 1, 2])),
        Corrupt,
        &["model.safetensors", Q, "data_offsets"],
    ),
    ("overlap", |d| set_tensor(d, Q, "data_offsets", json!([0, 4096])), Corrupt, &["model.safetensors", "overlaps"]),
    (
        "unused bias",
        |d| {
            edit_header(&weights(d), |h| {
                h["model.layers.0.self_attn.q_proj.bias"] =
                    json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
            });
        },
        Unsupported,
        &["model.safetensors", "model.layers.0.self_attn.q_proj.bias"],
    ),
    (
        "layer missing",
        |d| set(d, "num_hidden_layers", json!(3)),
        Corrupt,
        &["model.layers.2.input_layernorm.weight", "missing"],
    ),
];

fn index(dir: &Path) -> std::path::PathBuf {
    dir.join("model.safetensors.index.json")
}

fn set_shard(dir: &Path, tensor: &str, shard: &str) {
    edit_json(&index(dir), |index| {
        assert!(!index["weight_map"][tensor].is_null());
        index["weight_map"][tensor] = json!(shard);
    });
}

const NORM: &str = "model.norm.weight";

/// Breaks of the index and shards of llama-sharded.
const SHARDS: &[(&str, Break, Status, &[&str])] = &[
    ("escape", |d| set_shard(d, NORM, "../model.safetensors"), Corrupt, &["index.json", NORM, "../model.safetensors"]),
    ("absolute", |d| set_shard(d, NORM, "/etc/passwd"), Corrupt, &["index.json", NORM, "/etc/passwd"]),
    ("subdirectory", |d| set_shard(d, NORM, "a/b.safetensors"), Corrupt, &["index.json", NORM, "a/b.safetensors"]),
    ("parent", |d| set_shard(d, NORM, ".."), Corrupt, &["index.json", NORM, "\"..\""]),
    ("empty name", |d| set_shard(d, NORM, ""), Corrupt, &["index.json", NORM]),
    (
        "missing shard",
        |d| fs::remove_file(d.join("model-00002-of-00003.safetensors")).unwrap(),
        NotFound,
        &["index.json", "model-00002-of-00003.safetensors"],
    ),
    (
        "truncated shard",
        |d| edit_bytes(&d.join("model-00002-of-00003.safetensors"), |b| b.truncate(b.len() - 4)),
        Corrupt,
        &["model-00002-of-00003.safetensors", "tensor "],
    ),
    ("no map", |d| fs::write(index(d), "{}").unwrap(), Corrupt, &["index.json", "weight_map"]),
    ("empty map", |d| fs::write(index(d), "{\"weight_map\": {}}").unwrap(), Corrupt, &["index.json", "weight_map"]),
    (
        "map of numbers",
        |d| edit_json(&index(d), |i| i["weight_map"][NORM] = json!(3)),
        Corrupt,
        &["index.json", NORM, "= 3"],
    ),
    (
        "wrong shard",
        |d| {
            let value: Value = serde_json::from_slice(&fs::read(index(d)).unwrap()).unwrap();
            let other = if value["weight_map"][NORM] == "model-00001-of-00003.safetensors" { 2 } else { 1 };
            set_shard(d, NORM, &format!("model-0000{other}-of-00003.safetensors"));
        },
        Corrupt,
        &["index.json", NORM],
    ),
    (
        "tensor in two shards",
        |d| {
            fs::copy(d.join("model-00001-of-00003.safetensors"), d.join("model-00004.safetensors")).unwrap();
            edit_json(&index(d), |i| i["weight_map"]["extra"] = json!("model-00004.safetensors"));
        },
        Corrupt,
        &["model-00004.safetensors", "also in"],
    ),
    ("index is not JSON", |d| fs::write(index(d), "{").unwrap(), Corrupt, &["index.json", "JSON"]),
];

fn check(fixture: &str, table: &[(&str, Break, Status, &[&str])]) {
    for (name, break_it, status, needles) in table {
        let dir = copy(fixture);
        break_it(dir.path());
        match Model::load(dir.path().to_str().unwrap()) {
            Ok(_) => panic!("{fixture}, {name}: loaded"),
            Err(e) => {
                assert_eq!(e.status, *status, "{fixture}, {name}: {e}");
                for needle in *needles {
                    assert!(e.message.contains(needle), "{fixture}, {name}: {needle:?} is not in {e}");
                }
                assert!(e.message.len() < 700, "{fixture}, {name}: {} bytes of message", e.message.len());
            }
        }
    }
}

#[test]
fn broken_config() {
    check("llama2-mha", CONFIG);
}

#[test]
fn broken_weights() {
    check("llama2-mha", WEIGHTS);
}

#[test]
fn broken_shards() {
    check("llama-sharded", SHARDS);
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

#[test]
fn paths() {
    let e = Model::load("/nonexistent/model").err().unwrap();
    assert_eq!((e.status, e.message.contains("/nonexistent/model")), (NotFound, true), "{e}");
    let e = Model::load(file!()).err().unwrap();
    assert_eq!(e.status, InvalidArgument, "{e}");
    assert_eq!(Model::load("").err().unwrap().status, NotFound);
    assert!(Model::load("a\0b").is_err());
}

/// What must not matter: unused tensors, other metadata, sharding.
#[test]
fn harmless() {
    let load = |dir: &Path| Model::load(dir.to_str().unwrap()).unwrap_or_else(|e| panic!("{e}"));
    let good = load(copy("llama2-mha").path());
    let dir = copy("llama2-mha");
    edit_header(&weights(dir.path()), |h| {
        h["model.layers.0.self_attn.rotary_emb.inv_freq"] =
            json!({"dtype": "I64", "shape": [0], "data_offsets": [0, 0]});
        h["__metadata__"] = json!({"format": "np"});
    });
    set(dir.path(), "initializer_range", json!(0.5));
    let other = load(dir.path());
    assert_eq!(other.fingerprint(), good.fingerprint());
    assert_eq!(other.info(), good.info());
    // What must matter: one bit of one weight, a decoder fact.
    edit_bytes(&weights(dir.path()), |b| *b.last_mut().unwrap() ^= 1);
    assert_ne!(load(dir.path()).fingerprint(), good.fingerprint());
    let dir = copy("llama2-mha");
    set(dir.path(), "rope_theta", json!(10001.0));
    assert_ne!(load(dir.path()).fingerprint(), good.fingerprint());
}

/// Random damage to every parser: an error or a model, never a panic.
#[test]
fn mutations() {
    let mut random = Random(7);
    for (fixture, file) in [
        ("qwen3-sliding-bias", "config.json"),
        ("rope-yarn-mscale", "config.json"),
        ("llama2-mha", "model.safetensors"),
        ("llama-sharded", "model.safetensors.index.json"),
    ] {
        let dir = copy(fixture);
        let path = dir.path().join(file);
        let good = fs::read(&path).unwrap();
        let region = match file {
            "model.safetensors" => 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize,
            _ => good.len(),
        };
        let mut loaded = 0;
        for round in 0..700 {
            let mut bytes = good.clone();
            match round % 4 {
                0 => bytes.truncate(random.below(region)),
                1 => {
                    let (at, digit) = (random.below(region), b"0123456789-.e\"{}[],:"[random.below(20)]);
                    bytes[at] = digit;
                }
                2 => {
                    let (from, to) = (random.below(region), random.below(region));
                    let piece = bytes[from..(from + 20).min(region)].to_vec();
                    bytes.splice(to..to, piece);
                }
                _ => {
                    for _ in 0..=random.below(3) {
                        let at = random.below(region);
                        bytes[at] ^= 1 << random.below(8);
                    }
                }
            }
            fs::write(&path, &bytes).unwrap();
            if let Ok(model) = Model::load(dir.path().to_str().unwrap()) {
                loaded += 1;
                model.fingerprint();
                model.cpu_weights().unwrap();
            }
        }
        assert!(loaded < 700, "{fixture}/{file}: nothing was refused");
    }
}

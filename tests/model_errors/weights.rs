//! Broken .safetensors files and shard indexes.

use std::fs;
use std::path::Path;

use cleave::error::Status::{self, Corrupt, Io, NotFound, Unsupported};
use serde_json::{Value, json};

use crate::model_support::{edit_bytes, edit_header, edit_json};
use crate::{Break, check, set, weights};

/// Changes one field of a tensor's header entry.
fn set_tensor(dir: &Path, tensor: &str, field: &str, value: Value) {
    edit_header(&weights(dir), |header| {
        assert!(!header[tensor].is_null(), "no {tensor}");
        header[tensor][field] = value;
    });
}

const Q: &str = "model.layers.1.self_attn.q_proj.weight";

/// Defects of llama2-mha's model.safetensors.
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
        "long header",
        |d| {
            edit_bytes(&weights(d), |b| {
                let end = 8 + u64::from_le_bytes(b[..8].try_into().unwrap()) as usize;
                b.splice(end..end, std::iter::repeat_n(b' ', 33 << 20));
                b[..8].copy_from_slice(&((end - 8 + (33 << 20)) as u64).to_le_bytes());
            });
        },
        Unsupported,
        &["model.safetensors", "header length", "at most 33554432"],
    ),
    (
        "long list",
        |d| set_tensor(d, Q, "shape", json!(vec![0; 1 << 20])),
        Corrupt,
        &["model.safetensors", "header", "too many values"],
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

/// Defects of the index and shards of llama-sharded.
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

#[test]
fn broken_weights() {
    check("llama2-mha", WEIGHTS);
}

#[test]
fn broken_shards() {
    check("llama-sharded", SHARDS);
}

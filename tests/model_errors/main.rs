//! Malformed model directories: each is a valid fixture with one defect. The error must have the right status and name
//! the file and the tensor or key at fault.

mod config;
#[path = "../model_support/mod.rs"]
mod model_support;
mod weights;

use std::fs;
use std::path::Path;

use cleave::backend::cpu::CpuDevice;
use cleave::error::Status::{self, InvalidArgument, NotFound};
use cleave::model::Model;
use model_support::{Random, copy, edit_bytes, edit_config, edit_header};
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

fn weights(dir: &Path) -> std::path::PathBuf {
    dir.join("model.safetensors")
}

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
fn paths() {
    let e = Model::load("/nonexistent/model").err().unwrap();
    assert_eq!((e.status, e.message.contains("/nonexistent/model")), (NotFound, true), "{e}");
    let e = Model::load(file!()).err().unwrap();
    assert_eq!(e.status, InvalidArgument, "{e}");
    assert_eq!(Model::load("").err().unwrap().status, NotFound);
    assert!(Model::load("a\0b").is_err());
}

/// Differences that must not change the fingerprint: unused tensors, other metadata, sharding.
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
    // Differences that must change it: one bit of one weight, one property of the decoder.
    edit_bytes(&weights(dir.path()), |b| *b.last_mut().unwrap() ^= 1);
    assert_ne!(load(dir.path()).fingerprint(), good.fingerprint());
    let dir = copy("llama2-mha");
    set(dir.path(), "rope_theta", json!(10001.0));
    assert_ne!(load(dir.path()).fingerprint(), good.fingerprint());
}

/// A change of any byte of any weight makes another model, however large the tensor and wherever the byte.
#[test]
fn every_byte_enters_the_fingerprint() {
    // An embedding of 8 MiB in an otherwise small model.
    let (vocab, hidden) = (1 << 16, 32);
    let dir = copy("llama2-mha");
    set(dir.path(), "vocab_size", json!(vocab));
    let bytes = fs::read(weights(dir.path())).unwrap();
    let tensors = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let table = vec![0u8; vocab * hidden * 4];
    let shape = vec![vocab, hidden];
    let view = || ::safetensors::tensor::TensorView::new(::safetensors::Dtype::F32, shape.clone(), &table).unwrap();
    let replaced = |name: &str| name.starts_with("model.embed_tokens") || name.starts_with("lm_head");
    let all =
        tensors.tensors().into_iter().map(|(name, old)| if replaced(&name) { (name, view()) } else { (name, old) });
    fs::write(weights(dir.path()), ::safetensors::serialize(all, None).unwrap()).unwrap();
    let print = || Model::load(dir.path().to_str().unwrap()).unwrap_or_else(|e| panic!("{e}")).fingerprint();
    let good = print();
    let bytes = fs::read(weights(dir.path())).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut random = Random(5);
    for _ in 0..12 {
        let at = data + random.below(bytes.len() - data);
        edit_bytes(&weights(dir.path()), |bytes| bytes[at] ^= 1);
        assert_ne!(print(), good, "byte {at}");
        edit_bytes(&weights(dir.path()), |bytes| bytes[at] ^= 1);
    }
    assert_eq!(print(), good);
}

/// Random damage to the input of every parser gives an error or a model, never a panic.
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
                model.weights(&CpuDevice, false, &mut |_, _| Ok(())).unwrap();
            }
        }
        assert!(loaded < 700, "{fixture}/{file}: nothing was refused");
    }
}

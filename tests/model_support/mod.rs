//! Model directories for tests: the fixtures, and copies of them to break.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use cleave::backend::Batch;
use cleave::backend::cpu::Level;
use cleave::model::decoder::Executor;
use serde_json::Value;
use tempfile::TempDir;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// All fixtures, as manifest.json lists them.
pub fn fixtures() -> Vec<Value> {
    let text = std::fs::read_to_string(fixture("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    manifest["fixtures"].as_array().unwrap().clone()
}

/// A copy of a fixture's model (without its reference).
pub fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "reference.safetensors" {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    dir
}

pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

pub fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    edit_json(&dir.join("config.json"), edit);
}

pub fn edit_bytes(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    edit(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Rewrites the header of a .safetensors file, its length included, leaving the data as it is.
pub fn edit_header(path: &Path, edit: impl FnOnce(&mut Value)) {
    edit_bytes(path, |bytes| {
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
        edit(&mut header);
        let header = header.to_string();
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&bytes[end..]);
        *bytes = out;
    });
}

/// The levels of CPU kernels that this machine runs.
pub fn levels() -> impl Iterator<Item = Level> {
    let all = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx];
    all.into_iter().filter(|level| *level <= Level::best())
}

/// Runs both halves of a step and downloads all of its logits.
pub fn run(executor: &mut impl Executor, batch: &Batch, logits: &mut Vec<f32>) -> cleave::error::Result<()> {
    logits.clear();
    let step = executor.launch(batch)?;
    let rows: Vec<u32> = (0..batch.logit_rows.len() as u32).collect();
    executor.collect_logits(&step, &rows, logits)
}

/// Rewrites a .safetensors file after `edit` has changed the description and the bytes of each tensor.
pub fn edit_tensors(path: &Path, edit: impl Fn(&str, &mut Value, &mut Vec<u8>)) {
    edit_bytes(path, |bytes| {
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..data]).unwrap();
        let mut tensors = Vec::new();
        for (name, tensor) in header.as_object_mut().unwrap().iter_mut().filter(|(name, _)| *name != "__metadata__") {
            let [begin, end] = [0, 1].map(|i| data + tensor["data_offsets"][i].as_u64().unwrap() as usize);
            let mut content = bytes[begin..end].to_vec();
            edit(name, tensor, &mut content);
            tensor["data_offsets"] = Value::from(vec![tensors.len(), tensors.len() + content.len()]);
            tensors.extend(content);
        }
        let header = header.to_string();
        *bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend(tensors);
    });
}

/// A small generator of test randomness (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

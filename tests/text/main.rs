//! Compares the text helpers with the reference libraries (the JSON files here, written by tools/make_text_cases.py), and
//! feeds them files of model directories that are damaged or meant badly.

#[path = "../model_support/mod.rs"]
mod model_support;

mod chat;
mod directories;
mod streams;
mod tokenizers;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use cleave::model::tokenizer::Tokenizer;
use serde_json::Value;

fn text_file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text").join(name)).unwrap()
}

fn cases(name: &str) -> Vec<Value> {
    serde_json::from_str(&text_file(name)).unwrap()
}

fn tokenizer(name: &str) -> Arc<Tokenizer> {
    let file = format!("{name}.json");
    Arc::new(Tokenizer::parse(&file, &text_file(&file)).unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

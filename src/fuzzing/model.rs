//! Targets for the files of a model directory.

use super::{LITTLE, Target, unsealed};
use crate::model::config::ModelConfig;
use crate::model::json::Object;
use crate::model::rope::Rope;
use crate::model::safetensors;

const NUMBERS_AND_SIGNS: [&[u8]; 14] = [
    b"0",
    b"-1",
    b"1.5",
    b"1e308",
    b"4294967296",
    b"18446744073709551615",
    b"null",
    b"[]",
    b"{}",
    b"true",
    b"\"\"",
    b",",
    b"[",
    b"{",
];

/// Target for headers of safetensors files.
pub const SAFETENSORS: Target = Target {
    name: "safetensors",
    read: |data| safetensors::describe("fuzz", data).map(drop),
    seeds: || {
        let plain = br#"{"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}"#;
        let odd = br#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"b":{"dtype":"F4","shape":[4,0],"data_offsets":[4,4]},"c":{"dtype":"I64","shape":[1,1],"data_offsets":[4,12]}}"#;
        [&plain[..], odd, b"{}"].map(|header| safetensors_file(header, &[0; 12])).to_vec()
    },
    reseal: |data| {
        // The header ends with the last brace; everything after it is data.
        let end = data.iter().rposition(|&byte| byte == b'}');
        if let Some(len) = end.and_then(|end| (end + 1).checked_sub(8)) {
            data[..8].copy_from_slice(&(len as u64).to_le_bytes());
        }
    },
    words: &NUMBERS_AND_SIGNS,
    memory: LITTLE,
    cost: 1,
};

fn safetensors_file(header: &[u8], data: &[u8]) -> Vec<u8> {
    let data = if header == b"{}" { &[] } else { data };
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Target for the config.json of a model.
pub const CONFIG: Target = Target {
    name: "model_config",
    read: |data| {
        let config = ModelConfig::from_object(&Object::parse("config.json", data)?)?;
        assert!(!config.canonical().is_empty());
        Rope::new(&config.rope).inverse_frequencies(config.max_context_tokens);
        Ok(())
    },
    seeds: || {
        [
            &include_bytes!("../../tests/fixtures/llama3-rope-v4/config.json")[..],
            include_bytes!("../../tests/fixtures/mistral-window/config.json"),
            include_bytes!("../../tests/fixtures/qwen2-layer-types/config.json"),
            include_bytes!("../../tests/fixtures/qwen3-sliding-bias/config.json"),
            include_bytes!("../../tests/fixtures/rope-dynamic-beyond/config.json"),
            include_bytes!("../../tests/fixtures/rope-yarn-v5/config.json"),
        ]
        .map(<[u8]>::to_vec)
        .to_vec()
    },
    reseal: unsealed,
    words: &NUMBERS_AND_SIGNS,
    memory: LITTLE,
    cost: 1,
};

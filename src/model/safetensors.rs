//! One .safetensors file: `u64 header length | JSON header | data`, checked in full before any of it is used.
//!
//! Strict on purpose: offsets must tile the data exactly (no overlap, no hole, no rest), sizes must follow from
//! dtype and shape, and no key may occur twice, so that two readers can never see different tensors in one file.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Deserializer;
use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::json::{Strict, shown};
use crate::tensor::Dtype;
use crate::tensor::mmap::Mapping;
use crate::{bail, error};

/// Longest header. A hundred thousand tensors take a third of it; what is made of a header takes about four times
/// its size.
const HEADER_LIMIT: u64 = 32 << 20;
const RANK_MAX: usize = 8;
/// JSON values that describe one tensor: type, shape, two offsets.
const VALUES_MAX: usize = 32;

/// Element type of a tensor in a file. Types the engine cannot compute with may be in the file as long as no
/// tensor that the model needs has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// A type the engine computes with.
    Float(Dtype),
    /// Name and bits of an element.
    Other(&'static str, u32),
}

const OTHERS: [(&str, u32); 19] = [
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E5M2FNUZ", 8),
    ("F8_E4M3FNUZ", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("I16", 16),
    ("U16", 16),
    ("I32", 32),
    ("U32", 32),
    ("I64", 64),
    ("U64", 64),
    ("F64", 64),
    ("C64", 64),
];

impl Stored {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "F32" => Some(Stored::Float(Dtype::F32)),
            "F16" => Some(Stored::Float(Dtype::F16)),
            "BF16" => Some(Stored::Float(Dtype::Bf16)),
            _ => OTHERS.iter().find(|(n, _)| *n == name).map(|(n, bits)| Stored::Other(n, *bits)),
        }
    }

    fn bits(self) -> u64 {
        match self {
            Stored::Float(dtype) => 8 * dtype.size() as u64,
            Stored::Other(_, bits) => u64::from(bits),
        }
    }
}

/// A tensor of a mapped file.
#[derive(Clone)]
pub struct StoredTensor {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub stored: Stored,
    /// Sizes of the dimensions, the last one contiguous.
    pub shape: Vec<usize>,
    /// The file it is in.
    pub shard: Arc<Shard>,
    /// Start of its bytes in the file.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

impl StoredTensor {
    /// The elements, row-major and little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.shard.mapping.bytes()[self.offset..self.offset + self.len]
    }
}

/// A mapped file.
pub struct Shard {
    /// Path for errors.
    pub file: String,
    /// The whole file.
    pub mapping: Arc<Mapping>,
}

/// A tensor as a header describes it.
pub struct Described {
    name: String,
    stored: Stored,
    shape: Vec<usize>,
    offset: usize,
    len: usize,
}

/// Maps a file and reads its header: the tensors in the order of their data.
pub fn open(path: &Path) -> Result<Vec<StoredTensor>> {
    let file = path.display().to_string();
    let mapping = Mapping::open(path).map_err(|e| Error::io(&file, &e))?;
    let shard = Arc::new(Shard { file, mapping: Arc::new(mapping) });
    let stored = |Described { name, stored, shape, offset, len }| {
        let shard = shard.clone();
        StoredTensor { name, stored, shape, shard, offset, len }
    };
    Ok(describe(&shard.file, shard.mapping.bytes())?.into_iter().map(stored).collect())
}

/// Reads and checks the header in the bytes of a whole file, which errors call `file`.
pub fn describe(file: &str, bytes: &[u8]) -> Result<Vec<Described>> {
    let (header, data_start) = header(file, bytes)?;
    let visitor = Header { file, size: bytes.len(), data_start };
    let mut deserializer = serde_json::Deserializer::from_slice(header);
    let tensors = deserializer.deserialize_map(visitor).and_then(|tensors| deserializer.end().map(|()| tensors));
    let mut tensors = tensors.map_err(|e| error!(Corrupt, "{file}: safetensors header: malformed JSON: {e}"))??;
    tensors.sort_by_key(|t| (t.offset, t.len));
    let mut end = data_start;
    for tensor in &tensors {
        if tensor.offset != end {
            let fault = if tensor.offset < end { "overlaps the tensor before it" } else { "leaves a hole before it" };
            bail!(
                Corrupt,
                "{}: tensor {}: data at offset {}: expected {}: it {fault}",
                file,
                tensor.name,
                tensor.offset - data_start,
                end - data_start
            );
        }
        end += tensor.len;
    }
    let size = bytes.len();
    if end != size {
        bail!(Corrupt, "{file}: {size} bytes: expected {end} from the header");
    }
    Ok(tensors)
}

/// The header's bytes, and where the data begins.
fn header<'a>(file: &str, bytes: &'a [u8]) -> Result<(&'a [u8], usize)> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        bail!(Corrupt, "{file}: {} bytes: too short for a safetensors header", bytes.len());
    };
    let length = u64::from_le_bytes(*length);
    if length > rest.len() as u64 {
        bail!(Corrupt, "{file}: header length = {length}: expected at most {}, what the file has left", rest.len());
    }
    if length > HEADER_LIMIT {
        bail!(Unsupported, "{file}: header length = {length}: expected at most {HEADER_LIMIT}");
    }
    let length = length as usize;
    Ok((&rest[..length], 8 + length))
}

/// Takes a header apart as it is read, so that its JSON is never there as a whole.
struct Header<'a> {
    file: &'a str,
    size: usize,
    data_start: usize,
}

impl<'de> Visitor<'de> for Header<'_> {
    /// The outer error is one of JSON.
    type Value = Result<Vec<Described>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut tensors = Ok(Vec::new());
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert(name.clone()) {
                return Err(de::Error::custom(format!("key \"{name}\" occurs twice")));
            }
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = map.next_value_seed(Strict(&Cell::new(VALUES_MAX)))?;
            if let Ok(found) = &mut tensors {
                match tensor(self.file, self.size, self.data_start, &name, &value) {
                    Ok(tensor) => found.push(tensor),
                    // The rest is read all the same: malformed JSON goes before what is wrong with a tensor.
                    Err(e) => tensors = Err(e),
                }
            }
        }
        Ok(tensors)
    }
}

fn tensor(file: &str, size: usize, data_start: usize, name: &str, value: &Value) -> Result<Described> {
    let wrong = |key: &str, expected: &str| {
        let found = value.get(key).map_or("nothing".to_owned(), shown);
        error!(Corrupt, "{file}: tensor {name}: {key} = {found}: expected {expected}")
    };
    let dtype = value.get("dtype").and_then(Value::as_str).ok_or_else(|| wrong("dtype", "a string"))?;
    let Some(stored) = Stored::parse(dtype) else {
        bail!(Unsupported, "{file}: tensor {name}: dtype = \"{dtype}\": not a safetensors type");
    };
    let sizes = |key: &str, expected: &str| -> Result<Vec<u64>> {
        let list = value.get(key).and_then(Value::as_array).filter(|list| list.len() <= RANK_MAX);
        let list = list.and_then(|list| list.iter().map(Value::as_u64).collect::<Option<Vec<_>>>());
        list.ok_or_else(|| wrong(key, expected))
    };
    let shape = sizes("shape", "a list of at most 8 sizes")?;
    let offsets = sizes("data_offsets", "[begin, end]")?;
    let &[begin, end] = offsets.as_slice() else { return Err(wrong("data_offsets", "[begin, end]")) };
    let data_len = (size - data_start) as u64;
    if begin > end || end > data_len {
        bail!(
            Corrupt,
            "{file}: tensor {name}: data_offsets = [{begin}, {end}]: expected a range within the file's {data_len} data bytes"
        );
    }
    let bits = shape.iter().try_fold(stored.bits(), |bits, n| bits.checked_mul(*n));
    let Some(bits) = bits.filter(|bits| bits.is_multiple_of(8)) else {
        bail!(Corrupt, "{file}: tensor {name}: shape = {shape:?}: no whole number of bytes");
    };
    if bits / 8 != end - begin {
        bail!(
            Corrupt,
            "{file}: tensor {name}: {} bytes of data: expected {} from dtype {dtype} and shape {shape:?}",
            end - begin,
            bits / 8
        );
    }
    Ok(Described {
        name: name.to_owned(),
        stored,
        shape: shape.into_iter().map(|n| n as usize).collect(),
        offset: data_start + begin as usize,
        len: (end - begin) as usize,
    })
}

//! The .safetensors files of a model directory: one, or several under an index.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path};

use super::config::CONFIG_LIMIT;
use super::json::Object;
use super::safetensors::{self, Stored, StoredTensor};
use crate::error::Result;
use crate::tensor::Dtype;
use crate::{bail, error};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// An index names every tensor: some megabytes for the largest models.
const INDEX_LIMIT: usize = 32 * CONFIG_LIMIT;
const SHARDS_MAX: usize = 1024;

/// All tensors of all shards by name.
pub(super) struct TensorFiles {
    /// The file that should have a missing tensor.
    place: String,
    tensors: HashMap<String, StoredTensor>,
}

impl TensorFiles {
    /// Maps the files of a directory, and checks that its index, if it has one, says what is in them.
    pub fn open(dir: &Path) -> Result<Self> {
        // A whole file has precedence over an index, as in transformers.
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.exists() {
            let tensors = safetensors::open(&single)?.into_iter().map(|t| (t.name.clone(), t)).collect();
            return Ok(TensorFiles { place: single.display().to_string(), tensors });
        }
        if !index.exists() {
            bail!(NotFound, "{}: neither {SINGLE} nor {INDEX} is there", dir.display());
        }
        let place = index.display().to_string();
        let object = Object::read(&index, INDEX_LIMIT)?.ok_or_else(|| error!(NotFound, "{place}: no such file"))?;
        let map = object.object("weight_map")?.ok_or_else(|| object.wrong("weight_map", "an object"))?;
        let mut shards = BTreeSet::new();
        for tensor in map.map().keys() {
            let shard = map.str(tensor)?.ok_or_else(|| map.wrong(tensor, "a file name"))?;
            if !is_plain_name(shard) {
                bail!(Corrupt, "{}: {tensor} = \"{shard}\": expected the name of a file in the directory", map.place());
            }
            shards.insert(shard);
        }
        if shards.is_empty() || shards.len() > SHARDS_MAX {
            bail!(Corrupt, "{place}: weight_map names {} files: expected 1 to {SHARDS_MAX}", shards.len());
        }
        let mut tensors: HashMap<String, StoredTensor> = HashMap::new();
        for shard in shards {
            for tensor in
                safetensors::open(&dir.join(shard)).map_err(|e| e.context(format!("{INDEX} names a shard")))?
            {
                if let Some(other) = tensors.get(&tensor.name) {
                    bail!(Corrupt, "{}: tensor {}: also in {}", tensor.shard.file, tensor.name, other.shard.file);
                }
                tensors.insert(tensor.name.clone(), tensor);
            }
        }
        for (name, shard) in map.map() {
            let found = tensors.get(name).and_then(|t| Path::new(&t.shard.file).file_name()?.to_str());
            if found != shard.as_str() {
                bail!(Corrupt, "{place}: weight_map: {name}: not in the file {shard}");
            }
        }
        Ok(TensorFiles { place, tensors })
    }

    /// The tensor of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// The tensor of this name, which must have this shape, and its dtype, which must be a supported one.
    pub fn need(&self, name: &str, shape: &[usize]) -> Result<(StoredTensor, Dtype)> {
        let Some(stored) = self.tensors.get(name) else {
            bail!(Corrupt, "{}: tensor {name} is missing: expected shape {shape:?}", self.place);
        };
        let file = &stored.shard.file;
        let dtype = match stored.stored {
            Stored::Float(dtype) => dtype,
            Stored::Other(other, _) => {
                bail!(Unsupported, "{file}: tensor {name}: dtype {other}: supported are F32, F16 and BF16")
            }
        };
        if stored.shape != shape {
            bail!(Corrupt, "{file}: tensor {name}: shape {:?}: expected {shape:?} from config.json", stored.shape);
        }
        Ok((stored.clone(), dtype))
    }
}

/// Whether `name` is the plain name of a file: no directory part, no way out of the directory.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['\\', '\0'])
}

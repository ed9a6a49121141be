//! model: a Hugging Face directory (config.json, safetensors, tokenizer.json)

use super::boundary::{c_string, call, call_void, fixed_text, put, required};
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::{cleave_model, cleave_model_t};
use super::registry::{self, Kind, Object};
use super::versioned::{Output, VersionedStruct, sized_struct};
use crate::model::Model;
use libc::c_char;

impl Object for Model {
    type C = cleave_model;
    const KIND: Kind = Kind::Model;
}

/// Figures of a model. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_model_info_t {
    /// sizeof(cleave_model_info_t), set by the caller.
    pub struct_size: u32,
    /// Decoder layers.
    pub n_layers: u32,
    /// Query heads.
    pub n_heads: u32,
    /// Key and value heads.
    pub n_kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Positions the model was made for; a sequence cannot be longer.
    pub max_context_tokens: u32,
    /// No flags are defined yet: 0.
    pub flags: u32,
    /// Bytes of the weights that the decoder uses, as stored.
    pub weight_bytes: u64,
    /// Bytes of the keys and values of one token over all layers, in the model's default KV dtype.
    pub kv_bytes_per_token: u64,
    /// Hash of the decoder's config and of every byte of its weights: equal for models that can exchange KV.
    pub fingerprint: [u8; 32],
    /// NUL-terminated, as config.json names it: "LlamaForCausalLM".
    pub architecture: [c_char; 64],
}

sized_struct!(cleave_model_info_t);

/// Opens the model in directory `path` (NUL-terminated UTF-8), checks config and headers in full and takes the
/// fingerprint. `*out` is the caller's, to be given back with cleave_model_release. Without tokenizer files everything
/// but the text functions works.
///
/// The weights stay mapped files. While the model is loaded its files must not be truncated or overwritten in place:
/// truncation makes the process receive SIGBUS, overwriting changes what the model computes. Replace a model by
/// writing new files and renaming them over the old ones, which leaves loaded models as they are.
///
/// The fingerprint covers every byte of the weights that the decoder uses. The first load of a directory reads them
/// all, on all CPUs. The result is kept in $XDG_CACHE_HOME/cleave, or else $HOME/.cache/cleave, for models of 64 MiB
/// or more; a later load uses it if size, inode, modification and change time of every file are the same and a sample
/// of each tensor is. A cache directory that is missing, read-only or writable by others is not used.
///
/// Callable from any thread. [BLOCKING] Reads the headers of all files, and the weights if the fingerprint is not known.
/// Errors: NOT_FOUND (directory or file), CORRUPT (malformed or truncated file, missing tensor: the text names file,
/// tensor and reason), UNSUPPORTED (architecture, rope variant, quantisation), IO, OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_model_load(
    path: *const c_char,
    out: *mut *mut cleave_model_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        required(out, "out")?;
        let model = Model::load(c_string(path, "path")?)?;
        put(out, registry::insert(model)?);
        Ok(())
    })
}

/// Gives the caller's hold on a model back. Caches and detokenizers made from it keep what they need, so this may be
/// called as soon as they exist; memory goes with the last of them. NULL and a model that was released before are
/// ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_model_release(model: *mut cleave_model_t) {
    if !model.is_null() {
        call_void(|| registry::take::<Model>(model, "model").map(drop));
    }
}

/// Describes a model. Callable from any thread. Errors: INVALID_ARGUMENT, NOT_FOUND (released).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_model_info(
    model: *const cleave_model_t,
    out: *mut cleave_model_info_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let model = registry::get::<Model>(model, "model")?;
        let out = Output::new(out, "out")?;
        let info = model.info();
        let mut c = cleave_model_info_t::zeroed();
        c.n_layers = info.n_layers as u32;
        c.n_heads = info.n_heads as u32;
        c.n_kv_heads = info.n_kv_heads as u32;
        c.head_dim = info.head_dim as u32;
        c.vocab_size = info.vocab_size as u32;
        c.max_context_tokens = info.max_context_tokens as u32;
        c.weight_bytes = info.weight_bytes as u64;
        c.kv_bytes_per_token = info.kv_bytes_per_token as u64;
        c.fingerprint = model.fingerprint();
        c.architecture = fixed_text(info.architecture);
        out.write(&c);
        Ok(())
    })
}

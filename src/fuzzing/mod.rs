//! What reads untrusted bytes, one [`Target`] per format: for `fuzz/` and `tests/fuzz_bounded.rs`. Behind the feature
//! `fuzzing`, never in a release build.

mod kv;
mod model;
mod net;

use crate::error::Result;

/// One format and its reader.
pub struct Target {
    /// Also that of `fuzz/fuzz_targets/<name>.rs`.
    pub name: &'static str,
    /// Reads the bytes as the library does. Refusing them is fine; a panic is a finding, and so are allocations that the
    /// bytes do not account for.
    pub read: fn(&[u8]) -> Result<()>,
    /// Bytes that are read without an error.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Makes lengths, checksums and MACs right again after a mutation. Seeds stay what they are.
    pub reseal: fn(&mut Vec<u8>),
    /// What is worth putting in beside random bytes.
    pub words: &'static [&'static [u8]],
}

pub const TARGETS: &[Target] =
    &[kv::IMAGE, kv::TICKET, kv::ADDRESS, net::MESSAGE, net::GREETING, model::SAFETENSORS, model::CONFIG];

/// A format without checks over its bytes.
fn unsealed(_: &mut Vec<u8>) {}

/// Reads the bytes as they are and once more resealed. Panics if there is no such target.
pub fn fuzz(name: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|target| target.name == name);
    #[expect(clippy::expect_used, reason = "a fuzz target that names none must not pass")]
    let target = found.expect("a name in fuzzing::TARGETS");
    let _ = (target.read)(data);
    let mut sealed = data.to_vec();
    (target.reseal)(&mut sealed);
    if sealed != data {
        let _ = (target.read)(&sealed);
    }
}

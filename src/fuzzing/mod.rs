//! Readers of untrusted bytes, one [`Target`] per format, for `fuzz/` and `tests/fuzz_bounded.rs`. Exists only with the
//! feature `fuzzing`, never in a release build.

mod kv;
mod model;
mod net;
mod text;

use crate::error::Result;

/// One format and its reader.
pub struct Target {
    /// Name of the target, and of its file `fuzz/fuzz_targets/<name>.rs`.
    pub name: &'static str,
    /// Reads the bytes as the library does. An error is a valid outcome. A panic is a finding, and so is an allocation out of
    /// proportion to the input.
    pub read: fn(&[u8]) -> Result<()>,
    /// Returns valid inputs, which are read without an error.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Corrects lengths, checksums and MACs after a mutation. It does not change seeds.
    pub reseal: fn(&mut Vec<u8>),
    /// Byte strings that mutations insert besides random bytes.
    pub words: &'static [&'static [u8]],
    /// Most memory that reading may hold at one time.
    pub memory: Memory,
    /// How many times longer one reading takes than that of the other formats, about. It divides the number of mutants.
    pub cost: u64,
}

/// Limit of memory: some bytes for each byte of input, and some for any input.
pub struct Memory {
    /// For each byte of input.
    pub per_byte: usize,
    /// For any input.
    pub fixed: usize,
}

/// Limit for formats that become little more than what they contain.
const LITTLE: Memory = Memory { per_byte: 64, fixed: 256 << 10 };

/// Targets for every format that the library reads from outside.
pub const TARGETS: &[Target] = &[
    kv::IMAGE,
    kv::TICKET,
    kv::ADDRESS,
    net::MESSAGE,
    net::GREETING,
    model::SAFETENSORS,
    model::CONFIG,
    text::CHAT_TEMPLATE,
    text::TOKENIZER,
];

/// The `reseal` function of a format without lengths, checksums or MACs.
fn unsealed(_: &mut Vec<u8>) {}

/// Reads the bytes unchanged, and again after `reseal`. Panics if there is no target of this name.
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

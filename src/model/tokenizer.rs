//! tokenizer.json: text to tokens. A helper for hosts without a tokenizer of their own; engines deal in tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;

use crate::error::Result;
use crate::model::token_scheme::Scheme;
use crate::model::{json, tokenizer_limits};
use crate::{bail, error};

/// Largest tokenizer.json that is read.
const TOKENIZER_LIMIT: usize = 64 << 20;
/// Longest text that is tokenised at once: a context of a million tokens and more. The crate behind it takes some 140
/// bytes for each byte meanwhile.
const TEXT_LIMIT: usize = 8 << 20;
/// A normalizer may make a text so many times longer before less of it is taken.
const USUAL_GROWTH: usize = 4;
/// The crate behind it recurses over what the file nests.
const STACK: usize = 64 << 20;

/// A loaded tokenizer.json.
pub struct Tokenizer {
    file: String,
    inner: tokenizers::Tokenizer,
    /// The same, reading special tokens in text as plain text; made when first asked for.
    literal: OnceLock<Box<tokenizers::Tokenizer>>,
    scheme: Scheme,
    digest: [u8; 32],
    /// Bytes of the longest text that it takes.
    longest: usize,
}

impl Tokenizer {
    /// Reads the tokenizer.json of a directory; None if there is none.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("tokenizer.json");
        match json::read_text(&path, TOKENIZER_LIMIT)? {
            Some(text) => Tokenizer::parse(&path.display().to_string(), &text).map(Some),
            None => Ok(None),
        }
    }

    /// Parses the contents of a tokenizer.json. The crate behind it panics on some malformed files; that too is
    /// CORRUPT here.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let growth = tokenizer_limits::check(file, text)?;
        let parse = || contain(file, || tokenizers::Tokenizer::from_bytes(text.as_bytes()));
        let parsed = crate::sys::run_with_stack("cleave-tokenizer", STACK, parse)??;
        let mut inner = parsed.map_err(|e| error!(Corrupt, "{file}: not a tokenizer: {e}"))?;
        // A server's prompts are as long as they are: what the file says about cutting and filling up is for
        // training.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| error!(Corrupt, "{file}: truncation: {e}"))?;
        let scheme = match inner.get_decoder().map(serde_json::to_value) {
            None => Scheme::Window,
            Some(Ok(decoder)) => Scheme::detect(&decoder),
            Some(Err(e)) => bail!(Corrupt, "{file}: decoder: {e}"),
        };
        let digest = *blake3::hash(text.as_bytes()).as_bytes();
        let longest = TEXT_LIMIT * USUAL_GROWTH / growth.max(USUAL_GROWTH);
        Ok(Tokenizer { file: file.to_owned(), inner, literal: OnceLock::new(), scheme, digest, longest })
    }

    /// The tokens of `text`. `add_special` adds what the model wants around a sequence (BOS). `parse_special`
    /// reads special tokens written in the text as those tokens: right for a rendered chat template, wrong for
    /// text from users, who could then forge turns.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        if text.len() > self.longest {
            bail!(InvalidArgument, "text of {} bytes: expected at most {}", text.len(), self.longest);
        }
        let tokenizer = if parse_special {
            &self.inner
        } else {
            self.literal.get_or_init(|| {
                let mut literal = Box::new(self.inner.clone());
                literal.set_encode_special_tokens(true);
                literal
            })
        };
        let encoding = contain(&self.file, || tokenizer.encode_fast(text, add_special))?;
        let encoding = encoding.map_err(|e| error!(InvalidArgument, "{}: cannot encode the text: {e}", self.file))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// BLAKE3 of tokenizer.json: two hosts that agree on it agree on what tokens mean.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// How tokens turn back into bytes.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// The token's text as the vocabulary has it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether the token is control rather than text (BOS, end of turn, ...).
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// Decodes a short run of tokens with the tokenizer's own decoder.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = contain(&self.file, || self.inner.decode(ids, false))?;
        text.map_err(|e| error!(Corrupt, "{}: cannot decode tokens {ids:?}: {e}", self.file))
    }
}

/// Runs third-party code that may panic on odd files.
fn contain<T>(file: &str, run: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown cause");
        error!(Corrupt, "{file}: the tokenizer failed: {text}")
    })
}

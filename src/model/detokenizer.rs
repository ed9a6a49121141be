//! Tokens back to text, one at a time, giving out complete UTF-8 only.

use std::sync::Arc;

use crate::bail;
use crate::error::Result;
use crate::model::token_scheme::Scheme;
use crate::model::tokenizer::Tokenizer;

/// Turns the tokens of one sequence into text, one at a time. A character whose bytes are spread over several tokens comes with the last
/// of them; bytes that are no UTF-8 come as U+FFFD as soon as that is certain. Spacing is that of decoding all
/// pushed tokens at once: a SentencePiece model's leading space is dropped before the first token only, so to
/// continue a prompt's text rather than begin a reply, push the prompt's tokens first and ignore what they give.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    vocab_size: u32,
    skip_special: bool,
    /// Bytes of a character that is not complete yet: at most three.
    partial: Vec<u8>,
    /// Characters still to be stripped at the start of the text.
    strip_left: usize,
    /// Token before this one, for [`Scheme::Window`].
    previous: Option<u32>,
}

impl Detokenizer {
    /// `vocab_size` is the model's: ids below it that the tokenizer does not know (padding of the embedding
    /// table) are empty text.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: u32, skip_special: bool) -> Self {
        let strip_left = match tokenizer.scheme() {
            Scheme::ByteFallback { strip: Some((_, n)), .. } => *n,
            _ => 0,
        };
        Detokenizer { tokenizer, vocab_size, skip_special, partial: Vec::new(), strip_left, previous: None }
    }

    /// The text that has become complete with `token`; often one token's, sometimes none.
    pub fn push(&mut self, token: u32) -> Result<String> {
        let Some(text) = spelling(&self.tokenizer, self.vocab_size, token)? else { return Ok(String::new()) };
        if self.skip_special && self.tokenizer.is_special(token) {
            return Ok(String::new());
        }
        match self.tokenizer.scheme() {
            Scheme::ByteLevel => byte_level(&text, &mut self.partial),
            Scheme::ByteFallback { replacements, bytes, .. } => {
                byte_fallback(text, replacements, *bytes, &mut self.partial)
            }
            Scheme::Window => return self.window(token),
        }
        let out = self.complete();
        Ok(self.strip(out))
    }

    /// Ends the text: what is left of an incomplete character becomes U+FFFD.
    pub fn flush(&mut self) -> String {
        let text = if self.partial.is_empty() { String::new() } else { "\u{FFFD}".to_owned() };
        self.partial.clear();
        self.strip(text)
    }

    fn window(&mut self, token: u32) -> Result<String> {
        let Some(previous) = self.previous.replace(token) else { return self.tokenizer.decode(&[token]) };
        let both = self.tokenizer.decode(&[previous, token])?;
        let before = self.tokenizer.decode(&[previous])?;
        match both.strip_prefix(before.as_str()) {
            Some(rest) => Ok(rest.to_owned()),
            None => self.tokenizer.decode(&[token]),
        }
    }

    /// Takes all complete characters out of `partial`.
    fn complete(&mut self) -> String {
        let mut out = String::new();
        let mut rest = self.partial.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    out.push_str(valid);
                    rest = &[];
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    out.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    rest = after;
                    if let Some(bad) = e.error_len() {
                        out.push('\u{FFFD}');
                        rest = &rest[bad..];
                        continue;
                    }
                }
            }
            break;
        }
        let done = self.partial.len() - rest.len();
        self.partial.drain(..done);
        out
    }

    fn strip(&mut self, text: String) -> String {
        let Scheme::ByteFallback { strip: Some((content, _)), .. } = self.tokenizer.scheme() else { return text };
        let mut rest = text.as_str();
        while self.strip_left > 0 && !rest.is_empty() {
            match rest.strip_prefix(*content) {
                Some(after) => {
                    rest = after;
                    self.strip_left -= 1;
                }
                None => self.strip_left = 0,
            }
        }
        rest.to_owned()
    }
}

/// A token as tokenizer.json spells it; None for padding of the embedding table.
fn spelling(tokenizer: &Tokenizer, vocab_size: u32, token: u32) -> Result<Option<String>> {
    let text = tokenizer.token(token);
    if text.is_none() && token >= vocab_size {
        bail!(InvalidArgument, "token {token}: expected less than the vocabulary's {vocab_size}");
    }
    Ok(text)
}

/// The bytes that a token stands for by itself, which need not be whole characters; of a special token its written
/// form. Nothing is stripped, so a SentencePiece token keeps its leading space.
pub fn token_bytes(tokenizer: &Tokenizer, vocab_size: u32, token: u32) -> Result<Vec<u8>> {
    let Some(text) = spelling(tokenizer, vocab_size, token)? else { return Ok(Vec::new()) };
    let mut bytes = Vec::new();
    match tokenizer.scheme() {
        _ if tokenizer.is_special(token) => bytes = text.into_bytes(),
        Scheme::ByteLevel => byte_level(&text, &mut bytes),
        Scheme::ByteFallback { replacements, bytes: fallback, .. } => {
            byte_fallback(text, replacements, *fallback, &mut bytes)
        }
        Scheme::Window => bytes = tokenizer.decode(&[token])?.into_bytes(),
    }
    Ok(bytes)
}

/// Appends the bytes a byte-level token stands for. A token with a character outside the alphabet (an added
/// token) stands for itself.
fn byte_level(token: &str, out: &mut Vec<u8>) {
    let begin = out.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => out.push(byte),
            None => {
                out.truncate(begin);
                out.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// GPT-2's alphabet: printable Latin-1 bytes are themselves, the 68 others follow from U+0100 in order.
fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

fn byte_fallback(token: String, replacements: &[(String, String)], bytes: bool, out: &mut Vec<u8>) {
    let token = replacements.iter().fold(token, |text, (from, to)| text.replace(from, to));
    let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).filter(|hex| hex.len() == 2);
    match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| bytes) {
        Some(byte) => out.push(byte),
        None => out.extend_from_slice(token.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The alphabet is a bijection onto the 256 bytes, built as GPT-2's bytes_to_unicode builds it.
    #[test]
    fn byte_alphabet() {
        let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let mut next = 0x100;
        for byte in 0..=255u32 {
            let c = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            assert_eq!(byte_of(char::from_u32(c).unwrap()), Some(byte as u8), "byte {byte:#x}");
        }
        assert_eq!(next, 0x144);
        assert_eq!(byte_of('\u{144}'), None);
        assert_eq!(byte_of(' '), None);
    }
}

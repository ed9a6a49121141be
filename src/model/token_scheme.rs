//! How the tokens of a tokenizer spell bytes, by the `decoder` of tokenizer.json.

use serde_json::Value;

/// How the tokens of a tokenizer turn into bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// GPT-2 bytes in disguise (Qwen, Llama 3): each character of a token stands for one byte.
    ByteLevel,
    /// SentencePiece (Llama 2, Mistral): replacements, then `<0xE4>` tokens are bytes, then `strip` of the
    /// character at the start of the whole text.
    ByteFallback {
        /// Pairs of pattern and replacement, applied to a token in this order.
        replacements: Vec<(String, String)>,
        /// Tokens of the form `<0xE4>` stand for one byte.
        bytes: bool,
        /// Character to remove at the start of the text, and how many of it at most.
        strip: Option<(char, usize)>,
    },
    /// Anything else: the tokenizer's own decoder over the previous token and this one.
    Window,
}

impl Scheme {
    /// Chooses the scheme by the `decoder` of tokenizer.json.
    pub fn detect(decoder: &Value) -> Scheme {
        let kind = |step: &Value| step.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if kind(decoder) == "ByteLevel" {
            return Scheme::ByteLevel;
        }
        let Some(steps) = decoder.get("decoders").and_then(Value::as_array) else { return Scheme::Window };
        if let [only] = steps.as_slice()
            && kind(only) == "ByteLevel"
        {
            return Scheme::ByteLevel;
        }
        let (mut replacements, mut bytes, mut fused, mut strip) = (Vec::new(), false, false, None);
        for step in steps {
            match kind(step).as_str() {
                "Replace" if !bytes && !fused => {
                    let pattern = step.pointer("/pattern/String").and_then(Value::as_str);
                    let content = step.get("content").and_then(Value::as_str);
                    let (Some(pattern), Some(content)) = (pattern, content) else { return Scheme::Window };
                    replacements.push((pattern.to_owned(), content.to_owned()));
                }
                "ByteFallback" if !bytes && !fused => bytes = true,
                "Fuse" => fused = true,
                "Strip" if fused && strip.is_none() && step.get("stop").and_then(Value::as_u64) == Some(0) => {
                    let content = step.get("content").and_then(Value::as_str).and_then(|s| s.chars().next());
                    let start = step.get("start").and_then(Value::as_u64);
                    let (Some(content), Some(start)) = (content, start) else { return Scheme::Window };
                    strip = Some((content, start as usize));
                }
                _ => return Scheme::Window,
            }
        }
        Scheme::ByteFallback { replacements, bytes, strip }
    }
}

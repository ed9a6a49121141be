//! Limits on tokenizer.json, checked before the crate behind [`super::tokenizer`] builds anything from it. That crate
//! takes some hundred bytes for each entry, compiles any regular expression and applies any replacement, and an
//! allocation that fails takes the host with it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::error::Result;
use crate::{bail, error};

/// Entries of the vocabulary, and merges. The largest vocabularies have a quarter of a million.
const ENTRIES_MAX: usize = 1 << 21;
const ADDED_MAX: usize = 1 << 17;
const PATTERN_MAX: usize = 16 << 10;
/// Product of the repetition counts of one pattern, as `{1000}` within `{1000}` is compiled a million times.
const REPETITIONS_MAX: u64 = 10_000;
/// How many times longer all replacements together may make a text. SentencePiece's `▁` makes it three times.
const GROWTH_MAX: u64 = 64;
/// Base64 of SentencePiece's table of characters; that of T5 is a third of it.
const CHARSMAP_MAX: usize = 1 << 20;

#[derive(serde::Deserialize)]
struct Outline {
    #[serde(default)]
    added_tokens: Count,
    #[serde(default)]
    model: Option<Vocabulary>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(serde::Deserialize)]
struct Vocabulary {
    #[serde(default)]
    vocab: Count,
    #[serde(default)]
    merges: Count,
}

/// Number of elements of a list or map, none of which is kept.
#[derive(Default)]
struct Count(usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Counting;
        impl<'de> Visitor<'de> for Counting {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list or an object")
            }

            fn visit_unit<E>(self) -> std::result::Result<Count, E> {
                Ok(Count(0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Count, A::Error> {
                let mut n = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    n += 1;
                }
                Ok(Count(n))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Count, A::Error> {
                let mut n = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    n += 1;
                }
                Ok(Count(n))
            }
        }
        deserializer.deserialize_any(Counting)
    }
}

/// Checks a whole file, and returns how many times longer its normalizer may make a text. CORRUPT where it is no JSON of
/// that form, UNSUPPORTED where it is beyond a limit.
pub fn check(file: &str, text: &str) -> Result<usize> {
    let outline: Outline = serde_json::from_str(text).map_err(|e| error!(Corrupt, "{file}: not a tokenizer: {e}"))?;
    let vocabulary = outline.model.unwrap_or(Vocabulary { vocab: Count(0), merges: Count(0) });
    for (what, Count(n), most) in [
        ("added_tokens", outline.added_tokens, ADDED_MAX),
        ("model.vocab", vocabulary.vocab, ENTRIES_MAX),
        ("model.merges", vocabulary.merges, ENTRIES_MAX),
    ] {
        if n > most {
            bail!(Unsupported, "{file}: {what} has {n} entries: expected at most {most}");
        }
    }
    let mut of_normalizer = 1;
    for (what, steps) in
        [("decoder", &outline.decoder), ("pre_tokenizer", &outline.pre_tokenizer), ("normalizer", &outline.normalizer)]
    {
        let mut growth = 1;
        step(steps, &mut growth).map_err(|e| error!(Unsupported, "{file}: {what}: {e}"))?;
        if growth > GROWTH_MAX {
            bail!(Unsupported, "{file}: {what}: makes a text more than {GROWTH_MAX} times longer");
        }
        of_normalizer = growth as usize;
    }
    Ok(of_normalizer)
}

/// Checks one step and those within it, and multiplies `growth` by how much longer it may make a text.
fn step(value: &Value, growth: &mut u64) -> std::result::Result<(), String> {
    match value {
        Value::Array(list) => list.iter().try_for_each(|value| step(value, growth)),
        Value::Object(map) => {
            let text = |key: &str| map.get(key).and_then(Value::as_str);
            if let Some(table) = text("precompiled_charsmap")
                && table.len() > CHARSMAP_MAX
            {
                return Err(format!("precompiled_charsmap of {} bytes: expected at most {CHARSMAP_MAX}", table.len()));
            }
            let pattern = map.get("pattern");
            let regex = pattern.and_then(|pattern| pattern.get("Regex")).and_then(Value::as_str);
            if let Some(regex) = regex {
                check_regex(regex)?;
            }
            if text("type") == Some("Replace") {
                let literal = pattern.and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
                let shortest = literal.map_or(1, str::len).max(1);
                let longer = text("content").map_or(0, str::len).div_ceil(shortest).max(1) as u64;
                *growth = growth.saturating_mul(longer);
            }
            map.values().try_for_each(|value| step(value, growth))
        }
        _ => Ok(()),
    }
}

fn check_regex(regex: &str) -> std::result::Result<(), String> {
    if regex.len() > PATTERN_MAX {
        return Err(format!("a pattern of {} bytes: expected at most {PATTERN_MAX}", regex.len()));
    }
    let counts = regex.match_indices('{').filter_map(|(at, _)| {
        // \x{20000} is a character.
        if ["\\x", "\\u", "\\p", "\\P"].iter().any(|escape| regex[..at].ends_with(escape)) {
            return None;
        }
        let inner = regex[at + 1..].split('}').next()?;
        let numbers = inner.split(',').map(|number| number.trim().parse::<u64>());
        numbers.filter_map(std::result::Result::ok).max()
    });
    let product = counts.fold(1u64, |product, count| product.saturating_mul(count.max(1)));
    if product > REPETITIONS_MAX {
        return Err(format!("a pattern that repeats {product} times: expected at most {REPETITIONS_MAX}"));
    }
    Ok(())
}

//! tokenizer.json files that are damaged or want too much.

use std::sync::Arc;

use cleave::error::Status::{Corrupt, InvalidArgument, Unsupported};
use cleave::model::detokenizer::Detokenizer;
use cleave::model::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::model_support::Random;
use crate::{text_file, tokenizer};

/// Tokenizers that expand a small input enormously are refused before anything is built from them.
#[test]
fn tokenizers_are_refused_memory() {
    let with = |edit: &dyn Fn(&mut Value)| {
        let mut tokenizer: Value = serde_json::from_str(&text_file("byte_level.json")).unwrap();
        edit(&mut tokenizer);
        Tokenizer::parse("tokenizer.json", &tokenizer.to_string()).err().unwrap()
    };
    let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let twice = replace(json!({"String": "a"}), "aa");
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let many: serde_json::Map<String, Value> = (0..200_000).map(|i| (format!("{i}"), json!(i))).collect();
    for (needle, e) in [
        (
            "times longer",
            with(&|t| t["normalizer"] = json!({"type": "Sequence", "normalizers": vec![twice.clone(); 40]})),
        ),
        ("times longer", with(&|t| t["normalizer"] = replace(json!({"Regex": ""}), &"x".repeat(100_000)))),
        ("times longer", with(&|t| t["decoder"] = json!({"type": "Sequence", "decoders": vec![twice.clone(); 40]}))),
        ("repeats", with(&|t| t["pre_tokenizer"] = split("(?:(?:(?:a(?=b)){1000}){1000}){1000}"))),
        ("a pattern of", with(&|t| t["pre_tokenizer"] = split(&"a".repeat(20_000)))),
        ("added_tokens has 200000", with(&|t| t["added_tokens"] = json!(many))),
    ] {
        assert!(e.status == Unsupported && e.message.contains(needle), "{needle}: {e}");
    }
    // The input limit is lower if the normalizer expands text.
    let mut longer: Value = serde_json::from_str(&text_file("byte_level.json")).unwrap();
    longer["normalizer"] = json!({"type": "Sequence", "normalizers": vec![twice.clone(); 5]});
    let longer = Tokenizer::parse("tokenizer.json", &longer.to_string()).unwrap();
    assert_eq!(longer.tokenize("a", false, true).unwrap(), longer.tokenize("a", false, false).unwrap());
    assert_eq!(longer.tokenize(&"a".repeat((1 << 20) + 1), true, true).unwrap_err().status, InvalidArgument);
    let tokenizer = tokenizer("byte_level");
    let e = tokenizer.tokenize(&"a".repeat((8 << 20) + 1), true, true).unwrap_err();
    assert!(e.status == InvalidArgument && e.message.contains("8388609 bytes"), "{e}");
}

/// Random damage to tokenizer.json gives a tokenizer or an error that names the file, never a panic that escapes.
#[test]
fn damaged_tokenizers() {
    let mut random = Random(11);
    for name in ["byte_level", "byte_fallback"] {
        let good = text_file(&format!("{name}.json")).into_bytes();
        let mut refused = 0;
        for round in 0..1500 {
            let mut bytes = good.clone();
            match round % 3 {
                0 => bytes.truncate(random.below(good.len())),
                1 => {
                    let at = random.below(good.len());
                    bytes[at] = b"0123456789-.e\"{}[],:"[random.below(20)];
                }
                _ => {
                    let (from, to) = (random.below(good.len()), random.below(good.len()));
                    let piece = bytes[from..(from + 30).min(good.len())].to_vec();
                    bytes.splice(to..to, piece);
                }
            }
            let Ok(text) = String::from_utf8(bytes) else { continue };
            match Tokenizer::parse("tokenizer.json", &text) {
                Err(e) => {
                    refused += 1;
                    assert_eq!(e.status, Corrupt, "{e}");
                    assert!(e.message.contains("tokenizer.json"), "{e}");
                }
                Ok(tokenizer) => {
                    let tokenizer = Arc::new(tokenizer);
                    let tokens = tokenizer.tokenize("Hello wörld <|im_end|>", true, true).unwrap_or_default();
                    let mut detokenizer = Detokenizer::new(tokenizer, 1000, true);
                    for token in tokens {
                        let _ = detokenizer.push(token);
                    }
                }
            }
        }
        assert!(refused > 100, "{name}: nothing was refused");
    }
}

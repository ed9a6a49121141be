//! Tokens of a text, and the text of tokens that come one by one.

use cleave::error::Status::InvalidArgument;
use cleave::model::detokenizer::{Detokenizer, token_bytes};
use cleave::model::token_scheme::Scheme;
use serde_json::Value;

use crate::model_support::Random;
use crate::{cases, ids, text_file, tokenizer};

/// Returns the pieces that a stream produces; the last one is the flush.
fn stream(detokenizer: &mut Detokenizer, tokens: &[u32]) -> Vec<String> {
    let mut pieces: Vec<String> = tokens.iter().map(|token| detokenizer.push(*token).unwrap()).collect();
    pieces.push(detokenizer.flush());
    pieces
}

#[test]
fn tokens_and_streams_match_the_library() {
    for case in cases("tokenizer_cases.json") {
        let tokenizer = tokenizer(case["tokenizer"].as_str().unwrap());
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.tokenize(text, true, true).unwrap(), ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.tokenize(text, false, true).unwrap(), ids(&case["plain"]), "{text:?}");
        assert_eq!(tokenizer.tokenize(text, false, false).unwrap(), ids(&case["literal"]), "{text:?}");
        for (skip, key) in [(true, "decoded"), (false, "decoded_all")] {
            let mut detokenizer = Detokenizer::new(tokenizer.clone(), 1000, skip);
            let pieces = stream(&mut detokenizer, &ids(&case["plain"]));
            assert_eq!(pieces.concat(), case[key].as_str().unwrap(), "{} {text:?}", case["tokenizer"]);
            assert_eq!(pieces.last().unwrap(), "", "{text:?}: complete text leaves nothing to flush");
        }
    }
}

/// The bytes of a text's tokens concatenate to the text. Special tokens have the bytes of their written form.
#[test]
fn bytes_of_tokens() {
    for case in cases("tokenizer_cases.json") {
        let tokenizer = tokenizer(case["tokenizer"].as_str().unwrap());
        if *tokenizer.scheme() == Scheme::Window {
            continue;
        }
        let bytes = |id: &u32| token_bytes(&tokenizer, 1000, *id).unwrap();
        let spelt: Vec<u8> = ids(&case["plain"]).iter().flat_map(bytes).collect();
        let spelt = String::from_utf8(spelt).unwrap();
        let decoded = case["decoded_all"].as_str().unwrap();
        let stripped = spelt.strip_prefix(' ').unwrap_or(&spelt);
        assert!(spelt == decoded || stripped == decoded, "{}: {spelt:?}", case["tokenizer"]);
    }
    let fallback = tokenizer("byte_fallback");
    assert_eq!(token_bytes(&fallback, 500, 3 + 0xe4).unwrap(), [0xe4], "a byte of a character by itself");
    let file: Value = serde_json::from_str(&text_file("byte_fallback.json")).unwrap();
    let special = file["added_tokens"].as_array().unwrap().iter().find(|token| token["special"] == true).unwrap();
    let special = special["id"].as_u64().unwrap() as u32;
    assert_eq!(token_bytes(&fallback, 500, special).unwrap(), fallback.token(special).unwrap().into_bytes());
    assert!(token_bytes(&fallback, 1 << 20, 1 << 19).unwrap().is_empty(), "padding of the embedding table");
    assert_eq!(token_bytes(&fallback, 500, 1 << 20).unwrap_err().status, InvalidArgument);
}

#[test]
fn schemes() {
    assert_eq!(*tokenizer("byte_level").scheme(), Scheme::ByteLevel);
    assert!(matches!(tokenizer("byte_fallback").scheme(), Scheme::ByteFallback { strip: Some((' ', 1)), .. }));
    assert_eq!(*tokenizer("metaspace").scheme(), Scheme::Window);
}

/// A character split over several tokens is emitted whole, invalid bytes become U+FFFD, and ids are checked.
#[test]
fn split_characters() {
    let tokenizer = tokenizer("byte_fallback");
    let byte = |b: u32| 3 + b;
    let fresh = || Detokenizer::new(tokenizer.clone(), 500, true);
    assert_eq!(stream(&mut fresh(), &[byte(0xe4), byte(0xbd), byte(0xa0)]), ["", "", "你", ""]);
    assert_eq!(stream(&mut fresh(), &[byte(0xe4), byte(0x41)]), ["", "\u{FFFD}A", ""]);
    assert_eq!(stream(&mut fresh(), &[byte(0xe4), byte(0xbd)]), ["", "", "\u{FFFD}"]);
    assert_eq!(stream(&mut fresh(), &[byte(0xff), byte(0xf0), byte(0xf0)]), ["\u{FFFD}", "", "\u{FFFD}", "\u{FFFD}"]);
    // An end of sequence between the bytes of a character does not corrupt it.
    assert_eq!(stream(&mut fresh(), &[byte(0xc3), 2, byte(0xa9)]), ["", "", "é", ""]);
    // The flush also resets the stream, so no old text remains.
    let mut detokenizer = fresh();
    detokenizer.push(byte(0xe4)).unwrap();
    detokenizer.flush();
    assert_eq!(detokenizer.push(byte(0x42)).unwrap(), "B");

    assert_eq!(fresh().push(499).unwrap(), "");
    for id in [500, u32::MAX] {
        let e = fresh().push(id).unwrap_err();
        assert_eq!(e.status, InvalidArgument);
        assert!(e.message.contains(&id.to_string()), "{e}");
    }
}

/// Streaming any tokens gives the same text as decoding them at once, wherever that is valid text.
#[test]
fn random_streams() {
    let mut random = Random(3);
    for name in ["byte_level", "byte_fallback", "metaspace"] {
        let tokenizer = tokenizer(name);
        for _ in 0..300 {
            let tokens: Vec<u32> = (0..random.below(40)).map(|_| random.below(300) as u32).collect();
            let mut detokenizer = Detokenizer::new(tokenizer.clone(), 1000, false);
            let text = stream(&mut detokenizer, &tokens).concat();
            let known: Vec<u32> = tokens.into_iter().filter(|id| tokenizer.token(*id).is_some()).collect();
            let whole = tokenizer.decode(&known).unwrap();
            if name == "byte_level" || !whole.contains('\u{FFFD}') {
                assert_eq!(text, whole, "{name} {known:?}");
            }
        }
    }
}

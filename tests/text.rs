//! Text helpers against the reference libraries (tests/text, written by tools/make_text_cases.py).

mod model_support;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use cleave::error::Status::{Corrupt, InvalidArgument, Unsupported};
use cleave::model::Model;
use cleave::model::chat::ChatTemplate;
use cleave::model::detokenizer::{Detokenizer, Scheme, token_bytes};
use cleave::model::tokenizer::Tokenizer;
use model_support::{Random, copy, fixture};
use serde_json::{Value, json};

fn text_file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text").join(name)).unwrap()
}

fn cases(name: &str) -> Vec<Value> {
    serde_json::from_str(&text_file(name)).unwrap()
}

fn tokenizer(name: &str) -> Arc<Tokenizer> {
    let file = format!("{name}.json");
    Arc::new(Tokenizer::parse(&file, &text_file(&file)).unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The pieces a stream gives, the flush last.
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

/// The bytes of tokens that spell a text are that text; special tokens are as they are written.
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
    let special = fallback.special_ids()[0];
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

/// A character split over tokens comes whole, broken bytes become U+FFFD, and ids are checked.
#[test]
fn split_characters() {
    let tokenizer = tokenizer("byte_fallback");
    let byte = |b: u32| 3 + b;
    let fresh = || Detokenizer::new(tokenizer.clone(), 500, true);
    assert_eq!(stream(&mut fresh(), &[byte(0xe4), byte(0xbd), byte(0xa0)]), ["", "", "你", ""]);
    assert_eq!(stream(&mut fresh(), &[byte(0xe4), byte(0x41)]), ["", "\u{FFFD}A", ""]);
    assert_eq!(stream(&mut fresh(), &[byte(0xe4), byte(0xbd)]), ["", "", "\u{FFFD}"]);
    assert_eq!(stream(&mut fresh(), &[byte(0xff), byte(0xf0), byte(0xf0)]), ["\u{FFFD}", "", "\u{FFFD}", "\u{FFFD}"]);
    // The end of a sequence between the bytes of a character does not spoil it.
    assert_eq!(stream(&mut fresh(), &[byte(0xc3), 2, byte(0xa9)]), ["", "", "é", ""]);
    // The flush also resets: nothing of the old text is left.
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

/// Any token stream gives what decoding all of it at once gives, wherever that is valid text.
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

#[test]
fn chat_templates_match_transformers() {
    for case in cases("chat_templates.json") {
        let special = vec![("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())];
        let place = case["name"].as_str().unwrap().to_owned();
        let template = ChatTemplate::compile(place, case["template"].as_str().unwrap(), special).unwrap();
        // Messages are kept as text: the order of keys shows in tool calls, and a parsed Value would sort them.
        let rendered = template.render(case["messages"].as_str().unwrap()).unwrap();
        assert_eq!(rendered, case["expected"].as_str().unwrap(), "{}", case["name"]);
    }
}

fn compile(source: &str) -> ChatTemplate {
    ChatTemplate::compile("chat_template.jinja".into(), source, Vec::new()).unwrap()
}

#[test]
fn template_failures() {
    let render = |source: &str| compile(source).render("[{\"role\": \"user\", \"content\": \"x\"}]").unwrap_err();
    let e = render("{{ raise_exception('roles must alternate') }}");
    assert_eq!((e.status, e.message.as_str()), (InvalidArgument, "chat_template.jinja: roles must alternate"));
    let e = render("{% macro f() %}{{ raise_exception('inner') }}{% endmacro %}{{ f() }}");
    assert_eq!((e.status, e.message.as_str()), (InvalidArgument, "chat_template.jinja: inner"));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% set x = 1 %}";
    let e = render(&format!("{endless}{}", "{% endfor %}".repeat(3)));
    assert!(e.message.contains("steps"), "{e}");
    let e = render("{% for a in range(9999) %}{% for b in range(9999) %}0123456789012345{% endfor %}{% endfor %}");
    assert!(e.message.contains("bytes") || e.message.contains("steps"), "{e}");
    let e = render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
    assert_eq!(e.status, InvalidArgument, "{e}");
    let e = render("{{ messages.nothing.at_all }}");
    assert!(e.message.contains("chat_template.jinja"), "{e}");
    let e = ChatTemplate::compile("chat_template.jinja".into(), "{% if %}", Vec::new()).err().unwrap();
    assert_eq!(e.status, Unsupported);
    assert!(e.message.contains("chat_template.jinja") && e.message.contains("line 1"), "{e}");
}

#[test]
fn messages_are_checked() {
    let template = compile("{{ messages[0].role }}");
    for (json, needle) in [
        ("", "JSON"),
        ("{}", "list"),
        ("[1]", "messages[0]"),
        ("[{\"role\": \"user\", \"content\": \"\"}, {\"content\": \"x\"}]", "messages[1]: role"),
        ("[{\"role\": 1, \"content\": \"x\"}]", "messages[0]: role"),
        ("[{\"role\": \"user\", \"content\": 7}]", "content = 7"),
        (&"[".repeat(10_000), "JSON"),
    ] {
        let e = template.render(json).unwrap_err();
        assert_eq!(e.status, InvalidArgument, "{json}");
        assert!(e.message.contains(needle), "{needle} is not in {e}");
    }
    for good in [
        "[{\"role\": \"u\", \"content\": null}]",
        "[{\"role\": \"u\"}]",
        "[{\"role\": \"u\", \"content\": [{\"type\": \"text\"}]}]",
    ] {
        assert_eq!(template.render(good).unwrap(), "u");
    }
}

/// A model directory with text files; those without say so.
#[test]
fn directories() {
    let bare = Model::load(fixture("llama2-mha").to_str().unwrap()).unwrap();
    for e in [
        bare.tokenize("x", true, true).unwrap_err(),
        bare.detokenizer(true).err().unwrap(),
        bare.chat_prompt("[]").unwrap_err(),
    ] {
        assert_eq!(e.status, Unsupported, "{e}");
        assert!(e.message.contains("tokenizer.json") || e.message.contains("chat_template.jinja"), "{e}");
    }
    assert_eq!(bare.tokenizer_digest(), None);

    let dir = copy("llama2-mha");
    fs::write(dir.path().join("tokenizer.json"), text_file("byte_level.json")).unwrap();
    let load = || Model::load(dir.path().to_str().unwrap()).unwrap();
    assert_eq!(load().tokenize("Hello", true, true).unwrap()[0], 340);
    assert!(load().tokenizer_digest().is_some());

    let config = dir.path().join("tokenizer_config.json");
    let set = |template: Value| {
        let value = json!({"bos_token": {"content": "<B>"}, "eos_token": null, "chat_template": template});
        fs::write(&config, value.to_string()).unwrap();
    };
    let message = "[{\"role\": \"user\", \"content\": \"x\"}]";
    set(json!("{{ bos_token }}{{ messages[0].content }}"));
    assert_eq!(load().chat_prompt(message).unwrap(), "<B>x");
    set(json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]));
    assert_eq!(load().chat_prompt(message).unwrap(), "yes");
    set(json!([{"name": "tool_use", "template": "no"}]));
    assert_eq!(load().chat_prompt(message).unwrap_err().status, Unsupported);
    set(json!(3));
    assert_eq!(load().chat_prompt(message).unwrap_err().status, Corrupt);
    fs::write(dir.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(load().chat_prompt(message).unwrap(), "file");
    fs::write(dir.path().join("chat_template.jinja"), b"\xff").unwrap();
    let e = load().chat_prompt(message).unwrap_err();
    assert_eq!(e.status, Corrupt);
    assert!(e.message.contains("chat_template.jinja"), "{e}");
}

/// Random damage to tokenizer.json: an error that names it or a tokenizer, never a panic that gets out.
#[test]
fn damaged_tokenizers() {
    std::panic::set_hook(Box::new(|_| {}));
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
    let _ = std::panic::take_hook();
}

//! Compares the text helpers with the reference libraries (tests/text, written by tools/make_text_cases.py).

mod model_support;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use cleave::error::Status::{Corrupt, InvalidArgument, Unsupported};
use cleave::model::Model;
use cleave::model::chat::{ChatInput, ChatTemplate};
use cleave::model::detokenizer::{Detokenizer, token_bytes};
use cleave::model::token_scheme::Scheme;
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

#[test]
fn chat_templates_match_transformers() {
    for case in cases("chat_templates.json") {
        let special = vec![("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())];
        let place = case["name"].as_str().unwrap().to_owned();
        let template = ChatTemplate::compile(place, case["template"].as_str().unwrap(), special).unwrap();
        let text = |key: &str| case[key].as_str().unwrap_or_default();
        let input = ChatInput {
            messages: text("messages"),
            tools: text("tools"),
            arguments: text("arguments"),
            no_generation_prompt: case["add_generation_prompt"] == json!(false),
            continue_final_message: case["continue_final_message"] == json!(true),
        };
        let rendered = template.render(&input).unwrap_or_else(|e| panic!("{}: {e}", case["name"]));
        assert_eq!(rendered, case["expected"].as_str().unwrap(), "{} {}", case["name"], text("arguments"));
    }
}

fn compile(source: &str) -> ChatTemplate {
    ChatTemplate::compile("chat_template.jinja".into(), source, Vec::new()).unwrap()
}

fn chat(messages: &str) -> ChatInput<'_> {
    ChatInput { messages, ..ChatInput::default() }
}

const HELLO: ChatInput<'static> = ChatInput {
    messages: "[{\"role\": \"user\", \"content\": \"x\"}]",
    tools: "",
    arguments: "",
    no_generation_prompt: false,
    continue_final_message: false,
};

#[test]
fn template_failures() {
    let render = |source: &str| compile(source).render(&HELLO).unwrap_err();
    let e = render("{{ raise_exception('roles must alternate') }}");
    assert_eq!((e.status, e.message.as_str()), (InvalidArgument, "chat_template.jinja: roles must alternate"));
    let e = render("{% macro f() %}{{ raise_exception('inner') }}{% endmacro %}{{ f() }}");
    assert_eq!((e.status, e.message.as_str()), (InvalidArgument, "chat_template.jinja: inner"));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% set x = 1 %}";
    let e = render(&format!("{endless}{}", "{% endfor %}".repeat(3)));
    assert!(e.message.contains("steps"), "{e}");
    let e = render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
    assert_eq!(e.status, InvalidArgument, "{e}");
    let e = render("{{ messages.nothing.at_all }}");
    assert!(e.message.contains("chat_template.jinja"), "{e}");
    let e = render("{% include 'chat' %}");
    assert!(e.message.contains("no other templates"), "{e}");
    let e = ChatTemplate::compile("chat_template.jinja".into(), "{% if %}", Vec::new()).err().unwrap();
    assert_eq!(e.status, Unsupported);
    assert!(e.message.contains("chat_template.jinja") && e.message.contains("line 1"), "{e}");
}

/// Each of these inputs once took gigabytes of memory and could have ended the process.
#[test]
fn templates_are_refused_memory() {
    let doubled = "{% set a %}{{ a }}{{ a }}{% endset %}".repeat(40);
    let raw = "r".repeat(60_000);
    for source in [
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s | list }}",
        "{% set n = namespace(s=[]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s=[]) %}{% for i in range(99999) %}{% set n.s = n.s + [('a' * 99999) | list] %}{% endfor %}",
        &format!("{{% set a %}}xx{{% endset %}}{doubled}"),
        &format!("{{% set a %}}{{% for i in range(99999) %}}{raw}{{% endfor %}}{{% endset %}}"),
        &format!("{{% for i in range(99999) %}}{raw}{{% endfor %}}"),
        &format!("{{% block a %}}{{% for i in range(99999) %}}{raw}{{% endfor %}}{{% endblock %}}"),
        &format!("{{{{ ['x' * 99999999{}] | length }}}}", ", 'y' * 99999999".repeat(60)),
        "{{ ([1] * 1000000000) | list | length }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ 'a\nb' | indent(1000000000) }}",
        "{{ 'a\nb' | indent(width=1000000000) }}",
        "{{ [1] | batch(10000000000) | list }}",
        "{{ [1] | slice(10000000000) | list }}",
        "{{ [1] | batch(1000000000, 1) | list }}",
        "{{ (['x' * 1000000] * 1000000) | join('x') }}",
        "{{ ('x' * 1000000).join(['x'] * 1000000) }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
        "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
        "{{ (['a' * 9999999] * 99) | map('list') | list | length }}",
        "{{ ([[1] * 999] * 999) | tojson(indent=64) }}",
    ] {
        let e = compile(source).render(&HELLO).unwrap_err();
        assert!(e.status == InvalidArgument && e.message.contains("more memory"), "{source:.200}: {e}");
    }
}

/// Deeply nested sources and values once overflowed the stack, which no handler survives.
#[test]
fn templates_that_nest_deeply() {
    let refused = |source: &str| {
        let e = ChatTemplate::compile("chat_template.jinja".into(), source, Vec::new()).err().unwrap();
        assert!(e.status == Unsupported && e.message.contains("chat_template.jinja"), "{source:.40}: {e}");
    };
    for piece in ["+a", "~a", ".a", "|e", "[0]", "()", " and a", " if a else a"] {
        refused(&format!("{{{{ a{} }}}}", piece.repeat(200_000)));
    }
    for piece in ["not ", "-", "(", "[", "{1:"] {
        refused(&format!("{{{{ {}a }}}}", piece.repeat(100_000)));
    }
    refused(&"{% if a %}".repeat(50_000));
    refused(&format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(40_000)));
    refused(&" ".repeat(1 << 20));
    // The deepest source that is allowed.
    let deep = format!("{{% if a %}}{}{{% else %}}done{{% endif %}}", "{% elif a %}".repeat(8000));
    assert_eq!(compile(&deep).render(&HELLO).unwrap(), "done");
    let deep = format!("{{{{ 1{} }}}}", "+1".repeat(1000));
    assert_eq!(compile(&deep).render(&HELLO).unwrap(), "1001");
    // A value that gets one level deeper with every step of the program.
    let nest = "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% for j in range(99) %}{% set n.l = [n.l] %}";
    let e = compile(&format!("{nest}{{% endfor %}}{{% endfor %}}")).render(&HELLO).unwrap_err();
    assert!(e.message.contains("steps"), "{e}");
    let e =
        compile(&format!("{}{{{{ n.l }}}}", nest.replace("99999", "9") + "{% endfor %}{% endfor %}")).render(&HELLO);
    assert!(e.unwrap_err().message.contains("nested too deeply"));
}

#[test]
fn tools_and_arguments_are_checked() {
    let template = compile("{{ tools | tojson }}{{ a | tojson }}{{ add_generation_prompt }}");
    let input = ChatInput { tools: "[{\"b\": 1, \"a\": 2}]", arguments: "{\"a\": [1.5]}", ..HELLO };
    assert_eq!(template.render(&input).unwrap(), "[{\"b\": 1, \"a\": 2}][1.5]True");
    assert_eq!(
        template.render(&ChatInput { tools: "null", arguments: "{\"a\": null}", ..HELLO }).unwrap(),
        "nullnullTrue"
    );
    let deep = "[".repeat(10_000);
    for (tools, arguments, needle) in [
        ("{}", "", "tools = {}"),
        ("[1]", "", "tools = [1]"),
        ("[", "", "tools: malformed"),
        (&deep, "", "tools: malformed"),
        ("", "[]", "arguments = []"),
        ("", "x", "arguments: malformed"),
        ("", &deep, "arguments: malformed"),
        ("", "{\"messages\": []}", "messages"),
        ("", "{\"before +\": 1}", "before +"),
        ("", "{\"\": 1}", "template variable"),
        ("", "{\"documents\": [1]}", "documents = [1]"),
    ] {
        let e = template.render(&ChatInput { tools, arguments, ..HELLO }).unwrap_err();
        assert!(e.status == InvalidArgument && e.message.contains(needle), "{needle}: {e}");
    }
    let open = |messages| ChatInput { continue_final_message: true, ..chat(messages) };
    let fixed = compile("fixed");
    for messages in ["[]", "[{\"role\": \"a\"}]", "[{\"role\": \"a\", \"content\": [{\"type\": \"image\"}]}]"] {
        assert_eq!(fixed.render(&open(messages)).unwrap_err().status, InvalidArgument, "{messages}");
    }
    let e = fixed.render(&open("[{\"role\": \"a\", \"content\": \"b\"}]")).unwrap_err();
    assert!(e.message.contains("cannot be continued"), "{e}");
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
        let e = template.render(&chat(json)).unwrap_err();
        assert_eq!(e.status, InvalidArgument, "{json}");
        assert!(e.message.contains(needle), "{needle} is not in {e}");
    }
    for good in [
        "[{\"role\": \"u\", \"content\": null}]",
        "[{\"role\": \"u\"}]",
        "[{\"role\": \"u\", \"content\": [{\"type\": \"text\"}]}]",
    ] {
        assert_eq!(template.render(&chat(good)).unwrap(), "u");
    }
}

/// Loads text files from a model directory. Without them, the error names the missing file.
#[test]
fn directories() {
    let bare = Model::load(fixture("llama2-mha").to_str().unwrap()).unwrap();
    for e in [
        bare.tokenize("x", true, true).unwrap_err(),
        bare.detokenizer(true).err().unwrap(),
        bare.chat_prompt(&chat("[]")).unwrap_err(),
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
    set(json!("{{ bos_token }}{{ messages[0].content }}"));
    assert_eq!(load().chat_prompt(&HELLO).unwrap(), "<B>x");
    set(json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]));
    assert_eq!(load().chat_prompt(&HELLO).unwrap(), "yes");
    let tools = ChatInput { tools: "[]", ..HELLO };
    assert_eq!(load().chat_prompt(&tools).unwrap(), "no");
    set(json!([{"name": "tool_use", "template": "no"}]));
    assert_eq!(load().chat_prompt(&tools).unwrap(), "no");
    assert_eq!(load().chat_prompt(&HELLO).unwrap_err().status, Unsupported);
    set(json!(3));
    assert_eq!(load().chat_prompt(&HELLO).unwrap_err().status, Corrupt);
    fs::write(dir.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(load().chat_prompt(&HELLO).unwrap(), "file");
    fs::write(dir.path().join("chat_template.jinja"), b"\xff").unwrap();
    let model = load();
    let e = model.chat_prompt(&HELLO).unwrap_err();
    assert_eq!(e.status, Corrupt);
    assert!(e.message.contains("chat_template.jinja"), "{e}");
    // Reading is retried after a failure.
    fs::write(dir.path().join("chat_template.jinja"), "mended").unwrap();
    assert_eq!(model.chat_prompt(&HELLO).unwrap(), "mended");
}

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

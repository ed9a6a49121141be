//! The text files of a model directory.

use std::fs;

use cleave::error::Status::{Corrupt, Unsupported};
use cleave::model::Model;
use cleave::model::chat::ChatInput;
use serde_json::{Value, json};

use crate::chat::{HELLO, chat};
use crate::model_support::{copy, fixture};
use crate::text_file;

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

//! The tiny model answers questions whose answers occur only in the prompt. Prefill and decode run in different engines
//! over different caches, so an answer is right only if the KV arrived intact.

mod common;

use cleave::engine::{CacheOptions, EngineOptions, Request, Role};
use cleave::kv::KvId;
use cleave::model::chat::ChatInput;
use common::*;

struct Item {
    tokens: Vec<u32>,
    answer: String,
}

/// Held-out prompts in plain and in chat form.
fn items() -> Vec<Item> {
    let model = tiny();
    let text = std::fs::read_to_string(format!("{}/recall_heldout.json", tiny_dir())).unwrap();
    let all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let item = |entry: &serde_json::Value| {
        let tokens = match entry["prompt"].as_str() {
            Some(prompt) => model.tokenize(prompt, true, true).unwrap(),
            None => {
                let prompt = model
                    .chat_prompt(&ChatInput { messages: &entry["messages"].to_string(), ..ChatInput::default() })
                    .unwrap();
                model.tokenize(&prompt, false, true).unwrap()
            }
        };
        Item { tokens, answer: entry["answer"].as_str().unwrap().to_string() }
    };
    all.iter().map(item).collect()
}

fn text_of(tokens: &[u32]) -> String {
    let mut stream = tiny().detokenizer(true).unwrap();
    let mut text: String = tokens.iter().map(|&t| stream.push(t).unwrap()).collect();
    text.push_str(&stream.flush());
    text
}

#[test]
fn held_out_questions_are_answered_across_a_handoff() {
    let items = items();
    assert!(items.len() >= 200, "{} items", items.len());
    let secret = Some([3; 32]);
    let make = || cache(CacheOptions { secret, bytes: 16 << 20, ..CacheOptions::default() });
    let (from, to) = (make(), make());
    let mut host = Host::new();
    let prefill = host.engine(&from, role(Role::Prefill));
    let decode = host.engine(&to, EngineOptions { threads: 2, ..role(Role::Decode) });
    let mut right = 0;
    let mut wrong = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let mut job = Request { prompt: item.tokens.clone(), ..Request::default() };
        job.sampling.max_new_tokens = 16;
        let first = host.run(&prefill, job);
        let kv = KvId(first.end.unwrap().kv);
        // Uses every kind of handoff in turn.
        let data = if i % 2 == 0 {
            cleave::transport::ticket(from.kv(), kv).unwrap()
        } else {
            let mut image = vec![0; from.kv().handles().info(kv).unwrap().image_bytes as usize];
            let n = from.kv().images().read(kv, 0, &mut image).unwrap();
            assert_eq!(n, image.len());
            image
        };
        let imported = to.import(None, &data, 0).unwrap();
        let rest = host.run(&decode, continuation(imported.0));
        let answer = text_of(&[first.tokens, rest.tokens].concat());
        if answer.trim().starts_with(&item.answer) {
            right += 1;
        } else {
            wrong.push(format!("{answer:?}, expected {:?}", item.answer));
        }
        from.kv().handles().release(kv).unwrap();
    }
    let accuracy = right as f64 / items.len() as f64;
    assert!(accuracy >= 0.95, "{right} of {} right; wrong: {wrong:#?}", items.len());
    drop((prefill, decode));
    assert_quiescent(&from);
    assert_quiescent(&to);
}

//! KV between processes: shared memory, plain and encrypted TCP, streaming, and the resulting sequences.

mod worker;

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use worker::Worker;

#[test]
fn worker_process() {
    worker::serve_if_told();
}

fn prompt(n: usize, salt: usize) -> Vec<usize> {
    (0..n).map(|i| 5 + (i * 7 + salt * 13) % 200).collect()
}

/// Returns the tokens of a mixed engine in a single process.
fn reference(worker: &mut Worker, tokens: &[usize], max: usize) -> Vec<Value> {
    let request = worker
        .ask(json!({"do": "submit", "engine": "mixed", "tokens": tokens, "max": max, "ignore_eos": true,
        "salt": 99}));
    worker.ask(json!({"do": "wait", "request": request["request"]}))["tokens"].as_array().unwrap().clone()
}

/// Prefills in `from`, pulls into `to` and decodes there. Returns all tokens.
fn hand_over(from: &mut Worker, to: &mut Worker, tokens: &[usize], max: usize, stream: bool) -> Vec<Value> {
    let ticket = ticket_of(from, tokens, max, stream);
    let kv = to.ask(json!({"do": "import", "ticket": ticket}))["kv"].clone();
    decoded(to, &kv)
}

/// Prefills in `from`, or starts to if `stream`, and returns a ticket.
fn ticket_of(from: &mut Worker, tokens: &[usize], max: usize, stream: bool) -> Value {
    let submitted = from.ask(json!({"do": "submit", "engine": "prefill", "tokens": tokens, "max": max,
        "ignore_eos": true, "stream": stream, "chunk": 64}));
    let what = if stream { "started" } else { "wait" };
    let kv = from.ask(json!({"do": what, "request": submitted["request"]}))["kv"].clone();
    from.ask(json!({"do": "ticket", "kv": kv}))["ticket"].clone()
}

/// Decodes the imported handle `kv` and returns all tokens.
fn decoded(to: &mut Worker, kv: &Value) -> Vec<Value> {
    let request = to.ask(json!({"do": "submit", "engine": "decode", "kv": kv, "emit": true}))["request"].clone();
    let done = to.ask(json!({"do": "wait", "request": request}));
    assert_eq!((&done["status"], &done["ends"]), (&json!(0), &json!(1)), "{done}");
    assert_eq!(to.ask(json!({"do": "ready", "kv": kv}))["status"], 0);
    done["tokens"].as_array().unwrap().clone()
}

/// Waits until nobody holds blocks. The last step of a request may still be ending after another process has fetched
/// its KV.
fn settled(worker: &mut Worker, what: &str) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let audit = worker.ask(json!({"do": "audit"}));
        assert_eq!(audit["leaked"], 0, "{what}: {audit}");
        if ["requests", "exports", "transfers"].iter().all(|owner| audit[owner] == 0) {
            return;
        }
        assert!(Instant::now() < until, "{what}: {audit}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn through(config: Value, transport: u64) {
    through_with(&[], config, transport);
}

fn through_with(env: &[(String, String)], config: Value, transport: u64) {
    let mut from = Worker::start_with(env, config);
    let mut to = Worker::start_with(env, json!({}));
    let address = from.ask(json!({"do": "address"}))["address"].clone();
    let report = to.ask(json!({"do": "pair", "address": address, "transport": transport}));
    assert_eq!((&report["status"], &report["transport"]), (&json!(0), &json!(transport)), "{report}");
    assert!(report["rate"].as_u64().unwrap() > 0, "{report}");
    for (i, (n, stream)) in [(40, false), (333, false), (400, true), (16, true), (333, false)].into_iter().enumerate() {
        let tokens = prompt(n, i % 4);
        let got = hand_over(&mut from, &mut to, &tokens, 12, stream);
        assert_eq!(got, reference(&mut to, &tokens, 12), "{n} tokens, stream {stream}");
    }
    for worker in [&mut from, &mut to] {
        settled(worker, "after the handoffs");
    }
    let metrics = to.ask(json!({"do": "metrics"}));
    assert_eq!((&metrics["imports"], &metrics["failed"]), (&json!(5), &json!(0)), "{metrics}");
}

#[test]
fn by_shared_memory() {
    through(json!({}), 2);
}

#[test]
fn by_tcp() {
    through(json!({"listen": "127.0.0.1:0"}), 3);
}

#[test]
fn by_encrypted_tcp() {
    through(json!({"listen": "127.0.0.1:0", "encryption": "always"}), 3);
}

/// Uses NIXL with whatever transport its UCX backend chooses. tools/nixl.sh installs the wheel.
#[test]
fn by_nixl() {
    let Some(env) = worker::nixl_env() else { return };
    through_with(&env, json!({}), 4);
    // The same with requests over TCP.
    through_with(&env, json!({"listen": "127.0.0.1:0"}), 4);
}

#[test]
fn without_nixl_requiring_it_is_unsupported() {
    let none = [("CLEAVE_NIXL_LIBRARY".to_string(), "/nonexistent/libnixl_capi.so".to_string())];
    let mut from = Worker::start_with(&none, json!({}));
    let mut to = Worker::start_with(&none, json!({}));
    let address = from.ask(json!({"do": "address"}))["address"].clone();
    let report = to.ask(json!({"do": "pair", "address": address, "transport": 4}));
    assert_eq!((&report["status"], &report["reason"]), (&json!(-3), &json!(8)), "{report}");
    assert!(report["detail"].as_str().unwrap().contains("NIXL"), "{report}");
}

/// Other block sizes, element types and shards are converted during the transfer, over every transport.
#[test]
fn layouts_are_converted_over_every_transport() {
    let exact = [json!({"block_tokens": 32}), json!({"block_tokens": 5}), json!({"shards": 2, "block_tokens": 24})];
    let lossy = [json!({"dtype": 4}), json!({"dtype": 4, "shards": 2, "block_tokens": 7})];
    let nixl = worker::nixl_env();
    let mut to = Worker::start_with(nixl.as_deref().unwrap_or_default(), json!({}));
    let tokens = prompt(150, 2);
    let want = reference(&mut to, &tokens, 8);
    for (layouts, exact) in [(&exact[..], true), (&lossy[..], false)] {
        for layout in layouts {
            let mut config = layout.clone();
            config["listen"] = json!("127.0.0.1:0");
            let mut from = Worker::start_with(nixl.as_deref().unwrap_or_default(), config);
            let address = from.ask(json!({"do": "address"}))["address"].clone();
            for transport in [2, 3, 4] {
                if transport == 4 && nixl.is_none() {
                    continue;
                }
                let report = to.ask(json!({"do": "pair", "address": address, "transport": transport}));
                assert_eq!(report["transport"], transport, "{layout}: {report}");
                assert!(report["detail"].as_str().unwrap().contains("converted on import"), "{report}");
                for stream in [false, true] {
                    let got = hand_over(&mut from, &mut to, &tokens, 8, stream);
                    assert!(!exact || got == want, "{layout} over {transport}, stream {stream}: {got:?}");
                    assert_eq!(got.len(), 8, "{layout} over {transport}");
                }
            }
            settled(&mut from, "exporter");
        }
    }
    settled(&mut to, "importer");
}

#[test]
fn a_cache_that_does_not_convert_says_so_at_pairing() {
    let mut from = Worker::start(json!({"block_tokens": 32}));
    let mut to = Worker::start(json!({"no_convert": true}));
    let address = from.ask(json!({"do": "address"}))["address"].clone();
    let report = to.ask(json!({"do": "pair", "address": address}));
    assert_eq!((&report["status"], &report["reason"]), (&json!(-7), &json!(4)), "{report}");
    assert!(report["detail"].as_str().unwrap().contains("block tokens: expected 16, found 32"), "{report}");
}

#[test]
fn a_running_generation_moves_mid_sentence() {
    let (mut from, mut to) = (Worker::start(json!({})), Worker::start(json!({})));
    let tokens = prompt(50, 3);
    let want = reference(&mut to, &tokens, 200);
    // The engine is held mid-generation until the command to export has arrived.
    from.arm("engine.step", 20, "hold");
    let submitted = from.ask(json!({"do": "submit", "engine": "mixed", "tokens": tokens, "max": 200,
        "ignore_eos": true}));
    let request = submitted["request"].clone();
    from.ask(json!({"do": "first", "request": request}));
    from.reached("engine.step");
    from.ask(json!({"do": "export", "engine": "mixed", "request": request}));
    from.let_go("engine.step");
    let first = from.ask(json!({"do": "wait", "request": request}));
    let ticket = from.ask(json!({"do": "ticket", "kv": first["kv"]}))["ticket"].clone();
    let kv = to.ask(json!({"do": "import", "ticket": ticket}))["kv"].clone();
    let request = to.ask(json!({"do": "submit", "engine": "decode", "kv": kv}))["request"].clone();
    let rest = to.ask(json!({"do": "wait", "request": request}));
    let all: Vec<Value> =
        [&first["tokens"], &rest["tokens"]].iter().flat_map(|t| t.as_array().unwrap().clone()).collect();
    assert_eq!(all, want);
    settled(&mut from, "exporter");
    settled(&mut to, "importer");
}

#[test]
fn what_the_importer_has_is_not_moved() {
    let (mut from, mut to) = (Worker::start(json!({})), Worker::start(json!({})));
    let tokens = prompt(320, 1);
    hand_over(&mut from, &mut to, &tokens, 4, false);
    let before = to.ask(json!({"do": "metrics"}))["in"].as_u64().unwrap();
    hand_over(&mut from, &mut to, &tokens, 4, false);
    let after = to.ask(json!({"do": "metrics"}))["in"].as_u64().unwrap();
    assert!(before > 0 && after - before <= before / 10, "{before} bytes, then {} more", after - before);
}

/// The importer already has more of the prompt than its exporter has computed when first asked.
#[test]
fn the_importer_may_be_ahead_of_the_exporter() {
    for transport in [2, 3] {
        let config = if transport == 3 { json!({"listen": "127.0.0.1:0"}) } else { json!({}) };
        let (mut from, mut to) = (Worker::start(config), Worker::start(json!({})));
        let address = from.ask(json!({"do": "address"}))["address"].clone();
        let report = to.ask(json!({"do": "pair", "address": address, "transport": transport}));
        assert_eq!(report["status"], 0, "{report}");
        let tokens = prompt(400, 3);
        let submitted =
            to.ask(json!({"do": "submit", "engine": "mixed", "tokens": tokens, "max": 12, "ignore_eos": true}));
        let want = to.ask(json!({"do": "wait", "request": submitted["request"]}))["tokens"].clone();
        // The exporter is held until the importer has asked for the first time.
        from.arm("engine.step", 3, "hold");
        to.arm("transport.import.blocks", 1, "hold");
        let ticket = ticket_of(&mut from, &tokens, 12, true);
        let kv = to.ask(json!({"do": "import", "ticket": ticket}))["kv"].clone();
        to.reached("transport.import.blocks");
        from.let_go("engine.step");
        to.let_go("transport.import.blocks");
        let got = decoded(&mut to, &kv);
        assert_eq!(&Value::from(got), &want);
        let metrics = to.ask(json!({"do": "metrics"}));
        assert_eq!((&metrics["imports"], &metrics["failed"]), (&json!(1), &json!(0)), "{metrics}");
        settled(&mut from, "exporter");
        settled(&mut to, "importer");
    }
}

#[test]
fn a_dead_exporter_is_recomputed_or_an_error() {
    let (mut from, mut to) = (Worker::start(json!({})), Worker::start(json!({})));
    let tokens = prompt(100, 2);
    let want = reference(&mut to, &tokens, 12);
    let ticket = |from: &mut Worker| {
        let submitted = from.ask(json!({"do": "submit", "engine": "prefill", "tokens": tokens, "max": 12,
            "ignore_eos": true}));
        let kv = from.ask(json!({"do": "wait", "request": submitted["request"]}))["kv"].clone();
        from.ask(json!({"do": "ticket", "kv": kv}))["ticket"].clone()
    };
    let tickets = [ticket(&mut from), ticket(&mut from)];
    from.kill();
    for (ticket, recompute) in tickets.iter().zip([false, true]) {
        let kv = to.ask(json!({"do": "import", "ticket": ticket}))["kv"].clone();
        let submitted = to.try_ask(json!({"do": "submit", "engine": "decode", "kv": kv, "emit": true,
            "recompute": recompute}));
        // The import may have failed already; the refusal then gives the reason.
        if submitted.get("error").is_some() {
            assert_eq!((recompute, &submitted["status"]), (false, &json!(-14)), "{submitted}");
            continue;
        }
        let done = to.ask(json!({"do": "wait", "request": submitted["request"]}));
        if recompute {
            assert_eq!((done["status"].clone(), done["tokens"].as_array().unwrap()), (json!(0), &want));
        } else {
            assert_eq!(done["status"], json!(-14), "{done}");
            assert!(done["tokens"].as_array().is_none_or(|tokens| tokens.is_empty()), "{done}");
        }
    }
    settled(&mut to, "importer");
}

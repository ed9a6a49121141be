//! Imports into a cache without enough free blocks.

use super::support::*;

fn full(way: Way) {
    let mut to = Worker::start(with(way.config(), json!({"blocks": 40})));
    let mut from = exporter(way, &mut to);
    // One handle holds 30 of its 40 blocks.
    let tokens = prompt(470, 5);
    let submit = json!({"do": "submit", "engine": "prefill", "tokens": tokens, "max": 4, "ignore_eos": true});
    let request = to.ask(submit)["request"].clone();
    let holder = to.ask(json!({"do": "wait", "request": request}))["kv"].clone();

    let offers = [1, 2].map(|salt| offer(&mut from, Job::long(salt == 2, salt)));
    // An import that no request waits for fails soon.
    for offer in &offers {
        to.ask(json!({"do": "renew", "kv": holder}));
        let kv = to.ask(import(&offer.ticket))["kv"].clone();
        assert_eq!(to.ask(json!({"do": "ready", "kv": kv}))["status"], OUT_OF_MEMORY, "{way:?}");
    }
    from.ask(json!({"do": "wait", "request": offers[1].request}));
    settled_with(&mut from, true, NOTICED, "the exporter keeps its handles");
    // An import that a request waits for keeps waiting for blocks, as requests do. So does one that is recomputed.
    let kv = to.ask(import(&offers[0].ticket))["kv"].clone();
    assert_eq!(to.ask(json!({"do": "ready", "kv": kv}))["status"], OUT_OF_MEMORY);
    let recomputed = to.ask(decode(&kv, true));
    // The import must not ask for blocks before its request is submitted, however long that takes.
    to.arm("transport.import.open", 1, "hold");
    let kv = to.ask(import(&offers[1].ticket))["kv"].clone();
    let taken = to.ask(decode(&kv, false));
    to.let_go("transport.import.open");
    for request in [&recomputed["request"], &taken["request"]] {
        let waiting = json!({"do": "wait", "request": request, "within_ms": 700});
        assert_eq!(to.ask(waiting)["timeout"], true, "there is no room");
        to.ask(json!({"do": "renew", "kv": holder}));
    }
    to.ask(json!({"do": "release", "kv": holder}));
    assert_eq!(end(&mut to, recomputed), End::Tokens(offers[0].job.want()));
    assert_eq!(end(&mut to, taken), End::Tokens(offers[1].job.want()));
    settled(&mut to, "importer");
    let offer = &offers[0];
    assert_eq!(take(&mut to, &offer.ticket, false), End::Tokens(offer.job.want()), "with room");
    settled(&mut from, "exporter");
    settled(&mut to, "importer");
}

#[test]
fn over_shared_memory() {
    full(Way::Shared);
}

#[test]
fn over_tcp() {
    full(Way::Tcp);
}

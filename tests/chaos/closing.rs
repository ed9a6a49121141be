//! Destroys caches and engines, and exits processes, while transfers are in flight.

use super::support::*;

const FETCH: &str = "transport.import.fetch";

/// A configuration with a long timeout. No peer is silent here, so nothing may wait for the timeout.
fn patient(way: Way) -> Value {
    with(way.config(), json!({"peer_timeout_ms": 100_000}))
}

/// Holds an import in the middle: its transfer is open and it is about to fetch blocks.
fn midway(from: &mut Worker, to: &mut Worker, salt: u64) -> (Offer, Value, Value) {
    let offer = offer(from, Job::long(false, salt));
    to.arm(FETCH, 1, "hold");
    let kv = to.ask(import(&offer.ticket))["kv"].clone();
    let submitted = to.try_ask(decode(&kv, false));
    to.reached(FETCH);
    (offer, kv, submitted)
}

fn closes(worker: &mut Worker) {
    let closed = worker.ask(json!({"do": "destroy", "let_go": FETCH}));
    let took = Duration::from_millis(closed["ms"].as_u64().unwrap());
    assert!(took < TIMEOUT + SLACK, "closing took {took:?}");
}

fn closing(way: Way) {
    let importer = || Worker::start(patient(Way::Shared));
    let exporter = |way: Way, to: &mut Worker| {
        let mut from = Worker::start(patient(way));
        pair(&mut from, to, way);
        from
    };
    let mut to = importer();
    // Closes the exporter's cache.
    let mut from = exporter(way, &mut to);
    let (_, kv, submitted) = midway(&mut from, &mut to, 1);
    closes(&mut from);
    to.let_go(FETCH);
    let status = end(&mut to, submitted);
    assert!(matches!(status, End::Failed(PEER | SHUTDOWN | EXPIRED)), "{way:?}: {status:?}");
    assert_ne!(to.ask(json!({"do": "ready", "kv": kv}))["status"], 0);
    settled(&mut from, "the closed exporter");
    settled(&mut to, "its importer");
    // Destroys the exporter's engine. Handles belong to the cache and survive.
    let mut from = exporter(way, &mut to);
    let (offered, _, submitted) = midway(&mut from, &mut to, 2);
    from.ask(json!({"do": "destroy", "engine": "prefill"}));
    to.let_go(FETCH);
    assert_eq!(end(&mut to, submitted), End::Tokens(offered.job.want()));
    // The same while the prompt is being computed, so that its KV may never be complete.
    let streaming = offer(&mut from, Job::long(true, 3));
    let kv = to.ask(import(&streaming.ticket))["kv"].clone();
    from.ask(json!({"do": "destroy", "engine": "prefill"}));
    let submitted = to.try_ask(decode(&kv, false));
    let got = end(&mut to, submitted);
    assert!(got == End::Failed(SHUTDOWN) || got == End::Tokens(streaming.job.want()), "{way:?}: {got:?}");
    // Destroys the importer's engine.
    let (offered, kv, submitted) = midway(&mut from, &mut to, 4);
    to.ask(json!({"do": "destroy", "engine": "decode"}));
    assert_eq!(end(&mut to, submitted), End::Failed(SHUTDOWN));
    to.let_go(FETCH);
    assert_ne!(to.ask(json!({"do": "ready", "kv": kv}))["status"], 0);
    assert_eq!(take(&mut to, &offered.ticket, false), End::Tokens(offered.job.want()), "another engine");
    settled(&mut from, "exporter");
    settled(&mut to, "importer");
    // Closes the importer's cache.
    let (offered, _, submitted) = midway(&mut from, &mut to, 5);
    closes(&mut to);
    assert_eq!(end(&mut to, submitted), End::Failed(SHUTDOWN));
    settled(&mut to, "the closed importer");
    settled_with(&mut from, true, NOTICED, "its exporter");
    let mut to = importer();
    assert_eq!(take(&mut to, &offered.ticket, false), End::Tokens(offered.job.want()));
    // Exits the importer's process, then the exporter's.
    let (offered, _, _) = midway(&mut from, &mut to, 6);
    to.tell(json!({"do": "exit"}));
    to.until_gone();
    settled_with(&mut from, true, NOTICED, "the exporter of one that exits");
    let mut to = importer();
    assert_eq!(take(&mut to, &offered.ticket, false), End::Tokens(offered.job.want()));
    let (_, _, submitted) = midway(&mut from, &mut to, 7);
    from.tell(json!({"do": "exit"}));
    from.until_gone();
    to.let_go(FETCH);
    // All blocks may be mapped and copied by then, but the answer to the message that ends the transfer never comes.
    assert_eq!(end(&mut to, submitted), End::Failed(PEER));
    settled(&mut to, "the importer of one that exits");
    let mut from = exporter(way, &mut to);
    works(&mut from, &mut to, Job::long(false, 8));
}

#[test]
fn over_shared_memory() {
    closing(Way::Shared);
}

#[test]
fn over_tcp() {
    closing(Way::Tcp);
}

/// Many imports from an address that does not answer do not delay closing.
#[test]
fn closing_waits_for_nobody_who_is_silent() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let advertise = silent.local_addr().unwrap().to_string();
    let mut from = Worker::start(json!({"listen": "127.0.0.1:0", "advertise": advertise}));
    let mut to = Worker::start(json!({"peer_timeout_ms": 100_000}));
    // The exporter's Unix socket disappears with it, which leaves only the silent address.
    let offers: Vec<_> = (0..150).map(|salt| offer(&mut from, Job::short(salt))).collect();
    from.kill();
    let submitted: Vec<_> = offers
        .iter()
        .map(|offer| {
            let kv = to.ask(import(&offer.ticket))["kv"].clone();
            to.try_ask(decode(&kv, false))
        })
        .collect();
    closes(&mut to);
    submitted.into_iter().for_each(|submitted| assert_eq!(end(&mut to, submitted), End::Failed(SHUTDOWN)));
    settled(&mut to, "importer");
}

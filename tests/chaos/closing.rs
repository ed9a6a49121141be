//! Caches and engines that are destroyed, and processes that exit, with transfers in flight.

use super::support::*;

const FETCH: &str = "transport.import.fetch";

/// Nobody here is silent, so nothing that happens may have to wait for this.
fn patient(way: Way) -> Value {
    with(way.config(), json!({"peer_timeout_ms": 100_000}))
}

/// Holds an import in the middle: the transfer is open, and blocks are about to be fetched.
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
    // The exporter's cache.
    let mut from = exporter(way, &mut to);
    let (_, kv, submitted) = midway(&mut from, &mut to, 1);
    closes(&mut from);
    to.let_go(FETCH);
    let status = end(&mut to, submitted);
    assert!(matches!(status, End::Failed(PEER | SHUTDOWN | EXPIRED)), "{way:?}: {status:?}");
    assert_ne!(to.ask(json!({"do": "ready", "kv": kv}))["status"], 0);
    settled(&mut from, "the closed exporter");
    settled(&mut to, "its importer");
    // The exporter's engine: handles are the cache's, and stay.
    let mut from = exporter(way, &mut to);
    let (offered, _, submitted) = midway(&mut from, &mut to, 2);
    from.ask(json!({"do": "destroy", "engine": "prefill"}));
    to.let_go(FETCH);
    assert_eq!(end(&mut to, submitted), End::Tokens(offered.job.want()));
    // The same while the prompt is being computed: there will be no KV.
    let streaming = offer(&mut from, Job::long(true, 3));
    let kv = to.ask(import(&streaming.ticket))["kv"].clone();
    from.ask(json!({"do": "destroy", "engine": "prefill"}));
    let submitted = to.try_ask(decode(&kv, false));
    let got = end(&mut to, submitted);
    assert!(got == End::Failed(SHUTDOWN) || got == End::Tokens(streaming.job.want()), "{way:?}: {got:?}");
    // The importer's engine.
    let (offered, kv, submitted) = midway(&mut from, &mut to, 4);
    to.ask(json!({"do": "destroy", "engine": "decode"}));
    assert_eq!(end(&mut to, submitted), End::Failed(SHUTDOWN));
    to.let_go(FETCH);
    assert_ne!(to.ask(json!({"do": "ready", "kv": kv}))["status"], 0);
    assert_eq!(take(&mut to, &offered.ticket, false), End::Tokens(offered.job.want()), "another engine");
    settled(&mut from, "exporter");
    settled(&mut to, "importer");
    // The importer's cache.
    let (offered, _, submitted) = midway(&mut from, &mut to, 5);
    closes(&mut to);
    assert_eq!(end(&mut to, submitted), End::Failed(SHUTDOWN));
    settled(&mut to, "the closed importer");
    settled_with(&mut from, true, NOTICED, "its exporter");
    let mut to = importer();
    assert_eq!(take(&mut to, &offered.ticket, false), End::Tokens(offered.job.want()));
    // Either process.
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
    // All of it may be mapped and copied by then; the answer to the end does not come.
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

/// A hundred imports of an address where nobody answers do not hold up the end.
#[test]
fn closing_waits_for_nobody_who_is_silent() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let advertise = silent.local_addr().unwrap().to_string();
    let mut from = Worker::start(json!({"listen": "127.0.0.1:0", "advertise": advertise}));
    let mut to = Worker::start(json!({"peer_timeout_ms": 100_000}));
    // Its Unix socket is gone with it; what is left is the address that says nothing.
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

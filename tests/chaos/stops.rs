//! Stops either side (SIGSTOP) at every stage of a handoff, and continues it after the other side has given it up.

use super::support::*;

const IMPORT: [&str; 6] = ["open", "opened", "blocks", "fetch", "copied", "committed"];
const EXPORT: [&str; 6] = ["open", "opened", "more", "read", "commit", "committed"];

fn importer_stops(way: Way, stream: bool) {
    let mut to = importer();
    let mut from = Worker::start(with(way.config(), json!({"log": true})));
    pair(&mut from, &mut to, way);
    for (salt, stage) in IMPORT.into_iter().enumerate() {
        let what = format!("importer stopped at {stage}, {way:?}, stream {stream}");
        let bystanders = [Bystander::begin(&mut from), Bystander::begin(&mut to)];
        let offer = offer(&mut from, Job::long(stream, salt as u64));
        from.ask(json!({"do": "forget_log"}));
        to.arm(&format!("transport.import.{stage}"), 1, "stop");
        to.tell(import(&offer.ticket));
        to.until_gone();
        no_transfers(&mut from, NOTICED, &what);
        // The audit does not show a transfer that has no blocks yet.
        if !matches!(stage, "open" | "committed") {
            from.ask(json!({"do": "logged", "text": "given up with its connection"}));
        }
        let [ours, theirs] = bystanders;
        ours.check(&mut from, &what);
        from.ask(json!({"do": "wait", "request": offer.request}));
        to.signal(libc::SIGCONT);
        let kv = to.answer(Duration::from_secs(60)).expect("an answer to the import")["kv"].clone();
        let submitted = to.try_ask(decode(&kv, false));
        let late = end(&mut to, submitted);
        // There was nothing to give up before the transfer began or after it was committed.
        let want = if matches!(stage, "open" | "committed") {
            End::Tokens(offer.job.want())
        } else {
            settled_with(&mut from, true, NOTICED, &what);
            assert!(matches!(late, End::Failed(PEER | EXPIRED)), "{what}: {late:?}");
            take(&mut to, &offer.ticket, false)
        };
        assert_eq!(want, End::Tokens(offer.job.want()), "{what}");
        if matches!(stage, "open" | "committed") {
            assert_eq!(late, want, "{what}");
        }
        theirs.check(&mut to, &what);
        settled(&mut from, &what);
        settled(&mut to, &what);
    }
}

fn exporter_stops(way: Way, stream: bool) {
    let mut to = importer();
    let mut from = exporter(way, &mut to);
    for (salt, stage) in EXPORT.into_iter().enumerate() {
        if way == Way::Shared && stage == "read" {
            continue;
        }
        let what = format!("exporter stopped at {stage}, {way:?}, stream {stream}");
        let bystanders = [Bystander::begin(&mut from), Bystander::begin(&mut to)];
        let offer = offer(&mut from, Job::long(stream, salt as u64));
        from.arm(&format!("transport.export.{stage}"), 1, "stop");
        let kv = to.ask(import(&offer.ticket))["kv"].clone();
        let submitted = to.try_ask(decode(&kv, false));
        from.until_gone();
        let begun = Instant::now();
        let ready = to.ask(json!({"do": "ready", "kv": kv, "within_ms": 60_000}));
        assert_eq!(ready["status"], PEER, "{what}: {ready}");
        assert!(begun.elapsed() < NOTICED, "{what}: noticed after {:?}", begun.elapsed());
        assert_eq!(end(&mut to, submitted), End::Failed(PEER), "{what}");
        let [ours, theirs] = bystanders;
        theirs.check(&mut to, &what);
        settled(&mut to, &what);
        // While the exporter is stopped, further imports get the same error.
        assert_eq!(take(&mut to, &offer.ticket, false), End::Failed(PEER), "{what}");
        from.signal(libc::SIGCONT);
        ours.check(&mut from, &what);
        from.ask(json!({"do": "wait", "request": offer.request}));
        let kept = stage != "committed";
        settled_with(&mut from, kept, NOTICED, &what);
        let want = if kept { End::Tokens(offer.job.want()) } else { End::Failed(EXPIRED) };
        assert_eq!(take(&mut to, &offer.ticket, false), want, "{what}: the ticket afterwards");
        settled(&mut from, &what);
        settled(&mut to, &what);
    }
}

#[test]
fn importers_over_shared_memory() {
    importer_stops(Way::Shared, false);
}

#[test]
fn importers_over_shared_memory_while_the_prompt_is_computed() {
    importer_stops(Way::Shared, true);
}

#[test]
fn importers_over_tcp() {
    importer_stops(Way::Encrypted, false);
}

#[test]
fn importers_over_tcp_while_the_prompt_is_computed() {
    importer_stops(Way::Tcp, true);
}

#[test]
fn exporters_over_shared_memory() {
    exporter_stops(Way::Shared, false);
}

#[test]
fn exporters_over_shared_memory_while_the_prompt_is_computed() {
    exporter_stops(Way::Shared, true);
}

#[test]
fn exporters_over_tcp() {
    exporter_stops(Way::Tcp, false);
}

#[test]
fn exporters_over_tcp_while_the_prompt_is_computed() {
    exporter_stops(Way::Encrypted, true);
}

/// A peer is stopped before the importer knows anything about it. The importer must wait out neither the silence of its
/// Unix socket nor then that of its TCP socket.
#[test]
fn a_stopped_process_is_noticed_in_a_second_however_long_the_timeout() {
    let patient = json!({"peer_timeout_ms": 60_000, "listen": "127.0.0.1:0"});
    let (mut from, mut to) = (Worker::start(patient.clone()), Worker::start(patient));
    let offers = [1, 2].map(|salt| offer(&mut from, Job::long(false, salt)));
    from.signal(libc::SIGSTOP);
    from.until_gone();
    let begun = Instant::now();
    assert_eq!(take(&mut to, &offers[0].ticket, false), End::Failed(PEER));
    assert!(begun.elapsed() < NOTICED, "{:?}", begun.elapsed());
    from.signal(libc::SIGCONT);
    offers.iter().for_each(|offer| assert_eq!(take(&mut to, &offer.ticket, false), End::Tokens(offer.job.want())));
    // The same after its memory is mapped and a connection exists.
    let offer = offer(&mut from, Job::long(false, 3));
    from.signal(libc::SIGSTOP);
    from.until_gone();
    let begun = Instant::now();
    assert_eq!(take(&mut to, &offer.ticket, false), End::Failed(PEER));
    assert!(begun.elapsed() < NOTICED, "{:?}", begun.elapsed());
    from.signal(libc::SIGCONT);
    assert_eq!(take(&mut to, &offer.ticket, false), End::Tokens(offer.job.want()));
    settled(&mut from, "exporter");
    settled(&mut to, "importer");
}

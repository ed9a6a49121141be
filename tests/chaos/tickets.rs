//! Tickets that are reused, late, damaged, forged, or imported by a peer with other weights.

use super::support::*;
use super::worker::{hex, unhex};

fn refused(to: &mut Worker, ticket: &[u8]) -> Option<i64> {
    let answer = to.try_ask(import(&json!(hex(ticket))));
    answer.get("error").map(|_| answer["status"].as_i64().unwrap())
}

fn bytes(ticket: &Value) -> Vec<u8> {
    unhex(ticket.as_str().unwrap())
}

#[test]
fn a_ticket_is_good_for_one_import() {
    for way in [Way::Shared, Way::Tcp] {
        let mut to = importer();
        let mut from = exporter(way, &mut to);
        let once = offer(&mut from, Job::long(false, 1));
        assert_eq!(take(&mut to, &once.ticket, false), End::Tokens(once.job.want()));
        assert_eq!(take(&mut to, &once.ticket, false), End::Failed(EXPIRED));
        // A recomputed import generates the same sequence anew.
        assert_eq!(take(&mut to, &once.ticket, true), End::Tokens(once.job.want()));
        // Exactly one of eight concurrent imports succeeds.
        let raced = offer(&mut from, Job::long(false, 2));
        let kvs: Vec<_> = (0..8).map(|_| to.ask(import(&raced.ticket))["kv"].clone()).collect();
        let submitted: Vec<_> = kvs.iter().map(|kv| to.try_ask(decode(kv, false))).collect();
        let ends: Vec<_> = submitted.into_iter().map(|submitted| end(&mut to, submitted)).collect();
        assert_eq!(ends.iter().filter(|end| **end == End::Tokens(raced.job.want())).count(), 1, "{ends:?}");
        assert_eq!(ends.iter().filter(|end| **end == End::Failed(EXPIRED)).count(), 7, "{ends:?}");
        settled(&mut from, "exporter");
        settled(&mut to, "importer");
    }
}

#[test]
fn a_lease_that_is_over_is_over_and_a_transfer_keeps_its_own() {
    for way in [Way::Shared, Way::Encrypted] {
        let mut to = importer();
        let lease = Duration::from_secs(2);
        let mut from = Worker::start(with(way.config(), json!({"lease_ms": 2000, "peer_timeout_ms": 60_000})));
        pair(&mut from, &mut to, way);
        let begun = Instant::now();
        let late = offer(&mut from, Job::long(false, 1));
        settled_with(&mut from, false, lease + NOTICED, "the lease");
        assert!(begun.elapsed() >= lease, "over early");
        assert_eq!(take(&mut to, &late.ticket, false), End::Failed(EXPIRED));
        // The transfer takes longer than the lease, but shows signs of life in between.
        let slow = offer(&mut from, Job::long(false, 2));
        for stage in ["opened", "fetch", "copied"] {
            to.arm(&format!("transport.import.{stage}"), 1, "800");
        }
        assert_eq!(take(&mut to, &slow.ticket, false), End::Tokens(slow.job.want()), "{way:?}");
        settled(&mut from, "exporter");
        settled(&mut to, "importer");
    }
}

#[test]
fn damaged_tickets_are_refused_and_change_nothing() {
    let mut to = importer();
    // The lease is long enough for the handle to outlive thousands of refusals.
    let mut from = Worker::start(with(Way::Shared.config(), json!({"lease_ms": 3_000_000})));
    pair(&mut from, &mut to, Way::Shared);
    let offer = offer(&mut from, Job::long(false, 1));
    let good = bytes(&offer.ticket);
    let mut random = Random(1);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << random.below(8);
        let status = refused(&mut to, &bad).unwrap_or_else(|| panic!("byte {at} of {} changed", good.len()));
        assert!([CORRUPT, PERMISSION, INCOMPATIBLE, -1].contains(&status), "byte {at}: {status}");
        let status = refused(&mut to, &good[..at]).unwrap_or_else(|| panic!("cut to {at} of {} bytes", good.len()));
        assert!([CORRUPT, PERMISSION, -1].contains(&status), "cut to {at} bytes: {status}");
    }
    let longer = [&good[..], &[0]].concat();
    assert!(refused(&mut to, &longer).is_some(), "a byte behind it");
    settled(&mut to, "importer");
    assert_eq!(take(&mut to, &offer.ticket, false), End::Tokens(offer.job.want()));
    settled(&mut from, "exporter");
}

#[test]
fn another_secret_or_other_weights_are_refused_by_name() {
    let other = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(format!("{}/models/tiny", env!("CARGO_MANIFEST_DIR"))).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), other.path().join(file.file_name())).unwrap();
    }
    let weights = other.path().join("model.safetensors");
    let mut changed = std::fs::read(&weights).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, changed).unwrap();

    let mut from = Worker::start(with(Way::Tcp.config(), json!({})));
    let cases = [(json!({"secret": 9}), PERMISSION, 7), (json!({"model": other.path()}), INCOMPATIBLE, 1)];
    for (config, status, reason) in cases {
        let mut to = Worker::start(with(Way::Shared.config(), config.clone()));
        let offer = offer(&mut from, Job::long(false, 1));
        assert_eq!(take(&mut to, &offer.ticket, true), End::Failed(status), "{config}");
        let address = from.ask(json!({"do": "address"}))["address"].clone();
        for transport in [2, 3] {
            let report = to.ask(json!({"do": "pair", "address": address, "transport": transport}));
            assert_eq!((&report["status"], &report["reason"]), (&json!(status), &json!(reason)), "{report}");
        }
        settled(&mut to, "importer");
        from.ask(json!({"do": "release", "kv": offer.kv}));
        settled(&mut from, "exporter");
    }
}

//! A peer that restarts at the same address.

use super::support::*;

fn restarted(way: Way) {
    let mut to = importer();
    let mut from = exporter(way, &mut to);
    let port = from.port;
    works(&mut from, &mut to, Job::long(false, 1));
    let olds = [2, 3].map(|salt| offer(&mut from, Job::long(false, salt)));
    for round in 0..3 {
        if round % 2 == 0 {
            from.kill();
        } else {
            from.ask(json!({"do": "destroy"}));
            drop(from);
        }
        if round == 1 {
            assert_eq!(take(&mut to, &olds[1].ticket, true), End::Tokens(olds[1].job.want()), "nobody there");
        }
        let config = with(way.config(), json!({"listen": format!("127.0.0.1:{port}")}));
        let begun = Instant::now();
        from = Worker::start(config);
        assert!(begun.elapsed() < Duration::from_secs(120));
        assert_eq!(from.port, port);
        let old = take(&mut to, &olds[0].ticket, false);
        assert!(matches!(old, End::Failed(EXPIRED | NOT_FOUND | PEER)), "an old ticket: {old:?}");
        // The importer does not pair again. The choice made for the address remains, although shared memory would work
        // too.
        let before = from.ask(json!({"do": "metrics"}))["out"].as_u64().unwrap();
        works(&mut from, &mut to, Job::long(round == 2, 10 + round));
        let sent = from.ask(json!({"do": "metrics"}))["out"].as_u64().unwrap() - before;
        assert!(sent > 0, "bytes that its sockets sent: the transport is still TCP");
        settled(&mut from, "exporter");
        settled(&mut to, "importer");
    }
}

#[test]
fn at_the_same_tcp_address() {
    restarted(Way::Tcp);
}

#[test]
fn at_the_same_tcp_address_encrypted() {
    restarted(Way::Encrypted);
}

/// The restarted process has another Unix socket name. An address served with another secret gives a permission error.
#[test]
fn with_another_secret() {
    for way in [Way::Tcp, Way::Encrypted] {
        let mut to = importer();
        let mut from = exporter(way, &mut to);
        let old = offer(&mut from, Job::long(false, 1));
        let listen = format!("127.0.0.1:{}", from.port);
        from.kill();
        let mut other = Worker::start(with(way.config(), json!({"listen": listen, "secret": 9})));
        assert_eq!(take(&mut to, &old.ticket, false), End::Failed(PERMISSION), "{way:?}");
        settled(&mut to, "importer");
        settled(&mut other, "stranger");
        drop(other);
        let mut from = Worker::start(with(way.config(), json!({"listen": listen})));
        works(&mut from, &mut to, Job::long(false, 2));
    }
}

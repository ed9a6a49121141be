//! Sockets whose other end is not a cleave peer.

use super::support::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// Returns an offer whose ticket leads only to `listener`, because its exporter is gone.
fn leading_to(listener: &TcpListener, encryption: &str, salt: u64) -> Offer {
    let advertise = listener.local_addr().unwrap().to_string();
    let config = json!({"listen": "127.0.0.1:0", "advertise": advertise, "encryption": encryption});
    let mut from = Worker::start(config);
    offer(&mut from, Job::long(false, salt))
}

#[test]
fn one_that_accepts_and_says_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for encryption in ["never", "always"] {
        let offer = leading_to(&listener, encryption, 1);
        let mut to = importer();
        let bystander = Bystander::begin(&mut to);
        let begun = Instant::now();
        assert_eq!(take(&mut to, &offer.ticket, false), End::Failed(PEER));
        assert!(begun.elapsed() < 2 * TIMEOUT + SLACK, "{:?}", begun.elapsed());
        // A deadline holds even if the peer may be silent for longer.
        let mut patient = Worker::start(json!({"peer_timeout_ms": 100_000}));
        let kv = patient.ask(import(&offer.ticket))["kv"].clone();
        let mut submit = decode(&kv, false);
        submit["deadline_ms"] = json!(100);
        let begun = Instant::now();
        let submitted = patient.try_ask(submit);
        assert_eq!(end(&mut patient, submitted), End::Failed(-12));
        assert!(begun.elapsed() < SLACK, "a deadline of 100 ms: {:?}", begun.elapsed());
        assert_eq!(take(&mut to, &offer.ticket, true), End::Tokens(offer.job.want()));
        bystander.check(&mut to, "a silent peer");
        settled(&mut to, "importer");
    }
}

#[test]
fn one_that_speaks_garbage() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let offers = ["never", "always"].map(|encryption| leading_to(&listener, encryption, 2));
    let mut random = Random(4);
    let mut garbage = move |n: usize| (0..n).map(|_| random.below(256) as u8).collect::<Vec<u8>>();
    let mut greeting = b"CLVKVNET\x01\x00\x01\x00\x01\x00\x00\x00".to_vec();
    greeting.extend(garbage(32));
    let says =
        vec![garbage(20), garbage(5000), [greeting.clone(), garbage(4000)].concat(), b"HTTP/1.1 400 \r\n".into()];
    let mut to = importer();
    for offer in &offers {
        for said in &says {
            std::thread::scope(|scope| {
                let serve = scope.spawn(|| {
                    let (mut socket, _) = listener.accept().unwrap();
                    let _ = socket.write_all(said);
                    let _ = socket.shutdown(std::net::Shutdown::Write);
                    let _ = socket.set_read_timeout(Some(TIMEOUT));
                    let _ = std::io::copy(&mut socket, &mut std::io::sink());
                });
                let end = take(&mut to, &offer.ticket, false);
                assert!(matches!(end, End::Failed(CORRUPT | PEER | PERMISSION)), "{end:?}");
                serve.join().unwrap();
            });
        }
    }
    // With a byte now and then, the handshake still times out.
    std::thread::scope(|scope| {
        let serve = scope.spawn(|| {
            let (mut socket, _) = listener.accept().unwrap();
            for byte in greeting.iter().cycle().take(100) {
                std::thread::sleep(Duration::from_millis(120));
                if socket.write_all(&[*byte]).is_err() {
                    return;
                }
            }
        });
        let begun = Instant::now();
        assert_eq!(take(&mut to, &offers[0].ticket, false), End::Failed(PEER));
        assert!(begun.elapsed() < 2 * TIMEOUT + SLACK, "{:?}", begun.elapsed());
        serve.join().unwrap();
    });
    settled(&mut to, "importer");
}

#[test]
fn clients_that_scan_dawdle_or_speak_garbage() {
    let mut to = importer();
    let mut from = exporter(Way::Tcp, &mut to);
    let address = ("127.0.0.1", from.port);
    works(&mut from, &mut to, Job::long(false, 0));
    let before = from.ask(json!({"do": "metrics"}));
    let bystander = Bystander::begin(&mut from);
    let dawdlers: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut random = Random(5);
    for i in 0..300 {
        let mut socket = TcpStream::connect(address).unwrap();
        if i % 2 == 0 {
            let garbage: Vec<u8> = (0..random.below(300)).map(|_| random.below(256) as u8).collect();
            let _ = socket.write_all(&garbage);
        }
        for dawdler in &dawdlers[..i % 3] {
            let _ = (&mut &*dawdler).write_all(b"C");
        }
    }
    works(&mut from, &mut to, Job::long(true, 1));
    bystander.check(&mut from, "strangers");
    // Strangers have five seconds to authenticate, however much they send meanwhile.
    let begun = Instant::now();
    for dawdler in &dawdlers {
        dawdler.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let _ = (&mut &*dawdler).write_all(b"C");
        let _ = (&mut &*dawdler).read(&mut [0; 64]);
    }
    assert!(begun.elapsed() < Duration::from_secs(5) + SLACK, "{:?}", begun.elapsed());
    // The threads and descriptors that served them are released soon after.
    for field in ["threads", "files"] {
        let most = before[field].as_u64().unwrap() + 8;
        let mut now = || from.ask(json!({"do": "metrics"}))[field].as_u64().unwrap();
        let until = Instant::now() + 6 * SLACK;
        while now() > most {
            assert!(Instant::now() < until, "{field}: at most {most} expected, {} found", now());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    works(&mut from, &mut to, Job::long(false, 2));
    settled(&mut from, "exporter");
    settled(&mut to, "importer");
}

/// A client that knows the secret opens transfers and then goes silent.
#[test]
fn clients_that_open_transfers_and_go_silent() {
    for way in [Way::Shared, Way::Tcp, Way::Encrypted] {
        let mut to = importer();
        let mut from = exporter(way, &mut to);
        let offers: Vec<_> = (0..10).map(|salt| offer(&mut from, Job { max: 4, ..Job::long(false, salt) })).collect();
        (1..=10).for_each(|nth| to.arm("transport.import.fetch", nth, "hold"));
        let begun = Instant::now();
        let kvs: Vec<_> = offers.iter().map(|offer| to.ask(import(&offer.ticket))["kv"].clone()).collect();
        to.ask(json!({"do": "reached", "name": "transport.import.fetch", "threads": 10}));
        no_transfers(&mut from, NOTICED, "silent importers");
        assert!(begun.elapsed() >= TIMEOUT, "given up early: {:?}", begun.elapsed());
        to.let_go("transport.import.fetch");
        for (kv, offer) in kvs.iter().zip(&offers) {
            let status = to.ask(json!({"do": "ready", "kv": kv}))["status"].as_i64().unwrap();
            assert!([PEER, EXPIRED].contains(&status), "{way:?}, salt {}: {status}", offer.job.salt);
            assert_eq!(take(&mut to, &offer.ticket, false), End::Tokens(offer.job.want()));
        }
        settled(&mut from, "exporter");
    }
}

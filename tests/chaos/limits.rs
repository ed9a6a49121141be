//! Limits on the resources that peers can use up: connections of strangers, idle connections, and threads and queue
//! entries for peers that do not answer.

use super::support::*;
use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

const WOULD_BLOCK: i64 = -4;

/// Descriptor limit of the flooded process.
const FILES: u64 = 256;
/// Descriptors and threads that strangers may use: 16 silent connections, 16 handshakes, and 16 that are closing.
const STRANGERS: u64 = 48;
/// Connections and threads for peers that know the secret.
const FRIENDS: u64 = 60;

fn metric(worker: &mut Worker, name: &str) -> u64 {
    worker.ask(json!({"do": "metrics"}))[name].as_u64().unwrap()
}

/// Opens connections as fast as possible until told to stop, and keeps the last 300 open.
fn flood(port: u16, greeting: &[u8], stop: &AtomicBool, opened: &AtomicU64) {
    let mut open = VecDeque::new();
    while !stop.load(Relaxed) {
        let address = ([127, 0, 0, 1], port).into();
        let Ok(mut socket) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { continue };
        let _ = socket.write_all(greeting);
        open.push_back(socket);
        if open.len() > 300 {
            open.pop_front();
        }
        opened.fetch_add(1, Relaxed);
    }
}

struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Pairs as a host does that asks again: on a busy machine strangers can push a peer out between its proof and the reading of it.
fn pair_among_strangers(from: &mut Worker, to: &mut Worker) {
    let address = from.ask(json!({"do": "address"}))["address"].clone();
    for _ in 0..20 {
        let report = to.ask(json!({"do": "pair", "address": address, "transport": Way::Tcp.transport()}));
        if report["status"] == 0 {
            return;
        }
        assert!(report["detail"].as_str().unwrap().contains("closed the connection"), "{report}");
    }
    panic!("a peer that knows the secret is never let in");
}

#[test]
fn strangers_use_up_neither_descriptors_nor_threads() {
    let mut greeting = b"CLVKVNET\x01\x00\x01\x00\x00\x00\x00\x00".to_vec();
    greeting.extend([7; 32]);
    // Strangers send nothing, garbage, or everything that is possible without the secret.
    for says in [&b""[..], &[0xff; 48], &greeting] {
        let limit = format!("--nofile={FILES}");
        let config = with(Way::Tcp.config(), json!({"peer_timeout_ms": 20_000}));
        let mut from = Worker::start_under(&["prlimit", &limit], config.clone());
        let mut to = Worker::start(config.clone());
        pair(&mut from, &mut to, Way::Tcp);
        let before = ["files", "threads"].map(|name| metric(&mut from, name));
        let (stop, opened) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let port = from.port;
            let (stop, opened) = (&stop, &opened);
            // Whatever fails below, the flood ends, and with it the scope.
            let _stop = StopWhenDropped(stop);
            let flooding = scope.spawn(move || flood(port, says, stop, opened));
            while opened.load(Relaxed) < 2 * FILES {
                std::thread::sleep(Duration::from_millis(1));
            }
            let mut salt = 0;
            let mut most = before;
            while salt < 20 || opened.load(Relaxed) < 8 * FILES {
                // Every few handoffs a new peer without a connection joins.
                if salt % 5 == 0 {
                    to = Worker::start(config.clone());
                    pair_among_strangers(&mut from, &mut to);
                }
                works(&mut from, &mut to, Job::short(salt));
                for (most, name) in most.iter_mut().zip(["files", "threads"]) {
                    *most = metric(&mut from, name).max(*most);
                }
                salt += 1;
            }
            stop.store(true, Relaxed);
            flooding.join().unwrap();
            for (before, most) in before.into_iter().zip(most) {
                assert!(most <= before + STRANGERS + FRIENDS, "{before} before, {most} while {opened:?} connected");
            }
        });
        settled(&mut from, "exporter");
        settled(&mut to, "importer");
    }
}

/// Waits until the exporter has no more threads than before anybody connected.
fn left_alone(from: &mut Worker, before: u64, within: Duration) {
    let begun = Instant::now();
    while metric(from, "threads") > before {
        let threads = metric(from, "threads");
        assert!(begun.elapsed() < within, "{threads} threads, {before} before anybody connected");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The importer's kernel keeps its connections alive, but nobody uses them.
#[test]
fn connections_of_a_stopped_importer_end() {
    for way in [Way::Tcp, Way::Encrypted] {
        // Idle connections end after 30 times this timeout.
        let config = with(way.config(), json!({"peer_timeout_ms": 300}));
        let mut from = Worker::start(config.clone());
        // Creates the engines and other lasting threads before counting.
        let warm = offer(&mut from, Job::short(1));
        from.ask(json!({"do": "release", "kv": warm.kv}));
        let before = metric(&mut from, "threads");
        let mut to = Worker::start(with(config, json!({"peer_timeout_ms": 100_000})));
        pair(&mut from, &mut to, way);
        assert!(metric(&mut from, "threads") > before);
        to.signal(libc::SIGSTOP);
        to.until_gone();
        left_alone(&mut from, before, Duration::from_secs(9) + SLACK);
        to.signal(libc::SIGCONT);
        works(&mut from, &mut to, Job::short(2));
    }
}

/// Returns a stopped exporter, one of its tickets, and a running exporter. Both are reached over TCP.
fn stopped_and_well(to: &mut Worker) -> (Worker, Offer, Worker) {
    let mut stopped = exporter(Way::Tcp, to);
    let lost = offer(&mut stopped, Job::short(1));
    let well = exporter(Way::Tcp, to);
    stopped.signal(libc::SIGSTOP);
    stopped.until_gone();
    (stopped, lost, well)
}

#[test]
fn a_stopped_peer_delays_nobody_else() {
    // The timeout is long enough that no import from the stopped peer ends during the test.
    let mut to = Worker::start(json!({"peer_timeout_ms": 300_000}));
    let (_stopped, lost, mut well) = stopped_and_well(&mut to);
    let first = to.ask(import(&lost.ticket))["kv"].clone();
    // The queue is bounded, and a single peer cannot fill it: less of it once the peer counts as silent, which depends on
    // how fast these imports follow each other.
    let mut queued = 1;
    let refused = loop {
        let answer = to.try_ask(import(&lost.ticket));
        match answer["status"].as_i64() {
            Some(status) => break status,
            None => queued += 1,
        }
        assert!(queued < 2000, "{queued} imports are queued");
    };
    assert_eq!(refused, WOULD_BLOCK);
    assert!(queued > 100, "only {queued} imports are queued");
    works(&mut well, &mut to, Job::short(2));
    works(&mut well, &mut to, Job::short(3));
    let still = to.ask(json!({"do": "ready", "kv": first, "within_ms": 0}));
    assert_eq!(still["timeout"], true, "the stopped peer was waited for: {still}");
    // Closing the cache ends all of them at once.
    let closed = to.ask(json!({"do": "destroy"}));
    assert!(closed["ms"].as_u64().unwrap() < SLACK.as_millis() as u64, "{closed}");
    settled(&mut to, "importer");
}

#[test]
fn imports_from_a_peer_that_was_silent_fail_soon() {
    let timeout = Duration::from_secs(8);
    let mut to = Worker::start(json!({"peer_timeout_ms": timeout.as_millis() as u64}));
    let (stopped, lost, mut well) = stopped_and_well(&mut to);
    assert_eq!(take(&mut to, &lost.ticket, false), End::Failed(PEER));
    let begun = Instant::now();
    let kvs: Vec<_> = (0..300).map(|_| to.ask(import(&lost.ticket))["kv"].clone()).collect();
    works(&mut well, &mut to, Job::short(2));
    for kv in kvs {
        let ready = to.ask(json!({"do": "ready", "kv": kv, "within_ms": 120_000}));
        assert_eq!(ready["status"], PEER, "{ready}");
    }
    // Only the first import waits for the full timeout. If all did, they would finish in five batches.
    assert!(begun.elapsed() < 3 * timeout, "{:?}", begun.elapsed());
    // The peer is usable again as soon as it answers.
    stopped.signal(libc::SIGCONT);
    assert_eq!(take(&mut to, &lost.ticket, false), End::Tokens(lost.job.want()));
    settled(&mut to, "importer");
}

//! Hands a prompt of 2048 tokens to another process in every possible way, and compares with the plain mechanism
//! between the same two processes. Every figure is the median over rounds in which the two take turns.

mod exporter;
mod raw;

use crate::host::{self, Host};
use crate::report::Report;
use crate::synthetic::Shape;
use cleave::engine::{Event, EventKind, ModelCache, Request, Role};
use cleave::kv::KvId;
use cleave::model::Model;
use cleave::transport::Transport;
use exporter::Exporter;
pub use exporter::serve;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const TOKENS: usize = 2048;
const ROUNDS: usize = 9;

pub fn run(report: &mut Report, shape: &Shape, dir: &Path, model: &Arc<Model>, threads: usize) {
    let bytes = TOKENS * model.info().kv_bytes_per_token as usize;
    let mut peer = Exporter::start(dir, threads, bytes);
    let host = Host::new(model, threads);
    let name = shape.name;
    // The first handoff after pairing, before any other traffic.
    let address = peer.ask("address");
    let begun = Instant::now();
    pair(&host.cache, &address, Transport::SharedMemory);
    report.add(name, "pairing, shared memory", begun.elapsed().as_secs_f64() * 1e3, "ms");
    peer.tell("prefill 1");
    peer.line();
    // Once more after some seconds: the system may have reclaimed memory that was not used meanwhile.
    pair(&host.cache, &address, Transport::SharedMemory);
    let first = import_ms(&host, &mut peer);
    let source = raw::buffer(bytes);
    let target = raw::buffer(bytes);
    let (ours, theirs) = turns(|| import_ms(&host, &mut peer), || raw::memcpy_ms(&source, &target, bytes));
    rate(report, name, "shared memory", bytes, ours, "memcpy", theirs);
    report.add_ratio(name, "first handoff of a pair", first, "ms", "warm", ours);

    tickets(report, name, &host, &mut peer);

    let mut streams = raw::Streams::connect(peer.raw_port);
    for (port, what) in [(peer.plain, "TCP, 4 streams"), (peer.sealed, "TCP, 4 streams, encrypted")] {
        peer.tell(&format!("only {port}"));
        let address = peer.line();
        pair(&host.cache, &address, Transport::Tcp);
        let (ours, theirs) = turns(|| import_ms(&host, &mut peer), || streams.copy_ms(&target, bytes));
        rate(report, name, what, bytes, ours, "plain 4-stream copy", theirs);
    }

    match raw::Nixl::connect(&mut peer, bytes) {
        Err(error) => eprintln!("  NIXL: skipped: {error}"),
        Ok(nixl) => {
            let address = peer.ask("address");
            pair(&host.cache, &address, Transport::Nixl);
            let (ours, theirs) = turns(|| import_ms(&host, &mut peer), || nixl.read_ms());
            rate(report, name, "NIXL", bytes, ours, "NIXL's own read", theirs);
        }
    }

    let address = peer.ask("address");
    pair(&host.cache, &address, Transport::SharedMemory);
    first_token(report, name, &host, &mut peer);
}

fn pair(cache: &ModelCache, address: &str, transport: Transport) {
    let report = cache.node().pair(&unhex(address), Some(transport));
    assert!(report.error.is_none(), "{report:?}");
}

/// Medians of two mechanisms that are measured in turns.
fn turns(mut ours: impl FnMut() -> f64, mut theirs: impl FnMut() -> f64) -> (f64, f64) {
    let rounds: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (ours(), theirs())).collect();
    (median(rounds.iter().map(|r| r.0)), median(rounds.iter().map(|r| r.1)))
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn rate(report: &mut Report, name: &str, what: &str, bytes: usize, ours: f64, against: &str, theirs: f64) {
    let gb = |ms: f64| bytes as f64 / ms / 1e6;
    report.add_ratio(name, &format!("handoff 2048, {what}"), gb(ours), "GB/s", against, gb(theirs));
}

/// Time from a received ticket to KV_READY.
fn import_ms(host: &Host, peer: &mut Exporter) -> f64 {
    let ticket = unhex(&peer.ask("ticket"));
    let begun = Instant::now();
    let kv = host.cache.import(Some(&host.queue), &ticket, 0).unwrap();
    wait(host, |event| event.kind == EventKind::KvReady);
    let ms = begun.elapsed().as_secs_f64() * 1e3;
    host.cache.kv().handles().release(kv).unwrap();
    ms
}

fn wait(host: &Host, wanted: impl Fn(&Event) -> bool) -> Event {
    let mut events = Vec::new();
    loop {
        events.clear();
        host.queue.poll(&mut events, 1, None).unwrap();
        if let Some(event) = events.first() {
            assert!(event.status.is_none(), "{event:?}");
            if wanted(event) {
                return *event;
            }
        }
    }
}

/// The cost of a handoff apart from moving blocks.
fn tickets(report: &mut Report, name: &str, host: &Host, peer: &mut Exporter) {
    let make: f64 = peer.ask("make").parse().unwrap();
    report.add(name, "ticket of 2048 tokens, made", make, "us");
    let mut asked = Vec::new();
    for _ in 0..64 {
        import_ms(host, peer);
        asked.push(host.cache.kv().stats().ask_ns_last as f64 / 1e3);
    }
    let asked = median(asked.into_iter());
    report.add(name, "ticket checked until exporter is asked", asked, "us");
    report.add_ratio(name, "ticket: made, checked, asked for", make + asked, "us", "target 100 us", 100.0);
}

/// Delay of the first token by a handoff to another process, with KV streamed while the prompt is computed.
fn first_token(report: &mut Report, name: &str, host: &Host, peer: &mut Exporter) {
    let decode = host.engine(Role::Decode);
    // (prefill alone, prefill while it is pulled, time from its first token to that of the decode engine)
    let mut rounds = Vec::new();
    for round in 0..3 {
        peer.tell(&format!("alone {}", 100 + round));
        let alone: f64 = peer.line().parse().unwrap();
        peer.tell(&format!("stream {}", 200 + round));
        let ticket = unhex(&peer.line());
        let kv = host.cache.import(None, &ticket, 0).unwrap();
        let go_on = Request { kv: kv.0, emit_pending: true, ..host::request(0, 1, 0) };
        let submitted = decode.submit(vec![go_on]);
        assert!(submitted.refused.is_none(), "{:?}", submitted.refused);
        let first = wait(host, |event| event.kind == EventKind::Token).timestamp_ns;
        let line = peer.line();
        let (begun, end) = line.split_once(' ').unwrap();
        let (begun, end): (u64, u64) = (begun.parse().unwrap(), end.parse().unwrap());
        rounds.push((alone, (end - begun) as f64 / 1e6, first.saturating_sub(end) as f64 / 1e6));
    }
    let alone = median(rounds.iter().map(|r| r.0));
    let streamed = median(rounds.iter().map(|r| r.1));
    let added = median(rounds.iter().map(|r| r.2));
    report.add(name, "prefill 2048 alone", alone, "ms");
    report.add_ratio(name, "prefill 2048 while it is pulled", streamed, "ms", "alone", alone);
    report.add_ratio(name, "added to first token by the handoff", added, "ms", "prefill", alone);
    let exposed = host.cache.kv().stats().exposed_ns_last as f64 / 1e6;
    report.add(name, "exposed after the prefill, last", exposed, "ms");
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// A handle of the exporter that stays; tickets are written for duplicates of it.
pub fn duplicate(cache: &ModelCache, kv: u64) -> KvId {
    cache.kv().handles().duplicate(KvId(kv)).unwrap()
}

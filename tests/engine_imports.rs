//! Requests that wait for an import: however they end they end once, the handle they took ends with them, and
//! the exporter keeps its own.

mod common;

use cleave::engine::{Engine, EngineOptions, EventKind, ModelCache, Request, Role};
use cleave::error::Status;
use cleave::kv::KvId;
use cleave::sequence::FinishReason;
use common::*;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// Two caches with the same secret, a handle in the first, and the second's transfer thread held up.
struct Pair {
    from: Arc<ModelCache>,
    to: Arc<ModelCache>,
    host: Host,
    kv: u64,
    ticket: Vec<u8>,
    go: Sender<()>,
}

fn pair() -> Pair {
    let make = || {
        let options = cleave::engine::CacheOptions { secret: Some([3; 32]), bytes: 1 << 20, ..Default::default() };
        cache(options)
    };
    let (from, to) = (make(), make());
    let mut host = Host::new();
    let prefill = host.engine(&from, role(Role::Prefill));
    let mut export = |salt| {
        let end = host.run(&prefill, request(&prompt(40, salt), 12)).end.unwrap();
        (end.kv, cleave::transport::ticket(from.kv(), KvId(end.kv)).unwrap())
    };
    let (other, (kv, ticket)) = (export(1), export(2));
    let (go, wait) = channel();
    // The transfer thread calls this when the first import has landed, and stands still in it.
    let hold = move |id: KvId, _: cleave::error::Result<()>| {
        let _ = wait.recv_timeout(Duration::from_secs(30));
        _ = id;
    };
    let held = cleave::transport::import_async(to.kv(), &other.1, hold).unwrap();
    while to.kv().info(held).unwrap().importing {
        std::thread::yield_now();
    }
    to.kv().release(held).unwrap();
    Pair { from, to, host, kv, ticket, go }
}

impl Pair {
    fn import(&self) -> u64 {
        self.to.import(Some(&self.host.queue), &self.ticket, 5).unwrap().0
    }

    /// The import's KV_READY has come, nothing is left in the second cache, and the first still has its handle.
    fn settled(mut self, what: &str) {
        self.go.send(()).unwrap();
        while !self.host.others.iter().any(|e| e.kind == EventKind::KvReady) {
            assert!(self.host.poll(Duration::from_secs(10)) > 0, "{what}: no KV_READY");
        }
        let info = self.from.kv().info(KvId(self.kv));
        assert!(info.is_ok(), "{what}: the exporter's handle is gone: {:?}", info.unwrap_err());
        assert_quiescent(&self.to);
        while self.host.poll(Duration::from_millis(20)) > 0 {}
        assert_eq!(self.host.others.iter().filter(|e| e.kind == EventKind::KvReady).count(), 1, "{what}");
    }
}

fn engine(pair: &Pair) -> Engine {
    pair.host.engine(&pair.to, role(Role::Decode))
}

fn ends(host: &mut Host, id: u64, status: Status, what: &str) {
    let outcome = host.finish(id);
    assert_eq!((outcome.reason(), outcome.end.unwrap().status), (FinishReason::Error, Some(status)), "{what}");
    assert!(outcome.tokens.is_empty(), "{what}");
}

#[test]
fn a_cancelled_one_ends_at_once() {
    let mut pair = pair();
    let engine = engine(&pair);
    let id = pair.host.submit(&engine, continuation(pair.import()));
    engine.cancel(id).unwrap();
    ends(&mut pair.host, id, Status::Cancelled, "cancel");
    pair.settled("cancel");
}

#[test]
fn an_overdue_one_ends_at_once() {
    let mut pair = pair();
    let engine = engine(&pair);
    let deadline = Some(Duration::from_millis(20));
    let id = pair.host.submit(&engine, Request { deadline, ..continuation(pair.import()) });
    ends(&mut pair.host, id, Status::Timeout, "deadline");
    pair.settled("deadline");
}

#[test]
fn destroying_the_engine_ends_it() {
    let mut pair = pair();
    let engine = engine(&pair);
    let id = pair.host.submit(&engine, continuation(pair.import()));
    drop(engine);
    ends(&mut pair.host, id, Status::Shutdown, "destroy");
    pair.settled("destroy");
}

#[test]
fn closing_the_cache_ends_it() {
    let mut pair = pair();
    let engine = engine(&pair);
    let id = pair.host.submit(&engine, continuation(pair.import()));
    let to = pair.to.clone();
    let closing = std::thread::spawn(move || to.close());
    ends(&mut pair.host, id, Status::Shutdown, "close");
    pair.settled("close");
    closing.join().unwrap();
}

#[test]
fn an_exported_one_is_handed_over_when_it_lands() {
    let mut pair = pair();
    let engine = engine(&pair);
    let id = pair.host.submit(&engine, continuation(pair.import()));
    engine.export(id).unwrap();
    pair.go.send(()).unwrap();
    let outcome = pair.host.finish(id);
    assert_eq!((outcome.reason(), outcome.tokens.len()), (FinishReason::Exported, 0));
    let rest = pair.host.run(&engine, continuation(outcome.end.unwrap().kv));
    assert_eq!(rest.indices, (1..12).collect::<Vec<_>>());
}

#[test]
fn what_a_landed_sequence_cannot_run_ends_it_and_frees_it() {
    let mut pair = pair();
    let engine = engine(&pair);
    let bad = Request { prompt: prompt(1 << 12, 1), ..continuation(pair.import()) };
    let id = pair.host.submit(&engine, bad);
    pair.go.send(()).unwrap();
    ends(&mut pair.host, id, Status::InvalidArgument, "too long");
    assert_quiescent(&pair.to);
}

#[test]
fn a_flood_of_imports_all_report() {
    let pair = pair();
    let mut host = Host::new();
    let engine = host.engine(&pair.to, EngineOptions { max_sequences: 2, ..role(Role::Mixed) });
    // One ticket many times: the first import gets the sequence, the others learn that it is gone.
    let imports: Vec<u64> = (0..20).map(|i| pair.to.import(Some(&host.queue), &pair.ticket, i).unwrap().0).collect();
    let ids: Vec<u64> = imports.iter().map(|&kv| host.submit(&engine, continuation(kv))).collect();
    pair.go.send(()).unwrap();
    let outcomes: Vec<_> = ids.iter().map(|&id| host.finish(id)).collect();
    assert_eq!(outcomes.iter().filter(|o| o.reason() == FinishReason::Length).count(), 1);
    assert_eq!(outcomes.iter().filter(|o| o.end.unwrap().status == Some(Status::Expired)).count(), 19);
    while host.others.len() < 20 {
        assert!(host.poll(Duration::from_secs(10)) > 0);
    }
    assert_quiescent(&pair.to);
    assert_eq!(engine.metrics().handoffs, 1);
}

#[test]
fn a_handle_on_its_way_is_used_once() {
    let mut pair = pair();
    let engine = engine(&pair);
    let kv = pair.import();
    let id = pair.host.submit(&engine, continuation(kv));
    let refused = engine.submit(vec![continuation(kv)]).refused.expect("taken by the first request");
    assert_eq!(refused.status, Status::Expired, "{refused}");
    pair.go.send(()).unwrap();
    assert_eq!(pair.host.finish(id).reason(), FinishReason::Length);
}

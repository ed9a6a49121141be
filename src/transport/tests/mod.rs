//! Tickets, imports in the background, and transfers that others get in the way of.

mod hostile;
mod silent;
mod sockets;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use crate::backend::{BlockId, BlockStore, KvGeometry};
use crate::error::{Result, Status};
use crate::kv::tests::held::HeldStore;
use crate::kv::tests::model::{GEOMETRY, Seq, cache, config, identity};
use crate::kv::tests::store::MemoryStore;
use crate::kv::tests::{consume, sound};
use crate::kv::{Cache, Consumed, KvId, Shards};
use crate::transport::{self, Node, NodeConfig};

fn exported(cache: &Cache, n: u32) -> KvId {
    let seq = Seq::computed(cache, n, 1, 3);
    cache.export(seq.snapshot, seq.table, None).unwrap()
}

fn node(cache: &Arc<Cache>) -> Arc<Node> {
    Node::new(cache, NodeConfig::default()).unwrap()
}

fn read(cache: &Cache, id: KvId) -> Vec<u8> {
    let mut image = vec![0; cache.image_len(id).unwrap() as usize];
    assert_eq!(cache.read_image(id, 0, &mut image).unwrap(), image.len());
    image
}

/// No block is held by anything but the prefix index.
fn assert_idle(cache: &Cache) {
    let audit = sound(cache);
    assert_eq!((audit.by_requests, audit.by_exports, audit.by_transfers), (0, 0, 0));
}

#[track_caller]
fn refused<T>(result: Result<T>, status: Status, words: &[&str]) {
    let error = result.err().expect("refused");
    assert_eq!(error.status, status, "{error}");
    words.iter().for_each(|word| assert!(error.message.contains(word), "{word:?} in {error}"));
}

/// A store whose next read of a block waits in the middle of the transfer: it says so, then waits to be let on.
struct GatedStore {
    store: MemoryStore,
    gate: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>,
}

impl GatedStore {
    fn cache() -> (Arc<GatedStore>, Arc<Cache>) {
        let store = Arc::new(GatedStore { store: MemoryStore::new(GEOMETRY, 16), gate: Mutex::new(None) });
        (store.clone(), Cache::new(identity(), Shards::on_one_device(store).unwrap(), config()).unwrap())
    }

    /// (a read has begun, let it go on)
    fn arm(&self) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (began, wait) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        *self.gate.lock().unwrap() = Some((began, gone));
        (wait, go)
    }
}

impl BlockStore for GatedStore {
    fn geometry(&self) -> &KvGeometry {
        self.store.geometry()
    }

    fn n_blocks(&self) -> usize {
        self.store.n_blocks()
    }

    fn read(&self, id: BlockId, offset: usize, out: &mut [u8]) -> Result<()> {
        let gate = self.gate.lock().unwrap().take();
        if let Some((began, gone)) = gate {
            began.send(()).unwrap();
            gone.recv().unwrap();
        }
        self.store.read(id, offset, out)
    }

    fn write(&self, id: BlockId, offset: usize, data: &[u8]) -> Result<()> {
        self.store.write(id, offset, data)
    }

    fn copy(&self, from: BlockId, to: BlockId) -> Result<()> {
        self.store.copy(from, to)
    }
}

#[test]
fn a_handle_consumed_during_its_transfer_is_not_there_twice() {
    let ((store, a), b) = (GatedStore::cache(), cache(16));
    for winner in 0..3 {
        let id = exported(&a, 14);
        let ticket = transport::ticket(&a, id).unwrap();
        let (began, go) = store.arm();
        std::thread::scope(|scope| {
            let import = scope.spawn(|| transport::import(&b, &ticket));
            began.recv().unwrap();
            assert_eq!(sound(&a).by_transfers, 4);
            match winner {
                0 => drop(consume(&a, id).unwrap()),
                1 => a.release(id).unwrap(),
                _ => a.renew(id, Duration::ZERO).unwrap(),
            }
            // The transfer still reads the blocks: they are nobody else's yet.
            if winner < 2 {
                assert_eq!((sound(&a).by_exports, sound(&a).by_transfers), (0, 4));
            }
            assert_eq!(a.available_blocks(), 12);
            go.send(()).unwrap();
            let status = if winner == 1 { Status::NotFound } else { Status::Expired };
            refused(import.join().unwrap(), status, &[]);
        });
        assert_idle(&a);
        assert_idle(&b);
    }
}

#[test]
fn a_late_or_broken_transfer_ends_as_a_failed_handle() {
    let ((store, a), b) = (GatedStore::cache(), cache(16));
    let node = node(&b);
    for late in [true, false] {
        let id = exported(&a, 14);
        let (began, go) = store.arm();
        let (done, wait) = mpsc::channel();
        let ticket = transport::ticket(&a, id).unwrap();
        let landing = node.import(&ticket, move |_, outcome| done.send(outcome).unwrap()).unwrap();
        began.recv().unwrap();
        if late {
            b.bump_epoch().unwrap();
            go.send(()).unwrap();
        }
        // Without the word to go on, the store panics in the middle of the copy.
        drop(go);
        let status = if late { Status::Expired } else { Status::Internal };
        refused(wait.recv_timeout(Duration::from_secs(60)).unwrap(), status, &[]);
        refused(b.consume(landing), status, &[]);
        assert!(a.info(id).is_ok(), "the exporter's handle stays if nothing landed");
        a.release(id).unwrap();
        assert_idle(&a);
        assert_idle(&b);
    }
}

#[test]
fn an_image_is_what_the_handle_was_even_if_its_consumer_writes_meanwhile() {
    let ((store, a), b) = (GatedStore::cache(), cache(16));
    let id = exported(&a, 6);
    let before = read(&a, id);
    let (began, go) = store.arm();
    std::thread::scope(|scope| {
        let mut image = vec![0; before.len()];
        let reader = scope.spawn(|| a.read_image(id, 0, &mut image).map(|n| (n, image)));
        began.recv().unwrap();
        let mut seq = consume(&a, id).unwrap();
        assert!(seq.step(a.store(), 1));
        go.send(()).unwrap();
        assert!(reader.join().unwrap().unwrap() == (before.len(), before));
        seq.verify(a.store());
    });
    assert_idle(&a);
    assert_idle(&b);
}

#[test]
fn threads_in_each_others_way_leak_nothing() {
    let caches = [cache(40), cache(40)];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let run = |t: u32| {
            let caches = &caches;
            scope.spawn(move || {
                for round in 0..400u32 {
                    let (from, to) = (&caches[(t % 2) as usize], &caches[(round % 2) as usize]);
                    let mut seq = Seq::new(from, (0..10 + round % 9).collect(), u64::from(round % 3));
                    if !seq.step(from.store(), u32::MAX) {
                        continue;
                    }
                    let id = from.export(seq.snapshot, seq.table, None).unwrap();
                    let copy = from.duplicate(id).unwrap();
                    let moved = match round % 4 {
                        0 => transport::import(to, &read(from, id)),
                        1 => transport::ticket(from, id).and_then(|ticket| transport::import(to, &ticket)),
                        _ => Ok(id),
                    };
                    let at = if round % 4 < 2 { to } else { from };
                    match moved {
                        Ok(id) => consume(at, id).unwrap().verify(at.store()),
                        Err(error) => assert_eq!(error.status, Status::OutOfMemory),
                    }
                    let mut seq = consume(from, copy).unwrap();
                    seq.snapshot.tokens.push(t);
                    seq.step(from.store(), 1);
                    seq.verify(from.store());
                    from.release(id).unwrap();
                }
            })
        };
        let threads: Vec<_> = (0..4).map(run).collect();
        let watch = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                caches.iter().for_each(|cache| _ = sound(cache));
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        let ends: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        over.store(true, Ordering::SeqCst);
        ends.into_iter().chain([watch.join()]).for_each(|end| end.unwrap());
    });
    caches.iter().for_each(|cache| assert_idle(cache));
}

#[test]
fn a_ticket_moves_the_sequence_and_ends_the_handle() {
    let (a, b) = (cache(16), cache(16));
    let id = exported(&a, 14);
    let ticket = transport::ticket(&a, id).unwrap();
    assert_eq!(ticket.len() as u64, a.info(id).unwrap().ticket_bytes);
    let here = transport::import(&b, &ticket).unwrap();
    assert_idle(&a);
    refused(a.consume(id), Status::Expired, &["consumed"]);
    refused(transport::import(&b, &ticket), Status::Expired, &[]);
    let bytes = 4 * GEOMETRY.block_bytes() as u64;
    assert_eq!((a.stats().bytes_out, b.stats().bytes_in), (bytes, bytes));
    // Within the cache: nothing is copied, but the handle is another one.
    let ticket = transport::ticket(&b, here).unwrap();
    let moved = transport::import(&b, &ticket).unwrap();
    refused(b.consume(here), Status::Expired, &[]);
    assert_eq!(b.stats().bytes_in, bytes);
    let ticket = transport::ticket(&b, moved).unwrap();
    b.bump_epoch().unwrap();
    refused(transport::import(&a, &ticket), Status::Expired, &["epoch"]);
    consume(&b, moved).unwrap().verify(b.store());
    let late = exported(&a, 14);
    let ticket = transport::ticket(&a, late).unwrap();
    drop(a);
    refused(transport::import(&b, &ticket), Status::Expired, &["gone"]);
    assert_idle(&b);
}

#[test]
fn of_racing_imports_of_one_ticket_exactly_one_wins() {
    let (a, caches) = (cache(16), [cache(16), cache(16)]);
    for _ in 0..100 {
        let ticket = transport::ticket(&a, exported(&a, 14)).unwrap();
        let barrier = Barrier::new(2);
        let wins: usize = std::thread::scope(|scope| {
            let run = |cache| {
                let (ticket, barrier) = (&ticket, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let id = transport::import(cache, ticket);
                    id.map_or(0, |id| consume(cache, id).map(|seq| seq.verify(cache.store())).is_ok() as usize)
                })
            };
            caches.each_ref().map(run).into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(wins, 1);
        caches.iter().chain([&a]).for_each(|cache| assert_idle(cache));
    }
}

#[test]
fn an_import_in_the_background_reports_once() {
    let store = Arc::new(HeldStore::new(MemoryStore::new(GEOMETRY, 32)));
    let (a, b) = (Cache::new(identity(), Shards::on_one_device(store.clone()).unwrap(), config()).unwrap(), cache(16));
    let node = node(&b);
    let ticket = || transport::ticket(&a, exported(&a, 14)).unwrap();
    let (done, wait) = mpsc::channel();
    let import = |data: Vec<u8>| {
        let done = done.clone();
        node.import(&data, move |id, outcome| done.send((id, outcome)).unwrap()).unwrap()
    };
    // No block can be read for now, so that the import is seen pending.
    let held = store.hold();
    let id = import(ticket());
    assert!(matches!(b.consume(id).unwrap(), Consumed::Pending));
    assert!(b.info(id).unwrap().importing);
    refused(b.image_len(id), Status::WouldBlock, &[]);
    let (landed, woken) = mpsc::channel();
    let landed_too = landed.clone();
    assert!(b.on_landed(id, Arc::new(move || landed.send(id).unwrap())));
    let dropped = import(ticket());
    assert!(b.on_landed(dropped, Arc::new(move || landed_too.send(dropped).unwrap())));
    b.release(dropped).unwrap();
    assert_eq!(woken.recv_timeout(Duration::from_secs(60)).unwrap(), dropped);
    let gone = exported(&a, 14);
    let bad = transport::ticket(&a, gone).unwrap();
    a.release(gone).unwrap();
    let bad = import(bad);
    drop(held);
    assert_eq!(woken.recv_timeout(Duration::from_secs(60)).unwrap(), id);
    let outcomes: HashMap<_, _> = (0..3).map(|_| wait.recv_timeout(Duration::from_secs(60)).unwrap()).collect();
    assert_eq!(outcomes[&id], Ok(()));
    assert_eq!(outcomes[&dropped].as_ref().unwrap_err().status, Status::NotFound);
    assert_eq!(outcomes[&bad].as_ref().unwrap_err().status, Status::NotFound);
    assert!(!b.on_landed(id, Arc::new(|| ())));
    for _ in 0..2 {
        refused(b.consume(bad), Status::NotFound, &[]);
    }
    b.release(bad).unwrap();
    consume(&b, id).unwrap().verify(b.store());
    assert_idle(&b);
    // What can be seen without the exporter is refused at once; an image is there at once.
    assert!(node.import(b"nonsense", |_, _| panic!("never accepted")).is_err());
    let mut image = read(&a, exported(&a, 14));
    let (done, wait) = mpsc::channel();
    let id = node.import(&image, move |id, outcome| done.send((id, outcome)).unwrap()).unwrap();
    assert_eq!(wait.try_recv().unwrap(), (id, Ok(())));
    consume(&b, id).unwrap().verify(b.store());
    *image.last_mut().unwrap() ^= 1;
    refused(node.import(&image, |_, _| panic!("never accepted")), Status::Corrupt, &["block 3"]);
}

#[test]
fn closing_ends_imports_that_are_queued() {
    let store = Arc::new(HeldStore::new(MemoryStore::new(GEOMETRY, 32)));
    let (a, b) = (Cache::new(identity(), Shards::on_one_device(store.clone()).unwrap(), config()).unwrap(), cache(16));
    let importer = node(&b);
    let ticket = || transport::ticket(&a, exported(&a, 14)).unwrap();
    let (done, wait) = mpsc::channel();
    let held = store.hold();
    for _ in 0..3 {
        let done = done.clone();
        importer.import(&ticket(), move |_, outcome| done.send(outcome).unwrap()).unwrap();
    }
    std::thread::scope(|scope| {
        let closing = scope.spawn(move || drop(importer));
        std::thread::sleep(Duration::from_millis(20));
        drop(held);
        closing.join().unwrap();
    });
    drop(b);
    drop(done);
    let outcomes: Vec<_> = wait.iter().collect();
    assert_eq!(outcomes.len(), 3);
    let closed = |outcome: &Result<()>| outcome.as_ref().err().is_none_or(|error| error.status == Status::Shutdown);
    assert!(outcomes.iter().all(closed), "{outcomes:?}");
    let c = cache(16);
    c.close();
    let closed = node(&c);
    refused(closed.import(&ticket(), |_, _| ()), Status::Shutdown, &[]);
    let image = read(&a, exported(&a, 14));
    refused(c.import_image(&image), Status::Shutdown, &[]);
    assert_idle(&c);
}

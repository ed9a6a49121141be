//! Races over handles and blocks, one schedule after another: the scheduler picks who runs at every lock, every
//! access to a block and every call of a waker. A failure prints its schedule; `shuttle::replay` runs it again.

mod claims;
mod closing;
mod failures;
mod handles;
mod holds;
mod imports;
mod leases;
mod streaming;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use ::shuttle::scheduler::{PctScheduler, RandomScheduler};
use ::shuttle::sync::mpsc;
use ::shuttle::thread::{self, JoinHandle};
use ::shuttle::{Config, Runner};

use super::model::{GEOMETRY, Seq, config, identity, snapshot};
use super::store::MemoryStore;
use super::{BlockId, BlockStore, Cache, CacheConfig, Consumed, KvGeometry, KvId, Shards, Snapshot, sound};
use crate::error::{Error, Result, Status};
use crate::kv::TransferHold;
use crate::kv::Waker;
use crate::kv::handles::run_leases;
use crate::sync::{Instant, advance, reset_clock};

const LEASE: Duration = Duration::from_secs(30);
const SCHEDULES: usize = 1000;

/// Random schedules, and as many with a few well-placed switches between threads, which find what is rare in those.
fn explore(test: impl Fn() + Send + Sync + 'static) {
    let run = Arc::new(move || {
        reset_clock();
        test();
    });
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    let again = run.clone();
    Runner::new(RandomScheduler::new(SCHEDULES), config.clone()).run(move || run());
    Runner::new(PctScheduler::new(3, SCHEDULES), config).run(move || again());
}

/// A store between whose accesses others may run.
struct SlowStore {
    memory: MemoryStore,
    look: ::shuttle::sync::Mutex<()>,
}

impl SlowStore {
    fn others(&self) -> &MemoryStore {
        drop(self.look.lock());
        &self.memory
    }
}

impl BlockStore for SlowStore {
    fn geometry(&self) -> &KvGeometry {
        self.memory.geometry()
    }

    fn n_blocks(&self) -> usize {
        self.memory.n_blocks()
    }

    fn read(&self, id: BlockId, offset: usize, out: &mut [u8]) -> Result<()> {
        self.others().read(id, offset, out)
    }

    fn write(&self, id: BlockId, offset: usize, data: &[u8]) -> Result<()> {
        self.others().write(id, offset, data)
    }

    fn copy(&self, from: BlockId, to: BlockId) -> Result<()> {
        let mut data = vec![0; GEOMETRY.block_bytes()];
        self.read(from, 0, &mut data)?;
        self.write(to, 0, &data)
    }
}

/// A cache and, as a thread of the model, its lease timer.
struct Model {
    cache: Arc<Cache>,
    timer: JoinHandle<()>,
}

impl Model {
    fn new(n_blocks: usize) -> Model {
        let store = SlowStore { memory: MemoryStore::new(GEOMETRY, n_blocks), look: ::shuttle::sync::Mutex::new(()) };
        let cache = Cache::new(
            identity(),
            Shards::on_one_device(Arc::new(store)).unwrap(),
            CacheConfig { lease: LEASE, ..config() },
        )
        .unwrap();
        let shared = cache.shared.clone();
        Model { cache, timer: thread::spawn(move || run_leases(&shared)) }
    }

    fn go<T: Send + 'static>(&self, run: impl FnOnce(&Arc<Cache>) -> T + Send + 'static) -> JoinHandle<T> {
        let cache = self.cache.clone();
        thread::spawn(move || run(&cache))
    }

    /// A handle of a sequence of 7 tokens in two blocks, the second half full.
    fn exported(&self) -> KvId {
        let seq = Seq::computed(&self.cache, 7, 1, 0);
        self.cache.handles().export(seq.snapshot, seq.table, None).unwrap()
    }

    /// Whatever happened, nobody holds a block now, before the end and after it.
    fn finish(self) {
        let audit = sound(&self.cache);
        assert_eq!((audit.by_requests, audit.by_exports, audit.by_transfers), (0, 0, 0));
        assert_eq!(self.cache.available_blocks(), audit.total);
        self.closed();
    }

    fn closed(self) {
        self.cache.close();
        self.timer.join().unwrap();
        let audit = sound(&self.cache);
        assert_eq!((audit.free, audit.total), (audit.total, self.cache.store().n_blocks()));
    }
}

/// Time goes by. A timer that sleeps until then wakes: the model's waits never time out by themselves.
fn pass(cache: &Cache, time: Duration) {
    advance(time);
    let armed = cache.shared.lock().handles.leases().armed();
    if armed.is_some_and(|armed| armed <= Instant::now()) {
        cache.shared.timer.notify_all();
    }
}

/// Consumes a handle; what it held must be what was put there.
fn take(cache: &Cache, id: KvId) -> Result<Option<Seq>> {
    Ok(landed(cache, cache.handles().consume(id)?))
}

fn landed(cache: &Cache, found: Consumed) -> Option<Seq> {
    let Consumed::Ready(snapshot, table) = found else { return None };
    let seq = Seq { snapshot, table };
    seq.verify(cache.store());
    Some(seq)
}

/// The sequence of [`Model::exported`], as a ticket says it.
fn expected() -> Arc<Snapshot> {
    Arc::new(snapshot((0..7).collect(), 0))
}

/// Epoch and sequence digest in a ticket of `id` that is written now.
fn ticket(cache: &Cache, id: KvId) -> Result<([u8; 16], [u8; 32])> {
    let ticket = cache.tickets().open(&cache.tickets().encode(id)?)?;
    Ok((ticket.epoch, ticket.digest))
}

/// The exporter's side of a transfer, with a ticket written just now.
fn lend(cache: &Cache, id: KvId) -> Result<TransferHold> {
    let (epoch, digest) = ticket(cache, id)?;
    cache.transfers().hold(id, &epoch, &digest)
}

fn image(cache: &Cache, id: KvId) -> Result<Vec<u8>> {
    let mut image = vec![0; cache.images().len(id)? as usize];
    let (front, back) = image.split_at_mut(500);
    // The blocks last: no later read may excuse what this one got.
    cache.images().read(id, 0, front)?;
    cache.images().read(id, 500, back)?;
    Ok(image)
}

/// Somebody who waits and counts how often he was called.
struct Sleeper {
    calls: Arc<AtomicUsize>,
    called: mpsc::Receiver<()>,
    waker: Waker,
}

impl Sleeper {
    fn new() -> Sleeper {
        let (send, called) = mpsc::channel();
        let calls = Arc::new(AtomicUsize::new(0));
        let count = calls.clone();
        let waker: Waker = Arc::new(move || {
            count.fetch_add(1, SeqCst);
            let _ = send.send(());
        });
        Sleeper { calls, called, waker }
    }

    /// Never returns, which is a deadlock that the checker sees, unless the waker is called.
    fn sleep(&self) {
        self.called.recv().unwrap();
    }

    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }
}

fn status<T>(result: &Result<T>) -> Option<Status> {
    result.as_ref().err().map(|error: &Error| error.status)
}

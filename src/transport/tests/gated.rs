//! Transfers that are held in the middle while somebody else takes the handle, or while they fail.

use super::*;
use crate::backend::{BlockId, BlockStore};

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
                1 => a.handles().release(id).unwrap(),
                _ => a.handles().renew(id, Duration::ZERO).unwrap(),
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
            b.handles().release(landing).unwrap();
            go.send(()).unwrap();
        }
        // Without the word to go on, the store panics in the middle of the copy.
        drop(go);
        let status = if late { Status::NotFound } else { Status::Internal };
        refused(wait.recv_timeout(Duration::from_secs(60)).unwrap(), status, &[]);
        refused(b.handles().consume(landing), status, &[]);
        assert!(a.handles().info(id).is_ok(), "the exporter's handle stays if nothing landed");
        a.handles().release(id).unwrap();
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
        let reader = scope.spawn(|| a.images().read(id, 0, &mut image).map(|n| (n, image)));
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

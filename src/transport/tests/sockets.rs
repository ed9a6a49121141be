//! Two caches of this process that go through sockets all the same: blocks over several connections, and ends on the
//! transport's own threads.

use super::*;
use crate::backend::cpu::KvSlab;
use crate::kv::tests::model::snapshot;
use crate::tensor::Dtype;
use crate::transport::{Encryption, Transport};

/// Blocks of 256 KiB: a few dozen are more than one connection is given at a time.
pub(super) const LARGE: KvGeometry =
    KvGeometry { layers: 4, kv_heads: 2, head_dim: 64, block_tokens: 64, dtype: Dtype::F32, shards: 1 };
pub(super) const BLOCKS: usize = 40;

pub(super) fn large() -> Arc<Cache> {
    Cache::new(
        identity(),
        Shards::on_one_device(Arc::new(KvSlab::shared(LARGE, BLOCKS + 8).unwrap())).unwrap(),
        config(),
    )
    .unwrap()
}

fn listening(cache: &Arc<Cache>, encryption: Encryption) -> Arc<Node> {
    let node = Node::new(cache, NodeConfig { serve: true, peer_timeout: Duration::from_secs(100) }).unwrap();
    node.listen("127.0.0.1:0", None, encryption).unwrap();
    node
}

fn paired(a: &Node, b: &Node, transport: Transport) {
    let report = b.pair(&a.address(), Some(transport));
    assert!(report.error.is_none(), "{report:?}");
}

fn byte(block: usize, i: usize) -> u8 {
    (i * 31 + block * 7 + (i >> 8) * 3) as u8
}

/// A handle of [`BLOCKS`] blocks, the last half full.
fn filled(cache: &Cache) -> KvId {
    let tokens = BLOCKS as u32 * 64 - 32;
    let mut table = cache.table();
    assert!(table.reserve(0, tokens));
    for (index, &block) in table.blocks().iter().enumerate() {
        let bytes: Vec<u8> = (0..LARGE.block_bytes()).map(|i| byte(index, i)).collect();
        cache.store().write(block, 0, &bytes).unwrap();
    }
    let snapshot = crate::sequence::Snapshot { computed: tokens, ..snapshot((0..tokens).collect(), 1) };
    cache.handles().export(snapshot, table, None).unwrap()
}

fn import(node: &Arc<Node>, ticket: &[u8]) -> (KvId, mpsc::Receiver<Result<()>>) {
    let (done, wait) = mpsc::channel();
    let id = node.import(ticket, move |_, outcome| _ = done.send(outcome)).unwrap();
    (id, wait)
}

#[test]
fn blocks_over_several_connections_arrive_where_they_belong() {
    for (encryption, transport) in [
        (Encryption::Never, Transport::Tcp),
        (Encryption::Always, Transport::Tcp),
        (Encryption::Never, Transport::SharedMemory),
    ] {
        let (a, b) = (large(), large());
        let (from, to) = (listening(&a, encryption), listening(&b, encryption));
        paired(&from, &to, transport);
        for _ in 0..3 {
            let id = filled(&a);
            let (landed, wait) = import(&to, &from.ticket(id).unwrap());
            assert_eq!(wait.recv_timeout(Duration::from_secs(60)).unwrap(), Ok(()));
            refused(a.handles().consume(id), Status::Expired, &["consumed"]);
            let landed = consume(&b, landed).unwrap();
            let mut bytes = vec![0; LARGE.block_bytes()];
            for (index, &block) in landed.table.blocks().iter().enumerate() {
                b.store().read(block, 0, &mut bytes).unwrap();
                // Where there are no tokens, nothing is promised.
                let promised = if index == BLOCKS - 1 { 32 * 64 * 4 } else { LARGE.block_bytes() };
                let whole = bytes[..promised].iter().enumerate().all(|(i, &found)| found == byte(index, i));
                assert!(whole, "block {index} over {transport:?}, {encryption:?}");
            }
            drop(landed);
            // Otherwise the next one finds its blocks in the prefix index and moves nothing.
            assert!(b.table().reserve(0, b.total_blocks() as u32 * LARGE.block_tokens));
        }
        assert_eq!((sound(&a).by_transfers, sound(&b).by_transfers), (0, 0));
    }
}

#[test]
fn closing_in_the_middle_of_several_connections() {
    for exporter in [false, true] {
        let (a, b) = (large(), large());
        let (from, to) = (listening(&a, Encryption::Always), listening(&b, Encryption::Always));
        paired(&from, &to, Transport::Tcp);
        let id = filled(&a);
        let (_, wait) = import(&to, &from.ticket(id).unwrap());
        while sound(&a).by_transfers == 0 && sound(&a).by_exports > 0 {
            std::thread::yield_now();
        }
        let begun = std::time::Instant::now();
        if exporter {
            from.close()
        } else {
            to.close()
        }
        assert!(begun.elapsed() < Duration::from_secs(50), "as long as a silent peer has: {:?}", begun.elapsed());
        drop(wait.recv_timeout(Duration::from_secs(60)).expect("an end of the import"));
        while sound(&a).by_transfers + sound(&b).by_transfers > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "blocks are still held");
            std::thread::yield_now();
        }
    }
}

/// The last reference to a cache may be dropped by whoever a transport thread wakes, on that thread.
#[test]
fn the_last_reference_may_go_on_a_thread_of_the_transport() {
    let (a, b) = (large(), large());
    let (from, to) = (listening(&a, Encryption::Never), listening(&b, Encryption::Never));
    paired(&from, &to, Transport::Tcp);
    let ticket = from.ticket(filled(&a)).unwrap();
    let (gone, wait) = mpsc::channel();
    // The exporter's: woken by the thread that serves the importer, when the handle's blocks are free again.
    let (last, ended) = (Mutex::new(Some(from)), gone.clone());
    let waker: crate::kv::Waker = Arc::new(move || {
        drop(last.lock().unwrap().take());
        ended.send("exporter").unwrap();
    });
    assert!(a.wake_when_free(BLOCKS + 8, &waker));
    // The importer's: by the thread that imports.
    let last = Mutex::new(Some(to.clone()));
    let done = move |_, _| {
        drop(last.lock().unwrap().take());
        gone.send("importer").unwrap();
    };
    to.import(&ticket, done).unwrap();
    drop(to);
    let mut ends = [(); 2].map(|()| wait.recv_timeout(Duration::from_secs(60)).expect("closing waited for itself"));
    ends.sort_unstable();
    assert_eq!(ends, ["exporter", "importer"]);
    assert!(a.is_closed() && b.is_closed());
}

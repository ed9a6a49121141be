//! Handles that are taken while their import is still in flight.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::held::HeldStore;
use super::model::{GEOMETRY, Seq, config, identity};
use super::sound;
use super::store::MemoryStore;
use crate::error::{Result, Status};
use crate::kv::{Cache, CacheConfig, Claim, Consumed, KvId, Shards};
use crate::transport::{self, Node, NodeConfig};

#[track_caller]
fn refused<T>(result: Result<T>, status: Status) {
    let error = result.err().expect("refused");
    assert_eq!(error.status, status, "{error}");
}

/// A claim owns an import that has not arrived: no other call gets it, no lease ends it, and it ends with the claim.
#[test]
fn a_claimed_import_is_its_claimants() {
    let short = CacheConfig { lease: Duration::from_millis(20), ..config() };
    let store = Arc::new(HeldStore::new(MemoryStore::new(GEOMETRY, 32)));
    let a = Cache::new(identity(), Shards::on_one_device(store.clone()).unwrap(), config()).unwrap();
    let b = Cache::new(identity(), Shards::on_one_device(Arc::new(MemoryStore::new(GEOMETRY, 16))).unwrap(), short)
        .unwrap();
    let exported = || {
        let seq = Seq::computed(&a, 14, 1, 3);
        a.handles().export(seq.snapshot, seq.table, None).unwrap()
    };
    // No block can be read for now, so that the imports are seen in flight.
    let held = store.hold();
    let node = Node::new(&b, NodeConfig::default()).unwrap();
    let import = |id: KvId| node.import(&transport::ticket(&a, id).unwrap(), |_, _| ()).unwrap();
    let sources = [exported(), exported(), exported()];
    let [taken, dropped, failing] = sources.map(import);
    let (landed, woken) = mpsc::channel();
    let claim = |id: KvId| {
        let landed = landed.clone();
        b.handles().claim(id, Arc::new(move || landed.send(id).unwrap()))
    };
    let mut claimed = claim(taken).unwrap();
    assert!(matches!(claimed.take().unwrap(), Consumed::Pending));
    refused(claim(taken), Status::Expired);
    refused(b.handles().consume(taken), Status::Expired);
    refused(b.handles().info(taken), Status::Expired);
    b.handles().release(taken).unwrap();
    drop(claim(dropped).unwrap());
    assert_eq!(woken.recv().unwrap(), dropped, "its end is an end of waiting too");
    let mut failed: Claim = claim(failing).unwrap();
    a.handles().release(sources[2]).unwrap();
    drop(held);
    let both = std::collections::HashSet::from([woken.recv().unwrap(), woken.recv().unwrap()]);
    assert_eq!(both, [taken, failing].into());
    // Several leases later it is still there.
    std::thread::sleep(Duration::from_millis(80));
    sound(&b);
    let Consumed::Ready(snapshot, table) = claimed.take().unwrap() else { panic!("pending") };
    assert_eq!((snapshot.tokens.len(), table.blocks().len()), (14, 4));
    refused(claimed.take(), Status::Expired);
    drop((claimed, table));
    refused(failed.take(), Status::NotFound);
    drop(failed);
    let audit = sound(&b);
    assert_eq!((audit.by_requests, audit.by_exports, audit.by_transfers), (0, 0, 0));
    refused(a.handles().info(sources[0]), Status::Expired);
    assert!(a.handles().info(sources[1]).is_ok(), "what nobody wanted any more is still the exporter's");
}

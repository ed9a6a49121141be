//! Tests of transfers between caches of this process, and against peers that do not answer or mean harm.

mod background;
mod gated;
mod hostile;
mod silent;
mod sockets;
mod tickets;

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use crate::backend::KvGeometry;
use crate::error::{Result, Status};
use crate::kv::tests::model::{GEOMETRY, Seq, cache, config, identity};
use crate::kv::tests::store::MemoryStore;
use crate::kv::tests::{consume, sound};
use crate::kv::{Cache, KvId, Shards};
use crate::transport::{self, Node, NodeConfig};

fn exported(cache: &Cache, n: u32) -> KvId {
    let seq = Seq::computed(cache, n, 1, 3);
    cache.handles().export(seq.snapshot, seq.table, None).unwrap()
}

fn node(cache: &Arc<Cache>) -> Arc<Node> {
    Node::new(cache, NodeConfig::default()).unwrap()
}

fn read(cache: &Cache, id: KvId) -> Vec<u8> {
    let mut image = vec![0; cache.images().len(id).unwrap() as usize];
    assert_eq!(cache.images().read(id, 0, &mut image).unwrap(), image.len());
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

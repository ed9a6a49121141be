//! Imports that a node runs on its own threads.

use super::*;
use crate::kv::Consumed;
use crate::kv::tests::held::HeldStore;
use std::collections::HashMap;

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
    assert!(matches!(b.handles().consume(id).unwrap(), Consumed::Pending));
    assert!(b.handles().info(id).unwrap().importing);
    refused(b.images().len(id), Status::WouldBlock, &[]);
    let dropped = import(ticket());
    b.handles().release(dropped).unwrap();
    let gone = exported(&a, 14);
    let bad = transport::ticket(&a, gone).unwrap();
    a.handles().release(gone).unwrap();
    let bad = import(bad);
    drop(held);
    let outcomes: HashMap<_, _> = (0..3).map(|_| wait.recv_timeout(Duration::from_secs(60)).unwrap()).collect();
    assert_eq!(outcomes[&id], Ok(()));
    assert_eq!(outcomes[&dropped].as_ref().unwrap_err().status, Status::NotFound);
    assert_eq!(outcomes[&bad].as_ref().unwrap_err().status, Status::NotFound);
    for _ in 0..2 {
        refused(b.handles().consume(bad), Status::NotFound, &[]);
    }
    b.handles().release(bad).unwrap();
    consume(&b, id).unwrap().verify(b.store());
    assert_idle(&b);
    // Faults that show without the exporter are refused at once, and an image is ready at once.
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
    refused(c.images().import(&image), Status::Shutdown, &[]);
    assert_idle(&c);
}

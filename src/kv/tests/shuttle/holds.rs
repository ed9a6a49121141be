//! The exporter's side of transfers: what a loan holds, and who may end its handle.

use super::handles::go_on;
use super::*;

/// Blocks that a hold keeps must have the KV of the tokens 0, 1, 2.. of the tests' sequences.
pub(super) fn verify(cache: &Cache, hold: &TransferHold) {
    let n_blocks = hold.blocks().len();
    let (salt, tokens) = match hold.whole() {
        Some(whole) => (whole.cache_salt, whole.tokens.clone()),
        // One that is being computed: see `filling`.
        None => (1, (0..n_blocks as u32 * GEOMETRY.block_tokens).collect()),
    };
    let computed = hold.whole().map_or(tokens.len() as u32, |whole| whole.computed);
    let held = (0..=n_blocks).find_map(|first| Some((first, hold.pin(first..n_blocks)?)));
    let (first, table) = held.expect("held");
    Seq { snapshot: Snapshot { computed, ..snapshot(tokens, salt) }, table }.verify_from(first, cache.store());
}

/// Peers with a ticket written now: each takes what there is until it is all, looks at all of it each time, and commits.
/// With a `wait` it must be called when there is more.
pub(super) fn follow<const N: usize>(model: &Model, id: KvId, wait: Duration) -> [JoinHandle<Result<()>>; N] {
    let (epoch, digest) = ticket(&model.cache, id).unwrap();
    let peer = move |cache: &Arc<Cache>| {
        let mut hold = cache.transfers().hold(id, &epoch, &digest)?;
        while hold.whole().is_none() {
            let have = hold.blocks().len();
            hold.more(have, wait)?;
            assert!(wait.is_zero() || hold.whole().is_some() || hold.blocks().len() > have, "called for nothing");
            verify(cache, &hold);
            thread::yield_now();
        }
        hold.commit()
    };
    [(); N].map(|()| model.go(peer))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Meanwhile {
    Nothing,
    Consumed,
    Released,
    Lease,
    /// Another transfer is given up before its end.
    GivenUp,
}

/// Two transfers of one handle, and whatever ends it: one has the sequence, and no other is told so.
#[test]
fn a_handle_is_pulled_once() {
    use Meanwhile::{Consumed, GivenUp, Lease, Nothing, Released};
    for meanwhile in [Nothing, Consumed, Released, Lease, GivenUp] {
        explore(move || {
            let model = Model::new(6);
            let id = model.exported();
            let peers = follow::<2>(&model, id, LEASE);
            let event = model.go(move |cache| match meanwhile {
                Nothing => false,
                Consumed => match take(cache, id) {
                    // It goes on in copies of what the transfers hold.
                    Ok(seq) => {
                        go_on(cache, seq.unwrap(), 100);
                        true
                    }
                    Err(error) => {
                        assert_eq!(error.status, Status::Expired);
                        false
                    }
                },
                Released => cache.handles().release(id).map(|()| false).unwrap(),
                Lease => {
                    pass(cache, LEASE);
                    false
                }
                GivenUp => {
                    if let Ok(mut hold) = lend(cache, id) {
                        _ = hold.more(0, Duration::ZERO);
                        thread::yield_now();
                    }
                    false
                }
            });
            let pulls = peers.map(|peer| peer.join().unwrap());
            let event = event.join().unwrap();
            let pulled = pulls.iter().filter(|pull| pull.is_ok()).count();
            for error in pulls.iter().filter_map(|pull| pull.as_ref().err()) {
                let released = meanwhile == Released && error.status == Status::NotFound;
                assert!(released || error.status == Status::Expired, "{error}");
            }
            let alive = model.cache.handles().info(id).is_ok();
            match meanwhile {
                Nothing | GivenUp => assert_eq!((pulled, alive), (1, false)),
                Consumed => assert_eq!((pulled + usize::from(event), alive), (1, false)),
                Released => assert!(pulled <= 1 && !alive),
                // Its time ran out, or began anew with a transfer.
                Lease => assert!(pulled <= 1 && (pulled == 0 || !alive)),
            }
            model.cache.handles().release(id).unwrap();
            model.finish();
        });
    }
}

/// Nobody gets a block that a transfer holds, though its handle is gone, and everybody does after it.
#[test]
fn what_a_hold_keeps_stays() {
    for drop_pin in [false, true] {
        explore(move || {
            let model = Model::new(4);
            let id = model.exported();
            let mut hold = lend(&model.cache, id).unwrap();
            hold.more(0, Duration::ZERO).unwrap();
            let over = Arc::new(AtomicUsize::new(0));
            let seen = over.clone();
            let peer = model.go(move |cache| {
                let pin = hold.pin(0..2).unwrap();
                let tokens: Vec<u32> = (0..7).collect();
                let held = Seq { snapshot: Snapshot { computed: 6, ..snapshot(tokens, 0) }, table: pin };
                if drop_pin {
                    drop(held);
                    verify(cache, &hold);
                } else {
                    // A reader's hold outlives the transfer.
                    drop(hold);
                    held.verify(cache.store());
                }
                over.store(1, SeqCst);
            });
            let neighbour = model.go(move |cache| {
                cache.handles().release(id).unwrap();
                let mut next = Seq::new(cache, vec![9; 16], 1);
                while !next.step(cache.store(), 16) {
                    thread::yield_now();
                }
                assert_eq!(seen.load(SeqCst), 1, "had all blocks before the transfer was over");
                next.verify(cache.store());
            });
            peer.join().unwrap();
            neighbour.join().unwrap();
            model.finish();
        });
    }
}

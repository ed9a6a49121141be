//! Tickets within a process: each moves its sequence once, whoever else is at work.

use super::*;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_ticket_moves_the_sequence_and_ends_the_handle() {
    let (a, b) = (cache(16), cache(16));
    let id = exported(&a, 14);
    let ticket = transport::ticket(&a, id).unwrap();
    assert_eq!(ticket.len() as u64, a.handles().info(id).unwrap().ticket_bytes);
    let here = transport::import(&b, &ticket).unwrap();
    assert_idle(&a);
    refused(a.handles().consume(id), Status::Expired, &["consumed"]);
    refused(transport::import(&b, &ticket), Status::Expired, &[]);
    let bytes = 4 * GEOMETRY.block_bytes() as u64;
    assert_eq!((a.stats().bytes_out, b.stats().bytes_in), (bytes, bytes));
    // Within the cache: nothing is copied, but the handle is another one.
    let ticket = transport::ticket(&b, here).unwrap();
    let moved = transport::import(&b, &ticket).unwrap();
    refused(b.handles().consume(here), Status::Expired, &[]);
    assert_eq!(b.stats().bytes_in, bytes);
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
                    let id = from.handles().export(seq.snapshot, seq.table, None).unwrap();
                    let copy = from.handles().duplicate(id).unwrap();
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
                    from.handles().release(id).unwrap();
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

//! Closing under whatever goes on: it ends everything once, and what comes after is refused.

use super::claims::{land, some_image};
use super::*;

/// Refused because of the closing, or ended by it just before.
fn ended<T>(result: &Result<T>) -> bool {
    matches!(status(result), None | Some(Status::Shutdown | Status::Expired))
}

#[test]
fn closing_ends_imports_and_claims() {
    explore(|| {
        let model = Model::new(4);
        let (id, lander) = land(&model, some_image());
        let claimant = model.go(move |cache| {
            let sleeper = Sleeper::new();
            let Ok(mut claim) = cache.handles().claim(id, sleeper.waker.clone()) else { return 0 };
            let mut got = claim.take();
            if matches!(got, Ok(Consumed::Pending)) {
                sleeper.sleep();
                got = claim.take();
                assert!(!matches!(got, Ok(Consumed::Pending)), "called, but nothing has come");
            }
            assert!(ended(&got));
            sleeper.calls()
        });
        let closer = model.go(|cache| cache.close());
        model.cache.close();
        closer.join().unwrap();
        assert!(claimant.join().unwrap() <= 1);
        assert!(ended(&lander.join().unwrap()));
        assert_eq!(status(&model.cache.transfers().begin_import(expected())), Some(Status::Shutdown));
        model.closed();
    });
}

#[test]
fn closing_ends_exports_and_waiting() {
    explore(|| {
        let model = Model::new(4);
        let (id, held) = (model.exported(), Seq::computed(&model.cache, 8, 0, 1));
        let sleeper = Sleeper::new();
        assert!(model.cache.wake_when_free(4, &sleeper.waker));
        let exporter = model.go(move |cache| cache.handles().export(held.snapshot, held.table, None));
        let taker = model.go(move |cache| {
            let taken = take(cache, id);
            let copy = cache.handles().duplicate(id);
            // A table outlives the closing, and goes on.
            if let Ok(Some(mut seq)) = taken {
                seq.snapshot.tokens.push(1);
                _ = seq.step(cache.store(), 2);
                seq.verify(cache.store());
            }
            copy.map(drop)
        });
        let time = model.go(|cache| pass(cache, LEASE / 2));
        model.cache.close();
        sleeper.sleep();
        assert!(ended(&exporter.join().unwrap()) && ended(&taker.join().unwrap()));
        time.join().unwrap();
        assert_eq!((sleeper.calls(), status(&model.cache.handles().info(id))), (1, Some(Status::Shutdown)));
        model.closed();
    });
}

//! The timer and those who renew, add and end leases while it sleeps.

use super::*;

const SHORT: Duration = Duration::from_secs(1);

/// A deadline that comes before the one that the timer sleeps for ends its handle with nobody looking.
#[test]
fn a_sleeping_timer_hears_of_an_earlier_deadline() {
    explore(|| {
        let model = Model::new(4);
        let long = model.exported();
        let short = model.go(|cache| {
            let seq = Seq::computed(cache, 8, 0, 1);
            cache.handles().export(seq.snapshot, seq.table, Some(SHORT)).unwrap()
        });
        let short = short.join().unwrap();
        let sleeper = Sleeper::new();
        let wait = model.cache.wake_when_free(2, &sleeper.waker);
        let time = model.go(|cache| pass(cache, SHORT));
        if wait {
            sleeper.sleep();
        }
        time.join().unwrap();
        assert_eq!(status(&model.cache.handles().info(short)), Some(Status::Expired));
        assert!(model.cache.handles().info(long).is_ok());
        model.cache.handles().release(long).unwrap();
        model.finish();
    });
}

/// A handle renewed in time lives as long as promised; one that was not has ended completely.
#[test]
fn a_renewed_lease_holds() {
    explore(|| {
        let model = Model::new(4);
        let id = model.exported();
        let time = model.go(|cache| [LEASE - SHORT, SHORT].map(|step| pass(cache, step)));
        let renewed = model.cache.handles().renew(id, 3 * LEASE);
        let copy = model.cache.handles().duplicate(id);
        time.join().unwrap();
        match &renewed {
            Ok(()) => assert!(copy.is_ok() && model.cache.handles().info(id).is_ok()),
            Err(error) => {
                assert_eq!(error.status, Status::Expired);
                assert!(copy.is_err() && model.cache.handles().info(id).is_err());
            }
        }
        // The copy has the lease that was renewed, not the one that the original was born with.
        pass(&model.cache, LEASE);
        assert!(copy.iter().all(|&copy| model.cache.handles().info(copy).is_ok()));
        pass(&model.cache, 3 * LEASE);
        for id in copy.into_iter().chain([id]) {
            assert_eq!(status(&model.cache.handles().info(id)), Some(Status::Expired));
        }
        model.finish();
    });
}

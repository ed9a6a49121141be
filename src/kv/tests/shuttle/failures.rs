//! KV that does not come: the handle says why, and has the sequence for whoever computes it anew.

use super::*;

/// A query of a failed import returns nothing or the sequence. A claim returns the failure and the sequence, whatever follows.
#[test]
fn a_failed_import_keeps_its_sequence() {
    for (release, expire) in [(false, false), (true, false), (false, true)] {
        explore(move || {
            let model = Model::new(2);
            let import = model.cache.transfers().begin_import(expected()).unwrap();
            let id = import.id();
            let lander = model.go(move |_| import.finish(Err(crate::error!(Peer, "gone"))));
            let claimant = model.go(move |cache| {
                let sleeper = Sleeper::new();
                let mut claim = cache.handles().claim(id, sleeper.waker.clone())?;
                if matches!(claim.take(), Ok(Consumed::Pending)) {
                    sleeper.sleep();
                }
                assert_eq!(status(&claim.take()), Some(Status::Peer));
                assert_eq!(claim.sequence().expect("kept"), expected());
                assert!(cache.handles().failed_sequence(id).is_none(), "it is the claimant's");
                assert!(sleeper.calls() <= 1);
                Ok(())
            });
            let asker = model.go(move |cache| cache.handles().failed_sequence(id));
            let releaser = release.then(|| model.go(move |cache| cache.handles().release(id).unwrap()));
            if expire {
                (0..2).for_each(|_| pass(&model.cache, LEASE));
            }
            let claimed: Result<()> = claimant.join().unwrap();
            match status(&claimed) {
                None => {}
                Some(Status::NotFound) => assert!(release),
                Some(Status::Expired) => assert!(expire),
                other => panic!("{other:?}"),
            }
            assert!(asker.join().unwrap().is_none_or(|sequence| sequence == expected()));
            let landed = status(&lander.join().unwrap());
            assert!(landed == Some(Status::Peer) || release && landed == Some(Status::NotFound), "{landed:?}");
            releaser.into_iter().for_each(|releaser| releaser.join().unwrap());
            assert!(model.cache.handles().failed_sequence(id).is_none());
            model.finish();
        });
    }
}

/// Nobody claims it: it is there until its lease is over.
#[test]
fn a_failure_has_a_lease() {
    explore(|| {
        let model = Model::new(2);
        let import = model.cache.transfers().begin_import(expected()).unwrap();
        let id = import.id();
        let lander = model.go(move |_| import.finish(Err(crate::error!(Peer, "gone"))));
        let asker = model.go(move |cache| [(); 2].map(|()| cache.handles().failed_sequence(id).is_some()));
        assert_eq!(status(&lander.join().unwrap()), Some(Status::Peer));
        let [first, second] = asker.join().unwrap();
        assert!(second || !first);
        assert_eq!(model.cache.handles().failed_sequence(id), Some(expected()));
        assert_eq!(status(&take(&model.cache, id)), Some(Status::Peer));
        let time = model.go(|cache| pass(cache, LEASE));
        let asked = model.cache.handles().failed_sequence(id);
        assert!(asked.is_none_or(|sequence| sequence == expected()));
        time.join().unwrap();
        assert_eq!(model.cache.handles().failed_sequence(id), None);
        assert_eq!(status(&take(&model.cache, id)), Some(Status::Expired));
        model.finish();
    });
}

/// The same of a prompt whose request ended: whoever claimed it has what was submitted.
#[test]
fn a_failed_prompt_keeps_its_sequence() {
    explore(|| {
        let model = Model::new(4);
        let mut seq = Seq::new(&model.cache, (0..9).collect(), 1);
        let streaming = model.cache.handles().begin_streaming_export(seq.snapshot.clone(), &seq.table).unwrap();
        let (id, submitted) = (streaming.id(), Some(Arc::new(seq.snapshot.clone())));
        let prefill = model.go(move |cache| {
            assert!(seq.step(cache.store(), 5));
            streaming.advance(5);
            streaming.fail(Error::new(Status::Cancelled, "cancelled"));
        });
        let time = model.go(|cache| (0..2).for_each(|_| pass(cache, LEASE)));
        let sleeper = Sleeper::new();
        match model.cache.handles().claim(id, sleeper.waker.clone()) {
            Ok(mut claim) => {
                if matches!(claim.take(), Ok(Consumed::Pending)) {
                    sleeper.sleep();
                }
                assert_eq!(status(&claim.take()), Some(Status::Cancelled));
                assert_eq!(claim.sequence(), submitted);
            }
            Err(error) => assert_eq!(error.status, Status::Expired, "{error}"),
        }
        prefill.join().unwrap();
        time.join().unwrap();
        assert!(sleeper.calls() <= 1);
        assert!(model.cache.handles().failed_sequence(id).is_none());
        model.finish();
    });
}

//! Handles that are taken while their import is in flight. The claimant owns what lands.

use super::*;
use crate::kv::Claim;

/// Lands an image as a transfer would: asks first whether anybody still wants it.
/// Returns the handle, and the thread that lands.
pub(super) fn land(model: &Model, image: Vec<u8>) -> (KvId, JoinHandle<Result<()>>) {
    let import = model.cache.transfers().begin_import(expected()).unwrap();
    let id = import.id();
    let lander = model.go(move |cache| {
        let outcome = cache.images().take(&image);
        let outcome = outcome.and_then(|taken| import.check().map(|()| taken));
        import.finish(outcome)
    });
    (id, lander)
}

/// The image of some sequence, from a cache that is gone by then.
pub(super) fn some_image() -> Vec<u8> {
    let model = Model::new(2);
    let id = model.exported();
    let image = image(&model.cache, id).unwrap();
    model.closed();
    image
}

/// Waits if it must, once.
pub(super) fn fetch(cache: &Cache, mut claim: Claim, sleeper: &Sleeper) -> Result<Seq> {
    if let Some(seq) = landed(cache, claim.take()?) {
        return Ok(seq);
    }
    sleeper.sleep();
    Ok(landed(cache, claim.take()?).expect("called, so it is here"))
}

/// Two claim and one consumes, and somebody may release it: exactly one gets the sequence.
#[test]
fn an_import_goes_to_one() {
    for release in [false, true] {
        explore(move || {
            let model = Model::new(4);
            let (id, lander) = land(&model, some_image());
            let claimants = [(); 2].map(|()| {
                model.go(move |cache| {
                    let sleeper = Sleeper::new();
                    let claimed = cache.handles().claim(id, sleeper.waker.clone());
                    let got = claimed.map(|claim| fetch(cache, claim, &sleeper).expect("what was claimed comes"));
                    assert!(sleeper.calls() <= usize::from(got.is_ok()));
                    got.map(drop)
                })
            });
            let consumer = model.go(move |cache| take(cache, id));
            let releaser = release.then(|| model.go(move |cache| cache.handles().release(id).unwrap()));
            let claims = claimants.map(|claimant| claimant.join().unwrap());
            let consumed = consumer.join().unwrap();
            releaser.into_iter().for_each(|releaser| releaser.join().unwrap());
            let winners = claims.iter().filter(|claim| claim.is_ok()).count();
            let winners = winners + usize::from(matches!(consumed, Ok(Some(_))));
            let landed = lander.join().unwrap();
            assert!(winners == 1 || release && winners == 0, "{winners} have it");
            if winners == 1 {
                assert!(landed.is_ok(), "{landed:?}");
            } else {
                assert!(matches!(status(&landed), None | Some(Status::NotFound)));
                assert!(claims.iter().all(|claim| status(claim) == Some(Status::NotFound)));
            }
            drop(consumed);
            model.finish();
        });
    }
}

/// Cancelling races with the landing. The exporter keeps its handle if the landing was told in time.
#[test]
fn a_claim_dropped_ends_the_import() {
    explore(|| {
        let (exporter, model) = (Model::new(2), Model::new(2));
        let source = exporter.exported();
        let image = image(&exporter.cache, source).unwrap();
        let import = model.cache.transfers().begin_import(expected()).unwrap();
        let id = import.id();
        let from = exporter.cache.clone();
        let lander = model.go(move |cache| {
            let outcome = cache.images().take(&image);
            let mut hold = lend(&from, source).unwrap();
            hold.more(0, Duration::ZERO).unwrap();
            let wanted = import.check().and_then(|()| hold.commit());
            let outcome = outcome.and_then(|taken| wanted.clone().map(|()| taken));
            let landed = import.finish(outcome);
            assert!(wanted.is_ok() || landed.is_err());
            wanted.is_ok()
        });
        let claimant = model.go(move |cache| {
            let sleeper = Sleeper::new();
            let claim = cache.handles().claim(id, sleeper.waker.clone()).unwrap();
            assert_eq!(status(&cache.handles().consume(id)), Some(Status::Expired));
            cache.handles().release(id).unwrap();
            assert!(claim.sequence().is_some(), "a release ended what was claimed");
            drop(claim);
            sleeper
        });
        let expected = if lander.join().unwrap() { Some(Status::Expired) } else { None };
        assert_eq!(status(&exporter.cache.handles().info(source)), expected);
        assert!(claimant.join().unwrap().calls() <= 1);
        exporter.cache.handles().release(source).unwrap();
        model.finish();
        exporter.finish();
    });
}

/// The lease of what nobody claimed ends; what somebody claimed waits for him, landed before or after.
#[test]
fn no_lease_ends_what_is_claimed() {
    explore(|| {
        let model = Model::new(2);
        let (id, lander) = land(&model, some_image());
        let time = model.go(|cache| (0..3).for_each(|_| pass(cache, LEASE)));
        let sleeper = Sleeper::new();
        match model.cache.handles().claim(id, sleeper.waker.clone()) {
            Ok(claim) => drop(fetch(&model.cache, claim, &sleeper).expect("claimed")),
            Err(error) => assert_eq!(error.status, Status::Expired, "{error}"),
        }
        lander.join().unwrap().unwrap();
        time.join().unwrap();
        model.finish();
    });
}

/// The same for a failure: it reaches the claimant and not the timer.
#[test]
fn a_failure_reaches_the_claimant() {
    explore(|| {
        let model = Model::new(2);
        let import = model.cache.transfers().begin_import(expected()).unwrap();
        let id = import.id();
        let lander = model.go(move |_| import.finish(Err(crate::error!(Peer, "gone"))));
        let time = model.go(|cache| (0..2).for_each(|_| pass(cache, LEASE)));
        let sleeper = Sleeper::new();
        match model.cache.handles().claim(id, sleeper.waker.clone()) {
            Ok(claim) => assert_eq!(status(&fetch(&model.cache, claim, &sleeper)), Some(Status::Peer)),
            Err(error) => assert_eq!(error.status, Status::Expired, "{error}"),
        }
        assert_eq!(status(&lander.join().unwrap()), Some(Status::Peer));
        time.join().unwrap();
        model.finish();
    });
}

//! Imports against new epochs and against each other.

use std::sync::atomic::AtomicBool;

use super::claims::some_image;
use super::*;
use crate::transport;

/// A new epoch before the landing fails it, one after it does not; the handle says the same as the landing.
#[test]
fn a_new_epoch_fails_what_lands_after_it() {
    explore(|| {
        let model = Model::new(2);
        let image = some_image();
        let id = model.cache.begin_import(expected()).unwrap();
        // Bumping has begun; has ended.
        let bump = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let seen = bump.clone();
        let lander = model.go(move |cache| {
            let outcome = cache.take_image(&image);
            let outcome = outcome.and_then(|taken| cache.check_import(id).map(|()| taken));
            // The epoch may change after the question: the landing must look again.
            thread::yield_now();
            let before = seen[1].load(SeqCst);
            let landed = cache.finish_import(id, outcome);
            match &landed {
                Ok(()) => assert!(!before),
                Err(error) => assert!(error.status == Status::Expired && seen[0].load(SeqCst), "{error}"),
            }
            landed.is_ok()
        });
        let bumper = model.go(move |cache| {
            bump[0].store(true, SeqCst);
            cache.bump_epoch().unwrap();
            bump[1].store(true, SeqCst);
        });
        let sleeper = Sleeper::new();
        let early = if model.cache.on_landed(id, sleeper.waker.clone()) {
            sleeper.sleep();
            true
        } else {
            false
        };
        let found = take(&model.cache, id);
        assert_eq!(lander.join().unwrap(), found.is_ok());
        assert!(matches!(found, Ok(Some(_))) || status(&found) == Some(Status::Expired));
        bumper.join().unwrap();
        drop(found);
        // A failed import's handle stays until its lease is over.
        model.cache.release(id).unwrap();
        assert_eq!(sleeper.calls(), usize::from(early));
        model.finish();
    });
}

/// Ways in which the exporter's handle can end while two importers pull it.
#[derive(Clone, Copy, PartialEq)]
enum Meanwhile {
    Nothing,
    Released,
    Epoch,
    Consumed,
}

/// A sequence is in one place: of two pulls with the same ticket and whatever ends it, one has it.
#[test]
fn a_ticket_brings_a_sequence_once() {
    use Meanwhile::{Consumed, Epoch, Nothing, Released};
    for meanwhile in [Nothing, Released, Epoch, Consumed] {
        explore(move || {
            let (exporter, importer) = (Model::new(3), Model::new(4));
            let id = exporter.exported();
            let ticket = Arc::new(transport::ticket(&exporter.cache, id).unwrap());
            let pulls = [(); 2].map(|()| {
                let ticket = ticket.clone();
                importer.go(move |cache| {
                    let pulled = transport::import(cache, &ticket)?;
                    drop(take(cache, pulled)?.expect("it has landed"));
                    Ok(())
                })
            });
            let event = exporter.go(move |cache| match meanwhile {
                Nothing => 0,
                Released => cache.release(id).map(|()| 0).unwrap(),
                Epoch => cache.bump_epoch().map(|()| 0).unwrap(),
                Consumed => usize::from(take(cache, id).is_ok()),
            });
            let pulls: [Result<()>; 2] = pulls.map(|pull| pull.join().unwrap());
            let pulled = pulls.iter().filter(|pull| pull.is_ok()).count();
            let taken = event.join().unwrap();
            for error in pulls.iter().filter_map(|pull| pull.as_ref().err()) {
                assert!(matches!(error.status, Status::Expired | Status::NotFound), "{error}");
            }
            let alive = exporter.cache.info(id).is_ok();
            match meanwhile {
                Nothing | Consumed => assert_eq!((pulled + taken, alive), (1, false)),
                Released => assert!(pulled <= 1 && !alive),
                Epoch => assert_eq!(pulled + usize::from(alive), 1),
            }
            exporter.cache.release(id).unwrap();
            exporter.finish();
            importer.finish();
        });
    }
}

/// Two imports of one image share what the first has finished, and either may be let go at any time.
#[test]
fn imports_of_one_prefix_share_it() {
    explore(|| {
        let model = Model::new(4);
        let image = Arc::new(some_image());
        let imports = [(); 2].map(|()| {
            let image = image.clone();
            model.go(move |cache| {
                let id = cache.import_image(&image).unwrap();
                drop(take(cache, id).unwrap().unwrap());
            })
        });
        imports.into_iter().for_each(|import| import.join().unwrap());
        assert_eq!(sound(&model.cache).by_prefix_index, 1);
        model.finish();
    });
}

//! Imports of one ticket against each other.

use super::claims::some_image;
use super::*;
use crate::transport;

/// Ways in which the exporter's handle can end while two importers pull it.
#[derive(Clone, Copy, PartialEq)]
enum Meanwhile {
    Nothing,
    Released,
    Consumed,
}

/// A sequence is in one place: of two pulls with the same ticket and whatever ends it, one has it.
#[test]
fn a_ticket_brings_a_sequence_once() {
    use Meanwhile::{Consumed, Nothing, Released};
    for meanwhile in [Nothing, Released, Consumed] {
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
                Released => cache.handles().release(id).map(|()| 0).unwrap(),
                Consumed => usize::from(take(cache, id).is_ok()),
            });
            let pulls: [Result<()>; 2] = pulls.map(|pull| pull.join().unwrap());
            let pulled = pulls.iter().filter(|pull| pull.is_ok()).count();
            let taken = event.join().unwrap();
            for error in pulls.iter().filter_map(|pull| pull.as_ref().err()) {
                assert!(matches!(error.status, Status::Expired | Status::NotFound), "{error}");
            }
            let alive = exporter.cache.handles().info(id).is_ok();
            match meanwhile {
                Nothing | Consumed => assert_eq!((pulled + taken, alive), (1, false)),
                Released => assert!(pulled <= 1 && !alive),
            }
            exporter.cache.handles().release(id).unwrap();
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
                let id = cache.images().import(&image).unwrap();
                drop(take(cache, id).unwrap().unwrap());
            })
        });
        imports.into_iter().for_each(|import| import.join().unwrap());
        assert_eq!(sound(&model.cache).by_prefix_index, 1);
        model.finish();
    });
}

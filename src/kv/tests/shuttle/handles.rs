//! Handles of sequences that are here: consume, release, duplicate, images, expiry.

use super::*;

/// Exactly one of those who want it; nobody only if it is released or its lease ends first.
#[test]
fn a_handle_goes_to_one() {
    for (release, expire) in [(false, false), (true, false), (false, true), (true, true)] {
        explore(move || {
            let model = Model::new(6);
            let id = model.exported();
            let takers = [(); 2].map(|()| model.go(move |cache| take(cache, id)));
            let releaser = release.then(|| model.go(move |cache| cache.handles().release(id).unwrap()));
            if expire {
                pass(&model.cache, LEASE);
            }
            releaser.into_iter().for_each(|releaser| releaser.join().unwrap());
            let taken = takers.map(|taker| taker.join().unwrap());
            let winners = taken.iter().filter(|taken| matches!(taken, Ok(Some(_)))).count();
            let after = model.cache.handles().info(id).unwrap_err();
            match winners {
                1 => {
                    assert!(after.to_string().contains("consumed already"), "{after}");
                    assert!(taken.iter().any(|taken| status(taken) == Some(Status::Expired)));
                }
                0 => match (release, expire, after.status) {
                    (_, true, Status::Expired) => assert!(after.to_string().contains("lease is over"), "{after}"),
                    (true, _, Status::NotFound) => {}
                    _ => panic!("nobody has it: {after}"),
                },
                more => panic!("{more} have it"),
            }
            drop(taken);
            model.finish();
        });
    }
}

pub(super) fn go_on(cache: &Cache, mut seq: Seq, token: u32) {
    seq.snapshot.tokens.push(token);
    assert!(seq.step(cache.store(), 2));
    seq.verify(cache.store());
}

/// Copies share blocks until one is written: each goes on as if it were alone, whoever is first.
#[test]
fn a_copy_and_its_original_do_not_see_each_other() {
    explore(|| {
        let model = Model::new(8);
        let id = model.exported();
        let copy = model.cache.handles().duplicate(id).unwrap();
        let writers = [(id, 100), (copy, 200)].map(|(id, token)| {
            model.go(move |cache| {
                let seq = take(cache, id).unwrap().unwrap();
                go_on(cache, seq, token);
            })
        });
        let late = model.go(move |cache| match cache.handles().duplicate(id) {
            Ok(copy) => go_on(cache, take(cache, copy).unwrap().unwrap(), 300),
            Err(error) => assert_eq!(error.status, Status::Expired),
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        late.join().unwrap();
        model.finish();
    });
}

/// A block that is being copied before it is written stays what it is, though its other owner lets go of it and
/// others want blocks.
#[test]
fn what_is_being_copied_stays() {
    explore(|| {
        let model = Model::new(4);
        let id = model.exported();
        let copy = model.cache.handles().duplicate(id).unwrap();
        let writer = model.go(move |cache| {
            let seq = take(cache, id).unwrap().unwrap();
            go_on(cache, seq, 100);
        });
        let neighbour = model.go(move |cache| {
            cache.handles().release(copy).unwrap();
            let mut next = Seq::new(cache, vec![9; 4], 1);
            assert!(next.step(cache.store(), 4));
            next.verify(cache.store());
        });
        writer.join().unwrap();
        neighbour.join().unwrap();
        model.finish();
    });
}

/// An image is whole or refused: what it reads stays while it reads, though the handle ends and others want blocks.
#[test]
fn an_image_is_of_the_sequence_or_of_nothing() {
    for expire in [false, true] {
        explore(move || {
            let (model, other) = (Model::new(2), Model::new(2));
            let id = model.exported();
            let reader = model.go(move |cache| image(cache, id));
            let taker = model.go(move |cache| {
                if expire {
                    pass(cache, LEASE);
                } else {
                    cache.handles().release(id).unwrap();
                }
                let mut next = Seq::new(cache, vec![9; 5], 1);
                while !next.step(cache.store(), 5) {
                    thread::yield_now();
                }
                next.verify(cache.store());
            });
            taker.join().unwrap();
            match reader.join().unwrap() {
                Ok(image) => {
                    let copy = other.cache.images().import(&image).unwrap();
                    assert!(take(&other.cache, copy).unwrap().is_some());
                }
                Err(error) => assert!(matches!(error.status, Status::Expired | Status::NotFound), "{error}"),
            }
            model.finish();
            other.finish();
        });
    }
}

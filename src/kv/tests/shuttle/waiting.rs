//! Engines short of blocks: whoever waits is called once there are enough. A call that is lost is a deadlock.

use super::*;

/// Two want more than is left, one after the other; blocks come from a table, a lease and each other.
#[test]
fn whoever_waits_for_blocks_gets_them() {
    explore(|| {
        let model = Model::new(4);
        let held = Seq::computed(&model.cache, 8, 0, 1);
        model.exported();
        let engines = [(2, 3), (3, 3)].map(|(salt, blocks)| {
            model.go(move |cache| {
                let mut seq = Seq::new(cache, vec![7; blocks * 4], salt);
                while !seq.step(cache.store(), u32::MAX) {
                    let sleeper = Sleeper::new();
                    if cache.wake_when_free(blocks, &sleeper.waker) {
                        sleeper.sleep();
                    }
                    assert!(sleeper.calls() <= 1);
                }
                seq.verify(cache.store());
            })
        });
        let holder = model.go(move |_| drop(held));
        let time = model.go(|cache| pass(cache, LEASE));
        engines.into_iter().for_each(|engine| engine.join().unwrap());
        holder.join().unwrap();
        time.join().unwrap();
        model.finish();
    });
}

/// Asked again with the same waker, only the last wish holds, and it is called once.
#[test]
fn a_wish_made_anew_is_one_wish() {
    explore(|| {
        let model = Model::new(4);
        let tables = [1, 2].map(|salt| Seq::computed(&model.cache, 8, 0, salt));
        let holders = tables.map(|table| model.go(move |_| drop(table)));
        let sleeper = Sleeper::new();
        let first = model.cache.wake_when_free(3, &sleeper.waker);
        let second = model.cache.wake_when_free(4, &sleeper.waker);
        holders.into_iter().for_each(|holder| holder.join().unwrap());
        assert!(first || !second, "blocks do not go away");
        assert!(sleeper.calls() >= usize::from(second) && sleeper.calls() <= usize::from(first) + usize::from(second));
        model.finish();
    });
}

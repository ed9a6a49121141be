use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::events::{Follower, cache_with_events};
use super::model::GEOMETRY;
use super::*;
use crate::error::Status;
use crate::transport;

/// Two caches with one secret, and everything that lives in them: (cache, sequence) and (cache, handle).
struct World {
    caches: [Arc<Cache>; 2],
    seqs: Vec<(usize, Seq)>,
    ids: Vec<(usize, KvId)>,
}

/// Accepts the failures of a handle that others may have ended.
fn tolerate<T>(result: crate::error::Result<T>) -> Option<T> {
    let allowed = [Status::Expired, Status::NotFound, Status::OutOfMemory];
    result.map_err(|error| assert!(allowed.contains(&error.status), "{error:?}")).ok()
}

impl World {
    fn image(&self, cache: usize, id: KvId) -> Option<Vec<u8>> {
        let cache = &self.caches[cache];
        let mut image = vec![0; tolerate(cache.images().len(id))? as usize];
        let middle = image.len() / 2;
        let (front, back) = image.split_at_mut(middle);
        tolerate(cache.images().read(id, middle as u64, back))?;
        tolerate(cache.images().read(id, 0, front))?;
        Some(image)
    }

    fn run(&mut self, op: u8, a: usize, b: u32) {
        let at = |len: usize| if len == 0 { usize::MAX } else { a % len };
        let (seq, id) = (at(self.seqs.len()), at(self.ids.len()));
        let cache = a % 2;
        match op {
            0 | 1 => {
                let tokens: Vec<u32> = (0..1 + b % 18).map(|i| (b >> (i / 4 % 8)) & 1).collect();
                self.seqs.push((cache, Seq::new(&self.caches[cache], tokens, u64::from(b % 3 / 2))));
            }
            2..=4 if seq < self.seqs.len() => {
                let (cache, seq) = &mut self.seqs[seq];
                seq.step(self.caches[*cache].store(), 1 + b % 9);
            }
            5 if seq < self.seqs.len() => self.seqs[seq].1.snapshot.tokens.push(b % 2),
            6 if seq < self.seqs.len() => {
                let seq = &mut self.seqs[seq].1;
                seq.snapshot.computed = seq.snapshot.computed.saturating_sub(b % 6);
            }
            7 if seq < self.seqs.len() => {
                let seq = &mut self.seqs[seq].1;
                seq.table.clear();
                seq.snapshot.computed = 0;
            }
            8 if seq < self.seqs.len() => drop(self.seqs.swap_remove(seq)),
            9 | 10 if seq < self.seqs.len() => {
                let (cache, seq) = self.seqs.swap_remove(seq);
                let lease = b.is_multiple_of(4).then_some(Duration::from_micros(u64::from(b % 900)));
                let id = self.caches[cache].handles().export(seq.snapshot, seq.table, lease).unwrap();
                self.ids.push((cache, id));
            }
            11 | 12 if id < self.ids.len() => {
                let (cache, id) = self.ids[id];
                if let Some(seq) = tolerate(consume(&self.caches[cache], id)) {
                    self.seqs.push((cache, seq));
                }
            }
            13 if id < self.ids.len() => {
                let (cache, id) = self.ids[id];
                self.ids.extend(tolerate(self.caches[cache].handles().duplicate(id)).map(|copy| (cache, copy)));
            }
            14 if id < self.ids.len() => {
                let (cache, id) = self.ids[id];
                self.caches[cache].handles().release(id).unwrap();
            }
            15 if id < self.ids.len() => {
                let (from, id) = self.ids[id];
                let to = b as usize % 2;
                if let Some(image) = self.image(from, id) {
                    self.ids.extend(tolerate(self.caches[to].images().import(&image)).map(|id| (to, id)));
                }
            }
            16 if id < self.ids.len() => {
                let (from, id) = self.ids[id];
                let to = b as usize % 2;
                if let Some(ticket) = tolerate(transport::ticket(&self.caches[from], id)) {
                    self.ids.extend(tolerate(transport::import(&self.caches[to], &ticket)).map(|id| (to, id)));
                }
            }
            // Two continuations of one sequence.
            17 if id < self.ids.len() => {
                let (cache, id) = self.ids[id];
                let copy = tolerate(self.caches[cache].handles().duplicate(id));
                for (id, token) in [(id, 2), (copy.unwrap_or(id), 3)] {
                    if let Some(mut seq) = tolerate(consume(&self.caches[cache], id)) {
                        seq.snapshot.tokens.push(token);
                        self.seqs.push((cache, seq));
                    }
                }
            }
            18 if b.is_multiple_of(4) => std::thread::sleep(Duration::from_micros(300)),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_block_has_its_owners(
        ops in prop::collection::vec((0u8..19, any::<usize>(), any::<u32>()), 1..150),
    ) {
        let caches = [cache_with_events(24, 64), cache_with_events(17, 12)];
        let mut world = World { caches, seqs: Vec::new(), ids: Vec::new() };
        // The second follower is slow: now and then it misses events and starts over from a snapshot.
        let mut followers: [[Follower; 2]; 2] = Default::default();
        for (step, (op, a, b)) in ops.into_iter().enumerate() {
            world.run(op, a, b);
            world.caches.iter().for_each(|cache| _ = sound(cache));
            for (cache, [prompt, slow]) in world.caches.iter().zip(&mut followers) {
                prompt.follow(cache);
                if step % 11 == 0 {
                    slow.follow(cache);
                }
            }
            world.seqs.iter().for_each(|(cache, seq)| seq.verify(world.caches[*cache].store()));
        }
        for (cache, id) in world.ids.drain(..) {
            if let Some(seq) = tolerate(consume(&world.caches[cache], id)) {
                seq.verify(world.caches[cache].store());
            }
        }
        world.seqs.clear();
        for cache in &world.caches {
            let audit = sound(cache);
            prop_assert_eq!((audit.by_requests, audit.by_exports, audit.by_transfers), (0, 0, 0));
            prop_assert_eq!(cache.available_blocks(), cache.total_blocks());
        }
    }
}

#[test]
fn the_model_has_the_size_it_counts_on() {
    assert_eq!(GEOMETRY.block_bytes(), 4 * 4 * 8);
}

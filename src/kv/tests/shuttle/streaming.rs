//! Prompts that a peer pulls while they are computed.

use super::holds::{follow, verify};
use super::*;
use crate::kv::StreamingExport;

const PROMPT: u32 = 9;

/// A prompt of three blocks, the last with one token, and its handle.
struct Request {
    streaming: StreamingExport,
    seq: Seq,
}

impl Request {
    fn begin(cache: &Cache) -> Request {
        Self::salted(cache, 1)
    }

    fn salted(cache: &Cache, salt: u64) -> Request {
        let seq = Seq::new(cache, (0..PROMPT).collect(), salt);
        Request { streaming: cache.handles().begin_streaming_export(seq.snapshot.clone(), &seq.table).unwrap(), seq }
    }

    fn step(&mut self, cache: &Cache, n: u32) {
        while !self.seq.step(cache.store(), n) {
            thread::yield_now();
        }
        self.streaming.advance(self.seq.snapshot.computed);
    }

    fn preempt(&mut self) {
        self.seq.snapshot.computed = 0;
        self.seq.table.clear();
    }

    /// With the first token behind the prompt.
    fn finish(mut self) -> Result<KvId> {
        self.seq.snapshot.tokens.push(1);
        self.streaming.finish(self.seq.snapshot, self.seq.table)
    }

    fn run(mut self, cache: &Cache, preempted: bool) -> Request {
        self.step(cache, 5);
        if preempted {
            self.preempt();
        }
        self.step(cache, 3);
        self.step(cache, u32::MAX);
        self
    }
}

/// Somebody who wants blocks and writes them full of his own.
fn scribble(cache: &Cache, blocks: u32) {
    let mut table = cache.table();
    if table.reserve(0, blocks * GEOMETRY.block_tokens) {
        let junk = vec![0xEE; GEOMETRY.block_bytes()];
        table.blocks().iter().for_each(|&block| cache.store().write(block, 0, &junk).unwrap());
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Done,
    Failed,
    /// Dropped, the handle first.
    Lost,
    /// Dropped, the table first.
    TableLost,
    /// Finished with a table that has too few blocks.
    Refused,
}

/// A peer that follows sees the prompt's KV and nothing else, is called when there is more, and told how it ended.
#[test]
fn a_peer_gets_what_is_computed() {
    use Outcome::{Done, Failed, Lost, Refused, TableLost};
    for (outcome, preempted) in
        [(Done, false), (Done, true), (Failed, true), (Lost, true), (TableLost, false), (Refused, false)]
    {
        explore(move || {
            let model = Model::new(8);
            let request = Request::begin(&model.cache);
            let id = request.streaming.id();
            let [peer] = follow(&model, id, LEASE);
            let prefill = model.go(move |cache| {
                let mut request = request.run(cache, preempted);
                match outcome {
                    Done => return request.finish().map(Some),
                    Failed => request.streaming.fail(Error::new(Status::Cancelled, "cancelled")),
                    Lost => drop(request),
                    TableLost => {
                        let Request { streaming, seq } = request;
                        drop(seq);
                        // The table's key is the next one's now.
                        let other = Request::salted(cache, 2).run(cache, false);
                        drop((streaming, other));
                    }
                    Refused => {
                        request.seq.snapshot.tokens.extend([1; 8]);
                        request.seq.snapshot.computed += 7;
                        return request.finish().map(Some);
                    }
                }
                Ok(None)
            });
            let neighbour = model.go(|cache| (0..2).for_each(|_| scribble(cache, 3)));
            let (pulled, finished) = (peer.join().unwrap(), prefill.join().unwrap());
            neighbour.join().unwrap();
            let expected = match outcome {
                Done => {
                    assert_eq!(finished.unwrap(), Some(id));
                    None
                }
                Failed => Some(Status::Cancelled),
                Lost | TableLost => Some(Status::Internal),
                Refused => {
                    assert_eq!(status(&finished), Some(Status::InvalidArgument));
                    Some(Status::InvalidArgument)
                }
            };
            assert_eq!(status(&pulled), expected);
            if expected.is_some() {
                assert_eq!(model.cache.handles().failed_sequence(id).unwrap().tokens.len(), PROMPT as usize);
            }
            model.cache.handles().release(id).unwrap();
            model.finish();
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Meanwhile {
    Released,
    Closed,
    Lease,
    Claimed,
    Duplicated,
}

/// A peer, a claimant and others race to end one handle: exactly one gets the sequence, or the host has it back.
#[test]
fn a_prompt_goes_to_one() {
    use Meanwhile::{Claimed, Closed, Duplicated, Lease, Released};
    for meanwhile in [Released, Closed, Lease, Claimed, Duplicated] {
        explore(move || {
            let model = Model::new(8);
            let request = Request::begin(&model.cache);
            let id = request.streaming.id();
            let [peer] = follow(&model, id, Duration::ZERO);
            let prefill = model.go(|cache| request.run(cache, false).finish());
            // Whether it has got the sequence.
            let event = model.go(move |cache| match meanwhile {
                Released => cache.handles().release(id).map(|()| false),
                Closed => {
                    cache.close();
                    Ok(false)
                }
                Lease => {
                    (0..2).for_each(|_| pass(cache, LEASE));
                    Ok(false)
                }
                Claimed => {
                    let sleeper = Sleeper::new();
                    let claimed = cache.handles().claim(id, sleeper.waker.clone());
                    let got = claimed.map(|claim| claims::fetch(cache, claim, &sleeper).expect("claimed"));
                    assert!(sleeper.calls() <= usize::from(got.is_ok()));
                    got.map(|_| true)
                }
                Duplicated => {
                    let copied = cache.handles().duplicate(id);
                    copied.map(|copy| drop(take(cache, copy).unwrap().unwrap())).map(|()| false)
                }
            });
            let (pulled, finished, event) = (peer.join().unwrap(), prefill.join().unwrap(), event.join().unwrap());
            if pulled.is_ok() {
                assert_eq!(*finished.as_ref().unwrap(), id);
                let after = model.cache.handles().info(id).unwrap_err();
                assert!(meanwhile == Closed || after.to_string().contains("consumed already"), "{after}");
            }
            let lost = status(&pulled);
            match meanwhile {
                Released => {
                    assert!(matches!(lost, None | Some(Status::NotFound)), "{lost:?}");
                    let finished = finished.unwrap();
                    // Released before it was finished: the request hands over another one.
                    if finished != id {
                        drop(take(&model.cache, finished).unwrap().unwrap());
                    }
                    assert!(model.cache.handles().info(id).is_err());
                }
                Closed => {
                    assert!(matches!(lost, None | Some(Status::Shutdown)), "{lost:?}");
                    assert!(matches!(status(&finished), None | Some(Status::Shutdown)));
                }
                Lease => {
                    assert!(matches!(lost, None | Some(Status::Expired)), "{lost:?}");
                    // Nobody's time runs while it is computed.
                    assert_eq!(finished.unwrap(), id);
                    pass(&model.cache, LEASE);
                    assert_eq!(status(&model.cache.handles().info(id)), Some(Status::Expired));
                }
                Claimed => {
                    assert_eq!(finished.unwrap(), id);
                    assert_eq!(event.is_ok(), pulled.is_err());
                    assert!(matches!(lost, None | Some(Status::Expired)), "{lost:?}");
                    assert!(matches!(status(&event), None | Some(Status::Expired)));
                }
                Duplicated => {
                    assert!(pulled.is_ok());
                    assert!(matches!(status(&event), None | Some(Status::WouldBlock | Status::Expired)));
                }
            }
            if meanwhile == Closed { model.closed() } else { model.finish() }
        });
    }
}

/// A peer that waits is called for a block more, not for the end only.
#[test]
fn a_waiting_peer_is_called_for_more() {
    explore(|| {
        let model = Model::new(4);
        let mut request = Request::begin(&model.cache);
        let mut hold = lend(&model.cache, request.streaming.id()).unwrap();
        let (send, received) = mpsc::channel();
        let peer = model.go(move |cache| {
            for n_blocks in [1, 2] {
                hold.more(n_blocks - 1, LEASE).unwrap();
                assert!(hold.blocks().len() >= n_blocks);
                verify(cache, &hold);
                send.send(()).unwrap();
            }
        });
        for n in [5, 3] {
            request.step(&model.cache, n);
            received.recv().unwrap();
        }
        peer.join().unwrap();
        drop(request);
        model.finish();
    });
}

/// Blocks of a prompt that a peer holds stay as they are, though the request is preempted and others get all the rest.
#[test]
fn what_is_held_outlives_a_preemption() {
    explore(|| {
        let model = Model::new(5);
        let mut request = Request::begin(&model.cache);
        request.step(&model.cache, 8);
        let mut hold = lend(&model.cache, request.streaming.id()).unwrap();
        hold.more(0, Duration::ZERO).unwrap();
        assert_eq!(hold.blocks().len(), 2);
        let peer = model.go(move |cache| (0..3).for_each(|_| verify(cache, &hold)));
        let prefill = model.go(move |cache| {
            request.preempt();
            request.run(cache, true).finish().unwrap()
        });
        let neighbour = model.go(|cache| (0..3).for_each(|n| scribble(cache, 3 + n % 2)));
        peer.join().unwrap();
        neighbour.join().unwrap();
        drop(take(&model.cache, prefill.join().unwrap()).unwrap().unwrap());
        model.finish();
    });
}

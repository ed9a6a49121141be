//! Handles of prompts that are being computed, and what a peer that follows gets to see.

use std::time::Duration;

use super::*;
use crate::error::{Error, Result, Status};
use crate::kv::StreamingExport;
use crate::kv::TransferHold;

/// A request with a prompt of 9 tokens, of which nothing is computed.
fn begun(cache: &Cache) -> (StreamingExport, Seq) {
    let seq = Seq::new(cache, (0..9).collect(), 1);
    (cache.handles().begin_streaming_export(seq.snapshot.clone(), &seq.table).unwrap(), seq)
}

fn lend(cache: &Cache, id: KvId) -> Result<TransferHold> {
    let ticket = cache.tickets().open(&cache.tickets().encode(id)?)?;
    cache.transfers().hold(id, &ticket.epoch, &ticket.digest)
}

/// How many blocks a peer that begins now gets.
fn seen(cache: &Cache, id: KvId) -> Result<usize> {
    let mut hold = lend(cache, id)?;
    hold.more(0, Duration::ZERO)?;
    Ok(hold.blocks().len())
}

#[track_caller]
fn refused<T>(result: Result<T>, status: Status) {
    let error = result.err().expect("refused");
    assert_eq!(error.status, status, "{error}");
}

#[test]
fn a_peer_sees_full_computed_blocks_and_then_all() {
    let cache = cache(8);
    let (streaming, mut seq) = begun(&cache);
    let id = streaming.id();
    let mut before = 0;
    for (computed, blocks) in [(3, 0), (4, 1), (7, 1), (9, 2)] {
        assert!(seq.step(cache.store(), computed - seq.snapshot.computed));
        assert_eq!(seen(&cache, id).unwrap(), before, "not before it is said to be there");
        streaming.advance(computed);
        assert_eq!(seen(&cache, id).unwrap(), blocks);
        assert_eq!(cache.handles().info(id).unwrap().computed, computed);
        before = blocks;
    }
    seq.snapshot.tokens.push(1);
    assert_eq!(streaming.finish(seq.snapshot, seq.table).unwrap(), id);
    assert_eq!(seen(&cache, id).unwrap(), 3);
    consume(&cache, id).unwrap().verify(cache.store());
    sound(&cache);
}

/// Whatever the engine says or forgets to say: blocks that are not computed yet are nobody's to read.
#[test]
fn a_preempted_prompt_shows_nothing_until_it_is_computed_again() {
    let cache = cache(8);
    let (streaming, mut seq) = begun(&cache);
    assert!(seq.step(cache.store(), 8));
    streaming.advance(8);
    seq.table.clear();
    assert_eq!((seen(&cache, streaming.id()).unwrap(), cache.handles().info(streaming.id()).unwrap().computed), (0, 0));
    assert!(seq.table.reserve(0, 9));
    assert_eq!(seen(&cache, streaming.id()).unwrap(), 0);
    streaming.advance(8);
    assert_eq!(seen(&cache, streaming.id()).unwrap(), 2);
    assert!(seq.table.reserve(4, 9));
    assert_eq!(seen(&cache, streaming.id()).unwrap(), 1, "what may be written is not final");
}

/// A table's key goes to the next sequence while a handle still names it: that one's blocks are not this one's.
#[test]
fn a_table_that_is_gone_shows_nobody_elses_blocks() {
    let cache = cache(8);
    let (streaming, mut seq) = begun(&cache);
    let id = streaming.id();
    assert!(seq.step(cache.store(), 9));
    streaming.advance(9);
    drop(seq);
    let (other, mut next) = begun(&cache);
    next.snapshot.cache_salt = 2;
    assert!(next.step(cache.store(), 9));
    other.advance(9);
    assert_eq!((seen(&cache, id).unwrap(), cache.handles().info(id).unwrap().computed), (0, 0));
    streaming.advance(4);
    assert_eq!((seen(&cache, id).unwrap(), seen(&cache, other.id()).unwrap()), (0, 2));
    drop(streaming);
    refused(seen(&cache, id), Status::Internal);
    assert_eq!(seen(&cache, other.id()).unwrap(), 2);
    cache.handles().release(id).unwrap();
    other.fail(Error::new(Status::Cancelled, "x"));
    drop(next);
    assert_eq!((sound(&cache).by_requests, sound(&cache).by_transfers), (0, 0));
}

#[test]
fn a_handle_that_cannot_be_finished_fails() {
    let cache = cache(8);
    let (streaming, mut seq) = begun(&cache);
    let id = streaming.id();
    assert!(seq.step(cache.store(), 4));
    streaming.advance(4);
    seq.snapshot.computed = 9;
    refused(streaming.finish(seq.snapshot, seq.table), Status::InvalidArgument);
    refused(cache.handles().info(id), Status::InvalidArgument);
    refused(seen(&cache, id), Status::InvalidArgument);
    assert_eq!(cache.handles().failed_sequence(id).unwrap().tokens.len(), 9);
    cache.handles().release(id).unwrap();
    assert_eq!(sound(&cache).by_requests, 0);
}

#[test]
fn host_data_that_is_attached_while_the_prompt_is_computed_stays() {
    let cache = cache(8);
    let (streaming, mut seq) = begun(&cache);
    let id = streaming.id();
    assert!(seq.step(cache.store(), 9));
    cache.handles().set_host_data(id, b"trace 7").unwrap();
    let ticket = crate::transport::ticket(&cache, id).unwrap();
    assert_eq!(ticket.len() as u64, cache.handles().info(id).unwrap().ticket_bytes);
    assert_eq!(cache.tickets().open(&ticket).unwrap().snapshot.host_data, b"trace 7");
    streaming.finish(seq.snapshot, seq.table).unwrap();
    assert_eq!(consume(&cache, id).unwrap().snapshot.host_data, b"trace 7");
}

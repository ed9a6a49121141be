//! cache events: which blocks a prefix hit can be expected on, for routers
//!
//! A cache whose config has `events_kept` records what enters and leaves its prefix index. A reader pulls the events by number
//! and so knows at any time which full blocks a request may find. Replaying all events from an empty set, or those after a
//! snapshot on its blocks, gives exactly the blocks of the index. Readers do not disturb each other; each keeps the number
//! it wants next. docs/kv-events.md describes the hashes, the memory that a log takes, and how to publish events.

use super::boundary::{call, required, timeout};
use super::error::{cleave_error_t, cleave_status_t};
use super::handle::cleave_cache_t;
use super::registry;
use super::versioned::{EventBuffer, Output, VersionedStruct, sized_struct};
use crate::bail;
use crate::engine::ModelCache;
use crate::error::Result;
use crate::kv::IndexEvent;
use libc::size_t;

/// A block entered the prefix index: a request that begins with the same tokens may find it from now on.
pub const CLEAVE_CACHE_EVENT_STORED: u32 = 1;
/// A block left the prefix index, so that its memory could be used for others.
pub const CLEAVE_CACHE_EVENT_REMOVED: u32 = 2;
/// All blocks left the prefix index.
pub const CLEAVE_CACHE_EVENT_CLEARED: u32 = 3;

/// The cache's blocks are in host memory: "CPU" in vLLM's events.
pub const CLEAVE_MEDIUM_CPU: u32 = 1;
/// The cache's blocks are in the memory of a device: "GPU" in vLLM's events.
pub const CLEAVE_MEDIUM_GPU: u32 = 2;

/// A change of a cache's prefix index: 64 bytes. Fields that do not apply to a type are zero.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_cache_event_t {
    /// Number of the event. The first event of a cache has number 1. In a snapshot: the number to continue from.
    pub sequence: u64,
    /// CLEAVE_CACHE_EVENT_*. Skip types that you do not know.
    pub r#type: u32,
    /// CLEAVE_MEDIUM_*: where the block is.
    pub medium: u32,
    /// STORED, REMOVED: the block, as the first 8 bytes of its BLAKE3 hash, read as a big-endian number. The hash covers the
    /// salt, the block size and all tokens of the sequence up to the end of the block, but not the model.
    pub block_hash: u64,
    /// STORED, REMOVED: the block before it in its sequence; 0 for the first block (`position` 0).
    pub parent_hash: u64,
    /// STORED, REMOVED: cache_salt of the requests that share the block; 0 for none. Requests with another salt, or
    /// without one, never find it.
    pub cache_salt: u64,
    /// STORED, REMOVED: number of the block in its sequence, from 0.
    pub position: u32,
    /// STORED, REMOVED: cache group of the block. Always 0: all layers of a cache are in one group.
    pub group: u32,
    /// STORED: index of the block's first token in `tokens`.
    pub tokens_begin: u32,
    /// STORED: number of its tokens, which is the block size of the cache.
    pub n_tokens: u32,
    /// 0.
    pub reserved: u64,
}

const _: () = assert!(size_of::<cleave_cache_event_t>() == 64 && align_of::<cleave_cache_event_t>() == 8);

/// Result of cleave_cache_events and cleave_cache_event_snapshot. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct cleave_cache_event_range_t {
    /// sizeof this struct, set by the caller.
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Number of events written.
    pub n_events: u64,
    /// Number of tokens written.
    pub n_tokens: u64,
    /// Number of the event to ask for next.
    pub next: u64,
    /// Number of the oldest event that the log still holds.
    pub oldest: u64,
    /// Number that the cache's next event will get. Equal to `next` if everything was read.
    pub end: u64,
}

sized_struct!(cleave_cache_event_range_t);

/// Reads the events of a cache from number `next` on: up to `capacity` of them to `events`, at most 1024 in one call, and the
/// tokens of stored blocks one after the other to `tokens`, which has room for `tokens_cap`. It ends early when the
/// tokens of the next block do not fit. Waits at most `timeout_ms` for the first event (0: not at all, UINT32_MAX: for ever);
/// a timeout without events is CLEAVE_OK with n_events 0. `event_size` is sizeof(cleave_cache_event_t), as for
/// cleave_queue_poll: at least 64, a multiple of 8.
///
/// EXPIRED means that the reader fell behind: event `next` is no longer held, `out->oldest` is the oldest that is, and
/// nothing was read. Take a snapshot and continue from it.
///
/// Callable from any thread. [BLOCKING] up to the timeout. Neither waits for a step nor delays one. Errors: EXPIRED (gap;
/// `*out` is filled in), INVALID_ARGUMENT (no room for the tokens of one block, `next` is in the future), UNSUPPORTED (the
/// cache was created with events_kept 0), NOT_FOUND, SHUTDOWN (the cache was destroyed meanwhile).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_events(
    cache: *mut cleave_cache_t,
    next: u64,
    events: *mut cleave_cache_event_t,
    event_size: size_t,
    capacity: size_t,
    tokens: *mut i32,
    tokens_cap: size_t,
    timeout_ms: u32,
    out: *mut cleave_cache_event_range_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let cache = registry::get::<ModelCache>(cache, "cache")?;
        let out = Output::new(out, "out")?;
        let mut writer = Writer::new(&cache, (events, event_size, capacity), (tokens, tokens_cap))?;
        let batch = cache.kv().read_events(next, capacity, timeout(timeout_ms))?;
        for (sequence, event) in (next..).zip(&batch.events) {
            if !writer.write(sequence, event) {
                break;
            }
        }
        if writer.n_events == 0 && !batch.events.is_empty() {
            bail!(
                InvalidArgument,
                "tokens has room for {tokens_cap}, a block has {}",
                cache.kv().geometry().block_tokens
            );
        }
        let mut range = writer.range();
        (range.next, range.oldest, range.end) = (next + range.n_events, batch.oldest, batch.end);
        out.write(&range);
        if next < batch.oldest {
            bail!(Expired, "cache event {next} is no longer kept, the oldest is {}", batch.oldest);
        }
        Ok(())
    })
}

/// Writes the blocks that are in the prefix index now as STORED events, each after the one before it in its sequence if that is
/// in the index too. `out->next` is the number of the event to continue from: what the snapshot shows and the events
/// from there on are exactly what happened.
///
/// The buffers are those of cleave_cache_events. Room for blocks_total events (cleave_engine_load) and block_tokens tokens for
/// each always suffices. If there is not enough, nothing is written but `*out`, whose n_events and n_tokens say what is
/// needed at this moment, and the status is INVALID_ARGUMENT. NULL with 0 for both buffers asks for these lengths and is
/// CLEAVE_OK.
///
/// Callable from any thread. Takes milliseconds for ten thousands of blocks, but holds the cache's lock only for a thousand
/// blocks at a time, so steps go on. If events_kept is less than the events that come meanwhile, three times over, it
/// looks at all blocks under one hold. Errors: INVALID_ARGUMENT, UNSUPPORTED (events_kept 0), NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cleave_cache_event_snapshot(
    cache: *mut cleave_cache_t,
    events: *mut cleave_cache_event_t,
    event_size: size_t,
    capacity: size_t,
    tokens: *mut i32,
    tokens_cap: size_t,
    out: *mut cleave_cache_event_range_t,
    err: *mut cleave_error_t,
) -> cleave_status_t {
    // SAFETY: the contract of the header (see ffi/mod.rs).
    call(err, || unsafe {
        let cache = registry::get::<ModelCache>(cache, "cache")?;
        let out = Output::new(out, "out")?;
        let mut writer = Writer::new(&cache, (events, event_size, capacity), (tokens, tokens_cap))?;
        let snapshot = cache.kv().index_snapshot()?;
        let needed = snapshot.blocks.len();
        let needed_tokens: usize = snapshot.blocks.iter().map(|block| block.tokens.len()).sum();
        let mut range = cleave_cache_event_range_t::zeroed();
        (range.n_events, range.n_tokens) = (needed as u64, needed_tokens as u64);
        (range.next, range.oldest, range.end) = (snapshot.next, snapshot.oldest, snapshot.next);
        out.write(&range);
        if capacity == 0 && tokens_cap == 0 && events.is_null() && tokens.is_null() {
            return Ok(());
        }
        if capacity < needed || tokens_cap < needed_tokens {
            bail!(
                InvalidArgument,
                "events and tokens have room for {capacity} and {tokens_cap}, {needed} and {needed_tokens} are needed"
            );
        }
        for block in snapshot.blocks {
            writer.write(snapshot.next, &IndexEvent::Stored(block));
        }
        Ok(())
    })
}

/// Writes events and their tokens into the buffers of the host.
struct Writer {
    events: EventBuffer<cleave_cache_event_t>,
    capacity: usize,
    tokens: *mut i32,
    tokens_cap: usize,
    medium: u32,
    n_events: usize,
    n_tokens: usize,
}

impl Writer {
    unsafe fn new(
        cache: &ModelCache,
        (events, event_size, capacity): (*mut cleave_cache_event_t, usize, usize),
        (tokens, tokens_cap): (*mut i32, usize),
    ) -> Result<Writer> {
        // SAFETY: the contract of the header.
        let events = unsafe { EventBuffer::new(events, event_size, capacity, 64, "events") }?;
        if tokens_cap > 0 {
            required(tokens, "tokens")?;
        }
        if tokens_cap.checked_mul(size_of::<i32>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
            bail!(InvalidArgument, "tokens: {tokens_cap} elements are more than memory can hold");
        }
        let on_device = cache.kv().store().device_memory().is_some();
        Ok(Writer {
            events,
            capacity,
            tokens,
            tokens_cap,
            medium: if on_device { CLEAVE_MEDIUM_GPU } else { CLEAVE_MEDIUM_CPU },
            n_events: 0,
            n_tokens: 0,
        })
    }

    /// Writes one event. Returns false, and writes nothing, if there is no room for it or its tokens.
    unsafe fn write(&mut self, sequence: u64, event: &IndexEvent) -> bool {
        let (kind, block) = match event {
            IndexEvent::Stored(block) => (CLEAVE_CACHE_EVENT_STORED, Some(block)),
            IndexEvent::Removed(block) => (CLEAVE_CACHE_EVENT_REMOVED, Some(block)),
            IndexEvent::Cleared => (CLEAVE_CACHE_EVENT_CLEARED, None),
        };
        let stored = kind == CLEAVE_CACHE_EVENT_STORED;
        let tokens = block.filter(|_| stored).map_or(&[][..], |block| &block.tokens);
        if self.n_events == self.capacity || self.tokens_cap - self.n_tokens < tokens.len() {
            return false;
        }
        let event = cleave_cache_event_t {
            sequence,
            r#type: kind,
            medium: self.medium,
            block_hash: block.map_or(0, |block| block.hash.short()),
            parent_hash: block.and_then(|block| block.parent).map_or(0, |parent| parent.short()),
            cache_salt: block.map_or(0, |block| block.salt),
            position: block.map_or(0, |block| block.position),
            group: 0,
            tokens_begin: if stored { self.n_tokens as u32 } else { 0 },
            n_tokens: tokens.len() as u32,
            reserved: 0,
        };
        // SAFETY: `events` has room for `capacity` elements and `tokens` for `tokens_cap` by contract, both of which were
        // compared above.
        unsafe {
            self.events.write(self.n_events, &event);
            // Token ids are below 2^31.
            std::ptr::copy_nonoverlapping(tokens.as_ptr().cast::<i32>(), self.tokens.add(self.n_tokens), tokens.len());
        }
        self.n_events += 1;
        self.n_tokens += tokens.len();
        true
    }

    /// The numbers of events and tokens written so far.
    fn range(&self) -> cleave_cache_event_range_t {
        let mut range = cleave_cache_event_range_t::zeroed();
        (range.n_events, range.n_tokens) = (self.n_events as u64, self.n_tokens as u64);
        range
    }
}

//! Shares of the threads and of the queue: which peer's jobs may run, which must wait, and which give way. Knows counts,
//! and when each peer was last heard: no jobs, no threads, no clock.
//!
//! A peer that does not answer holds its threads for the peer timeout, so no peer may have more than a quarter of the
//! threads that it leaves free. Many such peers take all threads nevertheless. Then their jobs, which are *stalled*, give
//! way. A peer of which a job stalls is *silent* until one of its jobs hears it, or until it has no jobs here any more.
//! All other peers go before silent ones, and may also have the threads of their stalled jobs.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The peer that a job waits for: the epoch of the exporting cache.
pub(in crate::transport) type PeerKey = [u8; 16];

/// The most jobs that run at once.
pub(super) const MOST: usize = 256;
/// The most jobs that wait for a thread.
pub(super) const MOST_QUEUED: usize = 2048;
/// A peer may have at most one part in so many of what it leaves free, but always one if anything is.
const PART: usize = 4;

/// Jobs of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Load {
    queued: usize,
    running: usize,
    /// How many of those that run are stalled and were not told to end.
    stalled: usize,
    /// A job has stalled since the peer was last heard. Stays when that job ends: the next one would fare no better.
    silent: bool,
    /// When a job last heard the peer.
    heard: Option<Instant>,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Shares {
    loads: HashMap<PeerKey, Load>,
    queued: usize,
    running: usize,
    stalled: usize,
    leaving: usize,
}

impl Shares {
    fn load(&self, peer: &PeerKey) -> Load {
        self.loads.get(peer).copied().unwrap_or_default()
    }

    pub fn queued_by(&self, peer: &PeerKey) -> usize {
        self.load(peer).queued
    }

    /// True if another job of this peer may be queued. Silent peers leave half of the queue to others.
    pub fn may_queue(&self, peer: &PeerKey) -> bool {
        let load = self.load(peer);
        let most = if load.silent { MOST_QUEUED / 2 } else { MOST_QUEUED };
        load.queued < most.saturating_sub(self.queued).div_ceil(PART)
    }

    /// The turn of this peer's next job, if that may run now. The least turn comes first: peers that are not silent before
    /// silent ones, and peers with few running jobs before those with many.
    pub fn turn(&self, peer: &PeerKey) -> Option<(bool, usize)> {
        if self.running == MOST {
            return None;
        }
        let load = self.load(peer);
        (load.running < self.share(&load)).then_some((load.silent, load.running))
    }

    /// How many of the queued jobs may run now.
    pub fn ready(&self) -> usize {
        if self.queued == 0 || self.running == MOST {
            return 0;
        }
        self.loads.values().map(|load| self.due(load)).sum::<usize>().min(MOST - self.running)
    }

    pub fn running(&self) -> usize {
        self.running
    }

    /// The most jobs of a peer that may run.
    fn share(&self, load: &Load) -> usize {
        let taken = if load.silent { self.running } else { self.running - self.stalled };
        (MOST - taken).div_ceil(PART)
    }

    /// How many of a peer's queued jobs may run as far as its share is concerned.
    fn due(&self, load: &Load) -> usize {
        load.queued.min(self.share(load).saturating_sub(load.running))
    }

    /// True if a job of this peer has stalled and none has heard it since.
    pub fn is_silent(&self, peer: &PeerKey) -> bool {
        self.load(peer).silent
    }

    /// How long a peer has been silent for a job that has waited for `waited`: no longer than for its other jobs.
    pub fn silence(&self, peer: &PeerKey, waited: Duration, now: Instant) -> Duration {
        let heard = self.load(peer).heard;
        heard.map_or(waited, |heard| waited.min(now.saturating_duration_since(heard)))
    }

    /// True if a stalled job of this peer has to end: jobs of peers that are not silent wait, and no peer has more stalled
    /// jobs than this one.
    pub fn must_give_way(&self, peer: &PeerKey) -> bool {
        let free = MOST - self.running + self.leaving;
        // Every stalled job asks all the time; most of the time this is the answer.
        if self.queued <= free {
            return false;
        }
        let own = self.load(peer);
        let needed: usize = self.loads.values().filter(|load| !load.silent).map(|load| self.due(load)).sum();
        own.silent && needed > free && self.loads.values().all(|other| !other.silent || other.stalled <= own.stalled)
    }

    // ---- what happens to a job, in this order ----

    pub fn queued(&mut self, peer: PeerKey) {
        self.queued += 1;
        self.loads.entry(peer).or_default().queued += 1;
    }

    /// A queued job will not run after all.
    pub fn dropped(&mut self, peer: &PeerKey) {
        self.queued -= 1;
        self.change(peer, |load| load.queued -= 1);
    }

    pub fn begun(&mut self, peer: &PeerKey) {
        self.queued -= 1;
        self.running += 1;
        self.change(peer, |load| (load.queued, load.running) = (load.queued - 1, load.running + 1));
    }

    pub fn stalled(&mut self, peer: &PeerKey) {
        self.stalled += 1;
        self.change(peer, |load| (load.stalled, load.silent) = (load.stalled + 1, true));
    }

    /// A running job has heard its peer. True if the peer was silent.
    pub fn heard(&mut self, peer: &PeerKey, now: Instant) -> bool {
        let was_silent = self.is_silent(peer);
        self.change(peer, |load| (load.heard, load.silent) = (Some(now), false));
        was_silent
    }

    /// A stalled job is not stalled any more, or has ended.
    pub fn recovered(&mut self, peer: &PeerKey) {
        self.stalled -= 1;
        self.change(peer, |load| load.stalled -= 1);
    }

    /// A stalled job was told to end.
    pub fn gave_way(&mut self, peer: &PeerKey) {
        self.recovered(peer);
        self.leaving += 1;
    }

    /// A job that was told to end has done so.
    pub fn left(&mut self) {
        self.leaving -= 1;
    }

    pub fn ended(&mut self, peer: &PeerKey) {
        self.running -= 1;
        self.change(peer, |load| load.running -= 1);
    }

    fn change(&mut self, peer: &PeerKey, change: impl FnOnce(&mut Load)) {
        let Some(load) = self.loads.get_mut(peer) else { return };
        change(load);
        if load.queued + load.running == 0 {
            self.loads.remove(peer);
        }
    }
}

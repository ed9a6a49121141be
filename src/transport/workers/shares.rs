//! Shares of the threads and of the queue: which peer's jobs may run, which must wait, and which give way. Knows counts
//! only: no jobs, no threads, no clock.
//!
//! A peer that does not answer holds its threads for the peer timeout, so no peer may have more than a quarter of the
//! threads that it leaves free. Many such peers take all threads nevertheless. Then their jobs, which are *stalled*, give
//! way: a peer of which no job is stalled may also have threads of stalled jobs of others.

use std::collections::HashMap;

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
    /// How many of those that run were told to end.
    leaving: usize,
}

impl Load {
    fn is_silent(&self) -> bool {
        self.stalled + self.leaving > 0
    }
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

    /// True if another job of this peer may be queued. Peers that have stalled jobs leave half of the queue to others.
    pub fn may_queue(&self, peer: &PeerKey) -> bool {
        let load = self.load(peer);
        let most = if load.is_silent() { MOST_QUEUED / 2 } else { MOST_QUEUED };
        load.queued < most.saturating_sub(self.queued).div_ceil(PART)
    }

    /// True if another job of this peer may run now.
    pub fn may_run(&self, peer: &PeerKey) -> bool {
        let load = self.load(peer);
        self.running < MOST && load.running < self.share(&load)
    }

    /// How many of the queued jobs may run now.
    pub fn ready(&self) -> usize {
        self.loads.values().map(|load| self.due(load)).sum::<usize>().min(MOST - self.running)
    }

    pub fn running(&self) -> usize {
        self.running
    }

    /// The most jobs of a peer that may run.
    fn share(&self, load: &Load) -> usize {
        let taken = if load.is_silent() { self.running } else { self.running - self.stalled };
        (MOST - taken).div_ceil(PART)
    }

    /// How many of a peer's queued jobs may run as far as its share is concerned.
    fn due(&self, load: &Load) -> usize {
        load.queued.min(self.share(load).saturating_sub(load.running))
    }

    /// True if a stalled job of this peer has to end: jobs wait of peers that have no stalled ones, and no peer has more
    /// stalled jobs than this one.
    pub fn must_give_way(&self, peer: &PeerKey) -> bool {
        let needed: usize = self.loads.values().filter(|load| !load.is_silent()).map(|load| self.due(load)).sum();
        needed > MOST - self.running + self.leaving
            && self.loads.values().all(|other| other.stalled <= self.load(peer).stalled)
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
        self.change(peer, |load| load.stalled += 1);
    }

    /// A stalled job's peer is not silent any more, or the job has ended.
    pub fn recovered(&mut self, peer: &PeerKey) {
        self.stalled -= 1;
        self.change(peer, |load| load.stalled -= 1);
    }

    /// A stalled job was told to end.
    pub fn gave_way(&mut self, peer: &PeerKey) {
        self.recovered(peer);
        self.leaving += 1;
        self.change(peer, |load| load.leaving += 1);
    }

    /// A job that was told to end has done so.
    pub fn left(&mut self, peer: &PeerKey) {
        self.leaving -= 1;
        self.change(peer, |load| load.leaving -= 1);
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

//! Limits on connections whose peers have not proved yet that they know the secret. Anybody who reaches a listening
//! socket can open these, so there are few of them, and the oldest makes place for the next.

use crate::transport::net::Stream;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The time that a peer has to prove itself.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);

/// Where a connection comes from, as far as limits are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A process of this machine, by its id.
    Process(i32),
    V4(Ipv4Addr),
    /// The first half of an IPv6 address: a host can usually pick the second half as it likes.
    V6([u8; 8]),
}

impl Origin {
    pub fn of(address: IpAddr) -> Origin {
        match address.to_canonical() {
            IpAddr::V4(address) => Origin::V4(address),
            IpAddr::V6(address) => {
                let mut network = [0; 8];
                network.copy_from_slice(&address.octets()[..8]);
                Origin::V6(network)
            }
        }
    }
}

/// The most connections of one kind: of all origins together, and of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub total: usize,
    pub each: usize,
}

impl Limits {
    /// Limits for a process that may have `files` descriptors: a listening socket that is flooded uses an eighth of
    /// them, for connections that say nothing and for handshakes.
    pub fn of(files: u64) -> Limits {
        let total = (files / 16).clamp(4, 64) as usize;
        Limits { total, each: total / 2 }
    }

    /// Which of the connections in `open`, given oldest first, has to go before there is place for one from `new`.
    pub fn victim(self, open: &[Origin], new: Origin) -> Option<usize> {
        let count = |origin: &Origin| open.iter().filter(|other| *other == origin).count();
        if count(&new) >= self.each {
            return open.iter().position(|origin| *origin == new);
        }
        if open.len() < self.total {
            return None;
        }
        // The origin with the most connections gives one up, so that a crowd does not push out origins with few.
        let most = open.iter().map(count).max()?;
        open.iter().position(|origin| count(origin) == most)
    }
}

/// A connection whose peer has proved nothing yet.
pub(super) struct Unproven {
    pub stream: Stream,
    pub origin: Origin,
    pub must_encrypt: bool,
    pub since: Instant,
}

/// Handshakes in progress, each on a thread of its own.
pub(super) struct Handshakes {
    limits: Limits,
    state: Mutex<HandshakesState>,
    ended: Condvar,
}

#[derive(Default)]
struct HandshakesState {
    /// Oldest first.
    open: Vec<(u64, Origin, Arc<Stream>)>,
    /// Threads, including those of handshakes that were cut off and end as soon as they run.
    threads: usize,
    next: u64,
}

/// A handshake that is counted until this is dropped.
pub(super) struct Handshake {
    handshakes: Arc<Handshakes>,
    id: u64,
}

impl Handshakes {
    pub fn new(limits: Limits) -> Arc<Handshakes> {
        Arc::new(Handshakes { limits, state: Mutex::default(), ended: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, HandshakesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a handshake. Beyond the limits an older one is cut off.
    pub fn begin(self: &Arc<Self>, origin: Origin, stream: &Arc<Stream>) -> Handshake {
        let mut state = self.lock();
        let origins: Vec<Origin> = state.open.iter().map(|(_, origin, _)| *origin).collect();
        if let Some(victim) = self.limits.victim(&origins, origin) {
            state.open.remove(victim).2.shutdown();
        }
        while state.threads >= 2 * self.limits.total {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let id = state.next;
        state.next += 1;
        state.threads += 1;
        state.open.push((id, origin, stream.clone()));
        Handshake { handshakes: self.clone(), id }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut state = self.handshakes.lock();
        state.open.retain(|(id, ..)| *id != self.id);
        state.threads -= 1;
        self.handshakes.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_the_descriptors_of_the_process() {
        assert_eq!(Limits::of(1024), Limits { total: 64, each: 32 });
        assert_eq!(Limits::of(0), Limits { total: 4, each: 2 });
        assert_eq!(Limits::of(u64::MAX), Limits { total: 64, each: 32 });
    }

    #[test]
    fn the_oldest_of_the_largest_crowd_makes_place() {
        let limits = Limits { total: 5, each: 3 };
        let [a, b, c] = [1, 2, 3].map(Origin::Process);
        assert_eq!(limits.victim(&[], a), None);
        assert_eq!(limits.victim(&[b, a, a], a), None);
        assert_eq!(limits.victim(&[b, a, a, a], a), Some(1), "its own oldest");
        assert_eq!(limits.victim(&[b, a, a, a], b), None, "others have place still");
        assert_eq!(limits.victim(&[b, c, a, c, a], b), Some(1), "the oldest of those who have the most");
        assert_eq!(limits.victim(&[b, a, a, a, c], Origin::Process(4)), Some(1));
    }

    #[test]
    fn an_origin_is_a_host() {
        let of = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }
}

//! Blocks lent for self-tests: how much of the pool peers that pair may take, and for how long.

use super::gate::Origin;
use crate::bail;
use crate::error::Result;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most bytes of the pool that one self-test takes.
const MOST_BYTES: usize = 64 << 20;
/// All self-tests together take at most this part of the pool.
const PART: usize = 8;
/// A self-test ends after this many peer timeouts, whatever its peer does.
const TIMEOUTS: u32 = 10;

/// Counts the blocks that self-tests hold.
#[derive(Default)]
pub(super) struct SelfTests {
    held: Mutex<Vec<(Origin, usize)>>,
    freed: Condvar,
}

/// Blocks that one self-test may hold, counted until this is dropped.
pub(super) struct SelfTestShare {
    tests: Arc<SelfTests>,
    origin: Origin,
    pub blocks: usize,
    until: Instant,
}

impl SelfTests {
    /// A share of at most `wanted` blocks of a pool of `pool` blocks of `block_bytes` each. Waits for other self-tests
    /// to end if they hold all that may be held, for at most half of `timeout`, the peer timeout.
    pub fn share(
        self: &Arc<Self>,
        origin: Origin,
        wanted: usize,
        (pool, block_bytes): (usize, usize),
        timeout: Duration,
    ) -> Result<SelfTestShare> {
        let wanted = wanted.min(MOST_BYTES / block_bytes.max(1)).max(1);
        let all = (pool / PART).max(1);
        let each = (all / 2).max(1);
        let begun = Instant::now();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let sum = |of: &dyn Fn(&Origin) -> bool| held.iter().filter(|h| of(&h.0)).map(|h| h.1).sum::<usize>();
            let left = all.saturating_sub(sum(&|_| true)).min(each.saturating_sub(sum(&|other| *other == origin)));
            if left > 0 {
                // Half of what is left: another self-test may begin at the same time.
                let blocks = wanted.min(left.div_ceil(2));
                held.push((origin, blocks));
                let until = Instant::now() + timeout * TIMEOUTS;
                return Ok(SelfTestShare { tests: self.clone(), origin, blocks, until });
            }
            let wait = (timeout / 2).saturating_sub(begun.elapsed());
            if wait.is_zero() {
                bail!(OutOfMemory, "self-test: other self-tests hold all blocks that may be used for them");
            }
            held = self.freed.wait_timeout(held, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl SelfTestShare {
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

impl Drop for SelfTestShare {
    fn drop(&mut self) {
        let mut held = self.tests.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = held.iter().position(|held| *held == (self.origin, self.blocks)) {
            held.swap_remove(at);
        }
        self.tests.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    const SOON: Duration = Duration::from_millis(20);

    #[test]
    fn no_peer_takes_more_than_its_part_and_all_together_not_more_than_theirs() {
        let tests = Arc::new(SelfTests::default());
        let pool = (160, 1 << 10);
        let take = |origin: i32| tests.share(Origin::Process(origin), usize::MAX, pool, SOON);
        let mut shares = Vec::new();
        for (origin, blocks) in [(1, 5), (1, 3), (1, 1), (1, 1), (2, 5), (2, 3), (2, 1), (2, 1)] {
            shares.push(take(origin).unwrap());
            assert_eq!(shares.last().unwrap().blocks, blocks, "process {origin}");
        }
        for origin in 1..=3 {
            assert_eq!(take(origin).err().unwrap().status, Status::OutOfMemory, "process {origin}");
        }
        // A waiting self-test gets blocks as soon as another one returns them.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| tests.share(Origin::Process(3), 4, pool, Duration::from_secs(100)));
            shares.remove(0);
            assert_eq!(waiting.join().unwrap().unwrap().blocks, 3);
        });
        drop(shares);
        assert_eq!(tests.held.lock().unwrap().len(), 0);
    }

    #[test]
    fn a_self_test_is_bounded_in_bytes_and_time() {
        let tests = Arc::new(SelfTests::default());
        let share = tests.share(Origin::Process(1), usize::MAX, (1 << 20, 32 << 20), SOON).unwrap();
        assert_eq!(share.blocks, 2);
        let begun = Instant::now();
        while !share.is_over() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(begun.elapsed() >= SOON);
        drop(share);
        // A pool of a few blocks can be tested too.
        assert_eq!(tests.share(Origin::Process(2), 9, (3, 64), SOON).err().map(|e| e.status), None);
    }
}

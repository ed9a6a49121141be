//! Whether a peer answers. After it has been silent, imports from it fail soon instead of waiting for the peer timeout each.

use crate::bail;
use crate::error::{Result, Status};
use crate::transport::source::Wanted;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A question that failed after at least this time marks its peer as silent.
const SILENT: Duration = Duration::from_millis(300);
/// How long an import waits for another one to find out whether a silent peer answers again.
const GLANCE: Duration = Duration::from_millis(100);

/// Record of whether a peer answers.
#[derive(Default)]
pub(super) struct Answering {
    state: Mutex<AnsweringState>,
    changed: Condvar,
}

#[derive(Default)]
struct AnsweringState {
    /// When the peer last left a question without an answer; None once it has answered since.
    silent: Option<Instant>,
    /// An import is finding out whether the peer answers again.
    tried: bool,
}

/// Permission to ask a peer to begin a transfer.
pub(super) struct Turn<'a> {
    answering: &'a Answering,
    tries: bool,
}

impl Answering {
    fn lock(&self) -> MutexGuard<'_, AnsweringState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets an import ask. After the peer was silent, one import at a time finds out whether it answers again; the others
    /// wait for a moment and fail unless it does.
    pub fn turn(&self, wanted: Wanted<'_>) -> Result<Turn<'_>> {
        let begun = Instant::now();
        let mut state = self.lock();
        loop {
            let Some(silent) = state.silent else { return Ok(Turn { answering: self, tries: false }) };
            if !state.tried {
                state.tried = true;
                return Ok(Turn { answering: self, tries: true });
            }
            let left = GLANCE.saturating_sub(begun.elapsed());
            if left.is_zero() {
                let ms = silent.elapsed().as_millis();
                bail!(Peer, "the peer did not answer {ms} ms ago, and another import is trying it again");
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            // Not under the lock, as it may take others.
            drop(state);
            wanted.check()?;
            state = self.lock();
        }
    }

    /// Notes whether the peer answered a question that was asked at `since`. A question that this side no longer wants
    /// an answer to says nothing about the peer.
    pub fn note<T>(&self, since: Instant, answer: Result<T>, wanted: Wanted<'_>) -> Result<T> {
        match &answer {
            Ok(_) => {
                if self.lock().silent.take().is_some() {
                    self.changed.notify_all();
                }
            }
            Err(error) if error.status == Status::Peer && since.elapsed() >= SILENT && wanted.check().is_ok() => {
                self.lock().silent = Some(Instant::now());
            }
            Err(_) => {}
        }
        answer
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.tries {
            self.answering.lock().tried = false;
            self.answering.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const LONG_AGO: Duration = Duration::from_secs(2);

    fn failed() -> Result<()> {
        bail!(Peer, "the peer has been silent")
    }

    #[test]
    fn a_silent_peer_is_tried_by_one_import_at_a_time() {
        let answering = Answering::default();
        let wanted: Wanted<'_> = &|| Ok(());
        let long_ago = Instant::now().checked_sub(LONG_AGO).unwrap();
        // A refused connection is no silence: it takes no time.
        answering.note(Instant::now(), failed(), wanted).unwrap_err();
        assert!(!answering.turn(wanted).unwrap().tries);
        // An import that was told to end says nothing about the peer.
        answering.note(long_ago, failed(), &failed).unwrap_err();
        assert!(!answering.turn(wanted).unwrap().tries);
        answering.note(long_ago, failed(), wanted).unwrap_err();
        let first = answering.turn(wanted).unwrap();
        assert!(first.tries);
        assert_eq!(answering.turn(wanted).err().unwrap().status, Status::Peer);
        drop(first);
        let second = answering.turn(wanted).unwrap();
        assert!(second.tries, "the next one");
        // Those that wait go on as soon as it has answered.
        let answers = || answering.note(Instant::now(), Ok(()), wanted);
        thread::scope(|scope| {
            let wait = || answering.turn(&answers).map(|turn| turn.tries);
            let others: Vec<_> = (0..4).map(|_| scope.spawn(wait)).collect();
            others.into_iter().for_each(|other| assert_eq!(other.join().unwrap(), Ok(false)));
        });
    }
}

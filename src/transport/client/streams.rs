//! Receives blocks over several connections at once, straight into the pool.

use super::peer::{Peer, unexpected};
use super::question::{Question, patience};
use crate::bail;
use crate::error::{Error, Result};
use crate::sys::bytes::ByteTarget;
use crate::transport::net::Channel;
use crate::transport::net::message::Message;
use crate::transport::source::{Destination, Want, Wanted};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Connections that carry one transfer.
const STREAMS: usize = 4;
/// Bytes of one question. Each stream takes the next piece when it is done with the last, so a slow one delays no other.
const PIECE: usize = 2 << 20;

/// Pieces of a transfer, handed out in order.
struct Pieces {
    blocks: Range<usize>,
    each: usize,
    next: AtomicUsize,
}

impl Pieces {
    fn next(&self) -> Option<Range<usize>> {
        let begin = self.blocks.start + self.next.fetch_add(1, Relaxed) * self.each;
        (begin < self.blocks.end).then(|| begin..self.blocks.end.min(begin + self.each))
    }

    fn are_taken(&self) -> bool {
        self.next.load(Relaxed) >= self.count()
    }

    fn count(&self) -> usize {
        self.blocks.len().div_ceil(self.each)
    }
}

pub(super) fn fetch(
    peer: &Peer,
    control: &mut Channel,
    hold: u64,
    blocks: Range<usize>,
    block_bytes: usize,
    into: &dyn Destination,
    question: Question<'_>,
) -> Result<()> {
    let pieces = Pieces { blocks, each: (PIECE / block_bytes.max(1)).max(1), next: AtomicUsize::new(0) };
    let failed = FirstFailure { error: Mutex::new(None), any: AtomicBool::new(false), wanted: question.wanted };
    let question = Question { wanted: &failed, ..question };
    std::thread::scope(|scope| {
        for _ in 1..STREAMS.min(pieces.count()) {
            let (pieces, failed) = (&pieces, &failed);
            let body = move || {
                // If no further connection can be made, the others carry the transfer, and do not wait for it.
                let wanted = || {
                    if pieces.are_taken() {
                        bail!(Cancelled, "the other connections carry the transfer");
                    }
                    failed.check()
                };
                let Ok(mut channel) = peer.connection(Question { wanted: &wanted, ..question }) else { return };
                match run(&mut channel, hold, pieces, block_bytes, into, question) {
                    Ok(()) => peer.keep(channel),
                    Err(error) => failed.note(error),
                }
            };
            if crate::sys::spawn_scoped(scope, "cleave-stream", body).is_err() {
                break;
            }
        }
        if let Err(error) = run(control, hold, &pieces, block_bytes, into, question) {
            failed.note(error);
        }
    });
    failed.error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// The first failure of a transfer's connections, after which the others stop.
struct FirstFailure<'a> {
    error: Mutex<Option<Error>>,
    any: AtomicBool,
    wanted: Wanted<'a>,
}

impl FirstFailure<'_> {
    fn note(&self, error: Error) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.any.store(true, Relaxed);
    }

    fn check_others(&self) -> Result<()> {
        if self.any.load(Relaxed) {
            bail!(Cancelled, "another connection of the transfer failed");
        }
        Ok(())
    }
}

impl Want for FirstFailure<'_> {
    fn check(&self) -> Result<()> {
        self.check_others()?;
        self.wanted.check()
    }

    fn check_silence(&self, silence: Duration) -> Result<()> {
        self.check_others()?;
        self.wanted.check_silence(silence)
    }

    fn heard(&self) {
        self.wanted.heard();
    }
}

/// Receives pieces over one connection until none are left.
fn run(
    channel: &mut Channel,
    hold: u64,
    pieces: &Pieces,
    block_bytes: usize,
    into: &dyn Destination,
    question: Question<'_>,
) -> Result<()> {
    let patience = patience(question.timeout, question.wanted);
    let mut scratch = Vec::new();
    while let Some(range) = pieces.next() {
        question.wanted.check()?;
        let (first, count) = (range.start as u32, range.len() as u32);
        channel.send(&Message::Read { hold, first, count }, &patience)?;
        let bytes = match channel.receive(&patience)? {
            Message::Data { bytes } => bytes,
            Message::Failed(error) => return Err(error.context("the peer")),
            _ => return unexpected(),
        };
        let expected = range.len() * block_bytes;
        if bytes != expected as u64 {
            bail!(Corrupt, "the peer: {count} blocks: expected {expected} bytes, found {bytes}");
        }
        let direct: Option<Vec<ByteTarget<'_>>> = range.clone().map(|index| into.direct(index)).collect();
        match direct {
            Some(targets) => {
                channel.receive_blocks(&targets, &patience)?;
                into.count(expected);
            }
            None => {
                scratch.resize(expected, 0);
                channel.receive_blocks(&[ByteTarget::of(&mut scratch)], &patience)?;
                for (index, block) in range.zip(scratch.chunks(block_bytes)) {
                    into.write_block(index, block)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::net::Stream;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[derive(Default)]
    struct Listener(AtomicUsize);

    impl Want for Listener {
        fn check(&self) -> Result<()> {
            Ok(())
        }

        fn heard(&self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn what_arrives_on_any_connection_is_told_to_the_import() {
        let listener = Listener::default();
        let failed = FirstFailure { error: Mutex::new(None), any: AtomicBool::new(false), wanted: &listener };
        let patience = patience(Duration::MAX, &failed);
        for connection in 1..=STREAMS {
            let (mut a, b) = UnixStream::pair().unwrap();
            a.write_all(&[7]).unwrap();
            Stream::unix(b).unwrap().receive_exact(&mut [0], &patience).unwrap();
            assert_eq!(listener.0.load(Relaxed), connection);
            failed.check().unwrap();
            assert_eq!(listener.0.load(Relaxed), connection, "to be wanted is not to be heard");
        }
    }
}

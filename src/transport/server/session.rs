//! One connection of a peer that has proved itself: its questions, answered in order.

use super::blocks::{Blocks, pattern};
use super::connection::Connection;
use super::gate::Origin;
use super::shared::ServerShared;
use super::transfers::OpenTransfer;
use crate::bail;
use crate::error::Result;
use crate::kv::format::encode_sequence;
use crate::sys::monotonic_ns;
use crate::transport::net::message::Message;
use crate::transport::net::{Channel, Stream};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A connection on which nothing is under way is closed after this many peer timeouts.
const IDLE_TIMEOUTS: u32 = 30;
/// A question for more blocks is answered after this time even if there are none.
const MORE_WAIT: Duration = Duration::from_millis(250);
/// The most bytes that one question may ask for, or one block if that is larger: those of a device are copied first.
const READ_BYTES: usize = 64 << 20;

struct Session<'a> {
    shared: &'a Arc<ServerShared>,
    origin: Origin,
    /// Transfers that were opened over this connection. They end with it.
    transfers: HashMap<u64, Arc<OpenTransfer>>,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.transfers.is_empty() {
            crate::log!(Debug, "transport", "a transfer was given up with its connection");
        }
        self.transfers.keys().for_each(|id| _ = self.shared.transfers().remove(id));
    }
}

pub(super) fn run(shared: &Arc<ServerShared>, mut channel: Channel, connection: &Connection) -> Result<()> {
    let stream = &connection.stream;
    let open = || {
        if shared.closed.load(Relaxed) {
            bail!(Shutdown, "the cache is closed");
        }
        Ok(())
    };
    let mut session = Session { shared, origin: connection.origin, transfers: HashMap::new() };
    loop {
        if session.transfers.values().any(|transfer| transfer.is_overdue()) {
            bail!(Timeout, "a peer's self-test did not end");
        }
        connection.idle_since.store(if session.transfers.is_empty() { monotonic_ns() } else { 0 }, Relaxed);
        let patience = |silent: Duration| {
            open()?;
            if session.transfers.is_empty() && silent > shared.timeout * IDLE_TIMEOUTS {
                bail!(Timeout, "a peer's connection was idle for {} s", silent.as_secs());
            }
            if session.transfers.values().any(|transfer| transfer.is_overdue()) {
                bail!(Timeout, "a peer's self-test did not end");
            }
            match session.transfers.values().map(|transfer| transfer.silent()).min() {
                Some(silent) if silent > shared.timeout => {
                    bail!(Peer, "an importer was silent for {} ms in the middle of a transfer", silent.as_millis())
                }
                _ => Ok(()),
            }
        };
        let question = channel.receive(&patience)?;
        connection.idle_since.store(0, Relaxed);
        // An answer that the peer does not take is given up after the same time.
        let sending = |silent: Duration| {
            open()?;
            if silent > shared.timeout {
                bail!(Peer, "an importer took nothing for {} ms", silent.as_millis());
            }
            Ok(())
        };
        if let Message::Read { hold, first, count } = question {
            match session.blocks(hold, first, count) {
                Ok(blocks) => blocks.send(&mut channel, &sending)?,
                Err(error) => channel.send(&Message::Failed(error), &sending)?,
            }
            continue;
        }
        if question == Message::Share {
            match session.share(stream) {
                Ok((answer, socket, fd)) => {
                    channel.send(&answer, &sending)?;
                    let sent = crate::sys::socket::send_fd(socket, fd.as_fd());
                    sent.map_err(|e| crate::error!(Peer, "the pool's descriptor: {e}"))?;
                }
                Err(error) => channel.send(&Message::Failed(error), &sending)?,
            }
            continue;
        }
        let answer = session.answer(question, stream).unwrap_or_else(Message::Failed);
        channel.send(&answer, &sending)?;
    }
}

impl Session<'_> {
    fn own(&self, hold: u64) -> Result<&Arc<OpenTransfer>> {
        match self.transfers.get(&hold) {
            Some(transfer) => {
                transfer.touch();
                Ok(transfer)
            }
            None => bail!(Expired, "transfer {hold}: not one of this connection"),
        }
    }

    fn end(&mut self, hold: u64) {
        if self.transfers.remove(&hold).is_some() {
            self.shared.transfers().remove(&hold);
        }
    }

    fn answer(&mut self, question: Message, stream: &Stream) -> Result<Message> {
        let cache = &self.shared.cache;
        for transfer in self.transfers.values() {
            transfer.touch();
            transfer.hold().renew();
        }
        Ok(match question {
            Message::Describe => Message::Address(cache.tickets().encode_address()),
            Message::Open { epoch, handle, digest } => {
                crate::failpoint::hit("transport.export.open")?;
                let hold = cache.transfers().hold(crate::kv::KvId(handle), &epoch, &digest)?;
                let transfer = self.shared.lend(hold, None);
                self.transfers.insert(transfer.id, transfer.clone());
                crate::failpoint::hit("transport.export.opened")?;
                Message::Opened { hold: transfer.id }
            }
            Message::More { hold, have } => {
                crate::failpoint::hit("transport.export.more")?;
                let transfer = self.own(hold)?;
                let mut hold = transfer.hold();
                if transfer.self_test.is_some() {
                    return Ok(Message::Blocks { first: 0, ids: hold.blocks().to_vec(), sequence: None });
                }
                hold.more(have as usize, MORE_WAIT)?;
                let first = (have as usize).min(hold.blocks().len());
                let ids = hold.blocks()[first..].to_vec();
                let sequence = hold.whole().map(|snapshot| encode_sequence(snapshot));
                Message::Blocks { first: first as u32, ids, sequence }
            }
            Message::Commit { hold } => {
                crate::failpoint::hit("transport.export.commit")?;
                // This process may have been stopped meanwhile. An importer that is gone uses nothing, so the handle stays.
                if stream.is_closed() {
                    bail!(Peer, "the importer is gone, and its transfer with it");
                }
                let transfer = self.own(hold)?.clone();
                let committed = transfer.hold().commit();
                self.end(hold);
                committed?;
                crate::failpoint::hit("transport.export.committed")?;
                Message::Done
            }
            Message::Close { hold } => {
                self.end(hold);
                Message::Done
            }
            Message::Ping => Message::Done,
            Message::Test { blocks, seed } => self.test(blocks, &seed)?,
            Message::Nixl => {
                let agent = self.shared.nixl.agent(cache)?;
                Message::NixlAgent { base: agent.pool.address(), metadata: agent.agent.metadata()? }
            }
            other => bail!(Corrupt, "message of the peer: kind {} is not a question", other.kind()),
        })
    }

    /// The pool's memory for a peer on this machine: the answer, and the descriptor that follows it.
    fn share<'s>(&self, stream: &'s Stream) -> Result<(Message, &'s UnixStream, OwnedFd)> {
        let Some(socket) = stream.unix_socket() else {
            bail!(Unsupported, "the pool's memory cannot be shared over this connection")
        };
        let cache = &self.shared.cache;
        let crate::backend::PoolExport { fd, bytes, device } = cache.store().share()?;
        let block_bytes = cache.geometry().block_bytes() as u64;
        Ok((Message::Shared { len: bytes as u64, block_bytes, device }, socket, fd))
    }

    /// Lends free blocks, filled with a pattern that the peer can compute too.
    fn test(&mut self, blocks: u32, seed: &[u8; 32]) -> Result<Message> {
        let cache = &self.shared.cache;
        // One at a time on a connection.
        let tests: Vec<u64> = self
            .transfers
            .values()
            .filter(|transfer| transfer.self_test.is_some())
            .map(|transfer| transfer.id)
            .collect();
        tests.into_iter().for_each(|test| self.end(test));
        let size = cache.geometry().block_bytes();
        let pool = (cache.total_blocks(), size);
        let share = self.shared.self_tests.share(self.origin, blocks as usize, pool, self.shared.timeout)?;
        let hold = cache.transfers().hold_scratch(share.blocks)?;
        for (index, &block) in hold.blocks().iter().enumerate() {
            cache.store().write(block, 0, &pattern(seed, index, size))?;
        }
        let transfer = self.shared.lend(hold, Some(share));
        self.transfers.insert(transfer.id, transfer.clone());
        Ok(Message::Opened { hold: transfer.id })
    }

    fn blocks(&self, hold: u64, first: u32, count: u32) -> Result<Blocks> {
        crate::failpoint::hit("transport.export.read")?;
        let most = (READ_BYTES / self.shared.cache.geometry().block_bytes()).max(1);
        if count as usize > most {
            bail!(InvalidArgument, "transfer {hold}: {count} blocks at once: expected at most {most}");
        }
        let transfer = self.shared.find(hold)?;
        transfer.touch();
        let range = first as usize..(first as usize).saturating_add(count as usize);
        let (pinned, computed) = {
            let hold = transfer.hold();
            hold.renew();
            (hold.pin(range.clone()), hold.whole().map(|snapshot| snapshot.computed))
        };
        let Some(pinned) = pinned else {
            bail!(InvalidArgument, "transfer {hold}: blocks {range:?} are not there (yet)");
        };
        Ok(Blocks { shared: self.shared.clone(), transfer, pinned, first: first as usize, computed })
    }
}

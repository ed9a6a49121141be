//! A transfer from a cache in another process.

use super::carrier::{Carrier, DataPlane};
use super::mapped::Mapped;
use super::peer::{Peer, accepted, unexpected};
use super::question::{Question, patience};
use super::streams;
use crate::backend::{BlockId, BlockStore};
use crate::bail;
use crate::error::{Result, Status};
use crate::kv::format::{Ticket, TransportKeys, decode_sequence};
use crate::transport::net::Channel;
use crate::transport::net::message::Message;
use crate::transport::nixl::Reader;
use crate::transport::source::{Destination, Progress, TransferSource, Transport, Wanted};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The shortest time between two questions for more blocks when there were none.
const NOTHING_NEW: Duration = Duration::from_millis(20);

/// How often the exporter is told that a long copy goes on.
const PING: Duration = Duration::from_millis(250);

/// How long a transfer that ends early waits for the exporter to confirm that, so that the connection can be kept.
const FAREWELL: Duration = Duration::from_secs(1);

pub(in crate::transport) struct RemoteTransfer {
    peer: Arc<Peer>,
    /// None once it has failed or was given back.
    control: Option<Channel>,
    keys: TransportKeys,
    timeout: Duration,
    store: Arc<dyn BlockStore>,
    hold: u64,
    /// The exporter's numbers of this sequence's blocks, as far as they are known.
    ids: Vec<BlockId>,
    /// The most blocks that there can be.
    most: usize,
    block_bytes: usize,
    carrier: Carrier,
    told: Instant,
    /// When the exporter was asked to begin.
    pub asked: Instant,
    over: bool,
}

impl RemoteTransfer {
    pub fn open(peer: &Arc<Peer>, ticket: &Ticket, plane: DataPlane, question: Question<'_>) -> Result<RemoteTransfer> {
        let open = Message::Open { epoch: ticket.epoch, handle: ticket.handle.0, digest: ticket.digest };
        // The first token of a prompt that is being computed is not in the ticket yet, and may begin a block.
        let most = ticket.snapshot.tokens.len() / ticket.geometry.block_tokens as usize + 2;
        Self::begin(peer, &open, (most, ticket.geometry.block_bytes()), plane, question)
    }

    /// Begins a transfer that `open` asks for: of at most so many blocks, of so many bytes each.
    pub fn begin(
        peer: &Arc<Peer>,
        open: &Message,
        (most, block_bytes): (usize, usize),
        plane: DataPlane,
        question: Question<'_>,
    ) -> Result<RemoteTransfer> {
        crate::failpoint::hit("transport.import.open")?;
        let (mut control, asked, answer) = peer.begin(open, question)?;
        let Message::Opened { hold } = answer else { return unexpected() };
        let carrier = match Carrier::set_up(plane, peer, &mut control, block_bytes, question) {
            Ok(carrier) => carrier,
            Err(error) => {
                // Ended now rather than when the exporter sees the connection close: another transport may be tried at once.
                if error.status != Status::Peer && peer.ask(&mut control, &Message::Close { hold }, question).is_ok() {
                    peer.keep(control);
                }
                return Err(error);
            }
        };
        crate::failpoint::hit("transport.import.opened")?;
        let Question { keys, timeout, store, .. } = question;
        Ok(RemoteTransfer {
            peer: peer.clone(),
            control: Some(control),
            keys,
            timeout,
            store: store.clone(),
            hold,
            ids: Vec::new(),
            most,
            block_bytes,
            carrier,
            told: Instant::now(),
            asked,
            over: false,
        })
    }

    /// Asks over the control connection, which is dropped after a failure: the peer may or may not have taken the question.
    fn ask(&mut self, message: &Message, wanted: Wanted<'_>) -> Result<Message> {
        let Some(mut control) = self.control.take() else { bail!(Peer, "the connection to the peer broke before") };
        let store = self.store.clone();
        let question = Question { keys: self.keys, timeout: self.timeout, store: &store, wanted };
        let answer = self.peer.exchange(&mut control, message, question)?;
        self.told = Instant::now();
        // A refusal is an answer too: the two sides agree on their state.
        self.control = Some(control);
        accepted(answer)
    }

    fn ping(&mut self, wanted: Wanted<'_>) -> Result<()> {
        if self.told.elapsed() >= PING {
            self.ask(&Message::Ping, wanted)?;
        }
        Ok(())
    }

    /// The transport that carries the blocks.
    pub fn transport(&self) -> Transport {
        self.carrier.transport()
    }

    /// Takes the page faults of the mapped pool now rather than in the first transfer.
    pub fn populate(&self) -> Result<()> {
        match &self.carrier {
            Carrier::Mapped(mapped) => mapped.populate(),
            Carrier::Nixl(_) | Carrier::Streams => Ok(()),
        }
    }

    fn copy_mapped(
        &mut self,
        mapped: &Mapped,
        blocks: Range<usize>,
        into: &dyn Destination,
        wanted: Wanted<'_>,
    ) -> Result<()> {
        let ids = std::mem::take(&mut self.ids);
        let copied = mapped.fetch(&ids, blocks, into, &mut || {
            wanted.check()?;
            self.ping(wanted)
        });
        self.ids = ids;
        copied
    }

    fn receive(&mut self, blocks: Range<usize>, into: &dyn Destination, wanted: Wanted<'_>) -> Result<()> {
        let store = self.store.clone();
        let question = Question { keys: self.keys, timeout: self.timeout, store: &store, wanted };
        let Some(mut control) = self.control.take() else { bail!(Peer, "the connection to the peer broke before") };
        streams::fetch(&self.peer, &mut control, self.hold, blocks, self.block_bytes, into, question)?;
        self.control = Some(control);
        Ok(())
    }

    /// Reads by NIXL. All reads have ended when this returns, whatever happens: until then the blocks must not be freed.
    fn read_nixl(
        &mut self,
        reader: &Reader,
        blocks: Range<usize>,
        into: &dyn Destination,
        wanted: Wanted<'_>,
    ) -> Result<()> {
        let mut next = blocks.start;
        while next < blocks.end {
            wanted.check()?;
            let batch = reader.start(&self.ids, next..blocks.end, self.block_bytes, into)?;
            while !batch.poll()? {
                std::thread::yield_now();
                // A cancellation waits for the read in progress; a peer that is gone is not waited for.
                if let Err(error) = self.ping(&|| Ok(())) {
                    self.peer.forget_reader();
                    reader.end();
                    return Err(error);
                }
            }
            next = batch.blocks.end;
            batch.finish(into)?;
        }
        Ok(())
    }
}

impl TransferSource for RemoteTransfer {
    fn more(&mut self, wanted: Wanted<'_>) -> Result<Progress> {
        wanted.check()?;
        // This cache may have more of the sequence than the exporter has computed, so it asks from the last block that it
        // knows of, not from the last that it has.
        let known = self.ids.len();
        let asked = Instant::now();
        let answer = self.ask(&Message::More { hold: self.hold, have: known as u32 }, wanted)?;
        let Message::Blocks { first, ids, sequence } = answer else { return unexpected() };
        let first = first as usize;
        if first > known {
            bail!(Corrupt, "the peer: blocks: expected those from {known} on, found from {first} on");
        }
        if first + ids.len() > self.most {
            bail!(Corrupt, "the peer: blocks: expected at most {}, found {}", self.most, first + ids.len());
        }
        // A peer that has nothing new waits before it says so. One that does not is not asked in a tight loop.
        if sequence.is_none() && first + ids.len() <= known {
            std::thread::sleep(NOTHING_NEW.saturating_sub(asked.elapsed()));
        }
        self.ids.truncate(first);
        self.ids.extend_from_slice(&ids);
        let whole = sequence.map(|sequence| decode_sequence(&sequence)).transpose()?;
        Ok(Progress { available: self.ids.len(), whole })
    }

    fn fetch(&mut self, blocks: Range<usize>, into: &dyn Destination, wanted: Wanted<'_>) -> Result<()> {
        crate::failpoint::hit("transport.import.fetch")?;
        match &self.carrier {
            Carrier::Mapped(mapped) => self.copy_mapped(&mapped.clone(), blocks, into, wanted),
            Carrier::Nixl(reader) => self.read_nixl(&reader.clone(), blocks, into, wanted),
            Carrier::Streams => self.receive(blocks, into, wanted),
        }
    }

    fn keep_alive(&mut self, wanted: Wanted<'_>) -> Result<()> {
        self.ping(wanted)
    }

    fn commit(&mut self, wanted: Wanted<'_>) -> Result<()> {
        // An import that ended without the answer would lose the sequence, so it does not make place for others here.
        let answer = self.ask(&Message::Commit { hold: self.hold }, &|| wanted.check())?;
        self.over = true;
        if answer == Message::Done { Ok(()) } else { unexpected() }
    }
}

impl Drop for RemoteTransfer {
    fn drop(&mut self) {
        let Some(mut control) = self.control.take() else { return };
        if !self.over {
            // Without an answer the connection is closed, which ends the transfer as well: not worth a long wait, and no
            // reason to take the peer for silent.
            let patience = patience(self.timeout.min(FAREWELL), &|| Ok(()));
            let close = Message::Close { hold: self.hold };
            if control.send(&close, &patience).and_then(|()| control.receive(&patience)).is_err() {
                return;
            }
        }
        self.peer.keep(control);
    }
}

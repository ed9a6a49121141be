//! One peer: idle connections to it, its memory if that is mapped, and whether it answers.

use super::answering::Answering;
use super::connect::connect;
use super::mapped::Mapped;
use super::question::{Question, patience};
use crate::backend::PoolExport;
use crate::bail;
use crate::error::{Result, Status};
use crate::kv::format::Endpoint;
use crate::sys::socket::is_stopped;
use crate::transport::net::message::Message;
use crate::transport::net::{Channel, Stream};
use crate::transport::nixl::Reader;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most idle connections that are kept open to a peer.
const KEEP: usize = 16;
/// An idle connection is closed after this many peer timeouts, before the exporter closes it.
const IDLE_TIMEOUTS: u32 = 10;
pub(in crate::transport) struct Peer {
    pub endpoint: Endpoint,
    state: Mutex<PeerState>,
    pub(super) answering: Answering,
    /// NIXL's agent for reads from this peer. Each peer has its own, so that one that hangs can be cut off alone.
    reader: Mutex<Option<Arc<Reader>>>,
}

struct PeerState {
    /// Connections on which nothing is under way, and since when, oldest first.
    idle: Vec<(Channel, Instant)>,
    mapped: Option<Arc<Mapped>>,
    /// The process that answered last, if it is on this machine.
    process: Option<i32>,
    used: Instant,
}

impl Peer {
    pub fn new(endpoint: Endpoint) -> Peer {
        let state = PeerState { idle: Vec::new(), mapped: None, process: None, used: Instant::now() };
        Peer { endpoint, state: Mutex::new(state), answering: Answering::default(), reader: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn idle_for(&self) -> Duration {
        self.lock().used.elapsed()
    }

    /// True if the peer is a process of this machine that is stopped or dead: it will not answer over other sockets either.
    pub fn is_stopped(&self) -> bool {
        self.lock().process.is_some_and(is_stopped)
    }

    /// Lets go of connections that were closed or have been idle for long. If the peer closed all of them, its process
    /// is gone or was restarted: nothing of it is kept.
    pub fn sweep(&self, timeout: Duration) {
        let mut state = self.lock();
        let before = state.idle.len();
        state.idle.retain(|(channel, _)| !channel.stream().is_closed());
        if before > 0 && state.idle.is_empty() {
            let mapped = state.mapped.take();
            // Unmapping a large pool and ending NIXL's agent take long, so both happen without the lock.
            drop(state);
            drop(mapped);
            self.forget_reader();
            return;
        }
        let excess = state.idle.len().saturating_sub(KEEP);
        state.idle.drain(..excess);
        state.idle.retain(|(_, since)| since.elapsed() < timeout * IDLE_TIMEOUTS);
    }

    /// An idle connection, or a new one.
    pub fn connection(&self, question: Question<'_>) -> Result<Channel> {
        self.sweep(question.timeout);
        let idle = {
            let mut state = self.lock();
            state.used = Instant::now();
            state.idle.pop()
        };
        idle.map_or_else(|| self.connect(question), |(channel, _)| Ok(channel))
    }

    /// Takes back a connection on which nothing is under way.
    pub fn keep(&self, channel: Channel) {
        let mut state = self.lock();
        state.used = Instant::now();
        state.idle.push((channel, Instant::now()));
    }

    fn connect(&self, question: Question<'_>) -> Result<Channel> {
        let begun = Instant::now();
        let met = |stream: &Stream| self.lock().process = stream.process();
        self.answering.note(begun, connect(&self.endpoint, question, met), question.wanted)
    }

    /// Asks over `channel` and waits for the answer, which may be a refusal. After an error the connection must not be used
    /// again: the peer may or may not have taken the question.
    pub fn exchange(&self, channel: &mut Channel, message: &Message, question: Question<'_>) -> Result<Message> {
        let patience = patience(question.timeout, question.wanted);
        let begun = Instant::now();
        let answer = channel.send(message, &patience).and_then(|()| channel.receive(&patience));
        self.answering.note(begun, answer, question.wanted)
    }

    /// Asks as `exchange` does; a refusal is an error with the peer's status and text.
    pub fn ask(&self, channel: &mut Channel, message: &Message, question: Question<'_>) -> Result<Message> {
        accepted(self.exchange(channel, message, question)?)
    }

    /// Asks the first question over a connection, and says when it was asked. A peer that was restarted has closed the
    /// idle ones: then a new one is tried.
    pub fn begin(&self, message: &Message, question: Question<'_>) -> Result<(Channel, Instant, Message)> {
        let mut channel = self.connection(question)?;
        let asked = Instant::now();
        match self.ask(&mut channel, message, question) {
            Err(error) if error.status == Status::Peer && channel.stream().is_closed() => {
                self.lock().idle.clear();
                let mut channel = self.connect(question)?;
                let asked = Instant::now();
                let answer = self.ask(&mut channel, message, question)?;
                Ok((channel, asked, answer))
            }
            answer => answer.map(|answer| (channel, asked, answer)),
        }
    }

    /// NIXL's reader of the peer's memory: made once, for all transfers.
    pub fn reader(&self, channel: &mut Channel, question: Question<'_>) -> Result<Arc<Reader>> {
        let known = || self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = &*known() {
            return Ok(reader.clone());
        }
        // Made outside the lock, as the mapping is; of two that are made at once one is kept. This side comes first:
        // without NIXL here the peer need not load it.
        let new = Reader::prepare(question.store)?;
        // A peer that is asked for the first time loads NIXL and registers its pool, which takes long: it is not silent.
        let wanted = || question.wanted.check();
        let question = Question { wanted: &wanted, ..question };
        let Message::NixlAgent { base, metadata } = self.ask(channel, &Message::Nixl, question)? else {
            return unexpected();
        };
        let new = Arc::new(new.meet(&metadata, base)?);
        let kept = known().get_or_insert_with(|| new.clone()).clone();
        Ok(kept)
    }

    /// Drops NIXL's reader. Its reads end before its agent is gone.
    pub fn forget_reader(&self) {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(reader);
    }

    /// The peer's memory: mapped once, for all transfers.
    pub fn mapped(&self, channel: &mut Channel, question: Question<'_>) -> Result<Arc<Mapped>> {
        if let Some(mapped) = self.lock().mapped.clone() {
            return Ok(mapped);
        }
        // Outside the lock: a peer that does not answer would block transfers that are to be given up.
        let Message::Shared { len, block_bytes, device } = self.ask(channel, &Message::Share, question)? else {
            return unexpected();
        };
        let patience = patience(question.timeout, question.wanted);
        let fd = channel.stream().receive_fd(&patience).map_err(|e| e.context("the peer's memory"))?;
        let shared = PoolExport { fd, bytes: usize::try_from(len).unwrap_or(0), device };
        let mapped = Mapped::open(shared, usize::try_from(block_bytes).unwrap_or(usize::MAX));
        let mapped = Arc::new(mapped.map_err(|e| e.context("the peer's memory"))?);
        // If several threads made one at once, the first is kept.
        let kept = self.lock().mapped.get_or_insert_with(|| mapped.clone()).clone();
        Ok(kept)
    }
}

/// Turns a refusal into an error.
pub(super) fn accepted(answer: Message) -> Result<Message> {
    match answer {
        Message::Failed(error) => Err(error.context("the peer")),
        answer => Ok(answer),
    }
}

pub(in crate::transport) fn unexpected<T>() -> Result<T> {
    bail!(Corrupt, "the peer: an answer to something else than what was asked")
}

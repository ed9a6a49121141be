//! One peer: idle connections to it, and its memory if that is mapped.

use super::mapped::Mapped;
use super::{describe, patience};
use crate::backend::{BlockStore, PoolExport};
use crate::bail;
use crate::error::{Error, Result, Status};
use crate::kv::endpoint::Endpoint;
use crate::kv::image::TransportKeys;
use crate::sys::socket::{connect_unix, is_stopped};
use crate::transport::net::message::Message;
use crate::transport::net::{Channel, Stream, connect};
use crate::transport::nixl::Reader;
use crate::transport::source::Wanted;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Idle connections kept of a peer.
const KEEP: usize = 16;

/// How a peer is asked: with which keys, and how patiently.
#[derive(Clone, Copy)]
pub(in crate::transport) struct Question<'a> {
    pub keys: TransportKeys,
    pub timeout: Duration,
    /// The pool that reads by NIXL land in.
    pub store: &'a Arc<dyn BlockStore>,
    pub wanted: Wanted<'a>,
}

pub(in crate::transport) struct Peer {
    pub endpoint: Endpoint,
    state: Mutex<PeerState>,
    /// NIXL's agent for reads from this peer: one for each, so that one that hangs can be cut off by itself.
    reader: Mutex<Option<Arc<Reader>>>,
}

struct PeerState {
    idle: Vec<Channel>,
    mapped: Option<Arc<Mapped>>,
    /// Who answered last, if that is on this machine.
    process: Option<i32>,
    used: Instant,
}

impl Peer {
    pub fn new(endpoint: Endpoint) -> Peer {
        let state = PeerState { idle: Vec::new(), mapped: None, process: None, used: Instant::now() };
        Peer { endpoint, state: Mutex::new(state), reader: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn idle_for(&self) -> Duration {
        self.lock().used.elapsed()
    }

    /// A process of this machine that is stopped or dead: it will not answer over its other sockets either.
    pub fn is_stopped(&self) -> bool {
        self.lock().process.is_some_and(is_stopped)
    }

    /// Closed connections mean that the peer's process is gone, or began anew: nothing of it is kept.
    pub fn sweep(&self) {
        let mut state = self.lock();
        if state.idle.iter().any(|channel| channel.stream().is_closed()) {
            state.idle.clear();
            state.mapped = None;
            self.forget_reader();
        }
        let excess = state.idle.len().saturating_sub(KEEP);
        state.idle.drain(..excess);
    }

    /// An idle connection, or a new one.
    pub fn connection(&self, question: Question<'_>) -> Result<Channel> {
        self.sweep();
        let idle = {
            let mut state = self.lock();
            state.used = Instant::now();
            state.idle.pop()
        };
        idle.map_or_else(|| self.connect(question), Ok)
    }

    /// Takes back a connection on which nothing is under way.
    pub fn keep(&self, channel: Channel) {
        let mut state = self.lock();
        state.used = Instant::now();
        state.idle.push(channel);
    }

    fn connect(&self, question: Question<'_>) -> Result<Channel> {
        let timeout = question.timeout;
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                Error::new(Status::Peer, format!("no connection within {} ms", timeout.as_millis()))
            }
            _ => Error::new(Status::Peer, format!("no connection: {e}")),
        };
        let patience = patience(timeout, question.wanted);
        match &self.endpoint {
            Endpoint::Unix(unix) => {
                let socket = connect_unix(&unix.name, timeout).map_err(failed)?;
                let stream = Stream::unix(socket)?;
                self.lock().process = stream.process();
                connect(Arc::new(stream), &question.keys, false, &patience)
            }
            Endpoint::Tcp { address, encrypted } => {
                let socket = TcpStream::connect_timeout(address, timeout).map_err(failed)?;
                connect(Arc::new(Stream::tcp(socket, timeout)?), &question.keys, *encrypted, &patience)
            }
            Endpoint::Process(_) => bail!(Internal, "{}: no socket", describe(&self.endpoint)),
        }
    }

    /// Asks over `channel` and waits for the answer, which may be a refusal. After an error the connection is of no use:
    /// what its other end thinks is unknown.
    pub fn exchange(&self, channel: &mut Channel, message: &Message, question: Question<'_>) -> Result<Message> {
        let patience = patience(question.timeout, question.wanted);
        channel.send(message, &patience)?;
        channel.receive(&patience)
    }

    /// The same where a refusal is an error, with the peer's status and text.
    pub fn ask(&self, channel: &mut Channel, message: &Message, question: Question<'_>) -> Result<Message> {
        accepted(self.exchange(channel, message, question)?)
    }

    /// Asks the first question over a connection, and tells when. One that was idle may have been closed by a peer that began anew: then
    /// a new one is tried.
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

    /// NIXL's way to the peer's memory: made once, for all transfers.
    pub fn reader(&self, channel: &mut Channel, question: Question<'_>) -> Result<Arc<Reader>> {
        let known = || self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = &*known() {
            return Ok(reader.clone());
        }
        // Not under the lock, as with the mapping. Of two that are made at once one is kept.
        // Asked of this side first: without NIXL here the peer need not load it.
        let new = Reader::prepare(question.store)?;
        let Message::NixlAgent { base, metadata } = self.ask(channel, &Message::Nixl, question)? else {
            return unexpected();
        };
        let new = Arc::new(new.meet(&metadata, base)?);
        Ok(known().get_or_insert(new).clone())
    }

    /// What the reader was reading ends, one way or the other, before its agent is gone.
    pub fn forget_reader(&self) {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(reader);
    }

    /// The peer's memory: mapped once, for all transfers.
    pub fn mapped(&self, channel: &mut Channel, question: Question<'_>) -> Result<Arc<Mapped>> {
        if let Some(mapped) = self.lock().mapped.clone() {
            return Ok(mapped);
        }
        // Not under the lock: a peer that does not answer would hold up transfers that are to be given up.
        let Message::Shared { len, block_bytes, device } = self.ask(channel, &Message::Share, question)? else {
            return unexpected();
        };
        let patience = patience(question.timeout, question.wanted);
        let fd = channel.stream().receive_fd(&patience).map_err(|e| e.context("the peer's memory"))?;
        let shared = PoolExport { fd, bytes: usize::try_from(len).unwrap_or(0), device };
        let mapped = Mapped::open(shared, usize::try_from(block_bytes).unwrap_or(usize::MAX));
        let mapped = Arc::new(mapped.map_err(|e| e.context("the peer's memory"))?);
        // Of several that were made at once the first stays.
        Ok(self.lock().mapped.get_or_insert(mapped).clone())
    }
}

/// An answer that is no refusal.
pub(super) fn accepted(answer: Message) -> Result<Message> {
    match answer {
        Message::Failed(error) => Err(error.context("the peer")),
        answer => Ok(answer),
    }
}

pub(in crate::transport) fn unexpected<T>() -> Result<T> {
    bail!(Corrupt, "the peer: an answer to something else than what was asked")
}

//! Connecting to a peer: the socket, then the handshake.

use super::question::{Question, patience};
use crate::bail;
use crate::error::{Error, Result, Status};
use crate::kv::format::Endpoint;
use crate::sys::socket::{begin_connect, connect_unix, finish_connect};
use crate::transport::net::{self, Channel, Stream};
use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a wait for a connection checks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);
/// How often a connection is tried that the peer closes before it knows who asks: it was crowded out by others.
const TRIES: u32 = 5;

/// Connects to the peer at `endpoint`. `met` is called with each socket, before the handshake.
pub(super) fn connect(endpoint: &Endpoint, question: Question<'_>, met: impl Fn(&Stream)) -> Result<Channel> {
    let begun = Instant::now();
    let mut tries = 1;
    loop {
        let crowded_out = Cell::new(false);
        match connect_once(endpoint, question, &met, &crowded_out) {
            Err(_) if crowded_out.get() && tries < TRIES && begun.elapsed() < question.timeout => {
                question.wanted.check()?;
                std::thread::sleep(Duration::from_millis(5) * tries * tries);
                tries += 1;
            }
            connected => return connected,
        }
    }
}

/// Sets `crowded_out` if the peer closed the connection during the handshake, as one with too many connections does.
fn connect_once(
    endpoint: &Endpoint,
    question: Question<'_>,
    met: impl Fn(&Stream),
    crowded_out: &Cell<bool>,
) -> Result<Channel> {
    let timeout = question.timeout;
    let failed = |e: io::Error| Error::new(Status::Peer, format!("no connection: {e}"));
    let begun = Instant::now();
    let still = || {
        question.wanted.check_silence(begun.elapsed())?;
        if begun.elapsed() >= timeout {
            bail!(Peer, "no connection within {} ms", timeout.as_millis());
        }
        Ok(())
    };
    let (stream, encrypted) = match endpoint {
        Endpoint::Unix(unix) => {
            let socket = loop {
                match connect_unix(&unix.name) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => still()?,
                    connected => break connected.map_err(failed)?,
                }
                std::thread::sleep(LOOK);
            };
            (Stream::unix(socket)?, false)
        }
        Endpoint::Tcp { address, encrypted } => {
            let socket = begin_connect(address).map_err(failed)?;
            while !finish_connect(&socket, LOOK).map_err(failed)? {
                still()?;
            }
            (Stream::tcp(socket, timeout)?, *encrypted)
        }
        Endpoint::Process(process) => bail!(Internal, "process {}: no socket", process.pid),
    };
    met(&stream);
    let stream = Arc::new(stream);
    let met = net::connect(stream.clone(), &question.keys, encrypted, &patience(timeout, question.wanted));
    met.inspect_err(|error| crowded_out.set(error.status == Status::Peer && stream.is_closed()))
}

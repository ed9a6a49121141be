//! Doors for fuzzers into what reads a peer's bytes.

use super::net::message::Message;
use super::net::{Stream, accept};
use crate::error::{Error, Result};
use crate::kv::format::TransportKeys;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Reads a header and its payload.
pub(crate) fn message(data: &[u8]) -> Result<()> {
    let Some((header, payload)) = data.split_first_chunk() else { crate::bail!(Corrupt, "no header") };
    Message::decode(header, payload).map(|_| ())
}

pub(crate) fn messages() -> Vec<Vec<u8>> {
    let messages = [
        Message::Open { epoch: [1; 16], handle: 2, digest: [3; 32] },
        Message::Read { hold: 1, first: 2, count: 3 },
        Message::Test { blocks: 1, seed: [7; 32] },
        Message::Blocks { first: 1, ids: vec![5, 6], sequence: None },
        Message::Blocks { first: 0, ids: vec![9], sequence: Some(vec![1, 2]) },
        Message::NixlAgent { base: 3, metadata: vec![4] },
        Message::Failed(crate::error!(Expired, "over")),
    ];
    let encode = |message: &Message| {
        let (header, payload) = message.encode();
        [&header[..], &payload].concat()
    };
    messages.iter().map(encode).collect()
}

/// A server meets a peer that says this and hangs up. Only whoever has the secret is let in, and that is not the fuzzer:
/// a greeting that was understood is as good as it gets.
pub(crate) fn greet(data: &[u8]) -> Result<()> {
    let io = |e: std::io::Error| Error::io("socket pair", &e);
    let (mut peer, own) = UnixStream::pair().map_err(io)?;
    // More than a greeting is not read: a large one would fill the socket.
    peer.write_all(&data[..data.len().min(4096)]).map_err(io)?;
    peer.shutdown(std::net::Shutdown::Write).map_err(io)?;
    let keys = TransportKeys { auth: [1; 32], psk: [2; 32] };
    match accept(Arc::new(Stream::unix(own)?), &keys, false, &|_| Ok(())) {
        Ok(_) => crate::bail!(Permission, "a stranger was let in"),
        // It was understood, and then nothing more came.
        Err(error) if error.message.contains("closed the connection") && data.len() >= 48 => Ok(()),
        Err(error) => Err(error),
    }
}

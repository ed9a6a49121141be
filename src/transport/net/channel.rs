//! Messages and blocks over a connection whose both ends know the secret.

use super::cipher::{CODE, Codes, Records};
use super::message::{HEADER, Message};
use super::stream::{Patience, Stream};
use crate::bail;
use crate::error::Result;
use crate::sys::bytes::{ByteSource, ByteTarget};
use std::sync::Arc;

/// The longest payload of a message: enough for the blocks and tokens of a sequence of a million tokens.
const MAX_PAYLOAD: usize = 32 << 20;
/// Memory for a message is allocated as its bytes arrive, beginning with this much, whatever its length field says.
const GROW: usize = 64 << 10;
/// Block bytes are summed and sent, or received and summed, in pieces of this size, which stay in the core's cache.
const PIECE: usize = 256 << 10;

pub(super) enum Protection {
    Codes { send: Codes, receive: Codes },
    Noise(Box<Records>),
}

pub(in crate::transport) struct Channel {
    stream: Arc<Stream>,
    pub(super) protection: Protection,
}

impl Channel {
    pub(super) fn new(stream: Arc<Stream>, protection: Protection) -> Channel {
        Channel { stream, protection }
    }

    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    pub fn is_encrypted(&self) -> bool {
        matches!(self.protection, Protection::Noise(_))
    }

    pub fn send(&mut self, message: &Message, patience: Patience<'_>) -> Result<()> {
        let (header, payload) = message.encode();
        match &mut self.protection {
            Protection::Codes { send, .. } => {
                let code = send.next(&header, &payload);
                let pieces = [&header[..], &payload[..], &code[..]].map(ByteSource::of);
                self.stream.send(&pieces, patience)
            }
            Protection::Noise(records) => records.send(&self.stream, &[&header[..], &payload].concat(), patience),
        }
    }

    pub fn receive(&mut self, patience: Patience<'_>) -> Result<Message> {
        let mut header = [0; HEADER];
        self.bytes(&mut header, patience)?;
        let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if len > MAX_PAYLOAD {
            bail!(Corrupt, "message of the peer: length: expected at most {MAX_PAYLOAD}, found {len}");
        }
        let mut payload = Vec::new();
        while payload.len() < len {
            let begin = payload.len();
            payload.resize(len.min(begin + GROW.max(begin)), 0);
            self.bytes(&mut payload[begin..], patience)?;
        }
        if let Protection::Codes { receive, .. } = &mut self.protection {
            let mut code = [0; CODE];
            self.stream.receive_exact(&mut code, patience)?;
            if receive.next(&header, &payload) != code {
                bail!(Corrupt, "message of the peer: its code does not match its bytes");
            }
        }
        Message::decode(&header, &payload)
    }

    fn bytes(&mut self, out: &mut [u8], patience: Patience<'_>) -> Result<()> {
        match &mut self.protection {
            Protection::Codes { .. } => self.stream.receive_exact(out, patience),
            Protection::Noise(records) => records.receive(&self.stream, out, patience),
        }
    }

    /// Sends block bytes, with a checksum if the connection is not encrypted. `sent` is called with the length of each piece.
    pub fn send_blocks(
        &mut self,
        blocks: &[ByteSource<'_>],
        mut sent: impl FnMut(usize),
        patience: Patience<'_>,
    ) -> Result<()> {
        match &mut self.protection {
            Protection::Codes { .. } => {
                let mut sum = 0;
                for group in groups(blocks) {
                    sum = group.iter().fold(sum, |sum, piece| piece.crc32(sum));
                    self.stream.send(&group, patience)?;
                    sent(group.iter().map(ByteSource::len).sum());
                }
                self.stream.send(&[ByteSource::of(&u32::to_le_bytes(sum))], patience)
            }
            Protection::Noise(records) => {
                let mut piece = vec![0; PIECE];
                for block in blocks {
                    for at in (0..block.len()).step_by(PIECE) {
                        let piece = &mut piece[..PIECE.min(block.len() - at)];
                        block.slice(at, piece.len()).read(piece);
                        records.send(&self.stream, piece, patience)?;
                        sent(piece.len());
                    }
                }
                Ok(())
            }
        }
    }

    /// Receives what `send_blocks` sent, straight into its place.
    pub fn receive_blocks(&mut self, blocks: &[ByteTarget<'_>], patience: Patience<'_>) -> Result<()> {
        match &mut self.protection {
            Protection::Codes { .. } => {
                let mut sum = 0;
                let mut left: Vec<ByteTarget<'_>> = blocks.to_vec();
                let mut first = 0;
                while first < left.len() {
                    let window = window(&left[first..]);
                    let mut n = self.stream.receive(&window, patience)?;
                    while n > 0 {
                        let here = n.min(left[first].len());
                        sum = left[first].slice(0, here).source().crc32(sum);
                        n -= here;
                        left[first] = left[first].slice(here, left[first].len() - here);
                        if left[first].is_empty() {
                            first += 1;
                        }
                    }
                }
                let mut theirs = [0; 4];
                self.stream.receive_exact(&mut theirs, patience)?;
                if u32::from_le_bytes(theirs) != sum {
                    bail!(Corrupt, "KV blocks of the peer: their checksum does not match their bytes");
                }
                Ok(())
            }
            Protection::Noise(records) => {
                let mut piece = vec![0; PIECE];
                for block in blocks {
                    for at in (0..block.len()).step_by(PIECE) {
                        let piece = &mut piece[..PIECE.min(block.len() - at)];
                        records.receive(&self.stream, piece, patience)?;
                        crate::sys::bytes::copy(ByteSource::of(piece), block.slice(at, piece.len()));
                    }
                }
                Ok(())
            }
        }
    }
}

/// Cuts blocks into groups of about [`PIECE`] bytes, each of which one call sends.
pub(super) fn groups<'a>(blocks: &[ByteSource<'a>]) -> Vec<Vec<ByteSource<'a>>> {
    let mut groups = Vec::new();
    let (mut group, mut size) = (Vec::new(), 0);
    for block in blocks {
        let mut at = 0;
        while at < block.len() {
            let n = (block.len() - at).min(PIECE - size);
            group.push(block.slice(at, n));
            (at, size) = (at + n, size + n);
            if size == PIECE {
                groups.push(std::mem::take(&mut group));
                size = 0;
            }
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

/// The first [`PIECE`] bytes of the targets that are left.
pub(super) fn window<'a>(left: &[ByteTarget<'a>]) -> Vec<ByteTarget<'a>> {
    let (mut window, mut size) = (Vec::new(), 0);
    for block in left {
        let n = block.len().min(PIECE - size);
        window.push(block.slice(0, n));
        size += n;
        if size == PIECE {
            break;
        }
    }
    window
}

//! Protection of a connection's bytes: message codes on trusted networks, Noise elsewhere.

use super::stream::{Patience, Stream};
use crate::bail;
use crate::error::{Error, Result, Status};
use crate::sys::bytes::{ByteSource, ByteTarget};
use snow::StatelessTransportState;

/// Bytes of a message code.
pub(super) const CODE: usize = 16;

/// One direction of a connection whose messages carry codes.
pub(super) struct Codes {
    key: [u8; 32],
    count: u64,
}

impl Codes {
    pub fn new(key: [u8; 32]) -> Codes {
        Codes { key, count: 0 }
    }

    /// The code of the next message. It covers the message's number, so none can be left out, repeated or moved.
    pub fn next(&mut self, header: &[u8], payload: &[u8]) -> [u8; CODE] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&self.count.to_le_bytes()).update(header).update(payload);
        self.count += 1;
        let mut code = [0; CODE];
        code.copy_from_slice(&hasher.finalize().as_bytes()[..CODE]);
        code
    }
}

/// Bytes of a record's tag, and the most plain ones in a record (Noise messages are at most 65,535 bytes).
const TAG: usize = 16;
const MOST: usize = 65_535 - TAG;
/// Bytes of ciphertext that are read ahead.
const AHEAD: usize = 256 << 10;

/// Both directions of an encrypted connection: records of a length (2) and a Noise transport message.
pub(super) struct Records {
    noise: StatelessTransportState,
    sent: u64,
    received: u64,
    /// Ciphertext in `[at, end)` has arrived and was not decrypted yet.
    ahead: Vec<u8>,
    at: usize,
    end: usize,
    /// Plain bytes from `plain_at` on were not asked for yet.
    plain: Vec<u8>,
    plain_at: usize,
    out: Vec<u8>,
}

impl Records {
    pub fn new(noise: StatelessTransportState) -> Records {
        Records {
            noise,
            sent: 0,
            received: 0,
            ahead: vec![0; AHEAD],
            at: 0,
            end: 0,
            plain: Vec::new(),
            plain_at: 0,
            out: Vec::new(),
        }
    }

    pub fn send(&mut self, stream: &Stream, data: &[u8], patience: Patience<'_>) -> Result<()> {
        self.out.clear();
        for piece in data.chunks(MOST) {
            let begin = self.out.len();
            self.out.extend_from_slice(&((piece.len() + TAG) as u16).to_le_bytes());
            self.out.resize(begin + 2 + piece.len() + TAG, 0);
            let wrote = self.noise.write_message(self.sent, piece, &mut self.out[begin + 2..]);
            wrote.map_err(|e| Error::new(Status::Internal, format!("encryption: {e}")))?;
            self.sent += 1;
            if self.out.len() >= AHEAD {
                stream.send(&[ByteSource::of(&self.out)], patience)?;
                self.out.clear();
            }
        }
        if self.out.is_empty() { Ok(()) } else { stream.send(&[ByteSource::of(&self.out)], patience) }
    }

    pub fn receive(&mut self, stream: &Stream, mut out: &mut [u8], patience: Patience<'_>) -> Result<()> {
        while !out.is_empty() {
            if self.plain_at == self.plain.len() {
                let record = self.record(stream, patience)?;
                let cipher = &self.ahead[record];
                let n = cipher.len() - TAG;
                let direct = n <= out.len();
                if !direct {
                    self.plain.resize(n, 0);
                    self.plain_at = 0;
                }
                let into = if direct { &mut out[..n] } else { &mut self.plain[..] };
                if self.noise.read_message(self.received, cipher, into).is_err() {
                    bail!(Corrupt, "the connection to the peer: a record that was not sealed by it");
                }
                self.received += 1;
                if direct {
                    out = &mut out[n..];
                }
                continue;
            }
            let n = out.len().min(self.plain.len() - self.plain_at);
            out[..n].copy_from_slice(&self.plain[self.plain_at..self.plain_at + n]);
            self.plain_at += n;
            out = &mut out[n..];
        }
        Ok(())
    }

    /// The range of the next record's ciphertext in `ahead`.
    fn record(&mut self, stream: &Stream, patience: Patience<'_>) -> Result<std::ops::Range<usize>> {
        self.fill(stream, 2, patience)?;
        let len = u16::from_le_bytes([self.ahead[self.at], self.ahead[self.at + 1]]) as usize;
        if len < TAG {
            bail!(Corrupt, "the connection to the peer: a record of {len} bytes");
        }
        self.fill(stream, 2 + len, patience)?;
        let begin = self.at + 2;
        self.at = begin + len;
        Ok(begin..begin + len)
    }

    /// Receives until `n` bytes of ciphertext are in `ahead`.
    fn fill(&mut self, stream: &Stream, n: usize, patience: Patience<'_>) -> Result<()> {
        if self.ahead.len() - self.at < n || self.at == self.end {
            self.ahead.copy_within(self.at..self.end, 0);
            (self.at, self.end) = (0, self.end - self.at);
        }
        while self.end - self.at < n {
            self.end += stream.receive(&[ByteTarget::of(&mut self.ahead[self.end..])], patience)?;
        }
        Ok(())
    }
}

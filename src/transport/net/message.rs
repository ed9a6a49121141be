//! Messages between two caches. The importer asks, and the exporter answers each question once; docs/kv-transport.md
//! documents every byte.

use crate::backend::BlockId;
use crate::bail;
use crate::error::{Error, Result, Status};
use crate::kv::format::{Reader, Writer};

/// Bytes of a header: length of the payload (4), kind (2), zero (2).
pub(in crate::transport) const HEADER: usize = 8;
/// The most bytes of an error's text.
const MAX_TEXT: usize = 1024;

#[derive(Clone, Debug, PartialEq)]
pub(in crate::transport) enum Message {
    // ---- questions ----
    /// Asks for the exporter's address. Answer: ADDRESS.
    Describe,
    /// Opens a transfer of a handle. Answer: OPENED.
    Open {
        epoch: [u8; 16],
        handle: u64,
        digest: [u8; 32],
    },
    /// Asks for the blocks of a transfer beyond the first `have`, as soon as there are any. Answer: BLOCKS, after a while
    /// also without any.
    More {
        hold: u64,
        have: u32,
    },
    /// Asks for the bytes of blocks of a transfer. Answer: DATA, then the bytes.
    Read {
        hold: u64,
        first: u32,
        count: u32,
    },
    /// Reports that all blocks have arrived and ends the handle. Answer: DONE.
    Commit {
        hold: u64,
    },
    /// Ends a transfer, however far it is. Answer: DONE.
    Close {
        hold: u64,
    },
    /// Reports that the importer is still there. Answer: DONE.
    Ping,
    /// Opens a self-test: a transfer of up to `blocks` blocks with a known pattern. Answer: OPENED; MORE and READ follow as
    /// with other transfers.
    Test {
        blocks: u32,
        seed: [u8; 32],
    },
    /// Asks for the memory of the pool, on the same machine. Answer: SHARED, then a byte with the descriptor.
    Share,
    /// Asks for the exporter's NIXL agent. Answer: NIXL AGENT.
    Nixl,

    // ---- answers ----
    Address(Vec<u8>),
    Opened {
        hold: u64,
    },
    /// Numbers of blocks. `sequence`, encoded as in an image, comes once all blocks are there; never in a self-test.
    Blocks {
        first: u32,
        ids: Vec<BlockId>,
        sequence: Option<Vec<u8>>,
    },
    Data {
        bytes: u64,
    },
    Done,
    /// The pool's memory. `device` is the UUID of the CUDA device that it lies on; None for host memory.
    Shared {
        len: u64,
        block_bytes: u64,
        device: Option<[u8; 16]>,
    },
    NixlAgent {
        base: u64,
        metadata: Vec<u8>,
    },
    Failed(Error),
}

impl Message {
    pub fn kind(&self) -> u16 {
        match self {
            Message::Describe => 1,
            Message::Open { .. } => 2,
            Message::More { .. } => 3,
            Message::Read { .. } => 4,
            Message::Commit { .. } => 5,
            Message::Close { .. } => 6,
            Message::Ping => 7,
            Message::Test { .. } => 8,
            Message::Share => 9,
            Message::Nixl => 10,
            Message::Address(_) => 101,
            Message::Opened { .. } => 102,
            Message::Blocks { .. } => 103,
            Message::Data { .. } => 104,
            Message::Done => 105,
            Message::Shared { .. } => 106,
            Message::NixlAgent { .. } => 107,
            Message::Failed(_) => 108,
        }
    }

    /// Encodes header and payload.
    pub fn encode(&self) -> ([u8; HEADER], Vec<u8>) {
        let mut w = Writer::default();
        match self {
            Message::Describe | Message::Ping | Message::Share | Message::Nixl | Message::Done => {}
            Message::Open { epoch, handle, digest } => _ = w.bytes(epoch).u64(*handle).bytes(digest),
            Message::More { hold, have } => _ = w.u64(*hold).u32(*have),
            Message::Read { hold, first, count } => _ = w.u64(*hold).u32(*first).u32(*count),
            Message::Commit { hold } | Message::Close { hold } | Message::Opened { hold } => _ = w.u64(*hold),
            Message::Test { blocks, seed } => _ = w.u32(*blocks).bytes(seed),
            Message::Address(address) => _ = w.bytes(address),
            Message::Blocks { first, ids, sequence } => {
                w.u32(*first).u32(ids.len() as u32).u32(u32::from(sequence.is_some())).u32s(ids);
                w.bytes(sequence.as_deref().unwrap_or_default());
            }
            Message::Data { bytes } => _ = w.u64(*bytes),
            Message::Shared { len, block_bytes, device } => {
                w.u64(*len).u64(*block_bytes).bytes(device.as_ref().map_or(&[], |uuid| &uuid[..]));
            }
            Message::NixlAgent { base, metadata } => _ = w.u64(*base).bytes(metadata),
            Message::Failed(error) => {
                let end = (0..=error.message.len().min(MAX_TEXT)).rev().find(|&i| error.message.is_char_boundary(i));
                let text = &error.message.as_bytes()[..end.unwrap_or(0)];
                w.u32(error.status as i32 as u32).bytes(text);
            }
        }
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&(w.0.len() as u32).to_le_bytes());
        header[4..6].copy_from_slice(&self.kind().to_le_bytes());
        (header, w.0)
    }

    pub fn decode(header: &[u8; HEADER], payload: &[u8]) -> Result<Message> {
        let kind = u16::from_le_bytes([header[4], header[5]]);
        let mut r = Reader::new("message of the peer", payload);
        let message = match kind {
            1 => Message::Describe,
            2 => Message::Open { epoch: r.array("epoch")?, handle: r.u64("handle")?, digest: r.array("digest")? },
            3 => Message::More { hold: r.u64("hold")?, have: r.u32("blocks")? },
            4 => Message::Read { hold: r.u64("hold")?, first: r.u32("first block")?, count: r.u32("block count")? },
            5 => Message::Commit { hold: r.u64("hold")? },
            6 => Message::Close { hold: r.u64("hold")? },
            7 => Message::Ping,
            8 => Message::Test { blocks: r.u32("block count")?, seed: r.array("seed")? },
            9 => Message::Share,
            10 => Message::Nixl,
            101 => Message::Address(r.bytes(r.left(), "address")?.to_vec()),
            102 => Message::Opened { hold: r.u64("hold")? },
            103 => {
                let (first, n, whole) = (r.u32("first block")?, r.u32("block count")?, r.u32("flags")?);
                let ids = r.u32s(n, "blocks")?;
                let sequence = (whole == 1).then(|| r.bytes(r.left(), "sequence").map(<[u8]>::to_vec)).transpose()?;
                if whole > 1 {
                    bail!(Corrupt, "message of the peer: flags: expected 0 or 1, found {whole}");
                }
                Message::Blocks { first, ids, sequence }
            }
            104 => Message::Data { bytes: r.u64("length")? },
            105 => Message::Done,
            106 => {
                let (len, block_bytes) = (r.u64("length")?, r.u64("block length")?);
                let device = (r.left() > 0).then(|| r.array("device")).transpose()?;
                Message::Shared { len, block_bytes, device }
            }
            107 => Message::NixlAgent { base: r.u64("base")?, metadata: r.bytes(r.left(), "metadata")?.to_vec() },
            108 => {
                let status = status(r.u32("status")? as i32);
                let text = r.bytes(r.left().min(MAX_TEXT), "text")?;
                Message::Failed(Error::new(status, String::from_utf8_lossy(text)))
            }
            _ => bail!(Incompatible, "message of the peer: kind: {kind} is none that this library knows"),
        };
        r.end()?;
        Ok(message)
    }
}

/// Reads a status that a peer wrote; one of a later version becomes PEER.
fn status(code: i32) -> Status {
    use Status::*;
    const ALL: [Status; 17] = [
        InvalidArgument,
        NotFound,
        Unsupported,
        WouldBlock,
        OutOfMemory,
        Io,
        Incompatible,
        Permission,
        Expired,
        Corrupt,
        Cancelled,
        Timeout,
        Device,
        Peer,
        Shutdown,
        Internal,
        PrefillElsewhere,
    ];
    ALL.into_iter().find(|status| *status as i32 == code).unwrap_or(Peer)
}

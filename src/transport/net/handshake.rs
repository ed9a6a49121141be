//! The handshake: both sides agree on a version, then prove that they know the secret.

use super::channel::{Channel, Protection};
use super::cipher::{Codes, Records};
use super::stream::{Patience, Stream};
use super::{NEWEST, OLDEST};
use crate::bail;
use crate::error::{Error, Result, Status};
use crate::kv::format::{Reader, TransportKeys, Writer};
use crate::sys::bytes::ByteSource;
use crate::sys::random_bytes;
use snow::{Builder, HandshakeState};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The text of the error where the server closes a connection before it has said anything.
const UNGREETED: &str = "the peer closed the connection before it said anything";

const MAGIC: &[u8; 8] = b"CLVKVNET";
const HELLO: usize = 48;
const PROOF: usize = 32;
/// Curve25519 keys in both directions, the secret as pre-shared key in the first message.
const NOISE: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
const NOISE_MESSAGE: usize = 48;

const PLAIN: u16 = 0;
const ENCRYPTED: u16 = 1;

/// A server's verdict on a client's greeting.
const WELCOME: u16 = 0;
const OTHER_VERSION: u16 = 1;
const MUST_ENCRYPT: u16 = 2;

struct Hello {
    oldest: u16,
    newest: u16,
    /// From a client: PLAIN or ENCRYPTED. From a server: the version to speak.
    mode: u16,
    /// From a server: WELCOME, or the reason for a refusal. From a client: 0.
    verdict: u16,
}

impl Hello {
    fn encode(&self, nonce: &[u8; 32]) -> Vec<u8> {
        let mut w = Writer::default();
        w.bytes(MAGIC).u16(self.oldest).u16(self.newest).u16(self.mode).u16(self.verdict).bytes(nonce);
        w.0
    }

    fn decode(data: &[u8]) -> Result<Hello> {
        let mut r = Reader::new("greeting of the peer", data);
        let magic = r.bytes(8, "magic")?;
        if magic != MAGIC {
            bail!(
                Corrupt,
                "greeting of the peer: magic: expected CLVKVNET, found {:?}",
                magic.escape_ascii().to_string()
            );
        }
        Ok(Hello {
            oldest: r.u16("oldest")?,
            newest: r.u16("newest")?,
            mode: r.u16("mode")?,
            verdict: r.u16("verdict")?,
        })
    }
}

fn keyed(keys: &TransportKeys, what: &str, transcript: &blake3::Hash) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(&keys.auth);
    hasher.update(what.as_bytes()).update(transcript.as_bytes());
    *hasher.finalize().as_bytes()
}

/// Compares in time that does not depend on where the two differ.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    blake3::Hash::from_bytes(*a) == blake3::Hash::from_bytes(*b)
}

fn wrong_secret<T>() -> Result<T> {
    bail!(Permission, "the peer does not have this cache's secret")
}

fn noise(keys: &TransportKeys, transcript: &blake3::Hash, client: bool) -> Result<HandshakeState> {
    let build = || {
        let builder = Builder::new(NOISE.parse()?).psk(0, &keys.psk)?.prologue(transcript.as_bytes())?;
        if client { builder.build_initiator() } else { builder.build_responder() }
    };
    build().map_err(|e| internal(&e))
}

fn internal(error: &snow::Error) -> Error {
    Error::new(Status::Internal, format!("encryption: {error}"))
}

/// The client's side of the handshake. `patience` is called with the time since its beginning.
pub(in crate::transport) fn connect(
    stream: Arc<Stream>,
    keys: &TransportKeys,
    encrypt: bool,
    patience: Patience<'_>,
) -> Result<Channel> {
    // The whole duration counts, and nothing that arrives: a peer that sends a byte now and then would keep this busy for
    // ever.
    let begun = Instant::now();
    let patience: Patience<'_> = &|_: Duration| patience.wait(begun.elapsed());
    let mode = if encrypt { ENCRYPTED } else { PLAIN };
    let hello = Hello { oldest: OLDEST, newest: NEWEST, mode, verdict: 0 }.encode(&random_bytes()?);
    let mut answer = [0; HELLO];
    let asked = stream.send(&[ByteSource::of(&hello)], patience);
    asked.and_then(|()| stream.receive_exact(&mut answer, patience)).map_err(|error| match error.status {
        Status::Peer if stream.is_closed() && answer == [0; HELLO] => Error::new(Status::Peer, UNGREETED),
        _ => error,
    })?;
    let peer = Hello::decode(&answer)?;
    match peer.verdict {
        WELCOME if (OLDEST..=NEWEST).contains(&peer.mode) => {}
        MUST_ENCRYPT => bail!(Permission, "the peer accepts encrypted connections only"),
        _ => {
            let (oldest, newest) = (peer.oldest, peer.newest);
            bail!(
                Incompatible,
                "transport version: expected {OLDEST} to {NEWEST}, the peer speaks {oldest} to {newest}"
            )
        }
    }
    let transcript = blake3::hash(&[&hello[..], &answer[..]].concat());
    if encrypt {
        let mut state = noise(keys, &transcript, true)?;
        let mut message = [0; NOISE_MESSAGE];
        state.write_message(&[], &mut message).map_err(|e| internal(&e))?;
        stream.send(&[ByteSource::of(&message)], patience)?;
        stream.receive_exact(&mut message, patience)?;
        if state.read_message(&message, &mut []).is_err() {
            return wrong_secret();
        }
        let records = Records::new(state.into_stateless_transport_mode().map_err(|e| internal(&e))?);
        return Ok(Channel::new(stream, Protection::Noise(Box::new(records))));
    }
    let mut proof = [0; PROOF];
    stream.receive_exact(&mut proof, patience)?;
    if !same(&proof, &keyed(keys, "server", &transcript)) {
        return wrong_secret();
    }
    stream.send(&[ByteSource::of(&keyed(keys, "client", &transcript))], patience)?;
    let (up, down) = (keyed(keys, "client messages", &transcript), keyed(keys, "server messages", &transcript));
    Ok(Channel::new(stream, Protection::Codes { send: Codes::new(up), receive: Codes::new(down) }))
}

/// The server's side of the handshake. With `must_encrypt`, plain connections are refused. `patience` is called with the
/// time since its beginning.
pub(in crate::transport) fn accept(
    stream: Arc<Stream>,
    keys: &TransportKeys,
    must_encrypt: bool,
    patience: Patience<'_>,
) -> Result<Channel> {
    let begun = Instant::now();
    let patience: Patience<'_> = &|_: Duration| patience.wait(begun.elapsed());
    let mut hello = [0; HELLO];
    stream.receive_exact(&mut hello, patience)?;
    let peer = Hello::decode(&hello)?;
    let version = NEWEST.min(peer.newest);
    let verdict = if peer.oldest > NEWEST || peer.newest < OLDEST || peer.oldest > peer.newest {
        OTHER_VERSION
    } else if must_encrypt && peer.mode != ENCRYPTED {
        MUST_ENCRYPT
    } else {
        WELCOME
    };
    let answer = Hello { oldest: OLDEST, newest: NEWEST, mode: version, verdict }.encode(&random_bytes()?);
    let transcript = blake3::hash(&[&hello[..], &answer[..]].concat());
    if verdict != WELCOME {
        stream.send(&[ByteSource::of(&answer)], patience)?;
        bail!(Incompatible, "a peer of versions {} to {}, mode {}, was refused", peer.oldest, peer.newest, peer.mode);
    }
    if peer.mode == ENCRYPTED {
        stream.send(&[ByteSource::of(&answer)], patience)?;
        let mut state = noise(keys, &transcript, false)?;
        let mut message = [0; NOISE_MESSAGE];
        stream.receive_exact(&mut message, patience)?;
        if state.read_message(&message, &mut []).is_err() {
            // Zeros, which no handshake contains, tell the client that the secret is wrong.
            stream.send(&[ByteSource::of(&[0; NOISE_MESSAGE])], patience)?;
            return wrong_secret();
        }
        state.write_message(&[], &mut message).map_err(|e| internal(&e))?;
        stream.send(&[ByteSource::of(&message)], patience)?;
        let records = Records::new(state.into_stateless_transport_mode().map_err(|e| internal(&e))?);
        return Ok(Channel::new(stream, Protection::Noise(Box::new(records))));
    }
    let proof = keyed(keys, "server", &transcript);
    stream.send(&[ByteSource::of(&answer), ByteSource::of(&proof)], patience)?;
    let mut theirs = [0; PROOF];
    stream.receive_exact(&mut theirs, patience)?;
    if !same(&theirs, &keyed(keys, "client", &transcript)) {
        return wrong_secret();
    }
    let (up, down) = (keyed(keys, "client messages", &transcript), keyed(keys, "server messages", &transcript));
    Ok(Channel::new(stream, Protection::Codes { send: Codes::new(down), receive: Codes::new(up) }))
}

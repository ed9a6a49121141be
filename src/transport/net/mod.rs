//! Connections between caches in different processes: sockets, who is at the other end, and framed messages. What the
//! messages say is in [`message`]; docs/kv-transport.md has every byte.

pub(super) mod channel;
mod cipher;
mod handshake;
pub(super) mod message;
pub(super) mod stream;
#[cfg(test)]
mod tests;

pub(super) use channel::Channel;
pub(super) use handshake::{UNGREETED, accept, connect};
pub(super) use stream::{Patience, Stream};

/// The protocol versions that this library speaks.
const OLDEST: u16 = 1;
const NEWEST: u16 = 1;

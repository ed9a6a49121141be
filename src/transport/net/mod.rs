//! Connections between caches in different processes: sockets, the handshake, protection, and framed messages.
//! [`message`] defines the messages; docs/kv-transport.md documents every byte. Nothing here knows caches or blocks.

pub(super) mod channel;
mod cipher;
mod handshake;
pub(super) mod message;
pub(super) mod stream;
#[cfg(test)]
mod tests;

pub(super) use channel::Channel;
pub(super) use handshake::{accept, connect};
pub(super) use stream::{Patience, Stream, Waiter};

/// The protocol versions that this library speaks.
const OLDEST: u16 = 1;
const NEWEST: u16 = 1;

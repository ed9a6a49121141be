//! Targets for the messages that two caches exchange over a connection.

use super::{LITTLE, Target, unsealed};
use crate::transport::fuzzing::{greet, message, messages};

/// Target for messages of a peer that has authenticated itself.
pub const MESSAGE: Target = Target {
    name: "net_message",
    read: message,
    seeds: messages,
    reseal: |data| {
        // The header contains the length of the payload.
        if let Some((header, payload)) = data.split_first_chunk_mut::<8>() {
            header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        }
    },
    words: &[&[0xff; 4], &[1, 0, 0, 0], &[103, 0], &[108, 0]],
    memory: LITTLE,
    cost: 1,
};

/// Target for messages of a client that has not authenticated itself.
pub const GREETING: Target = Target {
    name: "net_greeting",
    read: greet,
    seeds: || vec![hello(0), hello(1)],
    reseal: unsealed,
    words: &[b"CLVKVNET", &[0xff; 2], &[2, 0]],
    memory: LITTLE,
    cost: 1,
};

fn hello(mode: u8) -> Vec<u8> {
    let mut hello = b"CLVKVNET".to_vec();
    hello.extend_from_slice(&[1, 0, 1, 0, mode, 0, 0, 0]);
    hello.extend_from_slice(&[7; 32]);
    hello
}

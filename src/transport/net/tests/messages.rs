//! Messages and their bytes.

use super::*;

#[test]
fn messages_come_back_and_no_cut_one_is_taken() {
    let error = crate::error!(Expired, "KV handle 0x1: its lease is over");
    let messages = [
        Message::Describe,
        Message::Open { epoch: [1; 16], handle: 2, digest: [3; 32] },
        Message::More { hold: 1, have: 2 },
        Message::Read { hold: 1, first: 2, count: 3 },
        Message::Commit { hold: 9 },
        Message::Close { hold: 9 },
        Message::Ping,
        Message::Test { blocks: 1, seed: [7; 32] },
        Message::Share,
        Message::Nixl,
        Message::Address(vec![1, 2, 3]),
        Message::Opened { hold: 4 },
        Message::Blocks { first: 1, ids: vec![5, 6], sequence: None },
        Message::Blocks { first: 0, ids: vec![], sequence: Some(vec![1, 2]) },
        Message::Data { bytes: 7 },
        Message::Done,
        Message::Shared { len: 8, block_bytes: 4, device: None },
        Message::Shared { len: 8, block_bytes: 4, device: Some([9; 16]) },
        Message::NixlAgent { base: 3, metadata: vec![4] },
        Message::Failed(error),
    ];
    let mut kinds = std::collections::HashSet::new();
    for message in &messages {
        let (header, payload) = message.encode();
        kinds.insert(message.kind());
        assert_eq!(Message::decode(&header, &payload).unwrap(), *message);
        let mut longer = payload.clone();
        longer.push(0);
        let open_ended = matches!(message, Message::Address(_) | Message::NixlAgent { .. } | Message::Failed(_))
            || matches!(message, Message::Blocks { sequence: Some(_), .. });
        assert_eq!(Message::decode(&header, &longer).is_ok(), open_ended, "{message:?}");
    }
    assert_eq!(kinds.len(), 18);
}

#[test]
fn a_count_allocates_nothing_that_its_bytes_do_not_fill() {
    let (header, mut payload) = Message::Blocks { first: 0, ids: vec![1], sequence: None }.encode();
    payload[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = Message::decode(&header, &payload).unwrap_err();
    assert!(error.message.contains("blocks: needs 17179869180 bytes, 4 are left"), "{error}");
}

//! Connections whose bytes are changed on the way, and how blocks are cut into pieces.

mod messages;

use super::channel::{Protection, groups, window};
use super::cipher::Codes;
use super::message::Message;
use super::*;
use crate::error::{Result, Status};
use crate::kv::format::TransportKeys;
use crate::sys::bytes::{ByteSource, ByteTarget};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

const KEYS: TransportKeys = TransportKeys { auth: [1; 32], psk: [2; 32] };

fn patience(silent: Duration) -> Result<()> {
    if silent > Duration::from_secs(5) {
        crate::bail!(Timeout, "for ever");
    }
    Ok(())
}

fn plain(socket: UnixStream) -> Channel {
    let protection = Protection::Codes { send: Codes::new([3; 32]), receive: Codes::new([3; 32]) };
    Channel::new(Arc::new(Stream::unix(socket).unwrap()), protection)
}

fn messages() -> [Message; 2] {
    [
        Message::Blocks { first: 1, ids: vec![5, 6, 7], sequence: Some(vec![9; 40]) },
        Message::Read { hold: 77, first: 3, count: 2 },
    ]
}

fn blocks() -> [Vec<u8>; 2] {
    [(0..200).map(|i| i as u8).collect(), vec![0xA5; 111]]
}

fn say(channel: &mut Channel) {
    let [first, second] = messages();
    channel.send(&first, &patience).unwrap();
    let blocks = blocks();
    channel.send_blocks(&[ByteSource::of(&blocks[0]), ByteSource::of(&blocks[1])], |_| (), &patience).unwrap();
    channel.send(&second, &patience).unwrap();
}

/// How many of the three things said were heard, each as it was said.
fn hear(channel: &mut Channel) -> (usize, Option<Status>) {
    let [first, second] = messages();
    let mut heard = 0;
    let mut listen = || -> Result<()> {
        assert_eq!(channel.receive(&patience)?, first);
        heard += 1;
        let mut room = blocks().map(|block| vec![0; block.len()]);
        let [a, b] = &mut room;
        channel.receive_blocks(&[ByteTarget::of(a), ByteTarget::of(b)], &patience)?;
        assert_eq!(room, blocks());
        heard += 1;
        assert_eq!(channel.receive(&patience)?, second);
        heard += 1;
        Ok(())
    };
    let end = listen().err().map(|error| error.status);
    (heard, end)
}

/// Bytes as they went over the wire, heard by somebody else.
fn replay(wire: &[u8], receiver: impl FnOnce(UnixStream) -> Channel) -> (usize, Option<Status>) {
    let (mut a, b) = UnixStream::pair().unwrap();
    let mut channel = receiver(b);
    a.write_all(wire).unwrap();
    a.shutdown(Shutdown::Write).unwrap();
    hear(&mut channel)
}

#[test]
fn no_byte_of_a_plain_connection_can_change() {
    let (a, mut b) = UnixStream::pair().unwrap();
    let mut sender = plain(a);
    say(&mut sender);
    drop(sender);
    let mut wire = Vec::new();
    b.read_to_end(&mut wire).unwrap();
    assert_eq!(replay(&wire, plain), (3, None));
    for at in 0..wire.len() {
        let mut bad = wire.clone();
        bad[at] ^= 1 << (at % 8);
        let (heard, end) = replay(&bad, plain);
        assert!(heard < 3 && matches!(end, Some(Status::Corrupt | Status::Peer)), "byte {at}: {heard}, {end:?}");
        let (heard, end) = replay(&wire[..at], plain);
        assert!(heard < 3 && end == Some(Status::Peer), "cut at {at}: {heard}, {end:?}");
        let mut twice = wire[..at].to_vec();
        twice.extend_from_slice(&wire[at.saturating_sub(9)..]);
        let (heard, end) = replay(&twice, plain);
        let whole = at == 0;
        assert!(whole || heard < 3 && end.is_some(), "bytes before {at} twice: {heard}, {end:?}");
    }
    // A message that is left out, said twice, or moved.
    let [first, second] = messages();
    for order in [vec![&second], vec![&first, &first], vec![&second, &first]] {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut sender, mut receiver) = (plain(a), plain(b));
        let mut codes = Codes::new([3; 32]);
        let encoded = [&first, &second].map(|message| {
            let (header, payload) = message.encode();
            [&header[..], &payload, &codes.next(&header, &payload)].concat()
        });
        for message in &order {
            let bytes = &encoded[usize::from(*message == &second)];
            sender.stream().send(&[ByteSource::of(bytes)], &patience).unwrap();
        }
        let heard: Vec<_> = order.iter().map(|_| receiver.receive(&patience)).collect();
        assert_eq!(heard.last().unwrap().as_ref().unwrap_err().status, Status::Corrupt);
        drop(sender.send(&first, &patience));
    }
}

/// Both ends of an encrypted connection.
fn encrypted() -> (Channel, Channel) {
    let (a, b) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| accept(Arc::new(Stream::unix(b).unwrap()), &KEYS, true, &patience).unwrap());
        let client = connect(Arc::new(Stream::unix(a).unwrap()), &KEYS, true, &patience).unwrap();
        (client, server.join().unwrap())
    })
}

#[test]
fn no_byte_of_an_encrypted_connection_can_change() {
    let wire_of = |client: &mut Channel, server: &Channel| {
        say(client);
        client.stream().shutdown();
        let mut wire = Vec::new();
        server.stream().unix_socket().unwrap().read_to_end(&mut wire).unwrap();
        wire
    };
    let (mut client, server) = encrypted();
    let len = wire_of(&mut client, &server).len();
    for at in (0..len).step_by(3) {
        for cut in [false, true] {
            let (mut client, server) = encrypted();
            let mut wire = wire_of(&mut client, &server);
            assert_eq!(wire.len(), len);
            if cut {
                wire.truncate(at);
            } else {
                wire[at] ^= 1 << (at % 8);
            }
            let (heard, end) = replay(&wire, |socket| {
                let Channel { protection, .. } = server;
                Channel::new(Arc::new(Stream::unix(socket).unwrap()), protection)
            });
            assert!(heard < 3 && matches!(end, Some(Status::Corrupt | Status::Peer)), "byte {at}: {heard}, {end:?}");
        }
    }
}

#[test]
fn records_of_every_size_come_in_pieces_of_any() {
    let (mut client, mut server) = encrypted();
    for len in [1, 15, 65_518, 65_519, 65_520, 131_038, 700_001] {
        let data: Vec<u8> = (0..len).map(|i| (i * 7 + i / 256) as u8).collect();
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| client.send_blocks(&[ByteSource::of(&data)], |_| (), &patience));
            let mut got = vec![0; len];
            let cut = len / 3;
            let (first, rest) = got.split_at_mut(cut);
            server.receive_blocks(&[ByteTarget::of(first), ByteTarget::of(rest)], &patience).unwrap();
            sent.join().unwrap().unwrap();
            assert!(got == data, "{len} bytes");
        });
        client.send(&Message::Ping, &patience).unwrap();
        assert_eq!(server.receive(&patience).unwrap(), Message::Ping);
    }
}

#[test]
fn who_has_another_secret_learns_so_and_a_dead_server_is_not_that() {
    let other = TransportKeys { auth: [8; 32], psk: [9; 32] };
    for encrypt in [false, true] {
        let (a, b) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let server = scope.spawn(|| accept(Arc::new(Stream::unix(b).unwrap()), &other, false, &patience).err());
            let client = connect(Arc::new(Stream::unix(a).unwrap()), &KEYS, encrypt, &patience);
            assert_eq!(client.err().unwrap().status, Status::Permission);
            assert!(server.join().unwrap().is_some());
        });
        // It ends after its greeting.
        let (a, mut b) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut hello = [0; 48];
                b.read_exact(&mut hello).unwrap();
                hello[12..16].copy_from_slice(&[1, 0, 0, 0]);
                b.write_all(&hello).unwrap();
                b.shutdown(Shutdown::Write).unwrap();
                let _ = b.read_to_end(&mut Vec::new());
            });
            let client = connect(Arc::new(Stream::unix(a).unwrap()), &KEYS, encrypt, &patience);
            assert_eq!(client.err().unwrap().status, Status::Peer, "encrypted: {encrypt}");
        });
    }
}

#[test]
fn blocks_are_cut_into_pieces_that_are_all_of_them() {
    const PIECE: usize = 256 << 10;
    for sizes in [vec![1], vec![PIECE], vec![PIECE + 1], vec![PIECE - 1, 2, 3 * PIECE], vec![20_480; 40], vec![]] {
        let mut data: Vec<Vec<u8>> = sizes.iter().map(|&n| vec![7; n]).collect();
        let sources: Vec<_> = data.iter().map(|block| ByteSource::of(block)).collect();
        let ends = |source: &ByteSource<'_>| (source.address(), source.address() + source.len());
        let groups = groups(&sources);
        let total = |group: &Vec<ByteSource<'_>>| group.iter().map(ByteSource::len).sum::<usize>();
        assert!(groups.iter().rev().skip(1).all(|group| total(group) == PIECE));
        assert!(groups.iter().all(|group| (1..=PIECE).contains(&total(group))));
        // Next to each other, they are the blocks again.
        let mut joined: Vec<(usize, usize)> = Vec::new();
        for (begin, end) in groups.iter().flatten().map(ends) {
            match joined.last_mut() {
                Some(last) if last.1 == begin => last.1 = end,
                _ => joined.push((begin, end)),
            }
        }
        assert_eq!(joined.iter().map(|(a, b)| b - a).sum::<usize>(), sizes.iter().sum::<usize>());
        let targets: Vec<_> = data.iter_mut().map(|block| ByteTarget::of(block)).collect();
        let window = window(&targets);
        let expected = sizes.iter().sum::<usize>().min(PIECE);
        assert_eq!(window.iter().map(ByteTarget::len).sum::<usize>(), expected);
        assert!(window.iter().zip(&targets).all(|(piece, block)| piece.address() == block.address()));
    }
}

//! Peers that know the secret and mean harm, or are broken.

use super::sockets::{BLOCKS, LARGE, large};
use super::*;
use crate::backend::{BlockId, DeviceMemory};
use crate::kv::format::Endpoint;
use crate::sys::bytes::{ByteSource, ByteTarget};
use crate::transport::Encryption;
use crate::transport::client::{DataPlane, Peer, Peers, RemoteTransfer};
use crate::transport::net::channel::Channel;
use crate::transport::net::message::Message;
use crate::transport::net::{Stream, accept};
use crate::transport::source::{Destination, TransferSource, Want};
use std::net::TcpListener;
use std::time::Instant;

const TIMEOUT: Duration = Duration::from_millis(200);
const PATIENT: Duration = Duration::from_secs(100);

fn serving(cache: &Arc<Cache>, peer_timeout: Duration) -> (Arc<Node>, Endpoint) {
    let node = Node::new(cache, NodeConfig { serve: false, peer_timeout }).unwrap();
    let port = node.listen("127.0.0.1:0", None, Encryption::Never).unwrap();
    (node, Endpoint::Tcp { address: ([127, 0, 0, 1], port).into(), encrypted: false })
}

/// A connection that has proved itself, and asks what it likes.
struct Hostile {
    peers: Peers,
    peer: Arc<Peer>,
    channel: Channel,
}

impl Hostile {
    fn new(cache: &Arc<Cache>, endpoint: &Endpoint) -> Hostile {
        let peers = Peers::new(cache.clone(), PATIENT);
        let peer = peers.at(endpoint);
        let channel = peer.connection(peers.question(&|| Ok(()))).unwrap();
        Hostile { peers, peer, channel }
    }

    fn ask(&mut self, message: &Message) -> Result<Message> {
        self.peer.exchange(&mut self.channel, message, self.peers.question(&|| Ok(())))
    }
}

#[test]
fn self_tests_that_never_end_take_a_part_of_the_pool_and_for_a_while() {
    let cache = large();
    let (_node, endpoint) = serving(&cache, TIMEOUT);
    let mut all: Vec<Hostile> = (0..12).map(|_| Hostile::new(&cache, &endpoint)).collect();
    let begun = Instant::now();
    for hostile in &mut all {
        let _ = hostile.ask(&Message::Test { blocks: u32::MAX, seed: [1; 32] });
    }
    let held = sound(&cache).by_transfers;
    assert!((1..=(BLOCKS + 8) / 8).contains(&held), "{held} blocks of {}", BLOCKS + 8);
    // Signs of life do not keep them.
    while sound(&cache).by_transfers > 0 {
        all.iter_mut().for_each(|hostile| _ = hostile.ask(&Message::Ping));
        assert!(begun.elapsed() < PATIENT, "self-tests hold blocks still");
    }
    assert!(begun.elapsed() >= TIMEOUT, "over at once");
    // Others can pair.
    let other = Node::new(&large(), NodeConfig { serve: false, peer_timeout: PATIENT }).unwrap();
    let report = other.pair(&_node.address(), Some(transport::Transport::Tcp));
    assert!(report.error.is_none(), "{report:?}");
}

#[test]
fn questions_that_ask_for_too_much_or_are_none_are_refused_briefly() {
    let cache = large();
    let (_node, endpoint) = serving(&cache, PATIENT);
    let mut hostile = Hostile::new(&cache, &endpoint);
    let answer = hostile.ask(&Message::Read { hold: 1, first: 0, count: u32::MAX }).unwrap();
    let Message::Failed(error) = answer else { panic!("{answer:?}") };
    assert_eq!(error.status, Status::InvalidArgument, "{error}");
    // The largest message there is. What it says is not repeated.
    let answer = hostile.ask(&Message::Address(vec![0x41; 32 << 20])).unwrap();
    let Message::Failed(error) = answer else { panic!("not a refusal") };
    assert_eq!(
        (error.status, error.message.as_str()),
        (Status::Corrupt, "message of the peer: kind 101 is not a question")
    );
    assert_eq!(hostile.ask(&Message::Ping).unwrap(), Message::Done);
}

/// An answer, and the number of blocks that follow it.
type Answer = (Message, usize);

/// Begins a transfer from an exporter that proves itself and then answers as it likes, and runs `test` with it.
/// The exporter accepts one connection.
fn against(mut answer: impl FnMut(Message) -> Answer + Send, test: impl FnOnce(&mut RemoteTransfer)) {
    let cache = large();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::Tcp { address: listener.local_addr().unwrap(), encrypted: false };
    let (keys, block) = (cache.transport_keys(), vec![0; LARGE.block_bytes()]);
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let patience = |_: Duration| Ok(());
            let stream = Arc::new(Stream::tcp(socket, PATIENT).unwrap());
            let mut channel = accept(stream, &keys, false, &patience).unwrap();
            while let Ok(question) = channel.receive(&patience) {
                let (answer, blocks) = answer(question);
                let blocks = vec![ByteSource::of(&block); blocks];
                if channel.send(&answer, &patience).is_err()
                    || !blocks.is_empty() && channel.send_blocks(&blocks, |_| (), &patience).is_err()
                {
                    break;
                }
            }
        });
        let peers = Peers::new(cache.clone(), PATIENT);
        let peer = peers.at(&endpoint);
        let open = Message::Test { blocks: 4, seed: [1; 32] };
        let (shape, question) = ((4, LARGE.block_bytes()), peers.question(&|| Ok(())));
        let mut remote = RemoteTransfer::begin(&peer, &open, shape, DataPlane::Streams, question).unwrap();
        test(&mut remote);
        drop(remote);
        peers.clear();
        drop(peer);
        serving.join().unwrap();
    });
}

/// An exporter that tells of blocks without end, and one that answers at once that there are none.
#[test]
fn an_exporter_cannot_fill_the_importer_or_keep_it_busy() {
    let mut asked = 0;
    let answer = move |question| {
        let answer = match question {
            Message::More { have, .. } if have < 4 => Message::Blocks { first: have, ids: vec![7; 4], sequence: None },
            Message::More { have, .. } if asked < 10 => {
                asked += 1;
                Message::Blocks { first: have, ids: vec![], sequence: None }
            }
            Message::More { have, .. } => Message::Blocks { first: have, ids: vec![7; 1 << 20], sequence: None },
            _ => Message::Opened { hold: 1 },
        };
        (answer, 0)
    };
    against(answer, |remote| {
        let wanted = || Ok(());
        assert_eq!(remote.more(&wanted).unwrap().available, 4);
        let begun = Instant::now();
        (0..10).for_each(|_| assert_eq!(remote.more(&wanted).unwrap().available, 4));
        assert!(begun.elapsed() >= Duration::from_millis(100), "asked in a tight loop");
        refused(remote.more(&wanted), Status::Corrupt, &["expected at most 4"]);
    });
}

/// An import that is told to end as soon as it waits for its peer.
struct Unwelcome {
    asked: mpsc::SyncSender<()>,
}

impl Want for Unwelcome {
    fn check(&self) -> Result<()> {
        let _ = self.asked.try_send(());
        Ok(())
    }

    fn check_silence(&self, _: Duration) -> Result<()> {
        crate::bail!(Peer, "others need the thread")
    }
}

/// An import that ended before the answer to COMMIT would lose the sequence.
#[test]
fn a_wait_for_the_answer_to_commit_makes_no_place_for_others() {
    let (asked, waits) = mpsc::sync_channel(1);
    let answer = move |question| match question {
        Message::Commit { .. } => {
            // The importer has looked up from its wait, or has ended it.
            let _ = waits.recv();
            (Message::Done, 0)
        }
        _ => (Message::Opened { hold: 1 }, 0),
    };
    against(answer, |remote| {
        let import = Unwelcome { asked };
        let committed = remote.commit(&import);
        drop(import);
        committed.unwrap();
    });
}

/// Takes blocks and does not keep them.
struct Nowhere;

impl Destination for Nowhere {
    fn direct(&self, _: usize) -> Option<ByteTarget<'_>> {
        None
    }

    fn write_block(&self, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn take_from_device(&self, _: &dyn DeviceMemory, _: &[BlockId], _: std::ops::Range<usize>) -> Result<bool> {
        Ok(false)
    }

    fn count(&self, _: usize) {}
}

#[test]
fn a_transfer_that_one_connection_has_carried_does_not_wait_for_others() {
    let answer = |question| match question {
        Message::Read { count, .. } => {
            let bytes = u64::from(count) * LARGE.block_bytes() as u64;
            (Message::Data { bytes }, count as usize)
        }
        _ => (Message::Opened { hold: 1 }, 0),
    };
    against(answer, |remote| {
        let begun = Instant::now();
        remote.fetch(0..BLOCKS, &Nowhere, &|| Ok(())).unwrap();
        assert!(begun.elapsed() < PATIENT / 2, "it waited for connections that nobody accepts");
    });
}

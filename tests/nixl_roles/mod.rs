//! The processes of tests/nixl.rs. They meet over files in a directory of the test.

mod importers;

use cleave::error::Status;
use cleave::sys::nixl::{Agent, Library, Memory, Piece, Registration};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub const BLOCK: usize = 512 << 10;
pub const BLOCKS: usize = 128;

/// The directory of the test.
fn here(file: &str) -> PathBuf {
    Path::new(&std::env::var_os("CLEAVE_NIXL_TEST_DIR").unwrap()).join(file)
}

pub fn wait_for(file: &Path) {
    let until = Instant::now() + Duration::from_secs(60);
    while !file.exists() {
        assert!(Instant::now() < until, "{} does not come", file.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A file that appears whole.
fn publish(name: &str, contents: &[u8]) {
    std::fs::write(here("unfinished"), contents).unwrap();
    std::fs::rename(here("unfinished"), here(name)).unwrap();
}

struct Slab(Vec<AtomicU8>);

impl AsRef<[AtomicU8]> for Slab {
    fn as_ref(&self) -> &[AtomicU8] {
        &self.0
    }
}

/// The byte at `i` of the exporter's memory: no two blocks are alike.
fn byte(i: usize) -> u8 {
    ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn slab(byte: impl Fn(usize) -> u8) -> Memory {
    Arc::new(Slab((0..BLOCK * BLOCKS).map(|i| AtomicU8::new(byte(i))).collect()))
}

/// One end of a pair, with the other's memory in reach.
struct Importer {
    agent: Agent,
    memory: Memory,
    registration: Registration,
    peer: String,
    remote: u64,
}

impl Importer {
    fn new() -> Importer {
        let agent = Agent::new("importer").unwrap();
        let memory = slab(|_| 0);
        let registration = agent.register(memory.clone()).unwrap();
        wait_for(&here("exported"));
        let exported = std::fs::read(here("exported")).unwrap();
        let (address, metadata) = exported.split_first_chunk::<8>().unwrap();
        let peer = agent.add_peer(metadata).unwrap();
        assert_eq!(peer, "exporter");
        Importer { agent, memory, registration, peer, remote: u64::from_le_bytes(*address) }
    }

    /// Every remote block, into the local ones in reverse order: none can be joined with its neighbour.
    fn reversed(&self) -> Vec<Piece> {
        let piece = |i| Piece {
            offset: (BLOCKS - 1 - i) * BLOCK,
            remote_address: self.remote + (i * BLOCK) as u64,
            len: BLOCK,
        };
        (0..BLOCKS).map(piece).collect()
    }

    fn read(&self, pieces: &[Piece]) -> cleave::error::Result<()> {
        let transfer = self.agent.read(&self.peer, &self.registration, pieces)?;
        let until = Instant::now() + Duration::from_secs(60);
        while !transfer.poll()? {
            assert!(Instant::now() < until, "a read of {} bytes hangs", transfer.bytes());
            std::thread::yield_now();
        }
        // Asked again, it says the same.
        assert_eq!(transfer.poll(), Ok(true));
        Ok(())
    }
}

pub fn play(role: &str) {
    match role {
        "exporter" => exporter(),
        "importer" => importers::importer(),
        "survivor" => importers::survivor(),
        "leaver" => importers::leaver(),
        "misuser" => importers::misuser(),
        "unpatched" => importers::unpatched(),
        "measurer" => importers::measurer(),
        "forgetter" => forgetter(),
        "without" => without(),
        other => panic!("no role {other}"),
    }
}

/// Registers, publishes, and does nothing until its stdin ends: the progress thread is what serves the peer.
fn exporter() {
    let agent = Agent::new("exporter").unwrap();
    let registration = agent.register(slab(byte)).unwrap();
    let metadata = agent.metadata().unwrap();
    publish("exported", &[registration.address().to_le_bytes().as_slice(), &metadata].concat());
    let _ = std::io::stdin().read(&mut [0]);
}

fn forgetter() {
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
    let before: Vec<_> = threads().collect();
    let agent = Agent::new("forgotten").unwrap();
    let registration = agent.register(slab(byte)).unwrap();
    let new: Vec<_> = threads().filter(|thread| !before.contains(thread)).collect();
    assert!(!new.is_empty(), "no progress thread");
    for thread in new {
        let status = std::fs::read_to_string(thread.join("status")).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim();
        // All but SIGKILL, SIGSTOP and the two that glibc keeps for itself.
        assert_eq!(u64::from_str_radix(blocked, 16).unwrap() | 0x1_8004_0100, !0, "{blocked}: {status}");
    }
    std::mem::forget((agent, registration));
}

fn without() {
    // A library that was not there the first time may be there the second time.
    for file in ["/nowhere/libnixl_capi.so", "/elsewhere/libnixl_capi.so"] {
        // SAFETY: the only thread that reads the environment.
        unsafe { std::env::set_var("CLEAVE_NIXL_LIBRARY", file) };
        let error = Library::get().err().unwrap();
        assert_eq!(error.status, Status::Unsupported);
        assert!(error.message.contains(&format!("tried: {file}: cannot open")), "{error}");
        assert_eq!(Agent::new("a").err().unwrap(), error);
    }
}

fn fill(memory: &Memory, value: u8) {
    for byte in (**memory).as_ref() {
        byte.store(value, Relaxed);
    }
}

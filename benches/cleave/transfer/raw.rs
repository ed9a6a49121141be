//! The plain mechanisms, without the library's protocol.

use super::exporter::Exporter;
use super::{hex, unhex};
use cleave::sys::nixl::{Agent, Memory, Piece, Registration};
use cleave::sys::shared_memory::SharedMemory;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::Instant;

const STREAMS: usize = 4;
/// Blocks of model B: 16 tokens of 32 KiB.
const BLOCK: usize = 512 << 10;

/// Memory of the kind that pools are made of, resident and written.
pub fn buffer(bytes: usize) -> SharedMemory {
    let memory = SharedMemory::create(bytes).unwrap();
    memory.populate(true).unwrap();
    // SAFETY: the mapping has this length, and nobody else uses it.
    unsafe { memory.as_ptr().write_bytes(7, bytes) };
    memory
}

pub fn memcpy_ms(from: &SharedMemory, to: &SharedMemory, bytes: usize) -> f64 {
    let begun = Instant::now();
    // SAFETY: both mappings have this length.
    unsafe { std::ptr::copy_nonoverlapping(std::hint::black_box(from.as_ptr()), to.as_ptr(), bytes) };
    std::hint::black_box(to.as_ptr());
    begun.elapsed().as_secs_f64() * 1e3
}

/// Sends its part of a buffer to every client that connects.
pub fn serve_streams(bytes: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let memory = Arc::new(buffer(bytes));
        for (i, stream) in listener.incoming().enumerate() {
            let (mut stream, memory) = (stream.unwrap(), memory.clone());
            stream.set_nodelay(true).unwrap();
            std::thread::spawn(move || {
                let part = bytes / STREAMS;
                // SAFETY: this is a part of the mapping, which outlives the thread.
                let part = unsafe { std::slice::from_raw_parts(memory.as_ptr().add(i % STREAMS * part), part) };
                let mut go = [0];
                while stream.read_exact(&mut go).is_ok() && stream.write_all(part).is_ok() {}
            });
        }
    });
    port
}

pub struct Streams(Vec<TcpStream>);

impl Streams {
    pub fn connect(port: u16) -> Streams {
        let connect = |_| {
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_nodelay(true).unwrap();
            stream
        };
        Streams((0..STREAMS).map(connect).collect())
    }

    pub fn copy_ms(&mut self, to: &SharedMemory, bytes: usize) -> f64 {
        let part = bytes / STREAMS;
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for (i, stream) in self.0.iter_mut().enumerate() {
                // SAFETY: the parts of the mapping do not overlap.
                let part = unsafe { std::slice::from_raw_parts_mut(to.as_ptr().add(i * part), part) };
                scope.spawn(move || {
                    stream.write_all(&[1]).unwrap();
                    stream.read_exact(part).unwrap();
                });
            }
        });
        begun.elapsed().as_secs_f64() * 1e3
    }
}

/// Memory of the kind that pools are made of.
struct Bytes(SharedMemory);

impl AsRef<[AtomicU8]> for Bytes {
    fn as_ref(&self) -> &[AtomicU8] {
        self.0.atomic()
    }
}

fn memory(bytes: usize) -> Memory {
    Arc::new(Bytes(buffer(bytes)))
}

/// Memory in the exporter that NIXL may read, and the metadata for it.
pub fn expose_nixl(bytes: usize) -> (Option<(Registration, Agent)>, String) {
    let make = || {
        let agent = Agent::new(&format!("raw-{}", std::process::id()))?;
        let registration = agent.register(memory(bytes))?;
        let line = format!("{} {}", registration.address(), hex(&agent.metadata()?));
        cleave::error::Result::Ok((Some((registration, agent)), line))
    };
    make().unwrap_or_else(|error| (None, format!("error {error}")))
}

pub struct Nixl {
    registration: Registration,
    agent: Agent,
    peer: String,
    pieces: Vec<Piece>,
}

impl Nixl {
    pub fn connect(exporter: &mut Exporter, bytes: usize) -> Result<Nixl, String> {
        let line = exporter.ask("nixl");
        let (base, metadata) = line.split_once(' ').unwrap();
        let base: u64 = base.parse().map_err(|_| line.clone())?;
        let agent = Agent::new(&format!("raw-{}", std::process::id())).map_err(|e| e.message)?;
        let registration = agent.register(memory(bytes)).map_err(|e| e.message)?;
        let peer = agent.add_peer(&unhex(metadata)).map_err(|e| e.message)?;
        let piece = |i: usize| Piece { offset: i * BLOCK, remote_address: base + (i * BLOCK) as u64, len: BLOCK };
        Ok(Nixl { registration, agent, peer, pieces: (0..bytes / BLOCK).map(piece).collect() })
    }

    pub fn read_ms(&self) -> f64 {
        let begun = Instant::now();
        let transfer = self.agent.read(&self.peer, &self.registration, &self.pieces).unwrap();
        while !transfer.poll().unwrap() {
            std::thread::yield_now();
        }
        begun.elapsed().as_secs_f64() * 1e3
    }
}

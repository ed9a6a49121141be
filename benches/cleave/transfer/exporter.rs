//! The exporting process: this program started again, with one command per line on its standard input.

use super::{TOKENS, duplicate, hex, median, raw};
use crate::host::{Host, request};
use cleave::engine::{Event, EventKind, Request, Role};
use cleave::kv::KvId;
use cleave::model::Model;
use cleave::transport::{Encryption, Node};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

pub struct Exporter {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Ports that it listens on: encrypted, plaintext, and for the plain copy.
    pub plain: u16,
    pub sealed: u16,
    pub raw_port: u16,
}

impl Exporter {
    pub fn start(dir: &Path, threads: usize, bytes: usize) -> Exporter {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exporter", dir.to_str().unwrap(), &threads.to_string(), &bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut exporter = Exporter { child, stdin, stdout, plain: 0, sealed: 0, raw_port: 0 };
        let ports: Vec<u16> = exporter.line().split(' ').map(|port| port.parse().unwrap()).collect();
        (exporter.plain, exporter.sealed, exporter.raw_port) = (ports[0], ports[1], ports[2]);
        exporter
    }

    pub fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
        self.stdin.flush().unwrap();
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.line()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Entry point of `--exporter DIR THREADS BYTES`. Runs until standard input ends.
pub fn serve(args: &[String]) {
    let model = Model::load(&args[0]).unwrap();
    let (threads, bytes): (usize, usize) = (args[1].parse().unwrap(), args[2].parse().unwrap());
    let host = Host::with_prefix_cache(&model, threads);
    let prefill = host.engine(Role::Prefill);
    let plain = host.cache.listen("127.0.0.1:0", None, Encryption::Never).unwrap();
    let sealed = host.cache.listen("127.0.0.1:0", None, Encryption::Always).unwrap();
    let raw_port = raw::serve_streams(bytes);
    println!("{plain} {sealed} {raw_port}");
    let mut kept = 0;
    let mut nixl = None;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let mut words = line.split(' ');
        let (what, number) = (words.next().unwrap(), words.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0));
        match what {
            "prefill" => {
                kept = ended(&host.run(&prefill, vec![request(TOKENS, 2, number)])).kv;
                println!("done");
            }
            "ticket" => println!("{}", hex(&host.cache.node().ticket(duplicate(&host.cache, kept)).unwrap())),
            "address" => println!("{}", hex(&host.cache.node().address())),
            // Only one endpoint, so that the peer has no choice.
            "only" => println!("{}", hex(&only(host.cache.node(), number as u16))),
            "make" => {
                let times = (0..64).map(|_| {
                    let kv = duplicate(&host.cache, kept);
                    let begun = Instant::now();
                    host.cache.node().ticket(kv).unwrap();
                    let us = begun.elapsed().as_secs_f64() * 1e6;
                    host.cache.kv().handles().release(kv).unwrap();
                    us
                });
                println!("{}", median(times));
            }
            "alone" => {
                let (begun, events) = timed(&host, &prefill, request(TOKENS, 2, number), |_| ());
                println!("{}", (first(&events) - begun) as f64 / 1e6);
                host.cache.kv().handles().release(KvId(ended(&events).kv)).unwrap();
            }
            "stream" => {
                let request = Request { stream_kv: true, ..request(TOKENS, 2, number) };
                let started = |event: &Event| {
                    if event.kind == EventKind::KvStreamStarted {
                        println!("{}", hex(&host.cache.node().ticket(KvId(event.kv)).unwrap()));
                    }
                };
                let (begun, events) = timed(&host, &prefill, request, started);
                println!("{begun} {}", first(&events));
            }
            "nixl" => {
                let (exposed, line) = raw::expose_nixl(bytes);
                nixl = exposed;
                println!("{line}");
            }
            other => panic!("unknown command {other}"),
        }
    }
    drop(nixl);
}

fn ended(events: &std::collections::HashMap<u64, Vec<Event>>) -> Event {
    *events.values().flatten().find(|event| event.kind == EventKind::Finished).unwrap()
}

fn first(events: &std::collections::HashMap<u64, Vec<Event>>) -> u64 {
    events.values().flatten().find(|event| event.kind == EventKind::Token).unwrap().timestamp_ns
}

/// Runs one request and returns the time of its submission.
fn timed(
    host: &Host,
    engine: &cleave::engine::Engine,
    request: Request,
    mut seen: impl FnMut(&Event),
) -> (u64, std::collections::HashMap<u64, Vec<Event>>) {
    let begun = cleave::sys::monotonic_ns();
    assert!(engine.submit(vec![request]).refused.is_none());
    let mut all: std::collections::HashMap<u64, Vec<Event>> = Default::default();
    loop {
        let mut events = Vec::new();
        host.queue.poll(&mut events, 16, None).unwrap();
        for event in events {
            seen(&event);
            all.entry(event.request).or_default().push(event);
            if event.kind == EventKind::Finished {
                assert!(event.status.is_none(), "{event:?}");
                return (begun, all);
            }
        }
    }
}

fn only(node: &Arc<Node>, port: u16) -> Vec<u8> {
    node.address_of(port)
}

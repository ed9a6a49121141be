//! A handoff between two processes on device 0 through the device's memory: this program, started again, prefills and
//! writes tickets, and this process decodes.

use super::host::{Outcome, words};
use cleave::engine::{CacheOptions, Engine, EngineOptions, EventKind, ModelCache, Queue, Request, Role};
use cleave::kv::KvId;
use cleave::model::Model;
use cleave::transport::Transport;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NEW_TOKENS: u32 = 24;
const TEXTS: [&str; 3] = [
    "tom likes the colour green. anna lives in paris. what colour does tom like?",
    "the old farmer went to the market and bought",
    "one two three one two three one two",
];

struct Side {
    cache: Arc<ModelCache>,
    queue: Arc<Queue>,
    engine: Engine,
}

impl Side {
    fn new(model: &Arc<Model>, role: Role) -> Outcome<Side> {
        // A simulated device is slow.
        let lease = Some(Duration::from_secs(300));
        let options = CacheOptions {
            bytes: 4 << 20,
            secret: Some([9; 32]),
            lease,
            share_weights: true,
            ..CacheOptions::default()
        };
        let cache = ModelCache::create(model, &[0], options).map_err(words)?;
        let queue = Queue::new(0).map_err(words)?;
        let options = EngineOptions { role: Some(role), threads: 1, ..EngineOptions::default() };
        let engine = Engine::create(&cache, &queue, options).map_err(words)?;
        Ok(Side { cache, queue, engine })
    }

    /// Tokens of the request, and its handle if it left one.
    fn run(&self, request: Request) -> Outcome<(Vec<i32>, u64)> {
        if let Some(error) = self.engine.submit(vec![request]).refused {
            return Err(format!("refused: {error}"));
        }
        let (begun, mut tokens) = (Instant::now(), Vec::new());
        loop {
            if begun.elapsed() > Duration::from_secs(60) {
                return Err("a request did not end".to_string());
            }
            let mut events = Vec::new();
            self.queue.poll(&mut events, 64, Some(Duration::from_secs(1))).map_err(words)?;
            for event in events {
                match event.kind {
                    EventKind::Token => tokens.push(event.token),
                    EventKind::Finished => {
                        return match event.status {
                            Some(status) => Err(format!("a request failed: {status:?}")),
                            None => Ok((tokens, event.kv)),
                        };
                    }
                    _ => {}
                }
            }
        }
    }
}

fn greedy(model: &Model, text: &str) -> Outcome<Request> {
    Ok(super::host::request(model.tokenize(text, true, false).map_err(words)?, NEW_TOKENS))
}

/// The prefilling process: prints its address and a line "TOKENS TICKET" per text, then serves until its input ends.
pub fn prefill(model: &str) -> Outcome<()> {
    let model = Model::load(model).map_err(words)?;
    let side = Side::new(&model, Role::Prefill)?;
    println!("address {}", hex(&side.cache.node().address()));
    for text in TEXTS {
        let (tokens, kv) = side.run(greedy(&model, text)?)?;
        let ticket = side.cache.node().ticket(KvId(kv)).map_err(words)?;
        let tokens: Vec<String> = tokens.iter().map(i32::to_string).collect();
        println!("ticket {} {}", tokens.join(","), hex(&ticket));
    }
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).map_err(words)?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Outcome<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2).unwrap_or("-"), 16).map_err(words);
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Starts the prefilling process with `arguments` and decodes its handles. The tokens have to equal those of one
/// process.
pub fn run(model: &str, arguments: &[String]) -> Outcome<String> {
    let program = std::env::current_exe().map_err(words)?;
    let mut child =
        Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(words)?;
    let out = BufReader::new(child.stdout.take().ok_or("no output")?);
    let outcome = decode(model, out);
    drop(child.stdin.take());
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().map_err(words)? {
            Some(status) => break status,
            None if begun.elapsed() > Duration::from_secs(20) => {
                let _ = child.kill();
                break child.wait().map_err(words)?;
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let summary = outcome?;
    if !status.success() {
        return Err(format!("the prefilling process ended with {status}"));
    }
    Ok(summary)
}

fn decode(model: &str, from: impl BufRead) -> Outcome<String> {
    let model = Model::load(model).map_err(words)?;
    let decode = Side::new(&model, Role::Decode)?;
    let alone = Side::new(&model, Role::Mixed)?;
    let mut lines = from.lines().map_while(Result::ok);
    let mut told = |what: &str| {
        let line = lines.find_map(|line| line.strip_prefix(what).map(String::from));
        line.ok_or_else(|| format!("the prefilling process gave no {what}"))
    };
    let report = decode.cache.node().pair(&unhex(&told("address ")?)?, Some(Transport::DeviceMemory));
    if let Some(error) = report.error {
        return Err(format!("pairing by CUDA memory: {error}"));
    }
    let mut count = 0;
    for text in TEXTS {
        let line = told("ticket ")?;
        let (first, ticket) = line.split_once(' ').ok_or("a line without a ticket")?;
        let mut tokens = first.split(',').map(str::parse).collect::<Result<Vec<i32>, _>>().map_err(words)?;
        let kv = decode.cache.import(None, &unhex(ticket)?, 0).map_err(words)?;
        tokens.extend(decode.run(Request { kv: kv.0, ..Request::default() })?.0);
        let (expected, _) = alone.run(greedy(&model, text)?)?;
        if tokens != expected || tokens.len() != NEW_TOKENS as usize {
            return Err(format!("after {text:?}: {tokens:?} in two processes, {expected:?} in one"));
        }
        count += tokens.len();
    }
    let rate = report.bytes_per_second as f64 / 1e9;
    Ok(format!("{} handoffs by CUDA memory ({rate:.1} GB/s), {count} tokens as in one process", TEXTS.len()))
}

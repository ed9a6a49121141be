//! A second process for tests: the test binary runs itself again as a worker that does as it is told, line by line, so
//! that it can be killed, stopped and started anew. A test file that uses it has the test `worker_process`.
#![allow(dead_code)]

use cleave::engine::{CacheOptions, Engine, EngineOptions, Event, EventKind, ModelCache, Queue, Request, Role};
use cleave::failpoint::{self, Action};
use cleave::kv::KvId;
use cleave::model::Model;
use cleave::tensor::Dtype;
use cleave::transport::{Encryption, Transport};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

pub const SECRET: [u8; 32] = [0x5e; 32];
const MARK: &str = "@worker ";

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

// ---- the test's side ----

/// What tells a worker where NIXL is; None, and a word about it, if it is nowhere.
pub fn nixl_env() -> Option<Vec<(String, String)>> {
    let built = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nixl");
    let dir = std::env::var_os("CLEAVE_NIXL_DIR").map(Into::into).or_else(|| built.is_dir().then_some(built));
    let Some(dir) = dir else {
        // Past the harness, which keeps to itself what a passing test prints.
        let _ = writeln!(std::io::stderr(), "skipped: run tools/nixl.sh");
        return None;
    };
    Some(vec![("CLEAVE_NIXL_DIR".into(), dir.to_str().unwrap().into())])
}

pub struct Worker {
    pub child: Child,
    /// Where it listens for TCP, if it does.
    pub port: u16,
    stdin: ChildStdin,
    lines: Receiver<Value>,
}

impl Worker {
    /// Starts a process and makes a cache in it: see `serve` for what `config` may say. `before` runs it under another
    /// program, such as `ip netns exec name`.
    pub fn start_under(before: &[&str], config: Value) -> Worker {
        Self::spawn(before, &[], config)
    }

    fn spawn(before: &[&str], env: &[(String, String)], config: Value) -> Worker {
        let own = std::env::current_exe().unwrap();
        let mut command = match before {
            [] => Command::new(&own),
            [program, rest @ ..] => {
                let mut command = Command::new(program);
                command.args(rest).arg(&own);
                command
            }
        };
        command.args(["--exact", "worker_process", "--nocapture", "--test-threads=1"]).env("CLEAVE_WORKER", "1");
        command.envs(env.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the worker starts");
        let (send, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Some(at) = line.find(MARK) {
                    let value = serde_json::from_str(&line[at + MARK.len()..]).unwrap();
                    if send.send(value).is_err() {
                        return;
                    }
                }
            }
        });
        let stdin = child.stdin.take().unwrap();
        let mut worker = Worker { child, port: 0, stdin, lines };
        let created = worker.ask(json!({"do": "create", "config": config}));
        worker.port = created["port"].as_u64().unwrap_or(0) as u16;
        worker
    }

    pub fn start(config: Value) -> Worker {
        Self::start_under(&[], config)
    }

    /// With these environment variables.
    pub fn start_with(env: &[(String, String)], config: Value) -> Worker {
        Self::spawn(&[], env, config)
    }

    pub fn tell(&mut self, command: Value) {
        let _ = writeln!(self.stdin, "{command}");
        let _ = self.stdin.flush();
    }

    /// The next answer, if there is one in time.
    pub fn answer(&mut self, within: Duration) -> Option<Value> {
        self.lines.recv_timeout(within).ok()
    }

    /// Tells and waits for the answer. Fails the test if that is an error.
    #[track_caller]
    pub fn ask(&mut self, command: Value) -> Value {
        let answer = self.try_ask(command.clone());
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer
    }

    #[track_caller]
    pub fn try_ask(&mut self, command: Value) -> Value {
        self.tell(command.clone());
        self.answer(Duration::from_secs(60)).unwrap_or_else(|| panic!("no answer to {command}"))
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a child of this process that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// kill -9, and gone.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        let _ = self.child.wait();
    }

    /// Waits until it is dead, or stopped by a signal.
    #[track_caller]
    pub fn until_gone(&mut self) {
        let begun = Instant::now();
        let stat = format!("/proc/{}/stat", self.child.id());
        while self.child.try_wait().unwrap().is_none() {
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            if stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T")) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "the worker is neither dead nor stopped");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Arms a failpoint in the process: "kill", "stop", "panic", or milliseconds of a pause.
    pub fn arm(&mut self, name: &str, nth: u64, action: &str) {
        self.ask(json!({"do": "arm", "name": name, "nth": nth, "action": action}));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.signal(libc::SIGCONT);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- the process's side ----

struct Served {
    cache: Arc<ModelCache>,
    queue: Arc<Queue>,
    engines: HashMap<String, Engine>,
    events: Vec<Event>,
}

/// What `worker_process` calls: nothing, unless this process was started as a worker.
pub fn serve_if_told() {
    if std::env::var_os("CLEAVE_WORKER").is_none() {
        return;
    }
    let mut served = None;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let command: Value = serde_json::from_str(&line).unwrap();
        let answer = match run(&mut served, &command) {
            Ok(value) => value,
            Err(error) => json!({"error": error.message, "status": error.status as i32}),
        };
        println!("{MARK}{answer}");
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

fn ms(value: &Value, key: &str) -> Option<Duration> {
    value[key].as_u64().map(Duration::from_millis)
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().into_iter().flatten().map(|t| t.as_u64().unwrap() as u32).collect()
}

/// Commands:
/// - create {config: {model, blocks, block_tokens, lease_ms, peer_timeout_ms, secret, listen, advertise, encryption}}: port
/// - submit {engine: role, tokens, kv, max, stream, recompute, deadline_ms, tag, emit, seed, temperature}
/// - wait {request}: until its FINISHED; the events of a request
/// - started {request}: until its KV_STARTED
/// - ticket {kv}, import {ticket, tag}, ready {kv}: until KV_READY, release {kv}, info {kv}
/// - address, pair {address, transport}, audit, metrics, arm {name, nth, action}, cancel {engine, request},
///   export {engine, request}, first {request}: until its first TOKEN
/// - forget: the events so far; destroy {engine}: that engine; destroy: the cache; exit: the process
fn run(served: &mut Option<Served>, command: &Value) -> cleave::error::Result<Value> {
    let what = command["do"].as_str().unwrap();
    if what == "arm" {
        let action = match command["action"].as_str().unwrap() {
            "kill" => Action::Signal(libc::SIGKILL),
            "stop" => Action::Signal(libc::SIGSTOP),
            "panic" => Action::Panic,
            other => Action::Pause(Duration::from_millis(other.parse().unwrap())),
        };
        failpoint::arm(command["name"].as_str().unwrap(), number(command, "nth").max(1), action);
        return Ok(json!({}));
    }
    if what == "create" {
        let (created, port) = create(&command["config"])?;
        *served = Some(created);
        return Ok(json!({"port": port}));
    }
    if what == "exit" {
        std::process::exit(0);
    }
    let s = served.as_mut().expect("created");
    match what {
        "submit" => {
            let role = command["engine"].as_str().unwrap().to_string();
            if !s.engines.contains_key(&role) {
                let code = match role.as_str() {
                    "prefill" => Role::Prefill,
                    "decode" => Role::Decode,
                    _ => Role::Mixed,
                };
                let options = EngineOptions {
                    role: Some(code),
                    threads: 1,
                    max_batch_tokens: number(command, "chunk") as usize,
                    ..Default::default()
                };
                s.engines.insert(role.clone(), Engine::create(&s.cache, &s.queue, options)?);
            }
            let mut request = Request {
                user_tag: number(command, "tag"),
                kv: number(command, "kv"),
                prompt: tokens(&command["tokens"]),
                stream_kv: command["stream"] == true,
                recompute: command["recompute"] == true,
                emit_pending: command["emit"] == true,
                deadline: ms(command, "deadline_ms"),
                cache_salt: number(command, "salt"),
                ..Default::default()
            };
            request.sampling.max_new_tokens = number(command, "max") as u32;
            request.sampling.ignore_eos = command["ignore_eos"] == true;
            request.sampling.seed = number(command, "seed");
            request.sampling.temperature = command["temperature"].as_f64().unwrap_or(0.0) as f32;
            let submitted = s.engines[&role].submit(vec![request]);
            match submitted.refused {
                Some(error) => Err(error),
                None => Ok(json!({"request": submitted.ids[0]})),
            }
        }
        "wait" => {
            let request = number(command, "request");
            let end = s.until(ms(command, "within_ms"), |e| e.kind == EventKind::Finished && e.request == request);
            let Some(end) = end else { return Ok(json!({"timeout": true})) };
            let mine = |e: &&Event| e.request == request && e.kind == EventKind::Token;
            let tokens: Vec<i32> = s.events.iter().filter(mine).map(|e| e.token).collect();
            let indices: Vec<u32> = s.events.iter().filter(mine).map(|e| e.index).collect();
            let ends = s.events.iter().filter(|e| e.kind == EventKind::Finished && e.request == request).count();
            Ok(json!({"tokens": tokens, "indices": indices, "reason": end.finish.unwrap() as u32, "kv": end.kv,
                "status": end.status.map_or(0, |s| s as i32), "ends": ends}))
        }
        "first" | "started" => {
            let request = number(command, "request");
            let kind = if what == "first" { EventKind::Token } else { EventKind::KvStarted };
            let event = s.until(None, |e| e.kind == kind && e.request == request);
            Ok(json!({"kv": event.map_or(0, |e| e.kv)}))
        }
        "ready" => {
            let kv = number(command, "kv");
            let event = s.until(ms(command, "within_ms"), |e| e.kind == EventKind::KvReady && e.kv == kv);
            let Some(event) = event else { return Ok(json!({"timeout": true})) };
            Ok(json!({"status": event.status.map_or(0, |s| s as i32)}))
        }
        "ticket" => Ok(json!({"ticket": hex(&s.cache.node().ticket(KvId(number(command, "kv")))?)})),
        "import" => {
            let data = unhex(command["ticket"].as_str().unwrap());
            Ok(json!({"kv": s.cache.import(Some(&s.queue), &data, number(command, "tag"))?.0}))
        }
        "renew" => s.cache.kv().renew(KvId(number(command, "kv")), Duration::from_secs(30)).map(|()| json!({})),
        "release" => s.cache.kv().release(KvId(number(command, "kv"))).map(|()| json!({})),
        "cancel" | "export" => {
            let engine = &s.engines[command["engine"].as_str().unwrap()];
            let request = number(command, "request");
            if what == "cancel" {
                engine.cancel(request)?
            } else {
                engine.export(request)?
            }
            Ok(json!({}))
        }
        "info" => {
            let info = s.cache.kv().info(KvId(number(command, "kv")))?;
            Ok(json!({"tokens": info.n_tokens, "computed": info.computed, "importing": info.importing}))
        }
        "address" => Ok(json!({"address": hex(&s.cache.node().address())})),
        "pair" => {
            let address = unhex(command["address"].as_str().unwrap());
            let report = s.cache.node().pair(&address, Transport::from_code(number(command, "transport") as u32));
            Ok(json!({"transport": report.transport.map_or(0, |t| t as u32), "reason": report.reason as u32,
                "status": report.error.map_or(0, |e| e.status as i32), "detail": report.detail,
                "rate": report.bytes_per_second}))
        }
        "audit" => {
            s.cache.kv().check().map_err(|text| cleave::error!(Internal, "{text}"))?;
            let audit = s.cache.kv().audit();
            let stats = s.cache.kv().stats();
            Ok(json!({"leaked": audit.leaked, "requests": audit.by_requests, "exports": audit.by_exports,
                "transfers": audit.by_transfers, "free": audit.free, "available": stats.blocks_available,
                "total": audit.total}))
        }
        "metrics" => {
            let stats = s.cache.kv().stats();
            Ok(json!({"in": stats.bytes_in, "out": stats.bytes_out, "hidden": stats.bytes_hidden,
                "exposed": stats.bytes_exposed, "imports": stats.imports, "failed": stats.imports_failed,
                "rss": resident(), "threads": entries("/proc/self/task"), "files": entries("/proc/self/fd")}))
        }
        "destroy" => {
            let begun = Instant::now();
            match command["engine"].as_str() {
                Some(engine) => drop(s.engines.remove(engine)),
                None => s.cache.close(),
            }
            Ok(json!({"ms": begun.elapsed().as_millis() as u64}))
        }
        "forget" => {
            s.events.clear();
            Ok(json!({}))
        }
        other => panic!("unknown command {other}"),
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn entries(directory: &str) -> usize {
    std::fs::read_dir(directory).map_or(0, |entries| entries.count())
}

fn create(config: &Value) -> cleave::error::Result<(Served, u16)> {
    let tiny = format!("{}/models/tiny", env!("CARGO_MANIFEST_DIR"));
    let model = Model::load(config["model"].as_str().unwrap_or(&tiny))?;
    let blocks = config["blocks"].as_u64().unwrap_or(256);
    let secret = match config["secret"].as_u64() {
        Some(byte) => [byte as u8; 32],
        None => SECRET,
    };
    let options = CacheOptions {
        bytes: blocks * 16 * model.info().kv_bytes_per_token,
        block_tokens: number(config, "block_tokens") as u32,
        lease: ms(config, "lease_ms"),
        peer_timeout: ms(config, "peer_timeout_ms"),
        secret: Some(secret),
        dtype: config["dtype"].as_u64().and_then(|code| Dtype::from_code(code as u32)),
        shards: number(config, "shards") as u32,
        no_convert: config["no_convert"] == true,
        ..CacheOptions::default()
    };
    let cache = ModelCache::create(&model, &[], options)?;
    let mut port = 0;
    if let Some(address) = config["listen"].as_str() {
        let encryption = match config["encryption"].as_str() {
            Some("always") => Encryption::Always,
            Some("never") => Encryption::Never,
            _ => Encryption::Auto,
        };
        port = cache.listen(address, config["advertise"].as_str(), encryption)?;
    }
    Ok((Served { cache, queue: Queue::new(0)?, engines: HashMap::new(), events: Vec::new() }, port))
}

impl Served {
    fn until(&mut self, within: Option<Duration>, wanted: impl Fn(&Event) -> bool) -> Option<Event> {
        let until = Instant::now() + within.unwrap_or(Duration::from_secs(50));
        loop {
            if let Some(event) = self.events.iter().find(|e| wanted(e)) {
                return Some(*event);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.queue.poll(&mut self.events, 1024, Some(left)).unwrap();
        }
    }
}

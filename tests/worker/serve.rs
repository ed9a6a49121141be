//! Commands that a worker process executes.

use super::*;
use cleave::engine::{CacheOptions, Engine, EngineOptions, Event, EventKind, ModelCache, Queue, Request, Role};
use cleave::failpoint::{self, Action};
use cleave::kv::KvId;
use cleave::model::Model;
use cleave::tensor::Dtype;
use cleave::transport::{Encryption, Transport};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::BufRead;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Limit for every wait; anything slower has hung.
const LONG: Duration = Duration::from_secs(150);

static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Served {
    cache: Arc<ModelCache>,
    queue: Arc<Queue>,
    engines: HashMap<String, Engine>,
    events: Vec<Event>,
    /// Number of progress reports about loading weights.
    told: u64,
}

/// Serves commands if this process was started as a worker; otherwise does nothing. Called by the test
/// `worker_process`.
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

/// Executes a command. A colon is followed by what the command waits for or returns.
/// - create {config: {device, driver, driver_loaded, model, blocks, block_tokens, lease_ms, peer_timeout_ms, secret,
///   listen, advertise, encryption}}: returns the port
/// - submit {engine: role, tokens, kv, max, stream, recompute, deadline_ms, tag, emit, seed, temperature}
/// - wait {request}: waits for its FINISHED and returns the request's events
/// - started {request}: waits for its KV_STREAM_STARTED
/// - ticket {kv}, import {ticket, tag}, ready {kv}: waits for KV_READY, release {kv}, info {kv}
/// - address, pair {address, transport}, audit, metrics, arm {name, nth, action}, cancel {engine, request},
///   export {engine, request}, first {request}: waits for its first TOKEN
/// - reached {name, threads}: waits until this many threads are held at a failpoint; let_go {name} releases them
/// - logged {text}: waits until the log contains the text, if the config has {log: true}; forget_log clears it
/// - told: returns the number of progress reports about loading weights
/// - forget: discards the events so far
/// - destroy {engine}: destroys that engine
/// - destroy {let_go}: destroys the cache; once it is closed, releases the threads held at that failpoint
/// - exit: ends the process
fn run(served: &mut Option<Served>, command: &Value) -> cleave::error::Result<Value> {
    let what = command["do"].as_str().unwrap();
    if what == "arm" {
        let action = match command["action"].as_str().unwrap() {
            "kill" => Action::Signal(libc::SIGKILL),
            "stop" => Action::Signal(libc::SIGSTOP),
            "panic" => Action::Panic,
            "hold" => Action::Hold,
            other => Action::Pause(Duration::from_millis(other.parse().unwrap())),
        };
        failpoint::arm(command["name"].as_str().unwrap(), number(command, "nth").max(1), action);
        return Ok(json!({}));
    }
    if what == "reached" {
        let (name, threads) = (command["name"].as_str().unwrap(), number(command, "threads") as usize);
        if !failpoint::reached(name, threads, LONG) {
            cleave::bail!(Timeout, "{threads} threads did not reach {name}");
        }
        return Ok(json!({}));
    }
    if what == "let_go" {
        failpoint::let_go(command["name"].as_str().unwrap());
        return Ok(json!({}));
    }
    if what == "forget_log" {
        LOGGED.lock().unwrap().clear();
        return Ok(json!({}));
    }
    if what == "logged" {
        let text = command["text"].as_str().unwrap();
        let until = Instant::now() + LONG;
        while !LOGGED.lock().unwrap().iter().any(|line| line.contains(text)) {
            if Instant::now() > until {
                cleave::bail!(Timeout, "{text:?} was not logged");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
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
        "told" => Ok(json!({"times": s.told})),
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
                    // Fixes the step length, because a device's engine would otherwise measure one, which is slow on a
                    // simulated device.
                    max_batch_tokens: command["chunk"].as_u64().unwrap_or(512) as usize,
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
            let kind = if what == "first" { EventKind::Token } else { EventKind::KvStreamStarted };
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
        "renew" => {
            s.cache.kv().handles().renew(KvId(number(command, "kv")), Duration::from_secs(30)).map(|()| json!({}))
        }
        "release" => s.cache.kv().handles().release(KvId(number(command, "kv"))).map(|()| json!({})),
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
            let info = s.cache.kv().handles().info(KvId(number(command, "kv")))?;
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
                None => {
                    if let Some(name) = command["let_go"].as_str().map(str::to_string) {
                        let cache = s.cache.clone();
                        std::thread::spawn(move || {
                            while !cache.kv().is_closed() {
                                std::thread::sleep(Duration::from_millis(1));
                            }
                            failpoint::let_go(&name);
                        });
                    }
                    s.cache.close();
                }
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
        share_weights: config["share_weights"] == true,
        ..CacheOptions::default()
    };
    // The device and the settings of its simulated driver.
    let devices: Vec<i32> = config["device"].as_i64().map(|ordinal| ordinal as i32).into_iter().collect();
    if !devices.is_empty() || config["driver_loaded"] == true {
        super::device::load(config["driver"].as_str().unwrap_or_default());
    }
    if config["log"] == true {
        let sink = |_, _: &str, text: &str| LOGGED.lock().unwrap().push(text.to_string());
        cleave::log::set(cleave::log::Level::Debug as i32, Some(Box::new(sink)))?;
    }
    let mut told = 0;
    let cache = ModelCache::create_watched(&model, &devices, options, &mut |done, total| {
        told += u64::from(done > 0 && done < total);
        Ok(())
    })?;
    let mut port = 0;
    if let Some(address) = config["listen"].as_str() {
        let encryption = match config["encryption"].as_str() {
            Some("always") => Encryption::Always,
            Some("never") => Encryption::Never,
            _ => Encryption::Auto,
        };
        port = cache.listen(address, config["advertise"].as_str(), encryption)?;
    }
    Ok((Served { cache, queue: Queue::new(0)?, engines: HashMap::new(), events: Vec::new(), told }, port))
}

impl Served {
    fn until(&mut self, within: Option<Duration>, wanted: impl Fn(&Event) -> bool) -> Option<Event> {
        let until = Instant::now() + within.unwrap_or(LONG);
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

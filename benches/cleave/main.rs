//! `make bench`: measures the figures of docs/performance.md, each beside a bound or a peer of the same run.
//!
//! Options: `--model A|B` (default: both), `--only start|prefill|decode|handoff|transfer|role|peer` (default: all of
//! them), `--batches N,N,...` (of decode), `--threads N` (default: all CPUs), `--json FILE`. With
//! `LLAMA_BENCH=<path to llama-bench>`, llama.cpp runs the same weights (or `GGUF_A`, `GGUF_B`).

mod ceilings;
mod host;
mod peer;
mod report;
mod synthetic;
mod transfer;

use cleave::engine::{Event, EventKind, Role};
use cleave::kv::KvId;
use cleave::model::Model;
use host::{Host, request};
use report::Report;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use synthetic::Shape;

struct Options {
    shapes: Vec<Shape>,
    threads: usize,
    only: Option<String>,
    batches: Vec<u64>,
    json: PathBuf,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }
}

fn options() -> Options {
    let mut options = Options {
        shapes: vec![synthetic::A, synthetic::B],
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        only: None,
        batches: vec![1, 8, 16, 32],
        json: PathBuf::from("target/bench/cleave.json"),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => {}
            "--model" => {
                let name = args.next().unwrap_or_default();
                options.shapes.retain(|s| s.name == name);
            }
            "--only" => options.only = args.next(),
            "--batches" => {
                let list = args.next().unwrap_or_default();
                options.batches = list.split(',').map(|n| n.parse().expect("--batches N,N,...")).collect();
            }
            "--threads" => options.threads = args.next().and_then(|n| n.parse().ok()).expect("--threads N"),
            "--json" => options.json = args.next().expect("--json FILE").into(),
            other => panic!("unknown option {other}"),
        }
    }
    options
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--exporter") {
        return transfer::serve(&args[at + 1..]);
    }
    let options = options();
    let threads = options.threads;
    let mut report = Report::default();
    eprintln!("ceilings of this machine, {threads} threads");
    let read = ceilings::read_gb_per_s(threads);
    report.add("-", "memory read", read, "GB/s");
    let copy = ceilings::copy_gb_per_s(64 << 20);
    report.add("-", "memcpy, 64 MiB, 1 thread", copy, "GB/s");

    let root = Path::new("target/bench/models");
    for shape in &options.shapes {
        eprintln!("model {}: writing it if it is not there", shape.name);
        let dir = shape.write(root).expect("the synthetic model can be written");
        let model = Model::load(dir.to_str().unwrap()).unwrap();
        if options.wants("start") {
            start(&mut report, shape, &dir, threads);
        }
        if options.wants("prefill") {
            prefill(&mut report, shape, &model, threads);
        }
        if options.wants("decode") {
            decode(&mut report, shape, &model, &options, read);
        }
        if options.wants("handoff") {
            handoff(&mut report, shape, &model, threads, copy);
        }
        if options.wants("transfer") {
            transfer::run(&mut report, shape, &dir, &model, threads);
        }
        if options.wants("role") {
            role_switch(&mut report, shape, &model, threads);
        }
        drop(model);
        if options.wants("peer") {
            llama(&mut report, shape, &dir, threads);
        }
    }
    report.print();
    let facts = serde_json::json!({"threads": threads, "version": env!("CARGO_PKG_VERSION"), "cpu": cpu_name()});
    std::fs::create_dir_all(options.json.parent().unwrap()).unwrap();
    report.write_json(&options.json, &facts).unwrap();
    println!("\nJSON: {}", options.json.display());
}

fn ms_since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// Loading a model, creating its first engine, and the cost of a second engine.
fn start(report: &mut Report, shape: &Shape, dir: &Path, threads: usize) {
    let begun = Instant::now();
    let model = Model::load(dir.to_str().unwrap()).unwrap();
    let host = Host::new(&model, threads);
    let first = host.engine(Role::Mixed);
    report.add(shape.name, "load + cache + first engine", ms_since(begun), "ms");
    host.run(&first, vec![request(64, 4, 0)]);
    let before = resident_bytes();
    let begun = Instant::now();
    let second = host.engine(Role::Decode);
    report.add(shape.name, "second engine, created", ms_since(begun), "ms");
    let weights = model.info().weight_bytes as f64;
    let grown = (resident_bytes() - before).max(0.0);
    report.add_ratio(shape.name, "second engine, memory when created", grown / 1e6, "MB", "weights", weights / 1e6);
    host.run(&second, vec![request(64, 4, 1)]);
    let grown = (resident_bytes() - before).max(0.0);
    report.add_ratio(shape.name, "second engine, memory after use", grown / 1e6, "MB", "weights", weights / 1e6);
}

fn prefill(report: &mut Report, shape: &Shape, model: &Arc<Model>, threads: usize) {
    let host = Host::new(model, threads);
    let engine = host.engine(Role::Prefill);
    for n in [512, 2048] {
        let mut best = f64::MAX;
        for salt in 0..3 {
            let begun = Instant::now();
            let events = host.run(&engine, vec![request(n, 1, salt)]);
            best = best.min(begun.elapsed().as_secs_f64());
            release(&host, &events);
        }
        report.add(shape.name, &format!("prefill {n}"), n as f64 / best, "tokens/s");
    }
}

fn release(host: &Host, events: &std::collections::HashMap<u64, Vec<Event>>) {
    for kv in events.values().flatten().map(|e| e.kv).filter(|&kv| kv != 0) {
        host.cache.kv().handles().release(KvId(kv)).unwrap();
    }
}

fn decode(report: &mut Report, shape: &Shape, model: &Arc<Model>, options: &Options, read: f64) {
    let host = Host::new(model, options.threads);
    let engine = host.engine(Role::Decode);
    let per_pass = model.info().weight_bytes as f64 - (shape.vocab * shape.hidden * 2) as f64;
    for &batch in &options.batches {
        let requests = (0..batch).map(|i| request(8, 48, i)).collect();
        let events = host.run(&engine, requests);
        let rate = steady_rate(events.values());
        let what = format!("decode batch {batch}");
        let limit = read * 1e9 / per_pass * batch as f64;
        report.add_ratio(shape.name, &what, rate, "tokens/s", "memory read limit", limit);
    }
}

/// Tokens/s while all sequences generate: from the latest first token to the earliest last token.
fn steady_rate<'a>(requests: impl Iterator<Item = &'a Vec<Event>> + Clone) -> f64 {
    let tokens = |events: &'a Vec<Event>| events.iter().filter(|e| e.kind == EventKind::Token);
    let begin = requests.clone().map(|r| tokens(r).next().unwrap().timestamp_ns).max().unwrap();
    let end = requests.clone().map(|r| tokens(r).next_back().unwrap().timestamp_ns).min().unwrap();
    let inside = requests.flat_map(tokens).filter(|e| e.timestamp_ns > begin && e.timestamp_ns <= end).count();
    inside as f64 / ((end - begin) as f64 / 1e9)
}

/// Hands 2048 tokens from a prefill engine to a decode engine, in every possible way.
fn handoff(report: &mut Report, shape: &Shape, model: &Arc<Model>, threads: usize, copy: f64) {
    const TOKENS: usize = 2048;
    let host = Host::new(model, threads);
    let prefill = host.engine(Role::Prefill);
    let decode = host.engine(Role::Decode);
    let other = host::cache(model);
    let bytes = TOKENS as f64 * model.info().kv_bytes_per_token as f64;
    let make = |salt| {
        let events = host.run(&prefill, vec![request(TOKENS, 2, salt)]);
        events.values().flatten().find(|e| e.kv != 0).unwrap().kv
    };

    let continue_from = |kv| cleave::engine::Request { kv, ..Default::default() };
    let mut best = f64::MAX;
    for salt in 0..3 {
        let kv = make(salt);
        host.run(&decode, vec![continue_from(kv)]);
        let took = prefill.metrics().export_ns_last + decode.metrics().handoff_ns_last;
        best = best.min(took as f64 / 1e3);
    }
    report.add(shape.name, "handoff 2048, same cache", best, "us");
    report.add(shape.name, "handoff 2048, same cache, bytes", decode.metrics().kv_bytes_in as f64, "bytes");

    let mut add = |what: &str, ms: f64| {
        let rate = bytes / (ms / 1e3) / 1e9;
        report.add(shape.name, &format!("handoff 2048, {what}"), ms, "ms");
        report.add_ratio(shape.name, &format!("handoff 2048, {what}, rate"), rate, "GB/s", "memcpy", copy);
    };
    let kv = make(10);
    let times = |f: &dyn Fn() -> KvId| -> f64 {
        let mut best = f64::MAX;
        for _ in 0..3 {
            let begun = Instant::now();
            let imported = f();
            best = best.min(ms_since(begun));
            other.kv().handles().release(imported).unwrap();
        }
        best
    };
    add(
        "image in memory",
        times(&|| {
            let mut image = vec![0; other_len(&host, kv)];
            let mut at = 0;
            while at < image.len() {
                at += host.cache.kv().images().read(KvId(kv), at as u64, &mut image[at..]).unwrap();
            }
            let imported = other.import(Some(&host.queue), &image, 0).unwrap();
            wait_ready(&host);
            imported
        }),
    );
    let path = std::env::temp_dir().join(format!("cleave-bench-{}.kv", std::process::id()));
    let path = path.as_path();
    add(
        "file, save + load",
        times(&|| {
            host.cache.kv().images().save(KvId(kv), path).unwrap();
            other.kv().images().load(path).unwrap()
        }),
    );
    let _ = std::fs::remove_file(path);
    let ticket = cleave::transport::ticket(host.cache.kv(), KvId(kv)).unwrap();
    let begun = Instant::now();
    let imported = other.import(Some(&host.queue), &ticket, 0).unwrap();
    wait_ready(&host);
    add("ticket to another cache", ms_since(begun));
    other.kv().handles().release(imported).unwrap();
}

fn other_len(host: &Host, kv: u64) -> usize {
    host.cache.kv().handles().info(KvId(kv)).unwrap().image_bytes as usize
}

fn wait_ready(host: &Host) {
    let mut events = Vec::new();
    while host.queue.poll(&mut events, 1, None).unwrap() == 0 {}
    assert!(events[0].kind == EventKind::KvReady && events[0].status.is_none(), "{events:?}");
}

/// Switches the role back and forth with eight sequences in flight.
fn role_switch(report: &mut Report, shape: &Shape, model: &Arc<Model>, threads: usize) {
    let host = Host::new(model, threads);
    let engine = host.engine(Role::Mixed);
    let submitted = engine.submit((0..8).map(|i| request(32, 64, i)).collect());
    let mut worst = 0f64;
    for i in 0..8 {
        let before = engine.metrics().steps;
        while engine.metrics().steps < before + 3 {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        let wanted = if i % 2 == 0 { Role::Decode } else { Role::Mixed };
        engine.set_role(wanted).unwrap();
        while engine.metrics().role != wanted as u32 {
            std::thread::yield_now();
        }
        worst = worst.max(engine.metrics().role_switch_ns_last as f64 / 1e6);
    }
    let step = engine.metrics().step_ns_max as f64 / 1e6;
    host.collect(submitted.ids.len());
    report.add_ratio(shape.name, "role switch under load, worst of 8", worst, "ms", "longest step", step);
}

fn llama(report: &mut Report, shape: &Shape, dir: &Path, threads: usize) {
    let Ok(program) = std::env::var("LLAMA_BENCH") else { return };
    let gguf = match std::env::var(format!("GGUF_{}", shape.name)) {
        Ok(path) => PathBuf::from(path),
        Err(_) => peer::write_gguf(shape, dir).expect("the GGUF file can be written"),
    };
    eprintln!("model {}: llama.cpp on the same weights", shape.name);
    match peer::llama_bench(&program, &gguf, threads, 32) {
        Err(error) => eprintln!("  {error}"),
        Ok(rows) => {
            for (what, theirs) in rows {
                if let Some(ours) = report.value(shape.name, &what) {
                    report.add_ratio(
                        shape.name,
                        &format!("{what} vs llama.cpp"),
                        ours,
                        "tokens/s",
                        "llama.cpp",
                        theirs,
                    );
                }
            }
        }
    }
}

/// Memory of the process in anonymous pages, without mapped files.
fn resident_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name")).unwrap_or("");
    line.split(':').nth(1).unwrap_or("unknown").trim().to_string()
}

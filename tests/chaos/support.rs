//! Two workers with a transport between them, the single steps of a handoff, and the conditions that must hold after
//! each.

pub use super::worker::Worker;
use cleave::engine::{CacheOptions, Engine, EngineOptions, Event, EventKind, ModelCache, Queue, Request};
use cleave::model::Model;
pub use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
pub use std::time::{Duration, Instant};

/// `peer_timeout` of every worker. A silent peer is given up after this time.
pub const TIMEOUT: Duration = Duration::from_secs(1);
/// Added to every time limit, for a machine that is busy or ten times slower than usual.
pub const SLACK: Duration = Duration::from_secs(10);
/// Limit for noticing a dead or stopped peer and getting its blocks back. cleave promises one second on one host, and
/// twice the timeout elsewhere.
pub const NOTICED: Duration = TIMEOUT.saturating_mul(2).saturating_add(SLACK);

pub const PEER: i64 = -14;
pub const EXPIRED: i64 = -9;
pub const NOT_FOUND: i64 = -2;
pub const CORRUPT: i64 = -10;
pub const PERMISSION: i64 = -8;
pub const INCOMPATIBLE: i64 = -7;
pub const CANCELLED: i64 = -11;
pub const OUT_OF_MEMORY: i64 = -5;
pub const SHUTDOWN: i64 = -15;

/// Transport for KV between two workers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    Shared,
    Tcp,
    Encrypted,
    /// Both caches are on the same simulated CUDA device.
    Cuda,
}

impl Way {
    pub fn transport(self) -> u64 {
        match self {
            Way::Shared => 2,
            Way::Tcp | Way::Encrypted => 3,
            Way::Cuda => 5,
        }
    }

    pub fn config(self) -> Value {
        let mut config = json!({"peer_timeout_ms": TIMEOUT.as_millis() as u64});
        if matches!(self, Way::Tcp | Way::Encrypted) {
            config["listen"] = json!("127.0.0.1:0");
        }
        if self == Way::Cuda {
            // A simulated device runs one thing at a time and is slow.
            (config["device"], config["peer_timeout_ms"]) = (json!(0), json!(30_000));
        }
        if self == Way::Encrypted {
            config["encryption"] = json!("always");
        }
        config
    }
}

pub fn with(mut config: Value, more: Value) -> Value {
    more.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
    config
}

pub fn importer() -> Worker {
    Worker::start(Way::Shared.config())
}

/// Starts an importer that `way` can reach.
pub fn importer_by(way: Way) -> Worker {
    if way == Way::Cuda { Worker::start(way.config()) } else { importer() }
}

/// Starts an exporter and pairs `to` with it.
pub fn exporter(way: Way, to: &mut Worker) -> Worker {
    let mut from = Worker::start(way.config());
    pair(&mut from, to, way);
    from
}

#[track_caller]
pub fn pair(from: &mut Worker, to: &mut Worker, way: Way) {
    let address = from.ask(json!({"do": "address"}))["address"].clone();
    let report = to.ask(json!({"do": "pair", "address": address, "transport": way.transport()}));
    assert_eq!(report["status"], 0, "{report}");
}

/// A prompt to hand over, and how.
#[derive(Clone)]
pub struct Job {
    pub tokens: Vec<u32>,
    pub max: u32,
    /// The handle is available while the prompt is still being computed.
    pub stream: bool,
    /// Keeps the job's blocks apart from those of other jobs, so that they must be transferred.
    pub salt: u64,
}

impl Job {
    /// A job of about 20 prefill steps. There are only a few different prompts, so that each reference is computed
    /// once.
    pub fn long(stream: bool, salt: u64) -> Job {
        Job { tokens: prompt(320, salt % 3), max: 12, stream, salt: 1000 + salt }
    }

    pub fn short(salt: u64) -> Job {
        Job { tokens: prompt(40, salt % 3), max: 4, stream: false, salt: 1000 + salt }
    }

    /// The long job, or one that takes a simulated device about as long.
    pub fn by(way: Way, stream: bool, salt: u64) -> Job {
        if way == Way::Cuda { Job { stream, ..Job::short(salt) } } else { Job::long(stream, salt) }
    }

    pub fn want(&self) -> Vec<i64> {
        reference(&self.tokens, self.max)
    }
}

pub fn prompt(n: usize, salt: u64) -> Vec<u32> {
    (0..n as u64).map(|i| 5 + ((i * 7 + salt * 13) % 200) as u32).collect()
}

/// Returns the tokens of an undisturbed engine.
pub fn reference(tokens: &[u32], max: u32) -> Vec<i64> {
    struct Undisturbed {
        engine: Engine,
        queue: Arc<Queue>,
        known: HashMap<(Vec<u32>, u32), Vec<i64>>,
    }
    static UNDISTURBED: OnceLock<Mutex<Undisturbed>> = OnceLock::new();
    let begin = || {
        let model = Model::load(&format!("{}/models/tiny", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let cache = ModelCache::create(&model, &[], CacheOptions { bytes: 8 << 20, ..Default::default() }).unwrap();
        let queue = Queue::new(0).unwrap();
        let engine = Engine::create(&cache, &queue, EngineOptions { threads: 1, ..Default::default() }).unwrap();
        Mutex::new(Undisturbed { engine, queue, known: HashMap::new() })
    };
    let mut undisturbed = UNDISTURBED.get_or_init(begin).lock().unwrap();
    let key = (tokens.to_vec(), max);
    if let Some(known) = undisturbed.known.get(&key) {
        return known.clone();
    }
    let mut request = Request { prompt: tokens.to_vec(), ..Default::default() };
    (request.sampling.max_new_tokens, request.sampling.ignore_eos) = (max, true);
    assert!(undisturbed.engine.submit(vec![request]).refused.is_none());
    let mut events: Vec<Event> = Vec::new();
    while !events.iter().any(|e| e.kind == EventKind::Finished) {
        undisturbed.queue.poll(&mut events, 64, Some(Duration::from_secs(10))).unwrap();
    }
    let said = events.iter().filter(|e| e.kind == EventKind::Token).map(|e| i64::from(e.token)).collect::<Vec<_>>();
    undisturbed.known.insert(key, said.clone());
    said
}

/// A handle of an exporter and its ticket.
pub struct Offer {
    pub job: Job,
    pub request: Value,
    pub kv: Value,
    pub ticket: Value,
}

pub fn prefill(from: &mut Worker, job: &Job) -> Value {
    let submit = json!({"do": "submit", "engine": "prefill", "tokens": job.tokens, "max": job.max, "ignore_eos": true,
        "stream": job.stream, "salt": job.salt, "chunk": 16});
    from.ask(submit)["request"].clone()
}

pub fn offer(from: &mut Worker, job: Job) -> Offer {
    let request = prefill(from, &job);
    let what = if job.stream { "started" } else { "wait" };
    let kv = from.ask(json!({"do": what, "request": request}))["kv"].clone();
    let ticket = from.ask(json!({"do": "ticket", "kv": kv}))["ticket"].clone();
    Offer { job, request, kv, ticket }
}

pub fn import(ticket: &Value) -> Value {
    json!({"do": "import", "ticket": ticket})
}

pub fn decode(kv: &Value, recompute: bool) -> Value {
    json!({"do": "submit", "engine": "decode", "kv": kv, "emit": true, "recompute": recompute})
}

/// Outcome of a request; a refusal counts like a later failure.
#[derive(Debug, PartialEq)]
pub enum End {
    Tokens(Vec<i64>),
    Failed(i64),
}

/// Waits for the end of a request, given the answer to its submit.
#[track_caller]
pub fn end(to: &mut Worker, submitted: Value) -> End {
    if submitted.get("error").is_some() {
        return End::Failed(submitted["status"].as_i64().unwrap());
    }
    let done = to.ask(json!({"do": "wait", "request": submitted["request"], "within_ms": 120_000}));
    assert_eq!(done["ends"], 1, "one end: {done}");
    let tokens: Vec<i64> = done["tokens"].as_array().unwrap().iter().map(|t| t.as_i64().unwrap()).collect();
    match done["status"].as_i64().unwrap() {
        0 => End::Tokens(tokens),
        status => {
            assert!(tokens.is_empty(), "failed, but said something: {done}");
            End::Failed(status)
        }
    }
}

/// Imports a ticket and decodes from it.
#[track_caller]
pub fn take(to: &mut Worker, ticket: &Value, recompute: bool) -> End {
    let imported = to.try_ask(import(ticket));
    if imported.get("error").is_some() {
        return End::Failed(imported["status"].as_i64().unwrap());
    }
    let submitted = to.try_ask(decode(&imported["kv"], recompute));
    let ended = end(to, submitted);
    let ready = to.ask(json!({"do": "ready", "kv": imported["kv"], "within_ms": 120_000}));
    assert!(ready.get("timeout").is_none(), "an import said nothing of its end");
    ended
}

/// Runs a complete handoff that must succeed.
#[track_caller]
pub fn works(from: &mut Worker, to: &mut Worker, job: Job) {
    let offer = offer(from, job);
    assert_eq!(take(to, &offer.ticket, false), End::Tokens(offer.job.want()));
    if offer.job.stream {
        from.ask(json!({"do": "wait", "request": offer.request}));
    }
}

/// A request unrelated to the handoffs that run beside it.
pub struct Bystander(Value, Vec<i64>);

impl Bystander {
    pub fn begin(worker: &mut Worker) -> Bystander {
        Self::of(worker, 80)
    }

    /// Starts one that lasts about as long as handoffs on this way.
    pub fn by(way: Way, worker: &mut Worker) -> Bystander {
        Self::of(worker, if way == Way::Cuda { 8 } else { 80 })
    }

    fn of(worker: &mut Worker, max: u32) -> Bystander {
        let tokens = prompt(30, 7);
        let want = reference(&tokens, max);
        let submit = json!({"do": "submit", "engine": "mixed", "tokens": tokens, "max": max, "ignore_eos": true});
        Bystander(worker.ask(submit), want)
    }

    #[track_caller]
    pub fn check(self, worker: &mut Worker, what: &str) {
        assert_eq!(end(worker, self.0), End::Tokens(self.1), "bystander of {what}");
    }
}

/// Waits at most `within` until only the prefix index holds blocks, and handles too if `exports`.
#[track_caller]
pub fn settled_with(worker: &mut Worker, exports: bool, within: Duration, what: &str) {
    let begun = Instant::now();
    loop {
        let audit = worker.ask(json!({"do": "audit"}));
        assert_eq!(audit["leaked"], 0, "{what}: {audit}");
        let held = |owner: &str| audit[owner].as_u64().unwrap() > 0;
        if !held("requests") && !held("transfers") && held("exports") == exports {
            return;
        }
        let waited = begun.elapsed();
        assert!(waited < within, "{what}: after {waited:?}, handles expected {exports}: {audit}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
pub fn settled(worker: &mut Worker, what: &str) {
    settled_with(worker, false, NOTICED, what);
}

/// Waits until no transfer holds blocks.
#[track_caller]
pub fn no_transfers(worker: &mut Worker, within: Duration, what: &str) {
    let begun = Instant::now();
    loop {
        let audit = worker.ask(json!({"do": "audit"}));
        if audit["transfers"] == 0 {
            return;
        }
        assert!(begun.elapsed() < within, "{what}: after {:?}: {audit}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Pseudo-random numbers that are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

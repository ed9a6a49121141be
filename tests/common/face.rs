//! The library as a host uses it, through either interface: the Rust types or the C functions. A test written against
//! [`Face`] runs with both.
#![allow(dead_code)]

use crate::common::{self, cache_of, tiny_dir};
use cleave::engine::{Engine, EngineOptions, Event, ModelCache, Queue, Request, Role};
use cleave::error::Status;
use cleave::ffi::cache::{cleave_cache_config_t, cleave_cache_create, cleave_cache_destroy};
use cleave::ffi::engine::*;
use cleave::ffi::event::{cleave_event_t, cleave_queue_poll};
use cleave::ffi::handle::{cleave_cache_t, cleave_engine_t, cleave_model_t, cleave_queue_t};
use cleave::ffi::insight::{cleave_audit_t, cleave_cache_audit};
use cleave::ffi::kv::cleave_kv_release;
use cleave::ffi::model::{cleave_model_load, cleave_model_release};
use cleave::ffi::queue::{cleave_queue_create, cleave_queue_destroy};
use cleave::ffi::request::*;
use cleave::kv::KvId;
use std::collections::HashMap;
use std::ffi::CString;
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Status as a C number; 0 is OK.
pub type Code = i32;

/// Contents of one event as C numbers.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub kind: u32,
    pub finish: u32,
    pub status: Code,
    pub token: i32,
    pub request: u64,
    pub kv: u64,
    pub index: u32,
}

/// A request for exactly `n` greedy tokens. With a handle and no prompt it continues the handle with its own
/// parameters.
#[derive(Clone, Debug, Default)]
pub struct Job {
    pub prompt: Vec<u32>,
    pub kv: u64,
    pub n: u32,
    pub priority: u32,
}

/// One cache on the tiny model, one queue, and the calls of an engine's life cycle.
pub trait Face: Sized {
    type Engine;
    fn open(blocks: u64, queue_capacity: u32) -> Self;
    fn engine(&self, role: Role, max_sequences: u32, max_waiting: u32) -> Self::Engine;
    fn submit(&self, engine: &Self::Engine, job: &Job) -> Result<u64, Code>;
    fn cancel(&self, engine: &Self::Engine, id: u64) -> Code;
    fn export(&self, engine: &Self::Engine, id: u64) -> Code;
    fn set_role(&self, engine: &Self::Engine, role: Role) -> Code;
    fn drain(&self, engine: &Self::Engine, timeout: Duration) -> Code;
    fn destroy(&self, engine: Self::Engine);
    /// Returns available events; waits at most `timeout` for the first.
    fn poll(&self, timeout: Duration) -> Vec<Seen>;
    fn release(&self, kv: u64) -> Code;
    /// Number of blocks held by requests, transfers and exports, and number of leaked blocks.
    fn held(&self) -> (usize, usize);
}

pub struct RustFace {
    cache: Arc<ModelCache>,
    queue: Arc<Queue>,
}

fn code<T>(outcome: cleave::error::Result<T>) -> Code {
    outcome.map_or_else(|error| error.status as Code, |_| 0)
}

impl Face for RustFace {
    type Engine = Engine;

    fn open(blocks: u64, queue_capacity: u32) -> RustFace {
        RustFace { cache: cache_of(blocks), queue: Queue::new(queue_capacity as usize).unwrap() }
    }

    fn engine(&self, role: Role, max_sequences: u32, max_waiting: u32) -> Engine {
        let options = EngineOptions {
            max_sequences: max_sequences as usize,
            max_waiting: max_waiting as usize,
            ..common::role(role)
        };
        Engine::create(&self.cache, &self.queue, options).expect("an engine")
    }

    fn submit(&self, engine: &Engine, job: &Job) -> Result<u64, Code> {
        let mut request = match job.kv {
            0 => common::request(&job.prompt, job.n),
            kv => Request { prompt: job.prompt.clone(), ..common::continuation(kv) },
        };
        request.sampling.logprobs = None;
        request.priority = job.priority;
        let submitted = engine.submit(vec![request]);
        submitted.refused.map_or_else(|| Ok(submitted.ids[0]), |error| Err(error.status as Code))
    }

    fn cancel(&self, engine: &Engine, id: u64) -> Code {
        code(engine.cancel(id))
    }

    fn export(&self, engine: &Engine, id: u64) -> Code {
        code(engine.export(id))
    }

    fn set_role(&self, engine: &Engine, role: Role) -> Code {
        code(engine.set_role(role))
    }

    fn drain(&self, engine: &Engine, timeout: Duration) -> Code {
        code(engine.drain(Some(timeout)))
    }

    fn destroy(&self, engine: Engine) {
        drop(engine);
    }

    fn poll(&self, timeout: Duration) -> Vec<Seen> {
        let mut events = Vec::new();
        self.queue.poll(&mut events, 64, Some(timeout)).unwrap();
        let seen = |event: &Event| Seen {
            kind: event.kind as u32,
            finish: event.finish.map_or(0, |reason| reason as u32),
            status: event.status.map_or(0, |status| status as Code),
            token: event.token,
            request: event.request,
            kv: event.kv,
            index: event.index,
        };
        events.iter().map(seen).collect()
    }

    fn release(&self, kv: u64) -> Code {
        code(self.cache.kv().handles().release(KvId(kv)))
    }

    fn held(&self) -> (usize, usize) {
        let audit = self.cache.kv().audit();
        (audit.by_requests + audit.by_transfers + audit.by_exports, audit.leaked)
    }
}

/// The C functions. Every pointer that is passed is valid for the call, as their SAFETY comments require.
pub struct CFace {
    model: *mut cleave_model_t,
    cache: *mut cleave_cache_t,
    queue: *mut cleave_queue_t,
}

/// Creates an API struct with its size set and everything else zero.
fn sized<T>() -> T {
    // SAFETY: API structs consist of plain numbers, for which 0 is valid, and begin with their size.
    unsafe {
        let mut value: T = std::mem::zeroed();
        (&raw mut value).cast::<u32>().write(size_of::<T>() as u32);
        value
    }
}

impl Face for CFace {
    type Engine = *mut cleave_engine_t;

    fn open(blocks: u64, queue_capacity: u32) -> CFace {
        let (mut model, mut cache, mut queue) = (null_mut(), null_mut(), null_mut());
        let path = CString::new(tiny_dir()).unwrap();
        let mut config: cleave_cache_config_t = sized();
        config.bytes_per_device = blocks * 16 * common::tiny().info().kv_bytes_per_token;
        // SAFETY: see the type.
        unsafe {
            assert_eq!(cleave_model_load(path.as_ptr(), &mut model, null_mut()), 0);
            assert_eq!(cleave_cache_create(model, null(), 0, &config, &mut cache, null_mut()), 0);
            assert_eq!(cleave_queue_create(queue_capacity, &mut queue, null_mut()), 0);
        }
        CFace { model, cache, queue }
    }

    fn engine(&self, role: Role, max_sequences: u32, max_waiting: u32) -> *mut cleave_engine_t {
        let mut config: cleave_engine_config_t = sized();
        config.role = role as u32;
        (config.max_sequences, config.max_waiting) = (max_sequences, max_waiting);
        (config.threads, config.max_batch_tokens) = (1, 512);
        let mut engine = null_mut();
        // SAFETY: see the type.
        let status = unsafe { cleave_engine_create(self.cache, self.queue, &config, &mut engine, null_mut()) };
        assert_eq!(status, 0, "an engine");
        engine
    }

    fn submit(&self, engine: &*mut cleave_engine_t, job: &Job) -> Result<u64, Code> {
        let mut desc: cleave_request_desc_t = sized();
        desc.kv = job.kv;
        desc.prompt_len = job.prompt.len() as u32;
        desc.priority = job.priority;
        if job.kv == 0 {
            desc.max_new_tokens = job.n;
            desc.flags = CLEAVE_REQUEST_IGNORE_EOS;
        }
        let tokens: Vec<i32> = job.prompt.iter().map(|&token| token as i32).collect();
        let (mut id, mut accepted) = (0, 0);
        // SAFETY: see the type.
        let status = unsafe {
            let n = tokens.len();
            cleave_engine_submit(*engine, &desc, 1, tokens.as_ptr(), n, &mut id, &mut accepted, null_mut())
        };
        assert_eq!(accepted, usize::from(status == 0));
        if status == 0 { Ok(id) } else { Err(status) }
    }

    fn cancel(&self, engine: &*mut cleave_engine_t, id: u64) -> Code {
        // SAFETY: see the type.
        unsafe { cleave_engine_cancel(*engine, id, null_mut()) }
    }

    fn export(&self, engine: &*mut cleave_engine_t, id: u64) -> Code {
        // SAFETY: see the type.
        unsafe { cleave_engine_export(*engine, id, null_mut()) }
    }

    fn set_role(&self, engine: &*mut cleave_engine_t, role: Role) -> Code {
        // SAFETY: see the type.
        unsafe { cleave_engine_set_role(*engine, role as u32, null_mut()) }
    }

    fn drain(&self, engine: &*mut cleave_engine_t, timeout: Duration) -> Code {
        // SAFETY: see the type.
        unsafe { cleave_engine_drain(*engine, timeout.as_millis() as u32, null_mut()) }
    }

    fn destroy(&self, engine: *mut cleave_engine_t) {
        // SAFETY: see the type.
        unsafe { cleave_engine_destroy(engine) }
    }

    fn poll(&self, timeout: Duration) -> Vec<Seen> {
        let (mut events, mut n) = (Vec::<cleave_event_t>::with_capacity(64), 0);
        let (size, timeout) = (size_of::<cleave_event_t>(), timeout.as_millis() as u32);
        // SAFETY: see the type; the call initializes the first n events.
        unsafe {
            assert_eq!(cleave_queue_poll(self.queue, events.as_mut_ptr(), size, 64, timeout, &mut n), 0);
            events.set_len(n);
        }
        let seen = |event: &cleave_event_t| Seen {
            kind: event.r#type,
            finish: event.finish_reason,
            status: event.status,
            token: event.token,
            request: event.request,
            kv: event.kv,
            index: event.index,
        };
        events.iter().map(seen).collect()
    }

    fn release(&self, kv: u64) -> Code {
        // SAFETY: see the type.
        unsafe { cleave_kv_release(self.cache, kv, null_mut()) }
    }

    fn held(&self) -> (usize, usize) {
        let mut audit: cleave_audit_t = sized();
        // SAFETY: see the type.
        assert_eq!(unsafe { cleave_cache_audit(self.cache, &mut audit, null_mut()) }, 0);
        ((audit.by_requests + audit.by_transfers + audit.by_exports) as usize, audit.leaked as usize)
    }
}

impl Drop for CFace {
    fn drop(&mut self) {
        // SAFETY: see the type.
        unsafe {
            cleave_queue_destroy(self.queue);
            cleave_cache_destroy(self.cache);
            cleave_model_release(self.model);
        }
    }
}

/// Outcome of a request.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    pub tokens: Vec<i32>,
    pub end: Option<Seen>,
}

/// A host for either interface that collects events as they arrive.
pub struct Either<F: Face> {
    pub face: F,
    pub requests: HashMap<u64, Ending>,
    /// Requests in the order of their FINISHED events.
    pub ended: Vec<u64>,
}

impl<F: Face> Either<F> {
    pub fn open(blocks: u64, queue_capacity: u32) -> Either<F> {
        Either { face: F::open(blocks, queue_capacity), requests: HashMap::new(), ended: Vec::new() }
    }

    pub fn poll(&mut self, timeout: Duration) {
        for seen in self.face.poll(timeout) {
            let request = self.requests.entry(seen.request).or_default();
            assert!(request.end.is_none(), "an event after FINISHED: {seen:?}");
            match seen.kind {
                1 => request.tokens.push(seen.token),
                2 => {
                    self.ended.push(seen.request);
                    request.end = Some(seen);
                }
                other => panic!("event of type {other} for a request"),
            }
        }
    }

    /// Submits on a small queue that earlier requests' tokens may have filled. Polls only as often as necessary.
    pub fn submit(&mut self, engine: &F::Engine, job: &Job) -> u64 {
        loop {
            match self.face.submit(engine, job) {
                Ok(id) => return id,
                Err(status) if status == Status::WouldBlock as Code => self.poll(Duration::from_millis(10)),
                Err(status) => panic!("refused with {status}: {job:?}"),
            }
        }
    }

    fn wait(&mut self, id: u64, what: &str, reached: impl Fn(&Ending) -> bool) -> Ending {
        let begun = Instant::now();
        loop {
            if let Some(request) = self.requests.get(&id)
                && (request.end.is_some() || reached(request))
            {
                return request.clone();
            }
            assert!(begun.elapsed() < Duration::from_secs(300), "request {id:#x}: {what} did not come");
            self.poll(Duration::from_secs(1));
        }
    }

    pub fn finish(&mut self, id: u64) -> (Ending, Seen) {
        let ending = self.wait(id, "its end", |_| false);
        let end = ending.end.expect("waited for");
        (ending, end)
    }

    pub fn tokens(&mut self, id: u64, n: usize) {
        self.wait(id, "its tokens", |request| request.tokens.len() >= n);
    }

    /// Checks that nobody holds blocks and that none is leaked.
    pub fn assert_quiescent(&self) {
        let begun = Instant::now();
        loop {
            let (held, leaked) = self.face.held();
            assert_eq!(leaked, 0);
            if held == 0 {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(300), "{held} blocks are still held");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

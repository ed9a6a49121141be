//! The driver's state, behind one mutex, and the wrappers through which its functions are entered.

use crate::arena::Arena;
use crate::capture::{Capture, Ops};
use crate::green::{self, Green};
use crate::memory::{Physical, Range};
use crate::settings::Settings;
use crate::stream::{Event, Stream};
use crate::*;
use std::cell::{Cell, RefCell};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, Mutex, MutexGuard};

pub struct Device {
    pub arena: Arena,
    pub used: usize,
    /// Reference count of the primary context.
    pub refs: usize,
    pub context: usize,
}

pub struct Context {
    pub device: usize,
    /// Error that every further call in this context returns.
    pub sticky: Option<Error>,
}

pub struct Function {
    pub module: usize,
    /// Context of the function; None if it belongs to a library.
    pub context: Option<usize>,
    pub name: String,
    pub sizes: Vec<usize>,
    pub max_dynamic: i32,
}

pub struct State {
    pub settings: Settings,
    pub initialised: bool,
    pub calls: u64,
    /// Number of captures begun; below, number of graphs launched.
    pub recorded: u64,
    pub replayed: u64,
    next_handle: usize,
    pub devices: BTreeMap<usize, Device>,
    pub contexts: BTreeMap<usize, Context>,
    /// Device memory and pinned memory by address.
    pub ranges: BTreeMap<usize, Range>,
    pub physical: BTreeMap<u64, Physical>,
    /// Reserved ranges: address and size.
    pub reserved: BTreeMap<usize, usize>,
    /// Ranges that were reserved earlier.
    pub freed: BTreeMap<usize, usize>,
    pub streams: BTreeMap<usize, Stream>,
    pub next_place: u64,
    pub events: BTreeMap<usize, Event>,
    /// Contexts of modules, by module handle.
    pub modules: BTreeMap<usize, usize>,
    pub libraries: BTreeSet<usize>,
    pub functions: BTreeMap<usize, Function>,
    pub captures: BTreeMap<u64, Capture>,
    pub greens: BTreeMap<usize, Green>,
    /// Device and multiprocessors of each descriptor.
    pub descriptions: BTreeMap<usize, (usize, green::Set)>,
    pub graphs: BTreeMap<usize, (usize, Ops)>,
    pub execs: BTreeMap<usize, (usize, Ops)>,
    /// Enabled peer access, as pairs (from, to) of contexts.
    pub peers: Vec<(usize, usize)>,
    /// Number of copies between devices that went through the host.
    pub staged: u64,
    /// Number of bytes copied from device memory to the host.
    pub downloaded: u64,
    /// Objects that were still alive when their contexts ended.
    pub left: Vec<String>,
    pub faults: BTreeMap<i32, usize>,
    /// Stream priority and number of multiprocessors of the last kernel.
    pub last_kernel: (i32, u32),
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
    let text = std::env::var("SIMULATED_CUDA").unwrap_or_default();
    let settings = Settings::default().with(&text).unwrap_or_else(|| {
        fault::log(&format!("SIMULATED_CUDA: unknown settings: {text}"));
        Settings::default()
    });
    Mutex::new(State {
        settings,
        initialised: false,
        calls: 0,
        recorded: 0,
        replayed: 0,
        next_handle: 0x5100_0000,
        devices: BTreeMap::new(),
        contexts: BTreeMap::new(),
        ranges: BTreeMap::new(),
        physical: BTreeMap::new(),
        reserved: BTreeMap::new(),
        freed: BTreeMap::new(),
        streams: BTreeMap::new(),
        next_place: 1,
        events: BTreeMap::new(),
        modules: BTreeMap::new(),
        libraries: BTreeSet::new(),
        functions: BTreeMap::new(),
        captures: BTreeMap::new(),
        greens: BTreeMap::new(),
        descriptions: BTreeMap::new(),
        graphs: BTreeMap::new(),
        execs: BTreeMap::new(),
        peers: Vec::new(),
        staged: 0,
        downloaded: 0,
        left: Vec::new(),
        faults: BTreeMap::new(),
        last_kernel: (0, 0),
    })
});

thread_local! {
    /// Context stack of this thread; the current context is last.
    pub static CURRENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    /// CUstreamCaptureMode of this thread.
    pub static CAPTURE_MODE: Cell<i32> = const { Cell::new(0) };
}

pub fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn finish(done: std::thread::Result<Result<()>>) -> i32 {
    match done {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => error.0,
        Err(_) => UNKNOWN.0,
    }
}

/// Entry of a function that can fail. The call is counted, and `fail=N` can make it fail.
pub fn enter(f: impl FnOnce(&mut State) -> Result<()>) -> i32 {
    finish(catch_unwind(AssertUnwindSafe(|| {
        let mut state = lock();
        state.calls += 1;
        if state.calls == state.settings.fail {
            return Err(state.injected());
        }
        f(&mut state)
    })))
}

/// Entry of a function that destroys something or changes nothing. Such a call never fails on demand.
pub fn leave(f: impl FnOnce(&mut State) -> Result<()>) -> i32 {
    finish(catch_unwind(AssertUnwindSafe(|| f(&mut lock()))))
}

/// Writes a result to the caller's pointer.
///
/// # Safety
///
/// `to` is null or has room for a `T`.
pub unsafe fn put<T>(to: *mut T, value: T) -> Result<()> {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: checked for null, and the caller vouches for the rest.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

impl State {
    fn injected(&mut self) -> Error {
        let error = Error(self.settings.error);
        if matches!(error.0, 700 | 702 | 714..=719)
            && let Some(context) = self.current_handle().and_then(|handle| self.contexts.get_mut(&handle))
        {
            context.sticky = Some(error);
        }
        fault::log(&format!("call {}: error {} as asked for", self.calls, error.0));
        error
    }

    pub fn handle(&mut self) -> usize {
        self.next_handle += 16;
        self.next_handle
    }

    pub fn ready(&self) -> Result<()> {
        if self.initialised { Ok(()) } else { Err(NOT_INITIALIZED) }
    }

    pub fn device(&self, ordinal: i32) -> Result<usize> {
        self.ready()?;
        usize::try_from(ordinal).ok().filter(|device| *device < self.settings.devices).ok_or(INVALID_DEVICE)
    }

    pub fn device_of(&mut self, ordinal: usize) -> Result<&mut Device> {
        match self.devices.entry(ordinal) {
            Entry::Occupied(found) => Ok(found.into_mut()),
            Entry::Vacant(free) => Ok(free.insert(Device { arena: Arena::new()?, used: 0, refs: 0, context: 0 })),
        }
    }

    fn current_handle(&self) -> Option<usize> {
        CURRENT.with_borrow(|all| all.last().copied())
    }

    /// Returns the current context if no error has occurred in it.
    pub fn current(&self) -> Result<usize> {
        self.ready()?;
        let handle = self.current_handle().ok_or(INVALID_CONTEXT)?;
        self.healthy(handle)
    }

    pub fn healthy(&self, context: usize) -> Result<usize> {
        match self.contexts.get(&context) {
            None => Err(CONTEXT_IS_DESTROYED),
            Some(Context { sticky: Some(error), .. }) => Err(*error),
            Some(_) => Ok(context),
        }
    }

    pub fn retain(&mut self, ordinal: usize) -> Result<usize> {
        let handle = self.handle();
        let device = self.device_of(ordinal)?;
        if device.refs == 0 {
            device.context = handle;
            self.begin(ordinal, handle);
        }
        let device = self.device_of(ordinal)?;
        device.refs += 1;
        Ok(device.context)
    }

    pub fn begin(&mut self, device: usize, handle: usize) {
        self.contexts.insert(handle, Context { device, sticky: None });
        self.streams.insert(handle, Stream::null(handle));
    }

    pub fn release(&mut self, ordinal: usize) -> Result<()> {
        let device = self.device_of(ordinal)?;
        if device.refs == 0 {
            return Err(INVALID_CONTEXT);
        }
        device.refs -= 1;
        if device.refs == 0 {
            let context = std::mem::take(&mut device.context);
            self.end(context);
        }
        Ok(())
    }

    /// Ends a context and everything in it.
    pub fn end(&mut self, context: usize) {
        let _ = self.run_all(context);
        let left: Vec<_> = self.alive().into_iter().filter(|(of, _)| *of == context).collect();
        self.left.extend(left.into_iter().map(|(_, what)| format!("{what}, left at its context's end")));
        let ranges: Vec<_> = self.ranges.iter().filter(|(_, range)| range.context == context).map(|x| *x.0).collect();
        for at in ranges {
            self.forget(at);
        }
        self.streams.retain(|_, stream| stream.context != context);
        self.events.retain(|_, event| event.context != context);
        self.modules.retain(|_, of| *of != context);
        self.functions.retain(|_, function| function.context != Some(context));
        self.greens.retain(|_, green| green.context != context);
        self.captures.retain(|_, capture| capture.context != context);
        self.graphs.retain(|_, (of, _)| *of != context);
        self.execs.retain(|_, (of, _)| *of != context);
        self.peers.retain(|(of, to)| *of != context && *to != context);
        self.contexts.remove(&context);
    }

    /// Lists the objects that somebody must still destroy, with their contexts.
    pub fn alive(&self) -> Vec<(usize, String)> {
        let mut out = Vec::new();
        let on = |context: usize| self.contexts.get(&context).map_or(-1, |context| context.device as i64);
        for (at, range) in &self.ranges {
            out.push((range.context, format!("{} of {} bytes at {at:#x}", range.kind.name(), range.bytes)));
        }
        for physical in self.physical.values().filter(|physical| physical.handles > 0) {
            out.push((0, format!("memory by handle of {} bytes", physical.bytes)));
        }
        for (at, bytes) in &self.reserved {
            out.push((0, format!("reserved addresses of {bytes} bytes at {at:#x}")));
        }
        for stream in self.streams.values().filter(|stream| !stream.null) {
            out.push((stream.context, format!("stream of device {}", on(stream.context))));
        }
        for event in self.events.values() {
            out.push((event.context, format!("event of device {}", on(event.context))));
        }
        for context in self.modules.values() {
            out.push((*context, format!("module of device {}", on(*context))));
        }
        for _ in &self.libraries {
            out.push((0, "library".to_string()));
        }
        for green in self.greens.values() {
            let n = green::count(&green.set);
            out.push((green.context, format!("green context of {n} multiprocessors of device {}", green.device)));
        }
        for capture in self.captures.values() {
            out.push((capture.context, "capture under way".to_string()));
        }
        for (context, ops) in self.graphs.values() {
            out.push((*context, format!("graph of {} operations", ops.len())));
        }
        for (context, ops) in self.execs.values() {
            out.push((*context, format!("executable graph of {} operations", ops.len())));
        }
        for (ordinal, device) in self.devices.iter().filter(|(_, device)| device.refs > 0) {
            out.push((0, format!("primary context of device {ordinal}, retained {} times", device.refs)));
        }
        out
    }
}

/// Pending work of a stream, in order, with the place of each piece.
pub type Queue = VecDeque<(u64, crate::stream::Op)>;

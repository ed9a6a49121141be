//! Stream capture: submitted work becomes a graph, in the order of submission.

use crate::state::{CAPTURE_MODE, State};
use crate::stream::{Op, Recorded};
use crate::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::ThreadId;

/// For each stream, how much of its captured work comes before a given point.
pub type Clock = BTreeMap<usize, usize>;
pub type Ops = Arc<[Op]>;

pub const GLOBAL: i32 = 0;
pub const THREAD_LOCAL: i32 = 1;
pub const RELAXED: i32 = 2;

pub struct Capture {
    pub context: usize,
    pub origin: usize,
    pub mode: i32,
    pub thread: ThreadId,
    pub invalid: bool,
    pub ops: Vec<Op>,
    /// Clock of each stream that takes part in the capture.
    pub clocks: BTreeMap<usize, Clock>,
}

fn merge(into: &mut Clock, other: &Clock) {
    for (stream, count) in other {
        let known = into.entry(*stream).or_default();
        *known = (*known).max(*count);
    }
}

impl State {
    pub fn capture_of(&mut self, stream: usize) -> Option<&mut Capture> {
        let id = self.streams.get(&stream)?.capture?;
        self.captures.get_mut(&id)
    }

    /// Refuses a call that the rules of CUstreamCaptureMode forbid during a capture, and invalidates that capture.
    pub fn not_capturing(&mut self) -> Result<()> {
        let (here, mine) = (std::thread::current().id(), CAPTURE_MODE.get());
        let mut forbidden = false;
        for capture in self.captures.values_mut() {
            let counts = match capture.mode {
                GLOBAL => mine == GLOBAL || (mine == THREAD_LOCAL && capture.thread == here),
                THREAD_LOCAL => mine != RELAXED && capture.thread == here,
                _ => false,
            };
            if counts {
                capture.invalid = true;
                forbidden = true;
            }
        }
        if forbidden { Err(STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Refuses to wait for a stream that is capturing.
    pub fn stream_not_capturing(&mut self, stream: usize) -> Result<()> {
        if let Some(capture) = self.capture_of(stream) {
            capture.invalid = true;
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        self.default_not_capturing(stream)
    }

    /// Refuses use of the default stream while a blocking stream captures, because the default stream would wait for
    /// it.
    fn default_not_capturing(&mut self, stream: usize) -> Result<()> {
        let Some(found) = self.streams.get(&stream).filter(|found| found.null) else { return Ok(()) };
        let context = found.context;
        let blocking: Vec<u64> = self
            .streams
            .values()
            .filter(|other| other.context == context && other.blocking)
            .filter_map(|other| other.capture)
            .collect();
        for id in &blocking {
            if let Some(capture) = self.captures.get_mut(id) {
                capture.invalid = true;
            }
        }
        if blocking.is_empty() { Ok(()) } else { Err(STREAM_CAPTURE_IMPLICIT) }
    }

    /// Adds `op` to the graph if the stream is capturing, and returns whether it is.
    pub fn add_to_capture(&mut self, stream: usize, op: &Op) -> Result<bool> {
        self.default_not_capturing(stream)?;
        let Some(capture) = self.capture_of(stream) else { return Ok(false) };
        if capture.invalid {
            return Err(STREAM_CAPTURE_INVALIDATED);
        }
        capture.ops.push(op.clone());
        *capture.clocks.entry(stream).or_default().entry(stream).or_default() += 1;
        Ok(true)
    }

    pub fn begin_capture(&mut self, stream: usize, mode: i32) -> Result<()> {
        let found = &self.streams[&stream];
        if found.null || !(GLOBAL..=RELAXED).contains(&mode) {
            return Err(if found.null { STREAM_CAPTURE_UNSUPPORTED } else { INVALID_VALUE });
        }
        if found.capture.is_some() {
            return Err(INVALID_VALUE);
        }
        let context = found.context;
        let id = self.handle() as u64;
        let clocks = BTreeMap::from([(stream, Clock::new())]);
        let thread = std::thread::current().id();
        let capture = Capture { context, origin: stream, mode, thread, invalid: false, ops: Vec::new(), clocks };
        self.captures.insert(id, capture);
        self.streams.get_mut(&stream).expect("a stream").capture = Some(id);
        Ok(())
    }

    pub fn end_capture(&mut self, stream: usize) -> Result<usize> {
        let Some(id) = self.streams[&stream].capture else { return Err(INVALID_VALUE) };
        let capture = &self.captures[&id];
        if capture.origin != stream {
            return Err(STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != RELAXED && capture.thread != std::thread::current().id() {
            return Err(STREAM_CAPTURE_WRONG_THREAD);
        }
        let capture = self.captures.remove(&id).expect("it is there");
        for other in self.streams.values_mut().filter(|other| other.capture == Some(id)) {
            other.capture = None;
        }
        for event in self.events.values_mut() {
            if matches!(event.recorded, Recorded::Captured { capture, .. } if capture == id) {
                event.recorded = Recorded::Never;
            }
        }
        if capture.invalid {
            return Err(STREAM_CAPTURE_INVALIDATED);
        }
        let joined = &capture.clocks[&stream];
        for (other, clock) in &capture.clocks {
            if joined.get(other).copied().unwrap_or(0) < clock.get(other).copied().unwrap_or(0) {
                return Err(STREAM_CAPTURE_UNJOINED);
            }
        }
        let graph = self.handle();
        self.graphs.insert(graph, (capture.context, capture.ops.into()));
        Ok(graph)
    }

    pub fn record(&mut self, event: usize, stream: usize) -> Result<()> {
        let id = self.streams[&stream].capture;
        self.default_not_capturing(stream)?;
        let recorded = match self.capture_of(stream) {
            Some(capture) if capture.invalid => return Err(STREAM_CAPTURE_INVALIDATED),
            Some(capture) => Recorded::Captured {
                capture: id.expect("it captures"),
                clock: capture.clocks.entry(stream).or_default().clone(),
            },
            None => {
                let place = self.submit(stream, Op::Record { event })?;
                Recorded::In { stream, place, at: None }
            }
        };
        self.events.get_mut(&event).ok_or(INVALID_HANDLE)?.recorded = recorded;
        Ok(())
    }

    pub fn wait(&mut self, stream: usize, event: usize) -> Result<()> {
        self.default_not_capturing(stream)?;
        let mine = self.streams[&stream].capture;
        match (&self.events.get(&event).ok_or(INVALID_HANDLE)?.recorded, mine) {
            (Recorded::Never, _) => Ok(()),
            (Recorded::In { stream: of, place, .. }, None) => {
                let op = Op::Wait { stream: *of, place: *place };
                self.submit(stream, op).map(|_| ())
            }
            (Recorded::In { .. }, Some(id)) => {
                self.captures.get_mut(&id).expect("it captures").invalid = true;
                Err(STREAM_CAPTURE_ISOLATION)
            }
            (Recorded::Captured { capture, clock }, mine) => {
                let (id, clock) = (*capture, clock.clone());
                let found = self.streams.get_mut(&stream).expect("a stream");
                if mine.is_some_and(|mine| mine != id) {
                    return Err(STREAM_CAPTURE_MERGE);
                }
                if found.null {
                    return Err(STREAM_CAPTURE_IMPLICIT);
                }
                // The stream takes part in the capture from here on.
                found.capture = Some(id);
                let capture = self.captures.get_mut(&id).expect("it captures");
                merge(capture.clocks.entry(stream).or_default(), &clock);
                Ok(())
            }
        }
    }
}

//! Streams: queues in which nothing runs until somebody waits.

use crate::capture::Clock;
use crate::state::{Queue, State};
use crate::*;
use simulated_kernels::{self as kernels, Lanes};
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

pub struct Stream {
    pub context: usize,
    /// Marks the legacy default stream, whose handle here is that of its context.
    pub null: bool,
    /// The stream is ordered with the default stream.
    pub blocking: bool,
    pub priority: i32,
    pub queue: Queue,
    pub capture: Option<u64>,
    /// Green context of the stream; `context` is then the primary context.
    pub green: Option<usize>,
}

impl Stream {
    pub fn null(context: usize) -> Stream {
        Stream { context, null: true, blocking: false, priority: 0, queue: Queue::new(), capture: None, green: None }
    }
}

pub struct Event {
    pub context: usize,
    pub timed: bool,
    pub recorded: Recorded,
}

pub enum Recorded {
    Never,
    /// Recorded at a place in a stream's queue, with the time at which it ran.
    In {
        stream: usize,
        place: u64,
        at: Option<Instant>,
    },
    /// Recorded in a capture, after the work that the clock describes.
    Captured {
        capture: u64,
        clock: Clock,
    },
}

pub struct Launch {
    pub kernel: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: usize,
    /// Green context in which the kernel was launched or captured. A graph's kernels keep it, whatever stream the graph
    /// is launched on.
    pub green: Option<usize>,
    /// Arguments, each in 16-byte words for alignment.
    pub params: Vec<Vec<u128>>,
}

#[derive(Clone)]
pub enum From {
    At(usize),
    Staged(Arc<[u8]>),
}

#[derive(Clone)]
pub enum Op {
    Kernel(Arc<Launch>),
    Copy {
        to: usize,
        from: From,
        bytes: usize,
    },
    /// A fill of `count` elements of `width` bytes each.
    Set {
        to: usize,
        value: u32,
        width: usize,
        count: usize,
    },
    Record {
        event: usize,
    },
    Wait {
        stream: usize,
        place: u64,
    },
    Host {
        function: usize,
        data: usize,
    },
    Free {
        at: usize,
    },
}

impl State {
    /// Resolves an API handle to a stream; the default handles mean the default stream of the current context.
    pub fn stream(&self, handle: usize) -> Result<usize> {
        let current = self.current()?;
        if handle <= 2 {
            return Ok(current);
        }
        let stream = self.streams.get(&handle).filter(|stream| !stream.null).ok_or(INVALID_HANDLE)?;
        self.healthy(stream.context)?;
        Ok(handle)
    }

    /// Adds work to a stream, or to the graph that is being captured from it. Returns its place in the order of all
    /// work.
    pub fn submit(&mut self, stream: usize, op: Op) -> Result<u64> {
        if self
            .streams
            .get(&stream)
            .and_then(|found| found.green)
            .is_some_and(|green| !self.greens.contains_key(&green))
        {
            return Err(STREAM_DETACHED);
        }
        if self.add_to_capture(stream, &op)? {
            return Ok(0);
        }
        let place = self.next_place;
        self.next_place += 1;
        self.streams.get_mut(&stream).expect("a stream").queue.push_back((place, op));
        Ok(place)
    }

    /// Runs a stream up to and including the work at `until`, after any work that must come before.
    pub fn run(&mut self, stream: usize, until: u64) -> Result<()> {
        loop {
            let Some(found) = self.streams.get(&stream) else { return Ok(()) };
            let Some((place, op)) = found.queue.front() else { return Ok(()) };
            let (place, context) = (*place, found.context);
            if place > until {
                return Ok(());
            }
            let wait = if let Op::Wait { stream, place } = op { Some((*stream, *place)) } else { None };
            if found.null {
                let blocking = self.streams.iter().filter(|(_, other)| other.context == context && other.blocking);
                let others: Vec<_> = blocking.map(|(handle, _)| *handle).collect();
                for other in others {
                    self.run(other, place)?;
                }
            } else if found.blocking {
                self.run(context, place)?;
            }
            if let Some((other, up_to)) = wait {
                self.run(other, up_to)?;
            }
            let front = self.streams.get_mut(&stream).and_then(|found| found.queue.pop_front());
            let Some((place, op)) = front else { return Ok(()) };
            self.execute(context, stream, place, op)?;
        }
    }

    /// Runs all work of a stream and checks the guards of its memory.
    pub fn synchronise(&mut self, stream: usize) -> Result<()> {
        let context = self.streams[&stream].context;
        self.run(stream, u64::MAX)?;
        self.check_guards(context)
    }

    pub fn run_all(&mut self, context: usize) -> Result<()> {
        let streams: Vec<_> = self.streams.iter().filter(|x| x.1.context == context).map(|x| *x.0).collect();
        for stream in streams {
            self.run(stream, u64::MAX)?;
        }
        self.check_guards(context)
    }

    /// Runs the next piece of work in a stream, so that repeated polling makes progress.
    pub fn step(&mut self, stream: usize) -> Result<()> {
        let next = self.streams.get(&stream).and_then(|found| found.queue.front()).map(|(place, _)| *place);
        next.map_or(Ok(()), |place| self.run(stream, place))
    }

    fn execute(&mut self, context: usize, stream: usize, place: u64, op: Op) -> Result<()> {
        match op {
            Op::Kernel(launch) => {
                let lanes = if self.settings.reversed { Lanes::Descending } else { Lanes::Ascending };
                let params: Vec<*const c_void> = launch.params.iter().map(|words| words.as_ptr().cast()).collect();
                fault::catch();
                let priority = self.streams.get(&stream).map_or(0, |found| found.priority);
                let Some(multiprocessors) = self.multiprocessors_of(launch.green) else {
                    let text = format!("{}: its green context is no more", launch.kernel);
                    return Err(self.fault(context, LAUNCH_FAILED, &text));
                };
                self.last_kernel = (priority, multiprocessors);
                // SAFETY: the caller of cuLaunchKernel vouched for the arguments, and no other work runs meanwhile.
                let done = unsafe {
                    kernels::launch(&launch.kernel, launch.grid, launch.block, launch.shared, &params, lanes)
                };
                done.map_err(|text| {
                    let error = if fault::is_illegal(&text) { ILLEGAL_ADDRESS } else { LAUNCH_FAILED };
                    self.fault(context, error, &text)
                })
            }
            Op::Copy { to, from, bytes } => {
                let at = match &from {
                    From::At(at) => *at,
                    From::Staged(data) => data.as_ptr() as usize,
                };
                let alive = |at: usize| self.place(at, bytes).is_ok();
                if !alive(to) || !(matches!(from, From::Staged(_)) || alive(at)) {
                    let text = format!("a copy of {bytes} bytes from {at:#x} to {to:#x}, of which one is no more");
                    return Err(self.fault(context, ILLEGAL_ADDRESS, &text));
                }
                // SAFETY: both sides are alive; the submitter of host memory keeps it until the copy has run.
                unsafe { std::ptr::copy(at as *const u8, to as *mut u8, bytes) };
                Ok(())
            }
            Op::Set { to, value, width, count } => {
                if self.place(to, width * count).is_err() {
                    let text = format!("a memset of {} bytes at {to:#x}, which is no more", width * count);
                    return Err(self.fault(context, ILLEGAL_ADDRESS, &text));
                }
                let bytes = value.to_le_bytes();
                // SAFETY: the memory is alive.
                let memory = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, width * count) };
                match width {
                    1 => memory.fill(bytes[0]),
                    _ => memory.chunks_exact_mut(width).for_each(|chunk| chunk.copy_from_slice(&bytes[..width])),
                }
                Ok(())
            }
            Op::Record { event } => {
                if let Some(Event { recorded: Recorded::In { stream: of, place: when, at }, .. }) =
                    self.events.get_mut(&event)
                    && (*of, *when) == (stream, place)
                {
                    *at = Some(Instant::now());
                }
                Ok(())
            }
            Op::Wait { .. } => Ok(()),
            Op::Host { function, data } => {
                // SAFETY: the caller of cuLaunchHostFunc vouched for it.
                unsafe {
                    let function: unsafe extern "C" fn(*mut c_void) = std::mem::transmute(function);
                    function(data as *mut c_void);
                }
                Ok(())
            }
            Op::Free { at } => {
                self.check_guards(context)?;
                self.forget(at);
                Ok(())
            }
        }
    }
}

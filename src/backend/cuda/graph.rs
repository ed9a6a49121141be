//! CUDA graphs: the kernels of a step are recorded once and launched in one call from then on.

use super::device::Device;
use super::driver::check;
use super::step::StepBuffers;
use super::stream::Stream;
use crate::error::Result;
use cudarc::driver::sys;
use std::collections::HashMap;
use std::sync::Arc;

/// The graphs of one engine, by padded batch sizes. They contain addresses, so all are dropped when memory moves.
#[derive(Default)]
pub(super) struct Graphs {
    known: HashMap<StepBuffers, Known>,
}

enum Known {
    /// A batch of this size has run.
    Seen,
    Recorded(Graph),
    /// Recording failed.
    Unrecorded,
}

/// How to run a batch.
pub(super) enum Turn {
    /// Kernel by kernel: memory may still grow with the first batch of a size.
    Run,
    Record,
    Replay,
}

impl Graphs {
    /// Greatest number of sizes; an engine that sees more starts over.
    const MOST: usize = 256;

    pub fn turn(&mut self, room: &StepBuffers) -> Turn {
        match self.known.get(room) {
            Some(Known::Recorded(_)) => Turn::Replay,
            Some(Known::Seen) => Turn::Record,
            Some(Known::Unrecorded) => Turn::Run,
            None => {
                if self.known.len() >= Self::MOST {
                    self.known.clear();
                }
                self.known.insert(*room, Known::Seen);
                Turn::Run
            }
        }
    }

    pub fn insert(&mut self, room: &StepBuffers, graph: Graph) {
        self.known.insert(*room, Known::Recorded(graph));
    }

    /// Runs batches of this size unrecorded until memory moves.
    pub fn give_up(&mut self, room: &StepBuffers) {
        self.known.insert(*room, Known::Unrecorded);
    }

    pub fn replay(&self, room: &StepBuffers, stream: &Stream) -> Result<()> {
        match self.known.get(room) {
            Some(Known::Recorded(graph)) => graph.launch(stream),
            _ => crate::bail!(Internal, "no graph for {room:?}"),
        }
    }

    pub fn clear(&mut self) {
        self.known.clear();
    }
}

/// Recorded work, ready to launch.
pub(super) struct Graph {
    device: Arc<Device>,
    executable: sys::CUgraphExec,
}

// SAFETY: a handle of the driver, which may be used from any thread.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `body` puts into the stream, without running it.
    pub fn record(device: &Arc<Device>, stream: &Stream, body: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let _current = device.enter()?;
        // This thread's calls alone: other engines go on allocating.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream that lives.
        check(unsafe { sys::cuStreamBeginCapture_v2(stream.raw(), mode) }, "record a step")?;
        let done = body();
        let mut graph = std::ptr::null_mut();
        // SAFETY: ends the capture begun above; writes one handle, or NULL if it failed.
        let ended = check(unsafe { sys::cuStreamEndCapture(stream.raw(), &mut graph) }, "record a step");
        let mut executable = std::ptr::null_mut();
        let made = done.and(ended).and_then(|()| {
            // SAFETY: a graph that was just recorded; writes one handle.
            check(unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) }, "prepare a recorded step")
        });
        if !graph.is_null() {
            // SAFETY: the executable has all it needs.
            unsafe { sys::cuGraphDestroy(graph) };
        }
        made.map(|()| Graph { device: device.clone(), executable })
    }

    fn launch(&self, stream: &Stream) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: both live.
        check(unsafe { sys::cuGraphLaunch(self.executable, stream.raw()) }, "launch a recorded step")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: made in `record`, destroyed once.
            unsafe { sys::cuGraphExecDestroy(self.executable) };
        }
    }
}

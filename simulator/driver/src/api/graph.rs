//! Graphs and their launches.

use super::api;
use crate::state::put;
use crate::*;

api! {
    leave cuGraphDestroy(graph: usize) |state| {
        state.ready()?;
        state.graphs.remove(&graph).map(|_| ()).ok_or(INVALID_VALUE)
    }

    enter cuGraphInstantiateWithFlags(exec: *mut usize, graph: usize, _flags: u64) |state| {
        let (context, ops) = state.graphs.get(&graph).ok_or(INVALID_VALUE)?.clone();
        state.healthy(context)?;
        if !state.settings.graphs {
            return Err(OUT_OF_MEMORY);
        }
        let handle = state.handle();
        state.execs.insert(handle, (context, ops));
        unsafe { put(exec, handle) }
    }

    enter cuGraphUpload(exec: usize, stream: usize) |state| {
        let stream = state.stream(stream)?;
        state.stream_not_capturing(stream)?;
        state.execs.get(&exec).map(|_| ()).ok_or(INVALID_VALUE)
    }

    // A launch keeps the work of the executable graph, which may be destroyed before the work runs.
    enter cuGraphLaunch(exec: usize, stream: usize) |state| {
        let stream = state.stream(stream)?;
        let (context, ops) = state.execs.get(&exec).ok_or(INVALID_VALUE)?.clone();
        state.healthy(context)?;
        for op in ops.iter() {
            state.submit(stream, op.clone())?;
        }
        state.replayed += 1;
        Ok(())
    }

    leave cuGraphExecDestroy(exec: usize) |state| {
        state.ready()?;
        state.execs.remove(&exec).map(|_| ()).ok_or(INVALID_VALUE)
    }

    // A null `nodes` asks for their number. The nodes themselves cannot be inspected.
    enter cuGraphGetNodes(graph: usize, nodes: *mut usize, count: *mut usize) |state| {
        let n = state.graphs.get(&graph).ok_or(INVALID_VALUE)?.1.len();
        if nodes.is_null() { unsafe { put(count, n) } } else { Err(NOT_SUPPORTED) }
    }
}

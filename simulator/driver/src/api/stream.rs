//! Streams, events and capture.

use super::api;
use crate::state::{CAPTURE_MODE, State, put};
use crate::stream::{Event, Op, Recorded, Stream};
use crate::*;

fn create(state: &mut State, flags: u32, priority: i32) -> Result<usize> {
    let context = state.current()?;
    if flags > 1 {
        return Err(INVALID_VALUE);
    }
    let handle = state.handle();
    let priority = priority.clamp(-5, 0);
    state.streams.insert(handle, Stream { blocking: flags == 0, priority, null: false, ..Stream::null(context) });
    Ok(handle)
}

/// Returns an event whose context has no error.
fn event(state: &State, handle: usize) -> Result<&Event> {
    state.ready()?;
    let event = state.events.get(&handle).ok_or(INVALID_HANDLE)?;
    state.healthy(event.context)?;
    Ok(event)
}

/// Returns the stream and place in which the event is pending.
fn pending(state: &mut State, handle: usize) -> Result<Option<(usize, u64)>> {
    match event(state, handle)?.recorded {
        Recorded::In { stream, place, at: None } => Ok(Some((stream, place))),
        Recorded::Captured { capture, .. } => {
            if let Some(capture) = state.captures.get_mut(&capture) {
                capture.invalid = true;
            }
            Err(CAPTURED_EVENT)
        }
        _ => Ok(None),
    }
}

fn elapsed(state: &mut State, start: usize, end: usize) -> Result<f32> {
    let mut times = [None; 2];
    for (time, handle) in times.iter_mut().zip([start, end]) {
        let found = event(state, handle)?;
        if !found.timed {
            return Err(INVALID_HANDLE);
        }
        *time = match found.recorded {
            Recorded::In { at: Some(at), .. } => Some(at),
            Recorded::In { .. } => return Err(NOT_READY),
            _ => return Err(INVALID_HANDLE),
        };
    }
    let [Some(start), Some(end)] = times else { return Err(INVALID_HANDLE) };
    let forward = end.saturating_duration_since(start).as_secs_f32();
    Ok(1e3 * (forward - start.saturating_duration_since(end).as_secs_f32()))
}

api! {
    enter cuStreamCreate(out: *mut usize, flags: u32) |state| { unsafe { put(out, create(state, flags, 0)?) } }

    enter cuStreamCreateWithPriority(out: *mut usize, flags: u32, priority: i32) |state| {
        unsafe { put(out, create(state, flags, priority)?) }
    }

    // Pending work of the stream still runs.
    leave cuStreamDestroy_v2(stream: usize) |state| {
        state.ready()?;
        let found = state.streams.get(&stream).filter(|found| !found.null).ok_or(INVALID_HANDLE)?;
        let context = found.context;
        if let Some(capture) = state.capture_of(stream) {
            capture.invalid = true;
        }
        let sticky = state.healthy(context).map(|_| ());
        let ran = state.run(stream, u64::MAX);
        if let Some(id) = state.streams.remove(&stream).and_then(|found| found.capture)
            && state.captures.get(&id).is_some_and(|capture| capture.origin == stream)
        {
            state.captures.remove(&id);
            for other in state.streams.values_mut().filter(|other| other.capture == Some(id)) {
                other.capture = None;
            }
        }
        sticky.and(ran)
    }

    enter cuStreamSynchronize(stream: usize) |state| {
        let stream = state.stream(stream)?;
        state.stream_not_capturing(stream)?;
        // The default stream also waits for the streams that are ordered with it.
        if state.streams[&stream].null {
            let op = Op::Wait { stream, place: 0 };
            state.submit(stream, op)?;
        }
        state.synchronise(stream)
    }

    // Each call runs one piece of pending work and reports "not ready", so that polling ends eventually.
    enter cuStreamQuery(stream: usize) |state| {
        let stream = state.stream(stream)?;
        state.stream_not_capturing(stream)?;
        if state.streams[&stream].queue.is_empty() {
            return Ok(());
        }
        state.step(stream)?;
        Err(NOT_READY)
    }

    enter cuStreamWaitEvent(stream: usize, event: usize, _flags: u32) |state| {
        let stream = state.stream(stream)?;
        state.wait(stream, event)
    }

    enter cuStreamGetPriority(stream: usize, priority: *mut i32) |state| {
        let stream = state.stream(stream)?;
        unsafe { put(priority, state.streams[&stream].priority) }
    }

    enter cuStreamGetFlags(stream: usize, flags: *mut u32) |state| {
        let stream = state.stream(stream)?;
        let found = &state.streams[&stream];
        unsafe { put(flags, u32::from(!found.blocking && !found.null)) }
    }

    enter cuStreamGetCtx(stream: usize, context: *mut usize) |state| {
        let stream = state.stream(stream)?;
        unsafe { put(context, state.streams[&stream].context) }
    }

    enter cuEventCreate(out: *mut usize, flags: u32) |state| {
        let context = state.current()?;
        if flags > 7 {
            return Err(INVALID_VALUE);
        }
        let handle = state.handle();
        state.events.insert(handle, Event { context, timed: flags & 2 == 0, recorded: Recorded::Never });
        unsafe { put(out, handle) }
    }

    enter cuEventRecord(handle: usize, stream: usize) |state| {
        let stream = state.stream(stream)?;
        if event(state, handle)?.context != state.streams[&stream].context {
            return Err(INVALID_HANDLE);
        }
        state.record(handle, stream)
    }

    enter cuEventSynchronize(handle: usize) |state| {
        let context = event(state, handle)?.context;
        if let Some((stream, place)) = pending(state, handle)? {
            state.run(stream, place)?;
        }
        state.check_guards(context)
    }

    enter cuEventQuery(handle: usize) |state| {
        let Some((stream, _)) = pending(state, handle)? else { return Ok(()) };
        state.step(stream)?;
        Err(NOT_READY)
    }

    enter cuEventElapsedTime(out: *mut f32, start: usize, end: usize) |state| {
        unsafe { put(out, elapsed(state, start, end)?) }
    }

    enter cuEventElapsedTime_v2(out: *mut f32, start: usize, end: usize) |state| {
        unsafe { put(out, elapsed(state, start, end)?) }
    }

    leave cuEventDestroy_v2(handle: usize) |state| {
        state.ready()?;
        let event = state.events.remove(&handle).ok_or(INVALID_HANDLE)?;
        state.healthy(event.context).map(|_| ())
    }

    enter cuStreamBeginCapture_v2(stream: usize, mode: i32) |state| {
        let stream = state.stream(stream)?;
        state.begin_capture(stream, mode)?;
        state.recorded += 1;
        Ok(())
    }

    // The capture ends in any case.
    leave cuStreamEndCapture(stream: usize, graph: *mut usize) |state| {
        let stream = state.stream(stream)?;
        unsafe {
            put(graph, 0)?;
            put(graph, state.end_capture(stream)?)
        }
    }

    enter cuStreamIsCapturing(stream: usize, status: *mut i32) |state| {
        let stream = state.stream(stream)?;
        let captures = state.capture_of(stream).map(|capture| if capture.invalid { 2 } else { 1 });
        unsafe { put(status, captures.unwrap_or(0)) }
    }

    enter cuThreadExchangeStreamCaptureMode(mode: *mut i32) |_state| {
        if mode.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: checked for null above.
        let new = unsafe { *mode };
        if !(0..=2).contains(&new) {
            return Err(INVALID_VALUE);
        }
        unsafe { put(mode, CAPTURE_MODE.replace(new)) }
    }
}

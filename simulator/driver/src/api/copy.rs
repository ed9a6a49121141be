//! Copies and memsets. Host memory that is not pinned is read during the call, and written before the call returns.

use super::api;
use crate::memory::{Kind, Place};
use crate::state::State;
use crate::stream::{From, Op};
use crate::*;

/// Submits a copy in stream order.
fn copy(state: &mut State, to: usize, from: usize, bytes: usize, stream: usize) -> Result<()> {
    let stream = state.stream(stream)?;
    if bytes == 0 {
        return Ok(());
    }
    let (of_to, of_from) = (state.place(to, bytes)?, state.place(from, bytes)?);
    let pageable = of_to == Place::Pageable || of_from == Place::Pageable;
    if pageable {
        state.stream_not_capturing(stream)?;
    }
    let from = match of_from {
        // If both sides are pageable, the copy finishes within this call and needs no staging.
        Place::Pageable if of_to != Place::Pageable => {
            // SAFETY: the caller vouches for its host memory.
            From::Staged(unsafe { std::slice::from_raw_parts(from as *const u8, bytes) }.into())
        }
        _ => From::At(from),
    };
    state.submit(stream, Op::Copy { to, from, bytes })?;
    if of_to == Place::Pageable { state.synchronise(stream) } else { Ok(()) }
}

/// Copies and waits for the copy.
fn copy_now(state: &mut State, to: usize, from: usize, bytes: usize) -> Result<()> {
    let stream = state.current()?;
    state.not_capturing()?;
    if bytes == 0 {
        return Ok(());
    }
    state.place(to, bytes)?;
    state.place(from, bytes)?;
    state.submit(stream, Op::Copy { to, from: From::At(from), bytes })?;
    state.synchronise(stream)
}

fn set(state: &mut State, to: usize, value: u32, width: usize, count: usize, stream: usize) -> Result<()> {
    let stream = state.stream(stream)?;
    if count == 0 {
        return Ok(());
    }
    if !to.is_multiple_of(width) {
        return Err(INVALID_VALUE);
    }
    state.on_device(to, width.checked_mul(count).ok_or(INVALID_VALUE)?)?;
    state.submit(stream, Op::Set { to, value, width, count }).map(|_| ())
}

fn device_only(state: &State, at: usize, bytes: usize) -> Result<()> {
    if bytes == 0 { Ok(()) } else { state.on_device(at, bytes) }
}

api! {
    enter cuMemcpy(to: usize, from: usize, bytes: usize) |state| { copy_now(state, to, from, bytes) }

    enter cuMemcpyAsync(to: usize, from: usize, bytes: usize, stream: usize) |state| {
        copy(state, to, from, bytes, stream)
    }

    enter cuMemcpyHtoD_v2(to: usize, from: usize, bytes: usize) |state| {
        device_only(state, to, bytes)?;
        copy_now(state, to, from, bytes)
    }

    enter cuMemcpyHtoDAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) |state| {
        device_only(state, to, bytes)?;
        copy(state, to, from, bytes, stream)
    }

    enter cuMemcpyDtoH_v2(to: usize, from: usize, bytes: usize) |state| {
        device_only(state, from, bytes)?;
        state.downloaded += bytes as u64;
        copy_now(state, to, from, bytes)
    }

    enter cuMemcpyDtoHAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) |state| {
        device_only(state, from, bytes)?;
        state.downloaded += bytes as u64;
        copy(state, to, from, bytes, stream)
    }

    enter cuMemcpyDtoD_v2(to: usize, from: usize, bytes: usize) |state| {
        device_only(state, to, bytes)?;
        device_only(state, from, bytes)?;
        // This copy is asynchronous, as on a GPU.
        copy(state, to, from, bytes, 0)
    }

    enter cuMemcpyDtoDAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) |state| {
        device_only(state, to, bytes)?;
        device_only(state, from, bytes)?;
        let context = state.streams[&state.stream(stream)?].context;
        for at in [to, from] {
            if bytes > 0 && !state.reaches(context, at) {
                // Memory from cuMemAlloc is then copied through the host. Memory that is mapped for other devices only
                // is inaccessible.
                let (_, range) = state.range(at).ok_or(INVALID_VALUE)?;
                if matches!(range.kind, Kind::Mapped { .. }) {
                    return Err(INVALID_VALUE);
                }
                state.staged += 1;
            }
        }
        copy(state, to, from, bytes, stream)
    }

    enter cuMemcpyPeer(to: usize, to_context: usize, from: usize, from_context: usize, bytes: usize) |state| {
        peers(state, to, to_context, from, from_context, bytes)?;
        copy(state, to, from, bytes, 0)
    }

    enter cuMemcpyPeerAsync(
        to: usize,
        to_context: usize,
        from: usize,
        from_context: usize,
        bytes: usize,
        stream: usize,
    ) |state| {
        peers(state, to, to_context, from, from_context, bytes)?;
        state.staged += u64::from(bytes > 0 && !state.reaches(to_context, from));
        copy(state, to, from, bytes, stream)
    }

    enter cuMemcpyBatchAsync_v2(
        to: *const usize,
        from: *const usize,
        bytes: *const usize,
        count: usize,
        attributes: *const u8,
        _indices: *const usize,
        attributes_count: usize,
        stream: usize,
    ) |state| {
        // Default streams are not allowed here.
        if stream <= 2 || count == 0 || attributes.is_null() || attributes_count == 0 || attributes_count > count {
            return Err(INVALID_VALUE);
        }
        for i in 0..count {
            // SAFETY: the arrays have `count` elements.
            let (to, from, bytes) = unsafe { (*to.add(i), *from.add(i), *bytes.add(i)) };
            if bytes == 0 {
                return Err(INVALID_VALUE);
            }
            copy(state, to, from, bytes, stream)?;
        }
        Ok(())
    }

    enter cuMemsetD8_v2(to: usize, value: u8, count: usize) |state| { set(state, to, value.into(), 1, count, 0) }

    enter cuMemsetD8Async(to: usize, value: u8, count: usize, stream: usize) |state| {
        set(state, to, value.into(), 1, count, stream)
    }

    enter cuMemsetD16_v2(to: usize, value: u16, count: usize) |state| { set(state, to, value.into(), 2, count, 0) }

    enter cuMemsetD16Async(to: usize, value: u16, count: usize, stream: usize) |state| {
        set(state, to, value.into(), 2, count, stream)
    }

    enter cuMemsetD32_v2(to: usize, value: u32, count: usize) |state| { set(state, to, value, 4, count, 0) }

    enter cuMemsetD32Async(to: usize, value: u32, count: usize, stream: usize) |state| {
        set(state, to, value, 4, count, stream)
    }
}

fn peers(state: &State, to: usize, to_in: usize, from: usize, from_in: usize, bytes: usize) -> Result<()> {
    for (at, context) in [(to, to_in), (from, from_in)] {
        let device = state.contexts.get(&context).ok_or(INVALID_CONTEXT)?.device;
        if bytes > 0 && state.place(at, bytes)? != Place::Device(device) {
            return Err(INVALID_VALUE);
        }
    }
    Ok(())
}

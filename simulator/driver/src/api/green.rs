//! Green contexts (CUDA 12.4, their streams 12.5).

use super::api;
use crate::green::{Green, MULTIPROCESSORS, Resource};
use crate::state::{State, put};
use crate::stream::Stream;
use crate::*;

fn supported(state: &State) -> Result<()> {
    state.ready()?;
    if state.settings.green && state.settings.driver >= 12040 { Ok(()) } else { Err(NOT_SUPPORTED) }
}

api! {
    enter cuDeviceGetDevResource(device: i32, out: *mut Resource, kind: i32) |state| {
        let device = state.device(device)?;
        supported(state)?;
        if kind != MULTIPROCESSORS {
            return Err(INVALID_RESOURCE_TYPE);
        }
        unsafe { put(out, state.whole(device)) }
    }

    // A null `out` asks for the possible number of groups.
    enter cuDevSmResourceSplitByCount(
        out: *mut Resource,
        groups: *mut u32,
        input: *const Resource,
        rest: *mut Resource,
        flags: u32,
        least: u32,
    ) |state| {
        supported(state)?;
        if groups.is_null() || input.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: checked for null above.
        let (input, room) = unsafe { (input.read_unaligned(), *groups) };
        let (found, left) = state.split(&input, least, flags, if out.is_null() { usize::MAX } else { room as usize })?;
        unsafe {
            put(groups, found.len() as u32)?;
            if !out.is_null() {
                found.iter().enumerate().try_for_each(|(i, group)| put(out.add(i), *group))?;
                if !rest.is_null() {
                    put(rest, left)?;
                }
            }
        }
        Ok(())
    }

    enter cuDevResourceGenerateDesc(out: *mut usize, resources: *const Resource, n: u32) |state| {
        supported(state)?;
        if resources.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller passes `n` resources.
        let resources: Vec<_> = (0..n as usize).map(|i| unsafe { resources.add(i).read_unaligned() }).collect();
        let described = state.described(&resources)?;
        let handle = state.handle();
        state.descriptions.insert(handle, described);
        unsafe { put(out, handle) }
    }

    // A green context retains the primary context.
    enter cuGreenCtxCreate(out: *mut usize, description: usize, device: i32, flags: u32) |state| {
        let device = state.device(device)?;
        supported(state)?;
        let (of, set) = *state.descriptions.get(&description).ok_or(INVALID_VALUE)?;
        // CU_GREEN_CTX_DEFAULT_STREAM is required.
        if flags != 1 || of != device {
            return Err(INVALID_VALUE);
        }
        let context = state.retain(device)?;
        let handle = state.handle();
        state.greens.insert(handle, Green { context, device, set });
        unsafe { put(out, handle) }
    }

    // The streams of a destroyed green context remain, but refuse new work.
    leave cuGreenCtxDestroy(green: usize) |state| {
        state.ready()?;
        let context = state.greens.get(&green).ok_or(INVALID_CONTEXT)?.context;
        let ran = state.run_all(context);
        let device = state.greens.remove(&green).ok_or(INVALID_CONTEXT)?.device;
        state.release(device)?;
        ran
    }

    enter cuGreenCtxGetDevResource(green: usize, out: *mut Resource, kind: i32) |state| {
        state.ready()?;
        if kind != MULTIPROCESSORS {
            return Err(INVALID_RESOURCE_TYPE);
        }
        unsafe { put(out, state.of_green(green)?) }
    }

    // Works whichever context is current.
    enter cuGreenCtxStreamCreate(out: *mut usize, green: usize, flags: u32, priority: i32) |state| {
        state.ready()?;
        let context = state.greens.get(&green).ok_or(INVALID_CONTEXT)?.context;
        state.healthy(context)?;
        // CU_STREAM_NON_BLOCKING is required.
        if flags != 1 {
            return Err(INVALID_VALUE);
        }
        let handle = state.handle();
        let priority = priority.clamp(-5, 0);
        let stream = Stream { green: Some(green), priority, null: false, ..Stream::null(context) };
        state.streams.insert(handle, stream);
        unsafe { put(out, handle) }
    }

    // Returns NULL for a stream that belongs to no green context.
    enter cuStreamGetGreenCtx(stream: usize, out: *mut usize) |state| {
        let stream = state.stream(stream)?;
        unsafe { put(out, state.streams[&stream].green.unwrap_or(0)) }
    }
}

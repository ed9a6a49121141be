//! Device memory and pinned host memory.

use super::api;
use crate::memory::{Kind, Place, Range};
use crate::state::put;
use crate::stream::Op;
use crate::*;

api! {
    enter cuMemGetInfo_v2(free: *mut usize, total: *mut usize) |state| {
        let current = state.current()?;
        let (ordinal, memory) = (state.contexts[&current].device, state.settings.memory);
        let used = state.device_of(ordinal)?.used;
        unsafe { put(free, memory.saturating_sub(used)).and(put(total, memory)) }
    }

    enter cuMemAlloc_v2(out: *mut usize, bytes: usize) |state| {
        let current = state.current()?;
        state.not_capturing()?;
        unsafe { put(out, 0)? };
        unsafe { put(out, state.allocate(current, bytes)?) }
    }

    // Waits for all work of the memory's context, as GPUs do.
    leave cuMemFree_v2(at: usize) |state| {
        state.ready()?;
        if at == 0 {
            return Ok(());
        }
        let range = state.ranges.get(&at).filter(|range| matches!(range.kind, Kind::Allocated { .. }));
        let context = range.ok_or(INVALID_VALUE)?.context;
        state.not_capturing()?;
        let sticky = state.healthy(context).map(|_| ());
        let ran = state.run_all(context);
        state.forget(at);
        sticky.and(ran)
    }

    enter cuMemAllocAsync(out: *mut usize, bytes: usize, stream: usize) |state| {
        let stream = state.stream(stream)?;
        if state.streams[&stream].capture.is_some() {
            return Err(NOT_SUPPORTED);
        }
        let context = state.streams[&stream].context;
        unsafe { put(out, state.allocate(context, bytes)?) }
    }

    leave cuMemFreeAsync(at: usize, stream: usize) |state| {
        let known = state.ranges.get(&at).is_some_and(|range| matches!(range.kind, Kind::Allocated { .. }));
        if !known {
            return Err(INVALID_VALUE);
        }
        match state.stream(stream) {
            Ok(stream) => state.submit(stream, Op::Free { at }).map(|_| ()),
            Err(error) => {
                state.forget(at);
                Err(error)
            }
        }
    }

    enter cuMemAllocHost_v2(out: *mut usize, bytes: usize) |state| {
        let current = state.current()?;
        state.not_capturing()?;
        unsafe { put(out, state.allocate_host(current, bytes)?) }
    }

    enter cuMemHostAlloc(out: *mut usize, bytes: usize, flags: u32) |state| {
        let current = state.current()?;
        state.not_capturing()?;
        if flags > 7 {
            return Err(INVALID_VALUE);
        }
        unsafe { put(out, state.allocate_host(current, bytes)?) }
    }

    leave cuMemFreeHost(at: usize) |state| {
        state.ready()?;
        let range = state.ranges.get(&at).filter(|range| range.kind == Kind::Pinned).ok_or(INVALID_VALUE)?;
        let context = range.context;
        state.not_capturing()?;
        let sticky = state.healthy(context).map(|_| ());
        let ran = state.run_all(context);
        state.forget(at);
        sticky.and(ran)
    }

    enter cuMemHostRegister_v2(at: usize, bytes: usize, _flags: u32) |state| {
        let context = state.current()?;
        state.not_capturing()?;
        if at == 0 || bytes == 0 {
            return Err(INVALID_VALUE);
        }
        if state.range(at).is_some() || state.ranges.range(at..at + bytes).next().is_some() {
            return Err(HOST_MEMORY_ALREADY_REGISTERED);
        }
        state.ranges.insert(at, Range { bytes, context, kind: Kind::Registered });
        Ok(())
    }

    leave cuMemHostUnregister(at: usize) |state| {
        state.ready()?;
        let range = state.ranges.get(&at).filter(|range| range.kind == Kind::Registered);
        let context = range.ok_or(HOST_MEMORY_NOT_REGISTERED)?.context;
        let sticky = state.healthy(context).map(|_| ());
        let ran = state.run_all(context);
        state.forget(at);
        sticky.and(ran)
    }

    enter cuMemHostGetDevicePointer_v2(out: *mut usize, at: usize, _flags: u32) |state| {
        state.current()?;
        if state.place(at, 1)? != Place::Pinned {
            return Err(INVALID_VALUE);
        }
        unsafe { put(out, at) }
    }

    enter cuMemHostGetFlags(flags: *mut u32, at: usize) |state| {
        state.current()?;
        if state.place(at, 1)? != Place::Pinned {
            return Err(INVALID_VALUE);
        }
        unsafe { put(flags, 0) }
    }

    enter cuMemGetAddressRange_v2(base: *mut usize, size: *mut usize, at: usize) |state| {
        state.current()?;
        let (start, range) = state.range(at).filter(|(_, range)| range.kind.device().is_some()).ok_or(NOT_FOUND)?;
        if !base.is_null() {
            unsafe { put(base, start)? };
        }
        if !size.is_null() {
            unsafe { put(size, range.bytes)? };
        }
        Ok(())
    }

    enter cuPointerGetAttribute(out: *mut u8, attribute: i32, at: usize) |state| {
        state.current()?;
        let (start, range) = state.range(at).ok_or(INVALID_VALUE)?;
        let device = range.kind.device();
        unsafe {
            match attribute {
                1 => put(out.cast(), range.context),
                2 => put(out.cast(), if device.is_some() { 2u32 } else { 1 }),
                3 => put(out.cast(), at),
                4 if device.is_none() => put(out.cast(), at),
                6 | 8 => put(out.cast(), 0u32),
                7 => put(out.cast(), start as u64),
                9 => put(out.cast(), device.unwrap_or(0) as i32),
                10 => put(out.cast(), u8::from(matches!(range.kind, Kind::Allocated { .. }))),
                11 => put(out.cast(), start),
                12 => put(out.cast(), range.bytes),
                13 => put(out.cast(), 1u8),
                _ => Err(INVALID_VALUE),
            }
        }
    }
}

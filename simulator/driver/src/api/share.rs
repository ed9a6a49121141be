//! Memory shared with other processes (IPC) and virtual memory management (VMM).

use super::api;
use crate::arena::{self, PAGE};
use crate::memory::{GRANULARITY, Kind, Physical, Range};
use crate::state::{State, put};
use crate::*;
use std::os::fd::IntoRawFd;

/// CUipcMemHandle: the location of the memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Handle {
    magic: u64,
    device: u32,
    pid: u32,
    fd: i32,
    pad: u32,
    offset: u64,
    bytes: u64,
    rest: [u8; 24],
}

const MAGIC: u64 = 0x6364_7561_7369_6d01;

/// CUmemLocation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Location {
    kind: i32,
    id: i32,
}

/// CUmemAllocationProp.
#[repr(C)]
pub struct Properties {
    kind: i32,
    handle_types: i32,
    location: Location,
    windows: usize,
    flags: [u8; 8],
}

/// CUmemAccessDesc.
#[repr(C)]
pub struct Access {
    location: Location,
    flags: i32,
}

const FILE_DESCRIPTOR: i32 = 1;

fn properties(state: &State, given: *const Properties) -> Result<usize> {
    state.ready()?;
    if given.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: checked for null above.
    let given = unsafe { &*given };
    if !state.settings.vmm || !matches!(given.handle_types, 0 | FILE_DESCRIPTOR) {
        return Err(NOT_SUPPORTED);
    }
    if (given.kind, given.location.kind) != (1, 1) {
        return Err(INVALID_VALUE);
    }
    state.device(given.location.id)
}

/// Name of the file behind a handle, without the number of its device.
const HANDLE: &str = "simulated-cuda-handle-";

/// Returns the device whose memory a descriptor refers to.
fn device_of(fd: i32) -> Option<i32> {
    let file = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let (_, number) = file.to_str()?.split_once(HANDLE)?;
    number.split(' ').next()?.parse().ok()
}

/// Returns the mappings that make up exactly `bytes` bytes from `at`.
fn mappings(state: &State, at: usize, bytes: usize) -> Result<Vec<usize>> {
    let mut out = Vec::new();
    let mut next = at;
    while next < at.checked_add(bytes).ok_or(INVALID_VALUE)? {
        let range = state.ranges.get(&next).filter(|range| matches!(range.kind, Kind::Mapped { .. }));
        out.push(next);
        next += range.ok_or(INVALID_VALUE)?.bytes;
    }
    if next == at + bytes && bytes > 0 { Ok(out) } else { Err(INVALID_VALUE) }
}

api! {
    enter cuIpcGetMemHandle(out: *mut Handle, at: usize) |state| {
        state.current()?;
        if !state.settings.ipc {
            return Err(NOT_SUPPORTED);
        }
        let (start, range) = state.range(at).ok_or(INVALID_VALUE)?;
        let Kind::Allocated { device } = range.kind else { return Err(INVALID_VALUE) };
        let arena = &state.devices[&device].arena;
        let handle = Handle {
            magic: MAGIC,
            device: device as u32,
            pid: std::process::id(),
            fd: arena.fd,
            pad: 0,
            offset: arena.offset(start) as u64,
            bytes: range.bytes as u64,
            rest: [0; 24],
        };
        unsafe { put(out, handle) }
    }

    enter cuIpcOpenMemHandle_v2(out: *mut usize, handle: Handle, flags: u32) |state| {
        let context = state.current()?;
        // Peer access requires this flag.
        if handle.magic != MAGIC || flags != 1 {
            return Err(INVALID_VALUE);
        }
        if handle.pid == std::process::id() {
            return Err(INVALID_CONTEXT);
        }
        let of = (handle.pid, handle.fd, handle.offset as usize);
        for (at, range) in &mut state.ranges {
            if let Kind::Opened { times, of: known, .. } = &mut range.kind
                && *known == of
                && range.context == context
            {
                *times += 1;
                return unsafe { put(out, *at) };
            }
        }
        let device = state.device(handle.device as i32)?;
        let path = format!("/proc/{}/fd/{}", handle.pid, handle.fd);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).map_err(|_| INVALID_HANDLE)?;
        let bytes = handle.bytes as usize;
        let fd = file.into_raw_fd();
        let mapped = arena::map(0, bytes.next_multiple_of(PAGE), arena::READ_WRITE, fd, handle.offset as usize);
        // SAFETY: the mapping does not need the descriptor.
        unsafe { libc::close(fd) };
        let at = mapped?;
        state.ranges.insert(at, Range { bytes, context, kind: Kind::Opened { device, times: 1, of } });
        unsafe { put(out, at) }
    }

    leave cuIpcCloseMemHandle(at: usize) |state| {
        state.ready()?;
        let range = state.ranges.get_mut(&at).ok_or(INVALID_VALUE)?;
        let Kind::Opened { times, .. } = &mut range.kind else { return Err(INVALID_VALUE) };
        *times -= 1;
        if *times > 0 {
            return Ok(());
        }
        let context = range.context;
        let sticky = state.healthy(context).map(|_| ());
        let ran = state.run_all(context);
        state.forget(at);
        sticky.and(ran)
    }

    enter cuMemGetAllocationGranularity(out: *mut usize, given: *const Properties, _option: i32) |state| {
        properties(state, given)?;
        unsafe { put(out, GRANULARITY) }
    }

    enter cuMemCreate(out: *mut u64, bytes: usize, given: *const Properties, flags: u64) |state| {
        let device = properties(state, given)?;
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) || flags != 0 {
            return Err(INVALID_VALUE);
        }
        state.take(device, bytes)?;
        let name = std::ffi::CString::new(format!("{HANDLE}{device}")).map_err(|_| UNKNOWN)?;
        let made = arena::memfd(&name, bytes);
        let Ok(fd) = made else {
            state.device_of(device)?.used -= bytes;
            return Err(OUT_OF_MEMORY);
        };
        if let Ok(at) = arena::map(0, bytes, arena::READ_WRITE, fd, 0) {
            arena::poison(at, bytes);
            arena::unmap(at, bytes);
        }
        let handle = state.handle() as u64;
        state.physical.insert(handle, Physical { fd, bytes, device, handles: 1, mappings: 0, own: true });
        unsafe { put(out, handle) }
    }

    leave cuMemRelease(handle: u64) |state| {
        let found = state.physical.get_mut(&handle).filter(|found| found.handles > 0).ok_or(INVALID_VALUE)?;
        found.handles -= 1;
        state.reap(handle);
        Ok(())
    }

    enter cuMemRetainAllocationHandle(out: *mut u64, at: usize) |state| {
        let (_, range) = state.range(at).ok_or(INVALID_VALUE)?;
        let Kind::Mapped { physical, .. } = range.kind else { return Err(INVALID_VALUE) };
        state.physical.get_mut(&physical).ok_or(INVALID_VALUE)?.handles += 1;
        unsafe { put(out, physical) }
    }

    enter cuMemAddressReserve(out: *mut usize, bytes: usize, alignment: usize, _at: usize, flags: u64) |state| {
        state.ready()?;
        let odd = alignment != 0 && !alignment.is_power_of_two();
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) || odd || flags != 0 {
            return Err(INVALID_VALUE);
        }
        let alignment = alignment.max(GRANULARITY);
        let whole = bytes.checked_add(alignment).ok_or(OUT_OF_MEMORY)?;
        let found = arena::map(0, whole, libc::PROT_NONE, -1, 0)?;
        let at = found.next_multiple_of(alignment);
        if at > found {
            arena::unmap(found, at - found);
        }
        if at + bytes < found + whole {
            arena::unmap(at + bytes, found + whole - at - bytes);
        }
        state.reserved.insert(at, bytes);
        unsafe { put(out, at) }
    }

    leave cuMemAddressFree(at: usize, bytes: usize) |state| {
        if state.reserved.get(&at) != Some(&bytes) || state.ranges.range(at..at + bytes).next().is_some() {
            return Err(INVALID_VALUE);
        }
        state.reserved.remove(&at);
        // Freed addresses are never handed out again, so that late uses are detected.
        state.freed.insert(at, bytes);
        Ok(())
    }

    enter cuMemMap(at: usize, bytes: usize, offset: usize, handle: u64, flags: u64) |state| {
        let found = state.physical.get(&handle).filter(|found| found.handles > 0).ok_or(INVALID_VALUE)?;
        let (start, reserved) = state.reserved.range(..=at).next_back().ok_or(INVALID_VALUE)?;
        // A handle must be mapped whole, as the documentation says.
        let fits = offset == 0 && bytes == found.bytes && at.is_multiple_of(GRANULARITY) && flags == 0;
        if !fits || at + bytes > start + reserved {
            return Err(INVALID_VALUE);
        }
        if state.range(at).is_some() || state.ranges.range(at..at + bytes).next().is_some() {
            return Err(ALREADY_MAPPED);
        }
        let device = found.device;
        arena::map(at, bytes, libc::PROT_NONE, found.fd, 0)?;
        state.physical.get_mut(&handle).expect("it is there").mappings += 1;
        let kind = Kind::Mapped { device, physical: handle, read: 0, write: 0 };
        state.ranges.insert(at, Range { bytes, context: 0, kind });
        Ok(())
    }

    leave cuMemUnmap(at: usize, bytes: usize) |state| {
        // Unlike cuMemFree this does not wait. Pending work that uses the memory fails.
        for at in mappings(state, at, bytes)? {
            state.forget(at);
        }
        Ok(())
    }

    enter cuMemSetAccess(at: usize, bytes: usize, given: *const Access, count: usize) |state| {
        if given.is_null() || count == 0 {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller passes `count` descriptors.
        let given = unsafe { std::slice::from_raw_parts(given, count) };
        let all = mappings(state, at, bytes)?;
        for at in all {
            for access in given {
                let (device, peer) = (state.device(access.location.id)?, state.settings.peer);
                let range = state.ranges.get_mut(&at).expect("it is there");
                let Kind::Mapped { device: of, read, write, .. } = &mut range.kind else { return Err(INVALID_VALUE) };
                if device != *of && !peer {
                    return Err(NOT_SUPPORTED);
                }
                let (bit, (reads, writes)) = (1 << device, match access.flags {
                    0 => (0, 0),
                    1 => (1 << device, 0),
                    3 => (1 << device, 1 << device),
                    _ => return Err(INVALID_VALUE),
                });
                (*read, *write) = (*read & !bit | reads, *write & !bit | writes);
                let pages = match (*read, *write) {
                    (0, _) => libc::PROT_NONE,
                    (_, 0) => libc::PROT_READ,
                    _ => arena::READ_WRITE,
                };
                arena::protect(at, range.bytes, pages)?;
            }
        }
        Ok(())
    }

    enter cuMemExportToShareableHandle(out: *mut i32, handle: u64, kind: i32, flags: u64) |state| {
        let found = state.physical.get(&handle).filter(|found| found.handles > 0).ok_or(INVALID_VALUE)?;
        if kind != FILE_DESCRIPTOR || flags != 0 {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the duplicate belongs to the caller, who closes it.
        let fd = unsafe { libc::fcntl(found.fd, libc::F_DUPFD_CLOEXEC, 0) };
        if fd < 0 { Err(OPERATING_SYSTEM) } else { unsafe { put(out, fd) } }
    }

    enter cuMemImportFromShareableHandle(out: *mut u64, shared: usize, kind: i32) |state| {
        state.ready()?;
        if kind != FILE_DESCRIPTOR || !state.settings.vmm {
            return Err(INVALID_VALUE);
        }
        // SAFETY: fstat and dup fail on anything that is not a descriptor.
        let (fd, bytes) = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            if libc::fstat(shared as i32, &mut stat) != 0 || stat.st_size <= 0 {
                return Err(INVALID_VALUE);
            }
            (libc::fcntl(shared as i32, libc::F_DUPFD_CLOEXEC, 0), stat.st_size as usize)
        };
        if fd < 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(INVALID_VALUE);
        }
        let device = state.device(device_of(fd).ok_or(INVALID_VALUE)?)?;
        let handle = state.handle() as u64;
        state.physical.insert(handle, Physical { fd, bytes, device, handles: 1, mappings: 0, own: false });
        unsafe { put(out, handle) }
    }
}

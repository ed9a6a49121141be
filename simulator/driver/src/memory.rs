//! Device memory, pinned host memory, and mapped virtual memory.

use crate::arena::{self, PAGE};
use crate::state::State;
use crate::*;

pub const GRANULARITY: usize = 2 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory from cuMemAlloc.
    Allocated { device: usize },
    /// Memory from cuMemAllocHost.
    Pinned,
    /// Host memory registered with cuMemHostRegister.
    Registered,
    /// Memory from cuIpcOpenMemHandle, with the number of times it was opened and its origin in the other process.
    Opened { device: usize, times: usize, of: (u32, i32, usize) },
    /// Memory from cuMemMap. `read` and `write` have one bit for each device that cuMemSetAccess named.
    Mapped { device: usize, physical: u64, read: u16, write: u16 },
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Allocated { .. } => "device memory",
            Kind::Pinned => "pinned memory",
            Kind::Registered => "registered host memory",
            Kind::Opened { .. } => "another process's memory",
            Kind::Mapped { .. } => "mapped memory",
        }
    }

    /// Returns the device; `None` for host memory.
    pub fn device(self) -> Option<usize> {
        match self {
            Kind::Allocated { device } | Kind::Opened { device, .. } | Kind::Mapped { device, .. } => Some(device),
            Kind::Pinned | Kind::Registered => None,
        }
    }
}

pub struct Range {
    pub bytes: usize,
    /// Context that owns the memory; 0 if none does.
    pub context: usize,
    pub kind: Kind,
}

/// Memory from cuMemCreate or cuMemImportFromShareableHandle.
pub struct Physical {
    pub fd: i32,
    pub bytes: usize,
    pub device: usize,
    /// Number of open handles; below, number of mappings.
    pub handles: usize,
    pub mappings: usize,
    /// True if the memory was created here and counts towards the device's memory.
    pub own: bool,
}

/// Kind of the memory at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Device(usize),
    Pinned,
    Pageable,
}

impl State {
    /// Returns the range that contains an address.
    pub fn range(&self, at: usize) -> Option<(usize, &Range)> {
        let (start, range) = self.ranges.range(..=at).next_back()?;
        (at < start + range.bytes.max(1)).then_some((*start, range))
    }

    /// Returns the kind of the memory from `at` to `at + bytes`. Fails if it extends past its range or is not
    /// accessible.
    pub fn place(&self, at: usize, bytes: usize) -> Result<Place> {
        let Some((mut start, mut range)) = self.range(at) else {
            let inside = self.ranges.range(at..at.saturating_add(bytes)).next().is_some();
            // Addresses that are or were reserved cannot be host memory.
            let before = [&self.reserved, &self.freed].map(|all| all.range(..=at).next_back());
            let unmapped = before.iter().flatten().any(|(start, bytes)| at < *start + *bytes);
            return if inside || unmapped || at == 0 { Err(INVALID_VALUE) } else { Ok(Place::Pageable) };
        };
        let place = range.kind.device().map_or(Place::Pinned, Place::Device);
        loop {
            if matches!(range.kind, Kind::Mapped { read: 0, .. }) {
                return Err(INVALID_VALUE);
            }
            let end = start + range.bytes;
            if at + bytes <= end {
                return Ok(place);
            }
            // Adjacent mappings count as one piece of memory.
            match self.range(end) {
                Some((next, found)) if next == end && matches!(found.kind, Kind::Mapped { .. }) => {
                    (start, range) = (next, found);
                }
                _ => return Err(INVALID_VALUE),
            }
        }
    }

    /// Checks whether a context's device can read the memory at `at` directly: its own always, other devices' with peer
    /// access.
    pub fn reaches(&self, context: usize, at: usize) -> bool {
        let device = self.contexts[&context].device;
        match self.range(at).map(|(_, range)| (range.kind, range.context)) {
            Some((Kind::Mapped { read, .. }, _)) => read & 1 << device != 0,
            Some((Kind::Allocated { device: of }, owner)) => of == device || self.peers.contains(&(context, owner)),
            _ => true,
        }
    }

    pub fn on_device(&self, at: usize, bytes: usize) -> Result<()> {
        match self.place(at, bytes)? {
            Place::Device(_) => Ok(()),
            // Pinned memory has the same address on the device.
            Place::Pinned => Ok(()),
            Place::Pageable => Err(INVALID_VALUE),
        }
    }

    /// Charges an allocation to a device.
    pub fn take(&mut self, ordinal: usize, bytes: usize) -> Result<()> {
        let limit = self.settings.memory;
        let device = self.device_of(ordinal)?;
        if bytes > limit || device.used + bytes > limit {
            return Err(OUT_OF_MEMORY);
        }
        device.used += bytes;
        Ok(())
    }

    pub fn allocate(&mut self, context: usize, bytes: usize) -> Result<usize> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let ordinal = self.contexts[&context].device;
        self.take(ordinal, bytes.checked_next_multiple_of(512).ok_or(OUT_OF_MEMORY)?)?;
        let device = self.device_of(ordinal)?;
        let at = match device.arena.allocate(bytes) {
            Ok(at) => at,
            Err(error) => {
                device.used -= bytes.next_multiple_of(512);
                return Err(error);
            }
        };
        self.ranges.insert(at, Range { bytes, context, kind: Kind::Allocated { device: ordinal } });
        Ok(at)
    }

    pub fn allocate_host(&mut self, context: usize, bytes: usize) -> Result<usize> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let at = arena::map(0, bytes.next_multiple_of(PAGE), arena::READ_WRITE, -1, 0)?;
        arena::poison(at, bytes);
        self.ranges.insert(at, Range { bytes, context, kind: Kind::Pinned });
        Ok(at)
    }

    /// Ends a range of any kind.
    pub fn forget(&mut self, at: usize) {
        let Some(range) = self.ranges.remove(&at) else { return };
        let bytes = range.bytes;
        match range.kind {
            Kind::Allocated { device } => {
                if let Some(device) = self.devices.get_mut(&device) {
                    device.arena.free(at, bytes);
                    device.used -= bytes.next_multiple_of(512);
                }
            }
            Kind::Pinned | Kind::Opened { .. } => arena::unmap(at, bytes.next_multiple_of(PAGE)),
            Kind::Registered => {}
            Kind::Mapped { physical, .. } => {
                // The addresses stay reserved.
                let _ = arena::map(at, bytes, libc::PROT_NONE, -1, 0);
                if let Some(found) = self.physical.get_mut(&physical) {
                    found.mappings -= 1;
                }
                self.reap(physical);
            }
        }
    }

    /// Frees a handle's memory once it has neither handles nor mappings.
    pub fn reap(&mut self, physical: u64) {
        if !self.physical.get(&physical).is_some_and(|found| found.handles == 0 && found.mappings == 0) {
            return;
        }
        let found = self.physical.remove(&physical).expect("it is there");
        // SAFETY: this library owns the descriptor.
        unsafe { libc::close(found.fd) };
        if let (true, Some(device)) = (found.own, self.devices.get_mut(&found.device)) {
            device.used -= found.bytes;
        }
    }

    /// Checks that nobody wrote past an allocation of the context's device.
    pub fn check_guards(&mut self, context: usize) -> Result<()> {
        let Some(ordinal) = self.contexts.get(&context).map(|context| context.device) else { return Ok(()) };
        let Some(device) = self.devices.get(&ordinal) else { return Ok(()) };
        let broken = self.ranges.iter().find(|(at, range)| {
            range.kind == Kind::Allocated { device: ordinal } && !device.arena.intact(**at, range.bytes)
        });
        let Some((at, range)) = broken else { return Ok(()) };
        let text = format!("something wrote behind the allocation of {} bytes at {at:#x}", range.bytes);
        Err(self.fault(context, ILLEGAL_ADDRESS, &text))
    }
}

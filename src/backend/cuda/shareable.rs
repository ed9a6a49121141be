//! Device memory that other processes can map by a file descriptor, from CUDA's virtual memory management.

use super::device::Device;
use super::driver::{check, has};
use crate::bail;
use crate::error::Result;
use cudarc::driver::sys;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// The functions that are used here. A driver without one of them shares nothing.
const USED: &[&str] = &[
    "cuMemGetAllocationGranularity",
    "cuMemCreate",
    "cuMemRelease",
    "cuMemAddressReserve",
    "cuMemAddressFree",
    "cuMemMap",
    "cuMemUnmap",
    "cuMemSetAccess",
    "cuMemExportToShareableHandle",
    "cuMemImportFromShareableHandle",
];

const FD: sys::CUmemAllocationHandleType = sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
const READ_WRITE: sys::CUmemAccess_flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
const READ: sys::CUmemAccess_flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READ;

/// Physical memory of a device, allocated here or in another process, and its mapping. It lives while any process holds
/// it.
pub(super) struct Shareable {
    device: Arc<Device>,
    handle: sys::CUmemGenericAllocationHandle,
    /// Address of the mapping; 0 while unmapped.
    at: sys::CUdeviceptr,
    /// Size, a multiple of the granularity.
    bytes: usize,
    mapped: bool,
}

fn location(device: &Device) -> sys::CUmemLocation {
    sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device.ordinal() }
}

fn properties(device: &Device) -> sys::CUmemAllocationProp {
    // SAFETY: numbers and a pointer, for which zero is right.
    let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes = FD;
    properties.location = location(device);
    properties
}

/// True if a device's memory can be shared by descriptors.
pub(super) fn supported(device: &Device) -> bool {
    use sys::CUdevice_attribute as Attribute;
    let can = |which| device.attribute(which).is_ok_and(|can| can != 0);
    can(Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)
        && can(Attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED)
        && USED.iter().all(|name| has(name))
}

impl Shareable {
    /// Allocates and maps memory. UNSUPPORTED where [`supported`] is false.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Shareable> {
        if !supported(device) {
            bail!(Unsupported, "CUDA device {}: its memory cannot be shared with other processes", device.ordinal());
        }
        let _current = device.enter()?;
        let properties = properties(device);
        let doing = format!("allocate {bytes} bytes on CUDA device {}", device.ordinal());
        let recommended = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED;
        let (mut granularity, mut handle) = (0, 0);
        // SAFETY: writes one number.
        check(unsafe { sys::cuMemGetAllocationGranularity(&mut granularity, &properties, recommended) }, &doing)?;
        let Some(bytes) = bytes.max(1).checked_next_multiple_of(granularity.max(1)) else {
            bail!(OutOfMemory, "cannot {doing}")
        };
        // SAFETY: writes one handle; released when self is dropped.
        check(unsafe { sys::cuMemCreate(&mut handle, bytes, &properties, 0) }, &doing)?;
        let memory = Shareable { device: device.clone(), handle, at: 0, bytes, mapped: false };
        memory.map(READ_WRITE)
    }

    /// Maps another process's memory, read-only.
    pub fn open(device: &Arc<Device>, fd: OwnedFd, bytes: usize) -> Result<Shareable> {
        if !supported(device) {
            bail!(Unsupported, "CUDA device {}: memory of other processes cannot be mapped", device.ordinal());
        }
        let _current = device.enter()?;
        let mut handle = 0;
        let number = fd.as_raw_fd() as usize as *mut std::ffi::c_void;
        // SAFETY: a descriptor that lives during the call, which takes a reference of its own.
        let result = unsafe { sys::cuMemImportFromShareableHandle(&mut handle, number, FD) };
        check(result, &format!("map {bytes} bytes of another process on CUDA device {}", device.ordinal()))?;
        let memory = Shareable { device: device.clone(), handle, at: 0, bytes, mapped: false };
        memory.map(READ)
    }

    fn map(mut self, access: sys::CUmemAccess_flags) -> Result<Shareable> {
        let doing = format!("map {} bytes on CUDA device {}", self.bytes, self.device.ordinal());
        // SAFETY: an address range of our own, for memory of this size; undone when self is dropped.
        unsafe {
            check(sys::cuMemAddressReserve(&mut self.at, self.bytes, 0, 0, 0), &doing)?;
            check(sys::cuMemMap(self.at, self.bytes, 0, self.handle, 0), &doing)?;
            self.mapped = true;
            let access = sys::CUmemAccessDesc { location: location(&self.device), flags: access };
            check(sys::cuMemSetAccess(self.at, self.bytes, &access, 1), &doing)?;
        }
        Ok(self)
    }

    /// Lets another device read it. Mapped memory needs this in addition to peer access between contexts.
    pub fn open_to(&self, reader: &Device) -> Result<()> {
        let _current = self.device.enter()?;
        let access = sys::CUmemAccessDesc { location: location(reader), flags: READ };
        // SAFETY: all of what `map` mapped; what else is allowed there stays so.
        let result = unsafe { sys::cuMemSetAccess(self.at, self.bytes, &access, 1) };
        check(result, &format!("map memory of CUDA device {} on {}", self.device.ordinal(), reader.ordinal()))
    }

    pub fn address(&self) -> sys::CUdeviceptr {
        self.at
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A descriptor with which another process can map the memory; it keeps the memory alive.
    pub fn descriptor(&self) -> Result<OwnedFd> {
        let _current = self.device.enter()?;
        let mut fd: i32 = -1;
        // SAFETY: writes an int, as the documentation has it for descriptors.
        let result = unsafe { sys::cuMemExportToShareableHandle((&raw mut fd).cast(), self.handle, FD, 0) };
        check(result, &format!("share memory of CUDA device {}", self.device.ordinal()))?;
        // SAFETY: the driver has just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl Drop for Shareable {
    fn drop(&mut self) {
        let Ok(_current) = self.device.enter() else { return };
        // SAFETY: made in `new`, `open` and `map`, undone once. Unmapping does not wait for work: whoever starts some waits for it.
        unsafe {
            if self.mapped {
                sys::cuMemUnmap(self.at, self.bytes);
            }
            if self.at != 0 {
                sys::cuMemAddressFree(self.at, self.bytes);
            }
            sys::cuMemRelease(self.handle);
        }
    }
}

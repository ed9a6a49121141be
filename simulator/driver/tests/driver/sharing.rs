use crate::common::*;
use cudarc::driver::{result, sys};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

const GRANULE: usize = 2 << 20;

/// Runs a test of this file in another process and passes it a value.
fn elsewhere(test: &str, variable: &str, value: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("sharing::{test}"), "--exact", "--nocapture"]).env(variable, value);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn ipc_handle(memory: &Memory) -> sys::CUipcMemHandle {
    let mut handle = no_handle();
    // SAFETY: there is room for the handle.
    unsafe { sys::cuIpcGetMemHandle(&mut handle, memory.0).result().unwrap() };
    handle
}

#[test]
fn another_process_sees_memory_by_its_ipc_handle() {
    let session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let _before = Memory::new(100_000).unwrap();
    let data: Vec<u32> = (0..3000).collect();
    let memory = Memory::of(&data).unwrap();
    let handle = ipc_handle(&memory);
    let mut opened = 0;
    // SAFETY: the process that exported the memory may not open it.
    let here = unsafe { sys::cuIpcOpenMemHandle_v2(&mut opened, handle, 1) };
    assert_eq!(here, Code::CUDA_ERROR_INVALID_CONTEXT);
    let text: String = handle.reserved.iter().map(|byte| format!("{:02x}", *byte as u8)).collect();
    elsewhere("opens_an_ipc_handle", "TEST_IPC_HANDLE", &text);
    assert_eq!(memory.read::<u32>(3000).unwrap()[2999], 4711);
    session.configure("ipc=0");
    // SAFETY: there is room for the handle.
    let off = unsafe { sys::cuIpcGetMemHandle(&mut no_handle(), memory.0) };
    assert_eq!(off, Code::CUDA_ERROR_NOT_SUPPORTED);
}

fn no_handle() -> sys::CUipcMemHandle {
    sys::CUipcMemHandle { reserved: [0; 64] }
}

/// Part of the test that runs in the other process.
#[test]
fn opens_an_ipc_handle() {
    let Ok(text) = std::env::var("TEST_IPC_HANDLE") else { return };
    let _session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let mut handle = no_handle();
    for (i, byte) in handle.reserved.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap() as _;
    }
    // SAFETY: as large as the allocation of the other process.
    unsafe {
        let (mut at, mut again) = (0, 0);
        sys::cuIpcOpenMemHandle_v2(&mut at, handle, 1).result().unwrap();
        sys::cuIpcOpenMemHandle_v2(&mut again, handle, 1).result().unwrap();
        assert_eq!(at, again);
        let mut found = vec![0u32; 3000];
        result::memcpy_dtoh_sync(&mut found, at).unwrap();
        assert!(found.iter().enumerate().all(|(i, x)| i == *x as usize));
        result::memcpy_htod_sync(at + 4 * 2999, &[4711u32]).unwrap();
        sys::cuIpcCloseMemHandle(again).result().unwrap();
        sys::cuIpcCloseMemHandle(at).result().unwrap();
    }
}

fn properties() -> sys::CUmemAllocationProp {
    // SAFETY: the C structure consists of numbers and a pointer, for which 0 is valid.
    let mut out: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    out.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    out.requestedHandleTypes = sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    out.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    out
}

/// Maps the memory of handles contiguously, runs `work` on it, and releases everything except the handles.
fn mapped(handles: &[sys::CUmemGenericAllocationHandle], work: impl FnOnce(sys::CUdeviceptr)) {
    let bytes = handles.len() * GRANULE;
    let access = sys::CUmemAccessDesc {
        location: properties().location,
        flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    let mut at = 0;
    // SAFETY: the addresses are reserved here and released at the end.
    unsafe {
        sys::cuMemAddressReserve(&mut at, bytes, 0, 0, 0).result().unwrap();
        for (i, handle) in handles.iter().enumerate() {
            sys::cuMemMap(at + (i * GRANULE) as u64, GRANULE, 0, *handle, 0).result().unwrap();
        }
        assert_eq!(result::memcpy_htod_sync(at, &[0u8]).unwrap_err().0, Code::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemAddressFree(at, bytes), Code::CUDA_ERROR_INVALID_VALUE);
        sys::cuMemSetAccess(at, bytes, &access, 1).result().unwrap();
        work(at);
        sys::cuMemUnmap(at, bytes).result().unwrap();
        sys::cuMemAddressFree(at, bytes).result().unwrap();
    }
}

#[test]
fn another_process_maps_memory_by_its_descriptor() {
    let session = session("memory=5000000");
    let _gpu = Gpu::new(0).unwrap();
    let properties = properties();
    let (mut granule, mut fd) = (0, -1);
    let mut handles = [0; 3];
    // SAFETY: there is room for all results; the descriptor is owned.
    let fd = unsafe {
        let minimum = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        sys::cuMemGetAllocationGranularity(&mut granule, &properties, minimum).result().unwrap();
        assert_eq!(granule, GRANULE);
        sys::cuMemCreate(&mut handles[0], GRANULE, &properties, 0).result().unwrap();
        sys::cuMemCreate(&mut handles[1], GRANULE, &properties, 0).result().unwrap();
        let third = sys::cuMemCreate(&mut handles[2], GRANULE, &properties, 0);
        assert_eq!(third, Code::CUDA_ERROR_OUT_OF_MEMORY);
        let kind = sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
        sys::cuMemExportToShareableHandle((&raw mut fd).cast(), handles[1], kind, 0).result().unwrap();
        OwnedFd::from_raw_fd(fd)
    };
    let data: Vec<u32> = (0..GRANULE as u32 / 2).collect();
    mapped(&handles[..2], |at| {
        // SAFETY: the memory is as large as the data.
        unsafe { result::memcpy_htod_sync(at, &data).unwrap() };
        // Duplicates the descriptor, as sending it through a socket would.
        let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        elsewhere("maps_a_descriptor", "TEST_VMM_FILE", &path);
        let mut last = [0u32];
        // SAFETY: the access lies within the mapping.
        unsafe { result::memcpy_dtoh_sync(&mut last, at + 2 * GRANULE as u64 - 4).unwrap() };
        assert_eq!(last, [4711]);
    });
    assert!(session.leaks().contains("memory by handle"));
    for handle in &handles[..2] {
        // SAFETY: the handles were created above.
        unsafe { sys::cuMemRelease(*handle).result().unwrap() };
    }
    let (free, total) = result::mem_get_info().unwrap();
    assert_eq!(free, total);
}

/// Part of the test that runs in the other process.
#[test]
fn maps_a_descriptor() {
    let Ok(path) = std::env::var("TEST_VMM_FILE") else { return };
    let _session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let number = file.as_raw_fd() as usize;
    let kind = sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    let mut handle = 0;
    // SAFETY: there is room for the handle; the descriptor is alive.
    unsafe { sys::cuMemImportFromShareableHandle(&mut handle, number as *mut _, kind).result().unwrap() };
    drop(file);
    mapped(&[handle], |at| {
        let mut found = vec![0u32; GRANULE / 4];
        // SAFETY: the memory is as large as the data.
        unsafe {
            result::memcpy_dtoh_sync(&mut found, at).unwrap();
            result::memcpy_htod_sync(at + GRANULE as u64 - 4, &[4711u32]).unwrap();
        }
        assert!(found.iter().enumerate().all(|(i, x)| i + GRANULE / 4 == *x as usize));
    });
    // SAFETY: the handle was imported above.
    unsafe { sys::cuMemRelease(handle).result().unwrap() };
}

fn physical() -> sys::CUmemGenericAllocationHandle {
    let mut handle = 0;
    // SAFETY: there is room for the handle.
    unsafe { sys::cuMemCreate(&mut handle, GRANULE, &properties(), 0).result().unwrap() };
    handle
}

#[test]
fn unmapping_takes_memory_from_work_under_way() {
    let _session = session("");
    let _gpu = Gpu::new(0).unwrap();
    let (handle, stream, pinned) = (physical(), Stream::new().unwrap(), Pinned::new(64).unwrap());
    mapped(&[handle], |at| {
        // SAFETY: the memory is as large, and the data lives until the stream has run.
        unsafe { result::memcpy_htod_async(at, &pinned.floats(16)[..], stream.0).unwrap() };
    });
    assert_eq!(stream.synchronise().unwrap_err().0, Code::CUDA_ERROR_ILLEGAL_ADDRESS);
    // SAFETY: the handle was created above.
    unsafe { sys::cuMemRelease(handle).result().unwrap() };
}

#[test]
fn each_device_is_let_into_mapped_memory() {
    let session = session("devices=2");
    let (other, gpu) = (Gpu::new(1).unwrap(), Gpu::new(0).unwrap());
    let handle = physical();
    mapped(&[handle], |at| {
        // SAFETY: the access lies within the mapping.
        unsafe { result::memcpy_htod_sync(at, &[1u32, 2, 3]).unwrap() };
        other.enter().unwrap();
        let (memory, stream) = (Memory::new(12).unwrap(), Stream::new().unwrap());
        // SAFETY: both sides have this many bytes.
        let copy = || unsafe { result::memcpy_dtod_async(memory.0, at, 12, stream.0) };
        // Peer access between contexts covers only memory that they allocate, not mapped memory.
        // SAFETY: both contexts are alive.
        unsafe { sys::cuCtxEnablePeerAccess(gpu.context, 0).result().unwrap() };
        assert_eq!(copy().unwrap_err().0, Code::CUDA_ERROR_INVALID_VALUE);
        let mut access = sys::CUmemAccessDesc {
            location: properties().location,
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READ,
        };
        access.location.id = 1;
        // SAFETY: the range is the whole mapping.
        let allow = || unsafe { sys::cuMemSetAccess(at, GRANULE, &access, 1) };
        session.configure("peer=0");
        assert_eq!(allow(), Code::CUDA_ERROR_NOT_SUPPORTED);
        session.configure("peer=1");
        allow().result().unwrap();
        copy().unwrap();
        stream.synchronise().unwrap();
        assert_eq!(memory.read::<u32>(3).unwrap(), [1, 2, 3]);
        gpu.enter().unwrap();
        // SAFETY: the owner still has write access.
        unsafe { result::memcpy_htod_sync(at, &[4u32]).unwrap() };
    });
    // SAFETY: the handle was created above.
    unsafe { sys::cuMemRelease(handle).result().unwrap() };
}

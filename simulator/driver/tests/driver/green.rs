//! Green contexts, and libraries whose kernels run in them.

use crate::common::*;
use cudarc::driver::{result, sys};
use std::ffi::CStr;

fn sm(resource: &sys::CUdevResource) -> sys::CUdevSmResource {
    // SAFETY: the driver wrote a resource of multiprocessors.
    unsafe { resource.__bindgen_anon_1.sm }
}

fn nothing() -> sys::CUdevResource {
    // SAFETY: the structure consists of numbers, for which 0 is valid.
    unsafe { std::mem::zeroed() }
}

fn whole(gpu: &Gpu) -> Result<sys::CUdevResource> {
    let mut out = nothing();
    // SAFETY: there is room for one resource.
    unsafe { sys::cuDeviceGetDevResource(gpu.device, &mut out, sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM) }
        .result()?;
    Ok(out)
}

/// Splits a resource; returns the groups and the rest.
fn split(input: &sys::CUdevResource, least: u32, room: u32) -> Result<(Vec<sys::CUdevResource>, sys::CUdevResource)> {
    let (mut groups, mut n, mut rest) = (vec![nothing(); room as usize], room, nothing());
    // SAFETY: there is room for as many groups as the call is told.
    unsafe { sys::cuDevSmResourceSplitByCount(groups.as_mut_ptr(), &mut n, input, &mut rest, 0, least) }.result()?;
    groups.truncate(n as usize);
    Ok((groups, rest))
}

fn describe(resources: &[sys::CUdevResource]) -> Result<sys::CUdevResourceDesc> {
    let (mut out, mut resources) = (std::ptr::null_mut(), resources.to_vec());
    // SAFETY: passes the number of resources; writes one handle.
    unsafe { sys::cuDevResourceGenerateDesc(&mut out, resources.as_mut_ptr(), resources.len() as u32) }.result()?;
    Ok(out)
}

struct Green(sys::CUgreenCtx);

impl Green {
    fn new(gpu: &Gpu, resources: &[sys::CUdevResource]) -> Result<Green> {
        let mut out = std::ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { sys::cuGreenCtxCreate(&mut out, describe(resources)?, gpu.device, 1) }.result()?;
        Ok(Green(out))
    }

    fn stream(&self, flags: u32, priority: i32) -> Result<Stream> {
        let mut out = std::ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { sys::cuGreenCtxStreamCreate(&mut out, self.0, flags, priority) }.result()?;
        Ok(Stream(out))
    }
}

impl Drop for Green {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed only here.
        unsafe { sys::cuGreenCtxDestroy(self.0) };
    }
}

struct Library(sys::CUlibrary);

impl Library {
    fn new() -> Result<Library> {
        let (mut out, none, nothing) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        let code = c"simulated".as_ptr().cast();
        // SAFETY: passes no options; writes one handle.
        unsafe { sys::cuLibraryLoadData(&mut out, code, none, nothing, 0, std::ptr::null_mut(), nothing, 0) }
            .result()?;
        Ok(Library(out))
    }

    fn kernel(&self, name: &CStr) -> Result<sys::CUkernel> {
        let mut out = std::ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { sys::cuLibraryGetKernel(&mut out, self.0, name.as_ptr()) }.result()?;
        Ok(out)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: loaded once, unloaded only here.
        unsafe { sys::cuLibraryUnload(self.0) };
    }
}

/// Stream priority and number of multiprocessors of the last kernel.
fn last_kernel() -> (i32, u32) {
    // SAFETY: the driver of this crate, whose function has this type.
    let last: unsafe extern "C" fn(*mut i32, *mut u32) = unsafe {
        let library = libloading::os::unix::Library::new(path()).unwrap();
        let last = *library.get(b"simulated_cuda_last_kernel").unwrap();
        std::mem::forget(library);
        last
    };
    let (mut priority, mut multiprocessors) = (0, 0);
    // SAFETY: there is room for both.
    unsafe { last(&mut priority, &mut multiprocessors) };
    (priority, multiprocessors)
}

#[test]
fn multiprocessors_are_split_by_the_granularity_of_the_device() {
    let session = session("");
    for (compute, sms, least, groups, size, rest) in [
        (90, 132, 1, 16, 8, 4),
        (90, 132, 9, 8, 16, 4),
        (100, 20, 8, 2, 8, 4),
        (80, 108, 1, 27, 4, 0),
        (86, 84, 5, 14, 6, 0),
    ] {
        session.configure(&format!("compute={compute} sms={sms}"));
        let gpu = Gpu::new(0).unwrap();
        let all = whole(&gpu).unwrap();
        assert_eq!(sm(&all).smCount, sms);
        let mut n = 99;
        let none = std::ptr::null_mut();
        // SAFETY: without an output array the call only counts.
        unsafe { sys::cuDevSmResourceSplitByCount(none, &mut n, &all, none, 0, least) }.result().unwrap();
        assert_eq!(n, groups);
        let (found, left) = split(&all, least, 64).unwrap();
        assert_eq!((found.len() as u32, sm(&left).smCount), (groups, rest));
        assert!(found.iter().all(|group| sm(group).smCount == size));
        // Taking fewer groups leaves a larger rest.
        let (found, left) = split(&all, least, 1).unwrap();
        assert_eq!((found.len(), sm(&left).smCount), (1, sms - size));
    }
}

#[test]
fn what_cannot_be_split_or_described_is_refused() {
    let session = session("");
    let gpu = Gpu::new(0).unwrap();
    let all = whole(&gpu).unwrap();
    let configuration = Code::CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
    assert_eq!(split(&all, 133, 4).err().unwrap().0, configuration);
    let (groups, rest) = split(&all, 8, 16).unwrap();
    assert_eq!(split(&groups[0], 8, 1).err().unwrap().0, configuration);
    // Resources must come from one split, each at most once.
    let (others, _) = split(&all, 8, 16).unwrap();
    assert_eq!(describe(&[groups[0], others[1]]).err().unwrap().0, configuration);
    assert_eq!(describe(&[groups[0], groups[0]]).err().unwrap().0, configuration);
    assert_eq!(describe(&[]).err().unwrap().0, Code::CUDA_ERROR_INVALID_VALUE);
    describe(&[groups[0], groups[3], rest]).unwrap();
    let mut other = nothing();
    other.type_ = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_INVALID;
    assert_eq!(split(&other, 8, 1).err().unwrap().0, Code::CUDA_ERROR_INVALID_RESOURCE_TYPE);
    let mut context = std::ptr::null_mut();
    // SAFETY: a required flag is missing, so nothing is created.
    let made = unsafe { sys::cuGreenCtxCreate(&mut context, describe(&groups).unwrap(), gpu.device, 0) };
    assert_eq!(made, Code::CUDA_ERROR_INVALID_VALUE);
    for settings in ["green=0", "green=1 driver=12030"] {
        session.configure(settings);
        assert_eq!(whole(&gpu).err().unwrap().0, Code::CUDA_ERROR_NOT_SUPPORTED);
    }
}

#[test]
fn kernels_run_on_the_multiprocessors_of_their_stream() {
    let session = session("");
    let gpu = Gpu::new(0).unwrap();
    let (groups, rest) = split(&whole(&gpu).unwrap(), 8, 16).unwrap();
    let green = Green::new(&gpu, &[groups[0], groups[5], rest]).unwrap();
    assert!(session.leaks().contains("green context of 20 multiprocessors of device 0"));
    assert_eq!(green.stream(0, 0).err().unwrap().0, Code::CUDA_ERROR_INVALID_VALUE);
    let (library, module) = (Library::new().unwrap(), Module::new().unwrap());
    assert!(session.leaks().contains("library"));
    assert_eq!(library.kernel(c"no_such").err().unwrap().0, Code::CUDA_ERROR_NOT_FOUND);
    let kernel: sys::CUfunction = library.kernel(c"silu_mul_float").unwrap().cast();
    let data = Memory::of(&[1f32; 64]).unwrap();
    let everywhere = Stream::new().unwrap();
    let (low, high) = (green.stream(1, 0).unwrap(), green.stream(1, -99).unwrap());
    for (stream, expected) in [(&everywhere, (0, 132)), (&low, (0, 20)), (&high, (-5, 20))] {
        silu_mul(kernel, &data, &data, 64, stream).unwrap();
        stream.synchronise().unwrap();
        assert_eq!(last_kernel(), expected);
    }
    let mut of = std::ptr::null_mut();
    // SAFETY: writes one handle.
    unsafe { sys::cuStreamGetGreenCtx(low.0, &mut of) }.result().unwrap();
    assert_eq!(of, green.0);
    // A module's function belongs to its context only.
    let function = module.function("silu_mul_float").unwrap();
    assert_eq!(silu_mul(function, &data, &data, 64, &low).unwrap_err().0, Code::CUDA_ERROR_INVALID_HANDLE);
    // Larger shared memory is requested as for a function.
    let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the handles are alive.
    unsafe {
        sys::cuKernelSetAttribute(most, 64 << 10, kernel.cast(), gpu.device).result().unwrap();
        let wrong = sys::cuKernelSetAttribute(most, 64 << 10, function.cast(), gpu.device);
        assert_eq!(wrong, Code::CUDA_ERROR_INVALID_HANDLE);
    }
    drop(green);
    // cudarc has no name for CUDA_ERROR_STREAM_DETACHED, so this calls the driver directly to see the number.
    // SAFETY: the driver's function of this name; the memory is as large.
    unsafe {
        let library = libloading::os::unix::Library::new(path()).unwrap();
        type Set = unsafe extern "C" fn(u64, u8, usize, sys::CUstream) -> i32;
        let set: Set = *library.get(b"cuMemsetD8Async").unwrap();
        assert_eq!(set(data.0, 0, 4, low.0), 917);
        std::mem::forget(library);
    }
    low.synchronise().unwrap();
}

/// A captured kernel keeps its green context, but takes the priority of the stream on which the graph is launched.
#[test]
fn graphs_stay_in_their_green_context() {
    let _session = session("");
    let gpu = Gpu::new(0).unwrap();
    let (groups, _) = split(&whole(&gpu).unwrap(), 8, 16).unwrap();
    let green = Green::new(&gpu, &groups[..3]).unwrap();
    let library = Library::new().unwrap();
    let kernel: sys::CUfunction = library.kernel(c"silu_mul_float").unwrap().cast();
    let data = Memory::of(&[1f32; 64]).unwrap();
    let (low, everywhere) = (green.stream(1, 0).unwrap(), Stream::new().unwrap());
    // SAFETY: all handles are alive; the graph and its executable are owned.
    unsafe {
        result::stream::begin_capture(low.0, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
        silu_mul(kernel, &data, &data, 64, &low).unwrap();
        let graph = Graph(result::stream::end_capture(low.0).unwrap());
        let mut exec = std::ptr::null_mut();
        sys::cuGraphInstantiateWithFlags(&mut exec, graph.0, 0).result().unwrap();
        let exec = Exec(exec);
        for stream in [&everywhere, &green.stream(1, -3).unwrap()] {
            result::graph::launch(exec.0, stream.0).unwrap();
            stream.synchronise().unwrap();
            let mut priority = 1;
            sys::cuStreamGetPriority(stream.0, &mut priority).result().unwrap();
            assert_eq!(last_kernel(), (priority, 24));
        }
    }
}

#[test]
fn a_green_context_that_is_forgotten_is_named() {
    let session = session("");
    {
        let gpu = Gpu::new(0).unwrap();
        let (groups, _) = split(&whole(&gpu).unwrap(), 8, 2).unwrap();
        std::mem::forget(Green::new(&gpu, &groups[..1]).unwrap());
    }
    let left = session.leaks();
    assert!(left.contains("green context of 8 multiprocessors") && left.contains("primary context"), "{left}");
    // SAFETY: resetting the primary context destroys everything in it.
    unsafe { sys::cuDevicePrimaryCtxReset_v2(0) };
    session.configure("reset");
    // SAFETY: cuInit may be called at any time.
    unsafe { sys::cuInit(0).result().unwrap() };
    assert_eq!(session.leaks(), "primary context of device 0, retained 1 times");
    // SAFETY: releases the reference that the forgotten green context held.
    unsafe { sys::cuDevicePrimaryCtxRelease_v2(0) };
}

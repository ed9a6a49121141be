//! Green contexts, and libraries, whose kernels run in them.

use crate::common::*;
use cudarc::driver::{result, sys};
use std::ffi::CStr;

fn sm(resource: &sys::CUdevResource) -> sys::CUdevSmResource {
    // SAFETY: the driver wrote it as one of multiprocessors.
    unsafe { resource.__bindgen_anon_1.sm }
}

fn nothing() -> sys::CUdevResource {
    // SAFETY: numbers, of which 0 is one.
    unsafe { std::mem::zeroed() }
}

fn whole(gpu: &Gpu) -> Result<sys::CUdevResource> {
    let mut out = nothing();
    // SAFETY: there is room for one.
    unsafe { sys::cuDeviceGetDevResource(gpu.device, &mut out, sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM) }
        .result()?;
    Ok(out)
}

/// The groups, and how many multiprocessors are left.
fn split(input: &sys::CUdevResource, least: u32, room: u32) -> Result<(Vec<sys::CUdevResource>, sys::CUdevResource)> {
    let (mut groups, mut n, mut rest) = (vec![nothing(); room as usize], room, nothing());
    // SAFETY: there is room for as many as it is told.
    unsafe { sys::cuDevSmResourceSplitByCount(groups.as_mut_ptr(), &mut n, input, &mut rest, 0, least) }.result()?;
    groups.truncate(n as usize);
    Ok((groups, rest))
}

fn describe(resources: &[sys::CUdevResource]) -> Result<sys::CUdevResourceDesc> {
    let (mut out, mut resources) = (std::ptr::null_mut(), resources.to_vec());
    // SAFETY: so many resources; writes one handle.
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
        // SAFETY: made once, destroyed once.
        unsafe { sys::cuGreenCtxDestroy(self.0) };
    }
}

struct Library(sys::CUlibrary);

impl Library {
    fn new() -> Result<Library> {
        let (mut out, none, nothing) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        let code = c"simulated".as_ptr().cast();
        // SAFETY: no options; writes one handle.
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
        // SAFETY: loaded once, unloaded once.
        unsafe { sys::cuLibraryUnload(self.0) };
    }
}

/// Priority and multiprocessors of the last kernel's stream.
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
        // SAFETY: without room it counts.
        unsafe { sys::cuDevSmResourceSplitByCount(none, &mut n, &all, none, 0, least) }.result().unwrap();
        assert_eq!(n, groups);
        let (found, left) = split(&all, least, 64).unwrap();
        assert_eq!((found.len() as u32, sm(&left).smCount), (groups, rest));
        assert!(found.iter().all(|group| sm(group).smCount == size));
        // Fewer groups leave more.
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
    // Of one split, and each once.
    let (others, _) = split(&all, 8, 16).unwrap();
    assert_eq!(describe(&[groups[0], others[1]]).err().unwrap().0, configuration);
    assert_eq!(describe(&[groups[0], groups[0]]).err().unwrap().0, configuration);
    assert_eq!(describe(&[]).err().unwrap().0, Code::CUDA_ERROR_INVALID_VALUE);
    describe(&[groups[0], groups[3], rest]).unwrap();
    let mut other = nothing();
    other.type_ = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_INVALID;
    assert_eq!(split(&other, 8, 1).err().unwrap().0, Code::CUDA_ERROR_INVALID_RESOURCE_TYPE);
    let mut context = std::ptr::null_mut();
    // SAFETY: the flag that is required is missing; nothing is made.
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
    // A module's function is of its context.
    let function = module.function("silu_mul_float").unwrap();
    assert_eq!(silu_mul(function, &data, &data, 64, &low).unwrap_err().0, Code::CUDA_ERROR_INVALID_HANDLE);
    // More shared memory is asked for as of a function.
    let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: they live.
    unsafe {
        sys::cuKernelSetAttribute(most, 64 << 10, kernel.cast(), gpu.device).result().unwrap();
        let wrong = sys::cuKernelSetAttribute(most, 64 << 10, function.cast(), gpu.device);
        assert_eq!(wrong, Code::CUDA_ERROR_INVALID_HANDLE);
    }
    drop(green);
    // CUDA_ERROR_STREAM_DETACHED is newer than cudarc's names: asked for as a number.
    // SAFETY: the driver's function of that name; the memory is as large.
    unsafe {
        let library = libloading::os::unix::Library::new(path()).unwrap();
        type Set = unsafe extern "C" fn(u64, u8, usize, sys::CUstream) -> i32;
        let set: Set = *library.get(b"cuMemsetD8Async").unwrap();
        assert_eq!(set(data.0, 0, 4, low.0), 917);
        std::mem::forget(library);
    }
    low.synchronise().unwrap();
}

/// A recorded kernel stays where it was recorded, with the priority of where it is launched.
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
    // SAFETY: all live; the graph and what is made of it are owned.
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
    // SAFETY: the primary context goes with all that it has.
    unsafe { sys::cuDevicePrimaryCtxReset_v2(0) };
    session.configure("reset");
    // SAFETY: takes what is left of it.
    unsafe { sys::cuInit(0).result().unwrap() };
    assert_eq!(session.leaks(), "primary context of device 0, retained 1 times");
    // SAFETY: the green context's.
    unsafe { sys::cuDevicePrimaryCtxRelease_v2(0) };
}

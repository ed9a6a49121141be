//! The CUDA driver: loading it at run time, and its results as errors that name the attempted action.

use crate::bail;
use crate::error::{Error, Result, Status};
use cudarc::driver::sys::{self, CUresult};
use once_cell::sync::OnceCell;
use std::ffi::{CStr, c_char};

/// Oldest usable driver: that of CUDA 12.0. Older ones lack functions that are used here.
const OLDEST_DRIVER: i32 = 12000;

/// The functions of the driver that this backend calls, checked before use: cudarc panics where one is missing.
const USED: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetUuid_v2",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute",
    "cuDeviceCanAccessPeer",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuCtxGetStreamPriorityRange",
    "cuCtxEnablePeerAccess",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyPeerAsync",
    "cuMemsetD8Async",
    "cuStreamCreateWithPriority",
    "cuStreamSynchronize",
    "cuStreamDestroy_v2",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuLibraryLoadData",
    "cuLibraryUnload",
    "cuLibraryGetKernel",
    "cuKernelSetAttribute",
    "cuLaunchKernel",
    "cuGetErrorName",
    "cuGetErrorString",
];

/// The version of a usable driver (12040 is 12.4), which is loaded and initialised by the first call that finds one. Failures
/// are not remembered: a driver may be installed, and a device may appear, while the process runs.
pub(super) fn ready() -> Result<i32> {
    static READY: OnceCell<i32> = OnceCell::new();
    READY.get_or_try_init(|| crate::panics::catch(find).and_then(|found| found)).copied()
}

fn find() -> Result<i32> {
    // SAFETY: loads a library by its well-known name; the driver's is made to be loaded so.
    if !unsafe { sys::is_culib_present() } {
        bail!(NotFound, "there is no CUDA driver on this machine (libcuda.so.1)");
    }
    if let Some(missing) = USED.iter().find(|name| !has(name)) {
        bail!(Unsupported, "the CUDA driver has no {missing}: expected one for CUDA 12.0 or newer");
    }
    // SAFETY: no arguments but flags; idempotent.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_ERROR_NO_DEVICE => bail!(NotFound, "the CUDA driver finds no device"),
        result => check(result, "initialise the CUDA driver")?,
    }
    let mut version = 0;
    // SAFETY: writes one int.
    check(unsafe { sys::cuDriverGetVersion(&mut version) }, "ask for the CUDA driver's version")?;
    if version < OLDEST_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        bail!(Unsupported, "the CUDA driver is for CUDA {major}.{minor}: expected one for 12.0 or newer");
    }
    Ok(version)
}

/// True if the driver has a function of that name.
pub(super) fn has(name: &str) -> bool {
    let Ok(name) = std::ffi::CString::new(name) else { return false };
    // SAFETY: the library is loaded, or the caller found it so; the symbol is looked up, not called.
    unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes_with_nul()).is_ok() }
}

/// Turns a result into an error that names the attempted action and quotes the driver.
pub(super) fn check(result: CUresult, doing: &str) -> Result<()> {
    let status = match result {
        CUresult::CUDA_SUCCESS => return Ok(()),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Status::OutOfMemory,
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUresult::CUDA_ERROR_INVALID_RESOURCE_TYPE
        | CUresult::CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION
        | CUresult::CUDA_ERROR_NOT_SUPPORTED => Status::Unsupported,
        CUresult::CUDA_ERROR_NO_DEVICE | CUresult::CUDA_ERROR_INVALID_DEVICE => Status::NotFound,
        _ => Status::Device,
    };
    let word = |ask: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: gives a pointer to a static text, or NULL for a number that it does not know.
        unsafe {
            if ask(result, &mut text) != CUresult::CUDA_SUCCESS || text.is_null() {
                return String::from("?");
            }
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    };
    let (name, text) = (word(sys::cuGetErrorName), word(sys::cuGetErrorString));
    Err(Error::new(status, format!("cannot {doing}: {name}: {text}")))
}

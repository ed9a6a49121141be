//! The CUDA devices of this machine, and the shared state of those in use.

use super::cublaslt::Handle as Blas;
use super::driver::{check, has, ready};
use super::partition::Partitions;
use crate::backend::device::DeviceInfo;
use crate::bail;
use crate::error::Result;
use cudarc::cublaslt::sys::cublasLtHandle_t;
use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute as Attribute, CUfunction_attribute, CUresult};
use std::collections::HashMap;
use std::ffi::CString;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Oldest architecture that the kernels are written for (sm_80).
const OLDEST_ARCHITECTURE: u32 = 80;

/// Shared memory in bytes that a kernel gets without opting in to more.
const SHARED_UNASKED: u32 = 48 << 10;

/// Number of devices; 0 without a usable driver.
pub fn count() -> i32 {
    all().unwrap_or(0)
}

fn all() -> Result<i32> {
    ready()?;
    let mut count = 0;
    // SAFETY: writes one int.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "count the CUDA devices")?;
    Ok(count)
}

/// Describes a device. NOT_FOUND if there is none with this ordinal.
pub fn info(ordinal: i32) -> Result<DeviceInfo> {
    let handle = handle(ordinal)?;
    let mut name = [0u8; 256];
    let mut total_bytes = 0;
    // SAFETY: each writes into room of the size that it is told, or of its type.
    unsafe {
        check(
            sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, handle),
            "ask for the name of a CUDA device",
        )?;
        check(sys::cuDeviceTotalMem_v2(&mut total_bytes, handle), "ask for the memory of a CUDA device")?;
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    // The context is there afterwards only if somebody else holds it.
    let device = Device::open(ordinal)?;
    Ok(DeviceInfo {
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        uuid: written(&uuid(handle)?),
        compute_capability: device.architecture,
        numa_node: attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID).map_or(0, |node| node.max(0) as u32),
        total_bytes: total_bytes as u64,
        free_bytes: device.free_bytes()?,
    })
}

fn written(uuid: &[u8; 16]) -> String {
    let mut text = String::from("GPU");
    for (i, byte) in uuid.iter().enumerate() {
        if [0, 4, 6, 8, 10].contains(&i) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

fn handle(ordinal: i32) -> Result<CUdevice> {
    let count = all().map_err(|error| error.context(format!("CUDA device {ordinal}")))?;
    if !(0..count).contains(&ordinal) {
        bail!(NotFound, "there is no CUDA device {ordinal}: this process has {count}");
    }
    let mut handle = 0;
    // SAFETY: writes one int.
    check(unsafe { sys::cuDeviceGet(&mut handle, ordinal) }, "find a CUDA device")?;
    Ok(handle)
}

fn uuid(handle: CUdevice) -> Result<[u8; 16]> {
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: writes the 16 bytes of its argument.
    check(unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, handle) }, "ask for the UUID of a CUDA device")?;
    Ok(uuid.bytes.map(|byte| byte as u8))
}

fn attribute(handle: CUdevice, which: Attribute) -> Result<i32> {
    let mut value = 0;
    // SAFETY: writes one int.
    check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, handle) }, "ask for what a CUDA device is")?;
    Ok(value)
}

/// A device in use: its primary context, its kernels and its cuBLASLt handle, shared by all caches and engines there.
pub struct Device {
    ordinal: i32,
    handle: CUdevice,
    context: sys::CUcontext,
    /// Compute capability: major * 10 + minor.
    pub architecture: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    kernels: Mutex<Kernels>,
    partitions: Mutex<Partitions>,
    /// None until first use; then None inside if there is no usable cuBLASLt.
    blas: Mutex<Option<Option<Blas>>>,
}

/// Keeps a device's context current on this thread.
pub(super) struct Current(PhantomData<*const ()>);

impl Drop for Current {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: this thread has pushed it; the handle is of no further use.
        unsafe { sys::cuCtxPopCurrent_v2(&mut context) };
    }
}

#[derive(Default)]
struct Kernels {
    /// Libraries rather than modules, because their kernels run in the context of the stream (`partition`).
    libraries: Vec<sys::CUlibrary>,
    functions: HashMap<String, Kernel>,
}

#[derive(Clone, Copy)]
struct Kernel {
    raw: sys::CUkernel,
    /// Dynamic shared memory in bytes that it has opted in to.
    shared: u32,
}

// SAFETY: handles of the driver may be used from any thread; what is changed is behind the mutex.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// Opens a device, or returns the open one. NOT_FOUND, or UNSUPPORTED if its driver is too old.
    pub fn open(ordinal: i32) -> Result<Arc<Device>> {
        static OPEN: Mutex<Vec<Weak<Device>>> = Mutex::new(Vec::new());
        let handle = handle(ordinal)?;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|device| device.strong_count() > 0);
        if let Some(device) = open.iter().filter_map(Weak::upgrade).find(|device| device.ordinal == ordinal) {
            return Ok(device);
        }
        let major = attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: writes one handle; it is released when the device is dropped.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, handle) }, "open a CUDA device")?;
        let device = Arc::new(Device {
            ordinal,
            handle,
            context,
            architecture: (major * 10 + minor) as u32,
            multiprocessors: multiprocessors as u32,
            kernels: Mutex::default(),
            partitions: Mutex::default(),
            blas: Mutex::default(),
        });
        open.push(Arc::downgrade(&device));
        Ok(device)
    }

    /// Opens the device with a UUID; ordinals may differ between processes. NOT_FOUND if it is not visible here.
    pub fn of_uuid(uuid: &[u8; 16]) -> Result<Arc<Device>> {
        for ordinal in 0..all()? {
            if self::uuid(handle(ordinal)?)? == *uuid {
                return Device::open(ordinal);
            }
        }
        bail!(NotFound, "the CUDA device {} is not visible to this process", written(uuid))
    }

    /// Ordinal of the device among those visible to this process.
    pub fn ordinal(&self) -> i32 {
        self.ordinal
    }

    /// UUID of the device, the same in every process.
    pub fn uuid(&self) -> Result<[u8; 16]> {
        uuid(self.handle)
    }

    pub(super) fn context(&self) -> sys::CUcontext {
        self.context
    }

    pub(super) fn attribute(&self, which: Attribute) -> Result<i32> {
        attribute(self.handle, which)
    }

    /// Makes the device's context current on this thread while the result lives, and restores the host's own afterwards.
    pub(super) fn enter(&self) -> Result<Current> {
        // SAFETY: the context is retained as long as self lives.
        check(unsafe { sys::cuCtxPushCurrent_v2(self.context) }, "use a CUDA device")?;
        Ok(Current(PhantomData))
    }

    /// Free device memory in bytes, as the driver reports it now.
    pub fn free_bytes(&self) -> Result<u64> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "ask for free memory of a CUDA device")?;
        Ok(free as u64)
    }

    /// Loads the kernels unless they are loaded. UNSUPPORTED if this build has none for the device.
    pub fn load_kernels(&self) -> Result<()> {
        let _current = self.enter()?;
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if !kernels.libraries.is_empty() {
            return Ok(());
        }
        if self.architecture < OLDEST_ARCHITECTURE {
            bail!(
                Unsupported,
                "CUDA device {} has compute capability {}.{}: expected 8.0 or newer",
                self.ordinal,
                self.architecture / 10,
                self.architecture % 10
            );
        }
        let images = images();
        if images.is_empty() {
            bail!(Unsupported, "this build of the library has no kernels for CUDA devices: nvcc was not there");
        }
        let mut libraries = Vec::new();
        let loaded = images.iter().try_for_each(|image| {
            let mut library = std::ptr::null_mut();
            let (code, none, nothing) = (image.as_ptr().cast(), std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: a fatbin as nvcc made it, whole in memory; no options.
            let result = unsafe {
                sys::cuLibraryLoadData(&mut library, code, none, nothing, 0, std::ptr::null_mut(), nothing, 0)
            };
            check(result, &format!("load kernels for CUDA device {}", self.ordinal))?;
            libraries.push(library);
            Ok(())
        });
        if let Err(error) = loaded {
            unload(&libraries);
            return Err(error);
        }
        kernels.libraries = libraries;
        Ok(())
    }

    /// The cuBLASLt handle for this device, valid while `self` lives. None without a usable cuBLASLt.
    pub(super) fn blas(&self) -> Result<Option<cublasLtHandle_t>> {
        let _current = self.enter()?;
        let mut handle = self.blas.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = match &mut *handle {
            Some(known) => known,
            unknown => unknown.insert(Blas::new()?),
        };
        Ok(handle.as_ref().map(Blas::raw))
    }

    pub(super) fn raw(&self) -> CUdevice {
        self.handle
    }

    pub(super) fn partitions(&self) -> MutexGuard<'_, Partitions> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kernel that may use `shared` bytes of dynamic shared memory. cuLaunchKernel runs it in the stream's context.
    pub(super) fn kernel(&self, name: &str, shared: u32) -> Result<sys::CUfunction> {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kernels.functions.get(name).copied();
        let kernel = match known {
            Some(kernel) => kernel,
            None => Kernel { raw: look_up(&kernels.libraries, name)?, shared: SHARED_UNASKED },
        };
        let wanted = Kernel { shared: kernel.shared.max(shared), ..kernel };
        if wanted.shared > kernel.shared {
            let what = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a kernel of a library that is loaded as long as self lives.
            let result = unsafe { sys::cuKernelSetAttribute(what, shared as i32, kernel.raw, self.handle) };
            check(result, &format!("give {name} {shared} bytes of shared memory"))?;
        }
        if known.is_none_or(|known| known.shared < wanted.shared) {
            kernels.functions.insert(name.to_string(), wanted);
        }
        Ok(kernel.raw.cast())
    }
}

fn look_up(libraries: &[sys::CUlibrary], name: &str) -> Result<sys::CUkernel> {
    let symbol = CString::new(name).map_err(|_| crate::error!(Internal, "kernel name {name:?}"))?;
    for library in libraries {
        let mut kernel = std::ptr::null_mut();
        // SAFETY: a loaded library and a NUL-terminated name.
        match unsafe { sys::cuLibraryGetKernel(&mut kernel, *library, symbol.as_ptr()) } {
            CUresult::CUDA_ERROR_NOT_FOUND => continue,
            result => check(result, &format!("find the kernel {name}"))?,
        }
        return Ok(kernel);
    }
    bail!(Unsupported, "this build of the library has no kernel {name}");
}

fn unload(libraries: &[sys::CUlibrary]) {
    for library in libraries {
        // SAFETY: loaded, and nobody uses it any more. A failure leaves nothing to be done.
        unsafe { sys::cuLibraryUnload(*library) };
    }
}

/// Kernel images to load. The simulated driver brings its own code and accepts any image.
fn images() -> Vec<&'static [u8]> {
    if has("simulated_cuda_configure") {
        return vec![b"simulated\0"];
    }
    cleave_kernels::FATBINS.iter().map(|(_, image)| *image).collect()
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Ok(_current) = self.enter() {
            *self.blas.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
            let kernels = self.kernels.get_mut().unwrap_or_else(PoisonError::into_inner);
            unload(&kernels.libraries);
        }
        // SAFETY: retained by `open`, released once.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.handle) };
    }
}

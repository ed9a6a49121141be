//! The kernels of a device: loading what nvcc made, and looking kernels up by name.

use super::context::Context;
use super::driver::{check, has};
use crate::bail;
use crate::error::Result;
use cudarc::driver::sys::{self, CUfunction_attribute, CUresult};
use std::collections::HashMap;
use std::ffi::CString;

/// Shared memory in bytes that a kernel gets without opting in to more.
const SHARED_UNASKED: u32 = 48 << 10;

/// Kernels of a device. Whoever drops them unloads them before.
#[derive(Default)]
pub(super) struct Kernels {
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

// SAFETY: the driver takes handles from any thread.
unsafe impl Send for Kernels {}

impl Kernels {
    pub fn are_loaded(&self) -> bool {
        !self.libraries.is_empty()
    }

    /// Loads all kernels into the device, whose context is current. UNSUPPORTED if this build has none.
    pub fn load(&mut self, context: &Context) -> Result<()> {
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
            check(result, &format!("load kernels for CUDA device {}", context.ordinal))?;
            libraries.push(library);
            Ok(())
        });
        if let Err(error) = loaded {
            unload(&libraries);
            return Err(error);
        }
        self.libraries = libraries;
        Ok(())
    }

    /// A kernel that may use `shared` bytes of dynamic shared memory. cuLaunchKernel runs it in the stream's context.
    pub fn get(&mut self, context: &Context, name: &str, shared: u32) -> Result<sys::CUfunction> {
        let known = self.functions.get(name).copied();
        let kernel = match known {
            Some(kernel) => kernel,
            None => Kernel { raw: look_up(&self.libraries, name)?, shared: SHARED_UNASKED },
        };
        let wanted = Kernel { shared: kernel.shared.max(shared), ..kernel };
        if wanted.shared > kernel.shared {
            let what = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a kernel of a library that is loaded as long as self lives.
            let result = unsafe { sys::cuKernelSetAttribute(what, shared as i32, kernel.raw, context.handle) };
            check(result, &format!("give {name} {shared} bytes of shared memory"))?;
        }
        if known.is_none_or(|known| known.shared < wanted.shared) {
            self.functions.insert(name.to_string(), wanted);
        }
        Ok(kernel.raw.cast())
    }

    /// Unloads them. The device's context is current, and nothing uses them any more.
    pub fn unload(&mut self) {
        self.functions.clear();
        unload(&std::mem::take(&mut self.libraries));
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

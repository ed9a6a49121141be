//! Bindings to the CUDA driver that is loaded in this process.

use crate::*;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

macro_rules! driver {
    ($($field:ident = $name:literal: fn($($of:ty),*),)*) => {
        /// Driver functions that return a CUresult.
        struct Driver {
            $($field: unsafe extern "C" fn($($of),*) -> i32,)*
        }

        /// Looks up the functions. The driver must be the simulated one, which finds kernels by name.
        fn find() -> Option<Driver> {
            // SAFETY: only refers to a library that is loaded already; the functions have these types in every driver.
            unsafe {
                let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
                if library.is_null() {
                    return None;
                }
                let symbol = |name: &CStr| Some(libc::dlsym(library, name.as_ptr())).filter(|symbol| !symbol.is_null());
                symbol(c"simulated_cuda_configure")?;
                Some(Driver {
                    $($field: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($of),*) -> i32>(symbol($name)?),)*
                })
            }
        }
    };
}

driver! {
    current = c"cuCtxGetCurrent": fn(*mut usize),
    load = c"cuLibraryLoadData": fn(
        *mut usize, *const u8, *const i32, *const usize, u32, *const i32, *const usize, u32
    ),
    unload = c"cuLibraryUnload": fn(usize),
    function = c"cuLibraryGetKernel": fn(*mut usize, usize, *const c_char),
    set = c"cuKernelSetAttribute": fn(i32, i32, usize, i32),
    device = c"cuCtxGetDevice": fn(*mut i32),
    fill = c"cuMemsetD8Async": fn(u64, u8, usize, usize),
    launch = c"cuLaunchKernel": fn(
        usize, u32, u32, u32, u32, u32, u32, u32, usize, *mut *mut c_void, *mut *mut c_void
    ),
}

fn driver() -> Result<&'static Driver> {
    static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
    DRIVER.get_or_init(find).as_ref().ok_or(NOT_INITIALIZED)
}

fn check(result: i32) -> Result<()> {
    match result {
        0 => Ok(()),
        2 => Err(ALLOC_FAILED),
        3 | 201 => Err(NOT_INITIALIZED),
        _ => Err(EXECUTION_FAILED),
    }
}

fn current() -> Result<usize> {
    let mut context = 0;
    // SAFETY: writes one handle.
    check(unsafe { (driver()?.current)(&mut context) })?;
    if context == 0 { Err(NOT_INITIALIZED) } else { Ok(context) }
}

/// The kernels, loaded for one context and its green contexts.
pub struct Module {
    context: usize,
    raw: usize,
}

impl Module {
    /// Loads the kernels into the current context.
    pub fn load() -> Result<Module> {
        let (context, mut raw) = (current()?, 0);
        let (image, none, nothing) = (c"simulated".as_ptr().cast(), std::ptr::null(), std::ptr::null());
        // SAFETY: writes one handle; there are no options.
        check(unsafe { (driver()?.load)(&mut raw, image, none, nothing, 0, none, nothing, 0) })?;
        Ok(Module { context, raw })
    }

    /// Submits a clear of `bytes` bytes to a stream.
    pub fn clear(&self, at: u64, bytes: usize, stream: usize) -> Result<()> {
        // SAFETY: the driver checks the address.
        check(unsafe { (driver()?.fill)(at, 0, bytes, stream) })
    }

    /// Submits a kernel to a stream.
    ///
    /// # Safety
    ///
    /// The arguments match the kernel's parameters.
    pub unsafe fn launch(
        &self,
        kernel: &CStr,
        grid: [u32; 2],
        threads: u32,
        shared: u32,
        stream: usize,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        if current()? != self.context {
            return Err(INVALID_VALUE);
        }
        let (driver, mut function, mut device) = (driver()?, 0, 0);
        let nothing = std::ptr::null_mut();
        // SAFETY: writes one handle; the caller vouches for the arguments.
        unsafe {
            check((driver.function)(&mut function, self.raw, kernel.as_ptr()))?;
            check((driver.device)(&mut device))?;
            check((driver.set)(8, shared as i32, function, device))?;
            let [x, y] = grid;
            check((driver.launch)(function, x, y, 1, threads, 1, 1, shared, stream, arguments.as_mut_ptr(), nothing))
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(driver) = driver() {
            // SAFETY: loaded once, unloaded only here.
            unsafe { (driver.unload)(self.raw) };
        }
    }
}

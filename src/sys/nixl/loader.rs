//! The dynamic loader: libraries and their symbols.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A loaded library, a symbol in it, or any of NIXL's opaque objects.
pub(super) type Handle = *mut c_void;

/// Loads a library that is never unloaded. Its symbols stay out of the process's global scope, because a wheel brings
/// its own copies of abseil, gRPC and OpenSSL. Its `RPATH` finds its dependencies. The error is the loader's text.
pub(super) fn dlopen(path: &Path, flags: libc::c_int) -> std::result::Result<Handle, String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| "a zero byte in the path".to_string())?;
    // SAFETY: `name` is a C string. The library's constructors run, as loading implies.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags | libc::RTLD_LOCAL | libc::RTLD_NODELETE) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: null, or a C string of this thread that is valid until its next call of the loader.
    let text = unsafe {
        let text = libc::dlerror();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    // The loader's text begins with the file's name, as this project's error texts do.
    let text = text.unwrap_or_else(|| "cannot be loaded".into());
    Err(text.strip_prefix(&format!("{}: ", path.display())).map(str::to_string).unwrap_or(text))
}

/// Looks up a symbol in the library and its dependencies.
pub(super) fn symbol(library: Handle, name: &str) -> Option<Handle> {
    let name = CString::new(name).ok()?;
    // SAFETY: `library` is a handle from dlopen, and `name` is a C string.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// Path of the file that a function was loaded from.
pub(super) fn file_of(function: Handle) -> Option<PathBuf> {
    // SAFETY: dladdr fills in plain data. The name lives as long as the library, which is never unloaded.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        (libc::dladdr(function, &mut info) != 0 && !info.dli_fname.is_null())
            .then(|| std::ffi::OsString::from_vec(CStr::from_ptr(info.dli_fname).to_bytes().to_vec()).into())
    }
}

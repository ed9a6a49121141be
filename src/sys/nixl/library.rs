//! Loading, once for the process and for ever.

use super::capi::{Functions, Handle};
use super::{find, quiet};
use crate::error::{Error, Result};
use crate::sys::thread::with_signals_blocked;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// NIXL's C API, loaded.
pub struct Library {
    pub(super) functions: Functions,
    path: PathBuf,
}

impl Library {
    /// The library, loaded by the first call; that one takes some tenths of a second and reads many files.
    ///
    /// Looked for as the file CLEAVE_NIXL_LIBRARY names (then nowhere else), by the loader's own path, and in the
    /// directory CLEAVE_NIXL_DIR (a wheel's, such as site-packages, or an installation prefix). UNSUPPORTED if it is
    /// nowhere or unusable, with what was tried; a failure is remembered and its text stays the same.
    pub fn get() -> Result<&'static Library> {
        static LIBRARY: OnceLock<Result<Library>> = OnceLock::new();
        LIBRARY.get_or_init(|| with_signals_blocked(load)).as_ref().map_err(Error::clone)
    }

    /// The file that was loaded.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn load() -> Result<Library> {
    let mut tried = Vec::new();
    for candidate in find::candidates(std::env::var_os("CLEAVE_NIXL_LIBRARY"), std::env::var_os("CLEAVE_NIXL_DIR")) {
        match candidate.and_then(|path| open(&path)) {
            Ok(library) => {
                crate::log!(Info, "nixl", "loaded {}", library.path.display());
                return Ok(library);
            }
            Err(text) => tried.push(text),
        }
    }
    crate::bail!(
        Unsupported,
        "NIXL cannot be loaded; tried: {}. CLEAVE_NIXL_LIBRARY names libnixl_capi.so itself, CLEAVE_NIXL_DIR the \
         directory that its Python wheel is installed in",
        tried.join("; ")
    )
}

fn open(path: &Path) -> std::result::Result<Library, String> {
    let place = |text: String| format!("{}: {text}", path.display());
    // Found by its own name, wherever it was loaded from.
    let is_hosts = dlopen(Path::new("libnixl.so"), libc::RTLD_NOW | libc::RTLD_NOLOAD).is_ok();
    let handle = dlopen(path, libc::RTLD_NOW).map_err(place)?;
    // SAFETY: a library of this name, which has all of these functions, is NIXL's C API.
    let functions = unsafe { Functions::load(handle) }.map_err(place)?;
    if symbol(handle, "nixl_capi_is_stub").is_some_and(|stub| {
        // SAFETY: `bool nixl_capi_is_stub()`.
        unsafe { std::mem::transmute::<Handle, unsafe extern "C" fn() -> bool>(stub)() }
    }) {
        return Err(place("a stub, which itself looks for NIXL elsewhere".into()));
    }
    let path = file_of(functions.destroy_agent as Handle).unwrap_or_else(|| path.to_path_buf());
    quiet::load_ucx(&path)?;
    if !is_hosts {
        quiet::nixl(handle);
    }
    Ok(Library { functions, path })
}

/// Loads a library that is never unloaded. Its symbols are kept out of the process's global scope (a wheel brings
/// its own abseil, gRPC and OpenSSL names); its `RPATH` finds what it needs. The loader's words are the error.
pub(super) fn dlopen(path: &Path, flags: libc::c_int) -> std::result::Result<Handle, String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| "a zero byte in the path".to_string())?;
    // SAFETY: a C string; constructors of the library run, which is what loading means.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags | libc::RTLD_LOCAL | libc::RTLD_NODELETE) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: a C string of this thread that lives until its next dl call, or null.
    let text = unsafe {
        let text = libc::dlerror();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    // The loader begins with the name, as our texts do.
    let text = text.unwrap_or_else(|| "cannot be loaded".into());
    Err(text.strip_prefix(&format!("{}: ", path.display())).map(str::to_string).unwrap_or(text))
}

/// A symbol of the library or of one that it depends on.
pub(super) fn symbol(library: Handle, name: &str) -> Option<Handle> {
    let name = CString::new(name).ok()?;
    // SAFETY: a handle of dlopen and a C string.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// The file that a function was loaded from.
fn file_of(function: Handle) -> Option<PathBuf> {
    // SAFETY: plain data, filled in by dladdr; the name lives as long as the library, which is for ever.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        (libc::dladdr(function, &mut info) != 0 && !info.dli_fname.is_null())
            .then(|| std::ffi::OsString::from_vec(CStr::from_ptr(info.dli_fname).to_bytes().to_vec()).into())
    }
}

//! Loads NIXL's C API once per process. It is never unloaded.

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
    /// The library. The first call loads it, which takes some tenths of a second and reads many files.
    ///
    /// The search covers only the file in CLEAVE_NIXL_LIBRARY if that is set; otherwise the loader's own path, and the
    /// directory in CLEAVE_NIXL_DIR (a wheel's, such as site-packages, or an installation prefix). UNSUPPORTED if no
    /// usable library is found; the text lists what was tried. A failure is remembered and returned again with the same
    /// text.
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
    // True if the host has already loaded NIXL. RTLD_NOLOAD finds it by its name, from whatever path it was loaded.
    let is_hosts = dlopen(Path::new("libnixl.so"), libc::RTLD_NOW | libc::RTLD_NOLOAD).is_ok();
    let handle = dlopen(path, libc::RTLD_NOW).map_err(place)?;
    // SAFETY: a library with this name and with all of these functions is NIXL's C API.
    let functions = unsafe { Functions::load(handle) }.map_err(place)?;
    if symbol(handle, "nixl_capi_is_stub").is_some_and(|stub| {
        // SAFETY: the C declaration is `bool nixl_capi_is_stub()`.
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
fn file_of(function: Handle) -> Option<PathBuf> {
    // SAFETY: dladdr fills in plain data. The name lives as long as the library, which is never unloaded.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        (libc::dladdr(function, &mut info) != 0 && !info.dli_fname.is_null())
            .then(|| std::ffi::OsString::from_vec(CStr::from_ptr(info.dli_fname).to_bytes().to_vec()).into())
    }
}

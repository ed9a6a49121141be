//! Loads NIXL's C API once per process. It is never unloaded.

use super::capi::Functions;
use super::loader::{Handle, dlopen, file_of, symbol};
use super::{find, quiet};
use crate::error::Result;
use crate::sys::thread::with_signals_blocked;
use once_cell::sync::OnceCell;
use std::path::{Path, PathBuf};

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
    /// usable library is found; the text lists what was tried. The next call tries again, so a library that was
    /// installed meanwhile is found.
    pub fn get() -> Result<&'static Library> {
        static LIBRARY: OnceCell<Library> = OnceCell::new();
        LIBRARY.get_or_try_init(|| with_signals_blocked(load))
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

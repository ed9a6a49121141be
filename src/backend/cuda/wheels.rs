//! Libraries of CUDA that came as Python wheels: they lie in site-packages, where the dynamic linker does not look.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where NVIDIA's wheels keep libraries below site-packages: CUDA 13 in one place, CUDA 12 one folder per library.
const FOLDERS: &[&str] = &["nvidia/cu13/lib", "nvidia/cu12/lib", "nvidia/cublas/lib"];

/// Folders of the active Python environment, the user's and the system's packages, in which a wheel may have put a library
/// of cuBLAS. Only those that exist.
pub(super) fn folders() -> Vec<PathBuf> {
    let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let prefixes = [
        env("VIRTUAL_ENV"),
        env("CONDA_PREFIX"),
        env("HOME").map(|home| home.join(".local")),
        Some(PathBuf::from("/usr/local")),
        Some(PathBuf::from("/usr")),
    ];
    let mut found = Vec::new();
    for lib in prefixes.into_iter().flatten().map(|prefix| prefix.join("lib")) {
        for python in pythons(&lib) {
            for packages in ["site-packages", "dist-packages"] {
                let folders = FOLDERS.iter().map(|folder| python.join(packages).join(folder));
                found.extend(folders.filter(|folder| folder.is_dir()));
            }
        }
    }
    found
}

/// `python3`, `python3.12` and the like, newest first.
fn pythons(lib: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(lib).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().as_bytes().starts_with(b"python3"));
    let mut pythons: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
    pythons.sort_by(|a, b| b.cmp(a));
    pythons
}

/// Loads a library of cuBLAS from a folder so that later searches by name find it. False if it is not there.
pub(super) fn load(folder: &Path, library: &str) -> bool {
    let Ok(path) = CString::new(folder.join(library).into_os_string().into_encoded_bytes()) else { return false };
    // SAFETY: a NUL-terminated path. The library is NVIDIA's, made to be loaded so, and is never unloaded.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    !handle.is_null()
}

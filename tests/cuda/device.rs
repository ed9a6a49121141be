//! The device under test: simulated libraries, or this machine's own if CLEAVE_GPU is set (tools/gpu-check.sh).
#![allow(dead_code)]

use cleave::engine::{CacheOptions, ModelCache};
use cleave::model::Model;
use std::ffi::{CStr, CString, c_char};
use std::sync::{Arc, Once};

/// Path of a simulated library. Cargo puts a test's dependencies in the test's own directory.
fn beside(name: &str) -> CString {
    let path = std::env::current_exe().unwrap().with_file_name(name);
    assert!(path.exists(), "{} is not there", path.display());
    CString::new(path.into_os_string().into_encoded_bytes()).unwrap()
}

/// Loads the simulated driver and cuBLASLt, so that lookups by name find them. Call this before anything else that
/// uses CUDA.
pub fn simulate() {
    if std::env::var_os("CLEAVE_GPU").is_some() {
        return;
    }
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        load("");
        load_blas("");
    });
}

/// Loads the simulated driver with the given settings. Later calls change the settings.
pub fn load(settings: &str) {
    configure(&beside("libcuda.so"), c"simulated_cuda_configure", settings);
}

/// Loads the simulated cuBLASLt with the given settings. Later calls change the settings.
pub fn load_blas(settings: &str) {
    configure(&beside("libcublasLt.so"), c"simulated_cublaslt_configure", settings);
}

fn configure(path: &CStr, name: &CStr, settings: &str) {
    // SAFETY: `path` is a C string, and the simulated library is safe to load from any thread.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    // SAFETY: after a failed dlopen, dlerror returns a C string that lives until this thread's next call of the loader.
    assert!(!library.is_null(), "{:?}", unsafe { CStr::from_ptr(libc::dlerror()) });
    let settings = CString::new(settings).unwrap();
    // SAFETY: the library was opened above and is never closed; `name` is a C string.
    let configure = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!configure.is_null());
    // SAFETY: both simulated libraries export their configure function with this signature; it is not null.
    let configure: extern "C" fn(*const c_char) -> i32 = unsafe { std::mem::transmute(configure) };
    assert_eq!(configure(settings.as_ptr()), 0, "{settings:?}");
}

fn find(name: &CStr) -> Option<*mut libc::c_void> {
    // SAFETY: `library` is RTLD_DEFAULT or an open library; `name` is a C string.
    let in_library = |library| Some(unsafe { libc::dlsym(library, name.as_ptr()) }).filter(|symbol| !symbol.is_null());
    // Fallback: this machine's driver, which may not be in the global scope.
    // SAFETY: the file names are C strings, and the driver is made to be loaded from any thread.
    let own = || [c"libcuda.so.1", c"libcuda.so"].map(|file| unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW) });
    in_library(libc::RTLD_DEFAULT)
        .or_else(|| own().into_iter().filter(|library| !library.is_null()).find_map(in_library))
}

fn symbol(name: &CStr) -> *mut libc::c_void {
    find(name).unwrap_or_else(|| panic!("{name:?} is not there"))
}

fn count(name: &CStr) -> u64 {
    // SAFETY: callers name counters of the simulated libraries, all of which have this signature.
    let count: extern "C" fn() -> u64 = unsafe { std::mem::transmute(symbol(name)) };
    count()
}

/// Describes the objects of the device and of cuBLASLt that still exist; empty if there are none.
pub fn leaks() -> String {
    // SAFETY: the simulated driver exports this function with this signature.
    let leaks: extern "C" fn(*mut c_char, usize) -> i32 =
        unsafe { std::mem::transmute(symbol(c"simulated_cuda_leaks")) };
    let mut text = vec![0u8; 1 << 16];
    leaks(text.as_mut_ptr().cast(), text.len());
    let text = CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy().into_owned();
    match if has_blas() { count(c"simulated_cublaslt_alive") } else { 0 } {
        0 => text,
        n => format!("{text}\n{n} things of cuBLASLt's"),
    }
}

/// The context that this thread's driver calls use. It belongs to the host, so the library must not change it.
pub fn current_context() -> usize {
    // SAFETY: this is cuCtxGetCurrent's signature: a CUcontext has the size of a usize, a CUresult that of an i32.
    let current: extern "C" fn(*mut usize) -> i32 = unsafe { std::mem::transmute(symbol(c"cuCtxGetCurrent")) };
    let mut context = usize::MAX;
    assert_eq!(current(&mut context), 0);
    context
}

/// Whether the tests run on the simulated device.
pub fn simulated() -> bool {
    std::env::var_os("CLEAVE_GPU").is_none()
}

/// Stream priority of the last kernel, and the number of multiprocessors that it could use.
pub fn last_kernel() -> (i32, u32) {
    // SAFETY: the simulated driver exports this function with this signature.
    let last: extern "C" fn(*mut i32, *mut u32) = unsafe { std::mem::transmute(symbol(c"simulated_cuda_last_kernel")) };
    let (mut priority, mut multiprocessors) = (0, 0);
    last(&mut priority, &mut multiprocessors);
    (priority, multiprocessors)
}

/// Number of driver calls since the last `load` that could be made to fail.
pub fn calls() -> u64 {
    count(c"simulated_cuda_calls")
}

/// Number of copies between devices since the last `load` that went through the host.
pub fn staged() -> u64 {
    count(c"simulated_cuda_staged")
}

/// Bytes copied from the device to the host since the last `load`.
pub fn downloaded() -> u64 {
    count(c"simulated_cuda_downloaded")
}

/// Number of graph captures and of graph launches since the last `load`.
pub fn graphs() -> (u64, u64) {
    (count(c"simulated_cuda_captures"), count(c"simulated_cuda_replays"))
}

/// Number of cuBLASLt calls since the last `load_blas` that could be made to fail.
pub fn blas_calls() -> u64 {
    count(c"simulated_cublaslt_calls")
}

/// Number of products computed by cuBLASLt, and number of times it was asked for an algorithm.
pub fn products() -> (u64, u64) {
    (count(c"simulated_cublaslt_matmuls"), count(c"simulated_cublaslt_heuristics"))
}

/// Whether the simulated cuBLASLt is loaded in this process.
pub fn has_blas() -> bool {
    find(c"simulated_cublaslt_calls").is_some()
}

pub fn cache_on(model: &Arc<Model>, device: i32, options: CacheOptions) -> Arc<ModelCache> {
    simulate();
    ModelCache::create(model, &[device], options).expect("a cache")
}

//! The device: a simulated one with its libraries, or with CLEAVE_GPU set that of this machine (tools/gpu-check.sh).
#![allow(dead_code)]

use cleave::engine::{CacheOptions, ModelCache};
use cleave::model::Model;
use std::ffi::{CStr, CString, c_char};
use std::sync::{Arc, Once};

/// A simulated library, where cargo puts what a test depends on: beside the test.
fn beside(name: &str) -> CString {
    let path = std::env::current_exe().unwrap().with_file_name(name);
    assert!(path.exists(), "{} is not there", path.display());
    CString::new(path.into_os_string().into_encoded_bytes()).unwrap()
}

/// Loads the simulated driver and cuBLASLt, so that searches for them by name find them. To be called before anything of
/// CUDA's.
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

/// The driver with settings of its, which may be called again with others.
pub fn load(settings: &str) {
    configure(&beside("libcuda.so"), c"simulated_cuda_configure", settings);
}

/// The same for cuBLASLt.
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
    // This machine's own driver, which nobody has loaded into the global scope.
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

/// What is alive on the device and of cuBLASLt, in words; empty if nothing is.
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

/// The context that this thread's calls of the driver go to: the host's own affair.
pub fn current_context() -> usize {
    // SAFETY: this is cuCtxGetCurrent's signature: a CUcontext has the size of a usize, a CUresult that of an i32.
    let current: extern "C" fn(*mut usize) -> i32 = unsafe { std::mem::transmute(symbol(c"cuCtxGetCurrent")) };
    let mut context = usize::MAX;
    assert_eq!(current(&mut context), 0);
    context
}

/// Whether the device is the simulated one.
pub fn simulated() -> bool {
    std::env::var_os("CLEAVE_GPU").is_none()
}

/// Where the last kernel ran: the priority of its stream, and on how many multiprocessors.
pub fn last_kernel() -> (i32, u32) {
    // SAFETY: the simulated driver exports this function with this signature.
    let last: extern "C" fn(*mut i32, *mut u32) = unsafe { std::mem::transmute(symbol(c"simulated_cuda_last_kernel")) };
    let (mut priority, mut multiprocessors) = (0, 0);
    last(&mut priority, &mut multiprocessors);
    (priority, multiprocessors)
}

/// How many calls that can fail there were since the last `load`.
pub fn calls() -> u64 {
    count(c"simulated_cuda_calls")
}

/// Copies between devices that went through the host since then.
pub fn staged() -> u64 {
    count(c"simulated_cuda_staged")
}

/// Bytes copied from the device to the host since the last `load`.
pub fn downloaded() -> u64 {
    count(c"simulated_cuda_downloaded")
}

/// Captures that began since then, and launches of graphs.
pub fn graphs() -> (u64, u64) {
    (count(c"simulated_cuda_captures"), count(c"simulated_cuda_replays"))
}

/// The same of cuBLASLt, since the last `load_blas`.
pub fn blas_calls() -> u64 {
    count(c"simulated_cublaslt_calls")
}

/// Products that went through cuBLASLt, and how often it was asked how to do one.
pub fn products() -> (u64, u64) {
    (count(c"simulated_cublaslt_matmuls"), count(c"simulated_cublaslt_heuristics"))
}

/// Whether the simulated cuBLASLt is in this process.
pub fn has_blas() -> bool {
    find(c"simulated_cublaslt_calls").is_some()
}

pub fn cache_on(model: &Arc<Model>, device: i32, options: CacheOptions) -> Arc<ModelCache> {
    simulate();
    ModelCache::create(model, &[device], options).expect("a cache")
}

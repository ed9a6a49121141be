//! The device: a simulated one, or with CLEAVE_GPU set that of this machine (tools/gpu-check.sh).
#![allow(dead_code)]

use cleave::engine::{CacheOptions, ModelCache};
use cleave::model::Model;
use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;
use std::sync::{Arc, Once};

/// libcuda.so, where cargo puts what a test depends on: beside the test.
pub fn driver() -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name("libcuda.so");
    assert!(path.exists(), "{} is not there", path.display());
    path
}

/// Loads the simulated driver, so that a search for libcuda by name finds it. To be called before anything of CUDA's.
pub fn simulate() {
    if std::env::var_os("CLEAVE_GPU").is_some() {
        return;
    }
    static LOADED: Once = Once::new();
    LOADED.call_once(|| load(""));
}

/// The same with settings of the driver's, once in a process.
pub fn load(settings: &str) {
    let path = CString::new(driver().into_os_string().into_encoded_bytes()).unwrap();
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!library.is_null(), "{:?}", unsafe { CStr::from_ptr(libc::dlerror()) });
    let settings = CString::new(settings).unwrap();
    let configure = unsafe { libc::dlsym(library, c"simulated_cuda_configure".as_ptr()) };
    assert!(!configure.is_null());
    let configure: extern "C" fn(*const c_char) -> i32 = unsafe { std::mem::transmute(configure) };
    assert_eq!(configure(settings.as_ptr()), 0, "{settings:?}");
}

fn symbol(name: &CStr) -> *mut libc::c_void {
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    assert!(!symbol.is_null(), "{name:?}");
    symbol
}

/// What is alive on the device, in words; empty if nothing is.
pub fn leaks() -> String {
    let leaks: extern "C" fn(*mut c_char, usize) -> i32 =
        unsafe { std::mem::transmute(symbol(c"simulated_cuda_leaks")) };
    let mut text = vec![0u8; 4096];
    leaks(text.as_mut_ptr().cast(), text.len());
    CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy().into_owned()
}

/// How many calls that can fail there were since the last `load`.
pub fn calls() -> u64 {
    let calls: extern "C" fn() -> u64 = unsafe { std::mem::transmute(symbol(c"simulated_cuda_calls")) };
    calls()
}

pub fn cache_on(model: &Arc<Model>, device: i32, options: CacheOptions) -> Arc<ModelCache> {
    simulate();
    ModelCache::create(model, &[device], options).expect("a cache")
}

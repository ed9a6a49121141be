//! Who asks the loader for libcuda.so.1 gets this library once it is loaded: that is its SONAME. Who asks for libcuda.so
//! would get what the search path has, another copy or a GPU's driver. So this library loads an empty one of that name
//! that needs libcuda.so.1: a look for symbols in it goes on here.

use std::ffi::CString;

static EMPTY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libcuda.so"));

/// Runs when the library is loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    let Ok(fd) = crate::arena::memfd(c"libcuda.so", EMPTY.len()) else { return };
    // SAFETY: the descriptor is new and the file as long as what is written. The empty library has no code.
    unsafe {
        let written = libc::write(fd, EMPTY.as_ptr().cast(), EMPTY.len());
        if usize::try_from(written) == Ok(EMPTY.len())
            && let Ok(path) = CString::new(format!("/proc/self/fd/{fd}"))
        {
            libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_NODELETE);
        }
        libc::close(fd);
    }
}

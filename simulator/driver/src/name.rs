//! Makes this library answer to both names of the driver. Its SONAME is libcuda.so.1, so a later request for that name
//! gets this library. A request for libcuda.so would search the path and might find another copy or a GPU's driver.
//! This library therefore loads an empty library with that name, which depends on libcuda.so.1, so that symbol lookups
//! in it continue here.

use std::ffi::CString;

static EMPTY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libcuda.so"));

/// Runs when the library is loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    let Ok(fd) = crate::arena::memfd(c"libcuda.so", EMPTY.len()) else { return };
    // SAFETY: the descriptor is new, and the file holds only the bytes written here. The empty library runs no code
    // when it is loaded.
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

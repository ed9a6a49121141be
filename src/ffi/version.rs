//! version
//!
//! A program built against major 0 runs with every later library of major 0. Additions go to the end of structs or
//! are new functions, and raise the minor number.

use super::boundary::call_int;
use libc::c_char;

/// Major number of this header, which names the ABI: libcleave.so.MAJOR.
pub const CLEAVE_API_MAJOR: u32 = 0;
/// Minor number of this header. Every addition raises it.
pub const CLEAVE_API_MINOR: u32 = 1;

/// Returns the API version of the loaded library: (major << 16) | minor. Compare it with CLEAVE_API_MAJOR and
/// CLEAVE_API_MINOR to find out whether the library is older than the header that the program was built with.
#[unsafe(no_mangle)]
pub extern "C" fn cleave_api_version() -> u32 {
    call_int(|| Ok((CLEAVE_API_MAJOR << 16 | CLEAVE_API_MINOR) as i32)) as u32
}

/// Returns the release as text, such as "0.1.0". The string is static and never freed.
#[unsafe(no_mangle)]
pub extern "C" fn cleave_version_string() -> *const c_char {
    const VERSION: &std::ffi::CStr =
        match std::ffi::CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("the version holds a NUL"),
        };
    VERSION.as_ptr()
}

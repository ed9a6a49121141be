//! version
//!
//! A program built against major 0 runs with every later library of major 0: what is added comes at the end of
//! structs and as new functions, which raises the minor number.

use super::boundary::call_int;
use libc::c_char;

/// Major number of this header. It names the ABI: libcleave.so.MAJOR.
pub const CLEAVE_API_MAJOR: u32 = 0;
/// Minor number of this header: raised by every addition.
pub const CLEAVE_API_MINOR: u32 = 1;

/// The version of the API that the loaded library implements: (major << 16) | minor. Compare it with the header's
/// CLEAVE_API_MAJOR and CLEAVE_API_MINOR to see whether the library is older than what the program was built with.
#[unsafe(no_mangle)]
pub extern "C" fn cleave_api_version() -> u32 {
    call_int(|| Ok((CLEAVE_API_MAJOR << 16 | CLEAVE_API_MINOR) as i32)) as u32
}

/// The release, for people: "0.1.0". Static: never freed, valid for as long as the process lives.
#[unsafe(no_mangle)]
pub extern "C" fn cleave_version_string() -> *const c_char {
    const VERSION: &std::ffi::CStr =
        match std::ffi::CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("the version holds a NUL"),
        };
    VERSION.as_ptr()
}

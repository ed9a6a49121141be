//! Panics and failures on demand are caught and reported, and not printed. This file tests the API boundary; other
//! files test engines with failpoints.
#![cfg(feature = "failpoints")]

use cleave::error::Status;
use cleave::failpoint::{Action, arm, disarm_all, hit};
use cleave::ffi::error::cleave_error_t;
use cleave::ffi::queue::{cleave_queue_create, cleave_queue_destroy};
use std::ffi::CStr;
use std::ptr::null_mut;

fn create(err: &mut cleave_error_t) -> i32 {
    let mut queue = null_mut();
    // SAFETY: all pointers are valid.
    unsafe {
        let status = cleave_queue_create(16, &mut queue, err);
        cleave_queue_destroy(queue);
        status
    }
}

/// A single test, because failpoints apply to the whole process.
#[test]
fn a_panic_inside_is_a_status_and_a_text() {
    let mut err = cleave_error_t { code: 0, message: [0; 252] };
    assert_eq!(create(&mut err), 0);
    // create and destroy each pass the failpoint once.
    arm("ffi.call", 3, Action::Panic);
    assert_eq!(create(&mut err), 0);
    assert_eq!(create(&mut err), Status::Internal as i32);
    // SAFETY: the library wrote the pointer.
    let text = unsafe { CStr::from_ptr(err.message.as_ptr()) }.to_str().unwrap();
    assert!(text.starts_with("panic: failpoint ffi.call"), "{text}");
    // The library still works.
    assert_eq!(create(&mut err), 0);
    arm("ffi.call", 1, Action::Fail(Status::OutOfMemory));
    assert_eq!(create(&mut err), Status::OutOfMemory as i32);
    arm("never", 2, Action::Panic);
    assert!(hit("never").is_ok());
    disarm_all();
    assert!(hit("never").is_ok());
    // With two failpoints armed for the same pass, the second acts on the next pass. Other failpoints are unaffected.
    (0..2).for_each(|_| arm("twice", 1, Action::Fail(Status::Io)));
    assert!(hit("twice").is_err() && hit("other").is_ok() && hit("twice").is_err() && hit("twice").is_ok());
}

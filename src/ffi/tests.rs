//! Tests of the boundary that a C program cannot make well. ctest/ tests the rules that a host sees.

use super::boundary::{call, call_int};
use super::error::{CLEAVE_ERR_CORRUPT, CLEAVE_ERR_INTERNAL, cleave_error_t, cleave_status_string};
use super::handle::cleave_queue_t;
use super::{event, queue, registry, version};
use crate::engine::Queue;
use crate::error::{Error, Status};
use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::Arc;

fn text(err: &cleave_error_t) -> String {
    // SAFETY: the library wrote a NUL-terminated text.
    unsafe { CStr::from_ptr(err.message.as_ptr()) }.to_str().unwrap().to_string()
}

fn failing(message: &str) -> (i32, cleave_error_t) {
    let mut err = cleave_error_t { code: 7, message: [b'x' as _; 252] };
    let status = call(&mut err, || Err(Error::new(Status::Corrupt, message)));
    (status, err)
}

#[test]
fn long_texts_end_at_a_character_boundary() {
    for pad in 0..4 {
        let message = "a".repeat(pad) + &"\u{20ac}".repeat(100);
        let (status, err) = failing(&message);
        assert_eq!((status, err.code), (CLEAVE_ERR_CORRUPT, CLEAVE_ERR_CORRUPT));
        let text = text(&err);
        assert!(message.starts_with(&text) && (249..=251).contains(&text.len()), "{}", text.len());
    }
    assert_eq!(text(&failing("a\0b").1), "a\u{fffd}b");
    assert_eq!(text(&failing("").1), "");
}

#[test]
fn a_panic_is_internal_and_names_its_place() {
    let mut err = cleave_error_t { code: 0, message: [0; 252] };
    let status = call(&mut err, || panic!("a step broke"));
    assert_eq!(status, CLEAVE_ERR_INTERNAL);
    assert!(text(&err).starts_with("panic: a step broke ("), "{}", text(&err));
    assert_eq!(call_int(|| panic!("no descriptor")), CLEAVE_ERR_INTERNAL);
}

#[test]
fn handles_are_names_and_die_with_their_object() {
    let first = registry::insert(Queue::new(8).unwrap()).unwrap();
    let held = registry::get::<Queue>(first, "queue").unwrap();
    assert_eq!(Arc::strong_count(&registry::take::<Queue>(first, "queue").unwrap()), 2);
    assert_eq!(registry::get::<Queue>(first, "queue").err().unwrap().status, Status::NotFound);
    assert_eq!(registry::take::<Queue>(first, "queue").err().unwrap().status, Status::NotFound);
    assert!(held.fd() >= 0);
    // The slot is used again some time, the handle never.
    let later: Vec<_> = (0..64).map(|_| registry::insert(Queue::new(8).unwrap()).unwrap()).collect();
    assert!(!later.contains(&first));
    for handle in later {
        registry::take::<Queue>(handle, "queue").unwrap();
    }
}

#[test]
fn no_value_of_a_handle_is_worse_than_an_error() {
    let values = [1usize, 8, 0x1000, 0x7fff_ffff_f000, usize::MAX, 0xc1 << 56, 0xc130_0000_000f_ffff, 0xc1f0 << 48];
    for value in values {
        let handle: *mut cleave_queue_t = std::ptr::without_provenance_mut(value);
        // SAFETY: handles are not followed.
        let fd = unsafe { queue::cleave_queue_fd(handle) };
        assert!(fd == Status::InvalidArgument as i32 || fd == Status::NotFound as i32, "{value:#x}: {fd}");
        // SAFETY: as above; `n` is ours.
        unsafe {
            queue::cleave_queue_destroy(handle);
            let mut n = 9;
            assert!(event::cleave_queue_poll(handle, null_mut(), 64, 0, 0, &mut n) < 0);
            assert_eq!(n, 0);
        }
    }
}

#[test]
fn every_status_has_a_name() {
    let name = |status| {
        // SAFETY: static strings.
        unsafe { CStr::from_ptr(cleave_status_string(status)) }.to_str().unwrap()
    };
    assert_eq!((name(0), name(-2), name(-16)), ("OK", "NOT_FOUND", "INTERNAL"));
    for unknown in [1, -18, i32::MIN, i32::MAX] {
        assert_eq!(name(unknown), "UNKNOWN");
    }
    assert_eq!(version::cleave_api_version(), version::CLEAVE_API_MAJOR << 16 | version::CLEAVE_API_MINOR);
}

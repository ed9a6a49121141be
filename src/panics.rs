//! Catches panics inside the library before they reach the host or end a thread. They are logged and reported as INTERNAL with
//! their text and place, and never printed.
//!
//! The hook is installed once, on the first call. It silences panics of threads that are [`Inside`] the library and passes
//! all others to the hook that was installed before.

use crate::error::{Error, Result, Status};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Marks a thread as inside the library until this value is dropped.
pub struct Inside(());

impl Inside {
    /// Marks the current thread. Calls may be nested.
    pub fn enter() -> Inside {
        install_hook();
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() + 1));
        Inside(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get().saturating_sub(1)));
    }
}

/// Runs `body`; a panic in it becomes an INTERNAL error.
pub fn catch<R>(body: impl FnOnce() -> R) -> Result<R> {
    let _inside = Inside::enter();
    catch_unwind(AssertUnwindSafe(body)).map_err(|payload| {
        let text = LAST.try_with(RefCell::take).ok().flatten();
        let text = text.unwrap_or_else(|| payload_text(&*payload).to_string());
        // A payload of a foreign type could panic again when dropped.
        std::mem::forget(payload);
        Error::new(Status::Internal, format!("panic: {text}"))
    })
}

fn payload_text(payload: &(dyn Any + Send)) -> &str {
    match payload.downcast_ref::<String>() {
        Some(text) => text,
        None => payload.downcast_ref::<&str>().copied().unwrap_or("no text"),
    }
}

fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if DEPTH.try_with(Cell::get).unwrap_or(0) == 0 {
                previous(info);
            } else {
                note(info);
            }
        }));
    });
}

fn note(info: &PanicHookInfo<'_>) {
    let text = payload_text(info.payload());
    let text = match info.location() {
        Some(place) => format!("{text} ({}:{})", place.file(), place.line()),
        None => text.to_string(),
    };
    crate::log!(Error, "panic", "{text}");
    let _ = LAST.try_with(|last| last.replace(Some(text)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_internal_error_with_its_place() {
        let error = catch(|| panic!("the {} failed", "step")).unwrap_err();
        assert_eq!(error.status, Status::Internal);
        assert!(error.message.starts_with("panic: the step failed ("), "{}", error.message);
        assert!(error.message.contains("panics.rs:"), "{}", error.message);
        assert_eq!(catch(|| 7), Ok(7));
    }
}

//! The simulated functions of the driver API, with their C ABI. CUDA's documentation is their contract.
//!
//! SAFETY contract of every unsafe block in these files: host pointers come from the caller, who must pass what that documentation
//! asks for; null is checked where a result is written. Handles and device addresses are looked up, never trusted.

#![allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]

mod context;
mod copy;
mod device;
mod graph;
mod green;
mod launch;
mod library;
mod memory;
mod share;
mod stream;

/// Entry points that can be made to fail (`enter`), or not (`leave`): name(arguments) |state| body.
macro_rules! api {
    ($($how:ident $name:ident($($arg:ident: $type:ty),* $(,)?) |$state:ident| $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> i32 {
                crate::state::$how(|$state| $body)
            }
        )*
    };
}
pub(crate) use api;

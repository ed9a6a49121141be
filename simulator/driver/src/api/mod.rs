//! Simulated functions of the driver API with their C ABI. They follow CUDA's documentation.
//!
//! SAFETY contract of every unsafe block in these files: host pointers come from the caller, who must pass what CUDA's
//! documentation requires. Pointers to results are checked for null. Handles and device addresses are looked up, never
//! trusted.

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

/// Defines entry points as name(arguments) |state| body. Those with `enter` can be made to fail; those with `leave`
/// cannot.
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

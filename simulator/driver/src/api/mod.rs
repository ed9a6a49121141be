//! The functions of the driver API that are there, with their C ABI. Their contract is CUDA's documentation; handles and
//! device addresses are checked, host pointers cannot be.

#![allow(clippy::missing_safety_doc)]

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

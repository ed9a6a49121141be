//! Libraries: kernels that belong to no context. They run in the context of the stream on which they are launched.

use super::api;
use super::launch::known;
use crate::state::{Function, put};
use crate::*;
use simulated_kernels as kernels;
use std::ffi::{CStr, c_char};

api! {
    enter cuLibraryLoadData(
        out: *mut usize,
        image: *const u8,
        _jit_options: *const i32,
        _jit_values: *const usize,
        _jit_count: u32,
        _options: *const i32,
        _values: *const usize,
        _count: u32,
    ) |state| {
        state.ready()?;
        known(state, image)?;
        let handle = state.handle();
        state.libraries.insert(handle);
        unsafe { put(out, handle) }
    }

    leave cuLibraryUnload(library: usize) |state| {
        state.ready()?;
        if !state.libraries.remove(&library) {
            return Err(INVALID_HANDLE);
        }
        let contexts: Vec<_> = state.contexts.keys().copied().collect();
        let ran = contexts.into_iter().try_for_each(|context| state.run_all(context));
        state.functions.retain(|_, function| function.module != library);
        ran
    }

    enter cuLibraryGetKernel(out: *mut usize, library: usize, name: *const c_char) |state| {
        if !state.libraries.contains(&library) {
            return Err(INVALID_HANDLE);
        }
        if name.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the name ends with NUL.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| NOT_FOUND)?.to_string();
        let known = state.functions.iter().find(|(_, known)| known.module == library && known.name == name);
        if let Some((handle, _)) = known {
            return unsafe { put(out, *handle) };
        }
        let sizes = kernels::params(&name).ok_or(NOT_FOUND)?;
        let handle = state.handle();
        let kernel = Function { module: library, context: None, name, sizes, max_dynamic: 48 << 10 };
        state.functions.insert(handle, kernel);
        unsafe { put(out, handle) }
    }

    enter cuKernelSetAttribute(attribute: i32, value: i32, kernel: usize, device: i32) |state| {
        state.device(device)?;
        let most = state.settings.shared_memory();
        let kernel = state.functions.get_mut(&kernel).filter(|kernel| kernel.context.is_none());
        let kernel = kernel.ok_or(INVALID_HANDLE)?;
        match attribute {
            8 if (0..=most).contains(&value) => kernel.max_dynamic = value,
            9 if (-1..=100).contains(&value) => {}
            10..=15 => {}
            _ => return Err(INVALID_VALUE),
        }
        Ok(())
    }
}

//! Simulated functions of cuBLASLt with their C ABI. They follow cuBLASLt's documentation.
//!
//! SAFETY contract of every unsafe block in this file: host pointers come from the caller, who must pass what
//! cuBLASLt's documentation requires. Pointers to results are checked for null. Handles and device addresses are looked
//! up, never trusted.

#![allow(clippy::missing_safety_doc, clippy::undocumented_unsafe_blocks)]

use crate::driver::Module;
use crate::product::{self, Algorithm, Epilogue, Layout, Operation, Place, Product};
use crate::state::{Preference, Thing, enter, leave, lock};
use crate::*;
use std::ffi::c_void;

/// cublasLtMatmulHeuristicResult_t
#[repr(C)]
pub struct Found {
    algorithm: Algorithm,
    workspace: usize,
    state: i32,
    waves: f32,
    reserved: [i32; 4],
}

/// Reads an attribute's value; its size must be that of T.
unsafe fn read<T: Copy>(from: *const c_void, bytes: usize) -> Result<T> {
    if from.is_null() || bytes != size_of::<T>() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller passes a value of this size.
    Ok(unsafe { from.cast::<T>().read_unaligned() })
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    lock().settings.version
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtCreate(handle: *mut usize) -> i32 {
    enter(|state| {
        let module = Module::load()?;
        unsafe { state.add(handle, Thing::Library(module)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtDestroy(handle: usize) -> i32 {
    leave(|state| state.remove(handle, |thing| matches!(thing, Thing::Library(_))).map(drop))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescCreate(handle: *mut usize, compute: i32, scale: i32) -> i32 {
    enter(|state| {
        let operation = Operation { compute, scale, transposed: [false; 2], epilogue: Epilogue::None, bias: 0 };
        unsafe { state.add(handle, Thing::Operation(operation)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescDestroy(handle: usize) -> i32 {
    leave(|state| state.remove(handle, |thing| matches!(thing, Thing::Operation(_))).map(drop))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    handle: usize,
    attribute: i32,
    value: *const c_void,
    bytes: usize,
) -> i32 {
    enter(|state| {
        let operation = state.operation(handle)?;
        // CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET is only a hint for the heuristics.
        if attribute == 15 {
            return if unsafe { read::<i32>(value, bytes)? } >= 0 { Ok(()) } else { Err(INVALID_VALUE) };
        }
        match attribute {
            3 | 4 => {
                operation.transposed[attribute as usize - 3] = match unsafe { read::<i32>(value, bytes)? } {
                    0 => false,
                    1 => true,
                    _ => return Err(INVALID_VALUE),
                }
            }
            7 => operation.epilogue = Epilogue::of(unsafe { read(value, bytes)? })?,
            8 => operation.bias = unsafe { read(value, bytes)? },
            _ => return Err(NOT_SUPPORTED),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    handle: *mut usize,
    kind: i32,
    rows: u64,
    columns: u64,
    stride: i64,
) -> i32 {
    enter(|state| unsafe { state.add(handle, Thing::Layout(Layout { kind, rows, columns, stride })) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutDestroy(handle: usize) -> i32 {
    leave(|state| state.remove(handle, |thing| matches!(thing, Thing::Layout(_))).map(drop))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceCreate(handle: *mut usize) -> i32 {
    enter(|state| unsafe { state.add(handle, Thing::Preference(Preference::default())) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceDestroy(handle: usize) -> i32 {
    leave(|state| state.remove(handle, |thing| matches!(thing, Thing::Preference(_))).map(drop))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    handle: usize,
    attribute: i32,
    value: *const c_void,
    bytes: usize,
) -> i32 {
    enter(|state| {
        let preference = state.preference(handle)?;
        match attribute {
            1 => preference.workspace = unsafe { read(value, bytes)? },
            // A mask of cublasLtReductionScheme_t is ignored, because no product here is split along k.
            3 if unsafe { read::<u32>(value, bytes)? } <= 7 => {}
            _ => return Err(NOT_SUPPORTED),
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: usize,
    operation: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    preference: usize,
    requested: i32,
    results: *mut Found,
    count: *mut i32,
) -> i32 {
    enter(|state| {
        if requested <= 0 || results.is_null() || count.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: checked for null above.
        unsafe { count.write(0) };
        state.library(handle)?;
        state.heuristics += 1;
        let allowed = state.preference(preference)?.workspace;
        let layout = |handle| state.layout(handle);
        let (a, b, c, d) = (layout(a)?, layout(b)?, layout(c)?, layout(d)?);
        let (algorithm, workspace) = Product { operation: *state.operation(operation)?, a, b, c, d }.algorithm()?;
        if !state.settings.algorithms || allowed < workspace as u64 {
            return Err(NOT_SUPPORTED);
        }
        // SAFETY: the caller provides room for as many results as it requests.
        unsafe {
            results.write(Found { algorithm, workspace, state: 0, waves: 1.0, reserved: [0; 4] });
            count.write(1);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    handle: usize,
    operation: usize,
    alpha: *const f32,
    a: u64,
    a_layout: usize,
    b: u64,
    b_layout: usize,
    beta: *const f32,
    c: u64,
    c_layout: usize,
    d: u64,
    d_layout: usize,
    algorithm: *const Algorithm,
    workspace: u64,
    workspace_bytes: usize,
    stream: usize,
) -> i32 {
    enter(|state| {
        if alpha.is_null() || beta.is_null() {
            return Err(INVALID_VALUE);
        }
        let layout = |handle| state.layout(handle);
        let (of_a, of_b, of_c, of_d) = (layout(a_layout)?, layout(b_layout)?, layout(c_layout)?, layout(d_layout)?);
        let product = Product { operation: *state.operation(operation)?, a: of_a, b: of_b, c: of_c, d: of_d };
        // SAFETY: alpha and beta are not null, and they are floats unless the product is refused for its scale type.
        // The algorithm is null or valid.
        let (alpha, beta, algorithm) = unsafe { (*alpha, *beta, algorithm.as_ref()) };
        let place = Place { a, b, c, d, alpha, beta, workspace, workspace_bytes };
        product::run(state.library(handle)?, &product, algorithm, &place, stream)?;
        state.products += 1;
        Ok(())
    })
}

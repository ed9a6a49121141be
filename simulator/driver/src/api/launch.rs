//! Modules, functions and kernel launches.

use super::api;
use crate::state::{Function, State, put};
use crate::stream::{Launch, Op};
use crate::*;
use simulated_kernels as kernels;
use std::ffi::{CStr, c_char};
use std::sync::Arc;

/// CUlaunchConfig.
#[repr(C)]
pub struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: usize,
    attributes: *const Attribute,
    count: u32,
}

/// CUlaunchAttribute.
#[repr(C)]
pub struct Attribute {
    id: i32,
    pad: i32,
    value: [u64; 8],
}

/// Checks whether the image has kernels for these devices.
pub fn known(state: &State, image: *const u8) -> Result<()> {
    if image.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: an image is longer than its magic number or ends with NUL.
    let known = unsafe {
        let starts = |with: &[u8]| with.iter().enumerate().all(|(i, byte)| *image.add(i) == *byte);
        starts(&0x4662_43b1_u32.to_le_bytes()) || starts(&0xBA55_ED50_u32.to_le_bytes()) || starts(b"simulated")
    };
    if !known {
        return Err(INVALID_IMAGE);
    }
    if state.settings.compute < 80 {
        return Err(NO_BINARY_FOR_GPU);
    }
    Ok(())
}

fn load(state: &mut State, image: *const u8) -> Result<usize> {
    let context = state.current()?;
    known(state, image)?;
    let handle = state.handle();
    state.modules.insert(handle, context);
    Ok(handle)
}

fn function(state: &State, handle: usize) -> Result<&Function> {
    state.current()?;
    state.functions.get(&handle).ok_or(INVALID_HANDLE)
}

fn launch(
    state: &mut State,
    handle: usize,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: usize,
    params: *const *const u8,
) -> Result<()> {
    let stream = state.stream(stream)?;
    let found = function(state, handle)?;
    // A function belongs to the context into which its module was loaded, and any other context refuses it. Green
    // contexts refuse it too; CUDA's documentation does not specify that case. A library's kernel runs in the context
    // of the stream.
    let to = &state.streams[&stream];
    if found.context.is_some_and(|of| of != to.context || to.green.is_some()) {
        return Err(INVALID_HANDLE);
    }
    let green = to.green;
    let threads = block.iter().map(|n| u64::from(*n)).product::<u64>();
    let grid_fits = grid.iter().all(|n| *n > 0) && grid[0] <= i32::MAX as u32 && grid[1].max(grid[2]) <= 65535;
    let block_fits = (1..=1024).contains(&threads) && block[2] <= 64;
    if !grid_fits || !block_fits || shared as i64 > i64::from(found.max_dynamic) {
        return Err(INVALID_VALUE);
    }
    if params.is_null() && !found.sizes.is_empty() {
        return Err(INVALID_VALUE);
    }
    let mut words = Vec::new();
    for (i, bytes) in found.sizes.iter().enumerate() {
        let mut param = vec![0u128; bytes.div_ceil(16)];
        // SAFETY: the caller passes an argument of this size for each parameter.
        unsafe { std::ptr::copy_nonoverlapping(*params.add(i), param.as_mut_ptr().cast(), *bytes) };
        words.push(param);
    }
    let launch = Launch { kernel: found.name.clone(), grid, block, shared: shared as usize, green, params: words };
    state.submit(stream, Op::Kernel(Arc::new(launch))).map(|_| ())
}

fn occupancy(state: &State, handle: usize, block: i32, shared: usize) -> Result<i32> {
    function(state, handle)?;
    if block <= 0 {
        return Err(INVALID_VALUE);
    }
    let of_shared = (state.settings.shared_memory() as usize + (1 << 10)) / (shared + (1 << 10));
    // The simulated kernels use 64 registers per thread.
    let of_threads = 1024 / (block as usize).next_multiple_of(32);
    Ok(of_shared.min(of_threads).min(32) as i32)
}

api! {
    enter cuModuleLoadData(module: *mut usize, image: *const u8) |state| { unsafe { put(module, load(state, image)?) } }

    enter cuModuleLoadDataEx(
        module: *mut usize,
        image: *const u8,
        _count: u32,
        _options: *const i32,
        _values: *const usize,
    ) |state| { unsafe { put(module, load(state, image)?) } }

    enter cuModuleLoadFatBinary(module: *mut usize, image: *const u8) |state| {
        unsafe { put(module, load(state, image)?) }
    }

    leave cuModuleUnload(module: usize) |state| {
        state.ready()?;
        let context = *state.modules.get(&module).ok_or(INVALID_HANDLE)?;
        let sticky = state.healthy(context).map(|_| ());
        let ran = state.run_all(context);
        state.modules.remove(&module);
        state.functions.retain(|_, function| function.module != module);
        sticky.and(ran)
    }

    enter cuModuleGetLoadingMode(mode: *mut i32) |_state| { unsafe { put(mode, 2) } }

    enter cuModuleGetFunction(out: *mut usize, module: usize, name: *const c_char) |state| {
        let context = *state.modules.get(&module).ok_or(INVALID_HANDLE)?;
        state.healthy(context)?;
        if name.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the name ends with NUL.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| NOT_FOUND)?.to_string();
        let known = state.functions.iter().find(|(_, known)| known.module == module && known.name == name);
        if let Some((handle, _)) = known {
            return unsafe { put(out, *handle) };
        }
        let sizes = kernels::params(&name).ok_or(NOT_FOUND)?;
        let handle = state.handle();
        state.functions.insert(handle, Function { module, context: Some(context), name, sizes, max_dynamic: 48 << 10 });
        unsafe { put(out, handle) }
    }

    enter cuFuncSetAttribute(handle: usize, attribute: i32, value: i32) |state| {
        function(state, handle)?;
        let most = state.settings.shared_memory();
        match attribute {
            8 if (0..=most).contains(&value) => {
                state.functions.get_mut(&handle).expect("it is there").max_dynamic = value;
                Ok(())
            }
            9 if (-1..=100).contains(&value) => Ok(()),
            10..=15 => Ok(()),
            _ => Err(INVALID_VALUE),
        }
    }

    enter cuFuncGetAttribute(out: *mut i32, attribute: i32, handle: usize) |state| {
        let found = function(state, handle)?;
        let value = match attribute {
            0 => 1024,
            1..=3 => 0, // static shared memory, constants, local memory
            4 => 64,
            5 | 6 => state.settings.compute,
            7 | 10..=15 => 0,
            8 => found.max_dynamic,
            9 => -1,
            _ => return Err(INVALID_VALUE),
        };
        unsafe { put(out, value) }
    }

    enter cuFuncSetCacheConfig(handle: usize, _config: i32) |state| { function(state, handle).map(|_| ()) }

    enter cuOccupancyMaxActiveBlocksPerMultiprocessor(out: *mut i32, handle: usize, block: i32, shared: usize) |state| {
        unsafe { put(out, occupancy(state, handle, block, shared)?) }
    }

    enter cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        out: *mut i32,
        handle: usize,
        block: i32,
        shared: usize,
        _flags: u32,
    ) |state| { unsafe { put(out, occupancy(state, handle, block, shared)?) } }

    enter cuLaunchKernel(
        handle: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: usize,
        params: *const *const u8,
        extra: *const usize,
    ) |state| {
        if !extra.is_null() {
            return Err(NOT_SUPPORTED);
        }
        launch(state, handle, [grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared, stream, params)
    }

    enter cuLaunchKernelEx(config: *const Config, handle: usize, params: *const *const u8, extra: *const usize) |state| {
        if config.is_null() || !extra.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: checked for null above.
        let config = unsafe { &*config };
        for i in 0..config.count as usize {
            // SAFETY: the caller passes `numAttrs` attributes.
            let attribute = unsafe { &*config.attributes.add(i) };
            // The cluster must divide the grid.
            if attribute.id == 4 {
                let (x, y, z) = (attribute.value[0] as u32, (attribute.value[0] >> 32) as u32, attribute.value[1] as u32);
                let divides = |n: u32, by: u32| by > 0 && n.is_multiple_of(by);
                let [grid_x, grid_y, grid_z] = config.grid;
                if !divides(grid_x, x) || !divides(grid_y, y) || !divides(grid_z, z) || x * y * z > 16 {
                    return Err(INVALID_CLUSTER_SIZE);
                }
            }
        }
        launch(state, handle, config.grid, config.block, config.shared, config.stream, params)
    }

    enter cuLaunchHostFunc(stream: usize, host: usize, data: usize) |state| {
        let stream = state.stream(stream)?;
        if host == 0 {
            return Err(INVALID_VALUE);
        }
        state.submit(stream, Op::Host { function: host, data }).map(|_| ())
    }
}

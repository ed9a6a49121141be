//! Primary contexts and the current context.

use super::api;
use crate::state::{CURRENT, put};
use crate::*;

api! {
    enter cuDevicePrimaryCtxRetain(context: *mut usize, device: i32) |state| {
        let device = state.device(device)?;
        unsafe { put(context, state.retain(device)?) }
    }

    leave cuDevicePrimaryCtxRelease_v2(device: i32) |state| {
        let device = state.device(device)?;
        state.release(device)
    }

    enter cuDevicePrimaryCtxSetFlags_v2(device: i32, _flags: u32) |state| { state.device(device).map(|_| ()) }

    enter cuDevicePrimaryCtxGetState(device: i32, flags: *mut u32, active: *mut i32) |state| {
        let device = state.device(device)?;
        let refs = state.device_of(device)?.refs;
        unsafe { put(flags, 0).and(put(active, i32::from(refs > 0))) }
    }

    leave cuDevicePrimaryCtxReset_v2(device: i32) |state| {
        let device = state.device(device)?;
        let handle = state.device_of(device)?.context;
        if handle != 0 {
            let refs = state.device_of(device)?.refs;
            state.end(handle);
            state.device_of(device)?.refs = 0;
            // Holders of the context keep it, now empty and healthy.
            if refs > 0 {
                state.devices.get_mut(&device).expect("it is there").refs = refs;
                state.begin(device, handle);
            }
        }
        Ok(())
    }

    leave cuCtxSetCurrent(context: usize) |state| {
        state.ready()?;
        if context != 0 && !state.contexts.contains_key(&context) {
            return Err(INVALID_CONTEXT);
        }
        CURRENT.with_borrow_mut(|all| {
            all.pop();
            if context != 0 {
                all.push(context);
            }
        });
        Ok(())
    }

    leave cuCtxPushCurrent_v2(context: usize) |state| {
        state.ready()?;
        if !state.contexts.contains_key(&context) {
            return Err(INVALID_CONTEXT);
        }
        CURRENT.with_borrow_mut(|all| all.push(context));
        Ok(())
    }

    leave cuCtxPopCurrent_v2(context: *mut usize) |state| {
        state.ready()?;
        let popped = CURRENT.with_borrow_mut(|all| all.pop()).ok_or(INVALID_CONTEXT)?;
        if context.is_null() { Ok(()) } else { unsafe { put(context, popped) } }
    }

    leave cuCtxGetCurrent(context: *mut usize) |state| {
        state.ready()?;
        let current = CURRENT.with_borrow(|all| all.last().copied()).unwrap_or(0);
        unsafe { put(context, current) }
    }

    enter cuCtxGetDevice(device: *mut i32) |state| {
        let current = state.current()?;
        unsafe { put(device, state.contexts[&current].device as i32) }
    }

    enter cuCtxSynchronize() |state| {
        let current = state.current()?;
        let capturing: Vec<_> = state.captures.values_mut().filter(|capture| capture.context == current).collect();
        if !capturing.is_empty() {
            capturing.into_iter().for_each(|capture| capture.invalid = true);
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        state.run_all(current)
    }

    enter cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32) |state| {
        state.current()?;
        // Either output may be null.
        if !least.is_null() {
            unsafe { put(least, 0)? };
        }
        if !greatest.is_null() {
            unsafe { put(greatest, -5)? };
        }
        Ok(())
    }

    enter cuCtxGetApiVersion(context: usize, version: *mut u32) |state| {
        if context != 0 && !state.contexts.contains_key(&context) {
            return Err(INVALID_CONTEXT);
        }
        unsafe { put(version, state.settings.driver as u32) }
    }

    enter cuCtxGetLimit(value: *mut usize, _limit: i32) |state| {
        state.current()?;
        unsafe { put(value, 1 << 10) }
    }

    enter cuCtxSetLimit(_limit: i32, _value: usize) |state| { state.current().map(|_| ()) }

    enter cuCtxEnablePeerAccess(peer: usize, flags: u32) |state| {
        let current = state.current()?;
        let to = state.contexts.get(&peer).ok_or(INVALID_CONTEXT)?.device;
        if flags != 0 || to == state.contexts[&current].device {
            return Err(INVALID_VALUE);
        }
        if !state.settings.peer {
            return Err(PEER_ACCESS_UNSUPPORTED);
        }
        if state.peers.contains(&(current, peer)) {
            return Err(PEER_ACCESS_ALREADY_ENABLED);
        }
        state.peers.push((current, peer));
        Ok(())
    }

    leave cuCtxDisablePeerAccess(peer: usize) |state| {
        let current = state.current()?;
        state.peers.retain(|pair| *pair != (current, peer));
        Ok(())
    }
}

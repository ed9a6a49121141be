//! The driver itself, its devices, and error texts.

use super::api;
use crate::state::put;
use crate::*;
use std::ffi::{CString, c_char};

unsafe fn put_text(to: *mut c_char, len: i32, text: &str) -> Result<()> {
    if to.is_null() || len <= 0 {
        return Err(INVALID_VALUE);
    }
    let n = text.len().min(len as usize - 1);
    // SAFETY: the caller provides room for `len` bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), n);
        to.add(n).write(0);
    }
    Ok(())
}

fn bus_id(device: usize) -> String {
    format!("0000:{:02X}:00.0", 0x10 + device)
}

/// The bytes behind a "GPU-…" name, which are the same in every process.
pub fn uuid(device: usize) -> [u8; 16] {
    let mut bytes = *b"simulated-cuda-\0";
    bytes[15] = device as u8;
    bytes
}

fn attribute(state: &state::State, attribute: i32, device: usize) -> Result<i32> {
    let settings = &state.settings;
    let opt_in = settings.shared_memory();
    Ok(match attribute {
        1..=3 => 1024, // threads per block
        4 => 64,
        5 => i32::MAX, // blocks per grid
        6 | 7 => 65535,
        8 => 48 << 10, // shared memory of a block without opt-in
        9 => 64 << 10,
        10 => 32,         // warp size
        11 => i32::MAX,   // maximum pitch
        12 | 82 => 65536, // registers
        13 => 1_980_000,  // clock in kHz
        14 => 512,        // texture alignment
        15 => 1,          // copies overlap with kernels
        16 => settings.sms,
        17 | 18 | 20 | 32 | 35 => 0, // timeout, integrated, exclusive, ECC, TCC
        19 | 31 | 41 => 1,           // mapped host memory, concurrent kernels, unified addresses
        33 => 0x10 + device as i32,  // PCI bus
        34 | 50 => 0,                // PCI device, domain
        36 => 2_619_000,             // memory clock in kHz
        37 => 5120,                  // memory bus width in bits
        38 => 50 << 20,              // L2 cache in bytes
        39 => {
            if settings.compute == 75 {
                1024
            } else {
                2048
            }
        }
        40 => 3, // copy engines
        75 => settings.compute / 10,
        76 => settings.compute % 10,
        78..=80 => 1, // stream priorities, L1 cache
        81 => opt_in + (1 << 10),
        83 | 84 | 85 | 86 | 88 | 89 => 0, // managed memory, twin boards, pageable access
        87 => 2,                          // ratio of float to double throughput
        90 | 91 | 95 | 99 => 1, // preemption, host pointers of registered memory, cooperative launch, host registration
        92..=94 | 96 | 98 | 100 | 101 => 0,
        97 => opt_in,
        102 | 103 => settings.vmm.into(), // virtual memory management, its file descriptors
        104 | 105 => 0,
        106 => 32, // blocks per multiprocessor
        107..=110 | 112 => 0,
        111 => 1 << 10, // shared memory that the system reserves per block
        113 => 1,
        115 => settings.pools.into(),
        114 | 116..=119 => 0,
        120 => (settings.compute >= 90).into(), // clusters
        121..=124 => 0,
        125 => settings.ipc.into(),
        126 => 1,
        127 => (settings.compute >= 90).into(), // tensor maps
        128 | 130 | 132 | 133 => 0,
        129 => 1,
        131 | 134 => 0, // NUMA nodes of the memory and of the host
        135..=148 => 0,
        _ => return Err(INVALID_VALUE),
    })
}

api! {
    enter cuInit(flags: u32) |state| {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        if state.settings.devices == 0 {
            return Err(NO_DEVICE);
        }
        state.initialised = true;
        Ok(())
    }

    enter cuDriverGetVersion(version: *mut i32) |state| { unsafe { put(version, state.settings.driver) } }

    enter cuDeviceGetCount(count: *mut i32) |state| {
        state.ready()?;
        unsafe { put(count, state.settings.devices as i32) }
    }

    enter cuDeviceGet(device: *mut i32, ordinal: i32) |state| {
        state.device(ordinal)?;
        unsafe { put(device, ordinal) }
    }

    enter cuDeviceGetName(name: *mut c_char, len: i32, device: i32) |state| {
        state.device(device)?;
        unsafe { put_text(name, len, "Simulated CUDA device") }
    }

    enter cuDeviceGetUuid(out: *mut [u8; 16], device: i32) |state| {
        let device = state.device(device)?;
        unsafe { put(out, uuid(device)) }
    }

    enter cuDeviceGetUuid_v2(out: *mut [u8; 16], device: i32) |state| {
        let device = state.device(device)?;
        unsafe { put(out, uuid(device)) }
    }

    enter cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) |state| {
        state.device(device)?;
        unsafe { put(bytes, state.settings.memory) }
    }

    enter cuDeviceGetAttribute(value: *mut i32, which: i32, device: i32) |state| {
        let device = state.device(device)?;
        unsafe { put(value, attribute(state, which, device)?) }
    }

    enter cuDeviceGetPCIBusId(text: *mut c_char, len: i32, device: i32) |state| {
        let device = state.device(device)?;
        unsafe { put_text(text, len, &bus_id(device)) }
    }

    enter cuDeviceGetByPCIBusId(device: *mut i32, text: *const c_char) |state| {
        state.ready()?;
        let text = unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().to_uppercase();
        let found = (0..state.settings.devices).find(|device| bus_id(*device) == text).ok_or(INVALID_DEVICE)?;
        unsafe { put(device, found as i32) }
    }

    enter cuDeviceCanAccessPeer(can: *mut i32, device: i32, peer: i32) |state| {
        let (device, peer) = (state.device(device)?, state.device(peer)?);
        unsafe { put(can, i32::from(device != peer && state.settings.peer)) }
    }

    enter cuDeviceGetP2PAttribute(value: *mut i32, which: i32, device: i32, peer: i32) |state| {
        let (device, peer) = (state.device(device)?, state.device(peer)?);
        if device == peer {
            return Err(INVALID_DEVICE);
        }
        // 2: access, 3: native atomics
        unsafe { put(value, i32::from(matches!(which, 2 | 3) && state.settings.peer)) }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: i32, out: *mut *const c_char) -> i32 {
    state::leave(|_| unsafe { put_words(out, error, |(name, _)| format!("CUDA_ERROR_{name}")) })
}

/// Returns the text of an error. After a device fault it includes the details of the latest fault with this code.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: i32, out: *mut *const c_char) -> i32 {
    state::leave(|state| match state.faults.get(&error) {
        Some(text) => unsafe { put(out, *text as *const c_char) },
        None => unsafe { put_words(out, error, |(_, words)| words.to_string()) },
    })
}

unsafe fn put_words(out: *mut *const c_char, error: i32, words: impl Fn((&str, &str)) -> String) -> Result<()> {
    let text = match error {
        0 => "CUDA_SUCCESS".to_string(),
        _ => words(describe(error).ok_or(INVALID_VALUE)?),
    };
    // Callers may keep the pointer, so each text is allocated once and never freed.
    static MADE: std::sync::Mutex<std::collections::BTreeMap<String, usize>> =
        std::sync::Mutex::new(std::collections::BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let at = *made
        .entry(text)
        .or_insert_with_key(|text| CString::new(text.as_str()).unwrap_or_default().into_raw() as usize);
    unsafe { put(out, at as *const c_char) }
}

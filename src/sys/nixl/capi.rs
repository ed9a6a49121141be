//! The parts of NIXL's C API (1.x; tested with 1.4 and 1.5) that this project uses. Functions are looked up by name.

use super::loader::{Handle, symbol};
use std::ffi::{c_char, c_int, c_uint, c_void};

pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 1;
const INVALID_PARAMETER: c_int = -1;
pub(super) const NOT_FOUND: c_int = -6;

pub(super) const DRAM: c_int = 0;
pub(super) const READ: c_int = 0;
/// Thread mode for calls from several threads: NIXL takes a lock, shared for transfers and exclusive for registrations.
pub(super) const SYNC_READ_WRITE: c_uint = 2;

/// Mirror of the C struct `nixl_capi_agent_config_t`.
#[repr(C)]
pub(super) struct AgentConfig {
    pub progress_thread: bool,
    pub listen_thread: bool,
    pub listen_port: c_int,
    pub thread_sync: c_uint,
    pub workers: c_uint,
    pub progress_delay_us: u64,
    pub listen_delay_us: u64,
    pub capture_telemetry: bool,
}

/// Declares the function table: each entry is `nixl_capi_<name>` and returns a status.
macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        pub(super) struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Functions {
            /// SAFETY: `library` must be a handle from `dlopen`, and the library must be NIXL's C API.
            pub unsafe fn load(library: Handle) -> Result<Functions, String> {
                Ok(Functions {
                    // SAFETY: a function with this name has this type in NIXL's C API.
                    $($name: unsafe {
                        let name = concat!("nixl_capi_", stringify!($name));
                        std::mem::transmute::<Handle, unsafe extern "C" fn($($argument),*) -> c_int>(
                            symbol(library, name).ok_or_else(|| format!("it has no {name}, as NIXL 1.4 and 1.5 do"))?,
                        )
                    },)*
                })
            }
        }
    };
}

functions! {
    create_configured_agent(*const c_char, *const AgentConfig, *mut Handle);
    destroy_agent(Handle);
    create_params(*mut Handle);
    destroy_params(Handle);
    create_backend(Handle, *const c_char, Handle, *mut Handle);
    destroy_backend(Handle);
    get_local_md(Handle, *mut *mut c_void, *mut usize);
    load_remote_md(Handle, *const c_void, usize, *mut *mut c_char);
    check_remote_md(Handle, *const c_char, Handle);
    invalidate_remote_md(Handle, *const c_char);
    create_reg_dlist(c_int, *mut Handle);
    destroy_reg_dlist(Handle);
    reg_dlist_add_desc(Handle, usize, usize, u64, *const c_void, usize);
    register_mem(Handle, Handle, Handle);
    deregister_mem(Handle, Handle, Handle);
    create_xfer_dlist(c_int, *mut Handle);
    destroy_xfer_dlist(Handle);
    xfer_dlist_add_desc(Handle, usize, usize, u64);
    create_xfer_req(Handle, c_int, Handle, Handle, *const c_char, *mut Handle, Handle);
    post_xfer_req(Handle, Handle, Handle);
    get_xfer_status(Handle, Handle);
    release_xfer_req(Handle, Handle);
    destroy_xfer_req(Handle);
}

/// Text for a status. NIXL reports most of its own errors as "backend", and writes the details only to its log.
pub(super) fn describe(status: c_int) -> String {
    let text = match status {
        SUCCESS => "success",
        IN_PROGRESS => "in progress",
        INVALID_PARAMETER => "invalid parameter",
        -2 => "error of the backend, or the peer is gone",
        -3 => "invalid state",
        -4 => "exception",
        NOT_FOUND => "not found",
        _ => "unknown status",
    };
    format!("{text} ({status}; NIXL_LOG_LEVEL=INFO and UCX_LOG_LEVEL=info make NIXL say more)")
}

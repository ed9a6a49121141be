//! Keeps NIXL and UCX from printing to stderr and from crashing when the process ends.
//!
//! Both libraries read their settings from the environment while they are loaded. In a process with other threads,
//! setting a variable races with every `getenv`. The settings are therefore made through the libraries' own functions,
//! after loading and before first use. A variable set by the host takes precedence, and a library that the host had
//! already loaded is left as it is.

use super::loader::{Handle, dlopen, symbol};
use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};

const PLUGIN: &str = "libplugin_UCX.so";

/// UCX settings, as the variable's name without `UCX_` and its value.
const UCX: &[(&str, &str)] = &[
    // Hides warnings about unused variables and errors about peers that died. The caller gets a status for the latter.
    ("LOG_LEVEL", "fatal"),
    // The wheel has its own libibverbs, but its EFA module uses the system's libefa, which loads the system's
    // libibverbs as well. With two copies, their destructors crash at process exit. The other modules, Mellanox
    // RDMA among them, do not have this problem. A host with EFA sets UCX_MODULES itself.
    ("MODULES", "^efa"),
];

/// Loads NIXL's UCX plugin, so that UCX can be configured before NIXL would load it for the first agent.
pub(super) fn load_ucx(capi: &Path) -> Result<(), String> {
    let plugin = plugin_dir(capi).join(PLUGIN);
    let failed = |text| format!("{}: its UCX plugin {}: {text}", capi.display(), plugin.display());
    if dlopen(&plugin, libc::RTLD_NOW | libc::RTLD_NOLOAD).is_ok() {
        return Ok(());
    }
    let handle = dlopen(&plugin, libc::RTLD_NOW).map_err(failed)?;
    let Some(set) = symbol(handle, "ucs_global_opts_set_value") else {
        crate::log!(Warn, "nixl", "{}: UCX without ucs_global_opts_set_value: it may print", plugin.display());
        return Ok(());
    };
    // SAFETY: the C declaration is `ucs_status_t ucs_global_opts_set_value(const char *name, const char *value)`.
    let set =
        unsafe { std::mem::transmute::<Handle, unsafe extern "C" fn(*const c_char, *const c_char) -> c_int>(set) };
    for (name, value) in UCX {
        if std::env::var_os(format!("UCX_{name}")).is_some() {
            continue;
        }
        let (Ok(c_name), Ok(c_value)) = (CString::new(*name), CString::new(*value)) else { continue };
        // SAFETY: both are C strings. UCX's constructor has initialised it, and no other thread uses it yet.
        let status = unsafe { set(c_name.as_ptr(), c_value.as_ptr()) };
        if status != 0 {
            crate::log!(Warn, "nixl", "UCX does not take {name}={value} (status {status})");
        }
    }
    Ok(())
}

/// Directory where NIXL looks for plugins.
fn plugin_dir(capi: &Path) -> PathBuf {
    match std::env::var_os("NIXL_PLUGIN_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => dir.into(),
        None => capi.with_file_name("plugins"),
    }
}

/// Known abseil releases. NIXL logs through abseil, whose function names contain the release.
const ABSEIL: [&str; 8] =
    ["20260107", "20250814", "20250512", "20250127", "20240722", "20240116", "20230802", "20230125"];

/// Limits NIXL's log to the message before an abort.
pub(super) fn nixl(capi: Handle) {
    const FATAL: c_int = 3;
    if std::env::var_os("NIXL_LOG_LEVEL").is_some() {
        return;
    }
    let setters = |release| {
        ["14SetMinLogLevel", "18SetStderrThreshold"]
            .map(|name| symbol(capi, &format!("_ZN4absl12lts_{release}{name}ENS0_18LogSeverityAtLeastE")))
    };
    let mut set = false;
    for setter in ABSEIL.into_iter().flat_map(setters).flatten() {
        set = true;
        // SAFETY: the setters take one enumeration, as in `void absl::SetMinLogLevel(absl::LogSeverityAtLeast)`: an
        // int.
        unsafe { std::mem::transmute::<Handle, unsafe extern "C" fn(c_int)>(setter)(FATAL) };
    }
    if !set {
        crate::log!(Warn, "nixl", "NIXL's abseil is of an unknown release: it may print to stderr");
    }
}

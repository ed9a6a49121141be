//! Keeps NIXL and UCX from printing to stderr and from crashing when the process ends.
//!
//! Both read their settings from the environment while they are loaded. Setting variables in a process with other
//! threads is a race with each of their `getenv`s, so the same settings are made through the libraries' own
//! functions, after they are loaded and before they are used. A variable that the host has set stands, and a library
//! that the host had loaded already is left as it is.

use super::capi::Handle;
use super::library::{dlopen, symbol};
use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};

const PLUGIN: &str = "libplugin_UCX.so";

/// UCX settings: the name without `UCX_`, and the value.
const UCX: &[(&str, &str)] = &[
    // Warnings about unused variables, errors of a peer that died: the caller gets a status for them.
    ("LOG_LEVEL", "fatal"),
    // The wheel has its own libibverbs, but its EFA module uses the system's libefa, which brings in the system's
    // libibverbs as a second one: a crash in their destructors at the end of the process. The others (Mellanox RDMA
    // among them) do not. A host with EFA sets UCX_MODULES itself.
    ("MODULES", "^efa"),
];

/// Loads NIXL's UCX plugin, which NIXL itself would only load with the first agent, so as to set UCX up before.
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
    // SAFETY: `ucs_status_t ucs_global_opts_set_value(const char *name, const char *value)`.
    let set =
        unsafe { std::mem::transmute::<Handle, unsafe extern "C" fn(*const c_char, *const c_char) -> c_int>(set) };
    for (name, value) in UCX {
        if std::env::var_os(format!("UCX_{name}")).is_some() {
            continue;
        }
        let (Ok(c_name), Ok(c_value)) = (CString::new(*name), CString::new(*value)) else { continue };
        // SAFETY: two C strings; UCX has been initialised by its constructor and is used by no other thread yet.
        let status = unsafe { set(c_name.as_ptr(), c_value.as_ptr()) };
        if status != 0 {
            crate::log!(Warn, "nixl", "UCX does not take {name}={value} (status {status})");
        }
    }
    Ok(())
}

/// Where NIXL looks for plugins.
fn plugin_dir(capi: &Path) -> PathBuf {
    match std::env::var_os("NIXL_PLUGIN_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => dir.into(),
        None => capi.with_file_name("plugins"),
    }
}

/// NIXL logs through abseil, whose functions are named after its release: those known are tried.
const ABSEIL: [&str; 8] =
    ["20260107", "20250814", "20250512", "20250127", "20240722", "20240116", "20230802", "20230125"];

/// Leaves NIXL only the message before an abort.
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
        // SAFETY: `void absl::SetMinLogLevel(absl::LogSeverityAtLeast)` and the like; the enumeration is an int.
        unsafe { std::mem::transmute::<Handle, unsafe extern "C" fn(c_int)>(setter)(FATAL) };
    }
    if !set {
        crate::log!(Warn, "nixl", "NIXL's abseil is of an unknown release: it may print to stderr");
    }
}

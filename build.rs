//! Sets the name of the shared library and how it is loaded.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if os == "linux" {
        // The major version of the API, CLEAVE_API_MAJOR, names the ABI.
        let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcleave.so.{major}");
        // Threads may still run library code when a host unloads it, so it stays mapped.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,now");
        // Under cargo-fuzz, which sets this cfg, only the program has the sanitizer's symbols.
        if std::env::var_os("CARGO_CFG_FUZZING").is_none() {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-z,defs");
        }
    }
}

//! Sets the SONAME by which programs first look for cuBLASLt. Once this library is loaded, the loader gives it to them.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcublasLt.so");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}

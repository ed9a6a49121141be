//! The name by which programs ask for cuBLASLt first: once this library is loaded, they get it and no other.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcublasLt.so");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}

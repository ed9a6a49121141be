//! Provides both names by which programs ask for the driver. The library itself is libcuda.so.1. It embeds an empty
//! libcuda.so that depends on libcuda.so.1 (see `name.rs`).

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    let out = std::env::var_os("OUT_DIR").expect("OUT_DIR");
    let (source, first) = (Path::new(&out).join("empty.c"), Path::new(&out).join("libcuda.so.1"));
    std::fs::write(&source, "").expect("OUT_DIR is writable");
    empty(&source, &first, "libcuda.so.1", None);
    empty(&source, &Path::new(&out).join("libcuda.so"), "libcuda.so", Some(&first));
}

/// Builds an empty library.
fn empty(source: &Path, to: &Path, name: &str, needs: Option<&Path>) {
    let mut command = cc::Build::new().cargo_metadata(false).get_compiler().to_command();
    command.args(["-shared", "-nostdlib", "-Wl,--no-as-needed", "-Wl,-s"]).arg(format!("-Wl,-soname,{name}"));
    command.arg("-o").arg(to).arg(source).args(needs);
    run(&mut command);
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}");
}

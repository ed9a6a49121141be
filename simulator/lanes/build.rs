//! Compiles the kernels of `kernels/` for the CPU with a C++ compiler.

use std::path::{Path, PathBuf};

const KERNELS: &str = "../../kernels";

fn main() {
    let kernels = std::env::current_dir().expect("a directory").join(KERNELS).canonicalize().expect("the kernels");
    let sources = sources(&kernels);
    for watched in ["build.rs", "src"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    println!("cargo:rerun-if-changed={}", kernels.join("include").display());
    for source in &sources {
        println!("cargo:rerun-if-changed={}", source.display());
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(false).warnings(false);
    // -ffp-contract: two roundings in the source stay two roundings. -fno-strict-aliasing: nvcc does not assume strict
    // aliasing.
    for flag in ["-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wno-unknown-pragmas"] {
        build.flag(flag);
    }
    build.include("src").files(["src/runtime.cpp", "src/fiber.cpp"]);
    build.flag("-include").flag("src/cuda.hpp");
    // The cc crate does not know .cu files, so each is included by a generated .cpp.
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("OUT_DIR"));
    for source in &sources {
        let wrapper = out.join(source.file_name().expect("a name")).with_extension("cu.cpp");
        std::fs::write(&wrapper, format!("#include \"{}\"\n", source.display())).expect("OUT_DIR is writable");
        build.file(wrapper);
    }
    build.cargo_metadata(false).compile("simulated_kernels");
    println!("cargo:rustc-link-search=native={}", out.display());
    // Links the whole archive: nothing refers to the kernels, which register themselves.
    println!("cargo:rustc-link-lib=static:+whole-archive=simulated_kernels");
    println!("cargo:rustc-link-lib=stdc++");
}

fn sources(kernels: &Path) -> Vec<PathBuf> {
    let mut sources: Vec<_> = std::fs::read_dir(kernels)
        .expect("the kernels' directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    sources
}

//! The kernels as fatbins, where these are there or nvcc is; with the feature `simulator` also as a C++ compiler sees them.

#[path = "build/fatbins.rs"]
mod fatbins;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    fatbins::embed();
    #[cfg(feature = "simulator")]
    simulator();
}

fn sources() -> Vec<std::path::PathBuf> {
    let mut sources: Vec<_> = std::fs::read_dir(".")
        .expect("the crate's directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    sources
}

#[cfg(feature = "simulator")]
fn simulator() {
    let sources = sources();
    for watched in ["include", "sim"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    for source in &sources {
        println!("cargo:rerun-if-changed={}", source.display());
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(false).warnings(false);
    // -ffp-contract: what is written as two roundings is two. -fno-strict-aliasing: as nvcc, which knows no other way.
    for flag in ["-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wno-unknown-pragmas"] {
        build.flag(flag);
    }
    build.files(["sim/runtime.cpp", "sim/fiber.cpp"]);
    build.flag("-include").flag("sim/cuda.hpp");
    // cc does not know .cu: each becomes a .cpp that includes it.
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("OUT_DIR"));
    let here = std::env::current_dir().expect("a directory");
    for source in &sources {
        let wrapper = out.join(source.file_name().expect("a name")).with_extension("cu.cpp");
        std::fs::write(&wrapper, format!("#include \"{}\"\n", here.join(source).display()))
            .expect("OUT_DIR is writable");
        build.file(wrapper);
    }
    build.cargo_metadata(false).compile("cleave_sim");
    println!("cargo:rustc-link-search=native={}", out.display());
    // Whole: nothing refers to the kernels, they register themselves.
    println!("cargo:rustc-link-lib=static:+whole-archive=cleave_sim");
    println!("cargo:rustc-link-lib=stdc++");
}

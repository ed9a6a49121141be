//! The kernels as fatbins, where these are there or nvcc is.

#[path = "build/fatbins.rs"]
mod fatbins;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    fatbins::embed();
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

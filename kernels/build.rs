//! The kernels as fatbins, if they are compiled already or nvcc is found; and their launch shapes.

#[path = "build/fatbins.rs"]
mod fatbins;
#[path = "build/shapes.rs"]
mod shapes;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    shapes::export();
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

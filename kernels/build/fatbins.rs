//! Writes `fatbins.rs` and `entries.rs` to OUT_DIR from the results of tools/kernels.sh. They cover all sources or
//! none.
//!
//! The script writes to `target/kernels` in the workspace, wherever cargo's own target directory is, or to
//! CLEAVE_KERNELS_DIR. If a fatbin is missing or stale there, this runs the script, provided that the script finds an
//! nvcc. CLEAVE_NVCC=none disables nvcc. A build without fatbins succeeds unless CLEAVE_REQUIRE_KERNELS is set.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

const SCRIPT: &str = "tools/kernels.sh";
/// File with nvcc's flags, which the script reads as well.
const FLAGS: &str = "nvcc.flags";

pub fn embed() {
    for variable in ["CLEAVE_KERNELS_DIR", "CLEAVE_KERNEL_ARCHS", "CLEAVE_REQUIRE_KERNELS", "CLEAVE_NVCC", "CUDA_HOME"]
    {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let root = Path::new("..");
    // A relative CLEAVE_KERNELS_DIR is relative to the workspace root, where the script runs.
    let dir = root.join(std::env::var_os("CLEAVE_KERNELS_DIR").unwrap_or_else(|| "target/kernels".into()));
    let sources = crate::sources();
    for watched in sources.iter().map(PathBuf::as_path).chain([Path::new("include"), Path::new(FLAGS)]) {
        println!("cargo:rerun-if-changed={}", watched.display());
    }
    watch(&dir.join("stamp"), || {
        let mut outcome = missing(&sources, &dir).map_or(Ok(()), Err);
        if outcome.is_err() {
            outcome = compile(root).and_then(|()| missing(&sources, &dir).map_or(Ok(()), Err));
        }
        let required = std::env::var_os("CLEAVE_REQUIRE_KERNELS").is_some_and(|value| !value.is_empty());
        match outcome {
            Ok(()) => write(&sources, &dir),
            Err(reason) if required => {
                eprintln!("CLEAVE_REQUIRE_KERNELS is set, and {reason}");
                std::process::exit(1);
            }
            Err(_) => write(&[], &dir),
        }
    });
}

/// Makes cargo rerun this build script when the kernel script has compiled something, except when this run started it.
fn watch(stamp: &Path, work: impl FnOnce()) {
    let before = SystemTime::now() - Duration::from_secs(2);
    let was = fs::metadata(stamp).and_then(|stamp| stamp.modified()).ok();
    if was.is_none() {
        let _ = fs::create_dir_all(stamp.parent().expect("a directory")).and_then(|()| File::create(stamp).map(drop));
    }
    work();
    if let Ok(file) = File::options().append(true).open(stamp) {
        if file.metadata().and_then(|now| now.modified()).ok() != was {
            let _ = file.set_modified(before);
        }
        // A path that does not exist would rerun this at every build.
        println!("cargo:rerun-if-changed={}", stamp.display());
    }
}

/// Returns the reason why some source has no fatbin built from its current contents; None if all have one.
fn missing(sources: &[PathBuf], dir: &Path) -> Option<String> {
    let fresh = |source: &PathBuf| {
        let made_of = fs::read_to_string(compiled(dir, source, "inputs")).unwrap_or_default();
        // The first line is nvcc's version.
        made_of.split_once('\n').is_some_and(|(_, text)| inputs(source).is_ok_and(|now| now == text))
            && compiled(dir, source, "fatbin").exists()
    };
    let stale = sources.iter().find(|source| !fresh(source))?;
    Some(format!("{} is not compiled; {SCRIPT} compiles it", stale.display()))
}

fn compiled(dir: &Path, source: &Path, extension: &str) -> PathBuf {
    dir.join(source.file_name().expect("a name")).with_extension(extension)
}

/// Inputs of a source in the format of the script: the flags, and all included files in the order of their names.
fn inputs(source: &Path) -> std::io::Result<String> {
    let (mut seen, mut queue) = (BTreeSet::new(), vec![source.strip_prefix(".").unwrap_or(source).to_path_buf()]);
    while let Some(file) = queue.pop() {
        let text = fs::read_to_string(&file)?;
        let names = text.lines().filter_map(|line| line.strip_prefix("#include \"")?.split('"').next());
        let found: Vec<PathBuf> = names.map(|name| file.with_file_name(name)).collect();
        if seen.insert(file.to_str().expect("names are ASCII").to_string()) {
            queue.extend(found);
        }
    }
    std::iter::once(FLAGS).chain(seen.iter().map(String::as_str)).map(fs::read_to_string).collect()
}

fn compile(root: &Path) -> Result<(), String> {
    let none = "there is no nvcc".to_string();
    let Ok(output) = Command::new("bash").arg(SCRIPT).arg("--no-install").current_dir(root).output() else {
        return Err(none);
    };
    match output.status.code() {
        Some(0) => Ok(()),
        Some(3 | 127) => Err(none),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            for line in said.lines() {
                println!("cargo:warning={line}");
            }
            Err(format!("{SCRIPT} failed: {}", said.lines().last().unwrap_or_default()))
        }
    }
}

/// Writes the expressions that src/lib.rs includes. They name files by relative paths, so that the crate contains no
/// path of this machine.
fn write(sources: &[PathBuf], dir: &Path) {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("OUT_DIR"));
    let (mut fatbins, mut entries) = (String::from("&[\n"), String::from("&[\n"));
    for source in sources {
        let name = source.file_stem().and_then(|name| name.to_str()).expect("names are ASCII");
        let fatbin = format!("{name}.fatbin");
        fs::copy(compiled(dir, source, "fatbin"), out.join(&fatbin)).expect("a fatbin can be copied to OUT_DIR");
        writeln!(fatbins, "(\"{name}\", &Aligned(*include_bytes!(\"{fatbin}\")).0),").expect("a String takes all");
        let of_file = fs::read_to_string(compiled(dir, source, "entries")).expect("the list beside a fatbin");
        for kernel in of_file.lines() {
            writeln!(entries, "(\"{kernel}\", \"{name}\"),").expect("a String takes all");
        }
    }
    for (file, mut text) in [("fatbins.rs", fatbins), ("entries.rs", entries)] {
        text.push(']');
        fs::write(out.join(file), text).expect("OUT_DIR is writable");
    }
}

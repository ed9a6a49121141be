//! Places where NIXL's C API may be installed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

const FILE: &str = "libnixl_capi.so";

/// Libraries to try, in order. `Err` is the error text for a directory without the library.
///
/// `library` (CLEAVE_NIXL_LIBRARY) is the file itself. If it is set nothing else is tried, because another copy than
/// the one asked for is worse than none. Otherwise: the loader's search path, then `dir` (CLEAVE_NIXL_DIR).
pub(super) fn candidates(library: Option<OsString>, dir: Option<OsString>) -> Vec<Result<PathBuf, String>> {
    let given = |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = given(library) {
        return vec![Ok(path)];
    }
    let mut all = vec![Ok(PathBuf::from(FILE))];
    if let Some(dir) = given(dir) {
        let found = in_directory(&dir);
        all.push(found.ok_or_else(|| format!("CLEAVE_NIXL_DIR={}: holds no {FILE}", dir.display())));
    }
    all
}

/// Finds the library in the directory itself, in a directory below it (a Python wheel keeps it in a hidden one beside
/// the package), or in the library directories of an installation prefix. Of several wheels, takes the last by name.
fn in_directory(dir: &Path) -> Option<PathBuf> {
    let mut below: Vec<PathBuf> = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    below.sort();
    below.reverse();
    let prefix = ["lib", "lib64"].into_iter().flat_map(|lib| {
        let lib = dir.join(lib);
        [lib.join(format!("{}-linux-gnu", std::env::consts::ARCH)), lib]
    });
    let places = std::iter::once(dir.to_path_buf()).chain(below).chain(prefix);
    // The path is made absolute, because the loader searches for a name without a slash.
    places.map(|place| place.join(FILE)).find(|file| file.is_file()).and_then(|file| std::path::absolute(file).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_asked_for_is_the_only_one_tried() {
        let found = candidates(Some("/some/libnixl_capi.so".into()), Some("/elsewhere".into()));
        assert_eq!(found, [Ok(PathBuf::from("/some/libnixl_capi.so"))]);
        assert_eq!(candidates(Some("".into()), None), [Ok(PathBuf::from(FILE))]);
    }

    #[test]
    fn a_directory_is_searched_as_wheels_and_prefixes_are_laid_out() {
        let dir = tempfile::tempdir().unwrap();
        let search = || candidates(None, Some(dir.path().into())).pop().unwrap();
        assert!(search().unwrap_err().contains("holds no libnixl_capi.so"));
        let places = ["lib64", "lib", ".nixl_cu12.mesonpy.libs", ".nixl_cu13.mesonpy.libs", "."];
        for place in places {
            // Later ones come before earlier ones.
            if place == ".nixl_cu12.mesonpy.libs" {
                std::fs::remove_dir_all(dir.path().join("lib")).unwrap();
                std::fs::remove_dir_all(dir.path().join("lib64")).unwrap();
            }
            std::fs::create_dir_all(dir.path().join(place)).unwrap();
            let file = dir.path().join(place).join(FILE);
            std::fs::write(&file, "").unwrap();
            let found = search().unwrap();
            if place == "lib" {
                assert!(found.is_file());
            } else {
                assert_eq!(found.canonicalize().unwrap(), file.canonicalize().unwrap());
            }
        }
    }
}

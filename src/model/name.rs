//! The name of a model.

use std::path::Path;

/// The directory's name, or `organisation/model` of a snapshot in a Hugging Face cache.
pub(super) fn of(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let name = |path: &Path| path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    // A snapshot's path is models--ORGANISATION--MODEL/snapshots/REVISION.
    let repository = dir.parent().filter(|parent| name(parent) == "snapshots").and_then(Path::parent).map(name);
    match repository.as_deref().and_then(|repository| repository.strip_prefix("models--")) {
        Some(repository) => repository.replacen("--", "/", 1),
        None => name(&dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_the_name_of_its_repository() {
        assert_eq!(of(Path::new("/models/llama")), "llama");
        assert_eq!(of(Path::new("/models/llama/")), "llama");
        assert_eq!(of(Path::new("/hub/models--org--Model-1--x/snapshots/0123abc")), "org/Model-1--x");
        assert_eq!(of(Path::new("/hub/mine/snapshots/0123abc")), "0123abc");
    }
}

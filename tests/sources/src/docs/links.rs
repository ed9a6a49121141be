//! Links and file paths in the documents.

use super::page::{Page, pages};
use std::path::{Component, Path, PathBuf};

/// `a/../b/./c` as `b/c`.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

fn broken_links(page: &Page, all: &[Page]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (line, link) in page.links.iter().filter(|(_, link)| !link.contains("://") && !link.starts_with("mailto:")) {
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let here = Path::new(&page.path);
        let target = if file.is_empty() { here.to_path_buf() } else { plain(&here.parent().unwrap().join(file)) };
        if !super::root().join(&target).exists() {
            complaints.push(format!("{}:{line}: {link}: there is no {}", page.path, target.display()));
        } else if !anchor.is_empty()
            && !all.iter().any(|p| Path::new(&p.path) == target && p.anchors.iter().any(|a| a == anchor))
        {
            complaints.push(format!("{}:{line}: {link}: no heading with this anchor", page.path));
        }
    }
    complaints
}

#[test]
fn links_lead_somewhere() {
    let pages = pages();
    let complaints: Vec<String> = pages.iter().flat_map(|page| broken_links(page, &pages)).collect();
    super::report(&complaints, "relative links have to resolve");
}

/// Whether a piece of inline code is meant as a path in the repository: one with a directory or with the ending of a source.
fn is_path(span: &str) -> bool {
    let plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let endings =
        [".rs", ".md", ".h", ".hpp", ".cuh", ".cu", ".sh", ".py", ".toml", ".txt", ".c", ".go", ".svg", ".csv"];
    let elsewhere = ["target/", "build/", "out/", "/", "."].iter().any(|start| span.starts_with(start));
    plain && !elsewhere && (endings.iter().any(|e| span.ends_with(e)) || span.contains('/') && span.len() > 3)
}

#[test]
fn paths_in_the_guides_exist() {
    let tree = super::tree();
    let mut complaints = Vec::new();
    for page in pages().iter().filter(|p| ["ARCHITECTURE.md", "CONTRIBUTING.md"].contains(&p.path.as_str())) {
        for (line, span) in page.spans.iter().filter(|(_, span)| is_path(span)) {
            // A table about a module may leave out what its first column says: the end of the path is enough.
            let wanted = format!("/{}", span.trim_end_matches('/'));
            if !tree.iter().any(|path| format!("/{path}").ends_with(&wanted)) {
                complaints.push(format!("{}:{line}: `{span}` is not in the repository", page.path));
            }
        }
    }
    super::report(&complaints, "paths named in the guides have to exist");
}

#[test]
fn a_broken_link_is_noticed() {
    let page = Page::parse("docs/x.md".into(), "[a](../README.md) [b](nowhere.md) [c](#nothing)".into());
    assert_eq!(broken_links(&page, &[]).len(), 2);
    assert!(
        is_path("src/kv/mod.rs")
            && is_path("mod.rs")
            && is_path("src/kv")
            && !is_path("cleave_kv_save")
            && !is_path("f32")
    );
}

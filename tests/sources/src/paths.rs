//! The paths by which a source file names other modules: `use` trees, and `crate::`/`super::` paths in code.

/// Every path named in `text`, as its segments: `use a::{b, c::d}` gives `a::b` and `a::c::d`. `is_public` tells the
/// paths that are only passed on (`pub use`).
pub struct Path {
    pub segments: Vec<String>,
    pub is_public: bool,
}

pub fn paths(text: &str) -> Vec<Path> {
    let code = without_comments(text);
    let mut found = Vec::new();
    code.split(';').for_each(|statement| use_statement(statement, &mut found));
    inline_paths(&code, &mut found);
    found
}

/// Line comments are blanked; strings are rare enough in `use` lines not to matter.
fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn use_statement(statement: &str, found: &mut Vec<Path>) {
    let Some(at) = find_word(statement, "use") else { return };
    let before = statement[..at].trim_end();
    let is_public =
        before.ends_with("pub") || before.rsplit_once("pub(").is_some_and(|(_, scope)| scope.ends_with(')'));
    let mut tree: Vec<char> = statement[at + "use".len()..].chars().collect();
    tree.retain(|c| !c.is_whitespace() || *c == ' ');
    expand(&mut tree.into_iter().peekable(), &[], is_public, found);
}

/// Position of `word` as a word at the beginning of a line's code.
fn find_word(text: &str, word: &str) -> Option<usize> {
    text.match_indices(word).map(|(at, _)| at).find(|&at| {
        let starts = text[..at].rsplit('\n').next().is_some_and(|line| {
            let line = line.trim();
            line.is_empty() || line == "pub" || (line.starts_with("pub(") && line.ends_with(')'))
        });
        starts && text[at + word.len()..].starts_with(char::is_whitespace)
    })
}

fn expand(
    tree: &mut std::iter::Peekable<std::vec::IntoIter<char>>,
    prefix: &[String],
    is_public: bool,
    found: &mut Vec<Path>,
) {
    let mut path = prefix.to_vec();
    let mut word = String::new();
    loop {
        match tree.next() {
            Some(':') => {
                tree.next_if_eq(&':');
                path.push(std::mem::take(&mut word));
            }
            Some('{') => {
                expand(tree, &path, is_public, found);
                word.clear();
                path = vec![];
            }
            end @ (Some(',' | '}') | None) => {
                let name = word.split(" as ").next().unwrap_or_default().trim().to_string();
                if !name.is_empty() {
                    path.push(name);
                    let segments = path.into_iter().map(|s| s.trim().to_string()).collect();
                    found.push(Path { segments, is_public });
                }
                word.clear();
                if end != Some(',') {
                    return;
                }
                path = prefix.to_vec();
            }
            Some(c) => word.push(c),
        }
    }
}

/// `crate::a::b` and `super::a::b` outside of `use` statements (a `use` group ends the path where it begins).
fn inline_paths(code: &str, found: &mut Vec<Path>) {
    for root in ["crate::", "super::"] {
        for (at, _) in code.match_indices(root) {
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &code[at..];
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
            if rest[end..].starts_with('{') {
                continue; // a group, which the `use` statement expands
            }
            let segments: Vec<String> = rest[..end].split("::").filter(|s| !s.is_empty()).map(str::to_string).collect();
            if segments.len() > 1 {
                found.push(Path { segments, is_public: false });
            }
        }
    }
}

//! Doc comments begin with a noun or a verb (CONTRIBUTING.md, "Language").

/// First words of a sentence that only its surroundings complete.
const DANGLING: &[&str] = &["Of", "That", "What", "To", "And", "As"];

/// The first lines of the doc comments in a source, with their numbers. `markers` begin a line of such a comment.
fn first_lines<'a>(text: &'a str, markers: &[&str]) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        let comment = markers.iter().find_map(|marker| line.trim_start().strip_prefix(marker));
        if let Some(comment) = comment.filter(|_| !inside) {
            found.push((number + 1, comment.trim()));
        }
        inside = comment.is_some();
    }
    found
}

fn dangles(comment: &str) -> bool {
    DANGLING.contains(&comment.split([' ', ',', '.', ':']).next().unwrap_or_default())
}

#[test]
fn doc_comments_make_sense_alone() {
    let rust: &[&str] = &["///", "//!"];
    let languages: [(&[&str], &[&str], &[&str]); 4] = [
        (&["src", "kernels", "simulator", "benches", "fuzz", "build.rs"], &["rs"], rust),
        (&["include"], &["h"], &["/** ", "/**", " * "]),
        (&["bindings/cpp/cleave", "kernels"], &["hpp", "cuh", "cu"], rust),
        (&["bindings/go"], &["go"], &["//"]),
    ];
    let mut complaints = Vec::new();
    for (directories, extensions, markers) in languages {
        for file in super::files_in(directories, extensions).iter().filter(|file| !file.ends_with("_test.go")) {
            for (line, comment) in
                first_lines(&super::read(file), markers).into_iter().filter(|(_, comment)| dangles(comment))
            {
                complaints.push(format!("{file}:{line}: {comment}"));
            }
        }
    }
    super::report(&complaints, "a doc comment begins with a noun or a verb and makes sense when read alone");
}

#[test]
fn a_dangling_comment_is_noticed() {
    let text = "/// Of it.\n/// More.\nstruct A;\n/// Tokens.\n/// As many as fit.\nstruct B;\n";
    let found: Vec<usize> =
        first_lines(text, &["///"]).into_iter().filter(|(_, c)| dangles(c)).map(|(line, _)| line).collect();
    assert_eq!(found, [1]);
}

//! Error texts that the documents quote.
//!
//! A document quotes an error text as inline code in double quotes: `"KV import: needs … blocks"`. The sign … stands for what
//! is filled in when the error occurs. Everything between two such signs has to stand in one string of the sources, in this
//! order and with nothing else between than what is filled in there.

use super::page::pages;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::str::FromStr;

/// Placeholder for text that is filled in.
const FILLED_IN: char = '\u{2026}';

/// The string literals of a Rust source, those in macros included and doc comments left out.
fn strings(tokens: TokenStream, out: &mut Vec<String>) {
    for tree in tokens {
        match tree {
            TokenTree::Literal(literal) => {
                if let syn::Lit::Str(text) = syn::Lit::new(literal) {
                    out.push(text.value());
                }
            }
            TokenTree::Group(group) => {
                let is_doc = group.delimiter() == Delimiter::Bracket
                    && group.stream().into_iter().next().is_some_and(|first| first.to_string() == "doc");
                if !is_doc {
                    strings(group.stream(), out);
                }
            }
            _ => {}
        }
    }
}

/// A format string with … for every `{...}`, so that it can be compared with a quotation.
fn without_placeholders(format: &str) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
            out.push(rest.as_bytes()[0] as char);
            rest = after;
        } else {
            out.push(FILLED_IN);
            rest = rest.split_once('}').map_or("", |(_, after)| after);
        }
    }
    out + rest
}

/// The texts of the library that a user may see. Files of tests are left out.
fn library_texts() -> Vec<String> {
    let mut texts = Vec::new();
    for file in super::files_in(&["src"], &["rs"]) {
        if !file.contains("/tests/") && !file.ends_with("tests.rs") {
            let tokens = TokenStream::from_str(&super::read(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            strings(tokens, &mut texts);
        }
    }
    texts.iter().map(|text| without_placeholders(text)).collect()
}

/// The quoted text of a piece of inline code, if it is one: in double quotes and of more than one word.
fn quotation(span: &str) -> Option<&str> {
    let text = span.strip_prefix('"')?.strip_suffix('"')?;
    text.contains(' ').then_some(text)
}

fn is_real(quoted: &str, texts: &[String]) -> bool {
    let quoted = quoted.trim_matches([FILLED_IN, ' ']);
    texts.iter().any(|text| text.contains(quoted))
}

#[test]
fn quoted_error_texts_exist() {
    let texts = library_texts();
    let mut quotations = 0;
    let mut complaints = Vec::new();
    for page in pages().iter().filter(|page| page.path.starts_with("docs/") || page.path == "README.md") {
        for (line, quoted) in page.spans.iter().filter_map(|(line, span)| Some((line, quotation(span)?))) {
            quotations += 1;
            if !is_real(quoted, &texts) {
                complaints.push(format!("{}:{line}: no error reads \"{quoted}\"", page.path));
            }
        }
    }
    assert!(quotations > 10, "the documents quote {quotations} error texts: has the mark-up changed?");
    super::report(&complaints, "quoted error texts have to exist");
}

#[test]
fn an_invented_text_is_noticed() {
    let mut found = Vec::new();
    strings(
        TokenStream::from_str("/// needs air\nfn f() { g!(\"needs {} blocks, {n:>3} {{here}}\") }").unwrap(),
        &mut found,
    );
    let texts: Vec<String> = found.iter().map(|text| without_placeholders(text)).collect();
    assert_eq!(texts, ["needs … blocks, … {here}"]);
    assert!(is_real("… blocks, … {here}", &texts) && is_real("needs … blocks", &texts));
    assert!(!is_real("needs blocks", &texts) && !is_real("needs air", &texts));
    assert_eq!(quotation("\"two words\""), Some("two words"));
    assert_eq!(quotation("\"tools\""), None);
}
